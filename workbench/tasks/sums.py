"""Held-out sums for the embedded model: `17+25=` and what must follow."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from workbench.errors import InputError
from workbench.tiny.arithmetic import Sum, held_out, problems, wrong_result
from workbench.types import Grade, Item, Prompt

__all__ = ["Sums", "claims"]


class Sums:
    """Short sums that the embedded model was not trained on."""

    name = "sums"
    split = "test"

    def items(self, count: int | None = None, seed: int = 0) -> list[Item]:
        """`count` different held-out problems (default: all), the same for the same seed.

        Raises:
            InputError: `count` is below 1 or above the number of held-out problems.
        """
        known = held_out()
        count = len(known) if count is None else count
        if not 1 <= count <= len(known):
            raise InputError(f"count={count}: must be from 1 to {len(known)}, the held-out sums")
        return [_item(p) for p in random.Random(f"items-{seed}").sample(known, count)]

    def prompt(
        self, item: Item, shots: int = 0, style: Literal["completion", "chat"] = "completion"
    ) -> Prompt:
        """The problem, after `shots` solved ones from the training side (as text only)."""
        if style == "chat":
            if shots:
                raise InputError(f"shots={shots}: a chat of this task shows no examples, give 0")
            return [{"role": "user", "content": f"What is {item.fields['problem']}?"}]
        rng = random.Random(item.id)
        solved = islice(problems(rng, held_out=False), shots)
        return "".join(f"{p}={p.result}\n" for p in solved) + f"{item.fields['problem']}="

    def grade(self, item: Item, text: str) -> Grade:
        """Right if the first line's number (after `=` where there is one) is the result."""
        line = text.strip().partition("\n")[0]
        number = re.search(r"\d+", line.rpartition("=")[2])
        if number is None:
            return Grade(None, None, parsed=False)
        return Grade(number[0] == item.answer, number[0], parsed=True)


def claims(items: Sequence[Item], shots: int = 0, seed: int = 0) -> tuple[list[str], list[bool]]:
    """One claim for each item, by turns right and wrong, after `shots` labelled ones.

    Returns:
        The prompts, to be continued by ` True` or ` False`, and whether each claim is right.
    """
    rng = random.Random(f"claims-{seed}")
    prompts, truth = [], []
    for number, item in enumerate(items):
        right = number % 2 == 0
        shown = "".join(
            _claim(p, rng, right=label) + f" {label}\n"
            for p in islice(problems(rng, held_out=False), shots)
            for label in [rng.random() < 0.5]
        )
        prompts.append(shown + _claim(Sum.parse(item.id), rng, right=right))
        truth.append(right)
    return prompts, truth


def _claim(problem: Sum, rng: random.Random, *, right: bool) -> str:
    return f"{problem}={problem.result if right else wrong_result(problem, rng)}"


def _item(problem: Sum) -> Item:
    kinds = {"+": "addition", "-": "subtraction", "*": "multiplication"}
    fields = {
        "problem": str(problem),
        "kind": kinds[problem.op],
        "digits": len(str(problem.result)),
    }
    return Item(id=str(problem), fields=fields, answer=str(problem.result))
