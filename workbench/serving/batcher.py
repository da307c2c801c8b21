"""One thread owns the model and runs it over the rows of all requests, each at its own step.

It sleeps until rows wait: from idle it starts when the batch is full or the oldest row has waited
long enough; from then on rows join and leave at every step. It knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.engines.base import failure
from workbench.errors import InputError, WorkbenchError
from workbench.types import Completion

if TYPE_CHECKING:
    from workbench.engines.diffusion import Denoiser, DiffusionEngine, Row
    from workbench.serving.counts import Tally

log = logging.getLogger("workbench")
MOST = 1e6  # seconds that rows may be told to wait for others
LONGEST = 60  # seconds that a client is asked to wait at most
HOPELESS = 2  # failures of the model in a row
JOIN = 10.0  # seconds for the step that is going on when all ends


class ClosedError(WorkbenchError):
    """No more rows are taken."""


class FullError(WorkbenchError):
    """Too many rows wait; `retry_after` is a guess of when to come again, in seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} rows wait already; come again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class News:
    """How far a row is: all its settled text so far, and once it is done its completion."""

    text: str
    forwards: int
    completion: Completion | None = None


@dataclass(eq=False, slots=True)
class Ticket:
    """A row on its way.

    Attributes:
        row: what is denoised.
        deliver: takes the row's news, in the model's thread.
        streams: there is news at each block, and not only at the end.
        gone: it is done or cancelled; the batcher's own.
    """

    row: Row
    deliver: Callable[[News], None]
    streams: bool = False
    arrived: float = field(default_factory=time.monotonic)
    gone: bool = False


