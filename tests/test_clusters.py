"""Intervals of items in clusters and over seeds, against inspect_ai, textbooks and simulations."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, t, ttest_1samp
from typer.testing import CliRunner

from workbench.cli import app
from workbench.clusters import clustered_error, clustered_mean, crossed_mean
from workbench.comparison import across_seeds, compare, compare_p, comparison
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import Evaluation, accuracy, evaluate, load, run_suite
from workbench.reproduction import reproduce
from workbench.stats import difference, mean, proportion
from workbench.tasks import open_task
from workbench.types import Metric, Report, Usage

# Class sizes and sums of scores of `algebra` (Lohr, Sampling: Design and Analysis, one-stage
# cluster sample of 12 of 187 classes, 299 students).
SIZES = (20, 26, 24, 34, 26, 28, 19, 32, 17, 21, 26, 26)
SUMS = (1230, 1670, 1402, 1972, 1508, 1816, 1048, 2308, 989, 1398, 1621, 1746)
# Ratings of 6 targets by 4 judges, and their mean squares (Shrout and Fleiss 1979, tables 2 and 3).
RATINGS = ((9, 2, 5, 8), (6, 1, 3, 2), (8, 4, 6, 8), (7, 1, 2, 6), (10, 5, 6, 9), (6, 2, 4, 7))


def test_the_error_of_a_cluster_sample_is_the_published_one() -> None:
    means = np.repeat(np.divide(SUMS, SIZES), SIZES)
    error, count = clustered_error(means, np.repeat(np.arange(12), SIZES))
    assert count == 12
    assert float(means.mean()) == pytest.approx(62.57, abs=5e-3)
    assert error * (1 - 12 / 187) ** 0.5 == pytest.approx(1.49, abs=5e-3)
    # Grades of 5 suites of 4 students of 100 suites (Lohr, example 5.2).
    suites = np.repeat([12.16, 11.36, 8.96, 12.96, 11.08], 4) / 4
    error, _ = clustered_error(suites, np.repeat([*"abcde"], 4))
    assert suites.mean() == pytest.approx(2.826)
    assert error * (1 - 5 / 100) ** 0.5 == pytest.approx(0.164, abs=5e-4)
    # svymean of R's package survey (T. Lumley on R-help, 17 June 2005).
    values = [23, 33, 77, 25, 35, 74, 27, 37, 72]
    error, _ = clustered_error(values, [1, 1, 1, 2, 2, 2, 3, 3, 3])
    assert (np.mean(values), error) == pytest.approx((44.778, 0.294), abs=5e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_clustered_intervals_are_those_of_inspect(binary: bool) -> None:
    std = pytest.importorskip("inspect_ai.scorer._metrics.std")
    scorer = pytest.importorskip("inspect_ai.scorer")
    rng = np.random.default_rng(0)
    for size in (2, 5, 30):
        groups = rng.integers(0, size, 80)
        values = (rng.random(80) < 0.3 + 0.4 * (groups % 2)).astype(float)
        values = values if binary else np.clip(0.8 * values + 0.2 * rng.random(80), 0, 1)
        scores = [
            scorer.SampleScore(
                score=scorer.Score(value=float(value)), sample_metadata={"of": int(g)}
            )
            for value, g in zip(values, groups, strict=True)
        ]
        assert clustered_error(values, groups)[0] == pytest.approx(std.stderr(cluster="of")(scores))
        mine = clustered_mean("x", values, groups)
        theirs = (std.ci_wilson if binary else std.ci)(cluster="of")(scores)
        ends = [min(1, max(0, theirs[end])) for end in ("lower", "upper")]
        assert [mine.low, mine.high] == pytest.approx(ends, abs=1e-9)
        assert mine.value == pytest.approx(values.mean())
        assert (mine.n, mine.form) == (80, "share")


def test_clusters_of_one_item_are_items() -> None:
    rng = np.random.default_rng(1)
    values = rng.random(40)
    assert clustered_mean("x", values, np.arange(40)).low == pytest.approx(
        mean("x", values, 0, 1).low
    )
    right = rng.random(400) < 0.7
    alone, plain = (
        clustered_mean("x", right, np.arange(400)),
        proportion("x", int(right.sum()), 400),
    )
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high), abs=1e-3)
    gains = right.astype(float) - (rng.random(400) < 0.6)
    paired = clustered_mean("x", gains, np.arange(400), -1)
    assert paired.form == "share difference"
    assert paired.low == pytest.approx(difference("x", gains, 0 * gains).low, abs=1e-3)


def test_where_nothing_varies_or_all_is_one_cluster(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "workbench"):
        one = clustered_mean("accuracy", [1, 0, 1, 1], ["a"] * 4)
    assert "all 4 items are one cluster, so there is no interval" in caplog.text
    assert (one.value, one.low, one.high, one.n) == (0.75, 0, 1, 4)
    perfect = clustered_mean("x", [1.0] * 60, np.repeat(np.arange(6), 10))
    assert (perfect.low, perfect.high) == pytest.approx((proportion("x", 6, 6).low, 1))
    half = clustered_mean("x", [0, 1] * 30, np.repeat(np.arange(6), 10))  # each cluster has half
    assert half.low < 0.4
    assert half.high > 0.6
    for wrong in ([0.5, 2], []):
        with pytest.raises(InputError, match="x: "):
            clustered_mean("x", wrong, ["a"] * len(wrong))
    with pytest.raises(InputError, match="give one for each"):
        clustered_mean("x", [0.5, 0.2], ["a"])


def in_clusters(rng: np.random.Generator, sizes: Sequence[int], share: float) -> tuple[Any, Any]:
    """Verdicts on questions of passages, some of which are harder than others."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return rng.random(len(groups)) < rng.beta(2 * share, 2 * (1 - share), len(sizes))[
        groups
    ], groups


