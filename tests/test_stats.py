"""Intervals and errors, against values worked out by hand or by definition."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import InputError
from workbench.stats import (
    balanced_accuracy,
    calibration_error,
    difference,
    mcnemar,
    paired_shares,
    proportion,
)


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
    with pytest.raises(InputError, match="no paired values"):
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
    with pytest.raises(InputError, match="no probabilities"):
        calibration_error([], [])
    with pytest.raises(InputError, match="no probabilities"):
        calibration_error([1.2], [True])
