"""Figures: one look for all, drawn without pyplot so that threads and notebooks do not mix."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

from workbench.lazy import Axes, Axis, Figure, NDArray, np, pd
from workbench.types import Metric

# Okabe and Ito (2008): told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(
    panels: int = 1, *, height: float = 3.4, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` side by side, `columns` in a row, readable at the width of a page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _show_in_notebooks()
    columns = columns or panels
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.6 * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
    return figure, axes


def line_style(number: int) -> dict[str, Any]:
    """Colour and marker of the line of this number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def sides(table: Any, name: str, low: str = "low", high: str = "high") -> list[Any]:
    """How far the intervals of a column reach below and above its values, [2, n]."""
    return [table[name] - table[low], table[high] - table[name]]


def bars(ax: Axes, metrics: Sequence[Metric], *, lying: bool = False) -> None:
    """Bars of metrics with their intervals; lying ones begin on top."""
    values = [metric.value for metric in metrics]
    ends = [[m.value - m.low for m in metrics], [m.high - m.value for m in metrics]]
    style: dict[str, Any] = {"fmt": "none", "ecolor": "0.2", "capsize": 4, "linewidth": 1.2}
    places = range(len(metrics))
    if not lying:
        ax.bar(places, values, color=COLOURS[0], width=0.6)
        ax.errorbar(places, values, yerr=ends, **style)
        return
    ax.barh(places, values, color=COLOURS[0], height=0.6)
    ax.errorbar(values, places, xerr=ends, **style)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color="0.9")


def share_ticks(axis: Axis) -> None:
    """Ticks of an axis of shares, which may end above 1 to have room for names."""
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])


def doubling(ax: Axes, sizes: Iterable[float]) -> None:
    """A horizontal axis of sizes that double, named where they were measured."""
    from matplotlib.ticker import NullLocator

    measured = sorted(set(sizes))
    ax.set_xscale("log", base=2)
    ax.set_xticks(measured, [f"{x:,.0f}" for x in measured])
    ax.xaxis.set_minor_locator(NullLocator())


def _show_in_notebooks() -> None:
    """Let a notebook draw a figure that ends a cell; pyplot would do this, and more."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})  # type: ignore[no-untyped-call]


def plot_accuracy(ax: Axes, metrics: Sequence[Metric]) -> None:
    """Bars of shares with their 95 % intervals, each with its n."""
    bars(ax, metrics)
    labels = [f"{m.name.replace('_', ' ')}\nn = {m.n}" for m in metrics]
    ax.set_xticks(range(len(metrics)), labels, fontsize=9 if len(metrics) < 5 else 8)
    ax.set(ylim=(0, 1.05), ylabel="accuracy (95 % interval)")


def plot_log_odds(ax: Axes, groups: Mapping[str, NDArray[np.float64]]) -> None:
    """Histograms of log p(True) / p(False), one for each group of claims."""
    everything = np.concatenate(list(groups.values()))
    bins = np.linspace(everything.min(), everything.max(), 41)
    for colour, (name, values) in zip(COLOURS, groups.items(), strict=False):
        label = f"{name} (n = {len(values)})"
        ax.hist(values, bins=bins.tolist(), color=colour, alpha=0.65, label=label)
    ax.axvline(0, color="0.2", linewidth=1, linestyle="--")
    ax.set(xlabel='log p(" True") / p(" False"), nats', ylabel="claims")
    ax.legend(frameon=False, fontsize=9)


AXES = {
    "batch": "prompts in a call",
    "requests": "prompts",
    "prompt_tokens": "prompt length, tokens",
    "output_tokens": "answer length, tokens",
    "shared": "share of the prompt that all have in common",
}
MARKERS = "os^Dv*X"
WIDTH, NAME = 110, 22  # characters of a line of a title, and of a name
NAMES_APART = 1.16  # of the names of lines that end close together, as a ratio of their heights


def plot_speeds(ax: Axes, table: pd.DataFrame, by: str) -> None:
    """Speed against one side of the load, a line for each runner, with the range of the repeats.

    Args:
        table: rows of `throughput.summarise`; a batch of 0 is drawn as all the prompts.
        by: a key of `AXES`.
    """
    for number, (name, part) in enumerate(table.groupby("runner", sort=False)):
        line = part.assign(place=_places(part, by)).sort_values("place")
        ax.errorbar(
            line["place"], line["output_tokens_per_s"], yerr=sides(line, "output_tokens_per_s"),
            label=str(name), markersize=5, capsize=3, linewidth=1.4, **line_style(number),
        )  # fmt: skip
    if by == "shared":
        ax.xaxis.set_major_formatter("{x:.0%}")
    else:
        doubling(ax, _places(table, by))
    ax.set_yscale("log")
    log_ticks(ax.yaxis, "{x:,.0f}")
    ax.set(xlabel=AXES[by], ylabel="answer tokens a second")


def _places(table: pd.DataFrame, by: str) -> pd.Series[float]:
    sizes = table[by].astype(float)
    return sizes.where(sizes > 0, table["requests"]) if by == "batch" else sizes


def log_ticks(axis: Axis, form: str) -> None:
    """A logarithmic axis with its 1, 2 and 5 named, as one decade is often all there is."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(form)
    axis.set_minor_locator(NullLocator())


def plot_speedups(ax: Axes, metrics: Sequence[Metric]) -> None:
    """Bars of how many times faster, each with its range; 1 is as fast."""
    bars(ax, metrics, lying=True)
    for place, metric in enumerate(metrics):
        text = f" {metric.value:.1f} ×" if metric.value < 10 else f" {metric.value:.0f} ×"
        ax.text(metric.high, place, text, va="center", fontsize=9)
    ax.set_yticks(range(len(metrics)), [one.name.rpartition(" over ")[2] for one in metrics])
    ax.axvline(1, color="0.2", linewidth=1, linestyle="--")
    ax.set_xscale("log")
    log_ticks(ax.xaxis, "{x:g}")
    ax.set_xlim(left=min(0.5, *(0.8 * metric.low for metric in metrics)))
    ax.set_xlim(right=2.2 * max(metric.high for metric in metrics))
    ax.set_xlabel("times faster than")


