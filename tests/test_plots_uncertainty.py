from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
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
from workbench.uncertainty.selective_prediction import from_options, risk_coverage


def made(n: int = 400, factor: float = 2.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Answers drawn from the probabilities of logits that are then multiplied by `factor`."""
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.normal(size=(n, 6))
    drawn = (rng.random(n)[:, None] > softmax(logits).cumsum(axis=1)).sum(axis=1)
    return factor * logits, drawn.clip(0, 5)


def panel() -> Axes:
    return new_figure(3)[1][1]


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def dots(ax: Axes) -> list[PathCollection]:
    return [one for one in ax.collections if isinstance(one, PathCollection)]


def test_reliability_has_a_dot_a_bin_with_items() -> None:
    logits, answers = made()
    report = calibration_report(logits, answers, resamples=2)
    bins = report.bins[report.bins["n"] > 0]
    assert len(bins) < len(report.bins)
    ax = panel()
    plot_reliability(ax, report)
    (drawn,) = dots(ax)
    assert np.array_equal(drawn.get_offsets(), bins[["confidence", "accuracy"]])
    areas, items = drawn.get_sizes(), bins["n"].to_numpy()
    large = items > 0.1 * items.sum()
    assert large.sum() > 1
    assert np.allclose(areas[large] / areas.max(), items[large] / items.max())
    assert areas.min() > 0.9 * 12  # the smallest are still seen
    (bars,) = (one for one in ax.containers if isinstance(one, ErrorbarContainer))
    ends = np.array([line[:, 1] for line in bars.lines[2][0].get_segments()])
    assert np.allclose(ends, bins[["accuracy_low", "accuracy_high"]])
    assert labels(ax) == [f"ECE {report.ece:.3f}"]


def test_reliability_after_scaling_has_a_colour_of_its_own() -> None:
    found = rescaled(*made(), resamples=2)
    ax = panel()
    plot_reliability(ax, found.before, found.after)
    before, after = dots(ax)
    assert len(np.asarray(after.get_offsets())) == (found.after.bins["n"] > 0).sum()
    assert not np.array_equal(before.get_facecolor(), after.get_facecolor())
    assert labels(ax) == [
        f"before: ECE {found.before.ece:.3f}", f"after: ECE {found.after.ece:.3f}",
    ]  # fmt: skip


def test_an_interval_that_misses_by_rounding_is_drawn() -> None:
    report = calibration_report(*made(), resamples=2)
    bins = report.bins.assign(accuracy_high=report.bins["accuracy"] - 1e-16)
    plot_reliability(panel(), replace(report, bins=bins))
    wrong = replace(report, bins=bins.assign(accuracy_high=-0.5))
    with pytest.raises(InputError, match=r"accuracy=.* is not within .* to -0.5"):
        plot_reliability(panel(), wrong)


@pytest.mark.parametrize("score", ["both", "lac", "aps"])
def test_set_sizes_are_shares_of_the_items(score: Any) -> None:
    report = conformal_report(*made(), score=score)
    ax = panel()
    plot_set_sizes(ax, report)
    assert len(ax.containers) == len(report.scores)
    middles = []
    for bars, one in zip(ax.containers, report.scores, strict=True):
        heights: list[float] = [bar.get_height() for bar in bars]
        assert len(heights) == 6
        assert sum(heights) == pytest.approx(1)
        assert np.dot(heights, range(1, 7)) == pytest.approx(one.set_size)
        middles.append([bar.get_x() + bar.get_width() / 2 for bar in bars])
    assert np.allclose(np.mean(middles, axis=0), range(1, 7))
    assert labels(ax) == [f"{one.score.upper()}, mean {one.set_size:.2f}" for one in report.scores]
    assert ax.get_ylabel() == "share of 200 test items"


def test_coverage_has_one_more_violin_where_sets_were_empty() -> None:
    splits = conformal_splits(*made(), splits=20)
    aps, lac = (splits[splits["score"] == name] for name in ("aps", "lac"))
    assert (aps["covered_before"] < aps["coverage"]).any()
    assert (lac["covered_before"] == lac["coverage"]).all()
    ax = panel()
    plot_coverage(ax, splits, 0.9)
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert names == ["LAC", "APS before\nits fallback", "APS"]
    columns = [lac["coverage"], aps["covered_before"], aps["coverage"]]
    *means, target = ax.lines
    assert [float(np.ravel(dot.get_ydata())[0]) for dot in means] == [c.mean() for c in columns]
    assert np.array_equal(target.get_ydata(), [0.9, 0.9])
    for body, values in zip(ax.collections, columns, strict=True):
        heights = np.asarray(body.get_paths()[0].vertices)[:, 1]
        assert (heights.min(), heights.max()) == (values.min(), values.max())
    assert ax.get_xlabel() == "20 splits; dashed: target 0.9"


def test_coverage_of_one_split() -> None:
    figure, (ax,) = new_figure()
    plot_coverage(ax, conformal_splits(*made(), splits=1, score="lac"), 0.9)
    figure.draw_without_rendering()
    assert len(ax.collections) == 1


def test_selective_lines_are_accuracies_of_those_kept() -> None:
    logits, answers = made(100)
    right = logits.argmax(axis=1) == answers
    signals = from_options(logits)
    curves = {name: risk_coverage(signal, right) for name, signal in signals.items()}
    ax = panel()
    plot_selective(ax, curves | {"even": risk_coverage(np.zeros(100), right)})
    *lines, even, random = ax.lines
    for line, signal in zip(lines, signals.values(), strict=True):
        surest = right[np.argsort(-signal, kind="stable")]
        shares = np.cumsum(surest) / np.arange(1, 101)
        assert np.allclose(line.get_ydata(), shares)
        assert np.allclose(line.get_xdata(), np.arange(1, 101) / 100)
    for flat in (even, random):
        assert np.allclose(np.asarray(flat.get_ydata(), float), right.mean())
    assert labels(ax) == [*signals, "even", "random"]


def test_between_equal_signals_the_accuracy_is_expected() -> None:
    # 2 of the 2 surest are right, then 1 of 2 alike: after 3 answers 2.5 are.
    curve = risk_coverage([1, 1, 0, 0], [1, 1, 1, 0])
    ax = panel()
    plot_selective(ax, {"two levels": curve.iloc[::-1]})  # in any order of rows
    places, values = np.asarray(ax.lines[0].get_xydata()).T
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
    legend = ax.get_legend()
    return [one.get_text() for one in legend.get_texts()] if legend else []


@pytest.mark.parametrize("count", [1, 8, 26])
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
    wanted = list(table["model"]) if count <= 8 else []
    assert names(ax) == wanted


def test_names_lie_beside_the_axes_and_no_two_dots_look_alike() -> None:
    figure, axes = new_figure(3)
    for ax, table in zip(axes, (points(8), points(7), points(6, tasks=3)), strict=True):
        plot_certainty(ax, table)
        figure.draw_without_rendering()
        looks = [(one.lines[0].get_color(), one.lines[0].get_marker()) for one in ax.containers]  # type: ignore[attr-defined]
        assert len({*looks}) == len(table) == len(names(ax))
        legend = ax.get_legend()
        assert legend is not None
        assert legend.get_window_extent().x0 >= ax.bbox.x1


def test_a_name_says_what_differs() -> None:
    several, tasks = points(4, tasks=2), points(3, tasks=3)
    for table, first in (
        (several, "a-model-0-7B-chat, task 0"), (tasks, "task 0"), (points(2), "a-model-0-7B-chat"),
    ):  # fmt: skip
        ax = panel()
        plot_certainty(ax, table)
        assert names(ax)[0] == first


def test_nothing_to_draw_is_refused() -> None:
    report = calibration_report(*made(), resamples=2)
    none = replace(report, bins=report.bins.assign(n=0))
    for pair in ((none, None), (report, none)):
        with pytest.raises(InputError, match="bins: no rows"):
            plot_reliability(panel(), *pair)
    sets = conformal_report(*made(), score="lac")
    with pytest.raises(InputError, match="has no sets"):
        plot_set_sizes(panel(), replace(sets, lac=None))
    assert sets.lac is not None
    with pytest.raises(InputError, match="has no sets"):
        plot_set_sizes(panel(), replace(sets, lac=replace(sets.lac, sets=sets.lac.sets[:0])))
    with pytest.raises(InputError, match="there are none"):
        plot_selective(panel(), {})


TABLES: dict[str, tuple[Callable[[pd.DataFrame], None], pd.DataFrame]] = {
    "covered_before": (
        lambda one: plot_coverage(panel(), one, 0.9), conformal_splits(*made(), splits=2),
    ),
    "risk": (
        lambda one: plot_selective(panel(), {"x": one}), risk_coverage([1, 2, 3], [1, 0, 1]),
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


def test_values_that_make_no_sense_are_refused() -> None:
    splits = conformal_splits(*made(), splits=2)
    for target in (0.0, 1.0, 90, float("nan")):
        with pytest.raises(InputError, match="target="):
            plot_coverage(panel(), splits, target)
    with pytest.raises(InputError, match=r"set_size=2.* is not within"):
        plot_certainty(panel(), points(3).assign(set_size_high=1.0))
    curve = risk_coverage([1, 2, 3], [1, 0, 1])
    with pytest.raises(InputError, match=r"ends at a coverage of 0\.66"):
        plot_selective(panel(), {"x": curve[:2]})
    other = risk_coverage([1, 2, 3], [1, 0, 0])
    with pytest.raises(InputError, match=r"x has 0\.6667 right and y 0\.3333"):
        plot_selective(panel(), {"x": curve, "y": other})
