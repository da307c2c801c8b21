"""What the model says of claims after labelled others, counted, and kept in a journal."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from workbench.engines.pieces import Pieces
from workbench.errors import EngineError, InputError
from workbench.icm.claim import Claim, Labels, Wording
from workbench.icm.journal import Journal
from workbench.icm.room import Room
from workbench.icm.top import NEITHER, ScoreKind, compute_top_logprobs
from workbench.progress import quiet
from workbench.store import digest
from workbench.types import Engine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("workbench")

Score = tuple[float, float]
"""Natural log-probability of true and of false as the label of a claim."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What was asked of the model.

    Attributes:
        prompts, prompt_tokens: how many, and how long together.
        computed_tokens: those that were not in the prefix cache (or in the response store).
        seconds: spent by the engine.
    """

    prompts: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.prompts + other.prompts,
            self.prompt_tokens + other.prompt_tokens,
            self.computed_tokens + other.computed_tokens,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class Shown:
    """How many demonstrations prompts showed of the `of` that there were: fewest, mean, most."""

    least: int
    mean: float
    most: int
    of: int


def compute_logprobs_batched(
    prompts: Sequence[str], labels: Sequence[str], engine: Engine
) -> NDArray[np.float64]:
    """`engine.label_logprobs` where each value is needed: float64 [n_prompts, n_labels].

    Raises:
        InputError: as `engine.label_logprobs`.
        EngineError: a label of some prompt has no exact value; it never counts as 0.
    """
    import numpy as np

    scores = engine.label_logprobs(prompts, labels, errors="return")
    wrong = scores.missing | ~np.isfinite(scores.logprobs)
    if not wrong.any():
        return scores.logprobs
    index, label = (int(place[0]) for place in np.nonzero(wrong))
    reason = scores.errors[index] or (
        f"the log-probability of {labels[label]!r} is missing: an engine that scores labels "
        "exactly is needed (vLLM in this process or a vLLM server); a search has scores='top20' too"
    )
    raise EngineError(
        f"{int(wrong.any(axis=1).sum())} of {len(prompts)} prompts could not be scored. First, "
        f"prompt {index} (…{prompts[index][-60:]!r}): {reason}",
        results=scores,
    )


class Oracle:
    """Asks an engine about claims.

    A prompt is labelled claims and the claim in question, which is never cut. Where not all
    demonstrations fit into the model's context, `Room` says which of them are shown.

    Args:
        more: texts that are asked about beside the claims.
        seed: decides which demonstrations are left out.
        scores: "exact", or the published "top20"."""

    def __init__(
        self,
        engine: Engine,
        claims: Sequence[Claim],
        wording: Wording,
        journal: Journal,
        more: Sequence[str] = (),
        *,
        seed: int = 0,
        scores: ScoreKind = "exact",
    ) -> None:
        self.cost, self._neither = Cost(), 0
        self._engine, self._journal, self._labels = engine, journal, wording.labels
        self._compute = compute_logprobs_batched if scores == "exact" else compute_top_logprobs
        self._texts = [claim.text for claim in claims]
        self._solved = [
            {label: wording.solved(claim, label) for label in (True, False)} for claim in claims
        ]
        self._room = Room(engine, claims, wording, seed, more)
        self._counts: Counter[tuple[int, int]] = Counter()

    @property
    def unfit(self) -> Mapping[int, str]:
        """Claims, by index, that do not fit into the context even alone, each with the reason."""
        return self._room.unfit

    def fitting(self) -> list[int]:
        """The claims that fit; says so where some do not, or not all demonstrations.

        Raises:
            InputError: none fits.
        """
        there = [index for index in range(len(self._texts)) if index not in self.unfit]
        if not there:
            raise InputError(f"no claim fits into the context; the first: {self.unfit[0]}")
        if self.unfit:
            index, reason = next(iter(self.unfit.items()))
            log.warning(
                "icm: %d of %d claims do not fit into the context and are left out; the first, "
                "%r…: %s", len(self.unfit), len(self._texts), self._texts[index][:60], reason,
            )  # fmt: skip
        others = ([i for i in there if i != one] for one in there)
        texts = (self._texts[one] for one in there)
        shown = [len(self._room.kept(*pair)) for pair in zip(others, texts, strict=True)]
        if min(shown) < len(there) - 1:
            log.warning(
                "icm: the context holds %.1f of %d demonstrations on average (%d to %d)",
                fmean(shown), len(there) - 1, min(shown), max(shown),
            )  # fmt: skip
        return there

    @property
    def shown_counts(self) -> Shown:
        """Of those prompts so far that had the most demonstrations to show."""
        of, _ = max(self._counts, default=(0, 0))
        some = ((kept, number) for (one, kept), number in self._counts.items() if one == of)
        counts = dict(some) or {0: 1}
        return Shown(min(counts), fmean(counts, counts.values()), max(counts), of)

    def notes(self) -> list[str]:
        """What a reader has to know of the prompts so far."""
        notes, shown = list[str](), self.shown_counts
        if self.unfit:
            notes.append(
                "left out, as the model's context does not hold them: "
                f"{len(self.unfit)} of {len(self._texts)} claims"
            )
        if shown.least < shown.of:
            notes.append(
                f"each claim was asked about after {shown.mean:.1f} of its {shown.of} "
                f"demonstrations on average ({shown.least} to {shown.most}): the model's context "
                "holds no more"
            )
        if self._neither:
            notes.append(
                f"for {self._neither:,} of {self.cost.prompts:,} prompts neither label was among "
                "the likeliest tokens: they count as undecided, as published"
            )
        return notes

    def prompt(self, labels: Labels, shown: Sequence[int], target: int | str) -> str:
        """The labelled claims `shown` and then the target, a claim's index or its text."""
        text = target if isinstance(target, str) else self._texts[target]
        kept = self._room.kept(shown, text)
        if self._room.fits(text):
            self._counts[len(shown), len(kept)] += 1
        return Pieces([*(self._solved[i][bool(labels[i])] for i in kept), text])

    def score(self, prompts: list[str]) -> list[Score]:
        """The scores of whole prompts: from the journal, or else from the engine.

        Raises:
            EngineError: one of them could not be scored.
        """
        asked = digest(prompts, list(self._labels)).hex()[:32]
        known = self._journal.answer(asked)
        if known is not None and len(known["scores"]) == len(prompts):
            self.cost += Cost(*known["cost"])
            return self._noted([(true, false) for true, false in known["scores"]])
        before = self._engine.usage
        with quiet():
            values = self._compute(prompts, self._labels, self._engine)
        used = self._engine.usage.since(before)
        cost = Cost(len(prompts), used.prompt_tokens, used.computed_tokens, round(used.seconds, 3))
        self.cost += cost
        scores = [(float(true), float(false)) for true, false in values]
        numbers = [cost.prompts, cost.prompt_tokens, cost.computed_tokens, cost.seconds]
        self._journal.add(asked, {"scores": scores, "cost": numbers})
        return self._noted(scores)

    def _noted(self, scores: list[Score]) -> list[Score]:
        self._neither += scores.count(NEITHER)
        return scores
