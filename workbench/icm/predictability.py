"""Mutual predictability: all claims of a pool scored, each after all others (leave one out).

There are three orders. They differ only in the order of the demonstrations and in the prompts that
are sent again. `energy` combines the scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from workbench.icm.claim import Labels, Relation, violated
from workbench.icm.scorer import Scorer, TrueFalse
from workbench.store import digest

Objective = Literal["log_odds", "log_prob"]
Order = Literal["reference", "exact", "tree"]

Scores = Mapping[int, TrueFalse]
"""For each labelled claim, by index: its score after all other labelled claims."""

TAIL = 16  # claims at the end of every prompt before the tree is rebuilt
SAME = 0.05  # share of the labels


def energy(
    labels: Labels,
    scores: Scores,
    related: Sequence[Relation],
    alpha: float,
    objective: Objective = "log_odds",
) -> float:
    """`alpha` × the mean score of the labelled claims' labels − the number of violated relations.

    A label's score is its log-odds or its log-probability; see `search`.
    """
    own = []
    for index, (true, false) in scores.items():
        chosen, other = (true, false) if labels[index] else (false, true)
        own.append(chosen - other if objective == "log_odds" else chosen)
    return alpha * math.fsum(own) / len(own) - len(violated(related, labels))


def collapsed(share: float) -> bool:
    """Whether nearly all labels are the same, by the share of True; the energy does not show it."""
    return not SAME < share < 1 - SAME


class Reference:
    """As published: demonstrations in the claims' order, and every prompt sent each time."""

    remembers = False

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.saved_tokens = 0  # of prompts that were not sent again

    def all(self, labels: Labels) -> Scores:
        """A leave-one-out pass over the pool."""
        pool = _pool(labels)
        return dict(zip(pool, self._scores(labels, pool), strict=True))

    def one(self, labels: Labels, target: int) -> TrueFalse:
        """One claim, labelled or not, after all others of the pool."""
        return self._scores(labels, [target])[0]

    def accept(self, labels: Labels, scores: Scores) -> Scores:  # noqa: ARG002
        """Accept these labels for the search; returns their scores, which may be new."""
        return scores

    def _scores(self, labels: Labels, targets: Sequence[int]) -> list[TrueFalse]:
        return self._ask([self.scorer.prompt(labels, self._before(labels, i), i) for i in targets])

    def _ask(self, prompts: list[str]) -> list[TrueFalse]:
        return self.scorer.score(prompts)

    def _before(self, labels: Labels, target: int) -> Sequence[int]:
        return [index for index in _pool(labels) if index != target]


class Exact(Reference):
    """The same prompts and values, but no prompt is sent twice."""

    remembers = True

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer)
        self._known: dict[bytes, tuple[TrueFalse, int]] = {}  # by prompt, with its tokens

    def _ask(self, prompts: list[str]) -> list[TrueFalse]:
        keys = [digest(prompt) for prompt in prompts]
        new = {key: one for key, one in zip(keys, prompts, strict=True) if key not in self._known}
        self.saved_tokens += sum(self._known[key][1] for key in keys if key not in new)
        if new:
            before = self.scorer.cost.prompt_tokens
            scores = super()._ask([*new.values()])
            tokens = (self.scorer.cost.prompt_tokens - before) // len(new)
            self._known |= {key: (score, tokens) for key, score in zip(new, scores, strict=True)}
        return [self._known[key][0] for key in keys]


class Tree(Exact):
    """The same objective with demonstrations in an order that shares nearly all prefixes.

    A claim's demonstrations are the other half of the pool, then the other quarter in its half,
    and so on, so n log2 n labelled claims are computed instead of n²/2. Claims that joined after
    the tree was built are at the end of every prompt, so one more costs little. When there are
    `TAIL` of them, the tree is rebuilt, and the labels are scored again in the new order: energies
    are compared only within one order.
    """

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer)
        self._base: tuple[int, ...] = ()
        self._tail: tuple[int, ...] = ()
        self._above: dict[int, tuple[int, ...]] = {}

    def accept(self, labels: Labels, scores: Scores) -> Scores:
        self._tail = self._ends(labels)
        if len(self._tail) < TAIL:
            return scores
        self._base = ()
        return self.all(labels)

    def all(self, labels: Labels) -> Scores:
        if not self._base:
            self._base, self._tail = tuple(_pool(labels)), ()
            self._above = dict(by_halves(self._base))
        return super().all(labels)

    def _ends(self, labels: Labels) -> tuple[int, ...]:
        """The tail, with the claims of the pool that are in neither the tail nor the tree."""
        there = {*self._base, *self._tail}
        return self._tail + tuple(index for index in _pool(labels) if index not in there)

    def _before(self, labels: Labels, target: int) -> Sequence[int]:
        tail = tuple(index for index in self._ends(labels) if index != target)
        return self._above.get(target, self._base) + tail


ORDERS: Mapping[Order, type[Reference]] = {"reference": Reference, "exact": Exact, "tree": Tree}


def by_halves(
    block: Sequence[int], others: tuple[int, ...] = ()
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Each member of a block with all others: the far half first, the nearest one last."""
    if len(block) < 2:
        yield from ((member, others) for member in block)
        return
    middle = len(block) // 2
    left, right = tuple(block[:middle]), tuple(block[middle:])
    yield from by_halves(left, others + right)
    yield from by_halves(right, others + left)


def _pool(labels: Labels) -> list[int]:
    return [index for index, label in enumerate(labels) if label is not None]
