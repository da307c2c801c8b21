"""Figures of evaluations, of throughput and of agents, in the look of `plots.theme`.

Each function computes its title from what it draws: what was found, with its number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from workbench.lazy import Axes, Figure, pd
from workbench.plots import theme
from workbench.plots.theme import COLOURS, finding, new_figure
from workbench.stats import ShareDifference
from workbench.types import Metric, Report

__all__ = ["COLOURS", "finding", "new_figure"]
LEVEL = 0.05
"""Of a p-value, below which a difference is not chance."""


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
    theme.dots(ax, metrics)
    n = f", n = {metrics[0].n:,}" if len({one.n for one in metrics}) == 1 else ""
    theme.percent(ax.xaxis, f"{what}, % (95 % interval{n})")
    if level is not None:
        theme.chance(ax, level, upright=True)
    finding(ax, compared(metrics, gains, what) if gains else _spanned(metrics, what, level))


def compared(
    metrics: Sequence[Metric], gains: Sequence[Metric], what: str = "accuracy",
    sure: Sequence[bool] = (),
) -> str:  # fmt: skip
    """The largest paired difference to `metrics[0]` that is distinguishable from 0: that is `sure`,
    or of which the interval does not hold 0."""
    first, apart = metrics[0], sure or [not gain.low <= 0 <= gain.high for gain in gains]
    all_of = [*zip(metrics[1:], gains, apart, strict=True)]
    if not (known := [one for one in all_of if not math.isnan(one[1].value)]):
        return f"{first.name}: {what} {first}"
    other, gain, clear = max(known, key=lambda one: (one[2], abs(one[1].value)))
    ends = [f"{100 * end:+.1f}".replace("-", "−") for end in (gain.value, gain.low, gain.high)]
    pair = f"paired difference {ends[0]} points, {ends[1]} to {ends[2]}"
    if not clear:
        name, most = (other.name, "") if len(known) == 1 else (f"none of {len(known)}", "largest ")
        return f"{name}: {what} not distinguishable from {first.name} ({most}{pair})"
    way = f"{what} {'rises' if gain.value > 0 else 'falls'} from {100 * first.value:.1f}"
    return f"{other.name}: {way} to {100 * other.value:.1f} % ({pair})"


def stated(table: pd.DataFrame) -> str:
    """What a table of `comparison.comparison` shows, by Holm's p-values where it has them."""
    sure = [] if "p_holm" not in table else [*(table["p_holm"] < LEVEL)[1:]]
    return compared(theme.shares(table), _gains(table)[1:], sure=sure).replace("_", " ")


def _spanned(metrics: Sequence[Metric], what: str, level: float | None) -> str:
    """The least and the most of metrics that are not compared, and which may be chance."""
    known = [one for one in metrics if not math.isnan(one.value)]
    if len(known) < 2:
        return f"{what} {metrics[0] if metrics else 'is unknown'}"
    ends = [end(known, key=lambda one: one.value) for end in (min, max)]
    text = " to ".join(f"{100 * one.value:.1f} % ({one.name})" for one in ends).replace("_", " ")
    even = " and ".join(one.name for one in known if level and one.low <= level <= one.high)
    text = f"{what[:1].upper()}{what[1:]} {text}"
    return f"{text}; not distinguishable from chance: {even}" if even else text


AXES = {
    "batch": "prompts per call",
    "requests": "prompts",
    "prompt_tokens": "tokens per prompt",
    "output_tokens": "tokens per answer",
    "shared": "% of the prompt that all share",
}


