"""Held-out sums for the embedded model: `17+25=` and what must follow."""

from __future__ import annotations

import random
import re
from itertools import islice
from typing import Literal

from workbench.errors import InputError
from workbench.tiny.arithmetic import Sum, problems
from workbench.types import Grade, Item, Prompt

__all__ = ["Sums"]


class Sums:
    """Short sums that the embedded model was not trained on."""

    name = "sums"
    split = "test"

    def items(self, count: int | None = None, seed: int = 0) -> list[Item]:
        """`count` different held-out problems (default 500), the same for the same seed."""
        count = 500 if count is None else count
        if count < 1:
            raise InputError(f"count={count}: must be at least 1")
        stream = problems(random.Random(f"items-{seed}"), held_out=True)
        drawn: dict[str, Sum] = {}
        for problem in islice(stream, 200 * count):
            drawn.setdefault(str(problem), problem)
            if len(drawn) == count:
                return [_item(p) for p in drawn.values()]
        raise InputError(f"count={count}: only {len(drawn)} held-out sums exist")

    def prompt(
        self, item: Item, shots: int = 0, style: Literal["completion", "chat"] = "completion"
    ) -> Prompt:
        """The problem, after `shots` solved ones from the training side."""
        if style == "chat":
            return [{"role": "user", "content": f"What is {item.fields['problem']}?"}]
        rng = random.Random(item.id)
        solved = islice(problems(rng, held_out=False), shots)
        return "".join(f"{p}={p.result}\n" for p in solved) + f"{item.fields['problem']}="

    def grade(self, item: Item, text: str) -> Grade:
        """Right if the first number (after `=` where there is one) is the result."""
        number = re.search(r"\d+", text.rsplit("=", 1)[-1])
        if number is None:
            return Grade(None, None, parsed=False)
        return Grade(number[0] == item.answer, number[0], parsed=True)


def _item(problem: Sum) -> Item:
    kinds = {"+": "addition", "-": "subtraction", "*": "multiplication"}
    fields = {
        "problem": str(problem),
        "kind": kinds[problem.op],
        "digits": len(str(problem.result)),
    }
    return Item(id=str(problem), fields=fields, answer=str(problem.result))
