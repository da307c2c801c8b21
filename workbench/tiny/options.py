"""Multiple choice with six options: four results, `I don't know` and `None of the above`.

One of the first four is always right. Levels run from reading a number off to working one out;
questions that do not hold their answer (`hidden`) are never in the training text, so that the model
meets them unprepared.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workbench.tiny.arithmetic import Sum, is_held_out, problems
from workbench.tiny.stories import NAMES, THINGS

LETTERS = tuple("ABCDEF")
READING = ("one number", "two numbers", "three numbers")
TOLD = ("now or before", "sum told")
EVENTS = ("bought or sold", "counted")
LEVELS = ("one number", *EVENTS, *TOLD, "two numbers", "three numbers", "sum", "hidden")
LAST_TWO = ("I don't know", "None of the above")
LURED = 0.7
"""Share of the hidden questions whose options hold the only number that is told."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A question, four numbers to choose from, which of them is right, and that as a sentence."""

    question: str
    options: tuple[int, ...]
    right: int
    level: str
    stated: str

    @property
    def texts(self) -> tuple[str, ...]:
        """All six options."""
        return (*map(str, self.options), *LAST_TWO)

    @property
    def letter(self) -> str:
        return LETTERS[self.right]


def number(rng: random.Random) -> int:
    """Mostly of one digit: with those it is learned at all how to find a number in a list."""
    return rng.randrange(10) if rng.random() < 0.6 else rng.randrange(10, 100)


def numbers(rng: random.Random, count: int) -> list[int]:
    """`count` different numbers."""
    found: dict[int, None] = {}
    while len(found) < count:
        found[number(rng)] = None
    return list(found)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question, its answer, also as a sentence, the sum that decides on which side of the split
    it is, and numbers that a careless reader would choose."""

    question: str
    right: int
    stated: str
    key: Sum
    lures: tuple[int, ...] = ()


def _read(rng: random.Random, people: int) -> _Asked:
    """Each of some people has a number of things; one is asked for."""
    names, thing = rng.sample(NAMES, people), rng.choice(THINGS)
    drawn = numbers(rng, max(2, people))
    told = [f"{name} has {n} {thing}." for name, n in zip(names, drawn, strict=False)]
    who = rng.randrange(people)
    question = " ".join((*told, f"How many {thing} does {names[who]} have?"))
    right = drawn.pop(who)
    stated = f"{names[who]} has {right} {thing}."
    return _Asked(question, right, stated, Sum(right, "+", drawn[0]), tuple(drawn))


def _changed(rng: random.Random) -> _Asked:
    """One person's number now and before; one of them is asked for."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    before, now = numbers(rng, 2)
    told = f"{name} had {before} {thing}. Now {name} has {now} {thing}."
    if rng.random() < 0.5:
        question, stated = (
            f"How many {thing} does {name} have now?",
            f"Now {name} has {now} {thing}.",
        )
        return _Asked(f"{told} {question}", now, stated, Sum(now, "+", before), (before,))
    question, stated = f"How many {thing} did {name} have before?", f"{name} had {before} {thing}."
    return _Asked(f"{told} {question}", before, stated, Sum(before, "+", now), (now,))


def _traded(rng: random.Random) -> _Asked:
    """What one person bought and what they sold; one of them is asked for."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    bought, sold = numbers(rng, 2)
    told = [f"{name} bought {bought} {thing}.", f"{name} sold {sold} {thing}."]
    verb, right, other = rng.choice((("buy", bought, sold), ("sell", sold, bought)))
    stated = told[verb == "sell"]
    rng.shuffle(told)
    question = " ".join((*told, f"How many {thing} did {name} {verb}?"))
    return _Asked(question, right, stated, Sum(right, "+", other), (other,))


def _counted(rng: random.Random, *, held_out: bool) -> _Asked:
    """The sum and its result are told."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    problem = next(p for p in problems(rng, held_out=held_out) if p.op != "*")
    told = f"{name} counts {problem}={problem.result} {thing}."
    question = f"{told} How many {thing} does {name} have?"
    return _Asked(question, problem.result, f"{name} has {problem.result} {thing}.", problem)


def _hidden(rng: random.Random) -> _Asked:
    """Nobody can know: the number that is asked for is not told."""
    (name, other), thing = rng.sample(NAMES, 2), rng.choice(THINGS)
    shown, right = numbers(rng, 2)
    told = [f"{other} has {shown} {thing}.", f"{name} has some {thing}."]
    rng.shuffle(told)
    question = " ".join((*told, f"How many {thing} does {name} have?"))
    lures = (shown,) if rng.random() < LURED else ()
    return _Asked(question, right, f"{name} has {right} {thing}.", Sum(right, "+", shown), lures)


def _ask(rng: random.Random, level: str, *, held_out: bool) -> _Asked:
    if level in READING:
        return _read(rng, 1 + READING.index(level))
    if level == "hidden":
        return _hidden(rng)
    if level == "now or before":
        return _changed(rng)
    if level == "bought or sold":
        return _traded(rng)
    if level == "counted":
        return _counted(rng, held_out=held_out)
    problem = next(p for p in problems(rng, held_out=held_out) if p.op != "*")
    stated = f"{problem}={problem.result}"
    told = f"{stated}. " if level == "sum told" else ""
    return _Asked(f"{told}What is {problem}?", problem.result, stated, problem)


def _distractors(asked: _Asked, rng: random.Random) -> list[int]:
    """Three wrong numbers, some of them near misses."""
    right = asked.right
    near = [right + d for d in (-20, -10, -9, -2, -1, 1, 2, 9, 10, 20)]
    far = [rng.randrange(max(1, right - 40), right + 41) for _ in range(6)]
    chosen = [*asked.lures]
    while len(chosen) < 3:
        value = rng.choice(near if rng.random() < 0.5 else far)
        if value >= 0 and value != right and value not in chosen:
            chosen.append(value)
        elif rng.random() < 0.1:
            far.append(right + rng.randrange(1, 60))
    return chosen


def choices(
    rng: random.Random, *, held_out: bool, levels: tuple[str, ...] = LEVELS
) -> Iterator[Choice]:
    """An endless stream of questions from one side of the split, levels in equal shares."""
    while True:
        level = rng.choice(levels)
        asked = _ask(rng, level, held_out=held_out)
        while is_held_out(asked.key) is not held_out:
            asked = _ask(rng, level, held_out=held_out)
        four = [asked.right, *_distractors(asked, rng)]
        rng.shuffle(four)
        yield Choice(asked.question, tuple(four), four.index(asked.right), level, asked.stated)


def listed(question: str, texts: Sequence[str]) -> str:
    """The question as the model sees it, to be continued by a space and a letter."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=True)]
    return "\n".join((f"Question: {question}", "Choices:", *lines, "Answer:"))
