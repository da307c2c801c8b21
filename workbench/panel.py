"""A live view for long calls: progress, speed, cost, and a working Stop.

`report = await watch(evaluate, task, engine, count=500)` shows it while a notebook's cell waits.
Without `await`, the cell ends at once, the kernel is free, and `call.result()` returns the report.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextvars
import inspect
import io
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import asdict
from functools import partial
from html import escape
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast

from workbench.errors import InputError, StoppedError, log, show_as_line
from workbench.frontend import chosen_view
from workbench.lazy import Figure, np, pd
from workbench.plots import COLOURS, finding, new_figure
from workbench.progress import RESUMES, Progress, Snapshot, check, current

P = ParamSpec("P")
T = TypeVar("T")

BEAT = 0.25  # seconds between updates
MAX_SAMPLES = 512
MAX_SPEEDS = 80  # maximum number of time intervals, each with its speed
SHORTEST = 0.5  # least seconds per interval, as answers arrive in bursts
WIDTH, HEIGHT = 420, 56  # of the speed chart, in pixels

_running: set[WatchedCall[Any]] = set()
_drawing = threading.Lock()  # matplotlib is not thread-safe


def watch(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> WatchedCall[T]:
    """Start `function(*args, **kwargs)` in the background, show its progress, and return at once.

    In an interactive notebook there is a widget with a Stop button, elsewhere plain lines;
    `WORKBENCH_PROGRESS` (widget, lines or off) overrides this. The button works while the kernel is
    idle or the cell awaits, not while a cell blocks: write `await watch(…)`, or use the call in a
    later cell. The notebook's interrupt always works.

    Returns:
        A `WatchedCall`: `await call` or `call.result()` returns the function's result.

    Raises:
        InputError: `WORKBENCH_PROGRESS` has another value, or the function is async.
    """
    if inspect.iscoroutinefunction(function):
        raise InputError(f"{_name(function)} is async: pass a plain function")
    return WatchedCall(partial(function, *args, **kwargs), _name(function))


def _name(function: Callable[..., object]) -> str:
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    owner = getattr(function, "__self__", None)
    return name if owner is None else f"{type(owner).__name__}.{name}"


class WatchedCall(Generic[T]):
    """A running call; created by `watch`.

    Attributes:
        state: "running", or how it ended: "done", "stopped" or "failed".
    """

    def __init__(self, work: Callable[[], T], name: str) -> None:
        view = chosen_view()
        self.state: Literal["running", "done", "stopped", "failed"] = "running"
        self._name, self._progress, self._history = name, Progress(above=current()), _History()
        self._start, self._seconds = time.perf_counter(), 0.0  # the duration, once it has ended
        self._error: BaseException | None = None
        self._value: T | None = None
        self._closed = threading.Event()
        self._printed = 0 if view == "lines" else None  # milestones; None: no more lines
        self._widget = _Widget(self) if view == "widget" else None
        _running.add(self)
        _start(self._watch, work)

    def stop(self) -> None:
        """Make it end at its next step; finished work is kept."""
        self._progress.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; returns whether it has. Ctrl-C stops it.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the call has ended.
        """
        until = float("inf") if timeout is None else time.monotonic() + timeout
        try:
            while not self._closed.wait(max(0.0, min(BEAT, until - time.monotonic()))):
                self._print_news()
                check()  # for a watched call that waits for another one
                if time.monotonic() >= until:
                    return False
        except KeyboardInterrupt as error:
            self.stop()
            self._closed.wait()
            show_as_line(error, self._stopped())
            raise
        self._print_news()
        return True

    def result(self, timeout: float | None = None) -> T:
        """Wait; return the function's result or raise its error. Ctrl-C stops the call.

        Raises:
            StoppedError: it was stopped.
            TimeoutError: it still runs after `timeout` seconds.
            KeyboardInterrupt: Ctrl-C was pressed; the call has ended.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"{self} still runs after {timeout:g} s: wait longer, or stop() it")
        if self.state == "stopped":
            raise StoppedError(self._stopped())
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def __await__(self) -> Generator[Any, None, T]:
        """As `result`, without blocking the event loop; cancelling it stops the call."""
        return self._awaited().__await__()

    async def _awaited(self) -> T:
        try:
            while not self._closed.is_set():
                self._print_news()
                await asyncio.sleep(BEAT / 4)
        except (asyncio.CancelledError, KeyboardInterrupt) as error:
            self.stop()
            while not self._closed.is_set():  # noqa: ASYNC110  # a thread sets it
                await asyncio.sleep(BEAT / 4)
            show_as_line(error, self._stopped())
            raise
        return self.result()

    def summary(self) -> pd.DataFrame:
        """One row of numbers: progress, usage, speed, and the work's facts."""
        now = self._progress.snapshot()
        row: dict[str, Any] = {
            "state": self.state,
            **asdict(now.used),
            "seconds": self._elapsed(),
            "progress": self._line().partition(", ")[2],
            "tokens_per_s": _tokens(now) / self._elapsed(),
            "cache_hit_rate": now.used.cache_hit_rate,
            **now.facts,
        }
        return pd.DataFrame([row], index=[self._name])

    def figure(self) -> Figure:
        """Tokens per second over time, and the energy of a search."""
        energies = [(x, energy) for x, _, energy in self._history.samples if energy is not None]
        lines = [("tokens per second", self._history.speeds()), ("energy, nats", energies)]
        with _drawing:
            figure, axes = new_figure(2 if energies else 1, height=2.4)
            for ax, colour, (name, points) in zip(axes, COLOURS, lines, strict=False):
                x, y = [*zip(*points, strict=True)] or [(), ()]
                ax.plot(x, y, color=colour)
                ax.set(xlabel="time, s", ylabel=name)
                finding(ax, f"{name}: {min(y, default=0):,.0f} to {max(y, default=0):,.0f}")
            axes[0].set_ylim(bottom=0)
        return figure

    def __repr__(self) -> str:
        return f"<job {self._name}: {self._line()}>"

    def _line(self) -> str:
        stages = self._progress.snapshot().stages
        return ", ".join([self.state, *(f"{stage.what} {stage}" for stage in stages)])

    def _stopped(self) -> str:
        return f"{self._name} was {self._line()}; {RESUMES}"

    def _elapsed(self) -> float:
        return self._seconds or max(time.perf_counter() - self._start, 1e-9)

    def _run(self, work: Callable[[], T]) -> None:
        state: Literal["done", "stopped", "failed"] = "done"
        try:
            with self._progress.active():
                self._value = work()
        except (KeyboardInterrupt, StoppedError):
            state = "stopped"
        except BaseException as error:  # noqa: BLE001  # raised by `result`
            self._error, state = error, "failed"
        self._seconds = self._elapsed()
        self.state = state  # last: the error is set before

    def _watch(self, work: Callable[[], T]) -> None:
        """The panel's thread: updates the view, and never interrupts the work."""
        worker = _start(self._run, work)
        try:
            while worker.is_alive():
                self._look()
                worker.join(BEAT)
            self._look()
            if self._widget is not None:
                self._widget.close()
        except Exception:  # noqa: BLE001  # the work continues without it
            log.warning("the view of %s broke; the work continues", self, exc_info=True)
            worker.join()
        finally:
            self._closed.set()
            _running.discard(self)

    def _look(self) -> None:
        now = self._progress.snapshot()
        energy = now.facts.get("energy")
        number = energy if isinstance(energy, float) else None
        self._history.add(self._elapsed(), _tokens(now), number, last=self.state != "running")
        if self._widget is not None:
            self._widget.draw(now)

    def _print_news(self) -> None:
        """Print a line per finished quarter of a stage and one at the end; counts are repeatable.

        The waiting thread prints them, so that a notebook has them in the waiting cell.
        """
        if self._printed is None:
            return
        ended = self.state != "running"  # before the milestones are read: then none is missing
        stages = self._progress.milestones(self._printed)
        self._printed += len(stages)
        for stage in stages:
            alone = stage.what == self._name.rpartition(".")[2]
            print(f"{self._name}{'' if alone else f', {stage.what}'}: {stage}", flush=True)
        if ended:
            self._printed = None
            used = self._progress.snapshot().used
            counts = f", {used.requests:,} requests, {used.failed:,} failed"
            done = f"done{counts}" if used.requests else "done"
            ends = {"done": done, "failed": f"failed, {type(self._error).__name__}"}
            print(f"{self._name}: {ends.get(self.state, self._line())}", flush=True)


