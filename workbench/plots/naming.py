"""Names in a figure of points: of ticks, of lines, and what else a reader has to be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.plots import log_ticks
from workbench.plots.points import shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from numpy.typing import NDArray

GREY = "0.45"
LINE = 10.5  # points from one name beside the axes to the next
LONG = 24  # letters of a name that are shown
SPAN = 20  # times from the least to the most, from which on an axis is logarithmic
TICKS = 8  # values that are named one by one


def inches(ax: Axes) -> tuple[float, float]:
    """How large the axes are, before their layout is made."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # it has been drawn on
    box, whole = ax.get_position(), figure.bbox_inches
    return box.width * whole.width, box.height * whole.height


def name_ends(ax: Axes, title: str, ends: Sequence[tuple[str, str, float]]) -> None:
    """The lines' names to the right of the axes, each at the height where its line ends."""
    room = LINE / (72 * inches(ax)[1])
    bottom, top = ax.get_ylim()
    heights = [0.0 if math.isnan(y) else (y - bottom) / (top - bottom) for *_, y in ends]
    order = sorted(range(len(ends)), key=heights.__getitem__)
    for before, i in pairwise(order):
        heights[i] = max(heights[i], heights[before] + room)
    for number, i in enumerate(reversed(order)):
        heights[i] = min(heights[i], 1 - (number + 1) * room)
    for (name, colour, y), height in zip(ends, heights, strict=True):
        beside(ax, height, short(name) + (" (none)" if math.isnan(y) else ""), colour)
    beside(ax, max(heights) + 1.2 * room, title, GREY)


def beside(ax: Axes, height: float, text: str, colour: str) -> None:
    ax.text(1.02, height, text, color=colour, fontsize=8, va="center", transform=ax.transAxes)


def note(ax: Axes, *parts: str) -> None:
    """What a reader has to know, below the name of the horizontal axis."""
    if text := "; ".join(filter(None, parts)):
        ax.annotate(
            text, (0.5, 0), (0, -2), xycoords=ax.xaxis.label, textcoords="offset points",
            ha="center", va="top", fontsize=7.5, color=GREY,
        )  # fmt: skip


def number_axis(ax: Axes, values: pd.Series[float] | NDArray[np.float64]) -> None:
    """A horizontal axis over all the values, logarithmic where they span much."""
    from matplotlib.ticker import LogLocator

    if not len(values):
        return
    low, high = float(np.min(values)), float(np.max(values))
    if not (low > 0 and high >= SPAN * low):
        room = 0.06 * (high - low) or 0.5 * abs(low) or 1
        ax.set_xlim(low - room, high + room)
        return
    ax.set_xscale("log")
    log_ticks(ax.xaxis, "")
    ax.xaxis.set_major_formatter(lambda value, _: shown(float(f"{value:.3g}")))
    if high > 100 * low:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 1e4 * low else (1,)))
    room = (high / low) ** 0.06
    ax.set_xlim(low / room, high * room)


def name_ticks(ax: Axes, values: pd.Series[float]) -> None:
    """Few values that lie apart are named one by one."""
    from matplotlib.ticker import NullLocator

    different = np.unique(values)
    places = np.log(different) if ax.get_xscale() == "log" else different
    if different.size == 1 or (
        different.size <= TICKS and np.diff(places).min() > 0.07 * np.ptp(places)
    ):
        _name(ax, ax.xaxis, different.tolist(), [shown(value) for value in different.tolist()])
        ax.xaxis.set_minor_locator(NullLocator())


def name_categories(ax: Axes, axis: Axis, names: Sequence[str]) -> None:
    """Places 0, 1, … with their names, or every so many of them."""
    step = -(-len(names) // 25)
    _name(ax, axis, range(0, len(names), step), names[::step])


def _name(ax: Axes, axis: Axis, places: Sequence[float], names: Sequence[str]) -> None:
    """Names of places, at an angle where they have no room beside each other."""
    kept, size = [short(name) for name in names], 9 if len(names) < 12 else 7
    wide = 0.65 * size * (sum(map(len, kept)) + len(kept))
    slanted = axis is ax.xaxis and wide > 0.75 * 72 * inches(ax)[0]
    turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axis.set_ticks(places, kept, fontsize=size, **(turned if slanted else {}))


def short(text: str, most: int = LONG) -> str:
    """A name without its middle, where it is long."""
    return text if len(text) <= most else f"{text[: most - most // 3 - 1]}…{text[-(most // 3) :]}"
