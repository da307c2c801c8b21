"""Word problems in the GSM8K manner: one to four steps, a worked solution, last line `#### N`."""

from __future__ import annotations

import random
from collections.abc import Iterator

from workbench.tasks.generated import Worked
from workbench.tiny import stories
from workbench.types import Item

__all__ = ["WordProblems"]


class WordProblems(Worked):
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
