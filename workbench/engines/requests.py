"""A call's requests: checks before any work, keys and seeds of samples, resumable draws.

Without a seed, a call that ended early resumes, and a finished one is never replayed. "The same
call" has the same prompts in the same order, the same sampling and the same engine. If it ended
early (an interrupt, a kill, failed rows), the next such call resumes it. If it finished, or is
still running elsewhere, the next such call draws new samples.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from workbench import values
from workbench.errors import EngineError, InputError
from workbench.lazy import np, psutil
from workbench.machine import born
from workbench.messages import plain_prompt
from workbench.store import Store, digest
from workbench.types import Completion, LabelRow, Labels, LabelScores, Prompt, Sampling

CUT = "cut off before it had the requested form"
CUT_SHORT = CUT + ": raise max_tokens (it was {})"
PATTERN_SECONDS = 1.0  # maximum per match: some patterns take forever on a partial answer
HOST = socket.gethostname()
_running: set[tuple[str, int]] = set()  # calls of this process


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to compute; `seed` is this sample's derived seed."""

    key: bytes
    prompt: Prompt
    sampling: Sampling
    seed: int | None


def plan(
    prompts: Sequence[Prompt], sampling: Sampling, base: Any
) -> Iterator[tuple[Request, int, int]]:
    """(request, prompt index, sample index) for every sample; `base` is the beginning of keys.

    Greedy duplicates share one key, so they are computed once. When sampling, the k-th copy of a
    prompt has the sample indices from k·n, so that copies differ as samples do.
    """
    single = replace(sampling, n=1, seed=None)
    copies: Counter[str] = Counter()
    for index, (prompt, text) in enumerate(zip(prompts, texts(prompts), strict=True)):
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


def texts(prompts: Sequence[Prompt]) -> list[str]:
    return [json.dumps(prompt, sort_keys=True, ensure_ascii=False) for prompt in prompts]


class ResumableDraw:
    """One draw of a call's answers.

    Attributes:
        number: distinguishes its answers from those of other draws of the same call.

    Args:
        store: where answers are kept; None has nothing to resume.
        call: digest of engine, sampling and prompts.
    """

    def __init__(self, store: Store | None, call: bytes) -> None:
        self._key = digest("draw", call.hex())
        self.number = 0
        if store is not None:
            try:
                store.update(self._key, self._begin)
            except BaseException:
                _running.discard(self._mark)
                raise

    @property
    def _mark(self) -> tuple[str, int]:
        return self._key.hex(), self.number

    def end(self, store: Store | None, *, finished: bool) -> None:
        """End the call; if not finished, it may be resumed. `store` is None if it was closed."""
        _running.discard(self._mark)

        def note(state: Any) -> Any:
            state["open"].pop(str(self.number), None)
            if not finished:
                state["open"][str(self.number)] = None
            return state

        if store is not None:
            store.update(self._key, note)

    def _begin(self, state: Any) -> Any:
        """Resume the first draw that ended early, or begin a new one."""
        state = state or {"next": 0, "open": {}}
        free = [n for n, owner in state["open"].items() if not self._is_running(int(n), owner)]
        self.number = int(free[0]) if free else state["next"]
        state["next"] = max(state["next"], self.number + 1)
        state["open"][str(self.number)] = _process(os.getpid())
        _running.add(self._mark)  # before another thread can see it
        return state

    def _is_running(self, number: int, owner: list[Any] | None) -> bool:
        if owner is None:
            return False
        pid, started, host = owner
        if host != HOST:  # unknown from here: assume that it runs
            return True
        process = _process(pid)
        if process is None or process[1] != started:
            return False
        return bool(pid != os.getpid() or (self._key.hex(), number) in _running)


