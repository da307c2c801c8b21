"""Intervals and errors, against values worked out by hand or by definition."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from workbench.errors import InputError
from workbench.stats import (
    balanced_accuracy,
    calibration_error,
    difference,
    kappa,
    mcnemar,
    mean,
    mean_share,
    paired_shares,
    proportion,
)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_interval_of_a_share_is_that_of_scipy(level: float) -> None:
    for n in (1, 2, 7, 30, 1319):
        for hits in {0, 1, n // 2, n - 1, n}:
            mine = proportion("x", hits, n, level=level)
            other = binomtest(hits, n).proportion_ci(level, method="wilson")
            assert (mine.low, mine.high) == pytest.approx((other.low, other.high), abs=1e-14)
            assert 0 <= mine.low <= mine.value <= mine.high <= 1


def test_an_interval_holds_its_share_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    metrics = [proportion("x", int(hits), 80) for hits in rng.binomial(80, 0.9, 2000)]
    assert 0.93 < np.mean([metric.low <= 0.9 <= metric.high for metric in metrics]) < 0.97
    assert proportion("x", 0, 10).low == 0
    assert proportion("x", 10, 10).high == 1


def test_a_paired_difference_knows_what_goes_together() -> None:
    rng = np.random.default_rng(1)
    first = rng.random(500) < 0.6
    second = first & (rng.random(500) < 0.9)  # never right where the first is wrong
    paired = difference("x", first, second)
    assert paired.value == pytest.approx(first.mean() - second.mean())
    assert paired.low > 0
    assert difference("x", second, first).value == -paired.value
    shuffled = difference("x", first, rng.permutation(second))
    assert shuffled.high - shuffled.low > 1.5 * (paired.high - paired.low)


def of_counts(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Verdicts of two with these counts of items."""
    pairs = [(True, True)] * both + [(True, False)] * first
    pairs += [(False, True)] * second + [(False, False)] * neither
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_the_interval_of_paired_shares_is_the_published_one() -> None:
    # Agresti's R function: diffpropci.mp(b = 40, c = 20, n = 160) in package PropCIs.
    metric = paired_shares("x", *of_counts(60, 20, 40, 40))
    assert (metric.value, metric.n) == (-20 / 160, 160)
    assert (metric.low, metric.high) == pytest.approx((-0.21601726, -0.03089632), abs=1e-7)
    # By hand, for 4 items of which the first alone has 2: cells 1.5, 2.5, 0.5, 1.5 of 6.
    half = 1.959964 * ((2.5 + 0.5 - (2.5 - 0.5) ** 2 / 6) / 36) ** 0.5
    metric = paired_shares("x", *of_counts(1, 2, 0, 1), n_failed=3)
    assert (metric.value, metric.n_failed) == (0.5, 3)
    assert (metric.low, metric.high) == pytest.approx((2 / 6 - half, 2 / 6 + half))


def test_paired_shares_always_have_an_interval_around_them() -> None:
    for n in range(1, 13):
        for first in range(n + 1):
            for second in range(n + 1 - first):
                right, others = of_counts(0, first, second, n - first - second)
                metric = paired_shares("x", right, others)
                assert -1 <= metric.low <= metric.value <= metric.high <= 1
                assert metric.high - metric.low > 0.2
                back = paired_shares("x", others, right)
                assert (back.value, back.low) == pytest.approx((-metric.value, -metric.high))


@pytest.mark.parametrize("cells", [[0.6, 0.2, 0.1, 0.1], [0.94, 0.04, 0.01, 0.01]])
def test_paired_shares_hold_the_truth_as_often_as_they_say(cells: list[float]) -> None:
    rng = np.random.default_rng(3)
    draws = rng.multinomial(50, cells, 4000)
    drawn = [paired_shares("x", *of_counts(*draw)) for draw in draws.tolist()]
    truth = cells[1] - cells[2]
    assert np.mean([metric.low <= truth <= metric.high for metric in drawn]) >= 0.93
    assert np.mean([metric.low <= truth + 0.3 <= metric.high for metric in drawn]) < 0.1


