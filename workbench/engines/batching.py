"""How many rows a batch holds: a fixed number, or one found while working.

Found: it doubles while the tokens a second grow, and halves when memory runs out. Sizes are
compared on full batches only, and one slow batch is asked again before it ends the growth.
"""

from __future__ import annotations

import logging
from typing import Literal

from workbench.errors import InputError

__all__ = ["BatchSize", "check_batch_size"]

log = logging.getLogger("workbench")

START = 16  # smaller ones would only be measured to be left again
GROWTH = 1.05  # twice the rows must give this many times the tokens a second to be worth it
MOST = 4096


def check_batch_size(size: object) -> int | Literal["auto"]:
    """A batch size as it may be asked for.

    Raises:
        InputError: neither "auto" nor a whole number from 1.
    """
    if size == "auto":
        return "auto"
    if isinstance(size, int) and not isinstance(size, bool) and size >= 1:
        return size
    raise InputError(f'batch_size={size!r}: must be "auto" or a whole number from 1')


class BatchSize:
    """The size to use `now`; told of each batch, it finds the best."""

    def __init__(self, size: int | Literal["auto"], what: str) -> None:
        self.auto = size == "auto"
        self.now = START if size == "auto" else size
        self.rates: dict[int, float] = {}  # best tokens a second seen at each size
        self._what = what
        self._growing = self.auto
        self._slow = 0

    def note(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch is done."""
        if not self._growing or rows != self.now:
            return
        rate = tokens / max(seconds, 1e-9)
        self.rates[rows] = max(rate, self.rates.get(rows, 0.0))
        before = self.rates.get(rows // 2, 0.0)
        if self.rates[rows] > GROWTH * before:
            self._slow = 0
            if rows < MOST:
                self.now = 2 * rows
            else:
                self._settle(rows)
        elif self._slow:
            self._settle(max(self.rates, key=lambda size: self.rates[size]))
        else:
            self._slow = 1

    def out_of_memory(self, rows: int) -> bool:
        """A batch of `rows` did not fit; False if nothing smaller may be tried."""
        if not self.auto or rows == 1:
            return False
        log.warning(
            "%s: out of memory with %d rows a batch, trying %d", self._what, rows, rows // 2
        )
        self._growing = False
        self.now = rows // 2
        return True

    def _settle(self, rows: int) -> None:
        self._growing = False
        self.now = rows
        seen = ", ".join(f"{size}: {rate:,.0f}" for size, rate in self.rates.items())
        log.info("%s: batch size %d (tokens a second at %s)", self._what, rows, seen)
