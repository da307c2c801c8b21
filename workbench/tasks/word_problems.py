"""Word problems in the GSM8K manner: one to four steps, a worked solution, last line `#### N`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from workbench.errors import InputError
from workbench.tasks.generated import Worked
from workbench.tiny import stories
from workbench.tiny.verdicts import judged
from workbench.types import Item

STEPS = (1, 2, 3, 4)


class WordProblems(Worked):
    """`item.fields`: `question`, `steps`, `solution` (step by step, for examples).

    Args:
        steps: how many a problem may have, some of 1 to 4.

    Raises:
        InputError: none, or others.
    """

    name = "word_problems"
    judged = staticmethod(judged)

    def __init__(self, steps: Sequence[int] = STEPS) -> None:
        if not isinstance(steps, Sequence) or not steps or not all(map(_is_count, steps)):
            raise InputError(f"steps={steps!r}: give some of 1, 2, 3, 4")
        self._steps = tuple(sorted({*steps}))
        if self._steps != STEPS:
            self.name = f"word_problems of {' or '.join(map(str, self._steps))} steps"

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        for story in stories.stories(rng, held_out=held_out, steps=self._steps):
            fields = {
                "question": story.question,
                "steps": len(story.steps),
                "solution": stories.solution(story, "first"),
            }
            yield Item(id=story.question, fields=fields, answer=str(story.answer))


def _is_count(step: object) -> bool:
    return type(step) is int and step in STEPS
