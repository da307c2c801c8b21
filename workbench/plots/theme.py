"""One look for all figures, drawn without pyplot so that threads and notebooks do not mix.

A figure is as wide as a page, has two panels in a row, and states in each title what was found.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

from workbench.lazy import Axes, Axis, Figure, np, pd
from workbench.stats import Metric, Share, ShareDifference

INK, SOFT, GRID = "#222222", "#5f5f5f", "#e6e6e6"  # of texts, of notes and levels, of the grid
# After Okabe and Ito (2008), for any colour vision; as dark as a text on white has to be.
COLOURS = ("#0072B2", "#C24E00", "#007F5C", "#B0508E", "#8F6600", "#707070", "#000000")
MARKERS = "os^Dv*X"
WIDTH, ONE = 8.4, 5.4  # inches of two panels (saved: 820 pixels at 96 an inch) and of one
TEXT, TITLE = 9, 10.5  # sizes in points, of which the first is the least
KEEP = "keep"  # the gid of what has the same colour on dark, as a text on a coloured cell
FINDING, END = "finding", "end"  # gids of texts, for the layout
PICTURE: dict[str, Any] = {"dpi": 150, "bbox_inches": "tight", "metadata": {"Software": None}}


def new_figure(
    panels: int = 1, *, height: float = 3.0, columns: int = 2, width: float | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of panels, each `height` inches, `columns` in a row; a last row may have fewer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _show_in_notebooks()
    columns = min(columns, panels)
    rows, wide = -(-panels // columns), width or (ONE if columns == 1 else WIDTH)
    figure = Figure(figsize=(wide, height * rows), layout=_layout()(w_pad=0.1, h_pad=0.06))
    FigureCanvasAgg(figure)
    axes: list[Axes] = []
    grid = figure.add_gridspec(rows, 1)
    for row in range(rows):  # each by itself: names beside one row's panels narrow no other's
        cells = grid[row, 0].subgridspec(1, min(columns, panels - len(axes)))
        axes += [figure.add_subplot(cells[0, i]) for i in range(cells.ncols)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["bottom", "left"]].set_color(SOFT)
        ax.tick_params(labelsize=TEXT, color=SOFT, labelcolor=INK)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set(size=TEXT, color=INK)
        ax.grid(axis="y", color=GRID)
        ax.set_axisbelow(True)
    return figure, axes


@cache
def _layout() -> Any:
    """A layout that also wraps findings to their panels and spreads names beside them."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class Layout(ConstrainedLayoutEngine):
        def execute(self, fig: Any) -> None:
            ends = [ax.findobj(lambda one: one.get_gid() == END) for ax in fig.axes]
            findings = fig.findobj(lambda one: one.get_gid() == FINDING)
            for one in findings:  # from the same start each time, so that it ends the same
                one.set(text=fill(" ".join(one.get_text().split()), 40), x=0.005)
            for _ in range(2 if findings or any(ends) else 0):
                super().execute(fig)
                for names in filter(None, ends):
                    _spread(names)
                for one in findings:
                    _wrap(one, fig)
            super().execute(fig)

    return Layout


def _wrap(title: Any, figure: Figure) -> None:
    """A finding over its whole panel, from the names of its vertical axis on."""
    left, right = figure.bbox.x0, figure.bbox.x1
    if (ax := title.axes) is not None:
        beside = ax.yaxis.get_tightbbox()
        left = ax.bbox.x0 if beside is None else min(ax.bbox.x0, beside.x0)
        right = max([ax.bbox.x1, *(one.get_window_extent().x1 for one in ax.texts)])
        title.set_x((left - ax.bbox.x0) / ax.bbox.width)
    whole = " ".join(title.get_text().split()).replace(" %", "\u00a0%")  # with its number
    title.set_text(whole)
    letters = len(whole)
    while (wide := title.get_window_extent().width) > right - left and letters > 10:
        letters = min(letters - 1, int(letters * (right - left) / wide))
        title.set_text(fill(whole, letters))


def _spread(texts: Sequence[Any]) -> None:
    """Move the names beside a panel up and down until none overlaps another."""
    ax = texts[0].axes
    room = 1.05 * max(one.get_window_extent().height for one in texts)
    wanted = [float(one.xycoords.transform(one.xy)[1]) for one in texts]
    heights, order = [*wanted], sorted(range(len(texts)), key=wanted.__getitem__)
    for below, above in pairwise(order):
        heights[above] = max(heights[above], heights[below] + room)
    top = ax.bbox.y1 - room / 4
    for i in reversed(order):
        heights[i] = min(heights[i], top)
        top = heights[i] - room
    points = 72 / ax.figure.get_dpi()
    for one, height, aim in zip(texts, heights, wanted, strict=True):
        one.set_position((one.xyann[0], (height - aim) * points))


