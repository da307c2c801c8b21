"""The base of all tasks: held-out items by seed, worked examples from the training side."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from workbench import answers, template, values
from workbench.answers.statements import outside_reasoning
from workbench.errors import InputError
from workbench.reprs import Card, Shown, block, note
from workbench.types import Grade, Item, Prompt, PromptStyle, Sampling, Task

MOST_REPEATED = 20_000
"""Consecutive draws without a new item after which a stream counts as exhausted."""


class BaseTask(Shown, ABC):
    """A task with items from a stream, which is endless for generated items.

    A task with `labels` can be answered with `engine.label_logprobs` as well as with text.

    `reads` is the style in which `workbench.answers` reads a response; `end` separates a worked
    example from the following text. `subject` is the field that `ask` and `question` phrase,
    `framed` are the fields shown around it, `subjects` are further names for it in templates.
    """

    name: str
    split = "test"
    difficulty = ""
    reads: answers.Style = "gsm8k"
    labels: tuple[str, ...] = ()
    end = "\n"
    subject = "question"
    framed: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    sampling = Sampling(max_tokens=160, stop=("\n\n",))
    count = 1000

    @abstractmethod
    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        """Items from one side of the split, in an order that depends on `rng`."""

    @abstractmethod
    def ask(self, item: Item) -> str:
        """The item as the model sees it, up to where its answer begins."""

    def solved(self, item: Item) -> str:
        """A worked example."""
        return f"{self.ask(item)}{self.answer(item)}{self.end}"

    def answer(self, item: Item) -> str:
        """The correct answer as it follows `ask`, with its leading space."""
        return f" {item.answer}"

    def question(self, item: Item) -> str:
        """The item as a person asks it in a chat."""
        return self.ask(item)

    def grade(self, item: Item, text: str) -> Grade:
        """Read and grade an answer; one that cannot be read is "not parsed", not wrong."""
        if self.reads == "gsm8k":  # text after an end is not part of the answer
            text = outside_reasoning(text)
            for stop in filter(str.strip, (*self.sampling.stop, "\nQuestion:")):
                text = text.partition(stop)[0]
        return answers.grade(text, item.answer, self.reads, labels=self.labels)

    def items(self, count: int | None = None, seed: int = 0) -> list[Item]:
        """`count` different held-out items, the same for the same seed.

        Raises:
            InputError: `count` is below 1 or above the number of different items.
        """
        count = self.count if count is None else count
        rng = random.Random(f"{self.name}-{seed}")
        return first_items(self.stream(rng, held_out=True), count, self.name)

    def prompt(
        self,
        item: Item,
        shots: int = 0,
        style: PromptStyle = "completion",
        wording: str | None = None,
    ) -> Prompt:
        """The item after `shots` worked examples, which differ from item to item.

        In a chat the examples are earlier turns.

        Args:
            wording: a template for the question, in the item and the examples, such as
                "{question}\\nThink step by step."; the task's text around the question stays.

        Raises:
            InputError: `shots` is not a whole number from 0, the style is unknown, or the
                template has a field that the task lacks.
        """
        shots = values.whole("shots", shots, 0)
        if style not in {"completion", "chat"}:
            values.refuse("style", style, '"completion" or "chat"')
        examples = list(islice(self.examples(item), shots))
        if style == "completion":
            if wording is None:
                return "".join(map(self.solved, examples)) + self.ask(item)
            *asked, last = (self._worded(one, self.ask, wording) for one in (*examples, item))
            ends = [f"{self.answer(example)}{self.end}" for example in examples]
            pairs = zip(asked, ends, strict=True)
            return "".join(_joined(text, answer) for text, answer in pairs) + last
        turns = []
        for example in examples:
            turns += [{"role": "user", "content": self._worded(example, self.question, wording)}]
            turns += [{"role": "assistant", "content": self.answer(example)}]
        return [*turns, {"role": "user", "content": self._worded(item, self.question, wording)}]

    def _worded(self, item: Item, say: Callable[[Item], str], wording: str | None) -> str:
        """The item as `say` words it, with its question in the words of a template."""
        if wording is None:
            return say(item)
        framed = self.subject in item.fields  # else all that `say` returns is the question
        own = item.fields[self.subject] if framed else say(item)
        hidden = {*self.framed, "solution"}
        known = {name: value for name, value in item.fields.items() if name not in hidden}
        known |= dict.fromkeys((*self.subjects, "question"), own)
        text = filled(wording, known, item)
        return say(replace(item, fields={**item.fields, self.subject: text})) if framed else text

    def _card(self) -> Card:
        name = f"task {self.name}, {self.split}, {self.count:,} items"
        item = self.items(1)[0]
        asked, parts = self.ask(item), [f"for example {item.id}, answer {item.answer!r:.80}:"]
        lines = [name, *parts, *asked.strip().splitlines()[:2]]
        return Card(lines, [note(name), note(parts[0]), block(asked)])

    def examples(self, item: Item) -> Iterator[Item]:
        """Worked examples for an item, always the same ones, from the training side."""
        return self.stream(random.Random(f"{self.name}-{item.id}"), held_out=False)


class FixedTask(BaseTask):
    """A task with a fixed list of items, drawn in random order."""

    @abstractmethod
    def side(self, *, held_out: bool) -> Sequence[Item]:
        """All items of one side of the split."""

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        yield from shuffled(self.side(held_out=held_out), rng)


class WordTask(BaseTask):
    """Problems in words: `question`, `steps`, and a `solution` whose last line is `#### N`."""

    difficulty = "steps"
    end = "\n\n"

    def ask(self, item: Item) -> str:
        return worded(item.fields["question"])

    def answer(self, item: Item) -> str:
        return f" {item.fields['solution']}"

    def question(self, item: Item) -> str:
        return str(item.fields["question"])


def worded_prompt(
    task: Task, item: Item, shots: int, style: PromptStyle, wording: str | None
) -> Prompt:
    """`task.prompt`, with the question worded by a template.

    A task that is not a `BaseTask` accepts no wording: its template is the whole prompt.

    Raises:
        InputError: as `BaseTask.prompt`, or a task of the latter kind is given `shots` as well.
    """
    if wording is None:
        return task.prompt(item, shots, style)
    if isinstance(task, BaseTask):
        return task.prompt(item, shots, style, wording)
    if shots:
        raise InputError(f"shots={shots}: {task.name} words its examples itself; leave prompt out")
    text = filled(wording, item.fields, item)
    return text if style == "completion" else [{"role": "user", "content": text}]


def _joined(text: str, answer: str) -> str:
    """A worked example; a template's last word is kept apart from the answer."""
    apart = text.endswith(("=", " ", "\n")) or answer[:1].isspace()
    return f"{text}{'' if apart else ' '}{answer}"


