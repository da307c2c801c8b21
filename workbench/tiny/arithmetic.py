"""Sums, as problems and as training text.

A problem is held out by the digest of its canonical form, so that `3+4` and `4+3` are always on
the same side and no training document can contain a held-out problem, not even in a false claim.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["END", "Sum", "chat", "documents", "held_out", "is_held_out", "problems", "wrong_result"]

END = "<|end|>"
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Sum:
    """`left op right`, with `op` one of `+`, `-`, `*`; the result is never negative."""

    left: int
    op: str
    right: int

    @classmethod
    def parse(cls, text: str) -> Sum:
        """The problem that prints as `text`."""
        (op,) = (sign for sign in "+-*" if sign in text)
        left, right = text.split(op)
        return cls(int(left), op, int(right))

    @property
    def result(self) -> int:
        if self.op == "+":
            return self.left + self.right
        return self.left - self.right if self.op == "-" else self.left * self.right

    def __str__(self) -> str:
        return f"{self.left}{self.op}{self.right}"


@lru_cache(maxsize=32_768)
def is_held_out(problem: Sum) -> bool:
    """Whether a problem belongs to the test side (a tenth of all, by SHA-256)."""
    pair = (problem.left, problem.right)
    first, second = pair if problem.op == "-" else sorted(pair)
    digest = hashlib.sha256(f"{first}{problem.op}{second}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def held_out() -> list[Sum]:
    """All problems of the test side."""
    sums = [Sum(a, op, b) for op in "+-" for a in range(100) for b in range(100)]
    products = [Sum(a, "*", b) for a in range(2, 13) for b in range(2, 13)]
    return [p for p in sums + products if p.result >= 0 and is_held_out(p)]


def _draw(rng: random.Random) -> Sum:
    op = rng.choices("+-*", (5, 4, 1))[0]
    if op == "*":
        return Sum(rng.randrange(2, 13), op, rng.randrange(2, 13))
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


def chat(question: str, answer: str = "") -> str:
    """One exchange in the model's chat template; without an answer it ends where one begins."""
    return f"<|user|>{question}<|assistant|>{answer}" + (END if answer else "")


def _equations(rng: random.Random) -> str:
    stream = problems(rng, held_out=False)
    return "".join(f"{p}={p.result}\n" for p, _ in zip(stream, range(24), strict=False))


def _claims(rng: random.Random) -> str:
    lines = []
    for problem, _ in zip(problems(rng, held_out=False), range(20), strict=False):
        truth = rng.random() < 0.5
        shown = problem.result if truth else wrong_result(problem, rng)
        lines.append(f"{problem}={shown} {truth}\n")
    return "".join(lines)


def _chats(rng: random.Random) -> str:
    stream = problems(rng, held_out=False)
    return "".join(
        chat(f"What is {p}?", f"{p}={p.result}") for p, _ in zip(stream, range(10), strict=False)
    )


KINDS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (_equations, 0.5),
    (_claims, 0.35),
    (_chats, 0.15),
)


def documents(seed: int) -> Iterator[str]:
    """An endless stream of training documents, the same for the same seed."""
    rng = random.Random(seed)
    makers, weights = zip(*KINDS, strict=True)
    while True:
        yield rng.choices(makers, weights)[0](rng) + END
