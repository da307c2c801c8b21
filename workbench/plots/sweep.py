"""Figures of a sweep: lines, heat maps and Pareto fronts of a table with one row a point.

Points without a number are never dropped in silence: each figure says how many there are and why.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.lazy import Axes, Axis, NDArray, pd
from workbench.plots.points import (
    averaged,
    check_columns,
    finite,
    left_out,
    levels,
    numbers,
    pareto,
    shown,
    varied,
)
from workbench.plots.style import COLOURS, KEEP, TEXT, label_ends, line_style, log_ticks

NAMED = 8  # points of a front that have names
GREY = "0.45"
LONG = 24  # letters of a name that are shown
SPAN = 20  # times from the least to the most, from which on an axis is logarithmic
TICKS = 8  # values that are named one by one
DOT = 11.0  # points across of a dot with a number in it


def plot_lines(ax: Axes, table: pd.DataFrame, x: str, metric: str, by: str | None = None) -> None:
    """A metric against a parameter, as lines with bands; all else is averaged over.

    Values that are no numbers are set side by side, with their intervals as bars.

    Args:
        by: a parameter with one line for each of its values, 7 in colour and the others in grey.

    Raises:
        InputError: a column is missing, or the table has no rows.
    """
    by = None if by == x else by
    found = averaged(table, metric, [x, by] if by else [x])
    places = _places(ax, found[x])
    names = levels(found[by]) if by else [""]
    bars, coloured = numbers(found[x]) is None, min(len(names), len(COLOURS))
    ends: list[tuple[str, str, float]] = []
    for number, name in enumerate(names):
        part = found[found[by].map(shown) == name] if by else found
        at = places[part.index].sort_values()
        columns = [metric, f"{metric}.low", f"{metric}.high"]
        line = part.loc[at.index, columns].to_numpy(float)
        if number >= coloured:
            ax.plot(at, line[:, 0], color="0.8", linewidth=0.8, zorder=1)
            continue
        aside = (number - (coloured - 1) / 2) * 0.6 / coloured if bars else 0
        value, low, high = line.T  # a gap where there is no number
        style = line_style(number) | ({"linewidth": 0} if bars else {})
        sides = np.maximum([value - low, high - value], 0)
        ax.errorbar(at + aside, value, sides, capsize=3, elinewidth=1.2, zorder=3, **style)
        known = value[~np.isnan(value)]
        ends.append((_short(name), COLOURS[number], known[-1] if len(known) else math.nan))
    ax.set(xlabel=x, ylabel=_measured(metric, found))
    more = len(names) - coloured
    _note(ax, left_out(table, metric), f"grey: {more} more of {by}" if more else "")
    _say_if_empty(ax, found[metric])
    if by:
        label_ends(ax, ends, _short(by))


def _say_if_empty(ax: Axes, values: pd.Series[float]) -> None:
    if not values.notna().any():
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no point has a number", ha="center", color=GREY, transform=ax.transAxes)


def _places(ax: Axes, column: pd.Series[float]) -> pd.Series[float]:
    """Where on the horizontal axis the values are, and the axis made for them."""
    known = numbers(column)
    if known is not None:
        _number_axis(ax, known)
        _name_ticks(ax, known)
        return known
    names = levels(column)
    _name_categories(ax, ax.xaxis, names)
    ax.set_xlim(-0.5, len(names) - 0.5)
    return column.map(shown).map(names.index).astype(float)


def plot_heat(ax: Axes, table: pd.DataFrame, x: str, y: str, metric: str) -> None:
    """A metric over two parameters, a cell a combination; all else is averaged over.

    A hatched cell has no number; where nothing is written, there is no such point.

    Raises:
        InputError: a column is missing, the table has no rows, or `x` is `y`.
    """
    if x == y:
        raise InputError(f"x and y are both {x!r}: give two parameters")
    found = averaged(table, metric, [x, y])
    across, up = levels(found[x]), levels(found[y])
    cells = np.full((len(up), len(across)), np.nan)
    cells[found[y].map(shown).map(up.index), found[x].map(shown).map(across.index)] = found[metric]
    states: dict[tuple[int, ...], set[str]] = {}
    for row, column, state in zip(table[y], table[x], table["state"], strict=True):
        place = up.index(shown(row)), across.index(shown(column))
        states.setdefault(place, set()).add(state)
    _name_categories(ax, ax.xaxis, across)
    _name_categories(ax, ax.yaxis, up)
    ax.grid(visible=False)
    ax.set(xlabel=x, ylabel=y)
    known = cells[~np.isnan(cells)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    wide = 0.0 if high > low else 0.05 * abs(low) or 0.5
    image = ax.imshow(
        cells, cmap="cividis", vmin=low - wide, vmax=high + wide, aspect="auto", origin="lower"
    )
    figure = ax.get_figure(root=True)
    assert figure is not None  # it has been drawn on
    if known.size:
        figure.colorbar(
            image,
            cax=ax.inset_axes((1.04, 0, 0.05, 1)),
            label=_measured(metric, found, interval=False),
        )
    written = _write_cells(ax, np.asarray(image.cmap(image.norm(cells))), cells, states)
    _note(ax, left_out(table, metric), "" if written else "cells are too small for their numbers")


def _write_cells(
    ax: Axes,
    colours: NDArray[np.floating[Any]],
    cells: NDArray[np.floating[Any]],
    states: Mapping[tuple[int, ...], Collection[str]],
) -> bool:
    """Each cell's number in a colour that can be read there; whether there was room for them."""
    from matplotlib.patches import Rectangle

    form = _form(cells[~np.isnan(cells)])
    texts = {place: form.format(value) for place, value in np.ndenumerate(cells)}
    for place, value in np.ndenumerate(cells):
        if math.isnan(value):
            ended = {*states.get(place, ())}
            texts[place] = "".join(ended) if len(ended - {"done"}) == len(ended) < 2 else "none"
            corner = (place[1] - 0.5, place[0] - 0.5)
            ax.add_patch(Rectangle(corner, 1, 1, hatch="////", fc="0.95", ec="0.75", linewidth=0))
    across, up = (72 * side for side in _inches(ax))
    letters = max(map(len, texts.values()))
    wide, high = across / cells.shape[1], up / cells.shape[0]
    fits = bool(high >= 1.5 * TEXT and wide >= 0.75 * TEXT * letters)
    for place, text in texts.items() if fits else ():
        bright = math.isnan(cells[place]) or colours[place][:3] @ (0.299, 0.587, 0.114) > 0.5
        ink = "0.15" if bright else "white"
        ax.text(
            place[1], place[0], text, ha="center", va="center", fontsize=TEXT, color=ink, gid=KEEP
        )
    return fits


