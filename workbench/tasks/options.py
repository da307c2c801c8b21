"""Multiple choice with six options: four results, `I don't know` and `None of the above`.

One of the first four is always correct. Levels range from reading a number to computing one.
Questions that cannot be answered (`hidden`) are not in the training text, so they are new to it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from workbench.tasks.arithmetic import Sum, is_held_out, problems
from workbench.tasks.base import BaseTask
from workbench.tasks.word_problems import NAMES, THINGS
from workbench.types import Item, Sampling

LETTERS = tuple("ABCDEF")
READING = ("one number", "two numbers", "three numbers")
STATED = ("now or before", "sum told")
EVENTS = ("bought or sold", "counted")
LEVELS = ("one number", *EVENTS, *STATED, "two numbers", "three numbers", "sum", "hidden")
LAST_TWO = ("I don't know", "None of the above")
LURED = 0.7
"""Share of the hidden questions whose options include the only number in the question."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A question and four numbers to choose from.

    `stated` is the `right` number in a sentence, `key` the sum that determines the question's side
    of the split, `lures` are numbers that a careless reader would choose.
    """

    question: str
    right: int
    stated: str
    key: Sum
    lures: tuple[int, ...] = ()
    level: str = ""
    numbers: tuple[int, ...] = ()

    @property
    def place(self) -> int:
        """The index of the right number."""
        return self.numbers.index(self.right)

    @property
    def texts(self) -> tuple[str, ...]:
        """All six options."""
        return (*map(str, self.numbers), *LAST_TWO)


class Options(BaseTask):
    """`item.fields`: `question`, `options` (six texts), `level` (`LEVELS`, easy first)."""

    name = "options"
    difficulty = "level"
    reads = "choice"
    framed = ("options",)
    labels = tuple(f" {letter}" for letter in LETTERS)
    sampling = Sampling(max_tokens=2, stop=("\n",))
    count = 2000

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        for choice in choices(rng, held_out=held_out, levels=LEVELS if held_out else LEVELS[:-1]):
            texts = choice.texts
            fields = {"question": choice.question, "options": texts, "level": choice.level}
            key = f"{choice.question} {' '.join(texts[:4])}"
            yield Item(id=key, fields=fields, answer=LETTERS[choice.place])

    def ask(self, item: Item) -> str:
        return listed(item.fields["question"], item.fields["options"])


def listed(question: str, texts: Sequence[str]) -> str:
    """The question as the model sees it, to be continued with a space and a letter."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=True)]
    return "\n".join((f"Question: {question}", "Choices:", *lines, "Answer:"))


def choices(
    rng: random.Random, *, held_out: bool, levels: tuple[str, ...] = LEVELS
) -> Iterator[Choice]:
    """An endless stream of questions from one side of the split, equally many of each level."""
    while True:
        level = rng.choice(levels)
        choice = _question(rng, level, held_out=held_out)
        while is_held_out(choice.key) is not held_out:
            choice = _question(rng, level, held_out=held_out)
        four = [choice.right, *_distractors(choice, rng)]
        rng.shuffle(four)
        yield replace(choice, level=level, numbers=tuple(four))


def number(rng: random.Random) -> int:
    """Usually a single digit: the model needs those to learn to find a number in a list."""
    return rng.randrange(10) if rng.random() < 0.6 else rng.randrange(10, 100)


def numbers(rng: random.Random, count: int) -> list[int]:
    """`count` different numbers."""
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        drawn[number(rng)] = None
    return list(drawn)


def _question(rng: random.Random, level: str, *, held_out: bool) -> Choice:
    if level in {"sum", "sum told", "counted"}:
        return _sum(rng, level, held_out=held_out)
    if level in READING:
        return _read_off(rng, 1 + READING.index(level))
    makers = {"hidden": _hidden, "now or before": _changed, "bought or sold": _traded}
    return makers[level](rng)


def _sum(rng: random.Random, level: str, *, held_out: bool) -> Choice:
    """To be computed; or the result is stated, by itself or as what somebody counted."""
    name, thing = (rng.choice(NAMES), rng.choice(THINGS)) if level == "counted" else ("", "")
    problem = next(p for p in problems(rng, held_out=held_out) if p.op != "*")
    result, equation = problem.result, f"{problem}={problem.result}"
    if level == "counted":
        question = f"{name} counts {equation} {thing}. How many {thing} does {name} have?"
        return Choice(question, result, f"{name} has {result} {thing}.", problem)
    fact = f"{equation}. " if level == "sum told" else ""
    return Choice(f"{fact}What is {problem}?", result, equation, problem)


def _read_off(rng: random.Random, people: int) -> Choice:
    """Several people each have a number of things; the question asks for one."""
    names, thing = rng.sample(NAMES, people), rng.choice(THINGS)
    drawn = numbers(rng, max(2, people))
    facts = [f"{name} has {n} {thing}." for name, n in zip(names, drawn, strict=False)]
    who = rng.randrange(people)
    question = f"How many {thing} does {names[who]} have?"
    return _about(facts, question, drawn.pop(who), facts[who], *drawn)


def _changed(rng: random.Random) -> Choice:
    """One person's number now and before; the question asks for one of them."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    before, now = numbers(rng, 2)
    facts = [f"{name} had {before} {thing}.", f"Now {name} has {now} {thing}."]
    if rng.random() < 0.5:
        return _about(facts, f"How many {thing} does {name} have now?", now, facts[1], before)
    return _about(facts, f"How many {thing} did {name} have before?", before, facts[0], now)


def _traded(rng: random.Random) -> Choice:
    """What one person bought and sold; the question asks for one of them."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    bought, sold = numbers(rng, 2)
    facts = [f"{name} bought {bought} {thing}.", f"{name} sold {sold} {thing}."]
    verb, right, other = rng.choice((("buy", bought, sold), ("sell", sold, bought)))
    stated = facts[verb == "sell"]
    rng.shuffle(facts)
    return _about(facts, f"How many {thing} did {name} {verb}?", right, stated, other)


def _hidden(rng: random.Random) -> Choice:
    """Unanswerable: the text does not state the number."""
    (name, other), thing = rng.sample(NAMES, 2), rng.choice(THINGS)
    shown, right = numbers(rng, 2)
    facts = [f"{other} has {shown} {thing}.", f"{name} has some {thing}."]
    rng.shuffle(facts)
    question, stated = f"How many {thing} does {name} have?", f"{name} has {right} {thing}."
    choice = _about(facts, question, right, stated, shown)
    return choice if rng.random() < LURED else replace(choice, lures=())


def _about(facts: list[str], question: str, right: int, stated: str, *others: int) -> Choice:
    """A question after some facts, whose other numbers are lures."""
    text = " ".join((*facts, question))
    return Choice(text, right, stated, Sum(right, "+", others[0]), others)


def _distractors(choice: Choice, rng: random.Random) -> list[int]:
    """Three wrong numbers, some of them near misses."""
    right = choice.right
    near = [right + d for d in (-20, -10, -9, -2, -1, 1, 2, 9, 10, 20)]
    far = [rng.randrange(max(1, right - 40), right + 41) for _ in range(6)]
    chosen = [*choice.lures]
    while len(chosen) < 3:
        value = rng.choice(near if rng.random() < 0.5 else far)
        if value >= 0 and value != right and value not in chosen:
            chosen.append(value)
        elif rng.random() < 0.1:
            far.append(right + rng.randrange(1, 60))
    return chosen
