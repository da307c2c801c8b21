"""Whether a server may get requests: its limit, its failures, and doubts about what it serves."""

from __future__ import annotations

import time

from workbench.engines.remote.retry import ConcurrencyLimit

REST = 5.0  # seconds until a failed server is tried again
# Seconds without an answer after which the server may have changed: between calls, in a call.
IDLE, LULL = 0.2, 30.0
# Prompts in flight: at least what most GPUs run at once, at most what the largest do, between them
# what the server answers in so many seconds. A longer queue would be work that no other can take.
LEAST, MOST, QUEUE = 256, 1024, 10.0


class Availability:
    """What a server's answers and failures say about it.

    Args:
        most: requests in flight.
    """

    def __init__(self, most: int) -> None:
        self.limit = ConcurrencyLimit(most)
        self.prompts = 0  # in flight
        self._done, self._began = 0, time.monotonic()  # prompts of a call, and its beginning
        self.answered = 0.0  # time of the last answer, on the monotonic clock
        self._seen_at = 0.0  # time of the last check of what it serves
        self._suspect: float | None = None  # when it may have been restarted
        self._gone = False
        self._failures = 0  # since the last answer
        self._failing_since = self._tried_at = 0.0
        self.rest_until = 0.0  # on the monotonic clock: no requests before, as the server asked
        self._busy_since: float | None = None  # only "too many requests" since then

    def begin(self) -> None:
        """Begin a call: earlier failures do not count."""
        self._failures, self._busy_since, self.rest_until = 0, None, 0.0
        self._done, self._began = 0, time.monotonic()
        if self._idle > IDLE:
            self.suspect(gone=True)

    @property
    def free(self) -> bool:
        """Whether it may get one more request."""
        if not self.limit.free or self.prompts >= MOST:
            return self.limit.free and not self.limit.busy
        often = self._done / max(1.0, time.monotonic() - self._began)  # prompts per second
        return self.prompts < LEAST or self.prompts < QUEUE * often

    def enter(self, prompts: int) -> None:
        """Take a slot for a request with so many prompts."""
        self.limit.enter()
        self.prompts += prompts
        self._tried_at = time.monotonic()

    def leave(self, prompts: int) -> None:
        """Release the slot."""
        self.limit.leave()
        self.prompts -= prompts
        self._done += prompts

    def suspect(self, *, gone: bool = False) -> None:
        """Note that it may have been restarted with another model; `gone`: it did not answer."""
        self._suspect = time.monotonic()
        self._gone = self._gone or gone

    def seen(self) -> None:
        """Note that it was checked and serves the same."""
        self._suspect, self._gone, self._seen_at = None, False, time.monotonic()

    @property
    def doubtful(self) -> bool:
        """Whether to check what it serves first: it was away or idle."""
        idle = not self.limit.in_flight and self._idle > LULL
        return self._suspect is not None or idle

    @property
    def _idle(self) -> float:
        """Seconds since its last answer or check."""
        return time.monotonic() - max(self.answered, self._seen_at)

    def _works(self, sent: float) -> None:
        self._failures, self.answered, self._busy_since = 0, time.monotonic(), None
        if self._suspect is not None and not self._gone and sent < self._suspect:
            self._suspect = None  # a request sent earlier was answered: it was never away

    def failed(self) -> None:
        """Count a failure."""
        self._tried_at = time.monotonic()
        if not self._failures:
            self._failing_since = self._tried_at
        self._failures += 1

    @property
    def promising(self) -> bool:
        """Whether it works as far as is known, or is due for another try."""
        return not self._failures or time.monotonic() - self._tried_at >= REST

    def overloaded(self) -> float:
        """Record "too many requests"; returns the seconds since anything else came."""
        self.limit.overloaded()
        now = time.monotonic()
        if self._busy_since is None:
            self._busy_since = now
        return now - self._busy_since

    def dead(self, seconds: float, least: int) -> bool:
        """Whether at least `least` failures span `seconds`, and no older request is in flight."""
        if self._failures < least or time.monotonic() - self._failing_since <= seconds:
            return False
        return all(sent > self._failing_since for sent in self.limit.in_flight)
