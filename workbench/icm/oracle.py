"""What the model says of claims after labelled others, counted, and kept in a journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from workbench.engines.meter import quiet
from workbench.engines.pieces import Pieces
from workbench.errors import EngineError, InputError
from workbench.icm.claim import Claim, Labels, Wording
from workbench.icm.journal import Journal
from workbench.store import digest
from workbench.types import Engine, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Cost", "Oracle", "Score", "compute_logprobs_batched"]

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
        "exactly is needed (vLLM in this process or a vLLM server)"
    )
    raise EngineError(
        f"{int(wrong.any(axis=1).sum())} of {len(prompts)} prompts could not be scored. First, "
        f"prompt {index} (…{prompts[index][-60:]!r}): {reason}",
        results=scores,
    )


class Oracle:
    """Asks an engine about claims.

    A prompt is labelled claims and the claim in question, which is never cut. Where not all
    demonstrations fit into the model's context, each prompt has the *last* `capacity` of its own:
    so many that the longest of all claims would fit.

    Raises:
        InputError: a claim alone does not fit into the context.
    """

    def __init__(
        self,
        engine: Engine,
        claims: Sequence[Claim],
        wording: Wording,
        journal: Journal,
        more: Sequence[Claim] = (),
    ) -> None:
        self.cost = Cost()
        self._engine, self._journal, self._labels = engine, journal, wording.labels
        self._texts = [claim.text for claim in claims]
        self._solved = [
            {label: wording.solved(claim, label) for label in (True, False)} for claim in claims
        ]
        queries = [*self._texts, *(claim.text for claim in more)]
        self.capacity = _capacity(engine, self._solved, queries, self._labels)

    def prompt(self, labels: Labels, shown: Sequence[int], target: int | str) -> str:
        """The labelled claims `shown` and then the target, a claim's index or its text."""
        text = target if isinstance(target, str) else self._texts[target]
        kept = shown[max(0, len(shown) - self.capacity) :]
        return Pieces([*(self._solved[i][bool(labels[i])] for i in kept), text])

    def score(self, prompts: list[str]) -> list[Score]:
        """The scores of whole prompts: from the journal, or else from the engine.

        Raises:
            EngineError: one of them could not be scored.
        """
        asked = digest(prompts, list(self._labels)).hex()[:32]
        known = self._journal.answer(asked)
        if known is not None:
            self.cost += Cost(*known["cost"])
            return [(true, false) for true, false in known["scores"]]
        before = self._engine.usage
        with quiet():
            values = compute_logprobs_batched(prompts, self._labels, self._engine)
        used = self._engine.usage.since(before)
        cost = Cost(len(prompts), used.prompt_tokens, used.computed_tokens, round(used.seconds, 3))
        self.cost += cost
        scores = [(float(true), float(false)) for true, false in values]
        numbers = [cost.prompts, cost.prompt_tokens, cost.computed_tokens, cost.seconds]
        self._journal.add(asked, {"scores": scores, "cost": numbers})
        return scores


def _capacity(
    engine: Engine,
    solved: Sequence[dict[bool, str]],
    queries: Sequence[str],
    labels: Sequence[str],
) -> int:
    """How many demonstrations fit with the longest query, whichever they are."""
    context = engine.info.context_length
    longest = [max(texts.values(), key=len) for texts in solved]
    ends = max(map(_bytes, labels))
    if not context or sum(map(_bytes, longest)) + max(map(_bytes, queries)) + ends < context:
        return len(solved)  # no token is shorter than a byte
    tokens = _lengths(engine, [*labels, *longest, *queries])
    shown = tokens[len(labels) : len(labels) + len(longest)]
    asked = tokens[len(labels) + len(longest) :]
    room = context - 1 - max(tokens[: len(labels)]) - max(asked)  # 1 to be sure
    if room < 0:
        index = asked.index(max(asked))
        raise InputError(
            f"the claim {queries[index]!r:.80} has {asked[index]} tokens, the context of "
            f"{engine.info.model} holds {context}: shorten it or leave it out"
        )
    sums = accumulate(sorted(shown, reverse=True))
    return sum(total <= room for total in sums)


def _lengths(engine: Engine, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, as the engine itself counts them."""
    with quiet():
        rows = engine.generate(texts, Sampling(max_tokens=1), errors="return")
    for text, row in zip(texts, rows, strict=True):
        if row.error and row.prompt_tokens < engine.info.context_length:
            raise EngineError(f"the claim {text!r:.80} cannot be asked about: {row.error}")
    return [row.prompt_tokens for row in rows]


def _bytes(text: str) -> int:
    return len(text.encode())
