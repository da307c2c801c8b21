from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import InputError
from workbench.plots import COLOURS, new_figure
from workbench.plots.points import averaged, left_out, levels, pareto, shown, varied
from workbench.plots.sweep import plot_differences, plot_heat, plot_lines, plot_pareto
from workbench.stats import mean


def sweep(**columns: Any) -> pd.DataFrame:
    """A table of done points with these columns."""
    rows = len(next(iter(columns.values())))
    about = {"key": [f"p{i}" for i in range(rows)], "state": ["done"] * rows, "detail": [""] * rows}
    return pd.DataFrame(about | columns)


def failed(table: pd.DataFrame, *rows: int, state: str = "failed") -> pd.DataFrame:
    """The table with the metric of some points gone."""
    table = table.copy()
    table.loc[[*rows], "state"] = state
    table.loc[[*rows], "accuracy"] = math.nan
    return table


def grid(seeds: int = 3, models: tuple[str, ...] = ("tiny", "small")) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"lr": lr, "model": model, "seed": seed, "accuracy": 0.3 + 0.4 * rng.random()}
        for lr in (1e-5, 1e-4, 1e-3) for model in models for seed in range(seeds)
    ]  # fmt: skip
    columns = {str(name): values.tolist() for name, values in pd.DataFrame(rows).items()}
    return sweep(**columns, seconds=rng.gamma(3, 5, len(rows)).tolist())


def panel(**size: Any) -> tuple[Figure, Axes]:
    figure, (_, ax, *_) = new_figure(2, **size)
    return figure, ax


def texts(ax: Axes) -> list[str]:
    return [one.get_text() for one in ax.texts if one.get_text()]


def finding(ax: Axes) -> str:
    return ax.get_title(loc="left").replace("\N{NO-BREAK SPACE}", " ")


# Means and fronts


def test_repeats_have_the_interval_of_their_mean_and_failed_ones_are_counted() -> None:
    table = failed(sweep(lr=[1, 1, 1, 2], seed=[0, 1, 2, 0], accuracy=[0.5, 0.7, 0.9, 0.4]), 2)
    first, second = averaged(table, "accuracy", ["lr"]).to_dict("records")
    expected = mean("accuracy", [0.5, 0.7], -math.inf, math.inf)
    assert first["accuracy"] == pytest.approx(0.6)
    assert (first["accuracy.low"], first["accuracy.high"]) == (expected.low, expected.high)
    assert (first["points"], first["failed"], first["interval"]) == (2, 1, "repeats")
    assert (second["accuracy"], second["points"], second["failed"]) == (0.4, 1, 0)
    assert second["interval"] == "none"
    assert math.isnan(second["accuracy.low"])


def test_one_point_has_its_own_interval_and_so_have_repeats_that_agree() -> None:
    table = sweep(lr=[1, 2, 2], accuracy=[0.5, 0.6, 0.6])
    table["accuracy.low"], table["accuracy.high"] = [0.4, 0.5, 0.45], [0.6, 0.7, 0.72]
    found = averaged(table, "accuracy", ["lr"])
    assert found["interval"].tolist() == ["own", "own"]
    assert found["accuracy.low"].tolist() == [0.4, 0.45]
    assert found["accuracy.high"].tolist() == [0.6, 0.72]


def test_only_the_interval_of_a_share_stays_between_0_and_1() -> None:
    table = sweep(seed=[0, 1], accuracy=[0.6, 0.9])
    (row,) = averaged(table, "accuracy", []).to_dict("records")
    assert row["accuracy.low"] < 0
    assert row["accuracy.high"] > 1
    table["accuracy.low"], table["accuracy.high"] = [0.5, 0.8], [0.7, 1.0]
    (row,) = averaged(table, "accuracy", []).to_dict("records")
    assert (row["accuracy.low"], row["accuracy.high"]) == (0, 1)


def test_a_combination_that_failed_keeps_its_row() -> None:
    table = failed(sweep(lr=[1, 2], accuracy=[0.5, 0.6]), 1)
    last = averaged(table, "accuracy", ["lr"]).iloc[-1]
    assert math.isnan(last["accuracy"])
    assert (last["points"], last["failed"], last["interval"]) == (0, 1, "none")


