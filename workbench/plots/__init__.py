"""Figures of evaluations, of throughput and of agents, in the look of `plots.style`.

Each function computes its title from what it draws: what was found, with its number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from workbench.lazy import Axes, Figure, pd
from workbench.plots.style import (
    COLOURS,
    INK,
    chance,
    dots,
    doubling,
    finding,
    line_style,
    lines,
    log_ticks,
    new_figure,
    percent,
    shares,
    sides,
)
from workbench.stats import ShareDifference
from workbench.types import Metric

__all__ = ["COLOURS", "finding", "new_figure"]


def plot_accuracy(
    ax: Axes,
    metrics: Sequence[Metric],
    what: str = "accuracy",
    *,
    gains: Sequence[Metric] = (),
    level: float | None = None,
) -> None:
    """Shares with their 95 % intervals, a row each, in percent.

    Args:
        what: the name of the axis.
        gains: paired differences of all but the first to the first, which the title compares.
        level: what guessing comes to, drawn as "chance".
    """
    dots(ax, metrics)
    sizes = {one.n for one in metrics}
    percent(ax.xaxis, f"{what}, % (95 % interval{f', n = {sizes.pop():,}' * (len(sizes) == 1)})")
    if level is not None:
        chance(ax, level, upright=True)
    finding(ax, compared(metrics, gains, what) if gains else _spanned(metrics, what, level))


def compared(metrics: Sequence[Metric], gains: Sequence[Metric], what: str = "accuracy") -> str:
    """The largest paired difference, of those to `metrics[0]`, that is distinguishable from 0."""
    first, size = metrics[0], lambda pair: abs(pair[1].value)
    known = [pair for pair in zip(metrics[1:], gains, strict=True) if pair[1].n]
    apart = [(one, gain) for one, gain in known if not gain.low <= 0 <= gain.high]
    if not known:
        return f"{first.name}: {what} {first}"
    other, gain = max(apart or known, key=size)
    if not apart:
        return f"{other.name} and {first.name} are not distinguishable: paired {gain}"
    way = "raises" if gain.value > 0 else "lowers"
    ends = f"{100 * first.value:.1f} to {100 * other.value:.1f} %"
    return f"{other.name.capitalize()} {way} {what} from {ends}: paired {gain}"


def _spanned(metrics: Sequence[Metric], what: str, level: float | None) -> str:
    """The least and the most of metrics that are not compared, and which may be chance."""
    known = [one for one in metrics if one.n]
    if len(known) < 2:
        return f"{what.capitalize()} {metrics[0] if metrics else 'is unknown'}"
    low, high = (end(known, key=lambda one: one.value) for end in (min, max))
    ends = f"{100 * low.value:.1f} % ({low.name}) to {100 * high.value:.1f} % ({high.name})"
    text = f"{what.capitalize()}: {ends}".replace("_", " ")
    even = [one.name for one in known if level is not None and one.low <= level <= one.high]
    return text + f"; not distinguishable from chance: {', '.join(even)}" * bool(even)


AXES = {
    "batch": "prompts per call",
    "requests": "prompts",
    "prompt_tokens": "prompt length, tokens",
    "output_tokens": "answer length, tokens",
    "shared": "share of the prompt that all have in common, %",
}


def plot_speeds(ax: Axes, table: pd.DataFrame, by: str) -> None:
    """Speed against one side of the load, a line for each runner, with the range of the repeats.

    Args:
        table: rows of `throughput.summarise`; a batch of 0 is drawn as all the prompts.
        by: a key of `AXES`.
    """
    sizes = table[by].astype(float)
    placed = table.assign(
        place=sizes.where(sizes > 0, table["requests"]) if by == "batch" else sizes
    )
    lines(ax, placed, ("place", "output_tokens_per_s"), "runner")
    if by == "shared":
        percent(ax.xaxis, AXES[by], whole=False)
    else:
        doubling(ax, placed["place"])
    ax.set_yscale("log")
    log_ticks(ax.yaxis, "{x:,.0f}")
    ax.set(xlabel=AXES[by], ylabel="answer tokens per second")
    first = placed[placed["runner"] == placed["runner"].iloc[0]].sort_values("place")
    ends = [f"{first['output_tokens_per_s'].iloc[end]:,.0f}" for end in (0, -1)]
    finding(ax, f"{first['runner'].iloc[0]}: from {' to '.join(ends)} tokens per second")


def plot_speedups(ax: Axes, metrics: Sequence[Metric]) -> None:
    """How many times as fast as others, with the range of the repeats; 1 is as fast."""
    parts = [one.name.rpartition(" over ") for one in metrics]
    named = [replace(one, name=part[2]) for one, part in zip(metrics, parts, strict=True)]
    dots(ax, named, lambda one: f"{one.value:.3g} ×")
    ax.set_xscale("log")
    log_ticks(ax.xaxis, "{x:g}")
    ax.set_xlim(min(0.8, *(0.8 * one.low for one in named)), 1.25 * max(one.high for one in named))
    ax.set_xlabel("times as fast as (median and range of the repeats)")
    chance(ax, 1, "as fast", upright=True)
    most = max(named, key=lambda one: one.value)
    ends = f"{most.value:.3g} × as fast as {most.name} ({most.low:.3g} to {most.high:.3g})"
    even = [one.name for one in named if one.low <= 1 <= one.high]
    text = f"{parts[0][0]}: {ends}" + f"; range holds 1: {', '.join(even)}" * bool(even)
    finding(ax, text)


def plot_requests(ax: Axes, table: pd.DataFrame, here: float | None = None) -> None:
    """Speed of a server against concurrency, a line for each number of prompts per request.

    Args:
        table: columns `prompts_per_request`, `max_concurrency` and `verdicts_per_s`.
        here: speed of the engine in this process.
    """
    name = "{} per request"
    lines(ax, table, ("max_concurrency", "verdicts_per_s"), "prompts_per_request", name)
    if here is not None:
        chance(ax, here, "in this process")
    doubling(ax, table["max_concurrency"])
    ax.set_yscale("log")
    log_ticks(ax.yaxis, "{x:,.0f}")
    ax.set(xlabel="requests in flight", ylabel="verdicts per second")
    best = table.sort_values("verdicts_per_s").iloc[-1]
    how = f"{best['prompts_per_request']} prompts in each of {best['max_concurrency']} requests"
    more = "" if here is None else f"; {here:,.0f} in this process"
    finding(ax, f"At most {best['verdicts_per_s']:,.0f} verdicts per second, with {how}{more}")


def plot_samples(ax: Axes, curve: pd.DataFrame) -> None:
    """Accuracy of a vote against the samples that it counts, of `comparison.by_samples`."""
    ax.fill_between(curve["samples"], curve["low"], curve["high"], color=COLOURS[0], alpha=0.15)
    ax.plot(curve["samples"], curve["accuracy"], **line_style(0))
    doubling(ax, curve["samples"])
    percent(ax.yaxis, "accuracy, % (95 % band)")
    ax.set_xlabel("samples that vote")
    votes = curve.assign(name=curve["samples"].map("a vote of {}".format))
    finding(ax, compared(shares(votes), _gains(votes)[1:]))


def plot_costs(ax: Axes, table: pd.DataFrame) -> None:
    """Accuracy of agents against the tokens they generate per item, of `comparison.comparison`."""
    for number, row in enumerate(table.to_dict("records")):
        tokens = row["completion_tokens"] / (row["n"] + row["n_failed"] / row["runs"]) / row["runs"]
        style, ends = line_style(number), [[side] for side in sides(row, "accuracy")]
        ax.errorbar(tokens, row["accuracy"], yerr=ends, capsize=4, **style)
        ax.annotate(
            row["name"].replace("_", " "), (tokens, row["low"]), (0, -3), ha="center", va="top",
            textcoords="offset points", color=style["color"], fontsize=9,
        )  # fmt: skip
    ax.set_xscale("log")
    log_ticks(ax.xaxis, "{x:,.0f}")
    ax.margins(x=0.15)
    ax.set_xlabel("generated tokens per item")
    percent(ax.yaxis, "accuracy, % (95 % interval)")
    finding(ax, compared(shares(table), _gains(table)[1:]).replace("_", " "))


def _gains(table: pd.DataFrame) -> list[Metric]:
    """The paired differences of a comparison to its first row, of that one without a number."""
    found: list[Metric] = []
    for row in table.to_dict("records"):
        gap, low, high = (row.get(f"difference{end}", math.nan) for end in ("", "_low", "_high"))
        n = 0 if math.isnan(gap) else row["n"]
        found.append(ShareDifference(row["name"], gap, low, high, n))
    return found


def draw_comparison(table: pd.DataFrame, title: str) -> Figure:
    """Accuracies with their 95 % intervals, and paired differences to the first with theirs.

    Args:
        table: what `comparison.comparison` returns, of two reports or more.
        title: what was found.
    """
    figure, (left, right) = new_figure(2, height=1.3 + 0.45 * len(table))
    metrics, gains = shares(table), _gains(table)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(table))]
    dots(left, metrics, colours=colours)
    percent(left.xaxis, "accuracy, % (95 % interval)")
    dots(right, gains, lambda one: f"{100 * one.value:+.1f}" * bool(one.n), colours)
    right.set_yticks(range(len(table)), [""] * len(table))
    right.axvline(0, color=INK, linewidth=1, linestyle="--")
    label = f"paired difference to {metrics[0].name}, points (95 % interval)"
    percent(right.xaxis, label, whole=False)
    finding(figure, title)
    return figure
