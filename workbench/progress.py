"""How far long work is: bars, a line a minute without a terminal, the feed of a live panel.

A watched call has a `Progress` in its context. What works underneath tells it where it is and asks
between two steps whether to stop: a stop ends the work as Ctrl-C would, and keeps as much.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

from workbench.machine import peak_memory
from workbench.types import Completion, EngineInfo, LabelRow, Usage

log = logging.getLogger("workbench")
EVERY = 60.0  # seconds from line to line, and before the first
AGAIN = 1.25  # a stage that begins again and again has a milestone only where so much was added


@dataclass(slots=True)
class Stage:
    """One kind of step, how many there are and how many are done; `note` is where it stands."""

    what: str
    unit: str
    total: int = 0
    done: int = 0
    note: str = ""
    milestone: int = 0  # steps done at the latest

    @property
    def quarters(self) -> int:
        """How many quarters are done."""
        return 4 * self.done // self.total if self.total else 0

    def __str__(self) -> str:
        return f"{self.done:,} of {self.total:,} {self.unit}{'s' * (self.total != 1)}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the work stands at one moment."""

    stages: tuple[Stage, ...]
    used: Usage
    facts: Mapping[str, float | str]
    stopping: bool


class Progress:
    """The feed of work that somebody watches, from any thread.

    Args:
        above: of the work that this is a part of; to stop that is to stop this.
    """

    def __init__(self, above: Progress | None = None) -> None:
        self._above = above
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._stages: dict[str, Stage] = {}
        self._milestones: list[Stage] = []
        self._facts: dict[str, float | str] = {}
        self._used = Usage()

    def stage(self, what: str, total: int, unit: str) -> Stage:
        """A stage of the work; one that was there already gets so much longer."""
        with self._lock:
            stage = self._stages.setdefault(what, Stage(what, unit))
            stage.total += total
            return stage

    def advance(self, stage: Stage, count: int) -> None:
        """So many steps more are done."""
        with self._lock:
            before = stage.quarters
            stage.done += count
            if stage.quarters > before and stage.done >= AGAIN * stage.milestone:
                stage.milestone = stage.done
                self._milestones.append(replace(stage))

    def add(self, used: Usage) -> None:
        """What has been used since this was called the last time."""
        with self._lock:
            self._used += used

    def fact(self, name: str, value: float | str | None) -> None:
        """A number or a word to be shown under a name; None takes it away."""
        with self._lock:
            if value is None:
                self._facts.pop(name, None)
            else:
                self._facts[name] = value

    def stop(self) -> None:
        """Have the work end at its next step."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether the work is to end."""
        return self._stop.is_set() or (self._above is not None and self._above.stopping)

    def snapshot(self) -> Snapshot:
        """A copy of everything."""
        with self._lock:
            stages = tuple(replace(stage) for stage in self._stages.values())
            return Snapshot(stages, self._used, dict(self._facts), self.stopping)

    def milestones(self, start: int = 0) -> list[Stage]:
        """A stage as it was whenever a quarter of it was done, in that order, from `start` on.

        They rest on counts alone, so that the same work has the same ones; only where several
        streams share a stage (an agent's later rounds) is it as long as those begun so far.
        """
        with self._lock:
            return self._milestones[start:]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Work in here feeds this one."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


@dataclass(frozen=True, slots=True)
class _Display:
    """What calls of this context show: `silent` where a bar around all of them is shown."""

    silent: bool = False
    lines: Lines | None = None  # of the work around all calls
    level: int = logging.INFO  # of a call's log line


_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)
STOP: ContextVar[threading.Event | None] = ContextVar("stop", default=None)
"""Work of a context ends at its next step once this is set."""
_DISPLAY: ContextVar[_Display] = ContextVar("display", default=_Display())  # noqa: B039  # frozen


def current() -> Progress | None:
    """The feed of this context, if anybody watches."""
    return _CURRENT.get()


def stopping() -> bool:
    """Whether somebody watches and has said stop, or the thread that this one works for has."""
    progress, stop = _CURRENT.get(), STOP.get()
    return (progress is not None and progress.stopping) or (stop is not None and stop.is_set())


def check() -> None:
    """End here if somebody has said stop; call it where the state is whole.

    Raises:
        KeyboardInterrupt: as Ctrl-C does, so that work has one way of being interrupted.
    """
    if stopping():
        raise KeyboardInterrupt


def fact(name: str, value: float | str | None) -> None:
    """Show a fact to whoever watches; see `Progress.fact`."""
    if (progress := _CURRENT.get()) is not None:
        progress.fact(name, value)


@contextmanager
def one_bar(total: int, what: str, unit: str) -> Iterator[Any]:
    """One bar for work of many calls, whose own bars stay away."""
    with bars({what: total}, unit) as shown:
        yield shown[what]


@contextmanager
def bars(totals: Mapping[str, int], unit: str) -> Iterator[Mapping[str, Any]]:
    """As `one_bar`, for several stages of the work."""
    display = _DISPLAY.get()
    display = replace(display, lines=display.lines if display.silent else Lines())
    shown = {what: _bar(display, total, what, unit, ends=True) for what, total in totals.items()}
    token = _DISPLAY.set(replace(display, silent=True))
    try:
        yield shown
    finally:
        _DISPLAY.reset(token)
        for bar in shown.values():
            bar.close()


@contextmanager
def quiet() -> Iterator[None]:
    """No bar and no INFO line a call: one of many small ones of a larger work."""
    token = _DISPLAY.set(_Display(silent=True, level=logging.DEBUG))
    try:
        yield
    finally:
        _DISPLAY.reset(token)


