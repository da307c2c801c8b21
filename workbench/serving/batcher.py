"""One thread owns the model and runs it over the rows of all requests, each at its own step.

It sleeps until rows arrive. When idle, it starts once the batch is full or the oldest row has
waited long enough. After that, rows join and leave at every step.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from workbench import values
from workbench.engines.base import failure
from workbench.serving.protocol import ApiError
from workbench.types import Completion

if TYPE_CHECKING:
    from workbench.engines.diffusion import Counts, Denoiser, DiffusionEngine, Row

logger = logging.getLogger("workbench")
LONGEST_WAIT = 1e6  # maximum of `max_wait_time`, in seconds
LATEST_RETRY = 60  # maximum of Retry-After, in seconds
MOST_FAILURES = 2  # of the model, consecutive
JOIN = 10.0  # seconds for the running step when the server stops
WAITS = 4096  # number of latest waits kept for quantiles


class ServerStats:
    """Counts since the server started; any thread may add, and reading does not reset them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._fill: Counter[int] = Counter()
        self._waits: deque[float] = deque(maxlen=WAITS)

    def add(self, name: str) -> None:
        """Add one to "requests", "batches" or "cancelled" rows."""
        with self._lock:
            self._counts[name] += 1

    def add_error(self, kind: str) -> None:
        """Count an error reply, by its OpenAI type."""
        with self._lock:
            self._errors[kind] += 1

    def add_wait(self, seconds: float) -> None:
        """Record a row's time from its arrival to its first forward, in seconds."""
        with self._lock:
            self._waits.append(seconds)

    def add_step(self, before: Counts, after: Counts) -> None:
        """Record a step of the denoiser, by its counts before and after."""
        earlier = asdict(before)
        new = {name: value - earlier[name] for name, value in asdict(after).items()}
        with self._lock:
            self._counts.update(new)
            if forwards := new["forwards"]:  # usually one, or one per kind of cache
                rows, more = divmod(new["rows"], forwards)
                self._fill[rows] += forwards - more
                self._fill[rows + 1] += more

    def view(self) -> dict[str, Any]:
        """All counts, as JSON types."""
        with self._lock:
            counts, waits = self._counts.copy(), sorted(self._waits)
            errors, fill = sorted(self._errors.items()), sorted(self._fill.items())
        at = {"p50": len(waits) // 2, "p95": int(0.95 * len(waits))}
        forwards, tokens = counts["forwards"], counts["tokens"]
        return {
            **{name: counts[name] for name in ("requests", "batches", "cancelled")},
            "errors": dict(errors),
            "fill": {str(rows): times for rows, times in fill if times},
            "wait_seconds": {name: waits[i] if waits else None for name, i in at.items()},
            "forwards": forwards,
            "tokens_committed": counts["committed"],
            "tokens_committed_per_forward": counts["committed"] / forwards if forwards else None,
            "padding_share": counts["padding"] / tokens if tokens else None,
            "out_of_memory": counts["out_of_memory"],
        }


@dataclass(frozen=True, slots=True)
class RowUpdate:
    """A row's progress: all its settled text, and its completion once it is done."""

    text: str
    forwards: int
    completion: Completion | None = None


@dataclass(frozen=True, eq=False, slots=True)
class QueuedRow:
    """A row in progress; `deliver` receives its updates, in the model's thread."""

    row: Row
    deliver: Callable[[RowUpdate], None]
    streams: bool = False  # an update per block, not only at the end
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """The queue for the model, and the thread that runs it; see `serve_diffusion`.

    Attributes:
        waiting: rows without a slot, in order of arrival.
        live: rows being denoised; only the model's thread changes it.
        stats: the counts.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(
        self, engine: DiffusionEngine, *, batch_size: int, max_wait_time: float, queue_size: int
    ) -> None:
        self._max_wait = values.real("max_wait_time", max_wait_time, 0, LONGEST_WAIT)
        self._denoiser: Denoiser | None = engine.denoiser(batch_size)
        self.queue_size = max(values.whole("queue_size", queue_size, 1), batch_size)
        self._engine, self._slots, self.stats = engine, batch_size, ServerStats()
        self._failures = 0  # of the model, consecutive
        self._changed = threading.Condition()
        self.waiting: dict[QueuedRow, None] = {}
        self.live: dict[Row, QueuedRow] = {}
        self._leaving: list[Row] = []
        self._hurried = self._closed = False
        self._busy = 0.0  # seconds in the model
        self._finished = 0  # rows
        self._thread = threading.Thread(target=self._run, name="workbench-model", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> bool:
        """Whether the model has failed repeatedly; then it no longer answers."""
        return self._failures >= MOST_FAILURES

    @property
    def slots(self) -> int:
        """Maximum number of rows in a batch; reduced when memory ran out."""
        denoiser = self._denoiser
        return denoiser.slots if denoiser else self._slots

    def submit(self, rows: Sequence[QueuedRow]) -> None:
        """Queue all rows, or none.

        Raises:
            ApiError: the queue is full (with an estimate for Retry-After), or the server accepts no
                more requests.
        """
        with self._changed:
            if self._closed or self.broken:
                why = "the model fails: restart the server" if self.broken else "it is closed"
                raise ApiError(503, f"no more requests are accepted: {why}")
            if len(self.waiting) + len(rows) > self.queue_size:
                pace = self._busy / self._finished if self._finished else 0.0  # seconds per row
                seconds = max(1, min(LATEST_RETRY, math.ceil(pace * len(self.waiting))))
                message = f"{len(self.waiting)} rows are waiting already; retry in {seconds} s"
                wait = {"Retry-After": str(seconds)}
                raise ApiError(429, message, code="queue_full", headers=wait)
            self.waiting.update(dict.fromkeys(rows))
            self._changed.notify()

    def cancel(self, rows: Iterable[QueuedRow]) -> None:
        """Remove rows at the next step, except finished ones."""
        with self._changed:
            for queued in rows:
                if queued in self.waiting:
                    del self.waiting[queued]
                elif queued.row in self.live:
                    self._leaving.append(queued.row)
                else:
                    continue
                self.stats.add("cancelled")

    def hurry(self) -> None:
        """Start at once with the rows that are there."""
        with self._changed:
            self._hurried = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread; unfinished rows fail."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(JOIN)
        self._fail([*self.live.copy().values(), *self.waiting], "the server was closed")
        self._denoiser = None

    def _run(self) -> None:
        while self._wait():
            try:
                self._step()
            except Exception as error:
                self._failures += 1
                logger.exception("the model failed; its %d rows are lost", len(self.live))
                lost = [*self.live.values()]
                self.live.clear()
                self._denoiser = None  # its state is unknown
                self._fail(lost, f"the model failed: {error}")

    def _wait(self) -> bool:
        """Sleep until there is something to do; False once closed."""
        with self._changed:
            while not (self._closed or self.live or self._seconds_to_start() <= 0):
                self._changed.wait(min(self._seconds_to_start(), threading.TIMEOUT_MAX))
            return not self._closed

    def _seconds_to_start(self) -> float:
        """How long the oldest row may still wait for others; infinite without rows."""
        if not self.waiting:
            return math.inf
        if self._hurried or len(self.waiting) >= self.slots:
            return 0.0
        return next(iter(self.waiting)).arrived + self._max_wait - time.monotonic()

    def _step(self) -> None:
        """One step of the model, after cancelled rows have left and waiting rows have joined."""
        with self._changed:
            for row in self._leaving:
                if self.live.pop(row, None) and self._denoiser:
                    self._denoiser.remove(row)
            self._leaving.clear()
            joining = self._admit()
        if not self.live:
            return
        denoiser = self._denoiser = self._denoiser or self._engine.denoiser(self._slots)
        for row in joining:
            denoiser.add(row)
        before, begun = denoiser.counts, time.monotonic()
        ended = denoiser.step()
        self._busy += time.monotonic() - begun
        self._failures = 0
        self.stats.add_step(before, denoiser.counts)
        for row in ended:
            self._report(row, denoiser)

    def _admit(self) -> list[Row]:
        """Give slots to waiting rows, in order; at least to one if nothing runs."""
        if not self.live:
            if self._seconds_to_start() > 0:  # the last rows have just left
                return []
            self.stats.add("batches")
        joining, now = [], time.monotonic()
        free = self.slots - sum(row.slots for row in self.live)
        for queued in [*self.waiting]:
            free -= queued.row.slots
            if free < 0 and self.live:
                break
            del self.waiting[queued]
            self.live[queued.row] = queued
            self.stats.add_wait(now - queued.arrived)
            joining.append(queued.row)
        return joining

    def _report(self, row: Row, denoiser: Denoiser) -> None:
        """Deliver the update of a row whose block has ended."""
        queued = self.live[row]
        if not (row.done or queued.streams):
            return
        try:
            completion = row.completion() if row.done else None
            text = completion.text if completion else row.text()
        except Exception as error:  # it concerns this row only
            logger.exception("the text of a row cannot be decoded")
            denoiser.remove(row)
            text, completion = "", failure(f"its text cannot be decoded: {error}", len(row.prompt))
        if completion is not None:
            del self.live[row]
            self._finished += 1
        queued.deliver(RowUpdate(text, row.forwards, completion))

    def _fail(self, rows: Iterable[QueuedRow], reason: str) -> None:
        for queued in rows:
            lost = failure(reason, len(queued.row.prompt))
            queued.deliver(RowUpdate("", queued.row.forwards, lost))