def _process(pid: int) -> list[Any] | None:
    """[id, start, host] of a process, as ids are reused; None if there is none."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return [pid, born(pid), HOST]
    return None


def check_errors(errors: object) -> None:
    if errors not in ("raise", "return"):
        raise InputError(f'errors={errors!r} must be "raise" or "return"')


def plain_list(name: str, given: object, need: str) -> list[Any]:
    """The items of an ordered iterable: a list, a column, an array, a generator.

    Raises:
        InputError: a single text, a whole table, unordered, or not an iterable.
    """
    if hasattr(given, "columns") or hasattr(given, "column_names"):
        columns = getattr(given, "column_names", None) or [*getattr(given, "columns", ())]
        such = f", such as {name}[{columns[0]!r}]" if columns else ""
        raise InputError(f"{name} is a table: pass one of its columns{such}, or see engine.ask")
    if isinstance(given, str | bytes | bytearray | Mapping | set | frozenset) or not isinstance(
        given, Iterable
    ):
        values.refuse(name, given, need)
    for method in ("to_pylist", "tolist"):  # Arrow's; NumPy's and pandas'
        if callable(convert := getattr(given, method, None)):
            found = convert()
            return found if isinstance(found, list) else values.refuse(name, given, need)
    return list(given)


def check_prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts of any iterable as plain values; refuses what is unusable as a whole.

    Raises:
        InputError: not an ordered iterable, empty, a missing, empty or malformed prompt, or texts
            mixed with chats.
    """
    if not (given := plain_list("prompts", prompts, "a list or column of prompts: [prompt]")):
        raise InputError("prompts is empty: pass at least one prompt")
    plain: list[Prompt] = []
    for index, prompt in enumerate(given):
        if isinstance(prompt, str):
            if not prompt:
                raise InputError(f"prompt {index} is empty: a model needs some text to continue")
            of_numpy = type(prompt).__module__ == "numpy"  # NumPy has a type of texts
            plain.append(str.__str__(prompt) if of_numpy else prompt)
        elif values.is_missing(prompt):
            raise InputError(
                f"prompt {index} is missing ({prompt}): leave it out, or see engine.ask, where a "
                "row without a value has failed"
            )
        else:
            plain.append(_plain_chat(index, prompt))
    if len({isinstance(prompt, str) for prompt in plain}) == 2:
        raise InputError(
            "prompts mixes texts and chats: make two calls, or write the texts as "
            '[{"role": "user", "content": text}]'
        )
    return plain


def _plain_chat(index: int, prompt: Any) -> Prompt:
    need = 'a non-empty text or a list of {"role": ..., "content": ...}'
    if getattr(prompt, "ndim", 0) == 1:  # a table's cell
        prompt = prompt.tolist()
    if isinstance(prompt, dict) and {"role", "content"} <= {*prompt}:
        raise InputError(f"prompt {index} is one message: a chat is a list of them, [message]")
    if not isinstance(prompt, Sequence) or not prompt or isinstance(prompt, bytes):
        raise InputError(f"prompt {index} is {prompt!r:.80}: must be {need}")
    for message in prompt:
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or message.get("content") is None
        ):
            raise InputError(f"prompt {index} holds {message!r:.80}: must be {need}")
    plain: Prompt = plain_prompt(prompt, f"prompt {index}")
    return plain


def check_labels(labels: Iterable[str]) -> list[str]:
    """The labels of any iterable as plain texts.

    Raises:
        InputError: not an ordered iterable, empty, a label that is empty or no text, or two equal.
    """
    if not (given := plain_list("labels", labels, "a non-empty list of texts")):
        values.refuse("labels", labels, "a non-empty list of texts")
    for label in given:
        if not isinstance(label, str) or not label:
            raise InputError(f"label {label!r:.80} must be a non-empty text")
    if twice := [label for label, count in Counter(given).items() if count > 1]:
        raise InputError(f"label {twice[0]!r:.80} is given twice: each label must differ")
    return [str.__str__(label) for label in given]


