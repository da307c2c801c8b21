"""Sends jobs to servers: in packets, through every server's gate, each until it has an answer.

A few hundred requests are in the air at the most, whatever the number of jobs. A packet that a
server refuses is halved until the one job at fault stands alone and fails alone. A slot is held
while a request waits to be sent again, so that others do not rush in.
"""

from __future__ import annotations

import asyncio
import queue
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from workbench.engines.remote import loop
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.faults import Broken, Busy, Down, Failed, Fatal, Fault, Refused
from workbench.engines.remote.gate import RateGate
from workbench.errors import EngineGoneError

__all__ = ["Dispatcher", "Effort", "Patience", "Plan"]

J = TypeVar("J")
R = TypeVar("R")

WINDOW = 1024  # prompts that a server has at once: what the largest GPUs run, and some queue
LARGEST = 64  # prompts in one request
SHARES = 8  # a call is cut into so many requests at the least, if it has so many prompts
QUICK, SLOW = 10.0, 30.0  # seconds of a request: below it may grow, above it shrinks
UNREAD = 4096  # finished packets that nobody has fetched yet
TRIES = 2  # of a packet with several jobs before it is halved


@dataclass(frozen=True, slots=True)
class Patience:
    """When to give up: on a request by attempts and seconds, on dead servers by seconds."""

    attempts: int = 10
    total: float = 3600.0
    dead: float = 120.0
    first_wait: float = 0.25
    longest_wait: float = 10.0

    def wait(self, failed: int) -> float:
        """Seconds to wait after so many failures: doubling, with jitter."""
        doubled: float = self.first_wait * 2 ** min(failed - 1, 20)
        return min(self.longest_wait, doubled) * random.uniform(0.5, 1.0)


@dataclass(slots=True)
class Effort:
    """What the work took over HTTP so far; `retries` are requests that were asked again."""

    requests: int = 0
    prompts: int = 0
    retries: int = 0
    rate_limit_hits: int = 0


@dataclass(frozen=True, slots=True)
class Plan(Generic[J, R]):
    """How jobs become requests.

    Attributes:
        ask: sends a packet to a server; a result for each job, None where the reply has none.
        together: whether a job may join another one's packet to a server.
        tokens: about how many tokens a job takes, for the rate limit.
        size: most jobs in a packet; None adapts it.
    """

    ask: Callable[[Endpoint, Sequence[J]], Awaitable[Sequence[R | Failed | None]]]
    together: Callable[[Endpoint, J, J], bool]
    tokens: Callable[[J], int]
    size: int | None


