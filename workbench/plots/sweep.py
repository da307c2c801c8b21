"""Figures of a sweep: lines, paired differences, heat maps and Pareto fronts.

Points without a number are never dropped in silence: each figure says how many there are and why.
Each function computes its title from what it draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.lazy import Axes, Axis, NDArray, pd
from workbench.plots import points, theme
from workbench.plots.points import averaged, finite, is_share, left_out, levels, shown, written
from workbench.stats import ShareDifference

NAMED = 8  # points of a front that have names
LONG = 24  # letters of a name that are shown
SPAN = 20  # times from the least to the most, from which on an axis is logarithmic
TICKS = 8  # values that are named one by one


def plot_lines(ax: Axes, table: pd.DataFrame, x: str, metric: str, by: str | None = None) -> None:
    """A metric against a parameter, as lines with intervals; all else is averaged over.

    Values that are no numbers are set side by side, without lines.

    Args:
        by: a parameter with one line for each of its values, 7 in colour and the others in grey.

    Raises:
        InputError: a column is missing, or the table has no rows.
    """
    by = None if by == x else by
    found = averaged(table, metric, [x, by] if by else [x])
    places = _places(ax, found[x])
    names = levels(found[by]) if by else [""]
    bars, coloured = points.numbers(found[x]) is None, min(len(names), len(theme.COLOURS))
    ends, ranges = list[tuple[str, str, float]](), list[str]()
    for number, name in enumerate(names):
        part = found[found[by].map(shown) == name] if by else found
        at = places[part.index].sort_values()
        columns = [metric, f"{metric}.low", f"{metric}.high"]
        value, low, high = part.loc[at.index, columns].to_numpy(float).T
        if number >= coloured:
            ax.plot(at, value, color="0.8", linewidth=0.8, zorder=1)
            continue
        aside = (number - (coloured - 1) / 2) * 0.6 / coloured if bars else 0
        look = theme.line_style(number) | ({"linewidth": 0} if bars else {})
        sides = np.maximum([value - low, high - value], 0)
        ax.errorbar(at + aside, value, sides, capsize=3, elinewidth=1.2, zorder=3, **look)
        known = value[~np.isnan(value)]  # a gap where there is no number
        ends.append((_short(name), theme.COLOURS[number], known[-1] if len(known) else math.nan))
        ranges.append(f"{_short(name)} {_range(table, metric, known)}".strip())
    ax.set_xlabel(x)
    _measure(ax, table, metric, int(found["points"].max()))
    more = len(names) - coloured
    _note(ax, left_out(table, metric), f"grey: {more} more of {by}" if more else "")
    if by:
        theme.label_ends(ax, ends, _short(by))
    theme.finding(ax, f"{metric}: {', '.join(ranges[:3])}")


def _range(table: pd.DataFrame, metric: str, values: NDArray[np.float64]) -> str:
    """The least and the most of a metric."""
    share = is_share(table, metric)
    ends = dict.fromkeys(written(end(values), share=share) for end in (min, max) if len(values))
    return " to ".join(ends) + " %" * share if ends else "no point has a number"


def plot_differences(ax: Axes, table: pd.DataFrame, x: str, by: str | None = None) -> None:
    """Shares of right answers minus those at the first value of a parameter, over the same items.

    Args:
        table: what `sweep.paired` returns of `x` and `by`.
    """
    rows = []
    for row in table.to_dict("records"):
        name = (f"{shown(row[by])}, " if by else "") + f"{x} {shown(row[x])}"
        value, low, high = (row[end] for end in ("difference", "low", "high"))
        rows.append(ShareDifference(name, value, low, high, row["items"]))
    theme.gaps(ax, rows, f"minus {x} {shown(table['versus'].iloc[0])}")


def plot_heat(ax: Axes, table: pd.DataFrame, x: str, y: str, metric: str) -> None:
    """A metric over two parameters, a cell per combination with its interval; all else is averaged.

    The colours of a share span 0 to 100 %, those of another metric four of its intervals at least,
    so that noise is no pattern. A hatched cell has no number; an empty one is no point.

    Raises:
        InputError: a column is missing, the table has no rows, or `x` is `y`.
    """
    if x == y:
        raise InputError(f"x and y are both {x!r}: give two parameters")
    found, share = averaged(table, metric, [x, y]), is_share(table, metric)
    across, up = levels(found[x]), levels(found[y])
    cells, texts = np.full((len(up), len(across)), np.nan), dict[tuple[int, int], str]()
    columns = [metric, f"{metric}.low", f"{metric}.high"]
    states = table["state"].groupby([table[y].map(shown), table[x].map(shown)]).agg(set)
    for row in found.to_dict("records"):
        key = shown(row[y]), shown(row[x])
        place, ended = (up.index(key[0]), across.index(key[1])), states[key]
        value, *ends = (float(row[column]) for column in columns)
        cells[place], texts[place] = value, written(value, *ends, share=share)
        if math.isnan(value):
            texts[place] = ended.pop() if len(ended) == 1 and ended != {"done"} else "none"
    ax.patch.set(hatch="////", facecolor="0.95", edgecolor="0.75")  # seen where there is no number
    _name(ax, ax.xaxis, range(len(across)), across)
    _name(ax, ax.yaxis, range(len(up)), up)
    ax.grid(visible=False)
    ax.set(xlabel=x, ylabel=y)
    plain = share or found[metric].isna().all()
    low, high = (0.0, 1.0) if plain else _scale(found[columns].to_numpy(float))
    image = ax.imshow(cells, cmap="cividis", vmin=low, vmax=high, aspect="auto", origin="lower")
    fits = _write_cells(ax, np.asarray(image.cmap(image.norm(cells))), texts)
    _note(ax, left_out(table, metric), "" if fits else "cells are too small for their numbers")
    known = found.dropna(subset=metric).sort_values(metric, ascending=False, kind="stable")
    best = ", ".join(
        f"{name} {_short(shown(known[name].iloc[0]))}" for name in (x, y) if len(known)
    )
    text = f"{metric}: {_range(table, metric, known[metric].to_numpy())}"
    theme.finding(ax, text + f", highest at {best}" * bool(best))


def _scale(ends: NDArray[np.float64]) -> tuple[float, float]:
    """Values at the ends of the colours, of values with their lows and highs [n, 3]."""
    value, low, high = ends[~np.isnan(ends[:, 0])].T
    least = 4 * np.nanmean(high - low) if np.isfinite(high - low).any() else 0.1 * abs(value).max()
    more = max(0.0, (least or 1.0) - float(np.ptp(value))) / 2
    return value.min() - more, value.max() + more


def _write_cells(ax: Axes, colours: NDArray[Any], texts: Mapping[tuple[int, int], str]) -> bool:
    """Each cell's number in a colour that can be read there; whether there was room for them."""
    across, up = (72 * side / n for side, n in zip(_inches(ax), colours.shape[1::-1], strict=True))
    numbers = {place: text.partition("\n")[0] for place, text in texts.items()}
    for each, rows in ((texts, 3), (numbers, 1.5)):  # with the interval, or without
        letters = max(len(line) for text in each.values() for line in text.split("\n"))
        if fits := bool(up >= rows * theme.TEXT and across >= 0.6 * theme.TEXT * letters):
            break
    for place, text in each.items() if fits else ():
        red, green, blue, seen = colours[place]
        bright = not seen or red * 0.299 + green * 0.587 + blue * 0.114 > 0.5
        ax.text(
            place[1], place[0], text, ha="center", va="center", fontsize=theme.TEXT, gid=theme.KEEP,
            color="0.15" if bright else "white",
        )  # fmt: skip
    return fits


