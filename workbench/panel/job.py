"""A call that runs in a thread of its own, with somebody watching it."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from workbench.errors import InputError, StoppedError
from workbench.panel.record import Outcome, Record
from workbench.panel.summary import draw, numbers
from workbench.panel.views import Lines, Silent, View, kind
from workbench.progress import Progress, check, current

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

log = logging.getLogger("workbench")
P = ParamSpec("P")
T = TypeVar("T")

BEAT = 0.25  # seconds between two looks
PATIENCE = 10.0  # seconds that a job has to end in when Python does

_running: set[Job[Any]] = set()


def watch(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Job[T]:
    """Start `function(*args, **kwargs)` in the background, show how far it is, and return at once.

    In a notebook that a person looks at there is a widget with a Stop button, elsewhere there are
    plain lines; `WORKBENCH_PROGRESS` (widget, lines or off) decides otherwise. A press of the
    button takes effect while the kernel is idle or the cell awaits, not while a cell blocks: write
    `await watch(…)`, or use the job in a later cell. The notebook's interrupt always works.

    Returns:
        A `Job`: `await job` or `job.result()` gives what the function returns.

    Raises:
        InputError: `WORKBENCH_PROGRESS` is none of these, or the function is a coroutine's.
    """
    if inspect.iscoroutinefunction(function):
        raise InputError(f"{_name(function)} is async, and needs no thread: give a plain function")
    return Job(partial(function, *args, **kwargs), _name(function))


class Job(Generic[T]):
    """A call under way; made by `watch`."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._record = Record(name, Progress(above=current()))
        self._view = _open(self._record)
        self._value: T | None = None
        self._ended, self._closed = threading.Event(), threading.Event()  # the work, the view too
        _running.add(self)
        for target, given in ((self._run, (work,)), (self._watch, ())):
            run = contextvars.copy_context().run  # output belongs to the cell that starts it
            threading.Thread(
                target=run, args=(target, *given), name="workbench-job", daemon=True
            ).start()

    @property
    def state(self) -> Outcome:
        """Whether it is "running", "done", "stopped" or "failed"."""
        return self._record.outcome

    def stop(self) -> None:
        """Have it end at its next step; what is finished is kept."""
        self._record.progress.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; returns whether it has. Ctrl-C meanwhile stops it.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the job has ended.
        """
        until = float("inf") if timeout is None else time.monotonic() + timeout
        try:
            while not self._closed.wait(max(0.0, min(BEAT, until - time.monotonic()))):
                self._view.tell()
                check()  # a job may wait for another one
                if time.monotonic() >= until:
                    return False
        except KeyboardInterrupt:
            self.stop()
            while not self._closed.wait(BEAT):
                pass
            raise
        self._view.tell()
        return True

    def result(self, timeout: float | None = None) -> T:
        """What the function returned, once it has; or what it raised. Ctrl-C meanwhile stops it.

        Raises:
            StoppedError: it was stopped.
            TimeoutError: it still runs after `timeout` seconds.
            KeyboardInterrupt: Ctrl-C was pressed; the job has ended.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"{self} still runs after {timeout:g} s: wait on, or stop() it")
        return self._outcome()

    def __await__(self) -> Generator[Any, None, T]:
        """As `result`, while the event loop goes on; to cancel it is to stop the job."""
        return self._awaited().__await__()

    async def _awaited(self) -> T:
        try:
            while not self._closed.is_set():
                self._view.tell()
                await asyncio.sleep(BEAT / 4)
        except (asyncio.CancelledError, KeyboardInterrupt):
            self.stop()
            while not self._closed.is_set():  # noqa: ASYNC110  # a thread sets it
                await asyncio.sleep(BEAT / 4)
            raise
        self._view.tell()
        return self._outcome()

    def _outcome(self) -> T:
        if self.state == "stopped":
            raise StoppedError(
                f"{self._record.name} was {self._record.line()}. What is finished is kept: run it "
                "again, and it goes on with what the response store or the measurement has"
            )
        if self._record.error is not None:
            raise self._record.error
        return cast("T", self._value)

    def summary(self) -> pd.DataFrame:
        """One row of numbers: how far it came, tokens, speed, failures, and what else it told."""
        return numbers(self._record)

    def figure(self) -> Figure:
        """Tokens a second over time, and the energy of a search."""
        return draw(self._record)

    def __repr__(self) -> str:
        return f"<job {self._record.name}: {self._record.line()}>"

    def _run(self, work: Callable[[], T]) -> None:
        try:
            with self._record.progress.active():
                self._value = work()
        except (KeyboardInterrupt, StoppedError):
            self._record.end("stopped")
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            self._record.end("failed", error)
        else:
            self._record.end("done")
        finally:
            self._ended.set()

    def _watch(self) -> None:
        """The panel's thread: looks and draws, and never fails the work."""
        try:
            while not self._ended.wait(BEAT):
                self._view.draw(self._record.look())
            self._record.look()
            self._view.end()
        except Exception:
            log.warning("the view of %s broke; the work goes on", self, exc_info=True)
            self._ended.wait()
        finally:
            self._closed.set()
            _running.discard(self)


def _open(record: Record) -> View:
    chosen = kind()
    if chosen == "widget":
        from workbench.panel.widget import Widget

        return Widget(record)
    return Lines(record) if chosen == "lines" else Silent()


def _name(function: Callable[..., object]) -> str:
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    owner = getattr(function, "__self__", None)
    return name if owner is None else f"{type(owner).__name__}.{name}"


@atexit.register
def _stop_all() -> None:
    """Python ends: so do its jobs, for threads that run on would crash it."""
    jobs = list(_running)
    for job in jobs:
        job.stop()
    for job in jobs:
        job._closed.wait(PATIENCE)