class _Trip:
    """A packet's place: the server whose slot it holds."""

    def __init__(self, endpoint: Endpoint, jobs: int) -> None:
        self.endpoint = endpoint
        self._jobs = jobs
        endpoint.prompts += jobs

    def leave(self) -> None:
        self.endpoint.gate.leave()
        self.endpoint.prompts -= self._jobs

    def move(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        endpoint.prompts += self._jobs


class Dispatcher(Generic[J, R]):
    """One call's way to the servers."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        plan: Plan[J, R],
        rate: RateGate,
        patience: Patience,
        effort: Effort,
    ) -> None:
        self._endpoints = endpoints
        self._plan = plan
        self._rate = rate
        self._patience = patience
        self._effort = effort
        self._size = self._largest = plan.size or LARGEST
        self._changed = asyncio.Event()
        self._out: queue.SimpleQueue[list[tuple[J, R | Failed]] | None] = queue.SimpleQueue()

    def run(self, jobs: Sequence[J]) -> Iterator[list[tuple[J, R | Failed]]]:
        """Yield finished jobs as they come; after an interrupt, those that had come by then.

        Raises:
            EngineGoneError: no server can answer.
        """
        if self._plan.size is None:
            self._size = self._largest = max(1, min(LARGEST, -(-len(jobs) // SHARES)))
        future = loop.start(self._send_all(jobs))
        future.add_done_callback(lambda _: self._out.put(None))
        try:
            while (batch := self._out.get()) is not None:
                yield batch
            future.result()
        except KeyboardInterrupt:
            yield from self._stop(future)
            raise
        finally:
            future.cancel()

    def _stop(self, future: Future[None]) -> Iterator[list[tuple[J, R | Failed]]]:
        """End the work; what has arrived is still handed over."""
        future.cancel()
        while not self._out.empty():
            if (batch := self._out.get()) is not None:
                yield batch

    async def _send_all(self, jobs: Sequence[J]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                start = 0
                while start < len(jobs):
                    endpoint = await self._slot()
                    packet = self._packet(jobs, start, endpoint)
                    start += len(packet)
                    group.create_task(self._carry(_Trip(endpoint, len(packet)), packet))
        except BaseExceptionGroup as group_error:
            error = group_error.exceptions[0]  # the others were cancelled because of it
            raise EngineGoneError(str(error)) if isinstance(error, Fatal) else error from None

    def _packet(self, jobs: Sequence[J], start: int, endpoint: Endpoint) -> Sequence[J]:
        end, last = start + 1, min(len(jobs), start + self._size)
        while end < last and self._plan.together(endpoint, jobs[start], jobs[end]):
            end += 1
        return jobs[start:end]

    async def _slot(self, other_than: Endpoint | None = None) -> Endpoint:
        """Wait for a slot at the least loaded server, one that works if there is any."""
        while True:
            there = [e for e in self._endpoints if e is not other_than]
            works = [e for e in there if not e.failures] or there
            for endpoint in sorted(works, key=lambda e: e.gate.busy / e.gate.limit):
                room = endpoint.prompts < WINDOW and self._out.qsize() < UNREAD
                if endpoint.gate.free and (room or not endpoint.gate.busy):
                    endpoint.gate.enter()
                    return endpoint
            self._changed.clear()
            try:
                async with asyncio.timeout(0.2):  # the gates and the reader do not tell
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _carry(self, trip: _Trip, packet: Sequence[J]) -> None:
        try:
            await self._settle(trip, packet)
        finally:
            trip.leave()
            self._changed.set()

    async def _settle(self, trip: _Trip, packet: Sequence[J]) -> None:
        """Give every job of the packet its result, or the reason why it has none."""
        try:
            results = await self._persist(trip, packet)
        except (Refused, Broken, Busy, Down) as fault:
            if len(packet) == 1 or isinstance(fault, Down):
                self._out.put([(job, Failed(str(fault))) for job in packet])
                return
            middle = len(packet) // 2
            await self._settle(trip, packet[:middle])
            await self._settle(trip, packet[middle:])
            return
        pairs = list(zip(packet, results, strict=True))
        self._out.put([(job, result) for job, result in pairs if result is not None])
        if left := [job for job, result in pairs if result is None]:
            await self._settle(trip, left)

    async def _persist(self, trip: _Trip, packet: Sequence[J]) -> Sequence[R | Failed | None]:
        """Ask until there is an answer, patience ends, or asking again is no use."""
        end = time.monotonic() + self._patience.total
        tries = self._patience.attempts if len(packet) == 1 else TRIES
        broken = failed = 0
        while True:
            try:
                results = await self._ask(trip.endpoint, packet, again=failed > 0)
            except (Broken, Busy, Down) as fault:
                failed += 1
                broken += isinstance(fault, Broken)
                self._note(trip.endpoint, fault)
                wait = self._patience.wait(failed)
                if isinstance(fault, Busy) and fault.wait is not None:
                    wait = fault.wait + wait / 10  # not all at the same moment
                if broken >= tries or time.monotonic() + wait > end:
                    raise
                await asyncio.sleep(wait)
                if len(self._endpoints) > 1 and not isinstance(fault, Busy):
                    trip.leave()
                    trip.move(await self._slot(other_than=trip.endpoint))
            else:
                return results

    async def _ask(
        self, endpoint: Endpoint, packet: Sequence[J], *, again: bool
    ) -> Sequence[R | Failed | None]:
        await self._rate.wait(sum(map(self._plan.tokens, packet)))
        await endpoint.gate.room()
        self._effort.requests += 1
        self._effort.prompts += len(packet)
        started = time.monotonic()
        endpoint.gate.sent += 1
        try:
            results = await self._plan.ask(endpoint, packet)
        finally:
            endpoint.gate.sent -= 1
        if all(result is None for result in results):
            raise Broken("the reply has no answer")
        seconds = time.monotonic() - started
        self._adapt(seconds)
        if not again:
            endpoint.gate.succeeded(seconds)
        return results

    def _adapt(self, seconds: float) -> None:
        """Fewer prompts a request where it takes long: its own cost is small then."""
        if self._plan.size is None and seconds > SLOW:
            self._size = max(1, self._size // 2)
        elif seconds < QUICK:
            self._size = min(self._largest, self._size * 2)

    def _note(self, endpoint: Endpoint, fault: Fault) -> None:
        """Tell gate and counters of a failure; end the call where every server is dead."""
        self._effort.retries += 1
        if isinstance(fault, Busy):
            self._effort.rate_limit_hits += 1
            endpoint.gate.refused()
            return
        endpoint.failed()
        patience = self._patience
        enough = 1 if isinstance(fault, Down) else 5 * patience.attempts
        if all(e.failing_for > patience.dead and e.failures >= enough for e in self._endpoints):
            names = ", ".join(e.shown for e in self._endpoints)
            raise Fatal(
                f"{names}: nothing but failures for {patience.dead:g} s, the last: {fault}. What "
                "was finished is kept: run it again when the server is back"
            )