def plot_speeds(ax: Axes, table: pd.DataFrame, by: str) -> None:
    """Speed against one side of the load, a line for each runner, with the range of the repeats.

    Args:
        table: rows of `throughput.summarise`; a batch of 0 is drawn as all the prompts.
        by: a key of `AXES`.
    """
    sizes = 100 * table[by] if by == "shared" else table[by].astype(float)
    sizes = sizes.where(sizes > 0, table["requests"]) if by == "batch" else sizes
    placed = table.assign(place=sizes)
    theme.lines(ax, placed, ("place", "output_tokens_per_s"), "runner")
    if by != "shared":
        theme.doubling(ax, placed["place"])
    theme.log_ticks(ax.yaxis, "{x:,.0f}")
    ax.set(xlabel=AXES[by], ylabel="answer tokens per second")
    name = table["runner"].iloc[0]
    ends = placed[placed["runner"] == name].sort_values("place").iloc[[0, -1]]
    speeds = " to ".join(ends["output_tokens_per_s"].map("{:,.0f}".format))
    load = " to ".join(ends["place"].map("{:,.0f}".format))
    finding(ax, f"{name}: {speeds} tokens per second at {load} {AXES[by]}")


def plot_speedups(ax: Axes, metrics: Sequence[Metric]) -> None:
    """How many times as fast as others, with the range of the repeats; 1 is as fast."""
    parts = [one.name.rpartition(" over ") for one in metrics]
    named = [replace(one, name=part[2]) for one, part in zip(metrics, parts, strict=True)]
    theme.dots(ax, named, lambda one: f"{one.value:.2f} ×")
    theme.log_ticks(ax.xaxis, "{x:g}")
    ax.set_xlim(min(0.8, *(0.8 * one.low for one in named)), 1.25 * max(one.high for one in named))
    ax.set_xlabel("times as fast (median, range of repeats)")
    theme.chance(ax, 1, "as fast", upright=True)
    most = max(named, key=lambda one: one.value)
    ends = f"{most.value:.2f} × as fast as {most.name} ({most.low:.2f} to {most.high:.2f})"
    even = [one.name for one in named if one.low <= 1 <= one.high]
    finding(ax, f"{parts[0][0]}: {ends}" + f"; range holds 1: {', '.join(even)}" * bool(even))


def plot_replicas(ax: Axes, rows: pd.DataFrame) -> None:
    """Rows per second against the number of replicas, with the range of the repeats.

    Args:
        rows: of `throughput.by_replicas`; "even shares" is the first speed for each replica.
    """
    table = rows.pivot_table("requests_per_s", "repeat", "replicas")
    counts = table.columns.to_numpy(float)
    speed = table.agg(["median", "min", "max"]).T.set_axis(["speed", "low", "high"], axis="columns")
    even = pd.DataFrame({"speed": speed["speed"].iloc[0] * counts / counts[0]}, table.columns)
    even = even.assign(low=even["speed"], high=even["speed"])
    both = pd.concat({"measured": speed, "even shares": even}, names=["of"]).reset_index()
    theme.lines(ax, both, ("replicas", "speed"), "of")
    theme.doubling(ax, counts)
    theme.log_ticks(ax.yaxis, "{x:,.0f}")
    ax.set(xlabel="replicas", ylabel="rows per second")
    ratios = (table.iloc[:, -1] / table.iloc[:, 0]).dropna()
    ends = f"{ratios.median():.2f} × ({ratios.min():.2f} to {ratios.max():.2f})"
    finding(ax, f"{counts[-1]:g} replicas: {ends} the rows per second of {counts[0]:g}")


def plot_requests(ax: Axes, table: pd.DataFrame, here: float | None = None) -> None:
    """Speed of a server against concurrency, a line for each number of prompts per request.

    Args:
        table: columns `prompts_per_request`, `max_concurrency` and `verdicts_per_s`.
        here: speed of the engine in this process.
    """
    pair = ("max_concurrency", "verdicts_per_s")
    theme.lines(ax, table, pair, "prompts_per_request", "{} per request")
    if here is not None:
        theme.chance(ax, here, "in this process")
    theme.doubling(ax, table["max_concurrency"])
    theme.log_ticks(ax.yaxis, "{x:,.0f}")
    ax.set(xlabel="requests in flight", ylabel="verdicts per second")
    best = table.sort_values("verdicts_per_s").iloc[-1]
    how = f"{best['prompts_per_request']} per request, {best['max_concurrency']} requests in flight"
    more = "" if here is None else f"; {here:,.0f} in this process"
    finding(ax, f"At most {best['verdicts_per_s']:,.0f} verdicts per second ({how}){more}")


