"""Sums and claims about them, the basis of the embedded model's skills; a part is held out.

A sum is held out by the digest of its canonical form, so `13+4` and `4+13` are always on the same
side. No training document contains a held-out sum, not even in a false claim or as one step of a
longer problem. Every test item uses at least one. Sums of single digits are never held out: there
are too few of them to learn a rule from the rest.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import add, floordiv, mul, sub
from typing import Literal

from workbench.answers.statements import outside_reasoning
from workbench.errors import InputError
from workbench.tasks.base import BaseTask
from workbench.types import Grade, Item, Sampling

Demonstrations = Literal["right", "random"]
HELD_OUT_SHARE = 0.1
KINDS = {"+": "addition", "-": "subtraction", "*": "multiplication"}
OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul, "/": floordiv}


@dataclass(frozen=True, slots=True)
class Sum:
    """`left op right`, `op` one of `+-*/`; the result is a whole number and never negative."""

    left: int
    op: str
    right: int

    @property
    def result(self) -> int:
        return OPERATIONS[self.op](self.left, self.right)

    def __str__(self) -> str:
        return f"{self.left}{self.op}{self.right}"


@lru_cache(maxsize=32_768)
def is_held_out(problem: Sum) -> bool:
    """Whether a problem belongs to the test side (a tenth of all, by SHA-256)."""
    if problem.op == "/":  # 24/6 reveals 4*6
        return is_held_out(Sum(problem.right, "*", problem.result))
    pair = (problem.left, problem.right)
    if max(pair) < 10:
        return False
    first, second = pair if problem.op == "-" else sorted(pair)
    digest = hashlib.sha256(f"{first}{problem.op}{second}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def problems(rng: random.Random, *, held_out: bool) -> Iterator[Sum]:
    """An endless stream of problems from one side of the split."""
    while True:
        op = rng.choices("+-*", (5, 4, 1))[0]
        if op == "*":
            problem = Sum(rng.randrange(2, 10), op, rng.randrange(2, 21))
        else:
            pair = rng.randrange(100), rng.randrange(100)
            left, right = sorted(pair, reverse=True) if op == "-" else pair
            problem = Sum(left, op, right)
        if is_held_out(problem) is held_out:
            yield problem


def wrong_result(problem: Sum, rng: random.Random) -> int:
    """A plausible wrong result: off by a little, off by ten, or with two digits exchanged."""
    right = problem.result
    swapped = int(str(right)[::-1])
    candidates = {right + d for d in (-10, -2, -1, 1, 2, 10)} | {swapped}
    return rng.choice(sorted(c for c in candidates if c >= 0 and c != right))


class Sums(BaseTask):
    """`17+25=`, to be completed. `item.fields`: `problem`, `kind`, `digits` of the result."""

    name = "sums"
    difficulty = "digits"
    sampling = Sampling(max_tokens=8, stop=("\n",))
    count = 500

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        for problem in problems(rng, held_out=held_out):
            text, answer = str(problem), str(problem.result)
            fields = {"problem": text, "kind": KINDS[problem.op], "digits": len(answer)}
            yield Item(id=text, fields=fields, answer=answer)

    def ask(self, item: Item) -> str:
        return f"{item.fields['problem']}="

    def answer(self, item: Item) -> str:
        return item.answer

    def question(self, item: Item) -> str:
        return f"What is {item.fields['problem']}?"

    def grade(self, item: Item, text: str) -> Grade:
        """Correct if the first line's number (after `=`, if there is one) is the result."""
        line = outside_reasoning(text).strip().partition("\n")[0]
        if (number := re.search(r"\d+", line.rpartition("=")[2])) is None:
            return Grade(None, None, parsed=False)
        return Grade(number[0] == item.answer, number[0], parsed=True)


@dataclass(frozen=True, slots=True)
class Equation:
    """A problem and a claimed result, right or wrong."""

    problem: Sum
    shown: int

    @property
    def right(self) -> bool:
        return self.shown == self.problem.result

    def __str__(self) -> str:
        return f"{self.problem}={self.shown}"


def equations(rng: random.Random, *, held_out: bool) -> Iterator[list[Equation]]:
    """An endless stream of groups, each with one to three different claimed results of a problem.

    At most one in a group is right, and somewhat less than half of all are.
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
    """`17+25=42`, to be continued by ` True` or ` False`.

    `item.fields`: `claim`, `problem` (claims about one problem exclude each other), `shown`.

    Args:
        demonstrations: the labels of the examples: "right", or "random" as a baseline.
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
