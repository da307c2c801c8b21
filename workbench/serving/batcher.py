"""One thread owns the model and runs it over the rows of all requests, each at its own step.

It sleeps until rows wait: from idle it starts when the batch is full or the oldest row has waited
long enough; from then on rows join and leave at every step. It knows nothing of HTTP.
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
from workbench.errors import WorkbenchError
from workbench.types import Completion

if TYPE_CHECKING:
    from workbench.engines.diffusion import Counts, Denoiser, DiffusionEngine, Row

logger = logging.getLogger("workbench")
LONGEST_WAIT = 1e6  # seconds that rows may be told to wait for others
LATEST_RETRY = 60  # seconds that a client is asked to wait at most
MOST_FAILURES = 2  # of the model in a row
JOIN = 10.0  # seconds for the running step when all ends
WAITS = 4096  # the latest, for quantiles


class ClosedError(WorkbenchError):
    """No more rows are taken."""


class FullError(WorkbenchError):
    """Too many rows wait; `retry_after` is a guess of when to come again, in seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} rows wait already; come again in {retry_after} s")
        self.retry_after = retry_after


class ServerStats:
    """What a server has done since it started; any thread may add, and looking resets nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._fill: Counter[int] = Counter()
        self._waits: deque[float] = deque(maxlen=WAITS)

    def add(self, name: str) -> None:
        """One more of "requests", "batches" or "cancelled" rows."""
        with self._lock:
            self._counts[name] += 1

    def add_error(self, kind: str) -> None:
        """An answer that was an error, by its OpenAI type."""
        with self._lock:
            self._errors[kind] += 1

    def add_wait(self, seconds: float) -> None:
        """A row's time from its arrival to its first forward."""
        with self._lock:
            self._waits.append(seconds)

    def add_step(self, before: Counts, after: Counts) -> None:
        """What a step of the denoiser did."""
        earlier = asdict(before)
        new = {name: value - earlier[name] for name, value in asdict(after).items()}
        with self._lock:
            self._counts.update(new)
            if forwards := new["forwards"]:  # most often one, or one a kind of cache
                rows, more = divmod(new["rows"], forwards)
                self._fill[rows] += forwards - more
                self._fill[rows + 1] += more

    def view(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        with self._lock:
            counts, waits = self._counts.copy(), sorted(self._waits)
            errors, fill = sorted(self._errors.items()), sorted(self._fill.items())
        last = len(waits) - 1
        quantiles = {"p50": len(waits) // 2, "p95": int(0.95 * len(waits))}
        forwards, tokens = counts["forwards"], counts["tokens"]
        return {
            **{name: counts[name] for name in ("requests", "batches", "cancelled")},
            "errors": dict(errors),
            "fill": {str(rows): times for rows, times in fill if times},
            "wait_seconds": {
                name: waits[min(last, at)] if waits else None for name, at in quantiles.items()
            },
            "forwards": forwards,
            "tokens_committed": counts["committed"],
            "tokens_committed_per_forward": counts["committed"] / forwards if forwards else None,
            "padding_share": counts["padding"] / tokens if tokens else None,
            "out_of_memory": counts["out_of_memory"],
        }


@dataclass(frozen=True, slots=True)
class RowUpdate:
    """How far a row is: all its settled text so far, and once it is done its completion."""

    text: str
    forwards: int
    completion: Completion | None = None


@dataclass(eq=False, slots=True)
class QueuedRow:
    """A row on its way.

    Attributes:
        row: what is denoised.
        deliver: takes the row's updates, in the model's thread.
        streams: there is an update at each block, and not only at the end.
        gone: it is done or cancelled; the batcher's own.
    """

    row: Row
    deliver: Callable[[RowUpdate], None]
    streams: bool = False
    arrived: float = field(default_factory=time.monotonic)
    gone: bool = False


class Batcher:
    """The queue before the model, and the thread that runs it.

    Args:
        batch_size: rows at once.
        max_wait_time: seconds that a row waits for others where nothing runs.
        queue_size: most rows that wait.
        stats: where all is counted.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(
        self,
        engine: DiffusionEngine,
        *,
        batch_size: int,
        max_wait_time: float,
        queue_size: int,
        stats: ServerStats,
    ) -> None:
        self._max_wait = values.real("max_wait_time", max_wait_time, 0, LONGEST_WAIT)
        self._denoiser: Denoiser | None = engine.denoiser(batch_size)
        self.queue_size = max(values.whole("queue_size", queue_size, 1), batch_size)
        self._engine, self._stats, self._slots = engine, stats, batch_size
        self._failures = 0  # of the model, in a row
        self._changed = threading.Condition()
        self._waiting: dict[QueuedRow, None] = {}  # in order of arrival
        self._leaving: list[QueuedRow] = []
        self._live: dict[Row, QueuedRow] = {}  # only the model's thread changes it
        self._hurried = self._closed = False
        self._busy = 0.0  # seconds in the model
        self._finished = 0  # rows
        self._thread = threading.Thread(target=self._run, name="workbench-model", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> bool:
        """The model has failed again and again; it will not answer any more."""
        return self._failures >= MOST_FAILURES

    @property
    def live(self) -> int:
        """Rows being denoised."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Rows that have no slot yet."""
        return len(self._waiting)

    @property
    def slots(self) -> int:
        """Rows at once; fewer than asked for once memory ran out."""
        denoiser = self._denoiser
        return denoiser.slots if denoiser else self._slots

    def submit(self, rows: Sequence[QueuedRow]) -> None:
        """Queue rows, all or none.

        Raises:
            FullError: too many wait already.
            ClosedError: nothing is taken any more.
        """
        with self._changed:
            if self._closed or self.broken:
                why = "the model fails: start the server again" if self.broken else "it is closed"
                raise ClosedError(f"nothing is taken any more; {why}")
            if len(self._waiting) + len(rows) > self.queue_size:
                pace = self._busy / self._finished if self._finished else 0.0  # seconds a row
                guess = math.ceil(pace * len(self._waiting))
                raise FullError(len(self._waiting), max(1, min(LATEST_RETRY, guess)))
            self._waiting.update(dict.fromkeys(rows))
            self._changed.notify()

    def cancel(self, rows: Iterable[QueuedRow]) -> None:
        """Take rows out at the next step; those that are done stay as they are."""
        with self._changed:
            for queued in rows:
                if queued.gone:
                    continue
                queued.gone = True
                self._stats.add("cancelled")
                if queued in self._waiting:
                    del self._waiting[queued]
                else:
                    self._leaving.append(queued)

    def hurry(self) -> None:
        """Wait for no more rows to come: start with what is there."""
        with self._changed:
            self._hurried = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread; what is not done fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(JOIN)
        self._fail([*self._live.copy().values(), *self._waiting], "the server was closed")
        self._denoiser = None

    def _run(self) -> None:
        while self._wait():
            try:
                self._step()
            except Exception as error:
                self._failures += 1
                logger.exception("the model failed; its %d rows are given up", len(self._live))
                lost = [*self._live.values()]
                self._live.clear()
                self._denoiser = None  # nobody knows what state it is in
                self._fail(lost, f"the model failed: {error}")

    def _wait(self) -> bool:
        """Sleep until there is something to do; False once closed."""
        with self._changed:
            while not (self._closed or self._live or self._seconds_to_start() <= 0):
                self._changed.wait(min(self._seconds_to_start(), threading.TIMEOUT_MAX))
            return not self._closed

    def _seconds_to_start(self) -> float:
        """How long the oldest row may still wait for others; infinite without rows."""
        if not self._waiting:
            return math.inf
        if self._hurried or len(self._waiting) >= self.slots:
            return 0.0
        return next(iter(self._waiting)).arrived + self._max_wait - time.monotonic()

    def _step(self) -> None:
        """One step of the model, with those who leave before it and those who join."""
        with self._changed:
            for queued in self._leaving:
                if self._live.pop(queued.row, None) and self._denoiser:
                    self._denoiser.remove(queued.row)
            self._leaving.clear()
            joining = self._admit()
        if not self._live:
            return
        denoiser = self._denoiser = self._denoiser or self._engine.denoiser(self._slots)
        for row in joining:
            denoiser.add(row)
        before, begun = denoiser.counts, time.monotonic()
        ended = denoiser.step()
        self._busy += time.monotonic() - begun
        self._failures = 0
        self._stats.add_step(before, denoiser.counts)
        for row in ended:
            self._report(row, denoiser)

    def _admit(self) -> list[Row]:
        """The rows that have a slot from now on, in order; one at least where nothing runs."""
        if not self._live:
            if self._seconds_to_start() > 0:  # the last ones have just left
                return []
            self._stats.add("batches")
        joining, now = [], time.monotonic()
        free = self.slots - sum(row.lanes for row in self._live)
        for queued in [*self._waiting]:
            free -= queued.row.lanes
            if free < 0 and self._live:
                break
            del self._waiting[queued]
            self._live[queued.row] = queued
            self._stats.add_wait(now - queued.arrived)
            joining.append(queued.row)
        return joining

    def _report(self, row: Row, denoiser: Denoiser) -> None:
        """Deliver the update of a row whose block has ended."""
        queued = self._live[row]
        if not (row.done or queued.streams):
            return
        try:
            completion = row.completion() if row.done else None
            text = completion.text if completion else row.text()
        except Exception as error:  # its own fault, not the others'
            logger.exception("the text of a row cannot be made")
            denoiser.remove(row)
            text, completion = "", failure(f"its text cannot be made: {error}", len(row.prompt))
        if completion is None:
            queued.deliver(RowUpdate(text, row.forwards))
        else:
            del self._live[row]
            self._finished += 1
            self._end(queued, RowUpdate(text, row.forwards, completion))

    def _fail(self, rows: Iterable[QueuedRow], reason: str) -> None:
        for queued in rows:
            lost = failure(reason, len(queued.row.prompt))
            self._end(queued, RowUpdate("", queued.row.forwards, lost))

    def _end(self, queued: QueuedRow, update: RowUpdate) -> None:
        with self._changed:
            if queued.gone:
                return
            queued.gone = True
        queued.deliver(update)
