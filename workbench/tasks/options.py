"""Multiple choice with six options: four results, `I don't know` and `None of the above`.

One of the first four is always right. Levels run from reading a number off to working one out;
questions that do not hold their answer (`hidden`) are never in the training text, so that the model
meets them unprepared.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workbench.tasks.arithmetic import Sum, is_held_out, problems
from workbench.tasks.base import BaseTask
from workbench.tasks.word_problems import NAMES, THINGS
from workbench.types import Item, Sampling

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
    numbers: tuple[int, ...]
    right: int
    level: str
    stated: str

    @property
    def texts(self) -> tuple[str, ...]:
        """All six options."""
        return (*map(str, self.numbers), *LAST_TWO)

    @property
    def letter(self) -> str:
        return LETTERS[self.right]


class Options(BaseTask):
    """`item.fields`: `question`, `options` (six texts), `level` (`LEVELS`, easy first)."""

    name = "options"
    difficulty = "level"
    reads = "choice"
    labels = tuple(f" {letter}" for letter in LETTERS)
    sampling = Sampling(max_tokens=2, stop=("\n",))
    count = 2000

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        levels = LEVELS if held_out else LEVELS[:-1]
        for choice in choices(rng, held_out=held_out, levels=levels):
            texts = choice.texts
            fields = {"question": choice.question, "options": texts, "level": choice.level}
            key = f"{choice.question} {' '.join(texts[:4])}"
            yield Item(id=key, fields=fields, answer=choice.letter)

    def ask(self, item: Item) -> str:
        return listed(item.fields["question"], item.fields["options"])


def listed(question: str, texts: Sequence[str]) -> str:
    """The question as the model sees it, to be continued by a space and a letter."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=True)]
    return "\n".join((f"Question: {question}", "Choices:", *lines, "Answer:"))


def choices(
    rng: random.Random, *, held_out: bool, levels: tuple[str, ...] = LEVELS
) -> Iterator[Choice]:
    """An endless stream of questions from one side of the split, levels in equal shares."""
    while True:
        level = rng.choice(levels)
        draft = _draft(rng, level, held_out=held_out)
        while is_held_out(draft.key) is not held_out:
            draft = _draft(rng, level, held_out=held_out)
        four = [draft.right, *_distractors(draft, rng)]
        rng.shuffle(four)
        yield Choice(draft.question, tuple(four), four.index(draft.right), level, draft.stated)


def number(rng: random.Random) -> int:
    """Mostly of one digit: with those it is learned at all how to find a number in a list."""
    return rng.randrange(10) if rng.random() < 0.6 else rng.randrange(10, 100)


def numbers(rng: random.Random, count: int) -> list[int]:
    """`count` different numbers."""
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        drawn[number(rng)] = None
    return list(drawn)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A question, its answer, also as a sentence, the sum that decides on which side of the split
    it is, and numbers that a careless reader would choose."""

    question: str
    right: int
    stated: str
    key: Sum
    lures: tuple[int, ...] = ()


def _draft(rng: random.Random, level: str, *, held_out: bool) -> _Draft:
    match level:
        case "hidden":
            return _hidden(rng)
        case "now or before":
            return _changed(rng)
        case "bought or sold":
            return _traded(rng)
        case "sum" | "sum told" | "counted":
            return _sum(rng, level, held_out=held_out)
    return _read_off(rng, 1 + READING.index(level))


def _sum(rng: random.Random, level: str, *, held_out: bool) -> _Draft:
    """To be worked out; or its result is told, by itself or as what somebody counted."""
    name, thing = (rng.choice(NAMES), rng.choice(THINGS)) if level == "counted" else ("", "")
    problem = next(p for p in problems(rng, held_out=held_out) if p.op != "*")
    result, equation = problem.result, f"{problem}={problem.result}"
    if level == "counted":
        question = f"{name} counts {equation} {thing}. How many {thing} does {name} have?"
        return _Draft(question, result, f"{name} has {result} {thing}.", problem)
    told = f"{equation}. " if level == "sum told" else ""
    return _Draft(f"{told}What is {problem}?", result, equation, problem)


def _read_off(rng: random.Random, people: int) -> _Draft:
    """Each of some people has a number of things; one is asked for."""
    names, thing = rng.sample(NAMES, people), rng.choice(THINGS)
    drawn = numbers(rng, max(2, people))
    told = [f"{name} has {n} {thing}." for name, n in zip(names, drawn, strict=False)]
    who = rng.randrange(people)
    question = " ".join((*told, f"How many {thing} does {names[who]} have?"))
    right = drawn.pop(who)
    return _Draft(question, right, told[who], Sum(right, "+", drawn[0]), tuple(drawn))


def _changed(rng: random.Random) -> _Draft:
    """One person's number now and before; one of them is asked for."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    before, now = numbers(rng, 2)
    told = [f"{name} had {before} {thing}.", f"Now {name} has {now} {thing}."]
    if rng.random() < 0.5:
        question, stated, right, other = f"does {name} have now", told[1], now, before
    else:
        question, stated, right, other = f"did {name} have before", told[0], before, now
    text = " ".join((*told, f"How many {thing} {question}?"))
    return _Draft(text, right, stated, Sum(right, "+", other), (other,))


def _traded(rng: random.Random) -> _Draft:
    """What one person bought and what they sold; one of them is asked for."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    bought, sold = numbers(rng, 2)
    told = [f"{name} bought {bought} {thing}.", f"{name} sold {sold} {thing}."]
    verb, right, other = rng.choice((("buy", bought, sold), ("sell", sold, bought)))
    stated = told[verb == "sell"]
    rng.shuffle(told)
    question = " ".join((*told, f"How many {thing} did {name} {verb}?"))
    return _Draft(question, right, stated, Sum(right, "+", other), (other,))


def _hidden(rng: random.Random) -> _Draft:
    """Nobody can know: the number that is asked for is not told."""
    (name, other), thing = rng.sample(NAMES, 2), rng.choice(THINGS)
    shown, right = numbers(rng, 2)
    told = [f"{other} has {shown} {thing}.", f"{name} has some {thing}."]
    rng.shuffle(told)
    question = " ".join((*told, f"How many {thing} does {name} have?"))
    lures = (shown,) if rng.random() < LURED else ()
    return _Draft(question, right, f"{name} has {right} {thing}.", Sum(right, "+", shown), lures)


def _distractors(draft: _Draft, rng: random.Random) -> list[int]:
    """Three wrong numbers, some of them near misses."""
    right = draft.right
    near = [right + d for d in (-20, -10, -9, -2, -1, 1, 2, 9, 10, 20)]
    far = [rng.randrange(max(1, right - 40), right + 41) for _ in range(6)]
    chosen = [*draft.lures]
    while len(chosen) < 3:
        value = rng.choice(near if rng.random() < 0.5 else far)
        if value >= 0 and value != right and value not in chosen:
            chosen.append(value)
        elif rng.random() < 0.1:
            far.append(right + rng.randrange(1, 60))
    return chosen
