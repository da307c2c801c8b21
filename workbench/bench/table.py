"""A benchmark's rows: what was measured, its spread, and the floor it must reach."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Row", "as_text", "ratio_row"]


@dataclass(frozen=True, slots=True)
class Row:
    """`value` is a median where several runs were made; `low` and `high` are their range."""

    what: str
    value: float
    unit: str
    bound: str
    holds: bool
    low: float | None = None
    high: float | None = None
    runs: int = 1

    @property
    def measured(self) -> str:
        """The value with its range, for people."""
        digits = ".0e" if 0 < self.value < 1e-3 else ".3g" if self.value < 100 else ".0f"
        text = f"{self.value:{digits}}{self.unit}"
        if self.low is not None and self.high is not None:
            text += f" ({self.low:{digits}} to {self.high:{digits}}, {self.runs} runs)"
        return text


def ratio_row(what: str, ratios: Sequence[float], least: float) -> Row:
    """The median of ratios, which must reach `least`."""
    middle = statistics.median(ratios)
    low, high = min(ratios), max(ratios)
    return Row(what, middle, " ×", f"≥ {least:g} ×", middle >= least, low, high, len(ratios))


def as_text(rows: Sequence[Row]) -> str:
    """A Markdown table, readable in a terminal and in a README."""
    cells = [("what", "measured", "must be", "")]
    cells += [(r.what, r.measured, r.bound, "holds" if r.holds else "FAILS") for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