def _form(values: NDArray[np.floating[Any]]) -> str:
    """A format with so many decimals that the values can be told apart."""
    most = float(np.abs(values).max()) if values.size else 0.0
    if most and not 1e-3 <= most < 1e6:
        return "{:.2e}"
    decimals = 1 - math.floor(math.log10(float(np.ptp(values)) or most)) if most else 0
    return f"{{:,.{min(max(decimals, 0), 4)}f}}"


def plot_pareto(
    ax: Axes, table: pd.DataFrame, cost: str, metric: str, label: Sequence[str] | None = None
) -> None:
    """A metric against a cost, a dot a point, and the front of what is worth its cost.

    Args:
        label: columns that name the points of the front; by default the parameters that vary.

    Raises:
        InputError: a column is missing, or the table has no rows.
    """
    front = pareto(table, cost, metric).to_numpy()
    names = varied(table, cost, metric) if label is None else list(label)
    check_columns(table, names)
    ends = [finite(table, metric + end) for end in ("", ".low", ".high")]
    at, up, low, high = (one.to_numpy(float) for one in (finite(table, cost), *ends))
    both = ~np.isnan(at) & ~np.isnan(up)
    others = both & ~front
    ax.scatter(at[others], up[others], s=16, color=COLOURS[0], alpha=0.45, linewidth=0, zorder=2)
    on = np.flatnonzero(front)[np.argsort(at[front], kind="stable")]
    ax.step(at[on], up[on], where="post", color=COLOURS[1], linewidth=1.2, zorder=3)
    sides = np.maximum([up - low, high - up], 0)[:, on]
    ax.errorbar(
        at[on], up[on], sides, fmt="o", color=COLOURS[1], markersize=5, capsize=3, linewidth=0,
        elinewidth=1, zorder=4,
    )  # fmt: skip
    _number_axis(ax, at[both])
    _say_if_empty(ax, finite(table, metric).where(both))
    ax.margins(y=0.12)
    ax.set(xlabel=cost, ylabel=f"{metric} (95 % interval)" if np.isfinite(sides).any() else metric)
    few = _apart(ax, at[on], up[on]) if names else []
    some = f"{len(few)} of {len(on)} on the front are named" if 0 < len(few) < len(on) else ""
    _note(ax, left_out(table, cost, metric), some)
    if few:
        rows = [[shown(table[name].iloc[on[i]]) for name in names] for i in few]
        _name_front(ax, ", ".join(names), rows, at[on[few]], up[on[few]])