def finding(where: Axes | Figure, text: str) -> None:
    """What was found, with its number: the title of a panel or of a figure."""
    how: dict[str, Any] = {"fontsize": TITLE, "color": INK, "ha": "left", "gid": FINDING}
    if hasattr(where, "suptitle"):
        where.suptitle(text, x=0.005, **how)
    else:
        where.set_title(text, loc="left", pad=7, **how)


def percent(axis: Axis, label: str = "accuracy, %", *, whole: bool = True) -> None:
    """An axis of shares in percent: from 0 to 100, or where it is not `whole`, as it is."""
    axis.set_label_text(label)
    if whole:
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1])
        axis.set_view_interval(-0.02, 1.02, ignore=True)
    axis.set_major_formatter(lambda share, _: f"{100 * share:.4g}".replace("-", "−"))


def chance(ax: Axes, value: float, name: str = "chance", *, upright: bool = False) -> None:
    """A level to compare with, named: a line across, or an upright one below rows of dots."""
    line = ax.axvline if upright else ax.axhline
    line(value, color=SOFT, linewidth=1, linestyle="--", zorder=1)
    if not upright:
        label_ends(ax, [(name, SOFT, value)])
        return
    place: Any = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
    ax.annotate(name, (value, 0), (4, 3), **place, va="bottom", fontsize=TEXT, color=SOFT)


def label_ends(ax: Axes, ends: Iterable[tuple[str, str, float]], title: str = "") -> None:
    """Names to the right of a panel, each in its colour, at the height where its line ends (NaN if
    it has no number), and above them what they are values of.
    """
    rows = [(name, colour, y, ax.get_yaxis_transform()) for name, colour, y in ends]
    for name, colour, y, place in [*rows, *([(title, SOFT, 1, ax.transAxes)] if title else [])]:
        none = math.isnan(y)
        ax.annotate(
            name + " (none)" * none, (1, ax.get_ylim()[0] if none else y), (6, 0), xycoords=place,
            textcoords="offset points", va="center", fontsize=TEXT, gid=END,
            color=colour, annotation_clip=False,
        )  # fmt: skip


def shares(table: pd.DataFrame, value: str = "accuracy") -> list[Metric]:
    """A metric for each row of a table: its `name`, `value`, `low`, `high`, and perhaps `n`."""
    rows = table.to_dict("records")
    return [Share(str(r["name"]), r[value], r["low"], r["high"], r.get("n", 0)) for r in rows]


def dots(
    ax: Axes,
    metrics: Sequence[Metric],
    text: Callable[[Metric], str] = lambda one: f"{100 * one.value:.1f} %",
    colours: Sequence[str] = COLOURS[:1],
) -> None:
    """A row for each metric, the first on top: a dot, its interval, and its number to the right."""
    for place, one in enumerate(metrics):
        colour = colours[place % len(colours)]
        ax.hlines(place, one.low, one.high, color=colour, linewidth=1.4)
        ax.plot(one.value, place, marker="o", markersize=6, color=colour)
    label_ends(ax, [(text(m).replace("-", "−"), INK, at) for at, m in enumerate(metrics)])
    names = [fill(one.name.replace("_", " "), 30) for one in metrics]
    if len({one.n for one in metrics}) > 1:
        names = [f"{name}, n = {one.n:,}" for name, one in zip(names, metrics, strict=True)]
    ax.set_yticks(range(len(metrics)), names)
    ax.set_ylim(len(metrics) - 0.2, -0.6)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color=GRID)


def gap(metric: Metric) -> str:
    """A difference in words: with its 95 % interval, and whether it is distinguishable from 0."""
    scale, form = (100, "{:+.1f}") if isinstance(metric, ShareDifference) else (1, "{:+.2f}")
    numbers = (form.format(scale * one) for one in (metric.value, metric.low, metric.high))
    value, low, high = (one.replace("-", "\u2212") for one in numbers)
    text = f"{value}{' points' * (scale > 1)} ({low} to {high})"
    return f"not distinguishable, {text}" if metric.low <= 0 <= metric.high else text