class Batcher:
    """The queue before the model, and the thread that runs it.

    Args:
        batch_size: rows at once.
        max_wait_time: seconds that a row waits for others where nothing runs.
        queue_size: most rows that wait.
        tally: where all is counted.

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
        tally: Tally,
    ) -> None:
        if not isinstance(max_wait_time, int | float) or not 0 <= max_wait_time <= MOST:
            raise InputError(f"max_wait_time={max_wait_time!r} must be seconds from 0 to 10^6")
        self._denoiser: Denoiser | None = engine.denoiser(batch_size)
        if not isinstance(queue_size, int) or queue_size < 1:
            raise InputError(f"queue_size={queue_size!r} must be a whole number from 1")
        self._engine, self._tally = engine, tally
        self._slots, self._patience = batch_size, max_wait_time
        self.queue_size = max(queue_size, batch_size)
        self._failures = 0  # of the model, in a row
        self._changed = threading.Condition()
        self._waiting: dict[Ticket, None] = {}  # in order of arrival
        self._leaving: list[Ticket] = []
        self._live: dict[Row, Ticket] = {}  # only the model's thread changes it
        self._hurried = self._closed = False
        self._busy = 0.0  # seconds in the model
        self._finished = 0  # rows
        self._thread = threading.Thread(target=self._run, name="workbench-model", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> bool:
        """The model has failed again and again; it will not answer any more."""
        return self._failures >= HOPELESS

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

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue rows, all or none.

        Raises:
            FullError: too many wait already.
            ClosedError: nothing is taken any more.
        """
        with self._changed:
            if self._closed or self.broken:
                why = "the model fails: start the server again" if self.broken else "it is closed"
                raise ClosedError(f"nothing is taken any more; {why}")
            if len(self._waiting) + len(tickets) > self.queue_size:
                raise FullError(len(self._waiting), self._retry_after())
            self._waiting.update(dict.fromkeys(tickets))
            self._changed.notify()

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Take rows out at the next step; those that are done stay as they are."""
        with self._changed:
            for ticket in tickets:
                if ticket.gone:
                    continue
                ticket.gone = True
                self._tally.add("cancelled")
                if ticket in self._waiting:
                    del self._waiting[ticket]
                else:
                    self._leaving.append(ticket)

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

    def _retry_after(self) -> int:
        """Whole seconds until the rows that wait now may have been served."""
        pace = self._busy / self._finished if self._finished else 0.0
        return max(1, min(LONGEST, math.ceil(pace * len(self._waiting))))

    def _run(self) -> None:
        while self._wait():
            try:
                self._turn()
            except Exception as error:
                self._failures += 1
                log.exception("the model failed; its %d rows are given up", len(self._live))
                lost = [*self._live.values()]
                self._live.clear()
                self._denoiser = None  # nobody knows what state it is in
                self._fail(lost, f"the model failed: {error}")

    def _wait(self) -> bool:
        """Sleep until there is something to do; False once closed."""
        with self._changed:
            while not (self._closed or self._live or self._is_due()):
                self._changed.wait(self._rest())
            return not self._closed

    def _is_due(self) -> bool:
        """Whether to start from idle."""
        if self._hurried or len(self._waiting) >= self.slots:
            return bool(self._waiting)
        rest = self._rest()
        return rest is not None and rest <= 0

    def _rest(self) -> float | None:
        """Seconds that the oldest row may still wait for others; None without rows."""
        oldest = next(iter(self._waiting), None)
        return None if oldest is None else oldest.arrived + self._patience - time.monotonic()

    def _turn(self) -> None:
        """One step of the model, with those who leave before it and those who join."""
        with self._changed:
            leaving, self._leaving = self._leaving, []
        for ticket in leaving:
            if self._live.pop(ticket.row, None) and self._denoiser:
                self._denoiser.remove(ticket.row)
        joining = self._joining()
        if not self._live:
            return
        denoiser = self._denoiser = self._denoiser or self._engine.denoiser(self._slots)
        for ticket in joining:
            denoiser.add(ticket.row)
        before, begun = denoiser.counts, time.monotonic()
        ended = denoiser.step()
        self._busy += time.monotonic() - begun
        self._failures = 0
        self._tally.add_step(before, denoiser.counts)
        for row in ended:
            self._tell(row, denoiser)

    def _joining(self) -> list[Ticket]:
        """The rows that have a slot from now on."""
        with self._changed:
            if not self._live:
                if not self._is_due():  # the last ones have just left
                    return []
                self._tally.add("batches")
            joining = list(self._next(self.slots - sum(row.lanes for row in self._live)))
            for ticket in joining:
                del self._waiting[ticket]
        now = time.monotonic()
        for ticket in joining:
            self._live[ticket.row] = ticket
            self._tally.add_wait(now - ticket.arrived)
        return joining

    def _next(self, free: int) -> Iterator[Ticket]:
        """Those who wait, in order, while there are slots; one in any case where nothing runs."""
        for number, ticket in enumerate(self._waiting):
            free -= ticket.row.lanes
            if free < 0 and (number or self._live):
                return
            yield ticket

    def _tell(self, row: Row, denoiser: Denoiser) -> None:
        """News of a row whose block has ended."""
        ticket = self._live[row]
        if not (row.done or ticket.streams):
            return
        try:
            completion = row.completion() if row.done else None
            news = News(completion.text if completion else row.text(), row.forwards, completion)
        except Exception as error:  # its own fault, not the others'
            log.exception("the text of a row cannot be made")
            denoiser.remove(row)
            lost = failure(f"its text cannot be made: {error}", len(row.prompt))
            news = News("", row.forwards, lost)
        if news.completion is None:
            ticket.deliver(news)
        else:
            del self._live[row]
            self._finished += 1
            self._end(ticket, news)

    def _fail(self, tickets: Iterable[Ticket], reason: str) -> None:
        for ticket in tickets:
            completion = failure(reason, len(ticket.row.prompt))
            self._end(ticket, News("", ticket.row.forwards, completion))

    def _end(self, ticket: Ticket, news: News) -> None:
        with self._changed:
            if ticket.gone:
                return
            ticket.gone = True
        ticket.deliver(news)