@pytest.mark.parametrize("sizes", [[5] * 40, [2, 4, 6, 8] * 5, [10] * 6], ids=["40", "20", "6"])
def test_clustered_intervals_hold_the_truth_as_often_as_they_say(sizes: list[int]) -> None:
    rng = np.random.default_rng(2)
    drawn = [in_clusters(rng, sizes, 0.7) for _ in range(1500)]
    found = [clustered_mean("x", *one) for one in drawn]
    held = np.mean([metric.low <= 0.7 <= metric.high for metric in found])
    assert 0.93 < held < 0.975  # 4 standard errors of the simulation around 95 %
    naive = [proportion("x", int(right.sum()), len(right)) for right, _ in drawn]
    assert np.mean([metric.low <= 0.7 <= metric.high for metric in naive]) < 0.87


def report(right: Any, groups: Any, **more: Any) -> Report:
    """A report of verdicts [items] or [items, runs], with a passage for each item."""
    table = np.asarray(right).reshape(len(groups), -1)
    rows = pd.DataFrame(
        {
            "id": f"item {i}", "run": run, "passage": f"p{groups[i]}", "answer": "7",
            "correct": bool(table[i, run]), "parsed": True, "error": None,
        }
        for run in range(table.shape[1])
        for i in range(len(groups))
    )  # fmt: skip
    return Evaluation((accuracy(rows),), rows, Usage(), more, pd.DataFrame())


def test_paired_differences_are_clustered() -> None:
    rng = np.random.default_rng(3)
    right, groups = in_clusters(rng, [6] * 15, 0.6)
    other = np.where(rng.random(15)[groups] < 0.5, right, rng.random(90) < 0.5)
    a, b = report(right, groups), report(other, groups)
    gains = right.astype(float) - other
    apart = compare(a, b, cluster="passage")
    per = pd.Series(gains - gains.mean()).groupby(groups).sum()
    error = (15 / 14 * (per**2).sum()) ** 0.5 / 90  # Miller's formula, with the correction
    assert apart.value == pytest.approx(gains.mean())
    assert (apart.high - apart.low) / 2 == pytest.approx(2.1447867 * error)
    test = ttest_1samp(gains.mean() + per * 15 / 90, 0)  # clusters as the units
    assert compare_p(a, b, cluster="passage") == pytest.approx(test.pvalue)
    table = comparison({"b": b, "a": a}, cluster="passage").set_index("name")
    assert table.loc["a", "difference_low"] == apart.low
    assert table.loc["a", "low"] == accuracy(a.rows, cluster="passage").low
    assert table.loc["a", "p"] == pytest.approx(test.pvalue)
    known = cast(Evaluation, a).clustered("passage")
    assert compare(known, b) == apart
    assert compare(b, known).high == pytest.approx(-apart.low)
    assert known.clustered(None).summary == a.summary
    every = report(np.ones(90), groups), report(np.zeros(90), groups)
    assert compare_p(*every, cluster="passage") == pytest.approx(binomtest(15, 15).pvalue)
    assert compare_p(a, a, cluster="passage") == 1


