"""Sends jobs to servers in packets, within each server's limit, with retries.

At most a few hundred requests are in flight, however many jobs there are. A packet that a server
refuses is halved until the faulty job fails alone. A request keeps its slot while it waits for a
retry, so that other requests do not take its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from workbench.engines.remote import placement
from workbench.engines.remote.endpoint import ONE_PROMPT, Endpoint
from workbench.engines.remote.fleet import LOOK, NEW, Fleet
from workbench.engines.remote.http import start_coroutine
from workbench.engines.remote.retry import (
    AGAIN,
    Failure,
    FatalError,
    RateLimit,
    RateLimitedError,
    RejectedError,
    RequestError,
    RetryableError,
    UnreachableError,
    backoff,
)
from workbench.engines.remote.settings import RemoteOptions
from workbench.errors import EngineGoneError
from workbench.progress import check, current
from workbench.types import Usage

log = logging.getLogger("workbench")
KEPT = "What was finished is kept: run it again"
J = TypeVar("J")
R = TypeVar("R")

QUICK, SLOW = 10.0, 30.0  # seconds per request: below it packets may grow, above it they shrink
UNREAD = 4096  # finished packets that the caller has not fetched yet
TRIES = 2  # attempts for a packet with several jobs before it is halved
LONG = 10.0  # seconds of waiting that are worth a message
ENDING = 0.5  # seconds for requests to notice that the call has ended


@dataclass(frozen=True, slots=True)
class Plan(Generic[J, R]):
    """How jobs become requests.

    Attributes:
        ask: sends a packet to a server; returns a result per job, None where the reply has none.
        together: whether a second job may share a packet with the first, for a given server.
        tokens: about how many tokens a job uses, for the rate limit.
        size: maximum number of jobs in a packet; None adapts it.
        spare: receives finished jobs that the caller did not fetch.
        text: what a job's server computes from; jobs that begin alike prefer the same server.
    """

    ask: Callable[[Endpoint, Sequence[J]], Awaitable[Sequence[R | Failure | None]]]
    together: Callable[[Endpoint, J, J], bool]
    tokens: Callable[[J], int]
    size: int | None
    spare: Callable[[list[tuple[J, R | Failure]]], None] = lambda _: None
    text: Callable[[J], str] = lambda _: ""


@dataclass(eq=False)
class Dispatcher(Generic[J, R]):
    """Runs one call's jobs on the servers.

    Attributes:
        fleet: the servers, absent ones included; they may change during the call.
        plan: how jobs become requests.
        rate: requests and tokens allowed per minute.
        options: timeouts and numbers of attempts.
        count: called with retries and rate-limit hits.
        look: raises a `RequestError` if a server does not serve what the call needs.
    """

    fleet: Fleet
    plan: Plan[J, R]
    rate: RateLimit
    options: RemoteOptions
    count: Callable[[Usage], None]
    look: Callable[[Endpoint], Awaitable[None]]

    def __post_init__(self) -> None:
        self.fleet.refresh()
        self._used, self._requests, self._prompts = Usage(), 0, 0
        self._changed, self._ended = asyncio.Event(), threading.Event()
        self._left_out: dict[Endpoint, str] = {}  # server: reason
        self._warned = set[object]()  # topics of warnings that were logged already
        self._progress = current()  # reported from the loop's thread, too
        self._out: queue.SimpleQueue[list[tuple[J, R | Failure]] | None] = queue.SimpleQueue()

    def run(self, jobs: Sequence[J]) -> Iterator[list[tuple[J, R | Failure]]]:
        """Yield finished jobs as they arrive; unfetched ones go to the plan's `spare`.

        Raises:
            EngineGoneError: no server is left that can answer.
        """
        self._size = self.plan.size or placement.shares(len(jobs), len(self._present()))
        self._largest = self._size
        batch: list[tuple[J, R | Failure]] | None = None
        future = start_coroutine(self._send_all(jobs))
        future.add_done_callback(lambda _: self._out.put(None))
        try:
            while True:
                self._show_progress()
                check()
                try:
                    batch = self._out.get(timeout=0.5)  # short, to notice an interrupt
                except queue.Empty:
                    continue
                if batch is None:
                    break
                yield batch
                batch = None
            future.result()
        finally:
            future.cancel()
            self._ended.wait(ENDING)  # for results that arrive at this moment
            while not self._out.empty():
                self.plan.spare(batch or [])
                batch = self._out.get()
            self.plan.spare(batch or [])
            self._show_progress(ended=True)
            text = (
                f"{self._requests} requests of {self._prompts / max(1, self._requests):.1f} "
                f"prompts, at most {sum(e.limit.peak for e in self.fleet.endpoints)} at once, "
                f"{self._used.retries} retried, {self._used.rate_limit_hits} of them for too "
                "many requests"
            )
            log.info("remote: %s", text)

    def _show_progress(self, *, ended: bool = False) -> None:
        if self._progress is not None:
            limits = [endpoint.limit for endpoint in self.fleet.endpoints]
            sent = sum(len(limit.in_flight) for limit in limits)
            now = f"{sent} of {sum(limit.allowed for limit in limits)} allowed"
            self._progress.fact("requests in flight", None if ended else now)
            self._progress.fact("peak requests in flight", sum(limit.peak for limit in limits))

    async def _send_all(self, jobs: Sequence[J]) -> None:
        for endpoint in self.fleet.endpoints:
            endpoint.begin()
        joining = asyncio.create_task(self.fleet.watch(self.look, self._joined))
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                start = 0
                while start < len(jobs):
                    endpoint = await self._free_endpoint(*self._ahead(jobs, start))
                    packet = self._packet(jobs, start, endpoint)
                    start += len(packet)
                    slot = placement.Slot(endpoint, len(packet), self._changed)
                    task = group.create_task(self._settle(slot, packet))
                    task.add_done_callback(slot.leave)
        except ExceptionGroup as group_error:
            failure = group_error.exceptions[0]  # it cancelled the others
        finally:
            joining.cancel()
            self._ended.set()
        # Not within `except`: IPython prints nothing of an error with a group as its context.
        if failure is not None:
            raise EngineGoneError(str(failure)) if isinstance(failure, FatalError) else failure

    def _present(self) -> list[Endpoint]:
        return [e for e in self.fleet.endpoints if e not in self._left_out and e.absent is None]

    def _coming(self) -> bool:
        """Whether servers that have just been listed are being checked."""
        return any(e.absent == NEW for e in self.fleet.endpoints)

    def _others(self, endpoint: Endpoint) -> bool:
        return self._present() not in ([], [endpoint])

    def _joined(self, endpoint: Endpoint) -> None:
        self._left_out.pop(endpoint, None)
        self._changed.set()

    def _packet(self, jobs: Sequence[J], start: int, endpoint: Endpoint) -> Sequence[J]:
        end, last = start + 1, start + self._next_size(len(jobs) - start)
        while end < last and self.plan.together(endpoint, jobs[start], jobs[end]):
            end += 1
        return jobs[start:end]

    def _ahead(self, jobs: Sequence[J], start: int) -> tuple[int, int]:
        """The prefix that the next packet's jobs share, and how many packets are left."""
        size = self._next_size(left := len(jobs) - start)
        last = min(start + max(2, size), len(jobs)) - 1
        texts = [self.plan.text(jobs[at]) for at in (start, last)]
        return placement.prefix_of(*texts), -(-left // size)

    def _next_size(self, left: int) -> int:
        servers = 1 if self.plan.size else len(self._present())
        return min(self._size, placement.last_shares(left, servers))

    async def _free_endpoint(
        self, prefix: int = 0, left: int = 0, other_than: Endpoint | None = None
    ) -> Endpoint:
        """Wait for a free slot at a server that suits the prefix, preferring servers that work.

        The caller must take the slot before it awaits anything else.
        """
        while True:
            if not (present := self._present()) and not self._coming():
                raise FatalError("; ".join(self._left_out.values()))
            there = [e for e in present if e.rest_until <= time.monotonic()]
            others = [e for e in there if e is not other_than] or there
            works = [e for e in others if e.promising] or others
            read = self._out.qsize() < UNREAD
            if free := [e for e in works if e.free and (read or not e.limit.busy)]:
                return placement.place(free, prefix, left)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):  # limits and the reader set no event
                async with asyncio.timeout(0.2):  # `wait_for` may swallow a cancellation
                    await self._changed.wait()

    async def _settle(self, slot: placement.Slot, packet: Sequence[J]) -> None:
        """Give every job of the packet its result or the reason for its failure."""
        try:
            results = await self._persist(slot, packet)
        except (RejectedError, *AGAIN) as error:
            reason = error
        else:
            pairs = list(zip(packet, results, strict=True))
            self._out.put([(job, result) for job, result in pairs if result is not None])
            if unanswered := [job for job, result in pairs if result is None]:
                await self._settle(slot, unanswered)
            return
        late = slot.end is not None and time.monotonic() >= slot.end
        if len(packet) == 1 or late or isinstance(reason, RateLimitedError | UnreachableError):
            self._out.put([(job, Failure(str(reason))) for job in packet])
            return
        middle = len(packet) // 2
        await self._settle(slot, packet[:middle])
        await self._settle(slot, packet[middle:])

    async def _persist(
        self, slot: placement.Slot, packet: Sequence[J]
    ) -> Sequence[R | Failure | None]:
        """Retry until there is an answer, the budget is spent, or a retry cannot help."""
        tries = self.options.attempts if len(packet) == 1 else TRIES
        stays, broken, failures, failed_at = False, 0, 0, float("inf")
        while True:
            endpoint = slot.endpoint
            try:
                return await self._ask(slot, packet, again=failures > 0)
            except FatalError as error:
                self._leave_out(endpoint, str(error))
                wait = 0.0
            except AGAIN as error:
                failures += 1
                # If the server fails for this packet but answers others, the packet is at fault.
                alone = isinstance(error, UnreachableError) and await endpoint.lives(failed_at)
                broken += isinstance(error, RetryableError) or alone
                failed_at = time.monotonic()
                self._note_failure(endpoint, error)
                wait = self._wait(endpoint, error, failures)
                if broken >= tries:
                    raise RetryableError(str(error)) from None
                if slot.end and failed_at + wait > slot.end:
                    raise
                stays = isinstance(error, RateLimitedError) and wait <= LONG
            self._count(Usage(retries=1))
            end = time.monotonic() + wait
            while endpoint not in self._left_out and (left := end - time.monotonic()) > 0:
                await asyncio.sleep(min(1.0, left))
                if not stays and self._others(endpoint):
                    break
            if endpoint in self._left_out or (self._others(endpoint) and not stays):
                slot.leave()
                slot.take(await self._free_endpoint(other_than=endpoint))

    async def _ask(
        self, slot: placement.Slot, packet: Sequence[J], *, again: bool
    ) -> Sequence[R | Failure | None]:
        endpoint = slot.endpoint
        await self.rate.wait(sum(map(self.plan.tokens, packet)))
        await endpoint.limit.room()
        slot.end = slot.end or time.monotonic() + self.options.total_timeout
        if endpoint.doubtful:
            await endpoint.check(self.look, min(LOOK, slot.end - time.monotonic()))
        if len(packet) > 1 and not self.plan.together(endpoint, packet[0], packet[-1]):
            raise RejectedError(ONE_PROMPT)  # the packet is halved
        started = time.monotonic()
        self._requests += 1
        self._prompts += len(packet)
        with endpoint.limit.sending(started):
            try:
                async with asyncio.timeout(slot.end - started):
                    results = await self.plan.ask(endpoint, packet)
            except TimeoutError:
                in_all = f"{self.options.total_timeout:g} s in all"
                raise RetryableError(f"no answer within {in_all}") from None
            except Exception as error:  # noqa: BLE001  # a failed row, whatever the server sent
                raise endpoint.as_request_error(error) from None
            finally:
                seconds = time.monotonic() - started
                self._adapt(len(packet), seconds)
        if all(result is None for result in results):
            raise RetryableError("the reply has no answer")
        if not again:
            endpoint.limit.succeeded(seconds)
        return [
            Failure(endpoint.clean(one.reason)) if isinstance(one, Failure) else one
            for one in results
        ]

    def _adapt(self, size: int, seconds: float) -> None:
        """Adapt the packet size: smaller if requests are slow, larger if they are quick."""
        if self.plan.size is not None or size < self._size:
            return
        if seconds > SLOW:
            self._size = max(1, size // 2)
        elif seconds < QUICK:
            self._size = min(self._largest, self._size * 2)

    def _wait(self, endpoint: Endpoint, error: RequestError, failures: int) -> float:
        """Seconds until the retry: what the server asks for, or a back-off that grows."""
        wait, least, most = backoff(failures), error.retry_after, self.options.total_timeout
        if least is not None and least > most:
            why = f"it asks for a wait of {least:.0f} s, more than total_timeout={most:g} ({error})"
            self._leave_out(endpoint, f"{why}: run it again after that")
            return 0.0
        if least is not None:
            wait = least + wait / 10  # spread out, so that retries do not coincide
        if wait > LONG or isinstance(error, UnreachableError):
            self._warn_once("wait", f"waiting for {endpoint.shown}: {error}")
        return wait

    def _warn_once(self, topic: object, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            log.warning("%s", text)

    def _leave_out(self, endpoint: Endpoint, why: str) -> None:
        """Stop using a server in this call; raises a `FatalError` if no other is left."""
        self._left_out[endpoint] = f"{endpoint.shown}: {why}"
        if not (self._present() or self._coming()):
            raise FatalError(self._left_out[endpoint])
        self._warn_once((endpoint, "left out"), f"{endpoint.shown} is left out: {why}")

    def _count(self, used: Usage) -> None:
        self._used += used
        self.count(used)
        if self._progress is not None:
            self._progress.add(used)

    def _note_failure(self, endpoint: Endpoint, error: RequestError) -> None:
        """Record a failure in limit and counters; end the call if every server is dead."""
        if isinstance(error, RateLimitedError):
            self._note_overload(endpoint, error)
            return
        endpoint.failed()
        seconds = self.options.outage_timeout
        least = 5 * self.options.attempts if isinstance(error, RetryableError) else 1
        there = self._present()
        if there and all(e.dead(seconds, least) for e in there):
            names = ", ".join(e.shown for e in there)
            raise FatalError(
                f"{names}: nothing but failures for {seconds:g} s, the last: {error}. {KEPT} when "
                "the server is back"
            )

    def _note_overload(self, endpoint: Endpoint, error: RateLimitedError) -> None:
        """Record an overload. A server that reports nothing else for long is left out."""
        self._count(Usage(rate_limit_hits=1))
        least = error.retry_after or 0.0
        if least > LONG:
            endpoint.rest_until = time.monotonic() + least
        seconds, most = endpoint.overloaded(), self.options.outage_timeout + least
        if seconds > most:
            why = f"for {seconds:.0f} s it has answered nothing but {error}"
            self._leave_out(endpoint, f"{why}. {KEPT} later, or wait longer with outage_timeout=…")
        elif seconds > LONG:
            after = f"it is left out after {most:.0f} s of that"
            self._warn_once(endpoint, f"{endpoint.shown} answers nothing but {error}; {after}")
