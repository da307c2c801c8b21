"""Intervals and errors, against values worked out by hand or by definition."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import InputError
from workbench.stats import balanced_accuracy, calibration_error, difference, proportion


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
    with pytest.raises(InputError, match="nothing was counted"):
        balanced_accuracy("x", [], [])
    with pytest.raises(InputError, match="no probabilities"):
        calibration_error([], [])
    with pytest.raises(InputError, match="no probabilities"):
        calibration_error([1.2], [True])
