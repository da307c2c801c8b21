"""Claims about sums: `17+25=42`, to be continued by ` True` or ` False`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from workbench.errors import InputError
from workbench.tasks.arithmetic import Sum, problems, wrong_result
from workbench.tasks.base import BaseTask
from workbench.types import Item, Sampling

Demonstrations = Literal["right", "random"]


@dataclass(frozen=True, slots=True)
class Equation:
    """A problem and the result that is claimed for it, right or wrong."""

    problem: Sum
    shown: int

    @property
    def right(self) -> bool:
        return self.shown == self.problem.result

    def __str__(self) -> str:
        return f"{self.problem}={self.shown}"


def equations(rng: random.Random, *, held_out: bool) -> Iterator[list[Equation]]:
    """An endless stream of groups: one to three different results claimed for one problem.

    At most one of a group is right, and somewhat less than half of all are.
    """
    for problem in problems(rng, held_out=held_out):
        size = rng.choices((1, 2, 3), (4, 5, 1))[0]
        shown = {problem.result} if rng.random() < (0.5 if size == 1 else 0.9) else set()
        while len(shown) < size:
            shown.add(wrong_result(problem, rng))
        group = [Equation(problem, value) for value in sorted(shown)]
        rng.shuffle(group)
        yield group


class Claims(BaseTask):
    """`item.fields`: `claim`, `problem` (claims about one problem exclude each other), `shown`.

    Args:
        demonstrations: the labels of the examples: "right", or "random" for a comparison.
    """

    name = "claims"
    reads = "label"
    labels = (" True", " False")
    sampling = Sampling(max_tokens=2, stop=("\n",))

    def __init__(self, demonstrations: Demonstrations = "right") -> None:
        if demonstrations not in {"right", "random"}:
            raise InputError(f'demonstrations={demonstrations!r}: give "right" or "random"')
        self.demonstrations = demonstrations

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        for group in equations(rng, held_out=held_out):
            for one in group:
                shown = {"problem": str(one.problem), "shown": str(one.shown)}
                yield Item(str(one), {"claim": str(one), **shown}, str(one.right))

    def examples(self, item: Item) -> Iterator[Item]:
        if self.demonstrations == "right":
            yield from super().examples(item)
        rng = random.Random(item.id)
        for example in super().examples(item):
            yield Item(example.id, example.fields, str(rng.random() < 0.5))

    def ask(self, item: Item) -> str:
        return str(item.fields["claim"])

    def question(self, item: Item) -> str:
        return f"Is it true that {item.fields['claim']}?"
