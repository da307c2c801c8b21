"""Held-out sums for the embedded model: `17+25=` and what must follow."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from workbench.tasks.generated import Generated
from workbench.tiny.arithmetic import problems
from workbench.types import Grade, Item, Sampling


class Sums(Generated):
    """`item.fields`: `problem`, `kind` (addition, …), `digits` of the result."""

    name = "sums"
    difficulty = "digits"
    sampling = Sampling(max_tokens=8, stop=("\n",))
    count = 500

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        kinds = {"+": "addition", "-": "subtraction", "*": "multiplication"}
        for problem in problems(rng, held_out=held_out):
            answer = str(problem.result)
            fields = {"problem": str(problem), "kind": kinds[problem.op], "digits": len(answer)}
            yield Item(id=str(problem), fields=fields, answer=answer)

    def ask(self, item: Item) -> str:
        return f"{item.fields['problem']}="

    def answer(self, item: Item) -> str:
        return item.answer

    def question(self, item: Item) -> str:
        return f"What is {item.fields['problem']}?"

    def grade(self, item: Item, text: str) -> Grade:
        """Right if the first line's number (after `=` where there is one) is the result."""
        line = text.strip().partition("\n")[0]
        number = re.search(r"\d+", line.rpartition("=")[2])
        if number is None:
            return Grade(None, None, parsed=False)
        return Grade(number[0] == item.answer, number[0], parsed=True)
