"""What every engine has in common: checks, the store, order, samples, usage, progress, errors.

An engine adds two methods: `_complete` turns `Request`s into completions as they finish, `_score`
turns prompts and labels into rows of log-probabilities. Both may yield failures as data.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from workbench.engines.meter import Meter
from workbench.errors import EngineError, InputError
from workbench.store import BATCH, Store, digest
from workbench.types import (
    Completion,
    EngineInfo,
    Errors,
    LabelScores,
    Prompt,
    Sampling,
    TokenLogprob,
    Usage,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BaseEngine", "LabelRow", "Request"]

log = logging.getLogger("workbench")
GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to compute: `seed` is already this sample's own."""

    key: bytes
    prompt: Prompt
    sampling: Sampling
    seed: int | None


@dataclass(frozen=True, slots=True)
class LabelRow:
    """Scores of all labels for the prompt at `index`, or why there are none."""

    index: int
    logprobs: tuple[float, ...] | None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None


class BaseEngine(ABC):
    """Implements the `Engine` protocol over `_complete` and `_score`."""

    def __init__(self, info: EngineInfo, identity: dict[str, Any], store: Store | None) -> None:
        self._info = info
        self._identity = digest(identity)
        self._store = store
        self._meter = Meter(info)
        self._closed = False

    @abstractmethod
    def _complete(
        self, requests: Sequence[Request]
    ) -> Iterator[list[tuple[Request, Completion]]]: ...

    @abstractmethod
    def _score(self, prompts: Sequence[Prompt], labels: Sequence[str]) -> Iterator[list[LabelRow]]:
        """Rows in any order; `index` counts within `prompts`."""

    @abstractmethod
    def _free(self) -> None:
        """Give back what the engine holds."""

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        self._closed = True
        self._free()
        if self._store is not None:
            self._store.close()

    @property
    def has_store(self) -> bool:
        """Whether responses are kept, and answered from there."""
        return self._store is not None

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("this engine is closed; call open_engine(…) again")

    @property
    def info(self) -> EngineInfo:
        """What answers, and why it was chosen."""
        return self._info

    @property
    def usage(self) -> Usage:
        """What has been done since the engine was opened."""
        return self._meter.usage()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        info = self._info
        return f"<{info.engine} engine: {info.model} on {info.device}, {info.dtype}>"

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling = GREEDY,
        *,
        errors: Errors = "raise",
    ) -> list[Completion]:
        """Complete all prompts; the result has their order.

        Args:
            prompts: texts (sent as they are) or lists of messages (through the chat template).
            sampling: how to continue each of them.
            errors: "raise" finishes and stores all that can finish, then raises; "return"
                leaves failed rows in place, with their reason.

        Raises:
            InputError: the prompts are unusable as a whole (none, empty, mixed).
            EngineError: some failed; its `results` holds all rows.
        """
        _check_errors(errors)
        finished = dict(self.stream(prompts, sampling))
        rows = [finished[index] for index in range(len(prompts))]
        if errors == "raise":
            _raise_failures([row.error for row in rows], rows)
        return rows

    def stream(
        self, prompts: Sequence[Prompt], sampling: Sampling = GREEDY
    ) -> Generator[tuple[int, Completion], None, None]:
        """Yield (index, completion) as prompts finish; failed ones carry their reason.

        Raises:
            InputError: at once, as for `generate`.
        """
        self._check_open()
        check_prompts(prompts)
        if not isinstance(sampling, Sampling):
            raise InputError(f"sampling={sampling!r} must be a workbench.Sampling")
        return self._stream(prompts, sampling)

    def _stream(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> Generator[tuple[int, Completion], None, None]:
        self._check_open()
        slots: dict[bytes, list[tuple[int, int]]] = {}
        requests: dict[bytes, Request] = {}
        for request, index, sample in _plan(prompts, sampling, self._identity):
            slots.setdefault(request.key, []).append((index, sample))
            requests[request.key] = request
        open_rows: dict[int, dict[int, Completion]] = {}

        def deliver(key: bytes, completion: Completion) -> Iterator[tuple[int, Completion]]:
            for index, sample in slots.pop(key):
                row = open_rows.setdefault(index, {})
                row[sample] = completion
                if len(row) == sampling.n:
                    yield index, _gather(open_rows.pop(index))

        with self._meter.call("generate", len(requests)) as call:
            for found in self._stored(list(requests)):
                call.add_stored(len(found))
                for key, value in found.items():
                    del requests[key]
                    yield from deliver(key, _load(value))
            for batch in self._complete(list(requests.values())) if requests else ():
                self._keep((r.key, _dump(c)) for r, c in batch if c.error is None)
                call.add(completion for _, completion in batch)
                for request, completion in batch:
                    yield from deliver(request.key, completion)

    def label_logprobs(
        self, prompts: Sequence[Prompt], labels: Sequence[str], *, errors: Errors = "raise"
    ) -> LabelScores:
        """Log-probability of each whole label as the continuation of each prompt.

        Tokens are those of the prompt followed by those of the label alone; a leading space is
        the caller's choice. Natural logarithm over the full vocabulary, exact at any rank.

        Returns:
            `LabelScores` with arrays [n_prompts, n_labels].

        Raises:
            InputError: no prompts, an empty prompt or label, or two equal labels.
            EngineError: some prompts failed (with `errors="raise"`).
        """
        import numpy as np

        self._check_open()
        check_prompts(prompts)
        _check_labels(labels)
        _check_errors(errors)
        logprobs = np.full((len(prompts), len(labels)), -np.inf)
        reasons: list[str | None] = [None] * len(prompts)
        keys = [digest(self._identity.hex(), "labels", p, list(labels)) for p in prompts]
        with self._meter.call("label_logprobs", len(prompts)) as call:
            done: dict[bytes, Any] = {}
            for found in self._stored(keys):
                done.update(found)
            missing = [i for i, key in enumerate(keys) if key not in done]
            call.add_stored(len(prompts) - len(missing))
            for i, key in enumerate(keys):
                if key in done:
                    logprobs[i] = done[key]
            for batch in self._score([prompts[i] for i in missing], labels) if missing else ():
                self._keep((keys[missing[r.index]], r.logprobs) for r in batch if r.logprobs)
                call.add_rows(batch)
                for row in batch:
                    reasons[missing[row.index]] = row.error
                    if row.logprobs:
                        logprobs[missing[row.index]] = row.logprobs
        scores = _scores(logprobs, tuple(reasons))
        if errors == "raise":
            _raise_failures(reasons, scores)
        return scores

    def _stored(self, keys: Sequence[bytes]) -> Iterator[dict[bytes, Any]]:
        if self._store is not None:
            for start in range(0, len(keys), BATCH):
                yield self._store.get(keys[start : start + BATCH])

    def _keep(self, rows: Iterator[tuple[bytes, Any]]) -> None:
        if self._store is not None:
            self._check_open()
            self._store.put(rows)


def _plan(
    prompts: Sequence[Prompt], sampling: Sampling, identity: bytes
) -> Iterator[tuple[Request, int, int]]:
    """(request, prompt index, sample index) for every sample.

    Greedy duplicates share one key, so they are computed once. The k-th copy of a prompt that is
    sampled takes the sample indices from k·n on, so that copies differ as samples do.
    """
    base = hashlib.sha256(identity + digest(sampling.canonical()))
    single = replace(sampling, n=1, seed=None)
    copies: Counter[str] = Counter()
    for index, prompt in enumerate(prompts):
        text = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
        first = 0
        if sampling.temperature > 0:
            first = copies[text] * sampling.n
            copies[text] += 1
        for sample in range(sampling.n):
            seed = None
            if sampling.seed is not None and sampling.temperature > 0:
                seed = int.from_bytes(digest(sampling.seed, text, first + sample)[:7], "big")
            key = base.copy()
            key.update(f"{seed}/{first + sample}/{text}".encode("utf-8", "surrogatepass"))
            yield Request(key.digest(), prompt, single, seed), index, sample


def _gather(row: dict[int, Completion]) -> Completion:
    if len(row) == 1:
        return row[0]
    samples = tuple(row[i] for i in range(len(row)))
    failed = next((s.error for s in samples if s.error), None)
    return replace(samples[0], error=failed, _samples=samples)


def _dump(completion: Completion) -> dict[str, Any]:
    return {
        "text": completion.text,
        "finish": completion.finish_reason,
        "ids": completion.token_ids,
        "logprobs": completion.logprobs
        and [(t.token_id, t.logprob, t.top) for t in completion.logprobs],
        "prompt": completion.prompt_tokens,
        "completion": completion.completion_tokens,
    }


def _load(value: dict[str, Any]) -> Completion:
    logprobs = value["logprobs"]
    return Completion(
        text=value["text"],
        finish_reason=value["finish"],
        token_ids=None if value["ids"] is None else tuple(value["ids"]),
        logprobs=None
        if logprobs is None
        else tuple(TokenLogprob(i, p, tuple((j, q) for j, q in top)) for i, p, top in logprobs),
        prompt_tokens=value["prompt"],
        completion_tokens=value["completion"],
        from_store=True,
    )


def _scores(logprobs: NDArray[np.float64], errors: tuple[str | None, ...]) -> LabelScores:
    import numpy as np

    missing = np.zeros(logprobs.shape, dtype=np.bool_)
    missing[[error is not None for error in errors]] = True
    upper = np.where(missing, 0.0, logprobs)
    return LabelScores(logprobs, upper, missing, errors)


def _raise_failures(reasons: Sequence[str | None], results: object) -> None:
    failed = [(i, reason) for i, reason in enumerate(reasons) if reason is not None]
    if failed:
        index, reason = failed[0]
        raise EngineError(
            f"{len(failed)} of {len(reasons)} prompts failed; the others are finished. "
            f'First, prompt {index}: {reason}. errors="return" gives all rows with their reasons',
            results=results,
        )


def _check_errors(errors: object) -> None:
    if errors not in ("raise", "return"):
        raise InputError(f'errors={errors!r} must be "raise" or "return"')


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that are unusable as a whole.

    Raises:
        InputError: not a list, empty, an empty or malformed prompt, or texts mixed with chats.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise InputError(f"prompts={prompts!r:.80} must be a list of prompts: [prompt]")
    if not prompts:
        raise InputError("prompts is empty: give at least one prompt")
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if not prompt:
                raise InputError(f"prompt {index} is empty: a model needs some text to continue")
        else:
            _check_chat(index, prompt)
    if len({isinstance(prompt, str) for prompt in prompts}) == 2:
        raise InputError(
            "prompts mixes texts and chats: make two calls, or write the texts as "
            '[{"role": "user", "content": text}]'
        )


def _check_chat(index: int, prompt: object) -> None:
    need = 'a non-empty text or a list of {"role": ..., "content": ...}'
    if not isinstance(prompt, Sequence) or not prompt:
        raise InputError(f"prompt {index} is {prompt!r:.80}: must be {need}")
    for message in prompt:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(name), str) for name in ("role", "content")
        ):
            raise InputError(f"prompt {index} holds {message!r:.80}: must be {need}")


def _check_labels(labels: Sequence[str]) -> None:
    if isinstance(labels, str) or not isinstance(labels, Sequence) or not labels:
        raise InputError(f"labels={labels!r:.80} must be a non-empty list of texts")
    for label in labels:
        if not isinstance(label, str) or not label:
            raise InputError(f"label {label!r} must be a non-empty text")
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise InputError(f"label {twice[0]!r} is given twice: each label must differ")
