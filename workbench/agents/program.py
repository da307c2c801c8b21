"""What an agent is: a generator that yields calls to a model and receives what they gave.

    def twice(case):
        draft = yield Ask(case.prompt)
        final = yield Ask(case.then(draft.text, "Check this and answer again."))
        return final.text

`scheduler.advance` runs the programs of all items together, and none waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.types import Item, Prompt, Sampling, Task


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt to complete, as the case's `sampling` says if it says nothing itself.

    The program receives a `Completion`.
    """

    prompt: Prompt
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A prompt whose continuations are to be weighed.

    The program receives the natural log-probability of each label, as floats in their order.
    """

    prompt: Prompt
    labels: tuple[str, ...]


Call = Ask | Score


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program ends with where the text alone does not tell all.

    Attributes:
        text: is graded as a single answer would be.
        notes: of how it came about, such as votes; they stand in the report's rows.
    """

    text: str
    notes: Mapping[str, float | int | str | bool] = field(default_factory=dict)


Program = Generator[Call | Sequence[Call], Any, str | Answer]
"""Yields a call, or several to be made at once, and receives its result, or their list. A call that
failed is raised in the program as an `EngineError`; one that lets it pass is a failed row."""


@dataclass(frozen=True, slots=True)
class AgentCase:
    """What an agent works on; the right answer is in it, for tasks to grade and not to be read.

    Attributes:
        prompt: the item as the task asks it.
        sampling: how the task's answers are to be asked for.
    """

    task: Task
    item: Item
    prompt: Prompt
    sampling: Sampling

    def then(self, answer: str, request: str) -> Prompt:
        """The prompt with an answer to it and a further request, in a chat as further turns."""
        if isinstance(self.prompt, str):
            return f"{self.prompt}{answer}\n\n{request}"
        turns = [{"role": "assistant", "content": answer}, {"role": "user", "content": request}]
        return [*self.prompt, *turns]

    def extracted(self, text: str) -> str | None:
        """What the task's grader reads out of a text, None where it reads nothing."""
        return self.task.grade(self.item, text).extracted


Agent = Callable[[AgentCase], Program]
"""A function or an object that makes a program for a case."""
