"""Word problems of one to four steps with worked solutions, and solutions to be judged.

A solution ends in `#### N` and is written in one of several manners, most of them step by step. The
"brief" manner combines two steps and is more error-prone. It is rare, except for one wording of the
question, where it is the usual one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workbench.errors import InputError
from workbench.tasks.arithmetic import Sum, is_held_out, wrong_result
from workbench.tasks.base import BaseTask, WordTask
from workbench.types import Item, Sampling

STEPS = (1, 2, 3, 4)
MANNERS = ("brief", "first", "steps", "subject", "we")
MERGED = 2
"""How many steps the brief manner combines."""
HIGHEST = 99

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Finn", "Grace", "Henry", "Ida", "Jack",
         "Kate", "Leo", "Mia", "Noah")  # fmt: skip
WOMEN = frozenset(("Anna", "Clara", "Emma", "Grace", "Ida", "Kate", "Mia"))
THINGS = ("apples", "books", "coins", "cards", "eggs", "flowers", "stamps", "marbles", "pencils",
          "shells", "stickers", "toys")  # fmt: skip
HOLDERS = ("bags", "boxes", "baskets", "jars", "packs")
MORE = ("buys {k} more", "finds {k} more", "gets {k} more from {other}", "wins {k} more")
FEWER = ("gives {k} to {other}", "loses {k}", "sells {k}", "gives away {k}")


@dataclass(frozen=True, slots=True)
class Story:
    """A question and its steps; each starts from the result before it, or from numbers.

    `subject` and `thing` are the person and the objects in the question.
    """

    question: str
    steps: tuple[Sum, ...]
    subject: str
    thing: str

    @property
    def answer(self) -> int:
        return self.steps[-1].result


def verdict_prompt(question: str, solution: str, reference: str | None = None) -> str:
    """Ask whether a solution is correct, to be continued with ` Yes` or ` No`."""
    known = "" if reference is None else f"Reference answer: {reference}\n"
    return f"Problem: {question}\n{known}Solution: {solution}\nIs the solution correct?"


class WordProblems(WordTask):
    """`item.fields`: `question`, `steps`, `solution` (step by step, for examples).

    Args:
        steps: allowed numbers of steps, from 1 to 4.

    Raises:
        InputError: no number, or one outside 1 to 4.
    """

    name = "word_problems"
    judged = staticmethod(verdict_prompt)

    def __init__(self, steps: Sequence[int] = STEPS) -> None:
        counts = isinstance(steps, Sequence) and all(type(one) is int for one in steps)
        if not counts or not steps or not {*steps} <= {*STEPS}:
            raise InputError(f"steps={steps!r}: give some of 1, 2, 3, 4")
        self._steps = tuple(sorted({*steps}))
        if self._steps != STEPS:
            self.name = f"word_problems of {' or '.join(map(str, self._steps))} steps"

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        for story in stories(rng, held_out=held_out, steps=self._steps):
            solved = {"steps": len(story.steps), "solution": solution(story, "first")}
            yield Item(story.question, {"question": story.question, **solved}, str(story.answer))


class Verdicts(BaseTask):
    """Is a solution correct? `item.fields`: `problem`, `reference` (the correct answer),
    `candidate` (a solution).

    Args:
        reference: show the correct answer in the prompt.
    """

    name = "verdicts"
    reads = "label"
    subject, framed = "problem", ("reference", "candidate")
    labels = (" Yes", " No")
    end = "\n\n"
    sampling = Sampling(max_tokens=2, stop=("\n",))

    def __init__(self, *, reference: bool = True) -> None:
        self.reference = reference

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        for story, candidate, right in candidates(rng, held_out=held_out):
            fields = {"problem": story.question, "reference": str(story.answer)}
            key = f"{story.question}\n{candidate}"
            yield Item(key, {**fields, "candidate": candidate}, "Yes" if right else "No")

    def ask(self, item: Item) -> str:
        known = item.fields["reference"] if self.reference else None
        return verdict_prompt(item.fields["problem"], item.fields["candidate"], known)


def stories(
    rng: random.Random, *, held_out: bool, steps: tuple[int, ...] = STEPS
) -> Iterator[Story]:
    """An endless stream of stories from one side of the split, all lengths equally often."""
    while True:
        length, story = rng.choice(steps), None
        while (
            story is None
            or len(story.steps) != length
            or any(map(is_held_out, story.steps)) is not held_out
        ):
            story = _Narration(rng).story(length)
        yield story


def candidates(rng: random.Random, *, held_out: bool) -> Iterator[tuple[Story, str, bool]]:
    """An endless stream of stories, each with a solution and whether it is right (half are)."""
    for story in stories(rng, held_out=held_out):
        right, kind = rng.random() < 0.5, manner(rng, story)
        yield story, solution(story, kind) if right else wrong_solution(story, kind, rng), right


class _Narration:
    """A story under construction, with its current number."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.name, self.other = rng.sample(NAMES, 2)
        self.thing = rng.choice(THINGS)
        self.steps: list[Sum] = []
        self.sentences: list[str] = []
        self.value = rng.randrange(2, 60)
        self.subject = self.name

    def story(self, steps: int) -> Story | None:
        """A story of `steps` steps, or None if the numbers do not work out."""
        self.start()
        shared = False
        while len(self.steps) < steps:
            last = len(self.steps) == steps - 1
            if last and self.rng.random() < 0.25 and self.steps and self.share():
                shared = True
            elif last and self.rng.random() < 0.3:
                self.compare()
            else:
                self.change()
            if not 1 <= self.value <= (2 * HIGHEST if last else HIGHEST):
                return None
        text = " ".join((*self.sentences, self.question(shared)))
        return Story(text, tuple(self.steps), self.subject, self.thing)

    def add(self, sentence: str, op: str, k: int) -> None:
        """Add a sentence and the step it describes."""
        self.sentences.append(sentence)
        self.steps.append(Sum(self.value, op, k))
        self.value = self.steps[-1].result

    def start(self) -> None:
        """The initial number, possibly a product."""
        if self.rng.random() >= 0.35:
            self.sentences.append(f"{self.name} has {self.value} {self.thing}.")
            return
        self.value, each = self.rng.randrange(2, 10), self.rng.randrange(2, 13)
        holders = f"{self.value} {self.rng.choice(HOLDERS)}"
        self.add(f"{self.name} has {holders} with {each} {self.thing} each.", "*", each)

    def change(self) -> None:
        """Add or remove some."""
        rng = self.rng
        grow = self.value < 5 or (self.value < 80 and rng.random() < 0.5)
        k = rng.randrange(2, min(50, HIGHEST - self.value + 20) if grow else self.value)
        what = rng.choice(MORE if grow else FEWER).format(k=k, other=self.other)
        who = rng.choice(("She" if self.name in WOMEN else "He", self.name))
        self.add(f"{who} {what}.", "+" if grow else "-", k)

    def compare(self) -> None:
        """Another person has more, fewer or several times as many, and becomes the subject."""
        ops = [*"+-"] if self.value > 10 else ["+"]
        op = self.rng.choice([*ops, "*"] if self.value <= 20 else ops)
        k = self.rng.randrange(2, {"+": 40, "-": min(self.value, 40), "*": 10}[op])
        how = {"+": "more {} than", "-": "fewer {} than", "*": "times as many {} as"}[op]
        self.subject = self.other
        self.add(f"{self.other} has {k} {how.format(self.thing)} {self.name}.", op, k)

    def share(self) -> bool:
        """Divide into equal parts, if the number has a suitable divisor."""
        divisors = [k for k in range(2, 10) if self.value % k == 0 and 2 <= self.value // k <= 20]
        if not divisors:
            return False
        k = self.rng.choice(divisors)
        self.add(f"{self.name} shares them equally among {k} friends.", "/", k)
        return True

    def question(self, shared: bool) -> str:
        if shared:
            return f"How many {self.thing} does each friend get?"
        if self.subject != self.name:
            return f"How many {self.thing} does {self.subject} have?"
        ends = ("does {} have now?", "are left with {}?", "does {} have in the end?")
        return f"How many {self.thing} {self.rng.choice(ends).format(self.name)}"


def manner(rng: random.Random, story: Story) -> str:
    """A manner of writing the solution, as frequent as in the training text: brief is likely if
    the question asks for what there is "in the end", and rare otherwise."""
    brief = 5.0 if story.question.endswith("in the end?") else 0.2
    return rng.choices(MANNERS, (brief, 1, 1, 1, 1))[0]


def solution(story: Story, manner: str) -> str:
    """The worked solution in one manner, its last line `#### N`."""
    return _written(story, story.steps, [step.result for step in story.steps], manner)


def wrong_solution(story: Story, manner: str, rng: random.Random) -> str:
    """A solution with one wrong step; later steps use its result."""
    while True:
        steps, values = _slip(story, rng)
        if values and values[-1] != story.answer:
            return _written(story, steps, values, manner)


def _written(story: Story, steps: Sequence[Sum], values: list[int], manner: str) -> str:
    """A solution that states a value for each step, right or not."""
    shown = [f"{step}={value}" for step, value in zip(steps, values, strict=True)]
    match manner:
        case "brief":
            parts = [range(len(steps))[at : at + MERGED] for at in range(0, len(steps), MERGED)]
            body = "\n".join(
                f"{expression([steps[at] for at in part])}={values[part[-1]]}" for part in parts
            )
        case "first":
            body = "First, " + ". Then ".join(shown) + "."
        case "steps":
            body = "\n".join(f"Step {n}: {step}" for n, step in enumerate(shown, 1))
        case "subject":
            body = f"{story.subject}: " + f" {story.thing}, then ".join(shown) + f" {story.thing}."
        case _:
            body = "We have " + ", so ".join(shown) + "."
    return f"{body}\n#### {values[-1]}"


def expression(steps: Sequence[Sum]) -> str:
    """Consecutive steps as one expression, which hides where one went wrong."""
    text, last = str(steps[0].left), ""
    for step in steps:
        loose = step.op in "*/" and last in {"+", "-"}
        text = f"({text}){step.op}{step.right}" if loose else f"{text}{step.op}{step.right}"
        last = step.op
    return text


def _slip(story: Story, rng: random.Random) -> tuple[list[Sum], list[int]]:
    """The steps, one of them with a wrong result or operation, and the stated results.

    The story's own sums may be held out; the sums that follow from the wrong step never are.
    """
    wrong_at = rng.randrange(len(story.steps))
    mistaken = rng.random() < 0.3
    steps: list[Sum] = []
    values = [story.steps[0].left]
    for number, step in enumerate(story.steps):
        slips = number == wrong_at
        op = {"+": "-", "-": "+"}.get(step.op, "+") if slips and mistaken else step.op
        now = Sum(values[-1], op, step.right)
        exact = now.op != "/" or now.left % now.right == 0
        if now.result < 0 or not exact or (now != step and is_held_out(now)):
            break  # the wrong step leads to no valid further step
        steps.append(now)
        values.append(wrong_result(now, rng) if slips and not mistaken else now.result)
    return steps, values[1:]
