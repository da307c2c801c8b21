"""What an agent is: a generator that yields calls to a model and receives their results.

    def twice(case):
        draft = yield Ask(case.prompt)
        final = yield Ask(case.then(draft.text, "Check this and answer again."))
        return final.text

`scheduler.advance` runs the programs of all items together. No program waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.types import Item, Prompt, Sampling, Task


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt to complete, with the case's `sampling` unless it has its own.

    The program receives a `Completion`.
    """

    prompt: Prompt
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A prompt and the labels whose log-probabilities are wanted.

    The program receives the natural log-probability of each label, as floats in the same order.
    """

    prompt: Prompt
    labels: tuple[str, ...]


Call = Ask | Score


@dataclass(frozen=True, slots=True)
class Answer:
    """A program's result, if it has more to report than the text.

    Attributes:
        text: graded like the text of a single answer.
        notes: numbers and texts by name, such as votes; they become columns of the report's rows.
    """

    text: str
    notes: Mapping[str, float | int | str | bool] = field(default_factory=dict)


Program = Generator[Call | Sequence[Call], Any, str | Answer]
"""Yields one call, or a list of calls to make at once, and receives the result or the results. A
failed call raises `EngineError` in the program; the row fails if the program does not catch it."""


@dataclass(frozen=True, slots=True)
class AgentCase:
    """What an agent works on. It holds the correct answer for grading; an agent must not read it.

    Attributes:
        prompt: the task's prompt for the item.
        sampling: the task's sampling settings.
    """

    task: Task
    item: Item
    prompt: Prompt
    sampling: Sampling

    def then(self, answer: str, request: str) -> Prompt:
        """The prompt with an answer to it and a further request; a chat gets two more turns."""
        if isinstance(self.prompt, str):
            return f"{self.prompt}{answer}\n\n{request}"
        turns = [{"role": "assistant", "content": answer}, {"role": "user", "content": request}]
        return [*self.prompt, *turns]

    def extracted(self, text: str) -> str | None:
        """The answer that the task's grader reads from a text, None if there is none."""
        return self.task.grade(self.item, text).extracted


Agent = Callable[[AgentCase], Program]
"""A function or an object that makes a program for a case."""