def gaps(ax: Axes, metrics: Sequence[Metric], what: str) -> None:
    """Paired differences of shares, a row each, beside 0; the title is the clearest of them."""
    dots(ax, metrics, lambda one: f"{100 * one.value:+.1f}")
    ax.axvline(0, color=SOFT, linewidth=1, linestyle="--", zorder=1)
    percent(ax.xaxis, f"{what}, points (paired, 95 %)", whole=False)
    apart = [one for one in metrics if not one.low <= 0 <= one.high]
    most, n = max(apart or metrics, key=lambda one: abs(one.value)), len(metrics)
    text = f"{most.name} {what}: {gap(most)}; {len(apart)} of {n} differ"
    finding(ax, text if apart else f"None of {n} {what} is distinguishable")


def key(ax: Axes, place: Any) -> None:
    """The names of what is drawn, in its colours."""
    look: dict[str, Any] = {"labelcolor": "linecolor", "handlelength": 0.6, "handletextpad": 0.5}
    ax.legend(loc=place, frameon=False, fontsize=TEXT, borderaxespad=0.2, **look)


def lines(
    ax: Axes, table: pd.DataFrame, axes: tuple[str, str], by: str, name: str = "{}", **ends: str
) -> None:
    """A line of the columns `axes` for each value of `by`, with the intervals `ends`, by default
    the columns `low` and `high` where they are there, and named at its end.
    """
    named, (x, y) = [], axes
    for number, (key, part) in enumerate(table.groupby(by, sort=False)):
        line, style = part.sort_values(x), line_style(number)
        bars = sides(line, y, **ends) if ends or "low" in line else None
        ax.errorbar(line[x], line[y], bars, capsize=3, label=name.format(key), **style)
        named.append((name.format(key), style["color"], float(line[y].iloc[-1])))
    label_ends(ax, named)


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and width of the line of this number."""
    style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
    return {**style, "markersize": 5, "linewidth": 1.4}


def sides(table: Any, name: str, low: str = "low", high: str = "high") -> list[Any]:
    """How far the intervals of a column reach below and above its values, [2, n]."""
    return [table[name] - table[low], table[high] - table[name]]


def doubling(ax: Axes, sizes: Iterable[float]) -> None:
    """A horizontal axis of sizes that double, named where they were measured."""
    measured = sorted(set(sizes))
    ax.set_xscale("log", base=2)
    ax.set_xticks(measured, [f"{x:,.0f}" for x in measured])
    ax.xaxis.minorticks_off()


def log_ticks(axis: Axis, form: str) -> None:
    """A logarithmic axis with its 1, 2 and 5 named, as one decade is often all there is."""
    from matplotlib.ticker import LogLocator

    ax = axis.axes
    (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(form)
    axis.minorticks_off()


def save(figure: Figure, file: Path) -> None:
    """Write a picture `NAME.png`, and beside it `NAME_dark.png` for dark pages."""
    figure.savefig(file, **PICTURE)
    with for_dark(figure):
        figure.savefig(file.with_name(f"{file.stem}_dark.png"), transparent=True, **PICTURE)


@contextmanager
def for_dark(figure: Figure) -> Iterator[None]:
    """Within this the figure has light ink on a dark ground; after it, what it had."""
    figure.draw_without_rendering()  # makes the ticks
    colours = []  # all are read before any is set: the face of a marker follows its line's
    for artist in figure.findobj(lambda one: one.get_gid() != KEEP and not hasattr(one, "patch")):
        for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            get, put = (getattr(artist, f"{do}_{part}", None) for do in ("get", "set"))
            if get is not None and put is not None and (dark := _on_dark(get())) is not None:
                colours.append((put, get(), dark))
    for put, _, dark in colours:
        put(dark)
    try:
        yield
    finally:
        for put, light, _ in colours:
            put(light)


def _on_dark(colour: Any) -> Any:
    """The counterpart of a colour, or of several, on #111111; None of what is no colour."""
    from matplotlib.colors import to_rgba_array

    try:
        found = to_rgba_array(colour)
    except (TypeError, ValueError):  # "auto"
        return None
    grey = np.ptp(found[:, :3], axis=1, keepdims=True) < 0.05  # black to nearly white, and back
    found[:, :3] = np.where(grey, 0.93 - 0.863 * found[:, :3], 0.7 * found[:, :3] + 0.3)
    return (found if np.ndim(colour) == 2 else tuple(found[0])) if len(found) else None


def _show_in_notebooks() -> None:
    """Let a notebook draw a figure that ends a cell; pyplot would do this, and more."""
    ipython = sys.modules.get("IPython")
    if (shell := ipython.get_ipython() if ipython else None) is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})  # type: ignore[no-untyped-call]
