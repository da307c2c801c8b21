"""Figures of uncertainty: are probabilities honest, sets large enough, and the surest right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.lazy import Axes, NDArray, pd
from workbench.plots.style import COLOURS, MARKERS
from workbench.uncertainty.calibration import CalibrationReport
from workbench.uncertainty.conformal import ConformalReport

SCORES = {"lac": COLOURS[0], "aps": COLOURS[1]}
LARGEST, SMALLEST = 260.0, 12.0  # areas of a dot: with all the items, and to be seen at all
NAMED = 8  # points whose names have room beside the axes


def plot_reliability(
    ax: Axes, report: CalibrationReport, after: CalibrationReport | None = None
) -> None:
    """Accuracy against confidence, a dot a bin with its area by the items; honest is the diagonal.

    Args:
        after: the same after scaling, in another colour.

    Raises:
        InputError: a report has no items in its bins.
    """
    ax.plot([0, 1], [0, 1], color="0.2", linewidth=1, linestyle="--")
    named = {"": report} if after is None else {"before: ": report, "after: ": after}
    for number, (name, one) in enumerate(named.items()):
        bins = one.bins[one.bins["n"] > 0]
        _check(bins, ("n", "confidence", "accuracy", "accuracy_low", "accuracy_high"), "bins")
        sure, accuracy, sides = bins["confidence"], bins["accuracy"], _sides(bins, "accuracy")
        colour, area = COLOURS[number], (LARGEST * bins["n"] / bins["n"].sum()).clip(lower=SMALLEST)
        ax.errorbar(sure, accuracy, sides, fmt="none", ecolor=colour, capsize=3, linewidth=1)
        ax.scatter(
            sure, accuracy, s=area, color=colour, alpha=0.65, linewidth=0, zorder=3,
            label=f"{name}ECE {one.ece:.3f}",
        )  # fmt: skip
    ax.set_xlim(0, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("confidence (area of a dot: its items)")
    ax.set_ylabel("accuracy (95 % interval)")
    legend = ax.legend(frameon=False, fontsize=9)
    for handle in legend.legend_handles:
        handle.set(sizes=[36])  # type: ignore[union-attr]


def plot_set_sizes(ax: Axes, report: ConformalReport) -> None:
    """How many sets have 1 letter, how many 2, and so on to 6, the scores side by side.

    Raises:
        InputError: the report has no sets.
    """
    scores = [one for one in report.scores if len(one.sets)]
    if not scores:
        raise InputError("the report has no sets: give one with test rows, of score lac or aps")
    sizes, width = np.arange(1, 7), 0.8 / len(scores)
    for number, one in enumerate(scores):
        shares = [float((one.sets.sum(axis=1) == size).mean()) for size in sizes]
        ax.bar(
            sizes + (number - (len(scores) - 1) / 2) * width, shares, width=0.92 * width,
            color=SCORES[one.score], label=f"{one.score.upper()}, mean {one.set_size:.2f}",
        )  # fmt: skip
    ax.set_xticks(sizes)
    ax.set(xlabel="letters in a set", ylabel=f"share of {len(report.answers):,} test items")
    ax.legend(frameon=False, fontsize=9)


def plot_coverage(ax: Axes, splits: pd.DataFrame, target: float) -> None:
    """Coverage over random splits, a violin a score, with dots at the means.

    A score that left some sets empty has one more, before the likeliest letter was put there: only
    of that one does conformal prediction say where its mean is.

    Args:
        splits: what `conformal_splits` returns.
        target: 1 - alpha, a line.

    Raises:
        InputError: the table has no rows or lacks a column, or `target` is no share.
    """
    _check(splits, ("score", "coverage", "covered_before"), "splits")
    if not 0 < target < 1:
        raise InputError(f"target={target!r}: give 1 - alpha, such as 0.9")
    groups: list[tuple[str, str, float, Any]] = []
    for score, part in splits.groupby("score", sort=False):
        name, colour = str(score).upper(), SCORES.get(str(score), COLOURS[2])
        if (part["covered_before"] != part["coverage"]).any():
            groups.append((f"{name} before\nits fallback", colour, 0.3, part["covered_before"]))
        groups.append((name, colour, 0.7, part["coverage"]))
    for place, (_, colour, alpha, values) in enumerate(groups):
        drawn = ax.violinplot(values.to_numpy(), [place], widths=0.75, showextrema=False)
        for body in drawn["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=colour, alpha=alpha, edgecolor=colour)
        ax.plot(place, values.mean(), color="0.2", marker="o", markersize=4)
    ax.axhline(target, color="0.2", linewidth=1, linestyle="--")
    ax.set_xticks(range(len(groups)), [name for name, *_ in groups])
    ax.set_xlabel(f"{splits.groupby('score').size().max()} splits; dashed: target {target:g}")
    ax.set_ylabel("coverage")


def plot_selective(ax: Axes, curves: Mapping[str, pd.DataFrame]) -> None:
    """Accuracy of the surest answers against how many are kept, a line for each signal.

    Between answers of equal sureness it is the expected accuracy, as in `aurc`. A signal
    that tells nothing is flat. Lines begin at 1 %, as fewer answers are mostly noise.

    Args:
        curves: by name, what `risk_coverage` returns of the same answers.

    Raises:
        InputError: there are none, or they are not whole or not of the same answers.
    """
    if not curves:
        raise InputError("curves: there are none; give what risk_coverage returns, by name")
    kept, ends = np.linspace(0.01, 1, 100), {}
    for number, (name, table) in enumerate(curves.items()):
        _check(table, ("coverage", "risk"), f"curves[{name!r}]")
        line = table.sort_values("coverage")
        until, risk = line["coverage"].to_numpy(float), line["risk"].to_numpy(float)
        if abs(until[-1] - 1) > 1e-9:
            raise InputError(f"{name} ends at a coverage of {until[-1]:g}: give all the rows, to 1")
        ends[name] = 1 - risk[-1]
        wrong = np.interp(kept, [0, *until], [0, *until * risk])
        colour = COLOURS[number % len(COLOURS)]
        ax.plot(kept, 1 - wrong / kept, color=colour, linewidth=1.4, label=name)
    low, high = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    if ends[high] - ends[low] > 1e-9:
        raise InputError(
            f"of all answers {high} has {ends[high]:.4f} right and {low} {ends[low]:.4f}: give "
            "signals of the same answers"
        )
    ax.plot([0, 1], [ends[low]] * 2, color="0.2", linewidth=1, linestyle="--", label="random")
    ax.set_xlim(0, 1.02)
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.set(xlabel="answers kept, the surest", ylabel="accuracy of those kept")
    ax.legend(frameon=False, fontsize=9)


def plot_certainty(ax: Axes, table: pd.DataFrame) -> None:
    """Accuracy against mean set size, a dot a model and task: is the more accurate more certain?

    Up to 8 dots are named, by colour for the model and by marker for the task.

    Args:
        table: what `certainty` returns.

    Raises:
        InputError: the table has no rows, lacks a column, or has a value outside its interval.
    """
    numbers = [one + end for one in ("set_size", "accuracy") for end in ("", "_low", "_high")]
    _check(table, ("model", "task", *numbers), "the table")
    named = len(table) <= NAMED
    xerr, yerr = _sides(table, "set_size"), _sides(table, "accuracy")
    models, tasks = (pd.factorize(table[column])[0] for column in ("model", "task"))
    columns = [one for one in ("model", "task") if len({*table[one]}) > 1] or ["model"]
    for i, row in enumerate(table.to_dict("records")):
        model = models[i] if named else 0
        marker = MARKERS[(tasks[i] + model // len(COLOURS)) % len(MARKERS) if named else 0]
        ax.errorbar(
            row["set_size"], row["accuracy"], xerr=xerr[:, [i]], yerr=yerr[:, [i]], markersize=5,
            linewidth=1, color=COLOURS[model % len(COLOURS)], marker=marker, alpha=0.85,
            label=", ".join(str(row[one]) for one in columns),
        )  # fmt: skip
    ax.margins(0.08)
    ax.set_xlabel("letters in a set, mean\n(95 % interval at its threshold)")
    ax.set_ylabel("accuracy (95 % interval)")
    if named:
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _sides(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """How far an interval goes below and above its value, [2, n]."""
    value, low, high = (table[name + end].to_numpy(float) for end in ("", "_low", "_high"))
    sides = np.stack([value - low, high - value])
    if (outside := (sides < -1e-9).any(axis=0)).any():
        row = int(outside.argmax())
        raise InputError(
            f"{name}={value[row]:g} is not within {low[row]:g} to {high[row]:g}: give an interval "
            "that holds its value"
        )
    return np.asarray(np.maximum(sides, 0))  # rounding


def _check(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse a table that has nothing to draw."""
    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"{what}: no column {', '.join(missing)}; give a table that has it")
    if table.empty:
        raise InputError(f"{what}: no rows, so there is nothing to draw; give 1 at least")
    for name in columns:
        if table[name].isna().any():
            raise InputError(f"{what}: {name} is NaN in a row; leave such rows out")
