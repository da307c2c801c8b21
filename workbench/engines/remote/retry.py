"""When to retry a request, and how many to send: errors by remedy, waits, limits.

Concurrency adapts by additive increase and multiplicative decrease. The limit grows only while it
is used up: it doubles until the first "too many requests", then grows by a twentieth. It is cut
at most once per cool-down. Failures that say nothing about load do not change it.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from aiolimiter import AsyncLimiter

TOO_MANY = (429, 529)
CONFIGURATION = (401, 402, 403, 404, 405)  # wrong for every request, not just this one
PASSING = (408, 409, 425)
AWAY = (502, 503)
FIRST_WAIT, LONGEST_WAIT = 0.25, 10.0  # seconds before a retry
START = 10  # initial limit of requests in flight
SATURATED = 0.8  # the least share of the limit in use for the limit to grow
OVERSHOT, CUT = 0.8, 0.85  # factors for a cut: while doubling, and later
COOL_DOWN = 2.0  # times the duration of a request: the cut must take effect first
LEAST, MOST = 0.2, 15.0  # its bounds in seconds; without Retry-After, which would freeze the limit
BURST = 10.0  # seconds' worth of the limit per minute that may be sent at once


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job has no result: an error as data."""

    reason: str


class RequestError(Exception):
    """A request without an answer.

    Attributes:
        status: the HTTP status, if there was one.
        retry_after: seconds that the server asks to wait, if it says so.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class RejectedError(RequestError):
    """The server refuses this request; a retry cannot help."""


class RetryableError(RequestError):
    """This reply is unusable (an error inside, cut short, not JSON, too late): retry."""


class RateLimitedError(RequestError):
    """Too many requests."""


class UnreachableError(RequestError):
    """The server cannot be reached or is starting: retry until the budget is spent."""


class FatalError(RequestError):
    """No request can succeed there (a wrong key, an unknown model)."""


AGAIN = (RetryableError, RateLimitedError, UnreachableError)  # errors that a retry may fix


def error_of_status(
    status: int, text: str, headers: Mapping[str, str], *, has_answered: bool
) -> RequestError:
    """The error for an HTTP status; once the server has answered, 403 concerns the request only."""
    kind: type[RequestError] = RejectedError
    if status in TOO_MANY and "insufficient_quota" not in text:
        kind = RateLimitedError
    elif status == 403 and has_answered:
        kind = RejectedError
    elif status in CONFIGURATION or status in TOO_MANY:
        kind = FatalError
    elif status in AWAY:
        kind = UnreachableError
    elif status in PASSING or status >= 500:
        kind = RetryableError
    message = f"HTTP {status}: {text}" if text else f"HTTP {status}"
    wait = _retry_after(headers) if kind in (RateLimitedError, UnreachableError) else None
    return kind(message, status=status, retry_after=wait)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait; it sends seconds, milliseconds or a date."""
    text = headers.get("retry-after", "").strip()
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif not text or text[0].isdigit():
            seconds = float(text or "nan")
        else:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, ArithmeticError, OSError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures: doubled each time, with jitter."""
    doubled: float = FIRST_WAIT * 2 ** min(failures - 1, 20)
    return min(LONGEST_WAIT, doubled) * random.uniform(0.5, 1.0)


class ConcurrencyLimit:
    """How many requests a server may have at once; for use from one event loop only."""

    def __init__(self, most: int, start: int = START) -> None:
        self.limit = float(min(start, most))
        self.busy = 0
        self.peak = 0  # maximum so far
        self.in_flight: list[float] = []  # start times, without requests that wait for a retry
        self._most = most
        self._doubling = True
        self._cut_at = -MOST
        self._seconds = 1.0  # moving average of a request's duration
        self._clean = 0  # answers since the round began
        self._used = 0  # maximum in use since then

    @property
    def free(self) -> bool:
        """Whether one more request may be sent."""
        return self.busy < int(self.limit)

    @property
    def allowed(self) -> int:
        return max(1, int(self.limit))

    def open(self) -> None:
        """Begin at the maximum: for a server that queues requests itself."""
        self.limit = float(self._most)

    def enter(self) -> None:
        """Take a slot; a request keeps it while it waits for a retry."""
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        self._used = max(self._used, self.busy)

    def leave(self) -> None:
        self.busy -= 1

    async def room(self) -> None:
        """Wait until one more may be sent: the limit may have fallen below the slots taken."""
        while len(self.in_flight) >= self.allowed:  # noqa: ASYNC110  # the limit changes, too
            await asyncio.sleep(min(0.05, max(0.001, self._seconds / 10)))

    @contextmanager
    def sending(self, started: float) -> Iterator[None]:
        """Mark the request of this block as in flight."""
        self.in_flight.append(started)
        try:
            yield
        finally:
            self.in_flight.remove(started)

    def succeeded(self, seconds: float) -> None:
        """Record an answer at the first attempt; after a full round of them, raise the limit."""
        self._seconds += (seconds - self._seconds) / 10
        self._clean += 1
        if self._clean < self.limit:
            return
        if self._used >= SATURATED * int(self.limit):
            grown = self.limit * 2 if self._doubling else self.limit + max(1, self.limit / 20)
            self.limit = min(grown, float(self._most))
        self._begin_round()

    def overloaded(self) -> None:
        """Record "too many requests"."""
        now = time.monotonic()
        if now - self._cut_at >= min(MOST, max(LEAST, COOL_DOWN * self._seconds)):
            self._cut_at = now
            self.limit = max(1.0, self.limit * (OVERSHOT if self._doubling else CUT))
        self._doubling = False
        self._begin_round()

    def _begin_round(self) -> None:
        self._clean, self._used = 0, self.busy


class RateLimit:
    """Requests and tokens allowed per minute; None is no limit."""

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        self._a_minute = (requests, tokens)
        self._requests, self._tokens = map(_limiter, self._a_minute)

    def minutes(self, requests: int, tokens: int) -> float:
        """The least number of minutes that so much takes; 0 without limits."""
        pairs = zip((requests, tokens), self._a_minute, strict=True)
        return max(count / (limit or math.inf) for count, limit in pairs)

    def __bool__(self) -> bool:
        return any(self._a_minute)

    async def wait(self, tokens: int) -> None:
        """Wait until one request of about so many tokens may be sent."""
        if self._requests is not None:
            await self._requests.acquire()
        if self._tokens is not None:
            part = max(1.0, self._tokens.max_rate / 10)  # equal parts, so that none waits for long
            for paid in range(0, tokens, int(part)):
                await self._tokens.acquire(min(part, tokens - paid))


def _limiter(a_minute: float | None) -> AsyncLimiter | None:
    """A limiter that lets a few seconds' worth through at once, and at least one."""
    if a_minute is None:
        return None
    burst = max(1.0, a_minute * BURST / 60)
    return AsyncLimiter(burst, burst * 60 / a_minute)