def test_mcnemar_asks_whether_a_coin_could_have_done_it() -> None:
    assert mcnemar(*of_counts(50, 0, 0, 50)) == 1
    assert mcnemar(*of_counts(10, 5, 0, 10)) == pytest.approx(2 / 2**5)
    assert mcnemar(*of_counts(0, 1, 8, 0)) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(*of_counts(0, 8, 1, 90)) == mcnemar(*of_counts(0, 1, 8, 0))
    assert mcnemar(*of_counts(0, 6, 6, 0)) == pytest.approx(1)


def test_balanced_accuracy_weighs_answers_alike() -> None:
    right = [True] * 8 + [False, True]
    metric = balanced_accuracy("x", right, ["Yes"] * 8 + ["No"] * 2)
    assert metric.value == 0.75
    assert metric.n == 10
    assert 0 < metric.low < 0.75 < metric.high < 1
    perfect = balanced_accuracy("x", [True] * 20, ["Yes", "No"] * 10)
    assert perfect.low < perfect.value == perfect.high == 1


def test_the_calibration_error_is_the_gap_between_confidence_and_truth() -> None:
    assert calibration_error([0.8] * 10, [True] * 8 + [False] * 2) == pytest.approx(0)
    assert calibration_error([0.9, 0.9, 0.3, 0.3], [True, False, False, False]) == pytest.approx(
        (2 * 0.4 + 2 * 0.3) / 4
    )
    assert calibration_error([0.0, 1.0], [False, True]) == 0  # both ends have a bin
    rng = np.random.default_rng(2)
    confidence = rng.random(20_000)
    assert calibration_error(confidence, rng.random(20_000) < confidence) < 0.02


def test_nothing_is_counted_from_nothing() -> None:
    with pytest.raises(InputError, match="x: 0 of 0"):
        proportion("x", 0, 0)
    with pytest.raises(InputError, match="2 or more paired values"):
        difference("x", [1.0, 0.0], [1.0])
    for values in ([], [True, False], [[True]]):
        with pytest.raises(InputError, match=r"x: .* are not the same items"):
            paired_shares("x", values, [True] * len(values[1:]))
    with pytest.raises(InputError, match=r"right \(1\) or wrong"):
        paired_shares("x", [0.5], [1])
    with pytest.raises(InputError, match="not the same items"):
        mcnemar([], [])
    with pytest.raises(InputError, match="nothing was counted"):
        balanced_accuracy("x", [], [])
    with pytest.raises(InputError, match="no valid probabilities"):
        calibration_error([], [])
    with pytest.raises(InputError, match="no valid probabilities"):
        calibration_error([1.2], [True])


def of_table(table: list[list[int]]) -> tuple[list[int], list[int]]:
    """Two raters' classes with these counts of items."""
    cells = [(a, b) for a, row in enumerate(table) for b, n in enumerate(row) for _ in range(n)]
    return [a for a, _ in cells], [b for _, b in cells]


def test_kappa_is_the_published_one() -> None:
    # SAS, PROC FREQ, as printed in statsmodels/stats/tests/test_inter_rater.py.
    table = [[0, 4, 1], [0, 8, 0], [0, 1, 5]]
    metric = kappa("x", *of_table(table))
    assert (metric.value, metric.low, metric.high) == pytest.approx(
        (0.4842, 0.2137, 0.7547), abs=6e-5
    )
    weighted = kappa("x", *of_table(table), power=1)
    assert (weighted.value, weighted.low, weighted.high) == pytest.approx(
        (0.4701, 0.1845, 0.7558), abs=6e-5
    )
    # R, irr::kappa2(anxiety[, 2:3]), with "equal" and "squared" weights, from the same file. It
    # weighs the classes by rank, so that 6 is 5 here (there is no 5).
    second = [3, 5, 4, 5, 2, 4, 2, 4, 3, 3, 2, 3, 3, 3, 2, 2, 1, 3, 3, 4]
    third = [2, 1, 4, 4, 3, 2, 1, 5, 1, 1, 1, 2, 3, 3, 1, 1, 3, 3, 2, 2]
    for power, value in ((None, -0.006289308), (1, 0.1459075), (2, 0.2520325)):
        assert kappa("x", second, third, power=power).value == pytest.approx(value, abs=1e-7)
    words = ["No", "Yes", "Yes"]
    named = kappa("x", *([words[c] for c in side] for side in of_table(table)))
    assert named == kappa("x", *([int(c > 0) for c in side] for side in of_table(table)))