def _start(function: Callable[..., None], work: Callable[[], object]) -> threading.Thread:
    run = contextvars.copy_context().run  # output belongs to the starting cell
    thread = threading.Thread(target=run, args=(function, work), name="workbench-job", daemon=True)
    thread.start()
    return thread


@atexit.register
def _stop_all() -> None:
    """Stop all calls when Python exits: running threads would crash the interpreter."""
    for call in (calls := [*_running]):
        call.stop()
    for call in calls:
        call._closed.wait(10)  # seconds


def _tokens(now: Snapshot) -> int:
    return now.used.prompt_tokens + now.used.completion_tokens


class _History:
    """(seconds, tokens so far, energy) at even intervals; halved when there are too many."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int, float | None]] = [(0.0, 0, None)]
        self._every = 0.0  # seconds between entries

    def add(self, seconds: float, tokens: int, energy: float | None, *, last: bool) -> None:
        if last or seconds - self.samples[-1][0] >= self._every:
            self.samples.append((seconds, tokens, energy))
        if len(self.samples) > MAX_SAMPLES:
            self.samples = self.samples[::2]
            self._every = 2 * seconds / MAX_SAMPLES

    def speeds(self) -> list[tuple[float, float]]:
        """(seconds, tokens per second) of equal intervals, in order."""
        seconds, tokens, _ = zip(*self.samples, strict=True)
        if not seconds[-1]:
            return []
        pieces = min(max(int(seconds[-1] / SHORTEST), 1), MAX_SPEEDS)
        ends = np.linspace(0.0, seconds[-1], pieces + 1)
        speeds = np.diff(np.interp(ends, seconds, tokens)) / np.diff(ends)
        return [*zip(ends[1:].tolist(), speeds.tolist(), strict=True)]


class _Widget:
    """Bars, facts, speeds and a button in the cell that starts the call; one thread draws."""

    def __init__(self, call: WatchedCall[Any]) -> None:
        import ipywidgets
        from IPython.display import display

        self._call = call
        self._text = ipywidgets.HTML()
        self._button = ipywidgets.Button(description="Stop", icon="stop", button_style="danger")
        self._button.on_click(lambda _: call.stop())
        self._box = ipywidgets.VBox([self._text, self._button])
        empty = {"text/plain": "", "text/html": ""}
        self._place: Any = display(self._box, display_id=True)  # type: ignore[no-untyped-call]
        self._figure: Any = display(empty, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def draw(self, now: Snapshot) -> None:
        call = self._call
        lines = [f"<b>{escape(call._name)}</b> {call.state}, {call._elapsed():,.0f} s"]
        for stage in now.stages[-8:]:
            bar = f'<progress value="{stage.done}" max="{max(1, stage.total)}"></progress>'
            lines.append(f"{bar} {escape(stage.what)}: {stage} <small>{escape(stage.note)}</small>")
        facts = [f"{escape(name)} <b>{escape(value)}</b>" for name, value in _facts(call, now)]
        text = "".join(f"<div>{line}</div>" for line in [*lines, " · ".join(facts)])
        self._text.value = text + _chart(call._history.speeds())
        if now.stopping and not self._button.disabled:
            self._button.disabled, self._button.description = True, "Stopping"

    def close(self) -> None:
        """Replace the widget by a table and a picture."""
        self._place.update(_ended(self._call), raw=True)
        for widget in (self._box, self._text, self._button):
            for part in filter(None, (widget, widget.layout, getattr(widget, "style", None))):
                part.close()
        if _tokens(self._call._progress.snapshot()):
            figure, file = self._call.figure(), io.BytesIO()
            with _drawing:
                figure.savefig(file, format="png", dpi=80, bbox_inches="tight")
            image = base64.b64encode(file.getvalue()).decode()
            self._figure.update({"image/png": image, "text/plain": "<figure>"}, raw=True)


def _chart(speeds: list[tuple[float, float]]) -> str:
    if len(speeds) < 2:
        return ""
    longest, highest = speeds[-1][0], max(speed for _, speed in speeds) or 1.0
    points = " ".join(
        f"{seconds / longest * WIDTH:.1f},{(1 - speed / highest) * HEIGHT + 1:.1f}"
        for seconds, speed in speeds
    )
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT + 2}" style="background:#f6f6f6">'
        f'<polyline points="{points}" fill="none" stroke="{COLOURS[0]}" stroke-width="1.5"/></svg>'
        f"<div><small>tokens/s over {longest:,.0f} s, at most {highest:,.0f}</small></div>"
    )


def _ended(call: WatchedCall[Any]) -> dict[str, str]:
    """How a call ended, as a table of text."""
    now = call._progress.snapshot()
    rows = [(call._name, f"{call.state}, {call._elapsed():,.1f} s")]
    rows += [(stage.what, f"{stage}{stage.note and f' ({stage.note})'}") for stage in now.stages]
    rows += _facts(call, now)
    width = max(len(name) for name, _ in rows)
    text = "\n".join(f"{name:{width}}  {value}" for name, value in rows)
    return {"text/html": f"<pre>{escape(text)}</pre>", "text/plain": text}


def _facts(call: WatchedCall[Any], now: Snapshot) -> list[tuple[str, str]]:
    """Facts besides the stages: names and formatted values."""
    used, hits = now.used, now.used.cache_hit_rate
    tokens = f"{used.prompt_tokens:,} in prompts, {used.completion_tokens:,} in answers"
    counts = [
        ("failed", used.requests, f"{used.failed:,} of {used.requests:,} requests"),
        ("from the store", used.from_store, f"{used.from_store:,}"),
        ("tokens", used.prompt_tokens, tokens),
        ("tokens/s", used.prompt_tokens, f"{_tokens(now) / call._elapsed():,.0f}"),
        ("cache hits", used.prompt_tokens, "unknown" if hits is None else f"{hits:.0%}"),
        ("retries", used.retries, f"{used.retries:,}"),
        ("too many requests", used.rate_limit_hits, f"{used.rate_limit_hits:,}"),
    ]
    facts = [(name, text) for name, count, text in counts if count]
    for name, value in now.facts.items():
        facts.append((name, f"{value:,.2f}" if isinstance(value, float) else str(value)))
    if call._error is not None:
        message = " ".join(str(call._error).split())
        facts.append(("error", f"{type(call._error).__name__}: {message:.300}"))
    return facts