def plot_pareto(
    ax: Axes, table: pd.DataFrame, cost: str, metric: str, label: Sequence[str] | None = None
) -> None:
    """A metric against a cost, a dot per point, and the front of what is worth its cost.

    Args:
        label: columns that name the points of the front; by default the parameters that vary.

    Raises:
        InputError: a column is missing, or the table has no rows.
    """
    front = points.pareto(table, cost, metric).to_numpy()
    names = points.varied(table, cost, metric) if label is None else list(label)
    points.check_columns(table, names)
    columns = (cost, metric, f"{metric}.low", f"{metric}.high")
    at, up, low, high = (finite(table, name).to_numpy(float) for name in columns)
    both = ~np.isnan(at) & ~np.isnan(up)
    colour, others = theme.COLOURS[1], both & ~front
    ax.plot(at[others], up[others], "o", color=theme.COLOURS[0], alpha=0.45, markersize=4)
    on = np.flatnonzero(front)[np.lexsort([np.arange(front.sum()), at[front]])]
    sides = np.maximum([up - low, high - up], 0)[:, on]
    ax.step(at[on], up[on], where="post", color=colour, linewidth=1.4)
    ax.errorbar(at[on], up[on], sides, fmt="o", color=colour, elinewidth=1)
    _number_axis(ax, at[both])
    ax.margins(y=0.12)
    ax.set_xlabel(cost)
    first = on[np.unique(up[on], return_index=True)[1]]  # of those at one place
    few = first[np.unique(np.linspace(0, len(first) - 0.5, NAMED).astype(int))] if len(on) else on
    some = f"{len(few)} of {len(on)} on the front are named" if 0 < len(few) < len(on) else ""
    _note(ax, left_out(table, cost, metric), some)
    for i in few:  # a line to its name
        ax.hlines(up[i], at[i], ax.get_xlim()[1], color=colour, linewidth=0.7, linestyle=":")
    _measure(ax, table, metric)
    rows = [[_short(shown(table[name].iloc[i]), 32 // len(names)) for name in names] for i in few]
    ends = [(", ".join(row), colour, up[i]) for row, i in zip(rows, few, strict=True)]
    theme.label_ends(ax, ends, _short(", ".join(names), 32))
    price = f" for {' to '.join(dict.fromkeys(written(at[i]) for i in (*on[:1], *on[-1:])))} {cost}"
    text = f"{metric} on the front: {_range(table, metric, up[on])}"
    theme.finding(ax, text + price * bool(len(on)))


def _measure(ax: Axes, table: pd.DataFrame, metric: str, most: int = 1) -> None:
    """Name an axis: the metric, over how many points it is, and whether it has intervals."""
    interval = most > 1 or finite(table, f"{metric}.low").notna().any()
    parts = [*[f"mean of {most}"] * (most > 1), *["95 % interval"] * bool(interval)]
    name = f"{metric}{', %' * is_share(table, metric)}" + f" ({', '.join(parts)})" * bool(parts)
    ax.set_ylabel(name)
    if is_share(table, metric):
        theme.percent(ax.yaxis, name)


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
            ha="center", va="top", fontsize=theme.TEXT, color=theme.SOFT,
        )  # fmt: skip


def _places(ax: Axes, column: pd.Series[float]) -> pd.Series[float]:
    """Where on the horizontal axis the values are, and the axis made for them."""
    if (known := points.numbers(column)) is None:
        names = levels(column)
        _name(ax, ax.xaxis, range(len(names)), names)
        ax.set_xlim(-0.5, len(names) - 0.5)
        return column.map(shown).map(names.index).astype(float)
    _number_axis(ax, known)
    different = np.unique(known)
    at = np.log(different) if ax.get_xscale() == "log" else different
    apart = different.size < 2 or np.diff(at).min() > 0.07 * np.ptp(at)
    if different.size <= TICKS and apart:  # each is named
        _name(ax, ax.xaxis, different.tolist(), [shown(value) for value in different.tolist()])
        ax.xaxis.minorticks_off()
    return known


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
    theme.log_ticks(ax.xaxis, "")
    ax.xaxis.set_major_formatter(lambda value, _: shown(float(f"{value:.3g}")))
    if high > 100 * low:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 1e4 * low else (1,)))
    room = (high / low) ** 0.06
    ax.set_xlim(low / room, high * room)


def _name(ax: Axes, axis: Axis, places: Sequence[float], names: Sequence[str]) -> None:
    """Names of places, or of every so many, at an angle where they have no room side by side."""
    step = -(-len(names) // 16)
    kept = [_short(name) for name in names[::step]]
    wide = 0.65 * theme.TEXT * (sum(map(len, kept)) + len(kept))
    slanted = axis is ax.xaxis and wide > 0.75 * 72 * _inches(ax)[0]
    turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axis.set_ticks(places[::step], kept, fontsize=theme.TEXT, **(turned if slanted else {}))


def _short(text: str, most: int = LONG) -> str:
    """A name without its middle, where it is long."""
    return text if len(text) <= most else f"{text[: most - most // 3 - 1]}…{text[-(most // 3) :]}"
