"""Figures of uncertainty: are probabilities honest, sets large enough, and the surest right?

Each function computes its title from what it draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple

import numpy as np

from workbench.errors import InputError
from workbench.lazy import Axes, NDArray, pd
from workbench.plots import theme
from workbench.stats import Share, ShareDifference, difference
from workbench.uncertainty.calibration import CalibrationReport, Rescaled
from workbench.uncertainty.conformal import ConformalReport

SCORES = {"lac": theme.COLOURS[0], "aps": theme.COLOURS[1]}
NAMED = 7  # points whose names have room beside the axes
SUREST = 0.1  # the least share of answers whose accuracy is drawn: that of fewer is mostly noise


def plot_reliability(ax: Axes, report: CalibrationReport | Rescaled) -> None:
    """Accuracy against confidence, a dot per bin of about as many answers; honest is the diagonal.

    What is rescaled is drawn before and after. The ECE is that of the report, over its own bins.
    """
    if isinstance(report, Rescaled):
        named = {"before: ": report.before, "after: ": report.after}
        change = ShareDifference(*astuple(report.difference))
        theme.finding(ax, f"ECE by {report.method} scaling: {theme.gap(change)}")
    else:
        named, sure = {"": report}, 100 * report.confidence
        theme.finding(ax, f"Confidence {sure:.1f} %, accuracy {100 * report.accuracy:.1f} %")
    ax.plot([0, 1], [0, 1], color=theme.SOFT, linewidth=1, linestyle="--")
    for number, (name, one) in enumerate(named.items()):
        bins, look = one.equal_mass(), theme.line_style(number) | {"linestyle": "none"}
        sizes = " to ".join(map(str, sorted({bins["n"].min(), bins["n"].max()})))
        label = f"{name}ECE {100 * one.ece:.1f} %, {len(bins)} bins of {sizes}"
        sides = _sides(bins, "accuracy")
        ax.errorbar(bins["confidence"], bins["accuracy"], sides, **look, label=label)
    wide = len(next(iter(named.values())).bins)
    theme.percent(ax.xaxis, f"confidence, %\n(bins of equal mass; {wide} of equal width for ECE)")
    theme.percent(ax.yaxis, "accuracy, % (95 % interval)")
    theme.key(ax, "lower right")


def plot_set_sizes(ax: Axes, report: ConformalReport) -> None:
    """How many sets have 1 letter, how many 2, and so on to 6, the scores side by side.

    Raises:
        InputError: the report has no sets.
    """
    if not (scores := {one.score.upper(): one for one in report.scores if len(one.sets)}):
        raise InputError("the report has no sets: give one with test rows, of score lac or aps")
    sizes, width = np.arange(1, 7), 0.8 / len(scores)
    letters = {name: one.sets.sum(axis=1) for name, one in scores.items()}
    for number, (name, one) in enumerate(scores.items()):
        ax.bar(
            sizes + (number - (len(scores) - 1) / 2) * width,
            [float((letters[name] == size).mean()) for size in sizes], width=0.92 * width,
            color=SCORES[one.score], label=f"{name}, mean {one.set_size:.2f}",
        )  # fmt: skip
    ax.set_xticks(sizes)
    ax.set_xlabel("letters in a set")
    theme.percent(ax.yaxis, f"share of {len(report.answers):,} sets, %", whole=False)
    theme.key(ax, "upper right")
    text = ", ".join(f"{name} {one.set_size:.2f}" for name, one in scores.items())
    if len(letters) > 1:
        text += f": paired {theme.gap(difference('', *letters.values()))}"
    theme.finding(ax, f"Letters per set: {text}")


def plot_coverage(ax: Axes, splits: pd.DataFrame, target: float) -> None:
    """Coverage over random splits, a row per score: all splits, the mean, and 95 %.

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
    rows, colours = list[Share](), list[str]()
    for score, part in splits.groupby("score", sort=False):
        filled = (part["covered_before"] != part["coverage"]).any()
        for column in ("covered_before", "coverage")[not filled :]:
            values, more = part[column], ", no fallback" * (column == "covered_before")
            low, high = values.quantile([0.025, 0.975])
            colours.append(SCORES.get(str(score), theme.COLOURS[2]))
            ax.plot(values, [len(rows) + 0.25] * len(values), "o", alpha=0.2, markersize=4,
                    color=colours[-1], markeredgewidth=0)  # fmt: skip
            rows.append(Share(f"{score}".upper() + more, values.mean(), low, high, len(values)))
    theme.dots(ax, rows, colours=colours)
    theme.percent(ax.xaxis, f"coverage, % (mean and 95 % of {rows[0].n} splits)", whole=False)
    theme.chance(ax, target, f"target {100 * target:g} %", upright=True)
    mean, low, high = (100 * end for end in (rows[0].value, rows[0].low, rows[0].high))
    text = f"{rows[0].name} covers {mean:.1f} % on average, single splits {low:.1f} to {high:.1f} %"
    theme.finding(ax, text)


