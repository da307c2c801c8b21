"""Conformal sets: the published tables, textbook coverage, another library, and cases by hand."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.stats import proportion
from workbench.uncertainty.conformal import (
    ConformalReport,
    Sets,
    conformal_report,
    conformal_splits,
    split_summary,
)
from workbench.uncertainty.logits import _published_order, softmax, split_rows

FOLDER = Path(os.environ.get("WORKBENCH_DATA", "none")) / "uncertainty"
needs_data = pytest.mark.skipif(
    not all((FOLDER / name).is_file() for name in ("mmbench_logits.npz", "mmbench_published.csv")),
    reason="needs the logits of MMBench: WORKBENCH_DATA is not set or lacks uncertainty/mmbench_*",
)
RULES: tuple[Literal["ye2024", "exact"], ...] = ("ye2024", "exact")
SCORES: tuple[Literal["lac", "aps"], ...] = ("lac", "aps")
NONE = -np.inf
Row = tuple[list[float], str]


def published() -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int8]]:
    """Logits of each model by its name, and the answers."""
    with np.load(FOLDER / "mmbench_logits.npz") as data:
        logits = data["logits"].astype(np.float32)
        return dict(zip(map(str, data["models"]), logits, strict=True)), data["answer"]


def asked(report: ConformalReport, score: str) -> Sets:
    one: Sets = getattr(report, score)
    assert one.score == score
    return one


def summed(frame: pd.DataFrame) -> dict[tuple[str, str], dict[str, float]]:
    """The summary's rows by score and measure."""
    rows: list[dict[str, Any]] = split_summary(frame).to_dict("records")  # type: ignore[assignment]
    return {(row["score"], row["measure"]): row for row in rows}


def naive(logits: NDArray[Any], answers: NDArray[Any], report: ConformalReport) -> dict[str, Any]:
    """The sets of both scores by the plain definition, before the fallback."""
    exact = report.rule == "exact"
    p = softmax(logits.astype(np.float64 if exact else np.float32))
    down = np.empty_like(p)
    for row, masses in zip(p, down, strict=True):
        order = np.argsort(-row)
        masses[order] = row[order].cumsum()
    found = {}
    for name, scores in (("lac", 1 - p), ("aps", down)):
        if exact:
            scores = np.round(scores, 9)  # the sum of all six is 1  # noqa: PLW2901
        own = np.sort(scores[report.calibration, answers[report.calibration]])
        k = math.ceil((len(own) + 1) * (1 - report.alpha))
        highest = own[k - 1] if exact else np.quantile(own, k / len(own), method="higher")
        sets = p >= 1 - highest if name == "lac" and not exact else scores <= highest
        found[name] = sets[report.test]
    return found


