"""Packets of a call's jobs on a pool of replicas, whatever starts and runs the replicas.

A replica has `SLOTS` packets in flight, over all calls. What a dead replica has not answered is
sent to another one. From then on that packet runs alone, so that no other is blamed for it. A
packet that ends two replicas is halved, until a single job that does so fails alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from workbench.errors import EngineError, EngineGoneError, WorkbenchError
from workbench.progress import check, fact

log = logging.getLogger("workbench")
SLOTS = 2  # packets in flight per replica: the next one is there when one ends
LEAST = 32  # jobs per packet, where there are enough
SHARES = 4  # packets per slot into which a large call is divided, at least
KILLS = 2  # replicas that a packet may end before it is halved
DEATHS = 25  # of replicas in a row, without one answer between them
LOOK = 0.5  # seconds between checks for an interrupt
ENDING = 1.0  # seconds for answers that arrive while a call is stopped
Rows = list[tuple[int, Any]]  # a job's place in the call, and its answer
Spare = Callable[[Rows], None]


class DiedError(Exception):
    """Why a replica's process has ended; as an answer, why a job has none."""


@dataclass(eq=False, slots=True)
class Member:
    """A replica in a pool; `life` counts its restarts, `alone` is set while one packet has it."""

    replica: Any
    number: int
    up: bool = False
    packets: int = 0
    alone: bool = False
    life: int = 0


@dataclass(eq=False, slots=True)
class _Packet:
    left: set[int]  # places of jobs without an answer
    deaths: int = 0  # of replicas that had it
    member: Member | None = None
    life: int = 0  # of the member when it was sent


class Pool:
    """From `least` to `most` replicas, shared by calls of several threads.

    A cluster has `start()`, which returns a replica; `wait(streams, seconds)`, pairs of a stream
    and what has arrived (`Rows`, None at its end, an exception), fetched one by one; and
    `stop(streams)`. A replica has `ready()` (False while it loads, an error if it never will be),
    `send(kind, jobs by place)`, which returns a stream, `revive()` after a death, and `end()`.
    """

    def __init__(self, cluster: Any, least: int, most: int) -> None:
        self.cluster, self.least, self.most = cluster, least, most
        self.deaths = 0  # since the last answer
        self.members: list[Member] = []
        self._lock = threading.RLock()
        self._started = self._calls = 0
        self._left_out = 0  # replicas that never loaded, since a call began or one has loaded
        self._closed = False
        self.grow(least * SLOTS)

    def grow(self, waiting: int) -> None:
        """Start replicas while more packets wait than there are slots.

        One that never loads is not replaced in the same call: the next might load no better.

        Raises:
            EngineGoneError: the pool is closed.
        """
        with self._lock:
            if self._closed:
                raise EngineGoneError("the engine was closed during the call")
            most = self.most - self._left_out
            while waiting > SLOTS * len(self.members) and len(self.members) < most:
                self._started += 1
                self.members.append(Member(self.cluster.start(), self._started))

    @property
    def loading(self) -> list[Member]:
        """Members that are not ready."""
        return [one for one in self.members if not one.up]

    def look(self) -> None:
        """Take in replicas that have loaded, and leave out those that never will.

        Raises:
            EngineGoneError: no replica is left; its cause is the last one's error.
        """
        with self._lock:
            for member in self.loading:
                ready = member.replica.ready()
                member.up = ready is True
                if member.up:
                    self._left_out = 0
                if isinstance(ready, Exception):
                    self._left_out += 1
                    self._remove(member)
                    log.warning("replica %d is left out: %s", member.number, ready)
                    if not self.members:
                        raise EngineGoneError(f"no replica is left: {ready}") from ready
            fact("replicas", f"{len(self.members) - len(self.loading)} of {len(self.members)}")

    def _remove(self, member: Member) -> None:
        self.members.remove(member)
        member.replica.end()

    def take(self, *, alone: bool) -> Member | None:
        """The least loaded replica with room for a packet, if there is one; it is counted there."""
        most = 1 if alone else SLOTS
        with self._lock:
            free = [x for x in self.members if x.up and not x.alone and x.packets < most]
            member = min(free, key=lambda one: one.packets, default=None)
            if member is not None:
                member.packets, member.alone = member.packets + 1, alone
            return member

    def leave(self, member: Member) -> None:
        """A packet has left a replica."""
        with self._lock:
            member.packets -= 1
            member.alone = False

    def died(self, member: Member, life: int, why: Exception) -> None:
        """Await the restart of a replica that died in that life; later reports change nothing.

        Raises:
            EngineGoneError: replicas die without answering anything.
        """
        with self._lock:
            if member.life != life or member not in self.members:
                return
            member.life, member.up = life + 1, False
            self.deaths += 1
            log.warning("replica %d died and restarts: %s", member.number, why)
            if self.deaths >= DEATHS:
                raise EngineGoneError(
                    f"{self.deaths} replicas died in a row, the last: {why}. Finished rows are in "
                    "the store; the workers' logs are in the cluster's session folder"
                )
            member.replica.revive()

    def count(self, calls: int) -> None:
        """Calls begin or end; after the last one, replicas above `least` are ended."""
        with self._lock:
            self._calls += calls
            if calls > 0:
                self._left_out = 0
            surplus = sorted(self.members, key=lambda one: (one.up, -one.number))
            for member in [] if self._calls else surplus[: -self.least]:
                self._remove(member)

    def any(self) -> Member:
        """A replica that is ready, for a question beside the packets.

        Raises:
            EngineGoneError: no replica is left.
        """
        if not self.members:
            self.count(1)
            self.grow(1)
            self.count(-1)
        while True:
            self.look()
            if up := [one for one in self.members if one.up]:
                return min(up, key=lambda one: one.packets)
            check()
            time.sleep(LOOK)

    def close(self) -> None:
        """End all replicas."""
        with self._lock:
            self._closed = True
            for member in [*self.members]:
                self._remove(member)


