"""Sums: what every skill of the embedded model rests on, and the one rule that holds some out.

A sum is held out by the digest of its canonical form, so that `13+4` and `4+13` are always on the
same side. No training document of any kind contains a held-out sum, not even in a false claim or
as a step of a longer problem; every test item rests on at least one. Facts of single digits are
never held out: there are too few of them to learn a rule from the rest.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Sum:
    """`left op right`, `op` one of `+-*/`; the result is a whole number and never negative."""

    left: int
    op: str
    right: int

    @classmethod
    def parse(cls, text: str) -> Sum:
        """The problem that prints as `text`."""
        (op,) = (sign for sign in "+-*/" if sign in text)
        left, right = text.split(op)
        return cls(int(left), op, int(right))

    @property
    def result(self) -> int:
        match self.op:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
            case "*":
                return self.left * self.right
            case _:
                return self.left // self.right

    def __str__(self) -> str:
        return f"{self.left}{self.op}{self.right}"


@lru_cache(maxsize=32_768)
def is_held_out(problem: Sum) -> bool:
    """Whether a problem belongs to the test side (a tenth of all, by SHA-256)."""
    if problem.op == "/":  # 24/6 gives 4*6 away
        return is_held_out(Sum(problem.right, "*", problem.result))
    pair = (problem.left, problem.right)
    if max(pair) < 10:
        return False
    first, second = pair if problem.op == "-" else sorted(pair)
    digest = hashlib.sha256(f"{first}{problem.op}{second}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def held_out() -> list[Sum]:
    """All problems of the test side that `problems` can draw."""
    sums = [Sum(a, op, b) for op in "+-" for a in range(100) for b in range(100)]
    products = [Sum(a, "*", b) for a in range(2, 10) for b in range(2, 21)]
    return [p for p in sums + products if p.result >= 0 and is_held_out(p)]


def _draw(rng: random.Random) -> Sum:
    op = rng.choices("+-*", (5, 4, 1))[0]
    if op == "*":
        return Sum(rng.randrange(2, 10), op, rng.randrange(2, 21))
    left, right = rng.randrange(100), rng.randrange(100)
    return Sum(max(left, right), op, min(left, right)) if op == "-" else Sum(left, op, right)


def problems(rng: random.Random, *, held_out: bool) -> Iterator[Sum]:
    """An endless stream of problems from one side of the split."""
    while True:
        problem = _draw(rng)
        if is_held_out(problem) is held_out:
            yield problem


def wrong_result(problem: Sum, rng: random.Random) -> int:
    """A plausible wrong result: off by a little, by ten, or with two digits exchanged."""
    right = problem.result
    swapped = int(str(right)[::-1])
    candidates = {right + d for d in (-10, -2, -1, 1, 2, 10)} | {swapped}
    return rng.choice(sorted(c for c in candidates if c >= 0 and c != right))
