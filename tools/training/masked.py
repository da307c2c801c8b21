"""What the masked-diffusion model learns from: a question, and an answer some tokens of which are
hidden (LLaDA, arXiv 2502.09992, section 2.3: the question never is, ends are part of the answer).

Answers are hidden as decoding leaves them: all over, or with everything before some place there,
and everything after a block hidden. Blocks are of all sizes, so that decoding may choose any.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.training.text import exchange
from workbench.tasks.arithmetic import Sum, problems
from workbench.tasks.base import worded
from workbench.tasks.word_problems import Story, solution, stories

MANNER = "first"
"""Of all solutions: a canvas that may hold any of several is filled with a mixture of them."""
ALL_OVER = 0.3
BLOCKS = (1, 2, 4, 8, 16, 32)
FAR = 0.2
"""Weight in the loss of what comes after the block: hard, and not decided yet."""
ENDS = 0.1
"""Weight of ends after the first, which they follow from."""
CHATS = 0.25

Row = tuple[list[int], list[int], list[float]]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Stage:
    """What comes up to `until`: rows of `length` tokens, stories of so many `steps`, and what share
    of the rows are sums."""

    until: float
    length: int
    steps: tuple[int, ...]
    sums: float


STAGES = (
    Stage(0.15, 64, (1,), 0.3),
    Stage(0.45, 96, (1, 2), 0.15),
    Stage(0.9, 112, (1, 2, 3, 4), 0.05),
    Stage(1.0, 288, (1, 2, 3, 4), 0.0),
)


def batch(
    seed: int, tokens: int, progress: float, encode: Encode, *, mask: int, end: int
) -> tuple[list[list[int]], list[list[int]], list[list[float]]]:
    """About `tokens` tokens as they are at `progress` (0 to 1) of the training.

    Returns:
        Ids with masks, ids without, and weights in the loss, each [rows, length].
    """
    rng = random.Random(seed)
    stage = next(stage for stage in STAGES if progress < stage.until or stage is STAGES[-1])
    drawn = stories(rng, held_out=False, steps=stage.steps)
    sums = problems(rng, held_out=False)
    noised, ids, weights = [], [], []
    for _ in range(max(1, tokens // stage.length)):
        if rng.random() < stage.sums:
            row, weight = _sums(rng, sums, stage.length, encode)
        else:
            row, weight = _story(rng, drawn, stage.length, encode, end)
        noised.append([mask if w else i for i, w in zip(row, weight, strict=True)])
        ids.append(row)
        weights.append(weight)
    return noised, ids, weights


def _sums(
    rng: random.Random, sums: Iterator[Sum], length: int, encode: Encode
) -> tuple[list[int], list[float]]:
    """Equations, digits of their results hidden."""
    share = rng.uniform(0.2, 1.0)
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < length:
        problem = next(sums)
        for text, hidden in ((f"{problem}=", 0.0), (str(problem.result), share), ("\n", 0.0)):
            new = encode(text)
            ids += new
            weights += [float(rng.random() < hidden) for _ in new]
    return ids[:length], weights[:length]


def _story(
    rng: random.Random, drawn: Iterator[Story], length: int, encode: Encode, end: int
) -> tuple[list[int], list[float]]:
    """A question, its answer, and ends up to `length` tokens."""
    while True:
        story = next(drawn)
        text = exchange(story.question) if rng.random() < CHATS else worded(story.question)
        question, answer = encode(text), encode(" " + solution(story, MANNER))
        room = length - len(question)
        if len(answer) < room:
            break
    canvas = [*answer, *[end] * room][:room]
    return question + canvas, [0.0] * len(question) + _weights(rng, len(answer), room)


def _weights(rng: random.Random, answer: int, room: int) -> list[float]:
    """Weights of a canvas, of which the first `answer` tokens and an end count; 0 is not hidden."""
    share = rng.random()
    start, stop = 0, room
    if rng.random() >= ALL_OVER:
        start = rng.randrange(min(room, answer + 1))
        stop = min(room, start + rng.choice(BLOCKS))
    always = rng.randrange(start, stop)
    weights = [0.0] * room
    for place in range(start, room):
        if place >= stop or place == always or rng.random() < share:
            weights[place] = (1.0 if place <= answer else ENDS) * (1.0 if place < stop else FAR)
    return weights
