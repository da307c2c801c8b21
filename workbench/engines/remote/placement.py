"""How large packets are, and who gets one: even loads, and prefixes where they are cached."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence

from workbench.engines.remote.endpoint import Endpoint

LARGEST = 64  # prompts in one request
SMALL = 8  # prompts in one request, unless the servers' even shares are smaller
SHARES = 8  # requests per server into which a call is divided, where they are not smaller
UNEVEN = 1.25  # a preferred server's load, at most, as a multiple of the least
SHORTEST = 16  # letters of a prefix
STEPS = 4  # in which a prefix's length doubles
MASK = 2**64 - 1
MIX = 0x9E3779B97F4A7C15  # spreads a number over 64 bits


def shares(jobs: int, servers: int) -> int:
    """Jobs per packet: a few for each server, as servers differ in speed, and as many for each."""
    each = -(-jobs // max(1, servers))
    packets = max(1, min(SHARES, -(-each // SMALL)))
    return max(1, min(LARGEST, -(-each // packets)))


def last_shares(left: int, servers: int) -> int:
    """The most jobs in the next packet: fewer in the end, so that all servers end together."""
    return left if servers < 2 else min(left, max(SMALL, -(-left // (2 * servers))))


def prefix_of(first: str, last: str) -> int:
    """A number for what the texts between two, in sorted order, have in common; 0 is nothing.

    Neighbours that share a few letters more should get the same number, and mostly do: the length
    is rounded down, in steps that grow with it.
    """
    length = len(os.path.commonprefix([first, last]))  # noqa: RUF071  # of any texts
    step = max(1, 1 << max(0, length.bit_length() - STEPS.bit_length()))
    return _number(first[: length // step * step]) if length >= SHORTEST else 0


def _number(text: str) -> int:
    data = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(data, "big")


def place(free: Sequence[Endpoint], prefix: int, left: int) -> Endpoint:
    """The server for a packet, of those that are free.

    By rendezvous hashing a prefix prefers the same server in every call, whichever others come and
    go (Thaler and Ravishankar, 1998). The last packets make the loads even instead.

    Args:
        prefix: of `prefix_of`.
        left: packets of the call that are not sent yet.
    """
    least = min(free, key=_load)
    if not prefix or len(free) == 1:
        return least
    most = max(endpoint.limit.busy for endpoint in free)
    if left <= sum(most - endpoint.limit.busy for endpoint in free):
        return least
    preferred = max(free, key=lambda endpoint: _score(endpoint, prefix))
    allowed = UNEVEN * (least.limit.busy + 1) / least.limit.limit
    fits = (preferred.limit.busy + 1) / preferred.limit.limit <= allowed
    return preferred if fits else least


def _load(endpoint: Endpoint) -> float:
    return endpoint.limit.busy / endpoint.limit.limit


def _score(endpoint: Endpoint, prefix: int) -> int:
    mixed = ((prefix ^ endpoint.number) * MIX) & MASK
    return ((mixed ^ mixed >> 32) * MIX) & MASK


class Slot:
    """A packet's place: the server whose slot it holds, if any, and its deadline."""

    def __init__(self, endpoint: Endpoint, jobs: int, changed: asyncio.Event) -> None:
        self.end: float | None = None
        self._jobs, self._changed = jobs, changed
        self.take(endpoint)

    def take(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._held = True
        endpoint.enter(self._jobs)

    def leave(self, _: object = None) -> None:
        """Release the slot; a second call does nothing."""
        if self._held:
            self._held = False
            self.endpoint.leave(self._jobs)
            self._changed.set()