def _apart(ax: Axes, at: NDArray[np.floating[Any]], up: NDArray[np.floating[Any]]) -> list[int]:
    """Points of a front, its two ends first, so far from each other that each can have a number."""
    wide, high = (72 * side for side in _inches(ax))
    places = ax.transAxes.inverted().transform(ax.transData.transform(np.column_stack([at, up])))
    places = places * (0.7 * wide, high)  # names take some of the width
    chosen = [0] if len(at) else []
    while 0 < len(chosen) < NAMED:
        gaps = np.hypot(*(places[:, None] - places[chosen]).T).min(axis=0)
        farthest = len(at) - 1 if len(chosen) == 1 else int(gaps.argmax())
        if gaps[farthest] < DOT:
            break
        chosen.append(farthest)
    return sorted(chosen)


def _name_front(
    ax: Axes,
    title: str,
    rows: Sequence[Sequence[str]],
    at: NDArray[np.floating[Any]],
    up: NDArray[np.floating[Any]],
) -> None:
    """Numbers in the dots, and to the right of the axes what they stand for, the best on top."""
    ax.scatter(at, up, s=DOT**2, color=COLOURS[1], linewidth=0, zorder=5)
    for number, place in enumerate(zip(at, up, strict=True), start=1):
        ax.annotate(
            str(number), place, ha="center", va="center_baseline", fontsize=7, color="white",
            zorder=6,
        )  # fmt: skip
    texts = [", ".join(_short(value, 32 // len(row)) for value in row) for row in rows]
    top = ax.get_ylim()[1]
    names = [(f"{number}  {text}", COLOURS[1], top) for number, text in enumerate(texts, start=1)]
    label_ends(ax, names, _short(title, 32))


def _measured(metric: str, found: pd.DataFrame, *, interval: bool = True) -> str:
    """The name of an axis: the metric, over how many points it is, and whether it has intervals."""
    counts = found["points"][found["points"] > 0]
    parts = []
    if counts.max() > 1:
        least = "" if counts.min() == counts.max() else f"{counts.min()} to "
        parts.append(f"mean of {least}{counts.max()}")
    if interval and (found["interval"] != "none").any():
        parts.append("95 % interval")
    return f"{metric} ({', '.join(parts)})" if parts else metric


def _inches(ax: Axes) -> tuple[float, float]:
    """How large the axes are, before their layout is made."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # it has been drawn on
    box, whole = ax.get_position(), figure.bbox_inches
    return box.width * whole.width, box.height * whole.height


def _note(ax: Axes, *parts: str) -> None:
    """What a reader has to know, below the name of the horizontal axis."""
    if text := "; ".join(filter(None, parts)):
        ax.annotate(
            text, (0.5, 0), (0, -2), xycoords=ax.xaxis.label, textcoords="offset points",
            ha="center", va="top", fontsize=7.5, color=GREY,
        )  # fmt: skip


def _number_axis(ax: Axes, values: pd.Series[float] | NDArray[np.float64]) -> None:
    """A horizontal axis over all the values, logarithmic where they span much."""
    from matplotlib.ticker import LogLocator

    if not len(values):
        return
    low, high = float(np.min(values)), float(np.max(values))
    if not (low > 0 and high >= SPAN * low):
        room = 0.06 * (high - low) or 0.5 * abs(low) or 1
        ax.set_xlim(low - room, high + room)
        return
    log_ticks(ax.xaxis, "")
    ax.xaxis.set_major_formatter(lambda value, _: shown(float(f"{value:.3g}")))
    if high > 100 * low:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 1e4 * low else (1,)))
    room = (high / low) ** 0.06
    ax.set_xlim(low / room, high * room)


def _name_ticks(ax: Axes, values: pd.Series[float]) -> None:
    """Few values that lie apart are named one by one."""
    different = np.unique(values)
    places = np.log(different) if ax.get_xscale() == "log" else different
    if different.size == 1 or (
        different.size <= TICKS and np.diff(places).min() > 0.07 * np.ptp(places)
    ):
        _name(ax, ax.xaxis, different.tolist(), [shown(value) for value in different.tolist()])
        ax.xaxis.minorticks_off()


def _name_categories(ax: Axes, axis: Axis, names: Sequence[str]) -> None:
    """Places 0, 1, … with their names, or every so many of them."""
    step = -(-len(names) // 25)
    _name(ax, axis, range(0, len(names), step), names[::step])


def _name(ax: Axes, axis: Axis, places: Sequence[float], names: Sequence[str]) -> None:
    """Names of places, at an angle where they have no room beside each other."""
    kept, size = [_short(name) for name in names], 9 if len(names) < 12 else 7
    wide = 0.65 * size * (sum(map(len, kept)) + len(kept))
    slanted = axis is ax.xaxis and wide > 0.75 * 72 * _inches(ax)[0]
    turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axis.set_ticks(places, kept, fontsize=size, **(turned if slanted else {}))


def _short(text: str, most: int = LONG) -> str:
    """A name without its middle, where it is long."""
    return text if len(text) <= most else f"{text[: most - most // 3 - 1]}…{text[-(most // 3) :]}"
