"""Sends jobs to servers: in packets, through every server's gate, each until it has an answer.

A few hundred requests are in the air at the most, whatever the number of jobs. A packet that a
server refuses is halved until the one job at fault stands alone and fails alone. A slot is held
while a request waits to be sent again, so that others do not rush in.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from workbench.engines.remote import loop
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.faults import Broken, Busy, Down, Failed, Fatal, Fault, Refused
from workbench.engines.remote.gate import RateGate
from workbench.engines.remote.patience import Patience
from workbench.errors import EngineGoneError
from workbench.progress import check, current
from workbench.types import Usage

log = logging.getLogger("workbench")
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


@dataclass(slots=True)
class Effort:
    """What the work took over HTTP so far; `retries` are requests that were sent again."""

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

    ask: Callable[[Endpoint, Sequence[J]], Awaitable[Sequence[R | Failed | None]]]
    together: Callable[[Endpoint, J, J], bool]
    tokens: Callable[[J], int]
    size: int | None
    spare: Callable[[list[tuple[J, R | Failed]]], None] = lambda _: None


class _Trip:
    """A packet's place: the server whose slot it holds, if any, and until when it may try."""

    def __init__(self, endpoint: Endpoint, jobs: int) -> None:
        self.end: float | None = None
        self._jobs = jobs
        self._held = False
        self.take(endpoint)

    def take(self, endpoint: Endpoint) -> None:
        """Hold the slot that has been entered at a server."""
        self.endpoint = endpoint
        endpoint.prompts += self._jobs
        self._held = True

    def leave(self) -> None:
        """Give the slot back; again does nothing."""
        if self._held:
            self._held = False
            self.endpoint.gate.leave()
            self.endpoint.prompts -= self._jobs