def filled(wording: str, known: Mapping[str, object], item: Item) -> str:
    template.check(wording, known, "prompt")
    return template.fill(wording, known, f"prompt of {item.id!r:.60}")


def worded(question: str) -> str:
    """A problem as the model sees it, to be continued with a space and a solution."""
    return f"Question: {question}\nAnswer:"


def first_items(stream: Iterable[Item], count: int, name: str) -> list[Item]:
    """The first `count` different items of a stream.

    Raises:
        InputError: `count` is below 1 or above the number of items.
    """
    count = values.whole("count", count, 1)
    items: dict[str, Item] = {}
    repeated = 0
    for item in stream:
        repeated = repeated + 1 if item.id in items else 0
        items.setdefault(item.id, item)
        if len(items) == count:
            return list(items.values())
        if repeated == MOST_REPEATED:
            break
    about = "about " if repeated else ""
    raise InputError(f"count={count}: {name} has {about}{len(items)} items, ask for fewer")


def shuffled(items: Sequence[Item], rng: random.Random) -> Iterator[Item]:
    """Items in random order, drawn lazily (Fisher and Yates's shuffle)."""
    moved: dict[int, int] = {}
    for at in range(len(items)):
        other = rng.randrange(at, len(items))
        yield items[moved.get(other, other)]
        moved[other] = moved.pop(at, at)