@contextmanager
def counted(total: int, what: str, unit: str) -> Iterator[Callable[[], None]]:
    """Lines for work that shows a person something else than a bar; yields what ends a step."""
    if _output() != "lines":
        yield lambda: None
        return
    with closing(Lines().bar(Stage(what, unit, total))) as bar:
        yield bar.update


def _output() -> Literal["bars", "lines", "off"]:
    """Bars where a person watches, at a terminal or in a notebook; lines where nobody does."""
    if os.environ.get("WORKBENCH_PROGRESS") == "off":
        return "off"
    person = "ipykernel.zmqshell" in sys.modules or sys.stderr.isatty()
    return "bars" if person else "lines"


def _bar(display: _Display, total: int, what: str, unit: str, *, ends: bool) -> Any:
    """What shows this work; `ends`: it may be stopped after each step, and nothing is lost."""
    if (progress := current()) is not None:
        stage = Stage(what, unit) if display.silent else progress.stage(what, total, unit)

        def advance(stage: Stage, count: int) -> None:
            if not display.silent:
                progress.advance(stage, count)
            if ends:
                check()

        return _Bar(stage, advance, lambda _: None, disable=True)  # speed is shown by itself
    if _output() == "lines" and (display.lines or not display.silent):
        return (display.lines or Lines()).bar(Stage(what, unit, total))
    from tqdm.auto import tqdm

    off = _output() != "bars" or display.silent
    return tqdm(total=total, desc=what, unit=unit, disable=off, delay=0.5)


class _Bar:
    """As a bar of tqdm, for a feed or for lines; `disable` where it needs no text."""

    def __init__(
        self,
        stage: Stage,
        advance: Callable[[Stage, int], None],
        close: Callable[[Stage], None],
        *,
        disable: bool,
    ) -> None:
        self._stage, self._advance, self._close = stage, advance, close
        self.disable = disable

    def update(self, count: int = 1) -> None:
        self._advance(self._stage, count)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:  # noqa: ARG002  # as tqdm
        self._stage.note = text

    def close(self) -> None:
        self._close(self._stage)


class Lines:
    """One line a minute for all stages under way, the outermost first: for Slurm and nohup.

    A thread of its own writes it, so that it comes too where a single step takes long.
    """

    def __init__(self) -> None:
        self._stages: list[Stage] = []

    def bar(self, stage: Stage) -> _Bar:
        """What is updated for a stage, in a bar's place."""
        if not self._stages:
            self._ended, self._start = threading.Event(), time.monotonic()
            threading.Thread(target=self._write, args=(self._ended,), daemon=True).start()
        self._stages.append(stage)
        return _Bar(stage, self._advance, self.close, disable=False)

    def _advance(self, stage: Stage, count: int) -> None:
        stage.done += count

    def close(self, stage: Stage) -> None:
        """A stage of the work is over, and with the last one the lines are."""
        self._stages = [one for one in self._stages if one is not stage]
        if not self._stages:
            self._ended.set()

    def _write(self, ended: threading.Event) -> None:
        while not ended.wait(EVERY):
            minutes = f"{(time.monotonic() - self._start) / 60:,.0f} min"
            texts = [[f"{one.what}: {one}", one.note] for one in self._stages]
            if texts:  # or they have ended just now
                texts[0].insert(1, minutes)
                with suppress(OSError, ValueError):  # a stream that is closed or full stops no work
                    line = "; ".join(", ".join(filter(None, one)) for one in texts)
                    print(line, file=sys.stderr, flush=True)


class UsageTracker:
    """An engine's totals; calls from several threads add to the same ones."""

    def __init__(self, info: EngineInfo) -> None:
        self._lock = threading.Lock()
        self._device = info.device
        self._total = Usage()
        self._running, self._counted = 0, 0.0  # calls, and until when their seconds are counted

    def usage(self) -> Usage:
        """The totals so far."""
        with self._lock:
            return replace(self._total, peak_memory_bytes=peak_memory(self._device))

    @contextmanager
    def call(self, what: str, total: int) -> Iterator[CallProgress]:
        """Track one call; its numbers count however it ends, seconds of several at once do once."""
        call = CallProgress(total, what)
        with self._lock:
            if not self._running:
                self._counted = call.start
            self._running += 1
        try:
            yield call
        finally:
            call.bar.close()
            now = time.perf_counter()
            used = replace(call.used, seconds=now - call.start)
            with self._lock:
                self._total += replace(used, seconds=now - self._counted)
                self._running, self._counted = self._running - 1, now
            log.log(_DISPLAY.get().level, "%s", _line(what, used))


class CallProgress:
    """The numbers of one call so far, and its bar."""

    def __init__(self, total: int, what: str) -> None:
        self.used = Usage()
        self.bar = _bar(_DISPLAY.get(), total, what, "row", ends=False)
        self.start = time.perf_counter()
        self._progress = current()

    def add_stored(self, count: int) -> None:
        """Rows that the store already had."""
        self._add(Usage(requests=count, from_store=count))
        self.bar.update(count)

    def add(self, rows: Sequence[Completion] | Sequence[LabelRow]) -> None:
        """Rows that have just been computed."""
        done = [row for row in rows if row.error is None]
        cached = [row.cached_tokens for row in done]
        used = Usage(
            requests=len(rows),
            failed=len(rows) - len(done),
            prompt_tokens=sum(row.prompt_tokens for row in done),
            completion_tokens=sum(getattr(row, "completion_tokens", 0) for row in rows),
            cached_tokens=None if None in cached else sum(count or 0 for count in cached),
        )
        self._add(used)
        for _ in rows:  # one by one, as milestones rest on counts alone
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
