"""Signals of sureness, against values by hand, all pairs, all orders and literal resamples."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.errors import InputError
from workbench.uncertainty.selective_prediction import (
    aurc,
    auroc,
    from_options,
    resampled,
    risk_coverage,
    selective_report,
)


def by_signal(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {str(k): v for k, v in row.items()} for row in table.to_dict("records")
    ]
    return {row["signal"]: row for row in rows}


def test_a_curve_by_hand() -> None:
    found = risk_coverage([0.2, 0.9, 0.5, 0.5], [0, 1, 1, 0])
    assert found["threshold"].tolist() == [0.9, 0.5, 0.2]
    assert found["coverage"].tolist() == [0.25, 0.75, 1.0]
    assert found["risk"].tolist() == pytest.approx([0, 1 / 3, 1 / 2])


def test_the_order_of_rows_is_nothing() -> None:
    rng = np.random.default_rng(0)
    signal, right = rng.integers(0, 4, 40), rng.random(40) < 0.6
    order = rng.permutation(40)
    assert auroc(signal, right) == auroc(signal[order], right[order])
    assert aurc(signal, right) == aurc(signal[order], right[order])
    assert risk_coverage(signal, right).equals(risk_coverage(signal[order], right[order]))


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_is_the_share_of_pairs(levels: int) -> None:
    rng = np.random.default_rng(levels)
    signal, right = rng.integers(0, levels, 50), rng.random(50) < 0.7
    pairs = [
        float(a > b) + 0.5 * float(a == b) for a in signal[right] for b in signal[~right]
    ]  # fmt: skip
    assert auroc(signal, right) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auroc_at_its_ends() -> None:
    assert auroc([3, 2, 1], [1, 1, 0]) == 1
    assert auroc([1, 2, 3], [1, 1, 0]) == 0
    assert auroc([1, 1, 1], [1, 1, 0]) == 0.5
    assert auroc([np.inf, 0.0, -np.inf], [True, True, False]) == 1
    assert np.isnan(auroc([1, 2, 3], [1, 1, 1]))
    assert np.isnan(auroc([1, 2, 3], [0, 0, 0]))


def in_turn(wrong: Any) -> float:
    """Mean over k of the share of wrong answers among the first k."""
    return float(np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1)))


def test_aurc_is_the_mean_over_all_orders_of_equals() -> None:
    signal = np.array([2, 1, 1, 1, 0, 0, 3])
    right = np.array([0, 1, 0, 1, 1, 0, 1])
    areas = []
    for order in permutations(range(7)):
        chosen = list(order)
        if (np.diff(signal[chosen]) <= 0).all():
            areas.append(in_turn(1 - right[chosen]))
    assert len(areas) == 12  # 3! orders of the ones, 2! of the noughts
    assert aurc(signal, right) == pytest.approx(np.mean(areas), abs=1e-12)


def test_aurc_by_hand() -> None:
    assert aurc([3, 2, 1], [1, 0, 1]) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert aurc([0, 0, 0, 0], [1, 0, 1, 1]) == pytest.approx(1 / 4)
    assert aurc([1, 2], [1, 1]) == 0
    assert aurc([1, 2], [0, 0]) == 1


def test_resamples_are_counts_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.concatenate(list(resampled(30, 500, seed=3)))
    assert weights.shape == (500, 30)
    assert (weights.sum(axis=1) == 30).all()
    assert weights.var() == pytest.approx(1 - 1 / 30, abs=0.05)  # binomial of 30 and 1/30
    again = np.concatenate(list(resampled(30, 500, seed=3)))
    assert (weights == again).all()
    assert (weights != np.concatenate(list(resampled(30, 500, seed=4)))).any()
    monkeypatch.setattr("workbench.uncertainty.selective_prediction.CELLS", 70)
    parts = list(resampled(30, 5, seed=3))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert all((part.sum(axis=1) == 30).all() for part in parts)


def test_intervals_are_those_of_literal_resamples() -> None:
    rng = np.random.default_rng(5)
    n, resamples = 25, 60
    right = np.append([True, False], rng.random(n - 2) < 0.6)
    lengths = rng.integers(1, 9, n)
    signals = {"coarse": rng.integers(0, 3, n), "fine": rng.random(n) + right}
    table = selective_report(signals, right, lengths=lengths, resamples=resamples, seed=7)
    rows = by_signal(table)
    drawn = [np.repeat(np.arange(n), row) for part in resampled(n, resamples, 7) for row in part]
    for name, values in {**signals, "length": -lengths}.items():
        row = rows[name]
        rocs = np.array([auroc(values[at], right[at]) for at in drawn])
        areas = [aurc(values[at], right[at]) for at in drawn]
        apart = rocs - [auroc(-lengths[at], right[at]) for at in drawn]
        for column, value, all_drawn in (
            ("auroc", auroc(values, right), rocs),
            ("aurc", aurc(values, right), areas),
            ("above_length", auroc(values, right) - auroc(-lengths, right), apart),
        ):
            assert row[column] == pytest.approx(value, abs=1e-12)
            ends = row[f"{column}_low"], row[f"{column}_high"]
            assert ends == pytest.approx(np.quantile(all_drawn, (0.025, 0.975)), abs=1e-12)


def above(table: pd.DataFrame, against: str) -> tuple[float, ...]:
    """The first signal's AUROC minus that of `against`, and the ends of its interval."""
    return tuple(float(table[f"above_{against}{end}"][0]) for end in ("", "_low", "_high"))