def plot_shares(ax: Axes, metrics: Sequence[Metric], what: str, chance: float = 0.5) -> None:
    """Bars of shares with their 95 % intervals, lying, so that they can have long names.

    Args:
        what: the name of the axis.
        chance: marked by a line, as what guessing comes to.
    """
    bars(ax, metrics, lying=True)
    for place, metric in enumerate(metrics):
        ax.text(metric.high + 0.03, place, f"{metric.value:.2f}", va="center", fontsize=9)
    ax.axvline(chance, color="0.2", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(metrics)), [f"{one.name}\nn = {one.n}" for one in metrics])
    ax.set_xlim(0, 1.18)
    share_ticks(ax.xaxis)
    ax.set_xlabel(f"{what} (95 % interval)")


def plot_requests(ax: Axes, table: pd.DataFrame, here: float | None = None) -> None:
    """Speed of a server against concurrency, a line for each number of prompts in a request.

    Args:
        table: columns `prompts_per_request`, `max_concurrency` and `verdicts_per_s`.
        here: speed of the engine in this process.
    """
    ends: dict[str, tuple[float, str]] = {}
    for number, (size, part) in enumerate(table.groupby("prompts_per_request", sort=False)):
        line = part.sort_values("max_concurrency")
        style = line_style(number)
        places, speeds = line["max_concurrency"].tolist(), line["verdicts_per_s"].tolist()
        ax.plot(places, speeds, markersize=5, linewidth=1.4, **style)
        ends[f"{size} a request" if size != "auto" else "auto"] = (speeds[-1], style["color"])
    many = sorted(set(table["max_concurrency"]))
    if here is not None:
        ax.hlines(here, many[0], many[-1], color="0.2", linewidth=1, linestyle="--")
        ends["in this process"] = (here, "0.2")
    doubling(ax, many)
    ax.set_xlim(0.8 * many[0], 6 * many[-1])  # room for the names
    ax.set_yscale("log")
    log_ticks(ax.yaxis, "{x:,.0f}")
    lowest = 0.0
    for name, (speed, colour) in sorted(ends.items(), key=lambda end: end[1]):
        lowest = max(speed, lowest * NAMES_APART)
        ax.text(1.25 * many[-1], lowest, name, color=colour, va="center", fontsize=9)
    ax.set(xlabel="requests at once", ylabel="verdicts a second")


def plot_samples(ax: Axes, curve: pd.DataFrame) -> None:
    """Accuracy of a vote against the samples that it counts, with its 95 % band.

    Args:
        curve: what `comparison.by_samples` returns.
    """
    ax.fill_between(curve["samples"], curve["low"], curve["high"], color=COLOURS[0], alpha=0.15)
    ax.plot(curve["samples"], curve["accuracy"], color=COLOURS[0], marker=MARKERS[0])
    doubling(ax, curve["samples"])
    ax.set(xlabel="samples that vote", ylabel="accuracy (95 % band)")


def plot_costs(ax: Axes, table: pd.DataFrame) -> None:
    """Accuracy of agents against the tokens that they generate for an item.

    Args:
        table: what `comparison.comparison` returns.
    """
    for number, row in enumerate(table.to_dict("records")):
        tokens = row["completion_tokens"] / (row["n"] + row["n_failed"] / row["runs"]) / row["runs"]
        ends = [[side] for side in sides(row, "accuracy")]
        ax.errorbar(
            tokens, row["accuracy"], yerr=ends, capsize=4, linestyle="none",
            label=row["name"].replace("_", " "), **line_style(number),
        )  # fmt: skip
    ax.set_xscale("log")
    log_ticks(ax.xaxis, "{x:,.0f}")
    ax.set(xlabel="generated tokens an item", ylabel="accuracy (95 % interval)", ylim=(0, 1.02))
    ax.legend(fontsize=8, frameon=False, loc="lower left")


def draw_comparison(table: pd.DataFrame, title: str) -> Figure:
    """Accuracies with their 95 % intervals, and paired differences to the first with theirs.

    Args:
        table: what `comparison.comparison` returns, of two reports or more.
        title: what was found.
    """
    figure, (left, right) = new_figure(2, height=1.5 + 0.45 * len(table))
    places = list(range(len(table)))
    for place in places:
        row, style = table.iloc[[place]], {**line_style(place), "marker": "o", "markersize": 6}
        ends = sides(row, "accuracy")
        left.errorbar(row["accuracy"], [place], xerr=ends, capsize=4, **style)
        if place:
            ends = sides(row, "difference", "difference_low", "difference_high")
            right.errorbar(row["difference"], [place], xerr=ends, capsize=4, **style)
    names = [fill(str(name), NAME) for name in table["name"]]
    left.set_yticks(places, [f"{a}\nn = {n}" for a, n in zip(names, table["n"], strict=True)])
    left.set_xlim(-0.02, 1.02)
    share_ticks(left.xaxis)
    left.set_xlabel("accuracy (95 % interval)")
    right.axvline(0, color="0.2", linewidth=1, linestyle="--")
    right.set_yticks(places, [""] * len(places))
    right.set_xlabel(f"difference to {names[0]} (paired, 95 % interval)".replace("\n", " "))
    for ax in (left, right):
        ax.set_ylim(len(places) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", color="0.9")
    figure.suptitle(fill(title, WIDTH), fontsize=10)
    return figure
