"""What decides a search, and what it tells on its way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.errors import InputError
from workbench.icm.consistency import Rule
from workbench.icm.objective import Objective, Schedule
from workbench.icm.orders import ORDERS, Order
from workbench.icm.top import SCORES, ScoreKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides a search, beside claims and model; see `search`.

    Raises:
        InputError: a value is out of its range.
    """

    alpha: float = 50.0
    n_seeds: int | Sequence[bool] = 8
    n_iterations: int = 1500
    schedule: Schedule = "paper"
    order: Order = "tree"
    consistency: Rule = "auto"
    objective: Objective = "log_odds"
    scores: ScoreKind = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.n_seeds, int):
            object.__setattr__(self, "n_seeds", _labels(self.n_seeds))
        for name, least in (("n_seeds", 1), ("n_iterations", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, tuple):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name}={value!r}: must be a whole number from {least}")
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
            raise InputError(f"alpha={self.alpha!r}: must be a number above 0")
        for name, known in (
            ("schedule", ("paper", "code")),
            ("order", tuple(ORDERS)),
            ("objective", ("log_odds", "log_prob")),
            ("scores", SCORES),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r}: give one of {', '.join(known)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where a search stands after an iteration.

    Attributes:
        pool: labelled claims.
        tried, accepted: proposals that would change a label, and those that did.
        prompt_tokens, computed_tokens: of all prompts asked, and what the model ran over of them.
        saved_tokens: what asking everything anew without a cache would have cost beyond that.
    """

    iteration: int
    pool: int
    energy: float
    temperature: float
    tried: int
    accepted: int
    prompt_tokens: int
    computed_tokens: int
    saved_tokens: int

    @property
    def cache_hit_rate(self) -> float:
        """Share of the asked prompts' tokens that the model did not have to run over."""
        return 1 - self.computed_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def _labels(given: object) -> tuple[bool, ...]:
    labels = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if not labels or not all(isinstance(label, bool) for label in labels):
        raise InputError(f"n_seeds={given!r}: must be a whole number or labels, True and False")
    return labels
