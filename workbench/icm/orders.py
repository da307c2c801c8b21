"""Three ways to have all claims of a pool scored, each after all others (leave one out).

They differ in the order of the demonstrations and in what they ask again, and nothing else: the
search above them is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from workbench.icm.claim import Labels
from workbench.icm.oracle import Oracle, Score

Order = Literal["reference", "exact", "tree"]

Scores = Mapping[int, Score]
"""For each labelled claim, by index: its score after all other labelled claims."""

TAIL = 16  # claims at the end of every prompt before the tree is built anew


class Reference:
    """As published: demonstrations in the claims' order, and everything asked each time."""

    remembers = False

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.spared = 0  # tokens of prompts that were not asked again

    def all(self, labels: Labels) -> Scores:
        """A leave-one-out pass over the pool."""
        pool = _pool(labels)
        return dict(zip(pool, self._scores(labels, pool), strict=True))

    def one(self, labels: Labels, target: int) -> Score:
        """One claim, labelled or not, after all others of the pool."""
        return self._scores(labels, [target])[0]

    def accept(self, labels: Labels, scores: Scores) -> Scores:  # noqa: ARG002
        """These labels are the search's now; returns their scores, which may be new."""
        return scores

    def _scores(self, labels: Labels, targets: Sequence[int]) -> list[Score]:
        shown = ((self._before(labels, one), one) for one in targets)
        return self._asked([self.oracle.prompt(labels, *query) for query in shown])

    def _asked(self, prompts: list[str]) -> list[Score]:
        return self.oracle.score(prompts)

    def _before(self, labels: Labels, target: int) -> Sequence[int]:
        return [index for index in _pool(labels) if index != target]


class Exact(Reference):
    """The same prompts and values; what has been asked is not asked again."""

    remembers = True

    def __init__(self, oracle: Oracle) -> None:
        super().__init__(oracle)
        self._known: dict[bytes, tuple[Score, int]] = {}  # by prompt, with its tokens

    def _asked(self, prompts: list[str]) -> list[Score]:
        keys = [hashlib.blake2b(prompt.encode(), digest_size=16).digest() for prompt in prompts]
        new = {key: one for key, one in zip(keys, prompts, strict=True) if key not in self._known}
        self.spared += sum(self._known[key][1] for key in keys if key not in new)
        if new:
            before = self.oracle.cost.prompt_tokens
            scores = super()._asked([*new.values()])
            tokens = (self.oracle.cost.prompt_tokens - before) // len(new)
            self._known |= {key: (score, tokens) for key, score in zip(new, scores, strict=True)}
        return [self._known[key][0] for key in keys]


class Tree(Exact):
    """The same objective with demonstrations in an order that shares nearly all prefixes.

    A claim's demonstrations are the other half of the pool, then the other half of its own half,
    and so on: n log2 n labelled claims to compute and not n²/2. Claims that joined since the tree
    was built stand at the end of every prompt, so that one more of them costs little. When there
    are `TAIL` of them, the tree is built anew, and the labels are scored in the new order: energies
    are compared within one order.
    """

    def __init__(self, oracle: Oracle) -> None:
        super().__init__(oracle)
        self._base: tuple[int, ...] = ()
        self._tail: tuple[int, ...] = ()
        self._above: dict[int, tuple[int, ...]] = {}

    def accept(self, labels: Labels, scores: Scores) -> Scores:
        self._tail = self._ends(labels)
        if len(self._tail) < TAIL:
            return scores
        self._build(labels)
        return self.all(labels)

    def all(self, labels: Labels) -> Scores:
        if not self._base:
            self._build(labels)
        return super().all(labels)

    def _build(self, labels: Labels) -> None:
        self._base, self._tail = tuple(_pool(labels)), ()
        self._above = dict(by_halves(self._base))

    def _ends(self, labels: Labels) -> tuple[int, ...]:
        """The tail, with the claims of the pool that are not yet in it (nor in the tree)."""
        there = {*self._base, *self._tail}
        return self._tail + tuple(index for index in _pool(labels) if index not in there)

    def _before(self, labels: Labels, target: int) -> Sequence[int]:
        tail = tuple(index for index in self._ends(labels) if index != target)
        return self._above.get(target, self._base) + tail


def by_halves(pool: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Each member of the pool with all others: the far half first, the nearest one last."""

    def walk(
        block: tuple[int, ...], others: tuple[int, ...]
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        if len(block) < 2:
            yield from ((member, others) for member in block)
            return
        middle = len(block) // 2
        left, right = block[:middle], block[middle:]
        yield from walk(left, others + right)
        yield from walk(right, others + left)

    return walk(tuple(pool), ())


ORDERS: Mapping[Order, type[Reference]] = {"reference": Reference, "exact": Exact, "tree": Tree}


def _pool(labels: Labels) -> list[int]:
    return [index for index, label in enumerate(labels) if label is not None]
