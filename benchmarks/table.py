"""A benchmark's rows: what was measured, its spread, and the floor it must reach."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.types import Metric


@dataclass(frozen=True, slots=True)
class Row:
    """`value` is a median where several runs were made; `low` and `high` are their range.

    Where `of` says "items", they are a 95 % interval over `runs` items.
    """

    what: str
    value: float
    unit: str
    bound: str
    holds: bool
    low: float | None = None
    high: float | None = None
    runs: int = 1
    of: str = "runs"

    @property
    def measured(self) -> str:
        """The value with its range, for people."""
        digits = ".0e" if 0 < self.value < 1e-3 else ".3g" if self.value < 100 else ".0f"
        text = f"{self.value:{digits}}{self.unit}"
        if self.low is not None and self.high is not None:
            text += f" ({self.low:{digits}} to {self.high:{digits}}, {self.runs:,} {self.of})"
        return text


def ratio_row(what: str, ratios: Sequence[float], least: float) -> Row:
    """The median of ratios, which must reach `least` if that is not 0."""
    middle = statistics.median(ratios)
    low, high = min(ratios), max(ratios)
    bound = f"≥ {least:g} ×" if least else "reported"
    return Row(what, middle, " ×", bound, middle >= least, low, high, len(ratios))


def share_row(metric: Metric, *, least: float = 0.0, most: float = 1.0) -> Row:
    """A share with its interval, in per cent, which must lie between two bounds."""
    bounds = [f"≥ {100 * least:g} %"] * (least > 0) + [f"≤ {100 * most:g} %"] * (most < 1)
    value, low, high = (100 * x for x in (metric.value, metric.low, metric.high))
    holds = least <= metric.value <= most and metric.n_failed == 0
    bound = " and ".join(bounds) or "reported"
    return Row(metric.name, value, " %", bound, holds, low, high, metric.n, "items")


def gain_row(metric: Metric, *, least: float = 0.0) -> Row:
    """A difference of shares with its interval, in points, which must be above `least`."""
    value, low, high = (100 * x for x in (metric.value, metric.low, metric.high))
    bound = f"≥ {100 * least:g} points" if least else "> 0, interval too"
    holds = metric.value >= least and metric.low > 0
    return Row(metric.name, value, " points", bound, holds, low, high, metric.n, "items")


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
