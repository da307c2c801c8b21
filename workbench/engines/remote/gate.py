"""How many requests a server gets at once: adaptive, between 1 and a most; and rate limits.

Additive increase, multiplicative decrease: the limit grows only while it is used up, doubling
until the first "too many requests" and by a twentieth afterwards; it is cut once in a cool-down.
Failures that say nothing about load change nothing.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from aiolimiter import AsyncLimiter

START = 10
SATURATED = 0.8  # of the limit in use, at the least, for the limit to grow
OVERSHOT, CUT = 0.8, 0.85  # what is left of the limit: after doubling, and after that
COOL_DOWN = 2.0  # as a multiple of what a request takes: the cut must have had its effect
LEAST, MOST = 0.2, 15.0  # seconds of it; never what a server asks for: that would freeze the limit
MINUTE = 60.0
BURST = 10.0  # seconds' worth of a minute's limit that may go at once


class Gate:
    """Counts the requests that a server has; use it from one event loop only."""

    def __init__(self, most: int, start: int = START) -> None:
        self.limit = float(min(start, most))
        self.busy = 0
        self.peak = 0  # most at once, ever
        self.sent = 0  # of the busy ones, those that do not wait to be sent again
        self._most = most
        self._doubling = True
        self._cut_at = -MOST
        self._seconds = 1.0  # what a request takes, about
        self._clean = 0  # answers since the round began
        self._used = 0  # most at once since then

    @property
    def free(self) -> bool:
        """Whether one more request may go."""
        return self.busy < int(self.limit)

    @property
    def now(self) -> tuple[int, int]:
        """Requests that the server has, and how many it may have."""
        return self.sent, max(1, int(self.limit))

    def open(self) -> None:
        """Begin at the most: for a server that queues what it cannot run yet."""
        self.limit = float(self._most)

    def enter(self) -> None:
        """Take a slot; it is kept while a request waits to be sent again."""
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        self._used = max(self._used, self.busy)

    def leave(self) -> None:
        """Give the slot back."""
        self.busy -= 1

    async def room(self) -> None:
        """Wait until one more may be sent: the limit may be below the slots that are taken."""
        while self.sent >= max(1, int(self.limit)):  # noqa: ASYNC110  # the limit moves, too
            await asyncio.sleep(min(0.05, max(0.001, self._seconds / 10)))

    def succeeded(self, seconds: float) -> None:
        """A request was answered at its first attempt: after a round of them, try more."""
        self._seconds += (seconds - self._seconds) / 10
        self._clean += 1
        if self._clean < self.limit:
            return
        if self._used >= SATURATED * int(self.limit):
            grown = self.limit * 2 if self._doubling else self.limit + max(1, self.limit / 20)
            self.limit = min(grown, float(self._most))
        self._begin_round()

    def refused(self) -> None:
        """The server had too many requests."""
        now = time.monotonic()
        if now - self._cut_at >= min(MOST, max(LEAST, COOL_DOWN * self._seconds)):
            self._cut_at = now
            self.limit = max(1.0, self.limit * (OVERSHOT if self._doubling else CUT))
        self._doubling = False
        self._begin_round()

    def _begin_round(self) -> None:
        self._clean = 0
        self._used = self.busy


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Requests and tokens that may be sent in a minute; None is no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def open(self) -> RateGate:
        """A gate that keeps to it."""
        return RateGate(self)

    def minutes(self, requests: int, tokens: int) -> float:
        """The least time that so much takes."""
        return max(
            requests / (self.requests_per_minute or float("inf")),
            tokens / (self.tokens_per_minute or float("inf")),
        )


class RateGate:
    """Waits until a request may go."""

    def __init__(self, limit: RateLimit) -> None:
        self._requests = _bucket(limit.requests_per_minute)
        self._tokens = _bucket(limit.tokens_per_minute)

    async def wait(self, tokens: int) -> None:
        """Wait for one request of about so many tokens."""
        if self._requests is not None:
            await self._requests.acquire()
        if self._tokens is not None:
            part = max(1.0, self._tokens.max_rate / 10)  # equal parts: none is put off for long
            for paid in range(0, tokens, int(part)):
                await self._tokens.acquire(min(part, tokens - paid))


def _bucket(a_minute: float | None) -> AsyncLimiter | None:
    """A bucket that lets no more than a few seconds' worth go at once, and at least one."""
    if a_minute is None:
        return None
    burst = max(1.0, a_minute * BURST / MINUTE)
    return AsyncLimiter(burst, burst * MINUTE / a_minute)