def test_kappa_has_an_interval_where_its_standard_error_is_none() -> None:
    perfect = kappa("x", *of_table([[10, 0], [0, 10]]))
    share = proportion("x", 20, 20)
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(2 * share.low - 1)
    constant = kappa("x", [1] * 20, [0] * 5 + [1] * 15)
    assert constant.value == pytest.approx(0)
    assert -1 <= constant.low < 0 < constant.high < 1
    same = kappa("x", [True] * 5, [True] * 5)
    assert (same.value, same.low, same.high, same.n) == (0, -1, 1, 5)
    opposite = kappa("x", [0, 1], [1, 0])
    assert (opposite.value, opposite.low) == (-1, -1)
    assert opposite.high > -1
    for table in np.random.default_rng(4).integers(0, 3, (300, 3, 3)).tolist():
        if np.sum(table):
            for power in (None, 2):
                metric = kappa("x", *of_table(table), power=power)
                assert -1 <= metric.low <= metric.value <= metric.high <= 1
                assert metric.high > metric.low


@pytest.mark.parametrize("power", [None, 2])
def test_kappa_holds_the_truth_as_often_as_it_says(power: int | None) -> None:
    cells = np.array([[0.3, 0.05, 0.02], [0.06, 0.2, 0.05], [0.02, 0.1, 0.2]])
    many = kappa("x", *of_table((cells * 10_000).round().astype(int).tolist()), power=power)
    rng = np.random.default_rng(5)
    draws = rng.multinomial(150, cells.ravel(), 2000).reshape(-1, 3, 3).tolist()
    drawn = [kappa("x", *of_table(draw), power=power) for draw in draws]
    assert 0.93 < np.mean([one.low <= many.value <= one.high for one in drawn]) < 0.97


def test_the_mean_of_scores_stays_on_its_scale() -> None:
    rng = np.random.default_rng(6)
    draws = rng.choice([1, 2, 3, 4, 5], (2000, 40), p=[0.1, 0.1, 0.3, 0.3, 0.2])
    drawn = [mean("x", draw, 1, 5) for draw in draws]
    assert 0.93 < np.mean([one.low <= 3.4 <= one.high for one in drawn]) < 0.97
    few = mean("x", [1, 5], 1, 5)
    assert (few.value, few.low, few.high) == (3, 1, 5)
    best = mean("x", [5] * 20, 1, 5)
    assert (best.value, best.high) == (5, 5)
    assert best.low == pytest.approx(1 + 4 * proportion("x", 20, 20).low)
    one = mean("x", [2], 1, 5)
    assert 1 < one.low < 2 < one.high < 5


def test_kappa_and_mean_refuse_what_they_cannot_count() -> None:
    for values in ([], [1, 2], [[1]]):
        with pytest.raises(InputError, match="not the same items"):
            kappa("x", values, [1] * len(values[1:]))
    with pytest.raises(InputError, match="power=2 needs numbers"):
        kappa("x", ["a", "b"], ["a", "a"], power=2)
    for scores in ([], [0.0], [float("nan")], [6.0]):
        with pytest.raises(InputError, match="not values from 1 to 5"):
            mean("x", scores, 1, 5)


def test_a_mean_share_takes_the_interval_that_fits() -> None:
    verdicts = mean_share("accuracy", [1, 0, 1, 1], n_failed=2, n_unparsed=1)
    assert verdicts == proportion("accuracy", 3, 4, n_failed=2, n_unparsed=1)
    shares = mean_share("accuracy", [1, 0.5, 0.25], n_failed=2)
    assert shares == replace(mean("accuracy", [1, 0.5, 0.25], 0, 1), n_failed=2)
    nothing = mean_share("accuracy", [], n_failed=3)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high, nothing.n, nothing.n_failed) == (0, 1, 0, 3)