def test_a_difference_to_any_signal_is_that_of_literal_resamples() -> None:
    rng = np.random.default_rng(11)
    right = np.append([True, False], rng.random(38) < 0.7)
    one, other = rng.integers(0, 5, 40) + right, rng.random(40) + 0.5 * right
    both = {"one": one, "the other": other}
    table = selective_report(
        both, right, lengths=one, against="the other", resamples=80, seed=3
    )  # fmt: skip
    value, *ends = above(table, "the other")
    assert value == pytest.approx(auroc(one, right) - auroc(other, right), abs=1e-12)
    drawn = [np.repeat(np.arange(40), row) for part in resampled(40, 80, 3) for row in part]
    apart = [auroc(one[at], right[at]) - auroc(other[at], right[at]) for at in drawn]
    assert ends == pytest.approx(np.quantile(apart, (0.025, 0.975)), abs=1e-12)
    assert table["above_the other"].tolist()[1] == 0


def test_a_difference_is_as_wide_as_delong_says() -> None:
    """DeLong, DeLong and Clarke-Pearson (1988), from the placements of right and wrong answers."""
    rng = np.random.default_rng(12)
    right = rng.random(600) < 0.7
    shared = rng.normal(size=600)
    one, other = (shared + rng.normal(size=600) + lift * right for lift in (1.5, 1.0))
    kernels = [s[right][:, None] > s[~right][None, :] for s in (one, other)]  # no two are equal
    of_right, of_wrong = (np.cov([k.mean(axis=axis) for k in kernels]) for axis in (1, 0))
    spread = of_right / right.sum() + of_wrong / (~right).sum()
    error = float(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1]) ** 0.5
    table = selective_report(
        {"one": one, "other": other}, right, lengths=one, against="other", resamples=4000
    )
    value, low, high = above(table, "other")
    assert value == pytest.approx(kernels[0].mean() - kernels[1].mean(), abs=1e-12)
    assert high - low == pytest.approx(2 * 1.959964 * error, rel=0.06)


def test_a_report_stands_beside_its_baselines() -> None:
    rng = np.random.default_rng(1)
    n = 2000
    right = rng.random(n) < 0.6
    signals = {"good": rng.normal(size=n) + 1.5 * right, "nothing": rng.random(n)}
    lengths = rng.poisson(20, n) - 2 * right  # the right ones are a little shorter
    table = selective_report(signals, right, lengths=lengths, resamples=200)
    assert table["signal"].tolist() == ["good", "nothing", "random", "length"]
    assert (table["n"] == n).all()
    by = by_signal(table)
    for name in ("nothing", "random"):
        assert by[name]["auroc_low"] < 0.5 < by[name]["auroc_high"]
        assert by[name]["aurc_low"] < 1 - right.mean() < by[name]["aurc_high"]
    assert by["length"]["auroc_low"] > 0.5
    assert by["good"]["above_length_low"] > 0
    assert by["nothing"]["above_length_high"] < 0
    columns = ("above_length", "above_length_low", "above_length_high")
    assert [by["length"][column] for column in columns] == [0, 0, 0]
    assert by["good"]["accuracy_50"] > by["good"]["accuracy_80"] > right.mean()
    again = selective_report(signals, right, lengths=lengths, resamples=200)
    assert table.equals(again)
    other = selective_report(signals, right, lengths=lengths, resamples=200, seed=1)
    assert other["auroc"].tolist()[2] != table["auroc"].tolist()[2]


