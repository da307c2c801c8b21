"""Counts what an engine does: usage for the user, a progress bar, one log line a call.

Where somebody watches (`progress`), that is told in the bar's place; where stderr is no terminal,
it has a plain line a minute (`lines`).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Protocol

from workbench.lines import Lines, watched
from workbench.progress import Part, Progress, check, current, plus
from workbench.types import Completion, EngineInfo, LabelRow, Usage

log = logging.getLogger("workbench")
_SILENT: ContextVar[bool] = ContextVar("silent", default=False)  # a bar around all calls is shown
_LINES: ContextVar[Lines | None] = ContextVar("lines", default=None)  # of the work around all calls
_LEVEL: ContextVar[int] = ContextVar("level", default=logging.INFO)  # of a call's log line


class Meter:
    """An engine's totals; calls from several threads add to the same ones."""

    def __init__(self, info: EngineInfo) -> None:
        self._lock = threading.Lock()
        self._info = info
        self._total = Usage()

    def usage(self) -> Usage:
        """A snapshot of the totals."""
        with self._lock:
            return replace(self._total, peak_memory_bytes=_peak_memory(self._info.device))

    @contextmanager
    def call(self, what: str, total: int) -> Iterator[Call]:
        """Meter one call; its numbers count however it ends."""
        call = Call(total, what)
        start = time.perf_counter()
        try:
            yield call
        finally:
            call.bar.close()
            used = replace(call.used, seconds=time.perf_counter() - start)
            with self._lock:
                self._total = plus(self._total, used)
            log.log(_LEVEL.get(), "%s", _line(what, used))


class Call:
    """The numbers of one call so far, and its bar."""

    def __init__(self, total: int, what: str) -> None:
        self.used = self._told = Usage()
        self.bar = _bar(total, what)
        self._start = time.perf_counter()
        self._progress = current()

    def add_stored(self, count: int) -> None:
        """Rows that the store already had."""
        self.used = replace(
            self.used,
            requests=self.used.requests + count,
            from_store=self.used.from_store + count,
        )
        self._show(count)
        self._tell()

    def add(self, batch: Iterable[Completion]) -> None:
        """Completions that have just been computed."""
        for row in batch:
            self._count(row, row.completion_tokens)
        self._tell()

    def add_rows(self, batch: Iterable[LabelRow]) -> None:
        """Rows of label scores that have just been computed."""
        for row in batch:
            self._count(row, 0)
        self._tell()

    def _count(self, row: _Row, generated: int) -> None:
        used, failed = self.used, row.error is not None
        self.used = replace(
            used,
            requests=used.requests + 1,
            failed=used.failed + failed,
            prompt_tokens=used.prompt_tokens + (0 if failed else row.prompt_tokens),
            completion_tokens=used.completion_tokens + generated,
            cached_tokens=None
            if used.cached_tokens is None or (row.cached_tokens is None and not failed)
            else used.cached_tokens + (0 if failed else row.cached_tokens or 0),
        )
        self._show(1)

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress.add(self.used.since(self._told))
            self._told = self.used

    def _show(self, count: int) -> None:
        if not self.bar.disable:
            used, seconds = self.used, time.perf_counter() - self._start
            rate = (used.prompt_tokens + used.completion_tokens) / max(seconds, 1e-9)
            text = f"{rate:,.0f} tokens/s"
            if used.cache_hit_rate is not None:
                text += f", cache hit {used.cache_hit_rate:.0%}"
            if used.failed:
                text += f", {used.failed} failed"
            self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(count)


class _Row(Protocol):
    @property
    def error(self) -> str | None: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int | None: ...


@contextmanager
def one_bar(total: int, what: str, unit: str) -> Iterator[Any]:
    """One bar for work of many calls, whose own bars stay away."""
    with bars({what: total}, unit) as made:
        yield made[what]


@contextmanager
def bars(totals: Mapping[str, int], unit: str) -> Iterator[Mapping[str, Any]]:
    """As `one_bar`, for several parts of the work."""
    lines = _LINES.set(_LINES.get() if _SILENT.get() else Lines())
    made = {what: _bar(total, what, unit, ends=True) for what, total in totals.items()}
    token = _SILENT.set(True)
    try:
        yield made
    finally:
        _SILENT.reset(token)
        _LINES.reset(lines)
        for bar in made.values():
            bar.close()


@contextmanager
def quiet() -> Iterator[None]:
    """No bar and no INFO line a call: one of many small ones of a larger work."""
    silent, level, lines = _SILENT.set(True), _LEVEL.set(logging.DEBUG), _LINES.set(None)
    try:
        yield
    finally:
        _SILENT.reset(silent)
        _LEVEL.reset(level)
        _LINES.reset(lines)


class _Watched:
    """What stands in a bar's place where a `Progress` is told.

    Args:
        part: what is told; None of work whose steps are not shown.
        ends: a step is where the work may be stopped, everything of it being kept.
    """

    disable = True  # no text is to be made for it: tokens and speed are told apart

    def __init__(self, progress: Progress, part: Part | None, *, ends: bool) -> None:
        self._progress, self._part, self._ends = progress, part, ends

    def update(self, count: int = 1) -> None:
        if self._part is not None:
            self._progress.advance(self._part, count)
        if self._ends:
            check()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:  # noqa: ARG002  # as tqdm
        if self._part is not None:
            self._progress.note(self._part, text)

    def close(self) -> None:
        pass


def _bar(total: int, what: str, unit: str = "row", *, ends: bool = False) -> Any:
    """A bar where a person watches, lines where nobody does; `WORKBENCH_PROGRESS=off`: nothing."""
    if (progress := current()) is not None:
        part = None if _SILENT.get() else progress.part(what, total, unit)
        return _Watched(progress, part, ends=ends)
    from tqdm.auto import tqdm

    off, lines = os.environ.get("WORKBENCH_PROGRESS") == "off", _LINES.get()
    if not (off or watched()) and (lines or not _SILENT.get()):
        return (lines or Lines()).bar(Part(what, unit, total))
    off = off or not watched() or _SILENT.get()
    return tqdm(total=total, desc=what, unit=unit, disable=off, delay=0.5)


def _line(what: str, used: Usage) -> str:
    tokens = used.prompt_tokens + used.completion_tokens
    hits = used.cache_hit_rate
    return (
        f"{what}: {used.requests} requests ({used.from_store} from the store, {used.failed} "
        f"failed), {used.prompt_tokens} prompt and {used.completion_tokens} completion tokens, "
        f"{used.seconds:.2f} s, {tokens / max(used.seconds, 1e-9):,.0f} tokens/s, "
        f"prefix-cache hit rate {'unknown' if hits is None else f'{hits:.0%}'}"
    )


def _peak_memory(device: str) -> int:
    """Peak bytes of device memory on CUDA, of resident memory on a CPU (0 where unknown)."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