def drawn(n: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits of a model that is right more often than not, and says so about well."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 6)) * 1.5
    p = softmax(logits)
    return logits, (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


def placed(calibration: list[Row], test: list[Row]) -> tuple[NDArray[np.float64], list[str]]:
    """Logits (from probabilities, 0 is missing) and answers that the default split parts so."""
    n = len(calibration) + len(test)
    logits, answers = np.empty((n, 6)), [""] * n
    fit, rest = split_rows(n, 0.5, 42)
    for place, (p, answer) in zip([*fit, *rest], calibration + test, strict=True):
        with np.errstate(divide="ignore"):
            logits[place], answers[place] = np.log(p), answer
    return logits, answers


# What others have computed.


@needs_data
def test_all_published_numbers_come_out() -> None:
    models, answers = published()
    table = pd.read_csv(FOLDER / "mmbench_published.csv", index_col="model")
    assert len(models) == len(table) == 26
    for name, logits in models.items():
        report = conformal_report(logits, answers)
        lac, aps = asked(report, "lac"), asked(report, "aps")
        ours = {
            "acc": report.acc, "coverage": report.coverage, "set_sizes": report.set_size,
            "uacc": report.uacc, "E_ratio": report.e_rate, "F_ratio": report.f_rate,
            "coverage_all_LAC": lac.coverage, "coverage_all_APS": aps.coverage,
            "set_sizes_LAC": lac.set_size, "set_sizes_APS": aps.set_size,
            "uacc_LAC": lac.uacc, "uacc_APS": aps.uacc,
        }  # fmt: skip
        assert ours == pytest.approx(table.loc[name, [*ours]].to_dict(), abs=1e-9, rel=0), name
        assert (len(report.calibration), len(report.test)) == (2188, 2189)


@needs_data
def test_exact_sets_hold_the_right_letter_as_often_as_asked_for_over_splits() -> None:
    models, answers = published()
    expected = 0.9  # over all splits of items without ties it is k / (n + 1) = 0.9004
    for name, logits in models.items():
        frame = conformal_splits(logits, answers, rule="exact")
        table = summed(frame)
        for score in SCORES:
            before = table[score, "covered_before"]
            assert before["mean"] == pytest.approx(expected, abs=3 * before["sem"]), (name, score)
            assert 0.0005 < before["sem"] < 0.0008, (name, score)
            assert table[score, "coverage"]["mean"] >= before["mean"]
        small = table["lac", "coverage"]
        assert small["mean"] == pytest.approx(expected, abs=3 * small["sem"]), name
        # An empty APS set is nearly always that of a sure and right answer.
        assert table["aps", "coverage"]["mean"] > 0.92, name


@needs_data
def test_exact_lac_sets_are_those_of_crepes() -> None:
    crepes = pytest.importorskip("crepes")
    models, answers = published()
    cells = wrong = 0
    for logits in models.values():
        report = conformal_report(logits, answers, score="lac", rule="exact")
        hinge = 1 - softmax(logits.astype(np.float64))
        fit, test = report.calibration, report.test
        other = crepes.ConformalClassifier().fit(alphas=hinge[fit, answers[fit]])
        sets = other.predict_set(hinge[test], confidence=0.9, smoothing=False).astype(bool)
        empty = ~sets.any(axis=1)
        sets[empty, report.predicted[empty]] = True
        assert empty.sum() == asked(report, "lac").empty
        wrong += int((sets != asked(report, "lac").sets).sum())
        cells += sets.size
    assert cells == 26 * 2189 * 6
    assert wrong <= cells / 100_000


def test_equally_likely_letters_come_in_the_published_order() -> None:
    # What `np.argsort(p)[::-1]` gives with AVX2 or AVX-512; a stable sort gives others.
    for p, letters in (
        ([1, 1, 1, 1, 1, 1], "FEDCBA"),
        ([1, 2, 3, 4, 5, 6], "FEDCBA"),
        ([2, 2, 1, 1, 3, 3], "FEABCD"),
        ([1, 3, 3, 1, 1, 1], "BCEFDA"),
        ([2, 3, 3, 1, 2, 2], "BCEFAD"),
        ([1, 2, 3, 3, 2, 1], "CDBEFA"),
    ):
        order = _published_order(np.array([p, p], np.float32))
        assert ["".join("ABCDEF"[place] for place in row) for row in order] == [letters] * 2


# By hand.

UNSURE = [0.5, 0.2, 0.15, 0.1, 0.04, 0.01]
SURE = [0.9, 0.06, 0.02, 0.01, 0.006, 0.004]


def top(p: float) -> list[float]:
    return [p, *[(1 - p) / 5] * 5]


def test_lac_by_hand() -> None:
    tops = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5]  # scores 0.05 ... 0.45, 0.5
    fit: list[Row] = [(top(p), "A") for p in tops]
    test: list[Row] = [(top(0.55), "A"), (top(0.5), "A"), (top(0.45), "B"), (UNSURE, "B")]
    test += [([0.1, 0.6, 0.1, 0.1, 0.05, 0.05], "B"), ([0.02, 0, 0, 0.02, 0.06, 0.9], "F")]
    test += [(top(0.3), "C"), (SURE[::-1], "A"), ([0.05, 0.05, 0.1, 0.1, 0.6, 0.1], "A")]
    test += [(top(0.99), "A")]
    logits, answers = placed(fit, test)
    # 10 scores, alpha 0.2: k = ceil(8.8) = 9; the exact threshold is 0.45, the published one 0.5.
    for rule, threshold, empty in (("exact", 0.45, 4), ("ye2024", 0.5, 2)):
        report = conformal_report(logits, answers, alpha=0.2, score="lac", rule=rule)  # type: ignore[arg-type]
        one = asked(report, "lac")
        assert one.threshold == pytest.approx(threshold, abs=1e-6)
        assert one.empty == empty
        # The top letter alone, by itself or by the fallback: "B" of the third is not there.
        assert one.sets.argmax(axis=1).tolist() == [0, 0, 0, 0, 1, 5, 0, 5, 4, 0]
        assert (one.set_size, one.coverage) == (1, 0.5)
        assert one.covered_before == (0.4 if rule == "exact" else 0.5)
        assert report.acc == 0.5
        assert one.uacc == report.uacc == pytest.approx(0.5 * 6**0.5)
        assert (report.e_rate, report.f_rate, report.missing) == (0.1, 0.2, 0)
        assert (report.aps, report.rule, report.alpha) == (None, rule, 0.2)
    # At 0.1 the 10th of 10 is the threshold of both.
    for rule in RULES:
        one = asked(conformal_report(logits, answers, rule=rule), "lac")
        assert one.threshold == pytest.approx(0.5, abs=1e-6)


def test_aps_by_hand() -> None:
    # Mass down to A, B, C, D: 0.5, 0.7, 0.85, 0.95.
    fit: list[Row] = [(UNSURE, letter) for letter in "AAAABBBCCD"]
    backwards, missing = UNSURE[::-1], [0, 0.45, 0.25, 0.3, 0, 0]
    test: list[Row] = [(UNSURE, "C"), (UNSURE, "D"), (UNSURE, "F"), (SURE, "A"), (SURE, "B")]
    test += [(backwards, "D"), (backwards, "C"), (backwards, "A"), (missing, "D"), (missing, "C")]
    logits, answers = placed(fit, test)
    for rule, threshold, size, before in (("exact", 0.85, 3, 3), ("ye2024", 0.95, 4, 6)):
        report = conformal_report(logits, answers, alpha=0.2, score="aps", rule=rule)  # type: ignore[arg-type]
        one = asked(report, "aps")
        assert one.threshold == pytest.approx(threshold, abs=1e-6)
        assert one.sets[:3].tolist() == [[place < size for place in range(6)]] * 3
        assert one.sets[5:8].tolist() == [[place >= 6 - size for place in range(6)]] * 3
        # 0.9 is above 0.85 and below 0.95; with the second letter it is 0.96.
        assert one.empty == (2 if rule == "exact" else 0)
        assert one.sets[3:5, 0].all()
        assert one.sets[8:].tolist() == [[False, True, False, True, False, False]] * 2
        assert one.covered_before == before / 10
        assert one.coverage == (before + (rule == "exact")) / 10


@pytest.mark.parametrize("rule", RULES)
def test_both_scores_are_told_by_their_mean(rule: Literal["ye2024", "exact"]) -> None:
    logits, answers = drawn(200)
    report = conformal_report(logits, answers, rule=rule)
    lac, aps = asked(report, "lac"), asked(report, "aps")
    for name in ("coverage", "set_size", "uacc"):
        assert getattr(report, name) == pytest.approx((getattr(lac, name) + getattr(aps, name)) / 2)
    for one in (lac, aps):
        alone = conformal_report(logits, answers, rule=rule, score=one.score)
        assert alone.scores == (asked(alone, one.score),)
        assert alone.coverage == one.coverage
        assert (asked(alone, one.score).sets == one.sets).all()
        assert one.uacc == pytest.approx(report.acc * 6**0.5 / one.set_size)
    truths = answers[report.test]
    assert report.answers.tolist() == truths.tolist()
    assert report.acc == (logits[report.test].argmax(axis=1) == truths).mean()
    with pytest.raises(AttributeError):
        report.acc = 1  # type: ignore[misc]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("alpha", [0.03, 0.1, 0.25, 0.5, 0.8, 0.99])
def test_the_sets_are_those_of_the_plain_definition(
    rule: Literal["ye2024", "exact"], alpha: float
) -> None:
    for seed in range(5):
        precise, answers = drawn(150, seed)
        logits = precise.astype(np.float32)
        report = conformal_report(logits, answers, alpha=alpha, rule=rule, split_seed=seed)
        for name, sets in naive(logits, answers, report).items():
            one, empty = asked(report, name), ~sets.any(axis=1)
            assert one.empty == empty.sum()
            before = sets[np.arange(len(sets)), report.answers].mean()
            assert one.covered_before == pytest.approx(before)
            sets[empty, report.predicted[empty]] = True
            assert (one.sets == sets).all()


def test_ranks_are_not_lost_to_rounding() -> None:
    # 100 * (1 - 0.45) is 55.00000000000001 in floats; the 55th of 99 is meant.
    logits, answers = drawn(198)
    report = conformal_report(logits, answers, alpha=0.45, rule="exact", score="lac")
    own = np.sort(1 - softmax(logits)[report.calibration, answers[report.calibration]])
    assert len(own) == 99
    assert asked(report, "lac").threshold == pytest.approx(own[54], abs=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_nine_of_ten_is_the_tenth_of_ten(rule: Literal["ye2024", "exact"]) -> None:
    logits, answers = drawn(30)
    few = {"calibration": 1 / 3, "rule": rule}
    # 10 scores: k = ceil(11 * 0.9) = 10 is the largest; at 0.09 it is 11, and there are no more.
    report = conformal_report(logits, answers, alpha=0.1, **few)  # type: ignore[arg-type]
    own = 1 - softmax(logits)[report.calibration, answers[report.calibration]]
    assert asked(report, "lac").threshold == pytest.approx(own.max())
    full = conformal_report(logits, answers, alpha=0.09, **few)  # type: ignore[arg-type]
    for one in full.scores:
        assert one.threshold == math.inf
        assert one.sets.all()
        assert (one.coverage, one.covered_before, one.set_size, one.empty) == (1, 1, 6, 0)
        assert one.uacc == pytest.approx(full.acc * 6**0.5 / 6)


def test_a_sure_model_has_exact_sets_although_its_masses_round_to_one() -> None:
    rng = np.random.default_rng(0)
    logits = np.sort(rng.normal(size=(400, 6)), axis=1)[:, ::-1] * 60  # next letters at e-50
    answers = np.where(rng.random(400) < 0.6, 0, 1 + rng.integers(0, 2, 400))
    masses = np.cumsum(softmax(logits), axis=1)
    assert (masses[np.arange(400), answers] == 1).mean() > 0.5
    frame = conformal_splits(logits, answers, alpha=0.2, rule="exact")
    table = summed(frame)
    for score in SCORES:
        before = table[score, "covered_before"]
        assert before["mean"] == pytest.approx(math.ceil(201 * 0.8) / 201, abs=3 * before["sem"])
    plain = summed(conformal_splits(logits, answers, alpha=0.2, rule="ye2024"))
    assert plain["aps", "covered_before"]["mean"] > 0.9


# Letters that a server did not report.


@pytest.mark.parametrize("rule", RULES)
def test_a_missing_letter_is_in_no_set(rule: Literal["ye2024", "exact"]) -> None:
    # The right letter is the last one reported, so sets hold all that are reported.
    two = [0.75, 0.25, 0, 0, 0, 0]
    fit: list[Row] = [(two, "B")] * 9 + [(two, "A")]
    test: list[Row] = [(two, "A"), (two, "B"), ([0, 0, 0, 0.25, 0.75, 0], "E")] * 3
    test += [(two, "C")]
    report = conformal_report(*placed(fit, test), rule=rule)
    for one in report.scores:
        assert one.sets[[0, 1, 9]].tolist() == [[True, True, False, False, False, False]] * 3
        assert one.sets[2].tolist() == [False, False, False, True, True, False]
        assert (one.set_size, one.coverage, one.empty) == (2, 0.9, 0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("score", SCORES)
def test_a_told_letter_of_no_mass_is_told(
    rule: Literal["ye2024", "exact"], score: Literal["lac", "aps"]
) -> None:
    # e-200 is 0 in float32. All truths but one are such, so the threshold is at or next to 1.
    logits = np.tile([0.0, -200, NONE, NONE, -1, NONE], (40, 1))
    answers = np.array([0, *[1] * 39])
    report = conformal_report(logits, answers, rule=rule, score=score)
    one = asked(report, score)
    assert one.threshold == 1
    assert (one.sets == [True, True, False, False, True, False]).all()
    assert report.missing == 0


@pytest.mark.parametrize("rule", RULES)
def test_missing_truths_score_infinity(
    rule: Literal["ye2024", "exact"], caplog: pytest.LogCaptureFixture
) -> None:
    logits, answers = drawn(80)
    fit, test = split_rows(80, 0.5, 42)
    whole = conformal_report(logits, answers, rule=rule, alpha=0.2)
    assert not caplog.records
    for hidden, endless in ((3, False), (4, False), (9, True)):
        caplog.clear()
        some = logits.copy()
        some[fit[:hidden], answers[fit[:hidden]]] = NONE
        report = conformal_report(some, answers, rule=rule, alpha=0.2)
        assert report.missing == hidden / 40
        # k = ceil(41 * 0.8) = 33 of 40, one more in the published rule: seven or eight may be inf.
        for one in report.scores:
            assert (one.threshold == math.inf) is endless
            assert one.sets.all() == endless
            assert endless or one.threshold >= asked(whole, one.score).threshold - 0.2
        assert [record.name for record in caplog.records] == ["workbench"] * (hidden > 4)
        if hidden > 4:
            assert caplog.messages[0].startswith(
                "conformal: the right letter is missing in 22.5 % of rows (alpha is 20 %)"
            )
    # Missing in test rows only: thresholds stay, and those rows are missed.
    some = logits.copy()
    some[test[:5], answers[test[:5]]] = NONE
    report = conformal_report(some, answers, rule=rule, alpha=0.2)
    for one in report.scores:
        assert one.threshold == asked(whole, one.score).threshold
        assert not one.sets[np.arange(5), report.answers[:5]].any()
    assert report.missing == 0


def test_splits_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    logits, answers = drawn(100)
    logits[:10, :] = np.where(np.arange(6) == answers[:10, None], NONE, logits[:10, :])
    conformal_splits(logits, answers, splits=5)
    assert len(caplog.records) == 1
    conformal_splits(logits, answers, splits=5, alpha=0.2)
    assert len(caplog.records) == 1


# What must not matter.


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_calibration_rows_and_of_letters_does_not_matter(
    rule: Literal["ye2024", "exact"],
) -> None:
    logits, answers = drawn(200)
    if rule == "exact":
        logits[:, 1] = logits[:, 0]  # equally likely letters are treated alike
    report = conformal_report(logits, answers, rule=rule)
    rng = np.random.default_rng(1)
    rows = np.arange(200)
    rows[report.calibration] = rng.permutation(report.calibration)
    shuffled = conformal_report(logits[rows], answers[rows], rule=rule)
    letters = rng.permutation(6)
    others = conformal_report(logits[:, letters], np.argsort(letters)[answers], rule=rule)
    for one in report.scores:
        name = one.score
        assert asked(shuffled, name).threshold == one.threshold
        assert (asked(shuffled, name).sets == one.sets).all()
        assert asked(others, name).threshold == pytest.approx(one.threshold, abs=1e-6)
        if rule == "ye2024" or not one.empty:  # a fallback takes the first of equals
            assert (asked(others, name).sets == one.sets[:, letters]).all()
        assert asked(others, name).covered_before == one.covered_before


@pytest.mark.parametrize("rule", RULES)
def test_precision_and_level_of_the_logits_do_not_matter(
    rule: Literal["ye2024", "exact"],
) -> None:
    logits, answers = drawn(200)
    half = logits.astype(np.float16)
    report = conformal_report(half, answers, rule=rule)
    for same in (half.astype(np.float32), half.astype(float), half.astype(float) + 1e9):
        other = conformal_report(same, answers.astype(np.int8), rule=rule)
        for one in report.scores:
            assert asked(other, one.score).threshold == pytest.approx(one.threshold, abs=1e-6)
            assert (asked(other, one.score).sets == one.sets).all()
    kept = logits.copy()
    letters = [*"ABCDEF"]
    conformal_report(logits, [letters[place] for place in answers], rule=rule)
    assert (logits == kept).all()


def test_dropped_rows_are_nowhere() -> None:
    logits, answers = drawn(205)
    drop = (1, 3, 5, 7, 204)
    report = conformal_report(logits, answers, drop=drop)
    kept = np.delete(np.arange(205), drop)
    without = conformal_report(logits[kept], answers[kept])
    assert (report.uacc, report.coverage) == (without.uacc, without.coverage)
    assert report.test.tolist() == kept[without.test].tolist()
    assert report.calibration.tolist() == kept[without.calibration].tolist()
    assert report.test.dtype == report.calibration.dtype == np.int64
    assert {*report.test, *report.calibration} == {*kept}
    assert (report.rows, without.rows) == (205, 200)
    again = conformal_report(logits, answers, drop=np.array(drop, np.uint8))  # type: ignore[arg-type]
    assert again.uacc == report.uacc
    third = conformal_report(logits, answers, calibration=0.25, split_seed=7)
    assert (len(third.calibration), len(third.test)) == (51, 154)
    assert third.test.tolist() == split_rows(205, 0.25, 7)[1].tolist()


# Intervals and groups.


def test_metrics_are_the_numbers_with_intervals_around_them() -> None:
    logits, answers = drawn(2000)
    report = conformal_report(logits, answers)
    lac, aps = asked(report, "lac"), asked(report, "aps")
    metrics = {metric.name: metric for metric in report.metrics()}
    assert {name: metric.value for name, metric in metrics.items()} == pytest.approx({
        "accuracy": report.acc,
        "coverage": report.coverage, "set size": report.set_size, "UAcc": report.uacc,
        "coverage LAC": lac.coverage, "set size LAC": lac.set_size, "UAcc LAC": lac.uacc,
        "coverage APS": aps.coverage, "set size APS": aps.set_size, "UAcc APS": aps.uacc,
        "E rate": report.e_rate, "F rate": report.f_rate,
    })  # fmt: skip
    assert all(one.low < one.value < one.high and one.n == 1000 for one in metrics.values())
    assert metrics["coverage LAC"] == proportion("coverage LAC", round(lac.coverage * 1000), 1000)
    names = [one.name for one in conformal_report(logits, answers, score="aps").metrics()]
    assert names == ["accuracy", "coverage APS", "set size APS", "UAcc APS", "E rate", "F rate"]


def test_the_interval_of_uacc_is_that_of_the_bootstrap() -> None:
    logits, answers = drawn(3000)
    report = conformal_report(logits, answers)
    right = report.predicted == report.answers
    sizes = np.stack([one.sets.sum(axis=1) for one in report.scores])
    rng = np.random.default_rng(0)
    times = [rng.integers(0, 1500, 1500) for _ in range(4000)]
    again = np.array([right[t].mean() * 6**0.5 / sizes[:, t].mean(axis=1) for t in times])
    metrics = {metric.name: metric for metric in report.metrics()}
    for name, values in (
        ("UAcc LAC", again[:, 0]), ("UAcc APS", again[:, 1]), ("UAcc", again.mean(axis=1)),
    ):  # fmt: skip
        metric = metrics[name]
        assert (metric.high - metric.low) / 2 / 1.96 == pytest.approx(values.std(), rel=0.05)


def test_a_perfect_model_is_not_known_to_be_perfect() -> None:
    answers = np.arange(40) % 6
    report = conformal_report(np.eye(6)[answers] * 30, answers, rule="exact")
    metrics = {metric.name: metric for metric in report.metrics()}
    for name in ("UAcc", "UAcc LAC", "UAcc APS"):
        found = metrics[name]
        assert found.value == found.high == pytest.approx(6**0.5)
        assert 1 < found.low < 2
    assert metrics["coverage"].low < 0.9
    # Never right: 0, and at most what Wilson's interval allows.
    wrong = conformal_report(np.eye(6)[(answers + 1) % 6] * 30, answers, rule="exact")
    found = {metric.name: metric for metric in wrong.metrics()}["UAcc"]
    assert found.value == found.low == 0 < found.high < 1
    # A single test row.
    one = conformal_report(*drawn(12), calibration=11.5 / 12)
    assert all(metric.low <= metric.value <= metric.high for metric in one.metrics())


def test_coverage_by_group() -> None:
    logits, answers = drawn(405)
    report = conformal_report(logits, answers, drop=range(5))
    groups = np.array(["hard", "easy"])[(logits.max(axis=1) > 2).astype(int)]
    table = report.coverage_by(groups)
    assert [*table.columns] == ["group", "score", "n", "coverage", "low", "high", "set_size"]
    assert [*zip(table["group"], table["score"], strict=True)] == [
        ("easy", "lac"), ("easy", "aps"), ("hard", "lac"), ("hard", "aps"),
    ]  # fmt: skip
    for row in table.to_dict("records"):
        mine = groups[report.test] == row["group"]
        sets, truths = asked(report, row["score"]).sets[mine], report.answers[mine]
        share = proportion("", int(sets[np.arange(len(sets)), truths].sum()), int(mine.sum()))
        assert (row["n"], row["coverage"]) == (share.n, share.value)
        assert (row["low"], row["high"]) == (share.low, share.high)
        assert row["set_size"] == sets.sum(axis=1).mean()
    sizes = table.pivot_table("set_size", "group", "score")
    assert (sizes.loc["easy"] < sizes.loc["hard"]).all()
    assert report.coverage_by(pd.Series(groups, index=range(405, 810))).equals(table)
    unnamed: Any = [None if one == "hard" else 1 for one in groups]
    assert report.coverage_by(unnamed)["n"].sum() == 400
    assert report.coverage_by([*groups]).equals(table)
    mixed: list[Any] = [1 if one == "hard" else "x" for one in groups]
    assert len(report.coverage_by(mixed)) == 4


# Splits.


def test_splits_are_reports_on_other_halves() -> None:
    logits, answers = drawn(100)
    frame = conformal_splits(logits, answers, splits=6, seed=3, rule="ye2024", alpha=0.2)
    assert [*frame.columns] == [
        "split", "score", "coverage", "covered_before", "set_size", "uacc", "acc",
    ]  # fmt: skip
    assert frame["split"].tolist() == [seed for seed in range(3, 9) for _ in SCORES]
    for row in frame.to_dict("records"):
        report = conformal_report(logits, answers, alpha=0.2, split_seed=row["split"])
        one = asked(report, row["score"])
        assert row["acc"] == report.acc
        for name in ("coverage", "covered_before", "set_size", "uacc"):
            assert row[name] == getattr(one, name)
    more = conformal_splits(logits, answers, splits=9, seed=3, rule="ye2024", alpha=0.2)
    assert more[:12].equals(frame)
    other = conformal_splits(logits, answers, splits=6, seed=4, rule="ye2024", alpha=0.2)
    assert not other.equals(frame)
    alone = conformal_splits(logits, answers, splits=6, seed=3, score="aps", calibration=0.3)
    assert {*alone["score"]} == {"aps"}


def test_the_summary_of_splits() -> None:
    frame = conformal_splits(*drawn(100), splits=50)
    table = split_summary(frame)
    assert [*table.columns] == [
        "score", "measure", "splits", "mean", "sd", "low", "high", "sem",
    ]  # fmt: skip
    assert len(table) == 8
    for row in table.to_dict("records"):
        values = frame.loc[frame["score"] == row["score"], row["measure"]].to_numpy()
        error = values.std(ddof=1) / 50**0.5
        assert (row["splits"], row["mean"]) == (50, pytest.approx(values.mean()))
        assert (row["sd"], row["sem"]) == pytest.approx((values.std(ddof=1), error))
        ends = np.quantile(values, (0.025, 0.975))  # of single splits, not of their mean
        assert (row["low"], row["high"]) == pytest.approx(tuple(ends))
    single = split_summary(conformal_splits(*drawn(100), splits=1))
    assert single["sd"].isna().all()


# What cannot be meant.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0}, r"alpha=0: must be a number between 0 and 1, such as 0\.1"),
        ({"alpha": 1}, r"alpha=1: must be a number"),
        ({"alpha": 1.0}, r"alpha=1\.0: must be a number"),
        ({"alpha": -0.1}, r"alpha=-0\.1: must be a number"),
        ({"alpha": 2.5}, r"alpha=2\.5: must be a number"),
        ({"alpha": 2}, r"alpha=2: must be a number"),
        ({"alpha": True}, r"alpha=True: must be a number"),
        ({"alpha": math.nan}, r"alpha=nan: must be a number"),
        ({"alpha": "0.1"}, r"alpha='0\.1': must be a number"),
        ({"alpha": None}, r"alpha=None: must be a number"),
        ({"score": "raps"}, r"no score 'raps'.*Known: both, lac, aps"),
        ({"score": "LAC"}, r"no score 'LAC', did you mean 'lac'"),
        ({"rule": "textbook"}, r"no rule 'textbook'. Known: ye2024, exact"),
        ({"calibration": 1.5}, r"calibration=1\.5: must be a number above 0, at most 1"),
        ({"calibration": 0.1}, r"5 items of 50 to calibrate on .* at least 10"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    for run in (conformal_report, conformal_splits):
        with pytest.raises(InputError, match=message):
            run(*drawn(50), **settings)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ([50], r"drop: there is no row 50; give places from 0 to 49"),
        ([3, -1], r"drop: there is no row -1; give places from 0 to 49"),
        ([3, 4, 3], r"drop: row 3 is named twice; name each row once"),
        ([0.5], r"drop=\[0\.5\]: give places of rows, whole numbers from 0"),
        (["A"], r"drop=\['A'\]: give places of rows"),
        ([True] * 50, r"drop=\[True.*: give places of rows"),
        ([[1], [2]], r"drop=\[\[1\], \[2\]\]: give places of rows"),
        (3, r"drop=3: give places of rows"),
        (range(31), r"9 items of 19 to calibrate on"),
    ],
)
def test_bad_rows_to_drop(drop: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        conformal_report(*drawn(50), drop=drop)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([math.nan, 0, 0, 0, 0, 0], "row 7 has NaN"),
        ([math.inf, 0, 0, 0, 0, 0], r"row 7 has \+inf"),
        ([NONE] * 6, "row 7 has no letter at all"),
    ],
)
def test_bad_logits(row: list[float], message: str) -> None:
    logits, answers = drawn(50)
    logits[7] = row
    for run in (conformal_report, conformal_splits):
        with pytest.raises(InputError, match=message):
            run(logits, answers)


def test_bad_shapes_and_answers() -> None:
    logits, answers = drawn(50)
    more = np.hstack([logits, logits[:, :1]])
    text = np.array(["A", "G"] * 25)
    for bad, given, message in (
        (logits[:, :5], answers, r"logits of shape \(50, 5\): give \[n, 6\]"),
        (more, answers, r"logits of shape \(50, 7\): give \[n, 6\]"),
        (logits, answers[:49], r"answers of shape \(49,\) for 50 rows"),
        (logits, answers + 1, r"answers: row \d+ has .*6.*, not one of A to F"),
        (logits, answers - 1, r"answers: row \d+ has .*-1.*, not one of A to F"),
        (logits, text, r"answers: row 1 has .*G.*, not one of A to F"),
        (logits, np.full(50, 2), r"all 50 answers are C: .* shuffle the options"),
        (logits[:19], answers[:19], r"9 items of 19 to calibrate on .* at least 10"),
    ):
        for run in (conformal_report, conformal_splits):
            with pytest.raises(InputError, match=message):
                run(bad, given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": 0}, r"splits=0: must be a whole number from 1"),
        ({"splits": 2.0}, r"splits=2\.0: must be a whole number from 1"),
        ({"splits": True}, r"splits=True: must be a whole number from 1"),
        ({"seed": -1}, r"seed=-1: must be a whole number from 0"),
        ({"seed": None}, r"seed=None: must be a whole number from 0"),
    ],
)
def test_bad_splits(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        conformal_splits(*drawn(50), **settings)


@pytest.mark.parametrize("groups", [["a"] * 25, ["a"] * 51, "a", 3, [["a", "b"]] * 50, []])
def test_groups_that_are_not_one_a_row(groups: Any) -> None:
    report = conformal_report(*drawn(50))
    with pytest.raises(InputError, match=r"groups of shape .* for 50 rows of logits: give one"):
        report.coverage_by(groups)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("score", SCORES)
def test_a_letter_too_unlikely_for_a_float_is_missing(
    rule: Literal["ye2024", "exact"], score: Literal["lac", "aps"]
) -> None:
    logits = np.tile([0.0, -1.0, -1e4, -1e4, -1e4, -1e4], (40, 1))
    answers = np.array([0, 1] * 20)
    one = asked(conformal_report(logits, answers, rule=rule, score=score), score)
    assert not one.sets[:, 2:].any()


def test_sets_that_are_all_empty_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Calibrated where the model is sure, and measured where it is not."""
    answers = np.arange(40) % 6
    fit, _ = split_rows(40, 0.5, 42)
    logits = np.eye(6)[answers] * 0.1
    logits[fit] *= 100
    report = conformal_report(logits, answers, score="lac")
    assert asked(report, "lac").empty == 20
    assert "LAC leaves all 20 sets empty" in caplog.text
