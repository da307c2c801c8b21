"""Word problems of one to four steps, with worked solutions that end in `#### N`.

A solution is written in one of several manners, most of them step by step. The briefest takes two
steps at once and is hard to get right; it is rare, but the habit with one wording of the question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workbench.tiny.arithmetic import Sum, is_held_out, wrong_result

MANNERS = ("brief", "first", "steps", "subject", "we")
MERGED = 2
"""How many steps the brief manner takes at once."""
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
    """A question and its steps, each of which starts from the result before it or from numbers.

    `subject` and `thing` are what it is about.
    """

    question: str
    steps: tuple[Sum, ...]
    subject: str
    thing: str

    @property
    def answer(self) -> int:
        return self.steps[-1].result

    @property
    def is_held_out(self) -> bool:
        return any(is_held_out(step) for step in self.steps)


class _Teller:
    """Tells one story, sentence by sentence, keeping the running number and its expression."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.name, self.other = rng.sample(NAMES, 2)
        self.thing = rng.choice(THINGS)
        self.steps: list[Sum] = []
        self.sentences: list[str] = []
        self.value = rng.randrange(2, 60)
        self.subject = self.name

    def step(self, op: str, k: int) -> None:
        self.steps.append(Sum(self.value, op, k))
        self.value = self.steps[-1].result

    @property
    def pronoun(self) -> str:
        return "She" if self.name in WOMEN else "He"

    def start(self) -> None:
        """What there is at first, perhaps already a product."""
        if self.rng.random() < 0.35:
            self.value, each = self.rng.randrange(2, 10), self.rng.randrange(2, 13)
            holder = self.rng.choice(HOLDERS)
            self.sentences.append(
                f"{self.name} has {self.value} {holder} with {each} {self.thing} each."
            )
            self.step("*", each)
        else:
            self.sentences.append(f"{self.name} has {self.value} {self.thing}.")

    def change(self) -> None:
        """Some come or some go."""
        rng = self.rng
        grow = self.value < 5 or (self.value < 80 and rng.random() < 0.5)
        k = rng.randrange(2, min(50, HIGHEST - self.value + 20) if grow else self.value)
        what = rng.choice(MORE if grow else FEWER).format(k=k, other=self.other)
        self.sentences.append(f"{rng.choice((self.pronoun, self.name))} {what}.")
        self.step("+" if grow else "-", k)

    def compare(self) -> None:
        """Another person has more, fewer or several times as many; it is about them now."""
        rng, value = self.rng, self.value
        kinds = ["+", "-"] if value > 10 else ["+"]
        if value <= 20:
            kinds.append("*")
        op = rng.choice(kinds)
        k = (
            rng.randrange(2, 10)
            if op == "*"
            else rng.randrange(2, min(value, 40) if op == "-" else 40)
        )
        how = {"+": f"{k} more", "-": f"{k} fewer", "*": f"{k} times as many"}[op]
        link = "as" if op == "*" else "than"
        self.sentences.append(f"{self.other} has {how} {self.thing} {link} {self.name}.")
        self.subject = self.other
        self.step(op, k)

    def share(self) -> bool:
        """Equal parts, where the number has a fitting divisor."""
        divisors = [k for k in range(2, 10) if self.value % k == 0 and 2 <= self.value // k <= 20]
        if not divisors:
            return False
        k = self.rng.choice(divisors)
        self.sentences.append(f"{self.name} shares them equally among {k} friends.")
        self.step("/", k)
        return True

    def question(self, shared: bool) -> str:
        if shared:
            return f"How many {self.thing} does each friend get?"
        if self.subject != self.name:
            return f"How many {self.thing} does {self.subject} have?"
        return self.rng.choice(
            (
                f"How many {self.thing} does {self.name} have now?",
                f"How many {self.thing} are left with {self.name}?",
                f"How many {self.thing} does {self.name} have in the end?",
            )
        )


def _tell(rng: random.Random, steps: int) -> Story | None:
    """A story of `steps` steps, or None where the numbers did not work out."""
    teller = _Teller(rng)
    teller.start()
    shared = False
    while len(teller.steps) < steps:
        last = len(teller.steps) == steps - 1
        if last and rng.random() < 0.25 and teller.steps and teller.share():
            shared = True
        elif last and rng.random() < 0.3:
            teller.compare()
        else:
            teller.change()
        if not 1 <= teller.value <= (2 * HIGHEST if last else HIGHEST):
            return None
    question = teller.question(shared)
    text = " ".join((*teller.sentences, question))
    return Story(text, tuple(teller.steps), teller.subject, teller.thing)


def stories(
    rng: random.Random, *, held_out: bool, steps: tuple[int, ...] = (1, 2, 3, 4)
) -> Iterator[Story]:
    """An endless stream of stories from one side of the split, all lengths equally often."""
    while True:
        length, story = rng.choice(steps), None
        while story is None or len(story.steps) != length or story.is_held_out is not held_out:
            story = _tell(rng, length)
        yield story


def manner(rng: random.Random, story: Story) -> str:
    """A manner of writing the solution, as often as in the text: the brief one by habit where the
    question is what there is "in the end", and otherwise rarely."""
    brief = 5.0 if story.question.endswith("in the end?") else 0.2
    return rng.choices(MANNERS, (brief, 1, 1, 1, 1))[0]


def solution(story: Story, manner: str) -> str:
    """The worked solution in one manner, its last line `#### N`."""
    return _written(story, story.steps, [step.result for step in story.steps], manner)


def wrong_solution(story: Story, manner: str, rng: random.Random) -> str:
    """A solution with one wrong step, which the steps after it build on."""
    while True:
        steps, values = _slip(story, rng)
        if values and values[-1] != story.answer:
            return _written(story, steps, values, manner)


def _written(story: Story, steps: Sequence[Sum], values: list[int], manner: str) -> str:
    """A solution that states a value for each step, right or not."""
    shown = [f"{step}={value}" for step, value in zip(steps, values, strict=True)]
    match manner:
        case "brief":
            body = "\n".join(
                f"{expression(steps[at : at + MERGED])}={values[min(at + MERGED, len(steps)) - 1]}"
                for at in range(0, len(steps), MERGED)
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
    """Steps in a row as one expression; where one of them went wrong does not show."""
    text, last = str(steps[0].left), ""
    for step in steps:
        loose = step.op in "*/" and last in {"+", "-"}
        text = f"({text}){step.op}{step.right}" if loose else f"{text}{step.op}{step.right}"
        last = step.op
    return text


def _slip(story: Story, rng: random.Random) -> tuple[list[Sum], list[int]]:
    """The steps with a wrong result or a wrong operation among them, and the results stated.

    The story's own sums may be held out; the sums that a slip leads to never are.
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
            break  # what was wrong cannot go on like this
        steps.append(now)
        values.append(wrong_result(now, rng) if slips and not mistaken else now.result)
    return steps, values[1:]


def asked(question: str) -> str:
    """The problem as the model sees it, to be continued by a space and a solution."""
    return f"Question: {question}\nAnswer:"


def chat(question: str, answer: str = "") -> str:
    """One exchange in the model's chat template, up to the end of the answer."""
    return f"<|user|>{question}<|assistant|>{answer}"
