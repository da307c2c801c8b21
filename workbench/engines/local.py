"""What engines share that run in this process: tokens, the context's length, rows of labels."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from workbench.engines.base import BaseEngine, Request, failure
from workbench.engines.labels import LabelTree, Node, Tokens
from workbench.engines.pieces import Pieces, PieceTokenizer
from workbench.errors import InputError
from workbench.types import Completion, EngineInfo, LabelRow, Prompt

__all__ = ["LocalEngine", "label_row", "versions"]


class LocalEngine(BaseEngine):
    """An engine that has the model's tokenizer; set `_tokenizer` and `_info` before use."""

    _tokenizer: Any
    _info: EngineInfo

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, of transformers."""
        return self._tokenizer

    @cached_property
    def _of_pieces(self) -> PieceTokenizer:
        return PieceTokenizer(self._tokenizer)

    def _tokens(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        if all(isinstance(prompt, Pieces) for prompt in prompts):
            return self._of_pieces(cast("Sequence[Pieces]", prompts))
        if isinstance(prompts[0], str):
            return self._encoded(cast("Sequence[str]", prompts))
        if not getattr(self._tokenizer, "chat_template", None):
            raise InputError(
                f"{self.info.model} has no chat template: give texts, or pass one as "
                'a file in the model folder ("chat_template.jinja")'
            )
        texts = [self._chat_text(index, prompt) for index, prompt in enumerate(prompts)]
        return self._encoded(texts, special=False)

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
                    raise InputError(f"{text!r:.80} is no valid text: {reason.reason}") from error
            raise
        return list(found.input_ids)

    def _chat_text(self, index: int, prompt: Prompt) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise InputError(f"the chat template refuses chat {index}: {error}") from error
        return text

    def _too_long(self, tokens: int, more: int) -> str | None:
        context = self.info.context_length
        if tokens + more <= context:
            return None
        return (
            f"the prompt has {tokens} tokens and needs room for {more} more, the context of "
            f"{self.info.model} holds {context}: shorten it or raise max_model_len"
        )

    def _jobs(
        self, requests: Sequence[Request]
    ) -> tuple[list[tuple[Request, list[int]]], list[tuple[Request, Completion]]]:
        """Requests with their tokens, and the failures of those that do not fit."""
        fit, refused = [], []
        tokens = self._tokens([request.prompt for request in requests])
        for request, ids in zip(requests, tokens, strict=True):
            reason = self._too_long(len(ids), 1)
            if reason is None:
                fit.append((request, ids))
            else:
                refused.append((request, failure(reason, len(ids))))
        return fit, refused

    def _label_jobs(
        self, prompts: Sequence[Prompt], labels: Sequence[str], width: int
    ) -> tuple[LabelTree, list[tuple[int, Node, list[int]]], list[LabelRow]]:
        """The labels' tree; (prompt's index, node, tokens) to score; prompts that do not fit."""
        ids = self._encoded(labels, special=False)
        tree = LabelTree.build(labels, ids, width)
        jobs, refused = [], []
        for index, prompt in enumerate(self._tokens(prompts)):
            reason = self._too_long(len(prompt), tree.depth)
            if reason is None:
                jobs += [(index, node, prompt + list(node.prefix)) for node in tree.nodes]
            else:
                refused.append(LabelRow(index, None, len(prompt), error=reason))
        return tree, jobs, refused


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