def test_accuracy_of_the_surest() -> None:
    # The 3 surest of 5 are half of them at least; 4 are four fifths.
    signals = {"clear": [5, 4, 3, 2, 1], "tied": [1, 1, 1, 1, 0]}
    table = selective_report(signals, [1, 1, 0, 0, 1], lengths=[1] * 5, resamples=5)
    accuracies = {
        name: [row["accuracy_50"], row["accuracy_80"]] for name, row in by_signal(table).items()
    }
    assert accuracies["clear"] == pytest.approx([2 / 3, 0.5])
    assert accuracies["tied"] == pytest.approx([0.5, 0.5])
    assert accuracies["length"] == pytest.approx([0.6, 0.6])


def test_nothing_wrong_has_no_auroc() -> None:
    table = selective_report({"a": [1, 2, 3]}, [1, 1, 1], lengths=[1, 2, 3], resamples=10)
    roc = ["auroc", "auroc_low", "auroc_high", "above_length", "above_length_low"]
    assert table[roc].isna().all(axis=None)
    assert (table[["aurc", "aurc_low", "aurc_high"]] == 0).all(axis=None)
    # Resamples of one wrong answer in three often have none: they are left out.
    table = selective_report({"a": [1, 2, 3]}, [0, 1, 1], lengths=[1, 2, 3], resamples=50)
    assert table[roc].notna().all(axis=None)


def test_signals_of_options() -> None:
    p = np.array([[0.5, 0.3, 0.2, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1 / 6] * 6])
    with np.errstate(divide="ignore"):
        found = from_options(np.log(p))
    assert found["confidence"] == pytest.approx([0.5, 1, 1 / 6])
    assert found["margin"] == pytest.approx([0.2, 1, 0])
    first = 0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)
    assert found["entropy"] == pytest.approx([first, 0, -np.log(6)])
    row = np.random.default_rng(0).normal(size=6)
    turned = from_options([np.roll(row, k) for k in range(6)])
    assert all(len(set(values.tolist())) == 1 for values in turned.values())  # truly ties
    assert from_options([[0.0] * 6])["margin"] == [0]


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (np.zeros((2, 4)), r"shape \(2, 4\)"),
        (0.5, r"shape \(\)"),
        ([[np.nan] * 6], "row 0 has NaN"),
    ],
)
def test_signals_need_options(logits: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        from_options(logits)


@pytest.mark.parametrize(
    ("signal", "right", "reason"),
    [
        ([1, 2, 3], [1, 0], r"confidence of shape \(3,\) for 2 items: give one"),
        ([[1, 2]], [1, 0], r"confidence of shape \(1, 2\)"),
        ([1, np.nan], [1, 0], "confidence: item 1 is NaN; leave"),
        (["a", "b"], [1, 0], "confidence of type <U1: give numbers"),
        ([], [], r"right of shape \(0,\): give"),
        ([1], [1], r"right of shape \(1,\): .* 2 or more"),
        ([1, 2], [1, 2], r"right: item 1 is .*2.*; give right \(1\) or wrong"),
        ([1, 2], [0.5, 1], "right: item 0 is .*0.5"),
        ([1, 2], [np.nan, 1], "right: item 0 is .*nan"),
        ([1, 2], [None, True], "right: item 0 is None"),
        ([1, 2], ["yes", "no"], "right: item 0 is .*yes"),
    ],
)
def test_bad_signals_are_named(signal: Any, right: Any, reason: str) -> None:
    for measure in (auroc, aurc, risk_coverage):
        with pytest.raises(InputError, match=reason):
            measure(signal, right)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"signals": {}}, r"signals=\{\}: give at least one"),
        ({"signals": {"random": [1, 2]}}, "'random' is the name of a baseline; give it another"),
        ({"signals": {"length": [1, 2]}}, "'length' is the name of a baseline"),
        ({"signals": {"mine": [1, 2, 3]}}, r"mine of shape \(3,\) for 2 items"),
        ({"signals": {"mine": [1, np.nan]}}, "mine: item 1 is NaN"),
        ({"lengths": [1]}, r"lengths of shape \(1,\) for 2 items"),
        ({"lengths": [1, np.nan]}, "lengths: item 1 is NaN"),
        ({"right": []}, r"right of shape \(0,\)"),
        ({"against": "mime"}, "no signal 'mime', did you mean 'mine'"),
        ({"resamples": 0}, "resamples=0: must be a whole number from 1"),
        ({"resamples": 1.5}, "resamples=1.5"),
        ({"seed": -1}, "seed=-1: must be a whole number from 0"),
    ],
)
def test_bad_reports_are_named(change: dict[str, Any], reason: str) -> None:
    given = {"signals": {"mine": [1, 2]}, "right": [1, 0], "lengths": [3, 4], **change}
    with pytest.raises(InputError, match=reason):
        selective_report(**given)
