"""Thinking parted from the answer, by the tokens with which models mark it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.engines.decoding import added_text
from workbench.types import Completion

LABEL = "thought\n"  # what Gemma 4 calls its thinking, within the marks
# Of DeepSeek, Qwen, GLM and most others; Mistral; Seed; Cohere; MiniMax; EXAONE; Gemma 4.
MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<mm:think>", "</mm:think>"),
    ("<thought>", "</thought>"),
    ("<|channel>", "<channel|>"),
)
CHANNELS = ("<|channel|>", "<|message|>", "<|end|>")  # of gpt-oss


def thinking_of(tokenizer: Any) -> Thinking | Channels | None:
    """How a model marks its thinking, by its vocabulary; None for one that does not."""
    known = tokenizer.get_vocab()
    if all(mark in known for mark in CHANNELS):
        return Channels(*(known[mark] for mark in CHANNELS))
    for start, end in MARKS:
        if start in known and end in known:
            return Thinking(known[start], known[end], start, end)
    return None


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tokens around a model's thinking."""

    start: int
    end: int
    opening: str
    closing: str

    def begun(self, text: str) -> bool:
        """Whether a text, such as a prompt's end, leaves the thinking open."""
        return text.rfind(self.opening) > text.rfind(self.closing)

    def part(
        self,
        completion: Completion,
        prompt: Sequence[int],
        tokenizer: Any,
        stop: Sequence[str],
        *,
        begun: bool = False,
    ) -> Completion:
        """The answer to a chat, with its thinking in `reasoning`.

        Args:
            prompt: token ids.
            stop: texts that end an answer.
            begun: the prompt ends within the thinking, as some templates have it.
        """
        made = [*(completion.token_ids or ())]
        if completion.error or not (begun or self.start in made or self.end in made):
            return completion
        close = made.index(self.end) if self.end in made else len(made)
        opened = made.index(self.start) if self.start in made[:close] else None
        before, first = ([], 0) if opened is None else (made[:opened], opened + 1)
        reasoning = added_text(tokenizer, prompt, made[first:close])
        answer = added_text(tokenizer, prompt, before) if before else ""
        answer += added_text(tokenizer, made[:close], made[close + 1 :])
        return _with(completion, answer, reasoning.removeprefix(LABEL), stop)


@dataclass(frozen=True, slots=True)
class Channels:
    """The tokens of answers in channels: before a name, a message, and after it."""

    start: int
    message: int
    end: int

    def part(
        self, completion: Completion, prompt: Sequence[int], tokenizer: Any, stop: Sequence[str]
    ) -> Completion:
        """As `Thinking.part`; what is in other channels, or in none, is thinking."""
        made = [*(completion.token_ids or ())]
        if completion.error or self.start not in made:
            return completion
        answer, thoughts = "", list[str]()
        for name, ids in self._messages(made, tokenizer):
            text = added_text(tokenizer, prompt, ids)
            if name.startswith("final"):
                answer += text
            else:
                thoughts.append(text)
        return _with(completion, answer, "\n".join(thoughts), stop)

    def _messages(self, made: list[int], tokenizer: Any) -> Iterator[tuple[str, list[int]]]:
        """(channel's name, tokens of its message) one after the other."""
        starts = [at for at, token in enumerate(made) if token == self.start]
        for start, after in zip(starts, [*starts[1:], len(made)], strict=True):
            ids = made[start + 1 : after]
            if self.message in ids:
                cut = ids.index(self.message)
                text = ids[cut + 1 :]
                ended = text.index(self.end) if self.end in text else len(text)
                yield tokenizer.decode(ids[:cut]).strip(), text[:ended]


def _with(completion: Completion, answer: str, reasoning: str, stop: Sequence[str]) -> Completion:
    ends = [at for text in stop if (at := answer.find(text)) >= 0]
    return replace(
        completion, text=answer[: min(ends)] if ends else answer, reasoning=reasoning or None
    )
