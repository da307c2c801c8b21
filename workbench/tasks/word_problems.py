"""Word problems in the GSM8K manner: one to four steps, a worked solution, last line `#### N`."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from workbench.tasks.generated import Generated
from workbench.tiny import stories
from workbench.types import Grade, Item

__all__ = ["WordProblems"]


class WordProblems(Generated):
    """`item.fields`: `question`, `steps` (1 to 4), `solution` (step by step, for examples)."""

    name = "word_problems"

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        for story in stories.stories(rng, held_out=held_out):
            fields = {
                "question": story.question,
                "steps": len(story.steps),
                "solution": stories.solution(story, "first"),
            }
            yield Item(id=story.question, fields=fields, answer=str(story.answer))

    def ask(self, item: Item) -> str:
        return stories.asked(item.fields["question"])

    def answer(self, item: Item) -> str:
        return f" {item.fields['solution']}"

    def solved(self, item: Item) -> str:
        return f"{super().solved(item)}\n"

    def question(self, item: Item) -> str:
        return str(item.fields["question"])

    def grade(self, item: Item, text: str) -> Grade:
        """Right if the last `#### N` before an empty line is the answer."""
        stated = re.findall(r"####\s*(-?\d+)", text.strip().partition("\n\n")[0])
        if not stated:
            return Grade(None, None, parsed=False)
        return Grade(stated[-1] == item.answer, stated[-1], parsed=True)