class Call:
    """One call's jobs on a pool.

    Args:
        kind: what the replicas do with a job.
        jobs: sorted, so that those with a common prefix are neighbours.
        batch: jobs that a replica computes together.
        spare: gets the answers that arrive while the call is stopped.
    """

    def __init__(
        self, pool: Pool, kind: str, jobs: Sequence[Any], batch: int, spare: Spare = lambda _: None
    ) -> None:
        self._pool, self._kind, self._jobs, self._spare = pool, kind, jobs, spare
        size, places = packet_size(len(jobs), SLOTS * pool.most, batch), range(len(jobs))
        self._fresh = deque(_Packet({*places[at : at + size]}) for at in places[::size])
        self._suspects = deque[_Packet]()  # each runs alone
        self._flights: dict[Any, _Packet] = {}

    def run(self) -> Generator[Rows, None, None]:
        """Yield (place of a job, its answer, or a `DiedError` if it has none) as they arrive.

        Raises:
            EngineGoneError: no replica is left that can answer.
            EngineError: what the model's engine raised.
        """
        self._pool.count(1)
        try:
            while self._fresh or self._suspects or self._flights:
                check()
                self._pool.look()
                self._send(self._suspects, alone=True)
                if not self._suspects:  # else a replica is to become free for them
                    self._send(self._fresh, alone=False)
                self._pool.grow(len(self._fresh) + len(self._suspects) + len(self._flights))
                fact("in the engine", sum(len(one.left) for one in self._flights.values()))
                for stream, event in self._wait(LOOK):
                    if rows := self._settled(stream, event):
                        yield rows
        finally:
            try:
                self._end()
            finally:
                self._pool.count(-1)
                fact("in the engine", None)

    def _send(self, queue: deque[_Packet], *, alone: bool) -> None:
        while queue and (member := self._pool.take(alone=alone)):
            packet = queue.popleft()
            packet.member, packet.life = member, member.life
            jobs = {at: self._jobs[at] for at in sorted(packet.left)}
            try:
                self._flights[member.replica.send(self._kind, jobs)] = packet
            except BaseException:  # an interrupt too
                self._pool.leave(member)
                raise

    def _wait(self, seconds: float) -> Iterable[tuple[Any, Any]]:
        if self._flights:
            found: Iterable[tuple[Any, Any]] = self._pool.cluster.wait([*self._flights], seconds)
            return found
        time.sleep(seconds / 10)
        return ()

    def _settled(self, stream: Any, event: Any) -> Rows:
        """The rows that a stream sent; what is left of its packet is sent again if it died."""
        packet = self._flights[stream]
        if isinstance(event, list):
            self._pool.deaths = 0
            packet.left.difference_update(place for place, _ in event)
            return event
        del self._flights[stream]
        assert packet.member is not None  # it was sent
        self._pool.leave(packet.member)
        if isinstance(event, DiedError):
            self._pool.died(packet.member, packet.life, event)
            return self._again(sorted(packet.left), packet.deaths + 1, event)
        if isinstance(event, Exception):
            raise event if isinstance(event, WorkbenchError) else EngineError(str(event))
        return []

    def _again(self, left: list[int], deaths: int, why: DiedError) -> Rows:
        """Queue what a dead replica has not answered; a row if that is one job's fault."""
        if deaths >= KILLS and len(left) == 1:
            reason = f"{deaths} replicas died over this request, the last with it alone: {why}"
            return [(left[0], DiedError(reason))]
        parts = [left]
        if deaths >= KILLS:
            parts = [left[: len(left) // 2], left[len(left) // 2 :]]
            deaths = KILLS - 1
        for part in filter(None, parts):  # a single job has to end two by itself
            alone = len(part) == 1 and len(parts) > 1
            self._suspects.append(_Packet({*part}, 0 if alone else deaths))
        return []

    def _end(self) -> None:
        """Stop what is in flight; answers that had arrived go to `spare`."""
        if self._flights:
            self._pool.cluster.stop([*self._flights])
        end = time.monotonic() + ENDING
        while self._flights and time.monotonic() < end:
            for stream, event in self._wait(ENDING / 10):
                with suppress(WorkbenchError):
                    self._spare(self._settled(stream, event))
        for packet in self._flights.values():
            if packet.member is not None:
                self._pool.leave(packet.member)


def packet_size(jobs: int, slots: int, batch: int) -> int:
    """Jobs per packet: several packets per slot in a large call, one in a small one."""
    small = -(-jobs // slots)
    return max(1, small if small <= LEAST else min(batch, max(LEAST, small // SHARES)))