def test_a_test_of_clusters_errs_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(16), 5)
    found = []
    for _ in range(250):  # the two differ by passage, in either direction
        lean = rng.normal(0, 0.25, 16)[groups]
        pair = [rng.random(80) < np.clip(0.5 + side * lean, 0, 1) for side in (0.5, -0.5)]
        found.append(compare_p(*(report(one, groups) for one in pair), cluster="passage"))
    assert 0.01 < np.mean(np.array(found) < 0.05) < 0.1


def test_columns_that_are_no_clusters_are_refused() -> None:
    good = report([1, 0, 1, 1], [0, 0, 1, 1])
    with pytest.raises(
        InputError, match="no column to cluster by 'pasage', did you mean 'passage'"
    ):
        accuracy(good.rows, cluster="pasage")
    with pytest.raises(InputError, match="'passage'"):
        compare(good, good, cluster="page")
    good.rows.loc[1, "passage"] = None
    with pytest.raises(InputError, match="item 'item 1' has no 'passage'"):
        accuracy(good.rows, cluster="passage")
    runs = report([[1, 0], [0, 1]], [0, 1])
    runs.rows.loc[0, "passage"] = "another"
    with pytest.raises(InputError, match="item 'item 0' has 2 values of 'passage'"):
        accuracy(runs.rows, cluster="passage")


def test_failed_and_unread_rows_count_as_everywhere() -> None:
    one = report([1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 2, 2])
    one.rows.loc[0, "error"] = "lost"
    one.rows.loc[1, "parsed"] = False
    found = accuracy(one.rows, cluster="passage")
    assert (found.n, found.n_failed, found.n_unparsed, found.value) == (5, 1, 1, 0.6)
    apart = compare(one, report([0] * 6, [0, 0, 1, 1, 2, 2]), cluster="passage")
    assert (apart.n, apart.n_failed) == (5, 1)
    one.rows["error"] = "lost"
    none = accuracy(one.rows, cluster="passage")
    assert (none.n, none.n_failed, none.low, none.high) == (0, 6, 0, 1)


def test_an_evaluation_is_clustered_before_and_after(plain: VLLMEngine, tmp_path: Path) -> None:
    rows = [
        {"question": f"{a}+{b}=", "answer": str(a + b), "passage": f"about {a}"}
        for a in (12, 30, 47, 58)
        for b in (1, 20, 33)
    ]
    task = open_task(pd.DataFrame(rows))
    before = evaluate(task, plain, cluster="passage")
    bare = evaluate(task, plain)
    assert before.provenance["cluster"] == "passage"
    after = bare.clustered("passage")
    assert after.summary == before.summary == (accuracy(bare.rows, cluster="passage"),)
    with pytest.raises(InputError, match=r"no field of item .* to cluster by 'page'.*passage"):
        evaluate(task, plain, cluster="page")
    first = run_suite(task, plain, ["standard"], folder=tmp_path / "suite")
    again = run_suite(task, plain, ["standard"], folder=tmp_path / "suite", cluster="passage")
    assert first["standard"].summary == bare.summary
    assert again["standard"].summary == before.summary
    assert again["standard"].usage.requests == first["standard"].usage.requests  # was read
    repeated = reproduce(before, engine=plain, task=task)
    assert repeated.differing().empty, repeated.verdict()
    assert repeated.differing(provenance=True).empty, repeated.verdict()
    before.save(tmp_path / "one")
    assert cast(Evaluation, load(tmp_path / "one")).clustered(None).summary == bare.summary
    bare.save(tmp_path / "two")
    command = ["compare", str(tmp_path / "two"), str(tmp_path / "one"), "--cluster", "passage"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)[0]["low"] == pytest.approx(before.summary[0].low)


