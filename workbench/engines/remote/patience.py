"""How long to go on trying."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """When to give up: on a request by attempts and seconds, on dead servers by seconds.

    Too many requests, and a server that is away, do not count as attempts.
    """

    attempts: int = 10
    total: float = 3600.0
    dead: float = 120.0
    first_wait: float = 0.25
    longest_wait: float = 10.0

    def wait(self, failed: int) -> float:
        """Seconds to wait after so many failures: doubling, with jitter."""
        doubled: float = self.first_wait * 2 ** min(failed - 1, 20)
        return min(self.longest_wait, doubled) * random.uniform(0.5, 1.0)