@pytest.mark.parametrize("number", [math.nan, math.inf, None, "n/a"])
def test_what_is_no_finite_number_counts_as_failed(number: Any) -> None:
    table = sweep(lr=[1, 1], accuracy=[0.5, number])
    (row,) = averaged(table, "accuracy", ["lr"]).to_dict("records")
    assert (row["accuracy"], row["points"], row["failed"]) == (0.5, 1, 1)
    assert left_out(table, "accuracy") == "1 of 2 points without a number"


def test_a_number_of_a_point_that_is_stale_does_not_count() -> None:
    table = sweep(lr=[1, 1], accuracy=[0.5, 0.9]).assign(state=["done", "stale"])
    assert averaged(table, "accuracy", ["lr"])["accuracy"].tolist() == [0.5]


def test_none_is_a_group_of_its_own_and_types_are_told_apart() -> None:
    table = sweep(top_k=[5, None, 50, None], accuracy=[0.1, 0.2, 0.3, 0.4])
    found = averaged(table, "accuracy", ["top_k"])
    assert found["points"].tolist() == [1, 2, 1]
    assert levels(table["top_k"]) == ["5", "50", "None"]
    mixed = pd.Series([True, 1, "a", None, 2.5], dtype=object)
    assert levels(mixed) == ["True", "1", "a", "2.5", "None"]
    assert levels(pd.Series([True, False])) == ["False", "True"]


def test_values_are_shown_short_and_exact() -> None:
    values = [0.0001, 0.0003, 0.5, 7, 10**6, 0.1 + 0.2, "[1, 2]", None, True]
    expected = ["1e-4", "3e-4", "0.5", "7", "1e6", "0.30000000000000004", "[1, 2]", "None", "True"]
    assert [shown(value) for value in values] == expected


def test_a_table_with_repeated_index_is_a_table_like_others() -> None:
    table = pd.concat([sweep(lr=[1, 2], accuracy=[0.5, 0.6])] * 2)
    assert averaged(table, "accuracy", ["lr"])["points"].tolist() == [2, 2]
    assert pareto(table, "lr", "accuracy").all()


def test_a_front_has_all_that_nothing_beats() -> None:
    rng = np.random.default_rng(1)
    table = sweep(
        seconds=rng.integers(1, 12, 60).tolist(), accuracy=(rng.integers(0, 9, 60) / 9).tolist()
    )
    points = [*zip(table["seconds"], table["accuracy"], strict=True)]
    expected = [
        not any(s <= t and a >= b and (s, a) != (t, b) for s, a in points) for t, b in points
    ]
    assert pareto(table, "seconds", "accuracy").tolist() == expected


def test_failed_points_are_on_no_front() -> None:
    table = failed(sweep(seconds=[1.0, 2, math.nan, 3], accuracy=[0.9, 0.5, 0.99, 0.95]), 0)
    assert pareto(table, "seconds", "accuracy").tolist() == [False, True, False, True]


def test_a_missing_column_names_the_nearest() -> None:
    table = grid()
    for draw in (
        lambda: averaged(table, "acuracy", []),
        lambda: pareto(table, "seconds", "acuracy"),
        lambda: plot_lines(panel()[1], table, "lr", "acuracy"),
        lambda: plot_heat(panel()[1], table, "lr", "model", "acuracy"),
    ):
        with pytest.raises(InputError, match=r"no column 'acuracy': the nearest is 'accuracy'"):
            draw()
    with pytest.raises(InputError, match="nearest is 'model'"):
        plot_pareto(panel()[1], table, "seconds", "accuracy", ["modle"])
    with pytest.raises(InputError, match="no rows"):
        plot_lines(panel()[1], table[:0], "lr", "accuracy")
    with pytest.raises(InputError, match="by='points'"):
        averaged(table.assign(points=1), "accuracy", ["points"])
    with pytest.raises(InputError, match="x and y are both 'lr'"):
        plot_heat(panel()[1], table, "lr", "lr", "accuracy")


def test_what_varies_are_the_parameters_before_the_metrics() -> None:
    table = grid().assign(fixed=1)
    assert varied(table, "seconds", "accuracy") == ["lr", "model", "seed"]
    table.insert(6, "loss", 0.5 * table["accuracy"])
    table["loss.n"] = 100
    assert varied(table, "seconds", "accuracy") == ["lr", "model", "seed"]


# Lines


