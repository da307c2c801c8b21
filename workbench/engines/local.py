"""What engines share that run in this process: tokens, the context's length, rows of labels."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from workbench.engines.base import BaseEngine, failure
from workbench.engines.chat import ChatOptions, RefusedChatError, chat_text
from workbench.engines.labels import LabelTree, Node, Tokens
from workbench.engines.pieces import Pieces, PieceTokenizer, without_second_bos
from workbench.engines.rendering import rendered
from workbench.engines.requests import Request
from workbench.engines.thinking import Channels, Thinking, thinking_of
from workbench.errors import InputError
from workbench.types import Completion, EngineInfo, LabelRow, Message, Prompt

PATIENT_WITH = 3  # chats that do not end, after which the template is given up


class _PromptError(InputError):
    """One prompt is unusable; others may be fine."""


class LocalEngine(BaseEngine):
    """An engine that has the model's tokenizer; set `_tokenizer` and `_info` before use."""

    _tokenizer: Any
    _info: EngineInfo
    _vocabulary: int  # rows of the embedding: no token may be above
    _chats: ChatOptions
    _endless: int = 0  # chats of which the template found no end

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, of transformers."""
        return self._tokenizer

    @property
    def has_chat(self) -> bool:
        """Whether there is a template for chats: the model's own, or one that was given."""
        return bool(self._chats.chat_template or getattr(self._tokenizer, "chat_template", None))

    @cached_property
    def _of_pieces(self) -> PieceTokenizer:
        return PieceTokenizer(self._tokenizer)

    def _tokens(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        if all(isinstance(prompt, Pieces) for prompt in prompts):
            return self._of_pieces(cast("Sequence[Pieces]", prompts))
        if isinstance(prompts[0], str):
            return self._encoded(cast("Sequence[str]", prompts))
        if not self.has_chat:
            raise InputError(
                f"{Path(self.info.model).name} has no chat template: give texts, or a template as "
                "chat_template=…, a text or a file"
            )
        return self._encoded(self._chat_texts(prompts), special=False)

    def _each(self, prompts: Sequence[Prompt]) -> list[list[int] | str]:
        """The tokens of each prompt, or why it has none.

        Raises:
            InputError: no prompt of this kind has any.
        """
        try:
            return [*self._tokens(prompts)]
        except _PromptError:  # then each alone, which takes longer
            return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: Prompt) -> list[int] | str:
        try:
            return self._tokens([prompt])[0]
        except _PromptError as error:
            return str(error)

    def _encoded(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Tokens of each text.

        Raises:
            InputError: one holds half a character (a lone surrogate), which no text has.
        """
        try:
            found = self._tokenizer(list(texts), add_special_tokens=special, verbose=False)
        except TypeError as error:
            for text in texts:
                try:
                    text.encode()
                except UnicodeEncodeError as reason:
                    said = f"{text!r:.80} is no valid text: {reason.reason}"
                    raise _PromptError(said) from error
            raise
        rows = list(found.input_ids)
        return without_second_bos(self._tokenizer, texts, rows) if special else rows

    def _chat_texts(self, prompts: Sequence[Prompt]) -> list[str]:
        if self._endless >= PATIENT_WITH:
            raise _PromptError(f"the chat template of {self.info.model} never ends: it is broken")
        try:
            return rendered(self._chat_text, prompts)
        except TimeoutError as error:
            self._endless += 1
            raise _PromptError(f"the chat template refuses this chat: {error}") from error

    def _chat_text(self, prompt: Prompt) -> str:
        try:
            return chat_text(self._tokenizer, cast("Sequence[Message]", prompt), self._chats)
        except RefusedChatError as error:
            raise _PromptError(str(error)) from error

    @cached_property
    def _thinking(self) -> Thinking | Channels | None:
        return thinking_of(self._tokenizer)

    def _parted(self, request: Request, row: Completion, prompt: Sequence[int]) -> Completion:
        """An answer to a chat without its thinking, which is kept beside it.

        Structured output has its form from the first token: all of it is the answer.
        """
        asked, marks = request.sampling, self._thinking
        structured = asked.choices or asked.regex or asked.json_schema
        if marks is None or structured or isinstance(request.prompt, str):
            return row
        if isinstance(marks, Channels):
            return marks.part(row, prompt, self._tokenizer, asked.stop)
        begun = marks.start in prompt and marks.begun(self._end_of(request.prompt))
        return marks.part(row, prompt, self._tokenizer, asked.stop, begun=begun)

    def _end_of(self, prompt: Prompt) -> str:
        """What a chat's text has after the last message that is not the model's own."""
        chat = cast("Sequence[Message]", prompt)
        text = self._chat_text(prompt)
        last = [one["content"] for one in chat if one["role"] != "assistant"][-1:]
        return text.rpartition(last[0].strip())[2] if last and last[0].strip() else text

    def _unfit(self, tokens: Sequence[int] | str, more: int) -> str | None:
        """Why a prompt with these tokens and `more` to come cannot be run."""
        if isinstance(tokens, str):
            return tokens
        context = self.info.context_length
        if len(tokens) + more > context:
            return (
                f"the prompt has {len(tokens)} tokens and needs room for {more} more, the context "
                f"of {self.info.model} holds {context}: shorten it or raise max_model_len"
            )
        if max(tokens, default=0) >= self._vocabulary:
            return (
                f"the prompt has token {max(tokens)}, and {self.info.model} has embeddings for "
                f"{self._vocabulary} only: its tokenizer has tokens that the weights lack"
            )
        return None

    def _jobs(
        self, requests: Sequence[Request]
    ) -> tuple[list[tuple[Request, list[int]]], list[tuple[Request, Completion]]]:
        """Requests with their tokens, and the failures of those that do not fit."""
        fit, refused = [], []
        tokens = self._each([request.prompt for request in requests])
        for request, ids in zip(requests, tokens, strict=True):
            reason = self._unfit(ids, 1)
            if reason is None and not isinstance(ids, str):
                fit.append((request, ids))
            else:
                refused.append((request, failure(str(reason), _length(ids))))
        return fit, refused

    def _label_jobs(
        self, prompts: Sequence[Prompt], labels: Sequence[str], width: int
    ) -> tuple[LabelTree, list[tuple[int, Node, list[int]]], list[LabelRow]]:
        """The labels' tree; (prompt's index, node, tokens) to score; prompts that do not fit."""
        ids = self._encoded(labels, special=False)
        tree = LabelTree.build(labels, ids, width)
        jobs, refused = [], []
        for index, prompt in enumerate(self._each(prompts)):
            reason = self._unfit(prompt, tree.depth)
            if reason is None and not isinstance(prompt, str):
                jobs += [(index, node, prompt + list(node.prefix)) for node in tree.nodes]
            else:
                refused.append(LabelRow(index, None, _length(prompt), error=reason))
        return tree, jobs, refused


def _length(tokens: Sequence[int] | str) -> int:
    return 0 if isinstance(tokens, str) else len(tokens)


def label_row(
    index: int,
    tree: LabelTree,
    scores: Mapping[tuple[Tokens, int], float],
    prompt_tokens: int,
    cached_tokens: int | None = 0,
) -> LabelRow:
    """A prompt's row once all its nodes are scored; NaN anywhere is a failure, never a value."""
    if any(math.isnan(score) for score in scores.values()):
        reason = "the model's log-probabilities are not numbers"
        return LabelRow(index, None, prompt_tokens, cached_tokens, reason)
    return LabelRow(index, tree.total(scores), prompt_tokens, cached_tokens)


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of what an engine rests on."""
    return {name: importlib.metadata.version(name) for name in (*packages, "workbench")}
