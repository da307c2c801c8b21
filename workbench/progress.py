"""Progress of long work: bars, or a line per minute without a terminal; and usage of calls."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

from workbench.displays import Bar, Display, Page, Silent, TerminalLine
from workbench.errors import log, show_as_line
from workbench.feed import STOP, Progress, Snapshot, Stage, check, current, fact, stopping
from workbench.frontend import in_kernel
from workbench.machine import peak_memory
from workbench.types import Completion, EngineInfo, LabelRow, Usage

__all__ = [
    "RESUMES",
    "STOP", "CallProgress", "Lines", "Progress", "Snapshot", "Stage", "UsageTracker", "bars",
    "check", "counted", "current", "fact", "interruptible", "loading", "one_bar", "quiet",
    "stopping", "waiting",
]  # fmt: skip
RESUMES = "finished work is kept: run it again to resume"
EVERY = 60.0  # seconds between lines, and before the first


@dataclass(frozen=True, slots=True)
class _Display:
    """The display for calls in this context; `silent` if an enclosing bar is shown."""

    silent: bool = False
    shown: Display | None = None  # of the enclosing work
    level: int = logging.INFO  # of a call's log line


_LATEST: ContextVar[list[Callable[[], str]]] = ContextVar("latest", default=[])  # noqa: B039
_LOADING: ContextVar[Stage | None] = ContextVar("loading", default=None)
_DISPLAY: ContextVar[_Display] = ContextVar("display", default=_Display())  # noqa: B039  # frozen


@contextmanager
def one_bar(total: int, what: str, unit: str) -> Iterator[Any]:
    """One bar for work of many calls; their bars are hidden."""
    with bars({what: total}, unit) as shown:
        yield shown[what]


@contextmanager
def bars(totals: Mapping[str, int], unit: str) -> Iterator[Mapping[str, Any]]:
    """As `one_bar`, for several stages of the work."""
    display = _DISPLAY.get()
    display = replace(display, shown=display.shown if display.silent else _page_or_lines())
    shown = {what: _bar(display, total, what, unit, ends=True) for what, total in totals.items()}
    token = _DISPLAY.set(replace(display, silent=True))
    try:
        yield shown
    except BaseException as error:
        _say_end(shown.values(), error)
        # tqdm's bar counts no steps if it is hidden
        counted = {what: one for what, one in shown.items() if isinstance(one, Bar)}
        parts = ", ".join(f"{what} {one.stage}" for what, one in counted.items())
        show_as_line(error, f"stopped: {parts or ', '.join(shown)}; {RESUMES}")
        raise
    finally:
        _DISPLAY.reset(token)
        for bar in shown.values():
            bar.close()


def _say_end(bars: Iterable[Any], error: BaseException) -> None:
    """Show on unfinished bars that they will not finish."""
    end = "failed" if isinstance(error, Exception) else "stopped"
    for bar in bars:
        if isinstance(bar, Bar) and bar.stage.done < bar.stage.total:
            bar.stage.end = end


@contextmanager
def quiet() -> Iterator[None]:
    """No bar and no INFO line per call, for the many small calls of a larger work."""
    token = _DISPLAY.set(_Display(silent=True, level=logging.DEBUG))
    try:
        yield
    finally:
        _DISPLAY.reset(token)


@contextmanager
def counted(total: int, what: str, unit: str) -> Iterator[Callable[[], None]]:
    """Progress lines for work with another display; yields a function to call after each step."""
    if _output() != "lines":
        yield lambda: None
        return
    with closing(Lines().bar(Stage(what, unit, total))) as bar:
        yield bar.update


@contextmanager
def interruptible(what: str) -> Iterator[None]:
    """Show an interrupt of this work in IPython as one line, with the progress of the latest call.

    A call notices an interrupt only inside itself: not in the code between calls, nor in another
    thread.
    """
    token = _LATEST.set([lambda: f"stopped: {what}"])
    try:
        yield
    except KeyboardInterrupt as error:
        show_as_line(error, _LATEST.get()[0]())
        raise
    finally:
        _LATEST.reset(token)


@contextmanager
def loading(what: str) -> Iterator[Stage]:
    """One line with seconds while a model loads; `note` names it, and in the end what is ready.

    Inside larger work nothing is shown; a watched call gets a fact instead.
    """
    output = _output()
    if output == "off" or _DISPLAY.get().silent or current() is not None:
        shown: Display = Silent()
    elif output == "lines":
        shown = Lines()
    else:
        shown = Page(always=True) if output == "page" else TerminalLine()
    stage = Stage("loading", "", note=what)
    bar, token = shown.bar(stage), _LOADING.set(stage)
    fact("loading", what)
    try:
        yield stage
        stage.what = "ready"
    except BaseException as error:
        stage.end = "failed" if isinstance(error, Exception) else "stopped"
        show_as_line(error, f"stopped: loading {what}")
        raise
    finally:
        _LOADING.reset(token)
        bar.close()
        fact("loading", None)


def waiting(whom: str) -> None:
    """Show in the loading line what is being waited for."""
    if (stage := _LOADING.get()) is not None:
        stage.what, stage.note = f"waiting for {whom}", ""


def _output() -> Literal["page", "bars", "lines", "off"]:
    """The display: a page in a notebook, bars at a terminal, else lines."""
    if os.environ.get("WORKBENCH_PROGRESS") == "off":
        return "off"
    if in_kernel():
        return "page"
    return "bars" if sys.stderr.isatty() else "lines"


def _page_or_lines() -> Display:
    return Page() if _output() == "page" else Lines()


def _bar(display: _Display, total: int, what: str, unit: str, *, ends: bool) -> Any:
    """The bar of this work; `ends`: it can be stopped after each step without loss."""
    if (progress := current()) is not None:
        stage = Stage(what, unit) if display.silent else progress.stage(what, total, unit)

        def advance(stage: Stage, count: int) -> None:
            if not display.silent:
                progress.advance(stage, count)
            if ends:
                check()

        return Bar(stage, advance, lambda _: None, disable=True)  # the panel shows the speed itself
    output = _output()
    nested = output == "lines" and display.shown  # lines have room for all running stages
    if output in {"page", "lines"} and (nested or not display.silent):
        return (display.shown or _page_or_lines()).bar(Stage(what, unit, total))
    from tqdm import tqdm

    off = output != "bars" or display.silent
    return tqdm(total=total, desc=what, unit=unit, disable=off, delay=0.5)


class Lines(Display):
    """One line per minute for all running stages, the outermost first: for Slurm and nohup."""

    def __init__(self) -> None:
        super().__init__()
        self._every = EVERY

    def _draw(self, *, last: bool = False) -> None:
        if last or not (stages := self._stages):  # all have just ended
            return
        minutes = f"{stages[0].seconds / 60:,.0f} min"
        texts = [[f"{one.what}: {one}", one.note if one.unit else ""] for one in stages]
        texts[0].insert(1, minutes)
        line = "; ".join(", ".join(filter(None, one)) for one in texts)
        print(line, file=sys.stderr, flush=True)


class UsageTracker:
    """An engine's totals; several threads may add to them."""

    def __init__(self, info: EngineInfo) -> None:
        self._lock = threading.Lock()
        self._device = info.device
        self._total = Usage()
        self._running, self._counted = 0, 0.0  # running calls; end of the counted seconds

    def usage(self) -> Usage:
        """The totals so far."""
        with self._lock:
            return replace(self._total, peak_memory_bytes=peak_memory(self._device))

    @contextmanager
    def call(self, what: str, total: int, *, kept: bool = False) -> Iterator[CallProgress]:
        """Track one call; concurrent calls' seconds are counted once.

        Args:
            kept: whether finished rows are stored, so that the call can be resumed.
        """
        call = CallProgress(total, what)

        def stopped() -> str:
            then = "are kept: run it again to resume" if kept else "were done"
            return f"stopped: {what}, {call.used.requests:,} of {total:,} rows {then}"

        with self._lock:
            if not self._running:
                self._counted = call.start
            self._running += 1
        try:
            _LATEST.get()[:] = [stopped]
            yield call
        except BaseException as error:
            _say_end([call.bar], error)
            show_as_line(error, stopped())
            raise
        finally:
            call.bar.close()
            now = time.perf_counter()
            used = replace(call.used, seconds=now - call.start)
            with self._lock:
                self._total += replace(used, seconds=now - self._counted)
                self._running, self._counted = self._running - 1, now
            log.log(_DISPLAY.get().level, "%s", _line(what, used))