def labels_per_prompt(labels: Labels, count: int) -> list[tuple[str, ...]]:
    """The labels of each of `count` prompts; one list for all is the same tuple everywhere.

    Raises:
        InputError: as `check_labels`, or not as many lists as prompts.
    """
    given = plain_list("labels", labels, "a non-empty list of texts, or such a list per prompt")
    if not given or isinstance(given[0], str):
        return [tuple(check_labels(given))] * count
    if len(given) != count:
        raise InputError(f"labels has {len(given):,} lists for {count:,} prompts: one per prompt")
    return [tuple(check_labels(one)) for one in given]


def gather(row: Mapping[int, Completion]) -> Completion:
    """A prompt's samples, by sample index, as one completion."""
    if len(row) == 1:
        return row[0]
    samples = tuple(row[i] for i in range(len(row)))
    failed = next((s.error for s in samples if s.error), None)
    return replace(samples[0], error=failed, _samples=samples)


def raise_failures(reasons: Sequence[str | None], results: object) -> None:
    """Raise if any row failed; the error has all rows.

    Raises:
        EngineError: says how many failed, and why the first one did.
    """
    if failed := [(i, reason) for i, reason in enumerate(reasons) if reason is not None]:
        index, reason = failed[0]
        raise EngineError(
            f"{len(failed)} of {len(reasons)} prompts failed; the others are finished. "
            f'First, prompt {index}: {reason}. errors="return" returns all rows with their reasons',
            results=results,
        )


def misshapen(sampling: Sampling, text: str, finish: str) -> str | None:
    """Why an answer is not the requested structured output; None if it is.

    Only where the engine cannot guarantee it: an answer that ended by itself has the right form.
    """
    if sampling.choices is not None and text in sampling.choices:
        longer = any(one != text and one.startswith(text) for one in sampling.choices)
        return CUT_SHORT.format(sampling.max_tokens) if longer and finish == "length" else None
    if finish == "length" or (sampling.stop and sampling.json_schema is not None):
        if sampling.choices is None and _whole(sampling, text):
            return None
        if finish != "length":
            return f"{CUT}: a stop text ended it; leave `stop` out"
        return CUT_SHORT.format(sampling.max_tokens)
    if sampling.choices is not None:
        return f"{text!r:.200} is none of the choices"
    return None


def _whole(sampling: Sampling, text: str) -> bool:
    """Whether an answer that was cut has the right form nevertheless."""
    if sampling.regex is not None:
        regex: Any = import_module("regex")  # needed for its timeout; transformers depends on it
        try:
            return regex.fullmatch(sampling.regex, text, timeout=PATTERN_SECONDS) is not None
        except (regex.error, TimeoutError):
            return False
    if sampling.json_schema is not None:
        try:
            number = isinstance(json.loads(text), int | float)  # more digits might have followed
        except (ValueError, RecursionError):
            return False
        return not number
    return True


def keyed(answer: Any, keys: Sequence[bytes]) -> tuple[bytes, Any]:
    """An answer with its key; `keys` has the keys of scores, by index."""
    if isinstance(answer, LabelRow):
        return keys[answer.index], answer
    request, completion = answer
    return request.key, completion


def gather_labels(rows: Iterable[LabelRow], labels: Sequence[tuple[str, ...]]) -> LabelScores:
    """Rows in any order as arrays [prompts, labels]; `labels` has those of each prompt."""
    shape = len(labels), max(map(len, labels))
    logprobs, upper, tokens = np.full(shape, -np.inf), np.full(shape, -np.inf), np.zeros(shape, int)
    reasons: list[str | None] = [None] * len(labels)
    for index, own in enumerate(labels):
        upper[index, : len(own)] = 0.0
    for row in rows:
        if row.logprobs is not None:
            there = row.index, slice(len(row.logprobs))
            logprobs[there], upper[there] = row.logprobs, row.upper or row.logprobs
            tokens[there] = row.lengths or 0
        reasons[row.index] = row.error
    shared = all(own is labels[0] for own in labels)
    names = labels[0] if shared else tuple(labels)
    return LabelScores(logprobs, upper, logprobs < upper, tuple(reasons), names, tokens)
