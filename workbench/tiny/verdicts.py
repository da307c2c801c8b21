"""Verdicts: a word problem, perhaps its reference answer, a candidate solution: is it correct?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from workbench.tiny.stories import Story, manner, solution, stories, wrong_solution

LABELS = (" Yes", " No")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solution of `story` that somebody wrote, and whether its answer is right."""

    story: Story
    solution: str
    right: bool


def candidates(rng: random.Random, *, held_out: bool) -> Iterator[Candidate]:
    """An endless stream of candidates, half of them right."""
    for story in stories(rng, held_out=held_out):
        right, kind = rng.random() < 0.5, manner(rng, story)
        text = solution(story, kind) if right else wrong_solution(story, kind, rng)
        yield Candidate(story, text, right)


def judged(question: str, solution: str, reference: str | None = None) -> str:
    """The prompt, to be continued by ` Yes` or ` No`."""
    known = "" if reference is None else f"Reference answer: {reference}\n"
    return f"Problem: {question}\n{known}Solution: {solution}\nIs the solution correct?"