class CallProgress:
    """The counts of one call so far, and its bar."""

    def __init__(self, total: int, what: str) -> None:
        self.used = Usage()
        self.bar = _bar(_DISPLAY.get(), total, what, "row", ends=False)
        self.start = time.perf_counter()
        self._progress = current()

    def add_stored(self, count: int) -> None:
        """Count rows that the store had."""
        self._add(Usage(requests=count, from_store=count))
        self.bar.update(count)

    def add(self, rows: Sequence[Completion] | Sequence[LabelRow]) -> None:
        """Count newly computed rows."""
        done = [row for row in rows if row.error is None]
        cached = [row.cached_tokens for row in done]
        used = Usage(
            requests=len(rows),
            failed=len(rows) - len(done),
            prompt_tokens=sum(row.prompt_tokens for row in done),
            completion_tokens=sum(getattr(row, "completion_tokens", 0) for row in rows),
            reasoning_tokens=sum(getattr(row, "reasoning_tokens", 0) or 0 for row in rows),
            cached_tokens=None if None in cached else sum(count or 0 for count in cached),
        )
        self._add(used)
        for _ in rows:  # one by one, as milestones depend on counts alone
            self.bar.update(1)

    def _add(self, new: Usage) -> None:
        self.used += new
        if self._progress is not None:
            self._progress.add(new)
        if not self.bar.disable:
            used, seconds = self.used, time.perf_counter() - self.start
            rate = (used.prompt_tokens + used.completion_tokens) / max(seconds, 1e-9)
            text = f"{rate:,.0f} tokens/s"
            if used.cache_hit_rate is not None:
                text += f", cache hit {used.cache_hit_rate:.0%}"
            if used.failed:
                text += f", {used.failed} failed"
            self.bar.set_postfix_str(text, refresh=False)


def _line(what: str, used: Usage) -> str:
    tokens = used.prompt_tokens + used.completion_tokens
    hits = used.cache_hit_rate
    return (
        f"{what}: {used.requests} requests ({used.from_store} from the store, {used.failed} "
        f"failed), {used.prompt_tokens} prompt and {used.completion_tokens} completion tokens, "
        f"{used.seconds:.2f} s, {tokens / max(used.seconds, 1e-9):,.0f} tokens/s, "
        f"prefix-cache hit rate {'unknown' if hits is None else f'{hits:.0%}'}"
    )