class Dispatcher(Generic[J, R]):
    """One call's way to the servers.

    Args:
        look: looks whether a server still is, or now is, what the call needs; raises a `Fault` if
            it is not.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        plan: Plan[J, R],
        rate: RateGate,
        patience: Patience,
        effort: Effort,
        *,
        look: Callable[[Endpoint], Awaitable[None]],
    ) -> None:
        self._look_at = look
        self._endpoints = endpoints
        self._plan = plan
        self._rate = rate
        self._patience = patience
        self._effort = effort
        self._size = self._largest = plan.size or LARGEST
        self._changed = asyncio.Event()
        self._told = False
        self._ended = threading.Event()
        self._left: dict[Endpoint, str] = {}  # servers that this call uses no more, and why
        self._busy = set[Endpoint]()  # of which it was said that they are
        self._progress = current()  # told from the loop's thread, too
        self._out: queue.SimpleQueue[list[tuple[J, R | Failed]] | None] = queue.SimpleQueue()

    def run(self, jobs: Sequence[J]) -> Iterator[list[tuple[J, R | Failed]]]:
        """Yield finished jobs as they come; what is not fetched goes to the plan's `spare`.

        Raises:
            EngineGoneError: no server can answer.
        """
        if self._plan.size is None:
            packets = SHARES * sum(endpoint.absent is None for endpoint in self._endpoints)
            self._size = self._largest = max(1, min(LARGEST, -(-len(jobs) // packets)))
        batch: list[tuple[J, R | Failed]] | None = None
        future = loop.start(self._send_all(jobs))
        future.add_done_callback(lambda _: self._out.put(None))
        try:
            while True:
                self._tell()
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
            self._tell(ended=True)

    def _tell(self, *, ended: bool = False) -> None:
        """How many requests are out, to whoever watches."""
        if self._progress is not None:
            sent, limit = (sum(n) for n in zip(*(e.gate.now for e in self._endpoints), strict=True))
            self._progress.fact("in the air", None if ended else f"{sent} of {limit} allowed")
            self._progress.fact("most in the air", sum(e.gate.peak for e in self._endpoints))

    async def _send_all(self, jobs: Sequence[J]) -> None:
        for endpoint in self._endpoints:
            endpoint.begin()
        joining = asyncio.create_task(self._join())
        try:
            async with asyncio.TaskGroup() as group:
                start = 0
                while start < len(jobs):
                    endpoint = await self._slot()
                    packet = self._packet(jobs, start, endpoint)
                    start += len(packet)
                    trip = _Trip(endpoint, len(packet))
                    task = group.create_task(self._settle(trip, packet))
                    task.add_done_callback(lambda _, trip=trip: self._arrived(trip))  # type: ignore[misc]
        except BaseExceptionGroup as errors:
            error = errors.exceptions[0]  # the others were cancelled because of it
            raise EngineGoneError(str(error)) if isinstance(error, Fatal) else error from None
        finally:
            joining.cancel()
            self._ended.set()

    def _present(self) -> list[Endpoint]:
        return [e for e in self._endpoints if e not in self._left and e.absent is None]

    async def _join(self) -> None:
        """Take in servers that were not up when the engine was opened, as soon as they are."""
        while absent := [e for e in self._endpoints if e.absent is not None]:
            await asyncio.gather(*map(self._take_in, absent))
            await asyncio.sleep(JOIN)

    async def _take_in(self, endpoint: Endpoint) -> None:
        try:
            async with endpoint.looking:
                await self._look_at(endpoint)
        except Exception as error:  # noqa: BLE001  # whatever it sends, it stays absent
            fault = (
                error if isinstance(error, Fault) else Broken(f"{type(error).__name__}: {error}")
            )
            fault.args = (endpoint.clean(str(fault)),)
            if str(fault) != endpoint.absent and not isinstance(fault, Down):
                log.warning("%s cannot join: %s", endpoint.shown, fault)
            endpoint.absent = str(fault)
            return
        endpoint.absent = None
        self._changed.set()
        log.info("%s has joined", endpoint.shown)

    def _arrived(self, trip: _Trip) -> None:
        trip.leave()
        self._changed.set()

    def _packet(self, jobs: Sequence[J], start: int, endpoint: Endpoint) -> Sequence[J]:
        end, last = start + 1, min(len(jobs), start + self._size)
        while end < last and self._plan.together(endpoint, jobs[start], jobs[end]):
            end += 1
        return jobs[start:end]

    async def _slot(self, other_than: Endpoint | None = None) -> Endpoint:
        """Wait for a slot at the least loaded server, one that works if there is any."""
        while True:
            if not self._present():
                reasons = (f"{e.shown}: {self._left.get(e) or e.absent}" for e in self._endpoints)
                raise Fatal("; ".join(reasons))
            there = [e for e in self._present() if not e.resting]
            others = [e for e in there if e is not other_than] or there
            works = [e for e in others if e.hopeful()] or others
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

    async def _settle(self, trip: _Trip, packet: Sequence[J]) -> None:
        """Give every job of the packet its result, or the reason why it has none."""
        try:
            results = await self._persist(trip, packet)
        except (Refused, Broken, Busy, Down) as fault:
            refusal = fault
        else:
            pairs = list(zip(packet, results, strict=True))
            self._out.put([(job, result) for job, result in pairs if result is not None])
            if left := [job for job, result in pairs if result is None]:
                await self._settle(trip, left)
            return
        late = trip.end is not None and time.monotonic() >= trip.end
        if len(packet) == 1 or late or isinstance(refusal, Busy | Down):
            self._out.put([(job, Failed(str(refusal))) for job in packet])
            return
        middle = len(packet) // 2
        await self._settle(trip, packet[:middle])
        await self._settle(trip, packet[middle:])

    async def _persist(self, trip: _Trip, packet: Sequence[J]) -> Sequence[R | Failed | None]:
        """Ask until there is an answer, patience ends, or asking again is no use."""
        tries = self._patience.attempts if len(packet) == 1 else TRIES
        stays = False
        broken = failed = 0
        failed_at = float("inf")
        while True:
            endpoint = trip.endpoint
            try:
                return await self._ask(trip, packet, again=failed > 0)
            except Fatal as fault:
                self._leave_out(endpoint, str(fault))
                wait = 0.0
            except (Broken, Busy, Down) as fault:
                failed += 1
                # Where a server is away for this packet alone, it is the packet.
                alone = isinstance(fault, Down) and await endpoint.lives(failed_at)
                broken += isinstance(fault, Broken) or alone
                failed_at = time.monotonic()
                self._note(endpoint, fault)
                wait = self._wait(trip, fault, failed)
                if broken >= tries:
                    raise Broken(str(fault)) from None
                if trip.end and failed_at + wait > trip.end:
                    raise
                stays = isinstance(fault, Busy) and wait <= LONG
            self._effort.retries += 1
            self._count(Usage(retries=1))
            end = time.monotonic() + wait
            while endpoint not in self._left and (left := end - time.monotonic()) > 0:
                await asyncio.sleep(min(1.0, left))
                if not stays and len(self._present()) > 1:
                    break
            if endpoint in self._left or (len(self._present()) > 1 and not stays):
                trip.leave()
                trip.take(await self._slot(other_than=endpoint))

    async def _ask(
        self, trip: _Trip, packet: Sequence[J], *, again: bool
    ) -> Sequence[R | Failed | None]:
        endpoint = trip.endpoint
        await self._rate.wait(sum(map(self._plan.tokens, packet)))
        await endpoint.gate.room()
        trip.end = trip.end or time.monotonic() + self._patience.total
        if endpoint.doubtful:
            await self._look_first(endpoint, trip.end)
        started = time.monotonic()
        self._effort.requests += 1
        self._effort.prompts += len(packet)
        with endpoint.sending(started):
            try:
                async with asyncio.timeout(trip.end - started):
                    results = await self._plan.ask(endpoint, packet)
            except TimeoutError:
                raise Broken(f"no answer within {self._patience.total:g} s in all") from None
            except Fault as fault:
                fault.args = (endpoint.clean(str(fault)),)
                raise
            except Exception as error:  # noqa: BLE001  # whatever a server sends, rows it stays
                told = endpoint.clean(f"{type(error).__name__}: {error}")
                raise Broken(f"its answer cannot be read ({told})") from None
            finally:
                seconds = time.monotonic() - started
                self._adapt(len(packet), seconds)
        results = [
            Failed(endpoint.clean(one.reason)) if isinstance(one, Failed) else one
            for one in results
        ]
        if all(result is None for result in results):
            raise Broken("the reply has no answer")
        if not again:
            endpoint.gate.succeeded(seconds)
        return results

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
                    await self._look_at(endpoint)
            except TimeoutError:
                fault: Fault = Broken(f"no answer within {LOOK:g} s when it was looked at")
            except Fault as error:
                error.args = (endpoint.clean(str(error)),)
                fault = error
            except Exception as error:  # noqa: BLE001  # as in `_ask`
                fault = Broken(endpoint.clean(f"{type(error).__name__}: {error}"))
            else:
                return
            endpoint.failed_look = (time.monotonic(), fault)
            raise fault

    def _adapt(self, size: int, seconds: float) -> None:
        """Fewer prompts a request where it takes long: its own cost is small then."""
        if self._plan.size is not None:
            return
        if seconds > SLOW and size >= self._size:
            self._size = max(1, size // 2)
        elif seconds < QUICK and size >= self._size:
            self._size = min(self._largest, self._size * 2)

    def _wait(self, trip: _Trip, fault: Fault, failed: int) -> float:
        """Seconds until a request may be sent again: the server's word, or longer each time."""
        wait = self._patience.wait(failed)
        asked = getattr(fault, "wait", None)
        if asked is not None:
            wait = asked + wait / 10  # not all at the same moment
            if asked > self._patience.total:
                self._leave_out(
                    trip.endpoint,
                    f"it asks to wait {asked:.0f} s, longer than total_timeout="
                    f"{self._patience.total:g} ({fault}): run it again then",
                )
                return 0.0
        if (wait > LONG or isinstance(fault, Down)) and not self._told:
            self._told = True
            log.warning("waiting for %s: %s", trip.endpoint.shown, fault)
        return wait

    def _leave_out(self, endpoint: Endpoint, why: str) -> None:
        """Use a server no more in this call.

        Raises:
            Fatal: there is no other.
        """
        news = endpoint not in self._left
        self._left[endpoint] = why
        if not self._present():
            raise Fatal(f"{endpoint.shown}: {why}")
        if news:
            log.warning("%s is left out: %s", endpoint.shown, why)

    def _count(self, used: Usage) -> None:
        if self._progress is not None:
            self._progress.add(used)

    def _note(self, endpoint: Endpoint, fault: Fault) -> None:
        """Tell gate and counters of a failure; end the call where every server is dead."""
        patience = self._patience
        if isinstance(fault, Busy):
            self._refused(endpoint, fault)
            return
        endpoint.failed()
        least = 5 * patience.attempts if isinstance(fault, Broken) else 1
        there = self._present()
        if there and all(e.dead(patience.dead, least) for e in there):
            names = ", ".join(e.shown for e in there)
            raise Fatal(
                f"{names}: nothing but failures for {patience.dead:g} s, the last: {fault}. What "
                "was finished is kept: run it again when the server is back"
            )

    def _refused(self, endpoint: Endpoint, fault: Busy) -> None:
        """A server has too many requests. Where it says nothing else for long, it is left out."""
        self._effort.rate_limit_hits += 1
        self._count(Usage(rate_limit_hits=1))
        endpoint.gate.refused()
        if fault.wait is not None and fault.wait > LONG:
            endpoint.rest(fault.wait)
        seconds, most = endpoint.busy_for(), self._patience.dead + (fault.wait or 0.0)
        if seconds > most:
            self._leave_out(
                endpoint,
                f"for {seconds:.0f} s it has answered nothing but {fault}. What was finished is "
                "kept: run it again later, or wait longer with patience=…",
            )
        elif seconds > LONG and endpoint not in self._busy:
            self._busy.add(endpoint)
            log.warning(
                "%s answers nothing but %s; it is left out after %.0f s of that",
                endpoint.shown, fault, most,
            )  # fmt: skip