def plot_selective(ax: Axes, curves: Mapping[str, pd.DataFrame], table: pd.DataFrame) -> None:
    """Accuracy of the surest answers against how many are kept, a line for each signal.

    Between answers of equal sureness it is the expected accuracy, as in `aurc`. A signal of no use
    is flat.

    Args:
        curves: by name, what `risk_coverage` returns of the same answers.
        table: what `selective_report` returns; the title is of the signal in its first row.

    Raises:
        InputError: there are none, or they are not whole or not of the same answers.
    """
    if not curves:
        raise InputError("curves: there are none; give what risk_coverage returns, by name")
    kept, every, ends = np.linspace(1, SUREST, 91), dict[str, float](), []
    for number, (name, one) in enumerate(curves.items()):
        _check(one, ("coverage", "risk"), f"curves[{name!r}]")
        line, colour = one.sort_values("coverage"), theme.COLOURS[number % len(theme.COLOURS)]
        until, risk = line["coverage"].to_numpy(float), line["risk"].to_numpy(float)
        if abs(until[-1] - 1) > 1e-9:
            raise InputError(f"{name} ends at a coverage of {until[-1]:g}: give all the rows, to 1")
        every[name] = 1 - risk[-1]
        right = 1 - np.interp(kept, [0, *until], [0, *until * risk]) / kept
        ax.plot(kept, right, color=colour, linewidth=1.4)
        ends.append((name, colour, float(right[-1])))
    if max(every.values()) - min(every.values()) > 1e-9:
        found = " and ".join(f"{name} has {share:.4f} right" for name, share in every.items())
        raise InputError(f"of all answers {found}: give signals of the same answers")
    ax.axhline(every[name], color=theme.SOFT, linewidth=1, linestyle="--")
    theme.label_ends(ax, [*ends, ("random", theme.SOFT, every[name])])
    ax.set_xlim(1.02, SUREST)
    theme.percent(ax.xaxis, "answers kept, the surest, %", whole=False)
    theme.percent(ax.yaxis, "accuracy of those kept, %", whole=False)
    row = table.iloc[0]
    above, low, high = (str(name) for name in table if str(name).startswith("above_"))
    gain = theme.gap(ShareDifference("", row[above], row[low], row[high], len(kept)))
    first = f"{row['signal']}: AUROC {100 * row['auroc']:.1f} %"
    theme.finding(ax, f"{first}, over {above.removeprefix('above_')} {gain}")


def plot_certainty(ax: Axes, table: pd.DataFrame) -> None:
    """Accuracy against mean set size, a dot per model and task: is the more accurate more certain?

    Up to 7 dots are named, each in its colour.

    Args:
        table: what `certainty` returns.

    Raises:
        InputError: the table has no rows, lacks a column, or has a value outside its interval.
    """
    numbers = [one + end for one in ("set_size", "accuracy") for end in ("", "_low", "_high")]
    _check(table, ("model", "task", *numbers), "the table")
    xerr, yerr = _sides(table, "set_size"), _sides(table, "accuracy")
    columns = [one for one in ("model", "task") if len({*table[one]}) > 1] or ["model"]
    size, accuracy = table["set_size"].to_numpy(float), table["accuracy"].to_numpy(float)
    ends = []
    for i, names in enumerate(table[columns].astype(str).agg(", ".join, axis=1)):
        look = theme.line_style(i if len(table) <= NAMED else 0)
        ax.errorbar(size[i], accuracy[i], yerr[:, [i]], xerr[:, [i]], alpha=0.85, **look)
        ends.append((names, look["color"], accuracy[i]))
    ax.margins(0.08)
    ax.set_xlabel("letters in a set, mean (95 % interval at its threshold)")
    theme.percent(ax.yaxis, "accuracy, % (95 % interval)", whole=False)
    theme.label_ends(ax, ends if len(ends) <= NAMED else [])
    one, other = np.triu_indices(len(table), 1)
    more = int(((accuracy[one] - accuracy[other]) * (size[one] - size[other]) < 0).sum())
    text = f"In {more} of {len(one)} pairs the more accurate has the smaller sets"
    alone = f"{ends[0][0]}: {100 * accuracy[0]:.1f} % right, {size[0]:.2f} letters per set"
    theme.finding(ax, text if len(table) > 1 else alone)


def _sides(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """How far an interval goes below and above its value, [2, n]."""
    value, low, high = (table[name + end].to_numpy(float) for end in ("", "_low", "_high"))
    sides = np.stack([value - low, high - value])
    if (outside := (sides < -1e-9).any(axis=0)).any():
        row = int(outside.argmax())
        ends = f"{low[row]:g} to {high[row]:g}: give an interval that holds its value"
        raise InputError(f"{name}={value[row]:g} is not within {ends}")
    return np.asarray(np.maximum(sides, 0))  # rounding


def _check(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse a table that has nothing to draw."""
    if missing := [name for name in columns if name not in table]:
        raise InputError(f"{what}: no column {', '.join(missing)}; give a table that has it")
    if table.empty:
        raise InputError(f"{what}: no rows, so there is nothing to draw; give 1 at least")
    for name in columns:
        if table[name].isna().any():
            raise InputError(f"{what}: {name} is NaN in a row; leave such rows out")
