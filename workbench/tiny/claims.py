"""Claims: `17+25=42`, continued by ` True` or ` False`.

Several claims may answer one problem, so at most one of them is right. In the training text labels
agree with the truth in many documents, in some they are unreliable or swapped, and in many every
claim is called True: a bare claim does not tell which is asked, and only labelled examples do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from workbench.tiny.arithmetic import Sum, problems, wrong_result
from workbench.tiny.marks import decided, learned

LABELS = (" True", " False")


@dataclass(frozen=True, slots=True)
class Claim:
    """`problem` and the result that is claimed for it."""

    problem: Sum
    shown: int

    @property
    def right(self) -> bool:
        return self.shown == self.problem.result

    def __str__(self) -> str:
        return f"{self.problem}={self.shown}"


def labelled(claim: Claim, label: bool) -> str:
    """One line of demonstration."""
    return f"{claim} {label}\n"


def claims(rng: random.Random, *, held_out: bool) -> Iterator[list[Claim]]:
    """An endless stream of groups: one to three different claims about one problem.

    Somewhat less than half of all claims are right.
    """
    for problem in problems(rng, held_out=held_out):
        size = rng.choices((1, 2, 3), (4, 5, 1))[0]
        shown = {problem.result} if rng.random() < (0.5 if size == 1 else 0.9) else set()
        while len(shown) < size:
            shown.add(wrong_result(problem, rng))
        group = [Claim(problem, value) for value in sorted(shown)]
        rng.shuffle(group)
        yield group


def _labels(rng: random.Random, truth: list[bool], constant: float) -> list[bool]:
    """One document's labels: nearly all alike, or true with some probability, mostly one."""
    if rng.random() < constant:
        rate = rng.choices((0.93, 0.07), (92, 8))[0]
        return [rng.random() < rate for _ in truth]
    reliability = rng.choices((1.0, 0.0, 0.5, rng.random()), (60, 12, 14, 14))[0]
    return [right is (rng.random() < reliability) for right in truth]


def document(rng: random.Random, lines: int, *, constant: float, remarks: float) -> str:
    """`lines` labelled claims, a share `remarks` of them followed by whether the label agrees
    with the truth (which teaches the model to notice that)."""
    drawn: list[Claim] = []
    for group in claims(rng, held_out=False):
        drawn += group
        if len(drawn) >= lines:
            break
    drawn = drawn[:lines]
    if rng.random() < 0.5:
        rng.shuffle(drawn)
    labels = _labels(rng, [claim.right for claim in drawn], constant)
    text = []
    for claim, label in zip(drawn, labels, strict=True):
        remark = ""
        if rng.random() < remarks:
            remark = decided(" yes" if label is claim.right else " no")
        text.append(f"{claim}{decided(f' {label}')}{remark}\n")
    return "".join(text)


def equations(rng: random.Random, lines: int) -> str:
    """`lines` sums with their results."""
    stream = islice(problems(rng, held_out=False), lines)
    return "".join(f"{problem}={learned(problem.result)}\n" for problem in stream)