def test_the_variance_over_items_and_seeds_is_that_of_published_mean_squares() -> None:
    metric, parts = crossed_mean("x", np.divide(RATINGS, 10))
    squares = np.array([11.24, 32.49, 1.02]) / 100 / 24  # of targets, judges and the rest
    wanted = {
        "items": squares[0] - squares[2],
        "seeds": squares[1] - squares[2],
        "rest": squares[2],
    }
    assert parts == pytest.approx(wanted, abs=5e-6)
    whole = squares[0] + squares[1] - squares[2]
    assert sum(parts.values()) == pytest.approx(whole, abs=1e-5)
    free = whole**2 / (squares[0] ** 2 / 5 + squares[1] ** 2 / 3 + squares[2] ** 2 / 15)
    assert 4 < free < 5
    assert metric.value - metric.low == pytest.approx(t.ppf(0.975, free) * whole**0.5, rel=0.01)
    same, _ = crossed_mean("x", np.divide(RATINGS, 10), np.arange(6))
    assert (same.low, same.high) == pytest.approx((metric.low, metric.high))


def test_seeds_that_all_agree_are_one() -> None:
    values = np.array([1, 0, 0, 1, 1, 0, 1, 0.0])
    found, parts = crossed_mean("x", np.repeat(values[:, None], 4, 1))
    assert (found.low, found.high) == pytest.approx(
        (mean("x", values, 0, 1).low, mean("x", values, 0, 1).high)
    )
    assert parts["seeds"] == parts["rest"] == 0
    perfect, _ = crossed_mean("x", np.ones((8, 3)))
    assert perfect.value == 1
    assert perfect.low == pytest.approx(mean("x", np.ones(8), 0, 1).low)
    for wrong in (np.ones((1, 3)), np.ones((3, 1)), np.full((2, 2), 2), np.ones(3)):
        with pytest.raises(InputError, match="2 or more items and 2 or more seeds"):
            crossed_mean("x", wrong)
    with pytest.raises(InputError, match="one cluster"):
        crossed_mean("x", np.ones((3, 3)), [1, 1, 1])


@pytest.mark.parametrize(
    ("spread", "naive"), [(0.0, (0.93, 0.98)), (0.08, (0.4, 0.85))], ids=["none", "large"]
)
def test_intervals_over_seeds_hold_the_truth(spread: float, naive: tuple[float, float]) -> None:
    rng = np.random.default_rng(5)
    held, alone = [], []
    for _ in range(1000):
        share = rng.uniform(0.2, 0.8, 200)[:, None] + np.clip(rng.normal(0, spread, 6), -0.2, 0.2)
        table = (rng.random((200, 6)) < share).astype(float)
        found, items = crossed_mean("x", table)[0], mean("x", table.mean(1), 0, 1)
        held.append(found.low <= 0.5 <= found.high)
        alone.append(items.low <= 0.5 <= items.high)
    assert 0.925 < np.mean(held) < 0.98
    assert naive[0] < np.mean(alone) < naive[1]


def numbers(one: Report | Metric) -> Any:
    metric = one.summary[0] if isinstance(one, Report) else one
    return pytest.approx((metric.value, metric.low, metric.high, metric.n, metric.n_failed))


def test_reports_of_several_seeds_are_one_number() -> None:
    rng = np.random.default_rng(6)
    table = rng.random((30, 4)) < rng.random((30, 1))
    groups = np.repeat(np.arange(10), 3)
    reports = [report(table[:, seed], groups) for seed in range(4)]
    found = across_seeds(reports)
    metric, parts = crossed_mean("accuracy", table.astype(float))
    assert numbers(found) == (metric.value, metric.low, metric.high, 30, 0)
    assert found.provenance["variance"] == pytest.approx(parts)
    assert found.rows["value"].tolist() == pytest.approx(table.mean(0).tolist())
    runs = across_seeds(report(table, groups))  # of one report
    assert numbers(runs) == (metric.value, metric.low, metric.high, 30, 0)
    named = across_seeds(dict(zip("abcd", reports, strict=True)), cluster="passage")
    wide = crossed_mean("accuracy", table.astype(float), groups)[0]
    assert numbers(named) == (wide.value, wide.low, wide.high, 30, 0)
    assert named.rows["name"].tolist() == [*"abcd"]
    reports[1].rows.loc[3, "error"] = "lost"
    reports[2].rows.loc[4, "parsed"] = False
    fewer = across_seeds(reports).summary[0]
    assert (fewer.n, fewer.n_failed, fewer.n_unparsed) == (29, 1, 1)
    assert fewer.value == pytest.approx(np.delete(table, 3, 0).mean())
    for few in ([], reports[:1], report(table[:, 0], groups)):
        with pytest.raises(InputError, match="2 seeds or more"):
            across_seeds(few)
