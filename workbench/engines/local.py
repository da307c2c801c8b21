"""What engines in this process share: tokens, identity, and label scores from nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from workbench.engines.base import BaseEngine, failure
from workbench.engines.chat import (
    Channels,
    ChatOptions,
    RefusedChatError,
    Thinking,
    chat_text,
    is_structured,
    rendered,
    thinking_of,
)
from workbench.engines.identity import variant
from workbench.engines.requests import Request
from workbench.engines.scoring import Pair
from workbench.engines.source import OURS, Source
from workbench.engines.style import EMBEDDED_STYLE, ends_of, style_by_name, style_by_template
from workbench.engines.tokens import (
    LabelCollector,
    LabelTree,
    Node,
    NodeScores,
    SegmentedPrompt,
    SegmentTokenizer,
    TokenPrompt,
    without_second_bos,
)
from workbench.errors import InputError
from workbench.messages import refuse_images, text_of
from workbench.store import Store, digest
from workbench.types import Completion, EngineInfo, LabelRow, Message, Prompt, PromptStyle

NodeJob = tuple[int, Node, list[int]]  # a prompt's index, a node, the prompt's tokens
MOST_ENDLESS = 3  # endless chats after which the template is no longer tried


class _PromptError(InputError):
    """One prompt is unusable; others may be usable."""


class LocalEngine(BaseEngine):
    """An engine with the model's tokenizer; set the four attributes below before `__init__`."""

    _tokenizer: Any
    _vocabulary: int  # rows of the embedding: token ids must be below
    _chats: ChatOptions
    _weights: str  # of `Source.weights`
    _label_width: int = 2**31  # maximum number of a node's children
    _endless: int = 0  # chats so far for which the template did not end

    def __init__(
        self,
        source: Source,
        store: Store | None,
        commit: str | None,
        *,
        decisive: Mapping[str, Any],
        identity: Mapping[str, Any],
        **about: Any,
    ) -> None:
        """Set the engine up once its model is loaded.

        Args:
            commit: the hub's commit of the loaded model; None if unknown.
            decisive: the options that are `deciding`.
            identity: what affects an answer besides weights, number format and chat template.
            about: further fields of `EngineInfo`.
        """
        self._source = source
        revision = self._weights if source.folder else commit
        shown = revision[:12] if revision else "unknown"
        info = EngineInfo(model=source.shown, revision=shown, **about)
        whole = {
            "weights": [self._weights, revision],
            "dtype": info.dtype,
            "template": digest(getattr(self._tokenizer, "chat_template", None)).hex(),
            **identity,
        }
        name = variant(revision, info.dtype, decisive) if revision else ""
        super().__init__(info, whole, store, name)
        if not revision:
            self._store_nothing(f"the hub's commit of {source.shown} is unknown")

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, from transformers."""
        return self._tokenizer

    @property
    def has_chat(self) -> bool:
        """Whether there is a chat template, the model's or the caller's."""
        return bool(self._chats.chat_template or getattr(self._tokenizer, "chat_template", None))

    def suited_style(self) -> tuple[PromptStyle, str]:
        """See `style.chosen_style`."""
        if not self.has_chat:
            return "completion", "the model has no chat template"
        if self._source.folder in OURS.values():
            return "completion", EMBEDDED_STYLE
        style, why = style_by_name(self._source.shown)
        if style is not None:
            return style, why
        ends = ends_of(self._source.folder, self._source.name)
        return style_by_template(self._tokenizer, self._chats.chat_template, ends)

    @cached_property
    def _segment_tokenizer(self) -> SegmentTokenizer:
        return SegmentTokenizer(self._tokenizer)

    def _tokens(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        if all(isinstance(prompt, SegmentedPrompt) for prompt in prompts):
            return self._segment_tokenizer(cast("Sequence[SegmentedPrompt]", prompts))
        if any(isinstance(prompt, TokenPrompt) for prompt in prompts):
            return [
                [*prompt.ids] if isinstance(prompt, TokenPrompt) else self._tokens([prompt])[0]
                for prompt in prompts
            ]
        if isinstance(prompts[0], str):
            return self._encoded(cast("Sequence[str]", prompts))
        if not self.has_chat:
            raise InputError(
                f"{Path(self.info.model).name} has no chat template: use texts, or set a template "
                "as chat_template=…, a text or a file"
            )
        for prompt in prompts:
            refuse_images(prompt, f"engine={self.info.engine!r} reads texts only")
        return self._encoded(self._chat_texts(prompts), special=False)

    def count_tokens(self, prompts: Sequence[Prompt]) -> tuple[list[int], bool]:
        """Counts by the model's tokenizer; 0 for a prompt that cannot be tokenised."""
        return [0 if isinstance(ids, str) else len(ids) for ids in self._each(prompts)], True

    def _each(self, prompts: Sequence[Prompt]) -> list[list[int] | str]:
        """The tokens of each prompt, or the reason why it has none."""
        try:
            return [*self._tokens(prompts)]
        except _PromptError as error:
            if len(prompts) == 1:
                return [str(error)]
            return [self._each([prompt])[0] for prompt in prompts]  # one by one, which is slower

    def _encoded(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Tokens of each text."""
        try:
            rows = self._tokenizer(list(texts), add_special_tokens=special, verbose=False).input_ids
        except TypeError as error:
            for text in texts:
                try:
                    text.encode()
                except UnicodeEncodeError as reason:
                    refusal = f"{text!r:.80} is not valid text: {reason.reason}"
                    raise _PromptError(refusal) from error
            raise
        return without_second_bos(self._tokenizer, texts, rows) if special else list(rows)

    def _chat_texts(self, prompts: Sequence[Prompt]) -> list[str]:
        if self._endless >= MOST_ENDLESS:
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

    def _without_thinking(
        self, request: Request, row: Completion, prompt: Sequence[int]
    ) -> Completion:
        """An answer to a chat, with its thinking moved to `reasoning`.

        Structured output begins at the first token: all of it is the answer.
        """
        sampling, marks = request.sampling, self._thinking
        if marks is None or is_structured(sampling) or isinstance(request.prompt, str):
            return row
        if isinstance(marks, Channels):
            return marks.split(row, prompt, self._tokenizer, sampling.stop)
        is_open = self._is_open(marks, request.prompt, prompt)
        return marks.split(row, prompt, self._tokenizer, sampling.stop, is_open=is_open)

    def _is_open(self, marks: Thinking, prompt: Prompt, ids: Sequence[int]) -> bool:
        """Whether a chat ends inside thinking: after the last message that is not the model's."""
        if marks.start not in ids:
            return False
        chat, text = cast("Sequence[Message]", prompt), self._chat_text(prompt)
        last = [text_of(one["content"]) for one in chat if one["role"] != "assistant"][-1:]
        end = text.rpartition(last[0].strip())[2] if last and last[0].strip() else text
        return marks.leaves_open(end)

    def _unfit(self, tokens: Sequence[int] | str, more: int) -> str | None:
        """Why a prompt with these tokens and `more` after them cannot run; None if it can."""
        if isinstance(tokens, str):
            return tokens
        context = self.info.context_length
        if len(tokens) + more > context:
            return (
                f"the prompt has {len(tokens)} tokens and needs room for {more} more, but the "
                f"context of {self.info.model} holds {context}: shorten it or raise max_model_len"
            )
        if max(tokens, default=0) >= self._vocabulary:
            return (
                f"the prompt has token {max(tokens)}, but {self.info.model} has embeddings for "
                f"only {self._vocabulary} tokens: its tokenizer has more than its weights"
            )
        return None

    def _jobs(
        self, requests: Sequence[Request]
    ) -> tuple[list[tuple[Request, list[int]]], list[tuple[Request, Completion]]]:
        """Requests with their tokens, and the failures of those that do not fit."""
        prompts = [request.prompt for request in requests]
        fit, refused = self._fitting(prompts, [1] * len(prompts))
        failed = [(requests[r.index], failure(str(r.error), r.prompt_tokens)) for r in refused]
        return [(requests[index], ids) for index, ids in fit.items()], failed

    def _score_nodes(self, jobs: Sequence[NodeJob]) -> Iterator[list[NodeScores]]:
        """The scores of each job's node, in any order."""
        raise self._only_labels(len(jobs))

    def _score(
        self, prompts: Sequence[Prompt], labels: Sequence[tuple[str, ...]]
    ) -> Iterator[list[LabelRow]]:
        trees = self._trees(labels, chains=True)
        fit, refused = self._fitting(prompts, [tree.depth for tree in trees])
        if refused:
            yield refused
        collector = LabelCollector(trees)
        jobs = [(index, node, ids) for index, ids in fit.items() for node in trees[index].nodes]
        for batch in self._score_nodes(jobs):
            yield [row for one in batch for row in collector.add(one)]

    def _trees(self, labels: Sequence[tuple[str, ...]], *, chains: bool) -> list[LabelTree]:
        """A tree per prompt; equal lists of labels share one."""
        width = self._label_width
        texts = [*dict.fromkeys(label for own in dict.fromkeys(labels) for label in own)]
        ids = dict(zip(texts, self._label_tokens(texts), strict=True))
        trees = {
            own: LabelTree.build(own, [ids[label] for label in own], width, chains=chains)
            for own in dict.fromkeys(labels)
        }
        return [trees[own] for own in labels]

    def _label_tokens(self, labels: Sequence[str]) -> list[list[int]]:
        return self._encoded(labels, special=False)

    def _score_tokens(self, pairs: Sequence[Pair]) -> Iterator[list[LabelRow]]:
        jobs, refused = [], []
        for index, (before, after) in enumerate(pairs):
            reason = self._unfit([*before, *after[:-1]], 1) or self._unfit(after, 0)
            if reason is None:
                jobs.append((index, Node((), tuple(after), chain=True), [*before]))
            else:
                refused.append(LabelRow(index, None, len(before), error=reason))
        if refused:
            yield refused
        for batch in self._score_nodes(jobs):
            yield [_token_row(one) for one in batch]

    def _text_tokens(self, texts: Sequence[str]) -> tuple[list[list[int] | str], int]:
        ends = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        if (first := next((one for one in ends if one is not None), None)) is None:
            raise InputError(
                f"the tokenizer of {self.info.model} has no token that begins or ends a text: "
                "the first token of a text cannot be scored"
            )
        found: list[list[int] | str] = []
        for text in texts:
            try:
                (ids,) = self._encoded([text], special=False)
                found.append(ids or f"{text!r:.80} has no tokens in this model's vocabulary")
            except _PromptError as error:
                found.append(str(error))
        return found, int(first)

    def _fitting(
        self, prompts: Sequence[Prompt], depths: Sequence[int]
    ) -> tuple[dict[int, list[int]], list[LabelRow]]:
        """Tokens by index of prompts with room for their labels; failed rows of the others."""
        fit, refused = {}, []
        for index, ids in enumerate(self._each(prompts)):
            reason = self._unfit(ids, depths[index])
            if reason is None and not isinstance(ids, str):
                fit[index] = ids
            else:
                sent = 0 if isinstance(ids, str) else len(ids)
                refused.append(LabelRow(index, None, sent, error=reason))
        return fit, refused


def _token_row(one: NodeScores) -> LabelRow:
    error = one.scores if isinstance(one.scores, str) else None
    scores = None if isinstance(one.scores, str) else tuple(one.scores)
    if scores and any(map(math.isnan, scores)):
        error, scores = "the model's log-probabilities are not numbers", None
    return LabelRow(one.index, scores, one.sent, one.cached, error, greedy=one.greedy)
