"""Thinking parted from the answer, by the tokens with which models mark it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.engines.decoding import added_text
from workbench.types import Completion

__all__ = ["Thinking"]

# Of DeepSeek, Qwen, GLM and most others; Mistral; Seed; Cohere; MiniMax; EXAONE.
MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<mm:think>", "</mm:think>"),
    ("<thought>", "</thought>"),
)


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tokens around a model's thinking."""

    start: int
    end: int

    @classmethod
    def of(cls, tokenizer: Any) -> Thinking | None:
        """Those of a tokenizer's vocabulary; None for a model that does not mark its thinking."""
        known = tokenizer.get_vocab()
        for start, end in MARKS:
            if start in known and end in known:
                return cls(known[start], known[end])
        return None

    def part(
        self, completion: Completion, prompt: Sequence[int], tokenizer: Any, stop: Sequence[str]
    ) -> Completion:
        """The answer to a chat, with its thinking in `reasoning`.

        Args:
            prompt: token ids; a template may have begun the thinking, or ended it.
            stop: texts that end an answer.
        """
        made = [*(completion.token_ids or ())]
        begun = self._begun(prompt)
        if completion.error or not (begun or self.start in made or self.end in made):
            return completion
        close = made.index(self.end) if self.end in made else len(made)
        opened = made.index(self.start) if self.start in made[:close] else None
        before, first = ([], 0) if opened is None else (made[:opened], opened + 1)
        reasoning = added_text(tokenizer, prompt, made[first:close])
        answer = added_text(tokenizer, prompt, before) if before else ""
        answer += added_text(tokenizer, made[:close], made[close + 1 :])
        ends = [at for text in stop if (at := answer.find(text)) >= 0]
        return replace(
            completion,
            text=answer[: min(ends)] if ends else answer,
            reasoning=reasoning or None,
        )

    def _begun(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends within the thinking."""
        for token in reversed(prompt):
            if token in (self.start, self.end):
                return bool(token == self.start)
        return False
