"""Sends jobs to servers: in packets, within every server's limit, each until it has an answer.

A few hundred requests are out at the most, whatever the number of jobs. A packet that a server
refuses is halved until the one job at fault stands alone and fails alone. A slot is held while a
request waits to be sent again, so that others do not rush in.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    RetryBudget,
    UnreachableError,
    backoff,
)
from workbench.errors import EngineGoneError
from workbench.progress import check, current
from workbench.types import Prompt, Usage

log = logging.getLogger("workbench")
J = TypeVar("J")
R = TypeVar("R")

CHARACTERS = 4  # of a prompt, in a token: for estimates
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


def estimated_tokens(prompt: Prompt | Sequence[int]) -> int:
    """About how many tokens a prompt has."""
    if isinstance(prompt, str):
        return 1 + len(prompt) // CHARACTERS
    chat = [message["content"] for message in prompt if not isinstance(message, int)]
    return 1 + sum(map(len, chat)) // CHARACTERS if chat else len(prompt)


@dataclass(slots=True)
class Traffic:
    """What was sent so far; `retries` are requests that were sent again."""

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
        spare: gets finished jobs that nobody came to fetch.
    """

    ask: Callable[[Endpoint, Sequence[J]], Awaitable[Sequence[R | Failure | None]]]
    together: Callable[[Endpoint, J, J], bool]
    tokens: Callable[[J], int]
    size: int | None
    spare: Callable[[list[tuple[J, R | Failure]]], None] = lambda _: None


