"""How many rows a batch holds in one call: a fixed number, or one found while working.

Found: it doubles while the tokens a second grow, and halves when memory runs out. Work changes as a
call goes on (long prompts come first), so a batch that seems not to pay is compared with one of the
smaller size that runs right after it.
"""

from __future__ import annotations

import logging
from typing import Literal

from workbench.errors import InputError

log = logging.getLogger("workbench")

START = 32  # smaller ones would only be measured to be left again
MOST = 4096
GROWTH = 1.1  # twice the rows must give so many times the tokens a second, or memory is wasted


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

    def __init__(self, what: str, size: int | Literal["auto"]) -> None:
        self._what = what
        self.auto = size == "auto"
        self.now = START if size == "auto" else size
        self.rates: dict[int, float] = {}  # latest tokens a second at each size
        self._growing = self.auto
        self._doubted: int | None = None  # a size that seemed not to pay

    @property
    def best(self) -> int:
        """The size that was settled on, or the fastest that was measured."""
        if self._growing and self.rates:
            return max(self.rates, key=lambda size: self.rates[size])
        return self.now

    def note(self, rows: int, tokens: int, seconds: float, left: int) -> None:
        """A batch is done, and `left` rows are to come: half of them at most go into a trial."""
        if not self._growing or rows != self.now:
            return
        self.rates[rows] = tokens / max(seconds, 1e-9)
        if self._doubted is not None:
            doubted, self._doubted = self._doubted, None
            if GROWTH * self.rates[rows] > self.rates[doubted]:
                self._growing = False
            else:
                self._grow(doubted, left)
        elif self.rates[rows] < GROWTH * self.rates.get(rows // 2, 0.0):
            self._doubted, self.now = rows, rows // 2
        else:
            self._grow(rows, left)

    def _grow(self, rows: int, left: int) -> None:
        self.now = 2 * rows if 2 * rows <= min(MOST, left / 2) else rows

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

    def tell(self) -> None:
        """Say which size was found."""
        seen = ", ".join(f"{rows}: {rate:,.0f}" for rows, rate in self.rates.items())
        log.info("%s: batch size %d (tokens a second at %s)", self._what, self.best, seen or "none")