def test_lines_are_the_means_with_their_intervals() -> None:
    table = grid()
    figure, ax = panel()
    plot_lines(ax, table, "lr", "accuracy", "model")
    figure.draw_without_rendering()
    found = averaged(table, "accuracy", ["lr", "model"])
    assert ax.get_xscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1e-5", "1e-4", "1e-3"]
    for drawn, model in zip(ax.containers, ["tiny", "small"], strict=True):
        part = found[found["model"] == model]
        line, _, (bars,) = drawn.lines  # type: ignore[attr-defined]
        assert np.allclose(line.get_ydata(), part["accuracy"])
        ends = np.array([bar[:, 1] for bar in bars.get_segments()])
        assert np.allclose(ends, part[["accuracy.low", "accuracy.high"]])
    assert ax.get_ylabel() == "accuracy (mean of 3, 95 % interval)"
    assert {"model", "tiny", "small"} <= {*texts(ax)}
    low, high = (
        f"{end:.3g}" for end in found["accuracy"][found["model"] == "tiny"].agg([min, max])
    )
    assert finding(ax).startswith(f"accuracy: tiny {low} to {high}, small ")


def test_names_beside_lines_have_their_colours_and_do_not_overlap() -> None:
    models = tuple(f"model-{i}" for i in range(7))
    table = grid(models=models).assign(accuracy=0.5)
    figure, ax = panel()
    plot_lines(ax, table, "lr", "accuracy", "model")
    figure.draw_without_rendering()
    named = [one for one in ax.texts if one.get_text() in models]
    assert [one.get_color() for one in named] == [*COLOURS]
    boxes = [one.get_window_extent() for one in ax.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(figure.bbox.contains(box.x1, box.y1) for box in boxes)


def test_failed_points_leave_a_gap_and_are_told() -> None:
    table = failed(sweep(lr=[1, 2, 3, 4], accuracy=[0.1, 0.2, 0.3, 0.4]), 1)
    _, ax = panel()
    plot_lines(ax, failed(table, 3, state="timeout"), "lr", "accuracy")
    values = np.asarray(ax.lines[0].get_ydata(), float)
    assert np.isnan(values).tolist() == [False, True, False, True]
    assert "1 of 4 points failed, 1 timed out" in texts(ax)
    assert ax.get_xlim()[1] > 4  # the axis shows that there was a point


def test_a_point_alone_between_gaps_has_its_interval() -> None:
    table = failed(sweep(lr=[1, 2, 3], accuracy=[0.1, 0.2, 0.3]), 0, 2)
    table["accuracy.low"], table["accuracy.high"] = table["accuracy"] - 0.1, table["accuracy"] + 0.2
    _, ax = panel()
    plot_lines(ax, table, "lr", "accuracy")
    (bars,) = ax.containers
    segments = bars.lines[2][0].get_segments()  # type: ignore[attr-defined]
    (bar,) = (one for one in segments if len(one))
    assert np.allclose(bar[:, 1], [0.1, 0.4])


def test_values_that_are_no_numbers_stand_in_order_without_a_line() -> None:
    table = sweep(top_k=[50, None, 5], agent=["a", "a", "a"], accuracy=[0.3, 0.2, 0.1])
    _, ax = panel()
    plot_lines(ax, table, "top_k", "accuracy", "agent")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["5", "50", "None"]
    assert np.allclose(np.asarray(ax.lines[0].get_ydata(), float), [0.1, 0.3, 0.2])
    assert ax.lines[0].get_linewidth() == 0


def test_of_many_lines_seven_have_a_colour_and_the_others_are_told() -> None:
    rows = [(lr, i) for lr in (1, 2) for i in range(12)]
    table = sweep(lr=[a for a, _ in rows], run=[b for _, b in rows], accuracy=[0.5] * 24)
    _, ax = panel()
    plot_lines(ax, table, "lr", "accuracy", "run")
    drawn = [line.get_color() for line in ax.lines if len(np.ravel(line.get_xdata())) == 2]
    assert [*dict.fromkeys(drawn)] == [*COLOURS, "0.8"]
    assert drawn.count("0.8") == 5
    assert "grey: 5 more of run" in texts(ax)


def test_a_log_axis_is_for_values_that_span_much() -> None:
    for values, scale in (
        ([1, 19], "linear"), ([1, 20], "log"), ([0, 100], "linear"), ([-1, 100], "linear"),
    ):  # fmt: skip
        _, ax = panel()
        plot_lines(ax, sweep(n=values, accuracy=[0.1, 0.2]), "n", "accuracy")
        assert ax.get_xscale() == scale


# Heat maps


def test_cells_are_the_means_and_say_so() -> None:
    table = grid()
    figure, ax = panel()
    plot_heat(ax, table, "lr", "model", "accuracy")
    figure.draw_without_rendering()
    expected = table.pivot_table("accuracy", "model", "lr", sort=False)
    assert np.allclose(np.asarray(ax.images[0].get_array()), expected)
    found = averaged(table, "accuracy", ["lr", "model"])
    columns = ["accuracy", "accuracy.low", "accuracy.high"]
    cells = [f"{a:.3g}\n{b:.3g}–{c:.3g}" for a, b, c in found[columns].to_numpy()]
    assert sorted(texts(ax)) == sorted(cells)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["tiny", "small"]


def test_empty_cells_are_hatched_and_not_zero() -> None:
    table = sweep(a=[1, 1, 2], b=[1, 2, 1], accuracy=[0.0, 0.5, 0.7])
    _, ax = panel()
    plot_heat(ax, failed(table, 2), "a", "b", "accuracy")
    cells: Any = ax.images[0].get_array()
    assert cells.mask.tolist() == [[False, True], [False, True]]  # the hatching shows through
    assert ax.patch.get_hatch()
    assert texts(ax).count("failed") == 1  # and nothing where there is no point
    assert {"0", "0.5"} <= {*texts(ax)}
    assert "1 of 3 points failed" in texts(ax)


def shares(values: list[float], half: float = 0.05) -> pd.DataFrame:
    """A sweep over `a` and `b` of shares with their intervals."""
    table = sweep(a=[*range(len(values))], b=[0] * len(values), accuracy=values)
    table["accuracy.low"] = (table["accuracy"] - half).clip(lower=0)
    table["accuracy.high"] = (table["accuracy"] + half).clip(upper=1)
    return table


def test_colours_of_shares_span_0_to_100_percent() -> None:
    _, ax = panel()
    plot_heat(ax, shares([0.87, 0.97]), "a", "b", "accuracy")
    assert ax.images[0].get_clim() == (0, 1)
    assert texts(ax) == ["87.0\n82.0–92.0", "97.0\n92.0–100.0"]
    assert finding(ax) == "accuracy: 87.0 to 97.0 %, highest at a 1, b 0"


def test_colours_of_other_metrics_span_four_intervals_at_least() -> None:
    _, ax = panel()
    table = sweep(a=[0, 1], b=[0, 0], seconds=[10.0, 12.0])
    table["seconds.low"], table["seconds.high"] = table["seconds"] - 1, table["seconds"] + 1
    plot_heat(ax, table, "a", "b", "seconds")
    assert ax.images[0].get_clim() == pytest.approx((7, 15))
    _, ax = panel()
    plot_heat(ax, table.assign(seconds=[10.0, 90.0]), "a", "b", "seconds")
    assert ax.images[0].get_clim() == pytest.approx((10, 90))


def test_numbers_can_be_read_on_their_cells() -> None:
    _, ax = panel()
    values = [0.0, 0.25, 0.5, 0.75, 1.0]
    plot_heat(ax, sweep(a=[*range(5)], b=[0] * 5, accuracy=values), "a", "b", "accuracy")
    colours = [one.get_color() for one in ax.texts]
    assert (colours[0], colours[-1]) == ("white", "0.15")
    sizes = [one.get_window_extent().width for one in ax.texts]
    assert max(sizes) < ax.bbox.width / 5


def test_cells_too_small_for_numbers_are_told() -> None:
    rows = [(a, b) for a in range(25) for b in range(20)]
    table = sweep(a=[a for a, _ in rows], b=[b for _, b in rows], accuracy=[0.5] * 500)
    figure, ax = panel()
    plot_heat(ax, table, "a", "b", "accuracy")
    figure.draw_without_rendering()
    assert texts(ax) == ["cells are too small for their numbers"]


# Pareto fronts


def test_a_front_is_named_by_what_varies() -> None:
    table = sweep(
        k=[1, 2, 4, 8], model=["m"] * 4, accuracy=[0.2, 0.6, 0.5, 0.9], seconds=[1.0, 2, 3, 4]
    )
    figure, ax = panel()
    plot_pareto(ax, table, "seconds", "accuracy")
    figure.draw_without_rendering()
    assert texts(ax) == ["1", "2", "8", "k"]
    assert [one.xy[1] for one in ax.texts[:3]] == [0.2, 0.6, 0.9]  # type: ignore[attr-defined]
    (step,) = (line for line in ax.lines if line.get_drawstyle() == "steps-post")
    assert np.allclose(step.get_xydata(), [[1, 0.2], [2, 0.6], [4, 0.9]])
    assert finding(ax) == "accuracy on the front: 0.2 to 0.9 for 1 to 4 seconds"


@pytest.mark.parametrize("count", [1, 7, 500])
def test_names_of_a_front_do_not_overlap(count: int) -> None:
    rng = np.random.default_rng(count)
    table = sweep(
        model=[f"a-model-with-a-very-long-name-{i}-chat" for i in range(count)],
        accuracy=np.sort(rng.random(count)).tolist(), seconds=np.sort(rng.random(count)).tolist(),
    )  # fmt: skip
    figure, ax = panel()
    plot_pareto(ax, table, "seconds", "accuracy", ["model"])
    figure.draw_without_rendering()
    boxes = [one.get_window_extent() for one in ax.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    named = sum(one.startswith("a-model") for one in texts(ax))
    assert named == min(count, 8)
    assert (f"8 of {count} on the front are named" in texts(ax)) == (count > 8)


def test_points_at_one_place_have_one_name() -> None:
    table = grid().assign(accuracy=0.5, seconds=3.0)
    _, ax = panel()
    plot_pareto(ax, table, "seconds", "accuracy")
    assert texts(ax)[0] == "1 of 18 on the front are named"
    assert len(texts(ax)) == 3  # with the name and what it is of


# Differences


def test_differences_are_rows_in_points_and_the_clearest_is_the_title() -> None:
    table = pd.DataFrame({
        "style": ["plain", "chat", "plain"], "n": [2, 2, 8], "versus": [0, 0, 0],
        "difference": [0.09, 0.2, 0.05], "low": [0.05, -0.1, 0.01], "high": [0.13, 0.5, 0.09],
        "items": [200, 20, 200], "n_failed": [0, 0, 0],
    })  # fmt: skip
    _, ax = panel()
    plot_differences(ax, table, "n", "style")
    assert texts(ax) == ["+9.0", "+20.0", "+5.0"]
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert [name.split(", n =")[0] for name in names] == [
        "plain, n 2", "chat, n 2", "plain, n 8",
    ]  # fmt: skip
    assert finding(ax) == "plain, n 2 minus n 0: +9.0 points (+5.0 to +13.0); 2 of 3 differ"
    _, ax = panel()
    plot_differences(ax, table[1:2], "n", "style")
    assert finding(ax) == "None of 1 minus n 0 is distinguishable"


# All of them


TABLES = {
    "one point": grid()[:1],
    "all failed": grid().assign(state="killed"),
    "constant": grid().assign(lr=1.0, model="m", accuracy=0.0, seconds=0.0),
    "not a number": grid().assign(accuracy=math.nan),
    "large": grid().assign(accuracy=grid()["accuracy"] * 1e9),
    "negative": grid().assign(accuracy=-grid()["accuracy"], lr=-grid()["lr"]),
    "text": grid().assign(lr="a text that is rather long, longer than there is room for"),
    "infinite": grid().assign(lr=math.inf, seconds=math.inf),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_can_be_drawn(name: str) -> None:
    table = TABLES[name]
    figure, (one, other, last) = new_figure(3)
    plot_lines(one, table, "lr", "accuracy", "model")
    plot_heat(other, table, "lr", "model", "accuracy")
    plot_pareto(last, table, "seconds", "accuracy")
    figure.draw_without_rendering()
    if name in ("all failed", "not a number"):
        why = "killed" if name == "all failed" else "without a number"
        assert all(f"18 of 18 points {why}" in " ".join(texts(ax)) for ax in (one, other, last))
        assert all("no point has a number" in finding(ax) for ax in (one, other, last))