class _Slot:
    """A packet's place: the server whose slot it holds, if any, and until when it may try."""

    def __init__(self, endpoint: Endpoint, jobs: int) -> None:
        self.end: float | None = None
        self._jobs = jobs
        self.take(endpoint)

    def take(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._held = True
        endpoint.enter(self._jobs)

    def leave(self) -> None:
        """Give the slot back; again does nothing."""
        if self._held:
            self._held = False
            self.endpoint.leave(self._jobs)


class Dispatcher(Generic[J, R]):
    """One call's way to the servers.

    Args:
        endpoints: the servers, the absent ones too.
        plan: how jobs become requests.
        rate: what may be sent in a minute.
        budget: how long to try.
        traffic: the engine's counters.
        look: looks whether a server still is, or now is, what the call needs; raises a
            `RequestError` if it is not.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        plan: Plan[J, R],
        rate: RateLimit,
        budget: RetryBudget,
        traffic: Traffic,
        *,
        look: Callable[[Endpoint], Awaitable[None]],
    ) -> None:
        self._look = look
        self._endpoints = endpoints
        self._plan = plan
        self._rate = rate
        self._budget = budget
        self._traffic = traffic
        self._size = self._largest = plan.size or LARGEST
        self._changed = asyncio.Event()
        self._announced = False  # that there is a long wait
        self._ended = threading.Event()
        self._left_out: dict[Endpoint, str] = {}  # and why
        self._busy = set[Endpoint]()  # of which it was said that they are
        self._progress = current()  # told from the loop's thread, too
        self._out: queue.SimpleQueue[list[tuple[J, R | Failure]] | None] = queue.SimpleQueue()

    def run(self, jobs: Sequence[J]) -> Iterator[list[tuple[J, R | Failure]]]:
        """Yield finished jobs as they come; what is not fetched goes to the plan's `spare`.

        Raises:
            EngineGoneError: no server can answer.
        """
        if self._plan.size is None:
            packets = SHARES * sum(endpoint.absent is None for endpoint in self._endpoints)
            self._size = self._largest = max(1, min(LARGEST, -(-len(jobs) // packets)))
        before = replace(self._traffic)
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
                self._plan.spare(batch or [])
                batch = self._out.get()
            self._plan.spare(batch or [])
            self._show_progress(ended=True)
            self._log(before)

    def _show_progress(self, *, ended: bool = False) -> None:
        """How many requests are out, to whoever watches."""
        if self._progress is not None:
            limits = [endpoint.limit for endpoint in self._endpoints]
            sent = sum(len(limit.in_flight) for limit in limits)
            now = f"{sent} of {sum(limit.allowed for limit in limits)} allowed"
            self._progress.fact("requests out", None if ended else now)
            self._progress.fact("most requests out", sum(limit.peak for limit in limits))

    def _log(self, before: Traffic) -> None:
        now = self._traffic
        requests = now.requests - before.requests
        log.info(
            "remote: %d requests of %.1f prompts, at most %d at once, %d asked again, %d of "
            "them for too many requests",
            requests,
            (now.prompts - before.prompts) / max(1, requests),
            sum(endpoint.limit.peak for endpoint in self._endpoints),
            now.retries - before.retries,
            now.rate_limit_hits - before.rate_limit_hits,
        )

    async def _send_all(self, jobs: Sequence[J]) -> None:
        for endpoint in self._endpoints:
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
                    slot = _Slot(endpoint, len(packet))
                    task = group.create_task(self._settle(slot, packet))
                    task.add_done_callback(lambda _, slot=slot: self._settled(slot))  # type: ignore[misc]
        except ExceptionGroup as group_error:
            failure = group_error.exceptions[0]  # the others were cancelled because of it
        finally:
            joining.cancel()
            self._ended.set()
        # Not within `except`: IPython shows nothing of an error that has a group as its context.
        if isinstance(failure, FatalError):
            raise EngineGoneError(str(failure))
        if failure is not None:
            raise failure

    def _present(self) -> list[Endpoint]:
        return [e for e in self._endpoints if e not in self._left_out and e.absent is None]

    async def _join(self) -> None:
        """Take in servers that were not up when the engine was opened, as soon as they are."""
        while absent := [e for e in self._endpoints if e.absent is not None]:
            await asyncio.gather(*map(self._take_in, absent))
            await asyncio.sleep(JOIN)

    async def _take_in(self, endpoint: Endpoint) -> None:
        try:
            async with endpoint.looking:
                await self._look(endpoint)
        except Exception as raised:  # noqa: BLE001  # whatever it sends, it stays absent
            error = endpoint.as_request_error(raised)
            if str(error) != endpoint.absent and not isinstance(error, UnreachableError):
                log.warning("%s cannot join: %s", endpoint.shown, error)
            endpoint.absent = str(error)
            return
        endpoint.absent = None
        self._changed.set()
        log.info("%s has joined", endpoint.shown)

    def _settled(self, slot: _Slot) -> None:
        slot.leave()
        self._changed.set()

    def _packet(self, jobs: Sequence[J], start: int, endpoint: Endpoint) -> Sequence[J]:
        end, last = start + 1, min(len(jobs), start + self._size)
        while end < last and self._plan.together(endpoint, jobs[start], jobs[end]):
            end += 1
        return jobs[start:end]

    async def _free_endpoint(self, other_than: Endpoint | None = None) -> Endpoint:
        """Wait for a free slot at the least loaded server, one that works if there is any.

        The slot must be taken before anything else is awaited.
        """
        while True:
            present = self._present()
            if not present:
                reasons = (
                    f"{e.shown}: {self._left_out.get(e) or e.absent}" for e in self._endpoints
                )
                raise FatalError("; ".join(reasons))
            there = [e for e in present if not e.resting]
            others = [e for e in there if e is not other_than] or there
            works = [e for e in others if e.promising] or others
            for endpoint in sorted(works, key=lambda e: e.limit.busy / e.limit.limit):
                room = endpoint.prompts < WINDOW and self._out.qsize() < UNREAD
                if endpoint.limit.free and (room or not endpoint.limit.busy):
                    return endpoint
            self._changed.clear()
            try:
                async with asyncio.timeout(0.2):  # limits and the reader set no event
                    await self._changed.wait()
            except TimeoutError:
                continue

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
        tries = self._budget.attempts if len(packet) == 1 else TRIES
        stays = False
        broken = failures = 0
        failed_at = float("inf")
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
            self._traffic.retries += 1
            self._add_progress(Usage(retries=1))
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
        await self._rate.wait(sum(map(self._plan.tokens, packet)))
        await endpoint.limit.room()
        slot.end = slot.end or time.monotonic() + self._budget.total_timeout
        if endpoint.doubtful:
            await self._look_first(endpoint, slot.end)
        started = time.monotonic()
        self._traffic.requests += 1
        self._traffic.prompts += len(packet)
        with endpoint.limit.sending(started):
            try:
                async with asyncio.timeout(slot.end - started):
                    results = await self._plan.ask(endpoint, packet)
            except TimeoutError:
                seconds = self._budget.total_timeout
                raise RetryableError(f"no answer within {seconds:g} s in all") from None
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

    async def _look_first(self, endpoint: Endpoint, end: float) -> None:
        """Look whether a server still serves the same; one look is for all that wait for it."""
        began = time.monotonic()
        async with endpoint.looking:
            failed = endpoint.failed_look
            if failed is not None and failed[0] > began:
                raise failed[1]
            if not endpoint.doubtful:
                return
            try:
                async with asyncio.timeout(max(0.0, min(LOOK, end - time.monotonic()))):
                    await self._look(endpoint)
            except TimeoutError:
                error: RequestError = RetryableError(f"no answer to a look within {LOOK:g} s")
            except Exception as raised:  # noqa: BLE001  # as in `_ask`
                error = endpoint.as_request_error(raised)
            else:
                return
            endpoint.failed_look = (time.monotonic(), error)
            raise error

    def _adapt(self, size: int, seconds: float) -> None:
        """Fewer prompts a request where it takes long: its own cost is small then."""
        if self._plan.size is not None or size < self._size:
            return
        if seconds > SLOW:
            self._size = max(1, size // 2)
        elif seconds < QUICK:
            self._size = min(self._largest, self._size * 2)

    def _wait(self, endpoint: Endpoint, error: RequestError, failures: int) -> float:
        """Seconds until a request may be sent again: the server's word, or longer each time."""
        wait, asked = backoff(failures), error.retry_after
        if asked is not None:
            wait = asked + wait / 10  # not all at the same moment
            if asked > self._budget.total_timeout:
                self._leave_out(
                    endpoint,
                    f"it asks to wait {asked:.0f} s, longer than total_timeout="
                    f"{self._budget.total_timeout:g} ({error}): run it again then",
                )
                return 0.0
        if (wait > LONG or isinstance(error, UnreachableError)) and not self._announced:
            self._announced = True
            log.warning("waiting for %s: %s", endpoint.shown, error)
        return wait

    def _leave_out(self, endpoint: Endpoint, why: str) -> None:
        """Use a server no more in this call.

        Raises:
            FatalError: there is no other.
        """
        is_new = endpoint not in self._left_out
        self._left_out[endpoint] = why
        if not self._present():
            raise FatalError(f"{endpoint.shown}: {why}")
        if is_new:
            log.warning("%s is left out: %s", endpoint.shown, why)

    def _add_progress(self, used: Usage) -> None:
        if self._progress is not None:
            self._progress.add(used)

    def _note_failure(self, endpoint: Endpoint, error: RequestError) -> None:
        """Tell limit and counters of a failure; end the call where every server is dead."""
        budget = self._budget
        if isinstance(error, RateLimitedError):
            self._note_overload(endpoint, error)
            return
        endpoint.failed()
        least = 5 * budget.attempts if isinstance(error, RetryableError) else 1
        there = self._present()
        if there and all(e.dead(budget.outage_timeout, least) for e in there):
            names = ", ".join(e.shown for e in there)
            raise FatalError(
                f"{names}: nothing but failures for {budget.outage_timeout:g} s, the last: {error}."
                " What was finished is kept: run it again when the server is back"
            )

    def _note_overload(self, endpoint: Endpoint, error: RateLimitedError) -> None:
        """A server has too many requests. Where it says nothing else for long, it is left out."""
        self._traffic.rate_limit_hits += 1
        self._add_progress(Usage(rate_limit_hits=1))
        asked = error.retry_after or 0.0
        if asked > LONG:
            endpoint.rest(asked)
        seconds, most = endpoint.overloaded(), self._budget.outage_timeout + asked
        if seconds > most:
            self._leave_out(
                endpoint,
                f"for {seconds:.0f} s it has answered nothing but {error}. What was finished is "
                "kept: run it again later, or wait longer with outage_timeout=…",
            )
        elif seconds > LONG and endpoint not in self._busy:
            self._busy.add(endpoint)
            log.warning(
                "%s answers nothing but %s; it is left out after %.0f s of that",
                endpoint.shown,
                error,
                most,
            )