def plot_samples(ax: Axes, curve: pd.DataFrame) -> None:
    """Accuracy of a vote against the samples that it counts, of `comparison.by_samples`."""
    theme.lines(ax, curve.assign(by="majority vote"), ("samples", "accuracy"), "by")
    theme.doubling(ax, curve["samples"])
    theme.percent(ax.yaxis, "accuracy, % (95 % interval)")
    ax.set_xlabel("samples that vote")
    finding(ax, stated(curve))


def plot_at_k(ax: Axes, *curves: Report) -> None:
    """Accuracy against the number of samples, of `samples.pass_at_k` and `samples.maj_at_k`."""
    rows = [
        (f"{one.provenance['curve']}@k", k, found.value, found.low, found.high)
        for one in curves
        for k, found in zip(one.provenance["k"], one.summary, strict=False)
    ]
    table = pd.DataFrame(rows, columns=["by", "k", "accuracy", "low", "high"])
    theme.lines(ax, table, ("k", "accuracy"), "by")
    theme.doubling(ax, table["k"])
    theme.percent(ax.yaxis, "accuracy, % (95 % interval)", whole=False)
    ax.set_xlabel("samples per item, k")
    last = [one.summary[-2] for one in curves if len(one.provenance["k"]) > 1]
    gains = [one.summary[-1] for one in curves if len(one.provenance["k"]) > 1]
    finding(ax, compared([curves[0].summary[0], *last], gains))


def plot_costs(ax: Axes, table: pd.DataFrame) -> None:
    """Accuracy of agents against the tokens they generate per item, of `comparison.comparison`."""
    tokens = table["completion_tokens"] / (table["n"] * table["runs"] + table["n_failed"])
    named = table.assign(tokens=tokens, name=table["name"].str.replace("_", " "))
    theme.lines(ax, named, ("tokens", "accuracy"), "name")
    theme.log_ticks(ax.xaxis, "{x:,.0f}")
    ax.margins(x=0.15)
    ax.set_xlabel("generated tokens per item")
    theme.percent(ax.yaxis, "accuracy, % (95 % interval)")
    finding(ax, stated(named))


def _gains(table: pd.DataFrame) -> list[Metric]:
    """The paired differences of a comparison to its first row, of that one without a number."""
    ends = ("difference", "difference_low", "difference_high")
    rows = table.reindex(columns=["name", *ends, "n"]).itertuples(index=False)
    return [ShareDifference(*row) for row in rows]


def draw_comparison(table: pd.DataFrame, title: str = "") -> Figure:
    """Accuracies with their 95 % intervals, and paired differences to the first with theirs.

    Args:
        table: what `comparison.comparison` returns, of two reports or more.
        title: what was found, where the table does not say it all.
    """
    figure, (left, right) = new_figure(2, height=1.3 + 0.45 * len(table))
    metrics, gains = theme.shares(table), _gains(table)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(table))]
    theme.dots(left, metrics, colours=colours)
    theme.percent(left.xaxis, "accuracy, % (95 % interval)")
    theme.dots(right, gains, lambda one: f"{100 * one.value:+.1f}".replace("+nan", ""), colours)
    right.set_yticks(range(len(table)), [""] * len(table))
    right.axvline(0, color=theme.INK, linewidth=1, linestyle="--")
    label = f"paired difference to “{metrics[0].name}”, points (95 % interval)"
    theme.percent(right.xaxis, label, whole=False)
    finding(figure, title or stated(table))
    return figure
