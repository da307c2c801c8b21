"""What all engines share in scoring: labels after prompts, tokens after tokens, whole texts.

A long text is scored in windows as lm-evaluation-harness does (`get_rolling_token_windows` with one
token of context, disjoint): each token is predicted once, from the tokens before it in its window.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from workbench import values
from workbench.engines import requests
from workbench.engines.frames import FrameEngine
from workbench.errors import InputError
from workbench.lazy import np
from workbench.store import digest
from workbench.types import (
    EngineInfo,
    Errors,
    LabelRow,
    Labels,
    LabelScores,
    Prompt,
    TextScores,
    TokenScores,
)

if TYPE_CHECKING:
    from workbench.engines.base import BaseEngine

Tokens = Sequence[int]
Pair = tuple[Tokens, Tokens]  # token ids: a context, and its continuation
SPARE = 2  # tokens of the context that a window leaves: its first context token, one generated


class ScoringEngine(FrameEngine, ABC):
    """An engine's methods for log-probabilities, over `_score` and `_score_tokens`."""

    _identity: bytes

    if TYPE_CHECKING:

        @property
        def info(self) -> EngineInfo: ...
        def _check_open(self) -> None: ...
        def _answered(
            self,
            what: str,
            keys: list[bytes],
            work: Callable[[BaseEngine, list[bytes]], Iterator[list[Any]]],
        ) -> Generator[tuple[bytes, Any], None, None]: ...

    @abstractmethod
    def _score(
        self, prompts: Sequence[Prompt], labels: Sequence[tuple[str, ...]]
    ) -> Iterator[list[LabelRow]]:
        """Rows in any order; `index` is the position in `prompts`, which has labels for each."""

    def _score_tokens(self, pairs: Sequence[Pair]) -> Iterator[list[LabelRow]]:
        """Rows in any order, with the log-probability of each token of a continuation."""
        raise self._only_labels(len(pairs))

    def _text_tokens(self, texts: Sequence[str]) -> tuple[list[list[int] | str], int]:
        """Each text's tokens, or why it has none; and the token before a text's first."""
        raise self._only_labels(len(texts))

    def _only_labels(self, count: int) -> InputError:
        return InputError(
            f"the {self.info.engine} engine scores labels only, not the tokens of {count:,} texts: "
            'this needs engine="vllm" or engine="transformers"'
        )

    def label_logprobs(
        self, prompts: Iterable[Prompt], labels: Labels, *, errors: Errors = "raise"
    ) -> LabelScores:
        """Log-probability of each whole label as the continuation of each prompt.

        The tokens are those of the prompt, then those of the label alone; a leading space is the
        caller's choice. Natural logarithm over the full vocabulary, exact at any rank. A prompt is
        computed once for all of its labels.

        Args:
            prompts: texts or lists of messages.
            labels: one list for all prompts, or a list per prompt, which may differ in length.
            errors: "raise" raises after all that can finish is finished and stored; "return"
                returns failed rows too, with their reason.

        Returns:
            `LabelScores` with arrays [n_prompts, n_labels]; its `per` divides by length.

        Raises:
            InputError: no prompts, an empty or missing prompt or label, two equal labels, or not
                as many lists of labels as prompts.
            EngineError: some prompts failed (with `errors="raise"`).
        """
        requests.check_errors(errors)
        prompts = requests.check_prompts(prompts)
        each = requests.labels_per_prompt(labels, len(prompts))
        scores = requests.gather_labels(self.stream_labels(prompts, each), each)
        if errors == "raise":
            requests.raise_failures(scores.errors, scores)
        return scores

    def stream_labels(
        self, prompts: Iterable[Prompt], labels: Labels
    ) -> Generator[LabelRow, None, None]:
        """As `label_logprobs`, one row at a time; `index` is the position in `prompts`.

        Raises:
            InputError: at once, as for `label_logprobs`.
        """
        self._check_open()
        prompts = requests.check_prompts(prompts)
        return self._stream_labels(prompts, requests.labels_per_prompt(labels, len(prompts)))

    def _stream_labels(
        self, prompts: Sequence[Prompt], labels: Sequence[tuple[str, ...]]
    ) -> Generator[LabelRow, None, None]:
        keys = self._label_keys(prompts, labels)
        unique = dict(zip(keys, zip(prompts, labels, strict=True), strict=True))

        def work(engine: BaseEngine, keys: list[bytes]) -> Iterator[list[LabelRow]]:
            asked = [unique[key] for key in keys]
            return engine._score([prompt for prompt, _ in asked], [own for _, own in asked])

        yield from self._each_row("label_logprobs", keys, work)

    def _each_row(
        self,
        what: str,
        keys: Sequence[bytes],
        work: Callable[[BaseEngine, list[bytes]], Iterator[list[LabelRow]]],
    ) -> Generator[LabelRow, None, None]:
        """A row for each key, in any order; equal keys are computed once."""
        self._check_open()
        places: dict[bytes, list[int]] = {}
        for index, key in enumerate(keys):
            places.setdefault(key, []).append(index)
        with closing(self._answered(what, [*places], work)) as rows:
            for key, row in rows:
                yield from (replace(row, index=index) for index in places.pop(key))

    def _label_keys(
        self, prompts: Sequence[Prompt], labels: Sequence[Sequence[str]]
    ) -> list[bytes]:
        whose = self._identity.hex()
        pairs = zip(prompts, labels, strict=True)
        return [digest(whose, "labels", prompt, list(own)) for prompt, own in pairs]

    def score_tokens(self, pairs: Iterable[Pair], *, errors: Errors = "raise") -> list[TokenScores]:
        """Log-probability of each token of continuations, after contexts, all as token ids.

        Contexts that pairs share are computed once. This is what lm-evaluation-harness calls
        `loglikelihood`, after tokenisation; `engine.tokenizer` makes the ids.

        Raises:
            InputError: an engine without tokens, or a pair that is not two non-empty lists of ids.
            EngineError: some failed (with `errors="raise"`).
        """
        requests.check_errors(errors)
        checked = [*map(_checked, pairs)]
        rows = [TokenScores(None, greedy=False)] * len(checked)
        for row in self._token_rows("score_tokens", checked):
            rows[row.index] = TokenScores(row.logprobs, bool(row.greedy), row.error)
        if errors == "raise":
            requests.raise_failures([row.error for row in rows], rows)
        return rows

    def _token_rows(self, what: str, pairs: Sequence[Pair]) -> Generator[LabelRow, None, None]:
        whose = self._identity.hex()
        keys = [digest(whose, "tokens", *map(list, pair)) for pair in pairs]
        unique = dict(zip(keys, pairs, strict=True))

        def work(engine: BaseEngine, keys: list[bytes]) -> Iterator[list[LabelRow]]:
            return engine._score_tokens([unique[key] for key in keys])

        yield from self._each_row(what, keys, work)

    def score_texts(self, texts: Iterable[str], *, errors: Errors = "raise") -> TextScores:
        """Log-probability of each whole text, for perplexity and bits per byte.

        A text's tokens are those of the tokenizer without special tokens. Its first token follows
        the model's token for the beginning of a text (if there is none, that for its end). A text
        that is longer than the context less two tokens is scored in windows of that length.

        Raises:
            InputError: no texts, an empty or missing text, or an engine that cannot do it.
            EngineError: some failed (with `errors="raise"`).
        """
        requests.check_errors(errors)
        given = requests.check_prompts(texts)
        for index, text in enumerate(given):
            if not isinstance(text, str):
                raise InputError(f"text {index} is {text!r:.80}: it must be a text, not a chat")
        plain = [str(text) for text in given]
        tokens, first = self._text_tokens(plain)
        size = self.info.context_length - SPARE
        windows = [
            () if isinstance(ids, str) else tuple(rolled([first], ids, size)) for ids in tokens
        ]
        scores = self._gathered(plain, tokens, windows)
        if errors == "raise":
            requests.raise_failures(scores.errors, scores)
        return scores

    def _gathered(
        self,
        texts: Sequence[str],
        tokens: Sequence[list[int] | str],
        windows: Sequence[tuple[Pair, ...]],
    ) -> TextScores:
        """Score all windows in one call, and put each text's together."""
        pairs = [pair for own in windows for pair in own]
        rows = {row.index: row for row in self._token_rows("score_texts", pairs)} if pairs else {}
        found = (rows[place] for place in range(len(pairs)))
        each: list[tuple[float, ...]] = []
        reasons: list[str | None] = []
        for ids, own in zip(tokens, windows, strict=True):
            parts = [*islice(found, len(own))]
            why = ids if isinstance(ids, str) else next((p.error for p in parts if p.error), None)
            reasons.append(why)
            each.append(() if why else tuple(x for part in parts for x in part.logprobs or ()))
        pairs_of = zip(each, reasons, strict=True)
        return TextScores(
            np.array([-math.inf if why else math.fsum(one) for one, why in pairs_of]),
            np.array([0 if isinstance(ids, str) else len(ids) for ids in tokens]),
            np.array([len(text.encode("utf-8", "replace")) for text in texts]),
            tuple(each),
            tuple(reasons),
        )


def rolled(first: list[int], tokens: list[int], size: int) -> Iterator[Pair]:
    """Windows of at most `size` tokens: (context, continuation), as lm-evaluation-harness.

    The first window's context is `first`. A later one has the tokens before its continuation as
    context, at least one, so that all but the last window are full.
    """
    yield first, tokens[:size]
    for start in range(size, len(tokens), size):
        end = min(start + size, len(tokens))
        yield tokens[end - size - 1 : start], tokens[start:end]


def _checked(pair: Pair) -> Pair:
    try:
        before, after = ([int(i) for i in one] for one in pair)
    except (TypeError, ValueError):
        values.refuse("pair", pair, "(context, continuation), two lists of token ids")
    if not before or not after or min(*before, *after) < 0:
        values.refuse("pair", pair, "two non-empty lists of token ids from 0")
    return before, after
