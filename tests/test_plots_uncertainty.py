from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.plots import new_figure
from workbench.plots.uncertainty import (
    plot_certainty,
    plot_coverage,
    plot_reliability,
    plot_selective,
    plot_set_sizes,
)
from workbench.uncertainty.calibration import calibration_report, rescaled
from workbench.uncertainty.conformal import conformal_report, conformal_splits
from workbench.uncertainty.logits import softmax
from workbench.uncertainty.selective_prediction import (
    from_options,
    risk_coverage,
    selective_report,
)


def made(n: int = 400, factor: float = 2.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Answers drawn from the probabilities of logits that are then multiplied by `factor`."""
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.normal(size=(n, 6))
    drawn = (rng.random(n)[:, None] > softmax(logits).cumsum(axis=1)).sum(axis=1)
    return factor * logits, drawn.clip(0, 5)


REPORT = selective_report({"x": [1, 2, 3]}, [1, 0, 1], lengths=[1, 2, 3], resamples=5)


def panel() -> Axes:
    return new_figure(3)[1][1]


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def finding(ax: Axes) -> str:
    return ax.get_title(loc="left").replace("\N{NO-BREAK SPACE}", " ")


def bars(ax: Axes) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Of each set of dots with intervals: where they are [n, 2], and their lower and upper ends."""
    found = []
    for one in ax.containers:
        assert isinstance(one, ErrorbarContainer)
        ends = np.array([line[:, 1] for line in one.lines[2][0].get_segments()])
        found.append((np.asarray(one.lines[0].get_xydata()), ends))
    return found


def test_reliability_has_a_dot_a_bin_of_equal_mass() -> None:
    report = calibration_report(*made(), resamples=2)
    bins = report.equal_mass()
    assert (bins["n"] == 40).all()
    ax = panel()
    plot_reliability(ax, report)
    ((places, ends),) = bars(ax)
    assert np.array_equal(places, bins[["confidence", "accuracy"]])
    assert np.allclose(ends, bins[["accuracy_low", "accuracy_high"]])
    assert labels(ax) == [f"ECE {100 * report.ece:.1f} %, 10 bins of 40"]
    assert finding(ax) == (
        f"Confidence {100 * report.confidence:.1f} %, accuracy {100 * report.accuracy:.1f} %"
    )
    assert "15 of equal width for ECE" in ax.get_xlabel()


def test_reliability_after_scaling_has_another_colour_and_the_paired_difference() -> None:
    found = rescaled(*made(factor=4.0), resamples=200)
    ax = panel()
    plot_reliability(ax, found)
    assert len(bars(ax)) == 2
    before, after = (one.lines[0].get_color() for one in ax.containers)  # type: ignore[attr-defined]
    assert before != after
    assert labels(ax) == [
        f"before: ECE {100 * found.before.ece:.1f} %, 10 bins of 20",
        f"after: ECE {100 * found.after.ece:.1f} %, 10 bins of 20",
    ]  # fmt: skip
    value, low, high = (
        f"{100 * one:+.1f}".replace("-", "−")
        for one in (found.difference.value, found.difference.low, found.difference.high)
    )
    assert finding(ax) == f"ECE by temperature scaling: {value} points ({low} to {high})"


def test_what_is_not_distinguishable_is_no_finding() -> None:
    found = rescaled(*made(factor=1.0), resamples=200)
    assert found.difference.low < 0 < found.difference.high
    ax = panel()
    plot_reliability(ax, found)
    assert "scaling: not distinguishable, " in finding(ax)


@pytest.mark.parametrize("score", ["both", "lac", "aps"])
def test_set_sizes_are_shares_of_the_items(score: Any) -> None:
    report = conformal_report(*made(), score=score)
    ax = panel()
    plot_set_sizes(ax, report)
    assert len(ax.containers) == len(report.scores)
    middles = []
    for drawn, one in zip(ax.containers, report.scores, strict=True):
        heights: list[float] = [bar.get_height() for bar in drawn]
        assert len(heights) == 6
        assert sum(heights) == pytest.approx(1)
        assert np.dot(heights, range(1, 7)) == pytest.approx(one.set_size)
        middles.append([bar.get_x() + bar.get_width() / 2 for bar in drawn])
    assert np.allclose(np.mean(middles, axis=0), range(1, 7))
    assert labels(ax) == [f"{one.score.upper()}, mean {one.set_size:.2f}" for one in report.scores]
    assert ax.get_ylabel() == "share of 200 sets, %"
    assert ("paired" in finding(ax)) == (score == "both")


def test_coverage_has_one_more_row_where_sets_were_empty() -> None:
    splits = conformal_splits(*made(), splits=20)
    aps, lac = (splits[splits["score"] == name] for name in ("aps", "lac"))
    assert (aps["covered_before"] < aps["coverage"]).any()
    assert (lac["covered_before"] == lac["coverage"]).all()
    figure, (ax,) = new_figure()
    plot_coverage(ax, splits, 0.9)
    figure.draw_without_rendering()
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["LAC", "APS, no fallback", "APS"]
    columns = [lac["coverage"], aps["covered_before"], aps["coverage"]]
    drawn = [np.asarray(line.get_xdata(), float) for line in ax.lines]
    for values in columns:
        assert any(np.array_equal(one, values) for one in drawn)
        assert any(np.array_equal(one, [values.mean()]) for one in drawn)
    assert any(np.array_equal(one, [0.9, 0.9]) for one in drawn)
    low, high = (f"{100 * end:.1f}" for end in lac["coverage"].quantile([0.025, 0.975]))
    mean = f"{100 * lac['coverage'].mean():.1f}"
    assert finding(ax) == f"LAC covers {mean} % on average, single splits {low} to {high} %"
    assert ax.get_xlabel() == "coverage, % (mean and 95 % of 20 splits)"


def test_coverage_of_one_split() -> None:
    figure, (ax,) = new_figure()
    plot_coverage(ax, conformal_splits(*made(), splits=1, score="lac"), 0.9)
    figure.draw_without_rendering()
    assert len(ax.get_yticks()) == 1


def drawn_curves(
    signals: Mapping[str, Any], right: NDArray[Any], against: str = "length"
) -> tuple[Axes, pd.DataFrame]:
    lengths = np.arange(len(right))
    curves = {name: risk_coverage(signal, right) for name, signal in signals.items()}
    table = selective_report(signals, right, lengths=lengths, resamples=50, against=against)
    ax = panel()
    plot_selective(ax, curves, table)
    return ax, table


def test_selective_lines_are_accuracies_of_those_kept() -> None:
    logits, answers = made(100)
    right = logits.argmax(axis=1) == answers
    signals = from_options(logits)
    ax, _ = drawn_curves(signals | {"even": np.zeros(100)}, right)
    *lines, even, random = ax.lines
    for line, signal in zip(lines, signals.values(), strict=True):
        surest = right[np.argsort(-signal, kind="stable")]
        shares = np.cumsum(surest) / np.arange(1, 101)
        assert np.allclose(line.get_ydata(), shares[:8:-1])  # from all to a tenth
        assert np.allclose(line.get_xdata(), np.arange(100, 9, -1) / 100)
    for flat in (even, random):
        assert np.allclose(np.asarray(flat.get_ydata(), float), right.mean())
    assert [one.get_text() for one in ax.texts] == [*signals, "even", "random"]


def test_the_title_is_the_paired_difference_of_the_first_signal() -> None:
    logits, answers = made(300)
    right = logits.argmax(axis=1) == answers
    signals = from_options(logits)
    ax, table = drawn_curves(signals, right)
    assert finding(ax).startswith(f"confidence: AUROC {100 * table['auroc'][0]:.1f} %, over length")
    ax, _ = drawn_curves(signals, right, "confidence")
    assert finding(ax).endswith("over confidence not distinguishable, +0.0 points (+0.0 to +0.0)")


def test_between_equal_signals_the_accuracy_is_expected() -> None:
    # 2 of the 2 surest are right, then 1 of 2 alike: after 3 answers 2.5 are.
    curve = risk_coverage([1, 1, 0, 0], [1, 1, 1, 0])
    ax = panel()
    plot_selective(ax, {"two levels": curve.iloc[::-1]}, REPORT)  # in any order of rows
    places, values = np.asarray(ax.lines[0].get_xydata())[::-1].T
    assert np.interp(0.4, places, values) == 1
    assert np.interp(0.75, places, values) == pytest.approx(2.5 / 3)
    assert np.interp(1, places, values) == pytest.approx(0.75)


def points(count: int, tasks: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(count)
    rows: list[Mapping[str, Any]] = []
    for i in range(count):
        accuracy, size = 0.5 + 0.1 * rng.random(), 2 + 0.3 * rng.random()
        rows.append({
            "model": f"a-model-{i // tasks}-7B-chat", "task": f"task {i % tasks}",
            "accuracy": accuracy, "accuracy_low": accuracy - 0.03, "accuracy_high": accuracy + 0.02,
            "set_size": size, "set_size_low": size - 0.1, "set_size_high": size + 0.05,
        })  # fmt: skip
    return pd.DataFrame(rows)


def names(ax: Axes) -> list[str]:
    return [one.get_text() for one in ax.texts]


@pytest.mark.parametrize("count", [1, 7, 26])
def test_certainty_has_a_dot_with_two_intervals_for_each_row(count: int) -> None:
    table = points(count)
    ax = panel()
    plot_certainty(ax, table)
    assert len(ax.containers) == count
    for drawn, row in zip(ax.containers, table.to_dict("records"), strict=True):
        dot, _, bars = drawn.lines  # type: ignore[attr-defined]
        assert (*dot.get_xdata(), *dot.get_ydata()) == (row["set_size"], row["accuracy"])
        across, up = (bar.get_segments()[0] for bar in bars)
        assert np.allclose(across[:, 0], [row["set_size_low"], row["set_size_high"]])
        assert np.allclose(up[:, 1], [row["accuracy_low"], row["accuracy_high"]])
    wanted = list(table["model"]) if count <= 7 else []
    assert names(ax) == wanted


def test_names_lie_beside_the_axes_and_no_two_dots_look_alike() -> None:
    figure, axes = new_figure(3)
    for ax, table in zip(axes, (points(2), points(7), points(6, tasks=3)), strict=True):
        plot_certainty(ax, table)
        figure.draw_without_rendering()
        looks = [(one.lines[0].get_color(), one.lines[0].get_marker()) for one in ax.containers]  # type: ignore[attr-defined]
        assert len({*looks}) == len(table) == len(names(ax))
        assert all(one.get_window_extent().x0 >= ax.bbox.x1 for one in ax.texts)


def test_a_name_says_what_differs() -> None:
    several, tasks = points(4, tasks=2), points(3, tasks=3)
    for table, first in (
        (several, "a-model-0-7B-chat, task 0"), (tasks, "task 0"), (points(2), "a-model-0-7B-chat"),
    ):  # fmt: skip
        ax = panel()
        plot_certainty(ax, table)
        assert names(ax)[0] == first


def test_nothing_to_draw_is_refused() -> None:
    sets = conformal_report(*made(), score="lac")
    with pytest.raises(InputError, match="has no sets"):
        plot_set_sizes(panel(), replace(sets, lac=None))
    assert sets.lac is not None
    with pytest.raises(InputError, match="has no sets"):
        plot_set_sizes(panel(), replace(sets, lac=replace(sets.lac, sets=sets.lac.sets[:0])))
    with pytest.raises(InputError, match="there are none"):
        plot_selective(panel(), {}, REPORT)


TABLES: dict[str, tuple[Callable[[pd.DataFrame], None], pd.DataFrame]] = {
    "covered_before": (
        lambda one: plot_coverage(panel(), one, 0.9), conformal_splits(*made(), splits=2),
    ),
    "risk": (
        lambda one: plot_selective(panel(), {"x": one}, REPORT),
        risk_coverage([1, 2, 3], [1, 0, 1]),
    ),
    "set_size_low": (lambda one: plot_certainty(panel(), one), points(3)),
}  # fmt: skip


@pytest.mark.parametrize("column", TABLES)
def test_tables_without_rows_columns_or_numbers_are_refused(column: str) -> None:
    draw, good = TABLES[column]
    draw(good)
    with pytest.raises(InputError, match="no rows"):
        draw(good[:0])
    with pytest.raises(InputError, match=f"no column {column}"):
        draw(good.drop(columns=column))
    with pytest.raises(InputError, match=f"{column} is NaN"):
        draw(good.assign(**{column: np.nan}))


def test_pairs_of_models_are_counted() -> None:
    table = points(3).assign(accuracy=[0.5, 0.6, 0.7], set_size=[3.0, 2.0, 2.5])
    for name in ("accuracy", "set_size"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.1, table[name] + 0.1
    ax = panel()
    plot_certainty(ax, table)
    assert finding(ax) == "In 2 of 3 pairs the more accurate has the smaller sets"


def test_an_interval_that_misses_by_rounding_is_drawn() -> None:
    table = points(2)
    plot_certainty(panel(), table.assign(accuracy_high=table["accuracy"] - 1e-16))
    with pytest.raises(InputError, match=r"accuracy=.* is not within .* to -0.5"):
        plot_certainty(panel(), table.assign(accuracy_high=-0.5))


def test_values_that_make_no_sense_are_refused() -> None:
    splits = conformal_splits(*made(), splits=2)
    for target in (0.0, 1.0, 90, float("nan")):
        with pytest.raises(InputError, match="target="):
            plot_coverage(panel(), splits, target)
    with pytest.raises(InputError, match=r"set_size=2.* is not within"):
        plot_certainty(panel(), points(3).assign(set_size_high=1.0))
    curve = risk_coverage([1, 2, 3], [1, 0, 1])
    with pytest.raises(InputError, match=r"ends at a coverage of 0\.66"):
        plot_selective(panel(), {"x": curve[:2]}, REPORT)
    other = risk_coverage([1, 2, 3], [1, 0, 0])
    with pytest.raises(InputError, match=r"x has 0\.6667 right and y has 0\.3333"):
        plot_selective(panel(), {"x": curve, "y": other}, REPORT)
