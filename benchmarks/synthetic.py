"""A synthetic model: it counts a search's prompts, and its answers are reproducible."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from workbench.icm import Claim
from workbench.icm.claim import Wording
from workbench.types import EngineInfo, Errors, LabelScores, Usage

WORDING = Wording()


class Synthetic:
    """A deterministic stand-in for a model, with the methods that a search needs of an engine.

    The model follows a concept: it is surer of a claim the more demonstrations agree with the
    concept (and says the opposite if they contradict it), and less sure after few. A claim's own
    text adds constant noise, by a hash of the claim. Claims on which the two disagree are those
    that a search revisits and pays for, so there are as many as for an 8B model on GSM8K
    verification, with the same groups: zero-shot it is right by chance (48 % there), after golden
    labels 83 % of the time (81 %; arXiv 2506.10139).
    """

    STRENGTH, NOISE, FEW = 3.0, 3.0, 4

    def __init__(self, claims: Sequence[Claim]) -> None:
        self.info = EngineInfo(
            engine="synthetic", model="stand-in", revision="1", device="none", dtype="float64",
            context_length=0, versions={}, why="benchmark",
        )  # fmt: skip
        self.usage = Usage()
        self.asked = 0
        self._truth = {claim.text: 1 if claim.gold else -1 for claim in claims}
        self._own = {text: random.Random(text).gauss(0, self.NOISE) for text in self._truth}
        self._agrees = {
            f"{claim.text}{word}": 1 if label is claim.gold else -1
            for claim in claims
            for label, word in zip((True, False), WORDING.labels, strict=True)
        }

    def log_odds(self, prompt: str) -> float:
        """The log-odds of true for the claim at the prompt's end."""
        *shown, claim = prompt.split(WORDING.after)
        agreement = sum(map(self._agrees.__getitem__, shown)) / (len(shown) + self.FEW)
        return self._truth[claim] * self.STRENGTH * agreement + self._own[claim]

    def label_logprobs(
        self,
        prompts: Any,
        labels: Any,  # noqa: ARG002
        *,
        errors: Errors = "raise",  # noqa: ARG002
    ) -> LabelScores:
        """As an engine's, for " True" and " False", which together have all probability."""
        import numpy as np

        self.asked += len(prompts)
        odds = np.array([self.log_odds(prompt) for prompt in prompts])
        logprobs = -np.logaddexp(0, np.outer(odds, (-1, 1)))
        none = np.zeros_like(logprobs, bool)
        return LabelScores(logprobs, logprobs, none, (None,) * len(prompts))


def made_up(count: int, size: int, seed: int) -> list[Claim]:
    """Claims in groups like the solutions of a problem: right ones share their answer."""
    rng = random.Random(f"made-up-{seed}")
    claims = []
    for index in range(count):
        right = rng.random() < 0.5
        key = "right" if right else f"wrong {rng.randrange(3)}"
        claims.append(Claim(f"claim {seed}.{index}", f"group {index // size}", key, right))
    return claims
