"""Calibration: the published errors of 26 models, values by hand, and models made to be wrong."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.stats import calibration_error, proportion
from workbench.uncertainty.calibration import (
    FLOOR,
    CalibrationReport,
    Method,
    calibration_report,
    rescaled,
)
from workbench.uncertainty.logits import softmax, split_rows
from workbench.uncertainty.selective_prediction import resampled

METHODS: tuple[Method, ...] = ("temperature", "isotonic")


def published(name: str) -> Path:
    folder = os.environ.get("WORKBENCH_DATA")
    if not folder:
        pytest.skip("needs published logits: WORKBENCH_DATA is not set")
    path = Path(folder) / "uncertainty" / name
    if not path.exists():
        pytest.skip(f"needs published logits: WORKBENCH_DATA has no uncertainty/{name}")
    return path


def made(n: int, factor: float = 1.0, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Answers drawn from the probabilities of logits that are then multiplied by `factor`."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, 6))
    drawn = (rng.random(n)[:, None] > softmax(logits).cumsum(axis=1)).sum(axis=1)
    return factor * logits, drawn.clip(0, 5)


def of(*rows: list[float]) -> NDArray[Any]:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.array(rows)))


def test_the_published_errors_of_26_models() -> None:
    table = pd.read_csv(published("mmbench_published.csv"))
    errors = {row["model"]: [row["ece"], row["mce"]] for row in table.to_dict("records")}
    with np.load(published("mmbench_logits.npz")) as data:
        models, logits, answers = data["models"], data["logits"], data["answer"]
    assert len(models) == len(errors) == 26
    for model, scores in zip(models, logits, strict=True):
        found = calibration_report(scores.astype(np.float32), answers, resamples=1)
        wanted = pytest.approx(errors[str(model)], rel=0, abs=2e-6)
        assert [found.ece, found.mce] == wanted, model


def test_numbers_by_hand() -> None:
    logits = of(
        [0.50, 0.50, 0, 0, 0, 0],  # A, the first of two alike; right
        [0.05, 0.55, 0.40, 0, 0, 0],  # wrong, C
        [0.05, 0.05, 0.90, 0, 0, 0],  # right
    )
    found = calibration_report(logits, ["A", "C", "C"], bins=5, resamples=20)
    # 0.5 and 0.55 share the bin from 0.4 to 0.6, 0.9 is alone in the last.
    assert found.ece == pytest.approx((abs(1.05 - 1) + abs(0.9 - 1)) / 3)
    assert found.mce == pytest.approx(0.1)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.confidence == pytest.approx((0.5 + 0.55 + 0.9) / 3)
    brier = (0.5**2 + 0.5**2) + (0.05**2 + 0.55**2 + 0.6**2) + (0.05**2 + 0.05**2 + 0.1**2)
    assert found.brier == pytest.approx(brier / 3)
    assert found.log_loss == pytest.approx(-np.log([0.5, 0.4, 0.9]).mean())
    assert (found.n, found.n_floored) == (3, 0)
    bins = found.bins
    assert bins["low"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert bins["high"].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert bins["n"].tolist() == [0, 0, 2, 0, 1]
    assert bins["confidence"].tolist() == pytest.approx(
        [np.nan] * 2 + [0.525, np.nan, 0.9], nan_ok=True
    )
    assert bins["accuracy"].tolist() == pytest.approx([np.nan] * 2 + [0.5, np.nan, 1], nan_ok=True)
    half = proportion("", 1, 2)
    assert bins["accuracy_low"][2] == half.low
    assert bins["accuracy_high"][2] == half.high
    assert np.isnan(bins["accuracy_low"][0])
    assert np.isnan(bins["accuracy_high"][0])


@pytest.mark.parametrize("bins", [1, 5, 10, 15])
def test_the_same_as_the_package_s_other_error(bins: int) -> None:
    logits, answers = made(300, 1.4)
    p = softmax(logits)
    found = calibration_report(logits, answers, bins=bins, resamples=1)
    other = calibration_error(p.max(axis=1), p.argmax(axis=1) == answers, bins)
    assert found.ece == pytest.approx(other, abs=1e-12)
    assert found.mce >= found.ece


def test_edges_belong_to_the_bin_below() -> None:
    logits = of([0.5, 0.5, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1.0], [0.2, 0.2, 0.2, 0.2, 0.2, 0])
    found = calibration_report(logits, [0, 5, 1], bins=10, resamples=1)
    assert found.bins["n"].tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 1]
    assert found.bins["n"].sum() == 3
    assert found.ece == pytest.approx((0.5 + 0 + 0.2) / 3)


def test_a_truth_that_is_missing_counts_as_the_floor(caplog: pytest.LogCaptureFixture) -> None:
    logits = of([0.5, 0.5, 0, 0, 0, 0], [0.9, 0.1, 0, 0, 0, 0])
    with caplog.at_level(logging.WARNING, "workbench"):
        found = calibration_report(logits, [0, 5], resamples=20)
    assert found.log_loss == pytest.approx((np.log(2) - np.log(FLOOR)) / 2)
    assert found.brier == pytest.approx((0.5 + 0.81 + 0.01 + 1) / 2)
    assert found.n_floored == 1
    assert [metric.n_unparsed for metric in found.metrics()] == [0, 0, 0, 1, 0, 0]
    assert "1 of 2 truths count as 1e-12" in caplog.text
    caplog.clear()
    assert calibration_report(logits, [0, 1], resamples=1).n_floored == 0
    assert not caplog.text


def test_intervals_are_those_of_literal_resamples() -> None:
    logits, answers = made(200, 4.0)
    usual = softmax(logits).max(axis=1) > 0.5  # no bin with a chance item or two
    logits, answers = logits[usual][:80], answers[usual][:80]
    found = calibration_report(logits, answers, bins=4, resamples=50, seed=2)
    again = []
    for weights in resampled(80, 50, 2):
        for row in weights:
            at = np.repeat(np.arange(80), row)
            one = calibration_report(logits[at], answers[at], bins=4, resamples=1)
            again.append([one.ece, one.mce, one.brier, one.log_loss, one.confidence])
    low, high = np.quantile(again, (0.025, 0.975), axis=0)
    ece, mce, brier, log_loss, accuracy, confidence = found.metrics()
    for metric, place in ((brier, 2), (log_loss, 3), (confidence, 4)):
        assert (metric.low, metric.high) == pytest.approx((low[place], high[place]), abs=1e-12)
        assert metric.low < metric.value < metric.high
    for metric, place in ((ece, 0), (mce, 1)):  # both far from 0 here
        mirrored = 2 * metric.value - high[place], 2 * metric.value - low[place]
        assert metric.low == pytest.approx(min(mirrored[0], metric.value), abs=1e-12)
        assert metric.high == pytest.approx(max(mirrored[1], metric.value), abs=1e-12)
    assert accuracy == proportion("accuracy", round(80 * found.accuracy), 80)
    names = [metric.name for metric in found.metrics()]
    assert names == ["ece", "mce", "brier", "log_loss", "accuracy", "confidence"]
    same = calibration_report(logits, answers, bins=4, resamples=50, seed=2)
    assert found.metrics() == same.metrics()
    assert found.metrics() != calibration_report(logits, answers, bins=4, resamples=50).metrics()


def test_a_calibrated_model_is_not_called_wrong() -> None:
    """A plug-in error is never 0; the interval knows what chance alone would show."""
    begins = []
    for seed in range(40):
        ece, mce, *_ = calibration_report(*made(300, seed=seed), resamples=100).metrics()
        assert 0 <= ece.low <= ece.value <= ece.high <= 1
        assert 0 <= mce.low <= mce.value <= mce.high <= 1
        assert ece.value > 0.01
        begins.append(ece.low == 0)
    assert sum(begins) >= 35
    assert calibration_report(*made(300, 2.0), resamples=100).metrics()[0].low > 0.05


def test_always_sure_and_right() -> None:
    found = calibration_report(1000 * np.eye(6)[np.arange(30) % 6], np.arange(30) % 6, resamples=20)
    assert (found.ece, found.mce, found.brier, found.log_loss) == (0, 0, 0, 0)
    assert found.bins["n"].tolist() == [0] * 14 + [30]
    assert all(metric.low <= metric.value <= metric.high for metric in found.metrics())


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(factor: float) -> None:
    found = rescaled(*made(20_000, factor), resamples=1)
    assert found.temperature == pytest.approx(factor, rel=0.04)
    assert found.after.ece < 0.03


def test_the_temperature_has_the_least_log_loss() -> None:
    logits, answers = made(400, 1.7, seed=3)
    temperature = rescaled(logits, answers, resamples=1).temperature
    assert temperature is not None
    fit, _ = split_rows(400, 0.5, 42)

    def loss(t: float) -> float:
        return calibration_report(logits[fit] / t, answers[fit], resamples=1).log_loss

    assert loss(temperature) < min(loss(temperature * 1.01), loss(temperature / 1.01))


@pytest.mark.parametrize("method", METHODS)
def test_scaling_makes_an_overconfident_model_better(method: Method) -> None:
    logits, answers = made(2000, 3.0)
    found = rescaled(logits, answers, method=method, resamples=200)
    difference, loss = found.difference, found.log_loss_difference
    assert difference.value == found.after.ece - found.before.ece
    assert loss.value == found.after.log_loss - found.before.log_loss
    assert difference.low <= difference.value <= difference.high < -0.1
    assert loss.low < loss.value < loss.high < -0.1
    assert (difference.name, loss.name) == ("ece_difference", "log_loss_difference")
    assert found.method == method
    assert difference.n == loss.n == found.before.n == found.after.n == len(found.test) == 1000


@pytest.mark.parametrize("method", METHODS)
def test_scaling_is_judged_on_the_other_half(method: Method) -> None:
    logits, answers = made(301, 2.0)
    # 13 bins: an isotonic value may lie on the edge of one of 15, and its logarithm's beside it.
    how: dict[str, Any] = {"method": method, "calibration": 0.3, "split_seed": 7}
    found = rescaled(logits, answers, **how, bins=13, resamples=30)
    _, test = split_rows(301, 0.3, 7)
    assert found.test.tolist() == test.tolist()
    before = calibration_report(logits[test], answers[test], bins=13, resamples=30)
    assert found.before.metrics() == before.metrics()
    with np.errstate(divide="ignore"):
        logp = np.log(found.probabilities)
    after = calibration_report(logp, answers[test], bins=13, resamples=30)
    for ours, theirs in zip(found.after.metrics(), after.metrics(), strict=True):
        assert ours.value == pytest.approx(theirs.value, abs=1e-9)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    # What is in the test half does not touch the fit.
    other = answers.copy()
    other[test] = (other[test] + 1) % 6
    again = rescaled(logits, other, **how, resamples=1)
    assert (again.probabilities == found.probabilities).all()


def test_differences_are_paired() -> None:
    """The interval is that of differences within a resample, not of two independent errors."""
    logits, answers = made(600, 1.5)
    found = rescaled(logits, answers, resamples=100)
    p = found.probabilities
    losses, errors = [], []
    for row in np.concatenate(list(resampled(300, 100, 0))):
        at = np.repeat(np.arange(300), row)
        place = found.test[at]
        one = calibration_report(logits[place], answers[place], resamples=1)
        two = calibration_report(np.log(p[at]), answers[place], resamples=1)
        losses.append(two.log_loss - one.log_loss)
        errors.append(two.ece - one.ece)
    loss, ece = found.log_loss_difference, found.difference
    assert (loss.low, loss.high) == pytest.approx(np.quantile(losses, (0.025, 0.975)), abs=1e-9)
    low, high = np.quantile(errors, (0.025, 0.975))
    ends = low, high, 2 * ece.value - low, 2 * ece.value - high
    assert (ece.low, ece.high) == pytest.approx((min(ends), max(ends)), abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("turned", [False, True])
def test_the_top_letter_stays_on_top(method: Method, turned: bool) -> None:
    logits, answers = made(1000, 4.0)
    logits[::3, 4:] = -np.inf
    logits[::7, 1:] = -np.inf  # one letter alone
    logits[::5, 1] = logits[::5, 0] = 20  # two alike on top
    if turned:  # the top letter is never right: the most that a scaling can be asked for
        answers = np.argsort(logits, axis=1)[:, 1]
    found = rescaled(logits, answers, method=method, resamples=1)
    p = found.probabilities
    assert (p.argmax(axis=1) == logits[found.test].argmax(axis=1)).all()
    assert p.sum(axis=1) == pytest.approx(1)
    assert (p >= 0).all()
    assert found.after.accuracy == found.before.accuracy
    if method == "temperature":
        assert (p[np.isneginf(logits[found.test])] == 0).all()
    elif turned:
        assert p.max(axis=1) == pytest.approx(1 / 6, abs=1e-6)


def test_isotonic_by_hand() -> None:
    """Four levels of confidence; the middle two are in the wrong order and are pooled."""
    # Level, items, right ones: 0.1, then 10 of 20 for two together, then 0.9.
    levels = ((0.4, 10, 1), (0.5, 12, 8), (0.6, 8, 2), (0.8, 10, 9))
    rows, answers = [], []
    for level, items, right in levels:
        rest = 1 - level
        for k in range(items):
            rows.append([level, rest / 2, rest / 4, rest / 4, 0, 0])
            answers.append(0 if k < right else 1)
    fit, _ = split_rows(80, 0.5, 42)
    logits, truth = of(*[[0.7, 0.15, 0.075, 0.075, 0, 0]] * 80), np.zeros(80, int)
    logits[fit], truth[fit] = of(*rows), answers
    p = rescaled(logits, truth, method="isotonic", resamples=1).probabilities
    # 0.7 is half way between the knots 0.6 and 0.8; the rest keeps its proportion.
    assert p == pytest.approx(np.tile([0.7, 0.15, 0.075, 0.075, 0, 0], (40, 1)))
    _, test = split_rows(80, 0.5, 42)
    for level, wanted in ((0.55, 0.5), (0.45, 0.3), (0.99, 0.9)):
        logits[test] = of([level, (1 - level) / 2, (1 - level) / 2, 0, 0, 0])
        p = rescaled(logits, truth, method="isotonic", resamples=1).probabilities
        rest = min((1 - wanted) / 2, wanted)  # 0.3 would be beaten by 0.35
        assert p[:, 0] == pytest.approx(wanted)
        assert p[:, 1:3] == pytest.approx(rest, abs=1e-8)
        assert p[:, 3:] == pytest.approx((1 - wanted - 2 * rest) / 3, abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_wrong_or_nothing_right_to_fit_on(method: Method) -> None:
    logits, _ = made(100)
    for answers in (logits.argmax(axis=1), logits.argmin(axis=1)):
        found = rescaled(logits, answers, method=method, resamples=20)
        assert np.isfinite(found.probabilities).all()
        assert np.isfinite([found.after.ece, found.after.log_loss]).all()
        if method == "temperature":
            assert found.temperature is not None
            assert 1 / 50 <= found.temperature <= 50
            assert found.temperature < 0.2 or found.temperature > 49
        else:  # 50 of 50 are not yet all there are
            right = answers[0] == logits[0].argmax()
            wanted = 1 - 1 / 52 if right else 1 / 6
            assert found.probabilities.max(axis=1) == pytest.approx(wanted, abs=1e-6)


def test_missing_truths_are_left_out_of_the_fit(caplog: pytest.LogCaptureFixture) -> None:
    logits, answers = made(200, 2.0)
    fit, _ = split_rows(200, 0.5, 42)
    gone = fit[:8]
    logits[gone, answers[gone]] = -np.inf
    with caplog.at_level(logging.WARNING, "workbench"):
        found = rescaled(logits, answers, resamples=1)
    assert "8 of 100 truths are missing and left out" in caplog.text
    loss = [
        calibration_report(logits[fit[8:]] / t, answers[fit[8:]], resamples=1).log_loss
        for t in np.array([0.99, 1, 1.01]) * float(found.temperature or 0)
    ]
    assert loss[1] == min(loss)  # of the 92 that are left
    logits[fit, answers[fit]] = -np.inf
    with pytest.raises(InputError, match="all 100 truths to fit on are missing: ask for more"):
        rescaled(logits, answers, resamples=1)
    assert rescaled(logits, answers, method="isotonic", resamples=1).temperature is None


def test_a_report_is_no_thing_to_change() -> None:
    found = calibration_report(*made(20), resamples=1)
    assert isinstance(found, CalibrationReport)
    with pytest.raises(AttributeError):
        found.ece = 0.0  # type: ignore[misc]
    assert replace(found, ece=0.5).ece == 0.5
    assert found != replace(found)  # by identity: arrays have no single truth


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bins": 0}, "bins=0: must be a whole number from 1"),
        ({"bins": 1.5}, "bins=1.5"),
        ({"bins": True}, "bins=True"),
        ({"resamples": 0}, "resamples=0: must be a whole number from 1"),
        ({"seed": -1}, "seed=-1: must be a whole number from 0"),
        ({"answers": [0, 1]}, r"answers of shape \(2,\) for 30 rows"),
        ({"logits": np.zeros((30, 5))}, r"logits of shape \(30, 5\): give \[n, 6\]"),
        ({"logits": np.full((30, 6), np.nan)}, "row 0 has NaN"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], reason: str) -> None:
    logits, answers = made(30)
    given: dict[str, Any] = {"logits": logits, "answers": answers, **change}
    for measure in (calibration_report, rescaled):
        with pytest.raises(InputError, match=reason):
            measure(**given)


def test_bad_scalings_are_named() -> None:
    logits, answers = made(30)
    with pytest.raises(InputError, match=r"no method 'platt'\. Known: temperature, isotonic"):
        rescaled(logits, answers, method="platt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"calibration=1.0"):
        rescaled(logits, answers, calibration=1.0)
    with pytest.raises(InputError, match="logits are empty"):
        calibration_report(np.zeros((0, 6)), np.zeros(0, int))


def test_bins_of_equal_mass_have_as_many_items_and_keep_equals_together() -> None:
    logits, answers = made(203, factor=2.0)
    report = calibration_report(logits, answers, resamples=1)
    p = softmax(logits)
    sure, right = p.max(axis=1), p.argmax(axis=1) == answers
    bins = report.equal_mass(5)
    parts = np.array_split(np.argsort(sure), 5)
    assert (bins["n"].sum(), bins["n"].max() - bins["n"].min()) == (203, 1)
    for row, part in zip(bins.to_dict("records"), parts, strict=True):
        assert abs(row["n"] - len(part)) <= 1
        assert row["confidence"] == pytest.approx(sure[part].mean(), abs=0.01)
        assert row["accuracy"] == pytest.approx(right[part].mean(), abs=0.02)
        share = proportion("", round(row["accuracy"] * row["n"]), row["n"])
        assert (row["accuracy_low"], row["accuracy_high"]) == (share.low, share.high)
    alike = calibration_report(of(*[[0.5, 0.5, 0, 0, 0, 0]] * 30), np.arange(30) % 2, resamples=1)
    (only,) = alike.equal_mass().to_dict("records")
    assert (only["n"], only["confidence"], only["accuracy"]) == (30, 0.5, 0.5)
