"""Sends jobs to servers: in packets, within every server's limit, each until it has an answer.

A few hundred requests are out at most, whatever the number of jobs. A packet that a server
refuses is halved until the job at fault fails alone. A slot is held while a request waits to be
sent again, so that others do not rush in.
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

from workbench.engines.remote.endpoint import Endpoint
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

WINDOW = 1024  # prompts that a server has at once: what the largest GPUs run, and some queue
LARGEST = 64  # prompts in one request
SHARES = 8  # requests for each server, at the least, into which a call is cut
QUICK, SLOW = 10.0, 30.0  # seconds of a request: below it may grow, above it shrinks
UNREAD = 4096  # finished packets that nobody has fetched yet
TRIES = 2  # of a packet with several jobs before it is halved
LONG = 10.0  # seconds of waiting that a person should know of
LOOK = 60.0  # seconds for a look at what a server serves
ENDING = 0.5  # seconds for requests to notice that nobody waits
JOIN = 3.0  # seconds between looks at servers that were not up


@dataclass(frozen=True, slots=True)
class Plan(Generic[J, R]):
    """How jobs become requests.

    Attributes:
        ask: sends a packet to a server; a result for each job, None where the reply has none.
        together: whether a job may join another one's packet to a server.
        tokens: about how many tokens a job takes, for the rate limit.
        size: most jobs in a packet; None adapts it.
        spare: gets finished jobs that nobody came to fetch.
    """

    ask: Callable[[Endpoint, Sequence[J]], Awaitable[Sequence[R | Failure | None]]]
    together: Callable[[Endpoint, J, J], bool]
    tokens: Callable[[J], int]
    size: int | None
    spare: Callable[[list[tuple[J, R | Failure]]], None] = lambda _: None


class _Slot:
    """A packet's place: the server whose slot it holds, if any, and until when it may try."""

    def __init__(self, endpoint: Endpoint, jobs: int, changed: asyncio.Event) -> None:
        self.end: float | None = None
        self._jobs, self._changed = jobs, changed
        self.take(endpoint)

    def take(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._held = True
        endpoint.enter(self._jobs)

    def leave(self, _: object = None) -> None:
        """Give the slot back; again does nothing."""
        if self._held:
            self._held = False
            self.endpoint.leave(self._jobs)
            self._changed.set()


@dataclass(eq=False)
class Dispatcher(Generic[J, R]):
    """One call's way to the servers.

    Attributes:
        endpoints: the servers, the absent ones too.
        plan: how jobs become requests.
        rate: what may be sent in a minute.
        options: how long to try.
        count: is told of retries and rate-limit hits.
        look: raises a `RequestError` if a server is not, or no longer, what the call needs.
    """

    endpoints: Sequence[Endpoint]
    plan: Plan[J, R]
    rate: RateLimit
    options: RemoteOptions
    count: Callable[[Usage], None]
    look: Callable[[Endpoint], Awaitable[None]]

    def __post_init__(self) -> None:
        self._used, self._requests, self._prompts = Usage(), 0, 0
        self._changed = asyncio.Event()
        self._ended = threading.Event()
        self._left_out: dict[Endpoint, str] = {}  # and why
        self._warned = set[object]()  # what people have been told of
        self._progress = current()  # told from the loop's thread, too
        self._out: queue.SimpleQueue[list[tuple[J, R | Failure]] | None] = queue.SimpleQueue()

    def run(self, jobs: Sequence[J]) -> Iterator[list[tuple[J, R | Failure]]]:
        """Yield finished jobs as they come; what is not fetched goes to the plan's `spare`.

        Raises:
            EngineGoneError: no server can answer.
        """
        share = -(-len(jobs) // (SHARES * len(self._present())))
        self._size = self._largest = self.plan.size or max(1, min(LARGEST, share))
        batch: list[tuple[J, R | Failure]] | None = None
        future = start_coroutine(self._send_all(jobs))
        future.add_done_callback(lambda _: self._out.put(None))
        try:
            while True:
                self._show_progress()
                check()
                try:
                    batch = self._out.get(timeout=0.5)  # so that an interrupt is seen everywhere
                except queue.Empty:
                    continue
                if batch is None:
                    break
                yield batch
                batch = None
            future.result()
        finally:
            future.cancel()
            self._ended.wait(ENDING)  # for what arrives at this very moment
            while not self._out.empty():
                self.plan.spare(batch or [])
                batch = self._out.get()
            self.plan.spare(batch or [])
            self._show_progress(ended=True)
            text = (
                f"{self._requests} requests of {self._prompts / max(1, self._requests):.1f} "
                f"prompts, at most {sum(e.limit.peak for e in self.endpoints)} at once, "
                f"{self._used.retries} asked again, {self._used.rate_limit_hits} of them for too "
                "many requests"
            )
            log.info("remote: %s", text)

    def _show_progress(self, *, ended: bool = False) -> None:
        if self._progress is not None:
            limits = [endpoint.limit for endpoint in self.endpoints]
            sent = sum(len(limit.in_flight) for limit in limits)
            now = f"{sent} of {sum(limit.allowed for limit in limits)} allowed"
            self._progress.fact("requests out", None if ended else now)
            self._progress.fact("most requests out", sum(limit.peak for limit in limits))

    async def _send_all(self, jobs: Sequence[J]) -> None:
        for endpoint in self.endpoints:
            endpoint.begin()
        joining = asyncio.create_task(self._join())
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                start = 0
                while start < len(jobs):
                    endpoint = await self._free_endpoint()
                    packet = self._packet(jobs, start, endpoint)
                    start += len(packet)
                    slot = _Slot(endpoint, len(packet), self._changed)
                    task = group.create_task(self._settle(slot, packet))
                    task.add_done_callback(slot.leave)
        except ExceptionGroup as group_error:
            failure = group_error.exceptions[0]  # the others were cancelled because of it
        finally:
            joining.cancel()
            self._ended.set()
        # Not within `except`: IPython shows nothing of an error that has a group as its context.
        if failure is not None:
            raise EngineGoneError(str(failure)) if isinstance(failure, FatalError) else failure

    def _present(self) -> list[Endpoint]:
        return [e for e in self.endpoints if e not in self._left_out and e.absent is None]

    async def _join(self) -> None:
        """Take in servers that were not up when the engine was opened, as soon as they are."""
        while absent := [e for e in self.endpoints if e.absent is not None]:
            await asyncio.gather(*map(self._take_in, absent))
            await asyncio.sleep(JOIN)

    async def _take_in(self, endpoint: Endpoint) -> None:
        try:
            await endpoint.check(self.look, LOOK)
        except RequestError as error:
            if str(error) != endpoint.absent and not isinstance(error, UnreachableError):
                log.warning("%s cannot join: %s", endpoint.shown, error)
            endpoint.absent = str(error)
            return
        endpoint.absent = None
        self._changed.set()
        log.info("%s has joined", endpoint.shown)

    def _packet(self, jobs: Sequence[J], start: int, endpoint: Endpoint) -> Sequence[J]:
        end, last = start + 1, min(len(jobs), start + self._size)
        while end < last and self.plan.together(endpoint, jobs[start], jobs[end]):
            end += 1
        return jobs[start:end]

    async def _free_endpoint(self, other_than: Endpoint | None = None) -> Endpoint:
        """Wait for a free slot at the least loaded server, one that works if there is any.

        The slot must be taken before anything else is awaited.
        """
        while True:
            if not (present := self._present()):
                raise FatalError("; ".join(self._left_out.values()))
            there = [e for e in present if e.rest_until <= time.monotonic()]
            others = [e for e in there if e is not other_than] or there
            works = [e for e in others if e.promising] or others
            for endpoint in sorted(works, key=lambda e: e.limit.busy / e.limit.limit):
                room = endpoint.prompts < WINDOW and self._out.qsize() < UNREAD
                if endpoint.limit.free and (room or not endpoint.limit.busy):
                    return endpoint
            self._changed.clear()
            with contextlib.suppress(TimeoutError):  # limits and the reader set no event
                async with asyncio.timeout(0.2):  # `wait_for` may swallow that it is cancelled
                    await self._changed.wait()

    async def _settle(self, slot: _Slot, packet: Sequence[J]) -> None:
        """Give every job of the packet its result, or the reason why it has none."""
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

    async def _persist(self, slot: _Slot, packet: Sequence[J]) -> Sequence[R | Failure | None]:
        """Ask until there is an answer, the budget is spent, or asking again is no use."""
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
                # Where a server is away for this packet alone, it is the packet.
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
                if not stays and len(self._present()) > 1:
                    break
            if endpoint in self._left_out or (len(self._present()) > 1 and not stays):
                slot.leave()
                slot.take(await self._free_endpoint(other_than=endpoint))

    async def _ask(
        self, slot: _Slot, packet: Sequence[J], *, again: bool
    ) -> Sequence[R | Failure | None]:
        endpoint = slot.endpoint
        await self.rate.wait(sum(map(self.plan.tokens, packet)))
        await endpoint.limit.room()
        slot.end = slot.end or time.monotonic() + self.options.total_timeout
        if endpoint.doubtful:
            await endpoint.check(self.look, min(LOOK, slot.end - time.monotonic()))
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
            except Exception as error:  # noqa: BLE001  # whatever a server sends, rows it stays
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
        """Fewer prompts a request where it takes long: its own cost is small then."""
        if self.plan.size is not None or size < self._size:
            return
        if seconds > SLOW:
            self._size = max(1, size // 2)
        elif seconds < QUICK:
            self._size = min(self._largest, self._size * 2)

    def _wait(self, endpoint: Endpoint, error: RequestError, failures: int) -> float:
        """Seconds until a request may be sent again: the server's word, or longer each time."""
        wait, least, most = backoff(failures), error.retry_after, self.options.total_timeout
        if least is not None and least > most:
            why = f"it asks to wait {least:.0f} s, longer than total_timeout={most:g} ({error})"
            self._leave_out(endpoint, f"{why}: run it again then")
            return 0.0
        if least is not None:
            wait = least + wait / 10  # not all at the same moment
        if wait > LONG or isinstance(error, UnreachableError):
            self._warn_once("wait", f"waiting for {endpoint.shown}: {error}")
        return wait

    def _warn_once(self, topic: object, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            log.warning("%s", text)

    def _leave_out(self, endpoint: Endpoint, why: str) -> None:
        """Use a server no more in this call; a `FatalError` where there is no other."""
        self._left_out[endpoint] = f"{endpoint.shown}: {why}"
        if not self._present():
            raise FatalError(self._left_out[endpoint])
        self._warn_once((endpoint, "left out"), f"{endpoint.shown} is left out: {why}")

    def _count(self, used: Usage) -> None:
        self._used += used
        self.count(used)
        if self._progress is not None:
            self._progress.add(used)

    def _note_failure(self, endpoint: Endpoint, error: RequestError) -> None:
        """Tell limit and counters of a failure; end the call where every server is dead."""
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
        """A server has too many requests. Where it says nothing else for long, it is left out."""
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
