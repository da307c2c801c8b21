"""Calibration: is a model that says 80 % right in 80 of 100 cases? And scalings that improve it.

Calibration is measured for the top letter: its probability is the confidence, and it is right or
wrong. Brier score and log loss measure all six probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from workbench import values
from workbench.errors import InputError, log
from workbench.lazy import ArrayLike, NDArray, pd
from workbench.stats import proportion
from workbench.tasks.options import LETTERS
from workbench.types import Metric
from workbench.uncertainty.logits import check_logits, softmax, split_rows
from workbench.uncertainty.selective_prediction import resampled

Method = Literal["temperature", "isotonic"]


# Minimum probability in a log loss (27.6 nats): a missing letter is unlikely, not impossible.
FLOOR = 1e-12
HOTTEST = 50.0  # the maximum temperature; the minimum is 1/50
MARGIN = 1e-9  # keeps the top letter above the others at a tie; far above rounding errors


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationReport:
    """How well confidence matches correctness.

    Attributes:
        ece, mce: expected and maximum calibration error of the top letter: mean (by items) and
            maximum distance of confidence from accuracy, over bins of equal width.
        brier: mean squared distance of the six probabilities from the truth, 0 to 2.
        log_loss: mean of -log p(truth) in nats; a probability below `FLOOR` counts as `FLOOR`.
        accuracy, confidence: means for the top letter.
        bins: one row per bin: low (exclusive) and high (inclusive), n, mean confidence, accuracy
            with `accuracy_low` and `accuracy_high` (95 %, Wilson); NaN if n is 0.
        n, n_floored: number of items, and of those that count as `FLOOR`.
    """

    ece: float
    mce: float
    brier: float
    log_loss: float
    accuracy: float
    confidence: float
    bins: pd.DataFrame
    n: int
    n_floored: int
    _items: _Items = field(repr=False)

    def equal_mass(self, bins: int = 10) -> pd.DataFrame:
        """`bins` of about as many items each (Nguyen and O'Connor 2015); equal ones share a bin."""
        sure, gaps = self._items.confidence, self._items.columns[:, : self._items.bins]
        edges = np.quantile(sure, np.arange(bins + 1) / bins)
        place = np.searchsorted(edges[1:-1], sure)
        member = (place[:, None] == np.arange(bins)).astype(float)
        table = _table(member, sure, np.rint(sure - gaps.sum(axis=1)), edges)
        return table[table["n"] > 0].reset_index(drop=True)

    def metrics(self) -> tuple[Metric, ...]:
        """The six numbers with 95 % intervals; `n_unparsed` of the log loss is `n_floored`.

        ECE and MCE are sums and maxima of distances, so noise only increases them: they are too
        high on average, and a resample has that noise twice. Percentiles of resamples would be too
        high (for a calibrated model always above the truth). So these two have the basic interval,
        the percentiles mirrored at the estimate. It is widened to include the estimate, and starts
        at 0 if a perfectly calibrated model would show as much in 1 of 40 samples. Both may cover
        less than 95 %, above all the MCE on bins with few items. The accuracy has a Wilson
        interval, the rest have percentile intervals.
        """
        ece, mce, brier, log_loss, confidence = self._items.drawn().T
        chance = self._items.by_chance()
        return (
            _basic("ece", self.ece, ece, self.n, chance[0]),
            _basic("mce", self.mce, mce, self.n, chance[1]),
            _percentile("brier", self.brier, brier, self.n),
            _percentile("log_loss", self.log_loss, log_loss, self.n, self.n_floored),
            proportion("accuracy", round(self.accuracy * self.n), self.n),
            _percentile("confidence", self.confidence, confidence, self.n),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Rescaled:
    """Probabilities scaled with a fit on one part of the items, and measured on the other part.

    Attributes:
        method, temperature: the scaling; the temperature is None for another method.
        before, after, probabilities: of the test part; the last are [n_test, 6], after scaling.
        test: indexes of its rows, in the order of `probabilities`.
        difference: ECE after minus before, with a 95 % bootstrap interval paired over the test
            items. It is the union of the basic and the percentile interval, since noise increases
            the smaller ECE more. It may understate a gain, rarely overstate it. All resamples use
            the same fit.
        log_loss_difference: the same for the log loss, with a percentile interval.
    """

    method: Method
    temperature: float | None
    before: CalibrationReport
    after: CalibrationReport
    probabilities: NDArray[np.float64]
    test: NDArray[np.int64]
    difference: Metric
    log_loss_difference: Metric


def calibration_report(
    logits: ArrayLike, answers: ArrayLike, *, bins: int = 15, resamples: int = 1000, seed: int = 0
) -> CalibrationReport:
    """Measure the calibration of all rows.

    Args:
        logits, answers: as for `logits.check_logits`.
        bins: number of bins of equal width over 0 to 1, open below and closed above.
        resamples: bootstrap resamples of the items, for the intervals.

    Raises:
        InputError: as `logits.check_logits`; no rows; or an argument is out of range.
    """
    scores, truth = check_logits(logits, answers)
    report = _judged(softmax(scores.astype(float)), truth, bins, resamples, seed)
    if report.n_floored:
        log.warning("%d of %d truths count as %g in log loss", report.n_floored, report.n, FLOOR)
    return report


def rescaled(
    logits: ArrayLike, answers: ArrayLike, *, method: Method = "temperature",
    calibration: float = 0.5, split_seed: int = 42, bins: int = 15, resamples: int = 1000,
    seed: int = 0,
) -> Rescaled:  # fmt: skip
    """Fit a scaling of the probabilities on one part of the items, and measure it on the rest.

    "temperature" divides all logits by the number from 1/50 to 50 with the least log loss (Guo et
    al. 2017). If all answers of the fit are right, it ends near 1/50; if all are wrong, it can
    reach 50: give more items then. Missing letters stay missing; an item whose right answer is
    missing is left out of the fit, with a log message.

    "isotonic" maps confidence to accuracy by the non-decreasing function that fits best (Zadrozny
    and Elkan 2002), linear between its knots, constant beyond them, and kept 1 / (n_fit + 2) away
    from 0 and 1. The top letter stays on top: its probability is above 1/6, and the others share
    the rest in their old proportions, levelled as far as necessary to stay below it. So a missing
    letter can get a share.

    Args:
        calibration, split_seed: share of the items to fit on, and its seed (`logits.split_rows`).
        logits, answers, bins, resamples, seed: as `calibration_report`.

    Raises:
        InputError: as `calibration_report` and `logits.split_rows`; an unknown method; no items.
    """
    values.known("method", method, get_args(Method))
    scores, truth = check_logits(logits, answers)
    scores = scores.astype(float)
    fit, test = split_rows(len(scores), calibration, split_seed)
    plain, temperature = softmax(scores[test]), None
    if method == "temperature":
        temperature = _temperature(scores[fit], truth[fit])
        scaled = softmax(scores[test] / temperature)
    else:
        scaled = _isotonic(softmax(scores[fit]), truth[fit], plain)
    before, after = (_judged(p, truth[test], bins, resamples, seed) for p in (plain, scaled))
    apart, n = after._items.drawn() - before._items.drawn(), len(test)  # the same resamples
    loss = after.log_loss - before.log_loss
    return Rescaled(
        method, temperature, before, after, scaled, test,
        _both("ece_difference", after.ece - before.ece, apart[:, 0], n),
        _percentile("log_loss_difference", loss, apart[:, 3], n, before.n_floored),
    )  # fmt: skip


def _judged(
    p: NDArray[Any], truth: NDArray[np.int64], bins: int, resamples: int, seed: int
) -> CalibrationReport:
    n = len(p)
    bins = values.whole("bins", bins, 1)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == truth
    place = np.searchsorted(np.arange(bins + 1) / bins, confidence) - 1
    member = (np.clip(place, 0, bins - 1)[:, None] == np.arange(bins)).astype(float)
    likely = p[np.arange(n), truth]
    brier = ((p - np.eye(len(LETTERS))[truth]) ** 2).sum(axis=1)
    loss = -np.log(np.maximum(likely, FLOOR))
    columns = np.column_stack(
        [member * (confidence - right)[:, None], member, brier, loss, confidence]
    )
    resampled(n, resamples, seed)  # fails now, not later, if the arguments are invalid
    ece, mce, *means = map(float, _scores(columns.sum(axis=0)[None], bins)[0])
    return CalibrationReport(
        ece, mce, means[0], means[1], float(right.mean()), means[2],
        _table(member, confidence, right, np.arange(bins + 1) / bins), n,
        int((likely < FLOOR).sum()), _Items(columns, confidence, bins, resamples, seed),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Items:
    """The data for the intervals, which are computed on demand.

    `columns` [n, 2 bins + 3] holds for each item its gap and a 1 in the columns of its bin, then
    the values to average.
    """

    columns: NDArray[np.float64]
    confidence: NDArray[np.float64]
    bins: int
    resamples: int
    seed: int

    def drawn(self) -> NDArray[np.float64]:
        """The scores of each resample."""
        n = len(self.columns)
        weighted = [w @ self.columns for w in resampled(n, self.resamples, self.seed)]
        return _scores(np.concatenate(weighted), self.bins)

    def by_chance(self) -> NDArray[np.float64]:
        """ECE and MCE that a calibrated model with these confidences exceeds in 1 of 40 samples."""
        rng = np.random.default_rng([self.seed, 1])  # other numbers than the resamples'
        sure, member = self.confidence, self.columns[:, self.bins : 2 * self.bins]
        draws = ((rng.random(len(sure)) < sure) for _ in range(self.resamples))
        gaps = np.array([(sure - right) @ member for right in draws])
        sums = np.column_stack([gaps, np.tile(member.sum(axis=0), (self.resamples, 1))])
        return np.asarray(np.quantile(_scores(sums, self.bins), 0.975, axis=0))


def _scores(sums: NDArray[Any], bins: int) -> NDArray[np.float64]:
    """ECE, MCE and the means of the other columns, from sums over items (gaps and counts)."""
    gaps, items = np.abs(sums[:, :bins]), sums[:, bins : 2 * bins]
    n = items.sum(axis=1)[:, None]
    mce = (gaps / np.maximum(items, 1)).max(axis=1)
    return np.column_stack([gaps.sum(axis=1) / n[:, 0], mce, sums[:, 2 * bins :] / n])


def _table(
    member: NDArray[Any], sure: NDArray[Any], right: NDArray[Any], edges: NDArray[Any]
) -> pd.DataFrame:
    items, hits = member.sum(axis=0).astype(int), (right @ member).astype(int)
    shares = [proportion("", int(h), int(n)) if n else None for h, n in np.c_[hits, items]]
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n": items})
    table["confidence"] = sure @ member / np.where(items, items, np.nan)
    for column, key in (("", "value"), ("_low", "low"), ("_high", "high")):
        table["accuracy" + column] = [getattr(share, key, np.nan) for share in shares]
    return table


def _temperature(scores: NDArray[Any], truth: NDArray[np.int64]) -> float:
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    known = np.isfinite(scores[np.arange(len(truth)), truth])
    missing, n = int((~known).sum()), len(known)
    if missing == n:
        raise InputError(f"all {n} truths to fit on are missing: ask for more log-probabilities")
    if missing:
        log.warning("temperature: %d of %d truths are missing and left out of the fit", missing, n)
    scores, truth = scores[known], truth[known]

    def loss(logarithm: float) -> float:
        logp = log_softmax(scores / np.exp(logarithm), axis=1)
        return -float(logp[np.arange(len(truth)), truth].mean())

    ends = (-np.log(HOTTEST), np.log(HOTTEST))
    best = minimize_scalar(loss, bounds=ends, options={"xatol": 1e-8})
    return float(np.exp(best.x))


def _isotonic(fitted: NDArray[Any], truth: NDArray[np.int64], p: NDArray[Any]) -> NDArray[Any]:
    """`p` with confidences scaled by the isotonic fit of `truth` on `fitted`."""
    from scipy.optimize import isotonic_regression

    right = fitted.argmax(axis=1) == truth
    sure = fitted.max(axis=1)  # equal ones become one weighted point
    levels, place, counts = np.unique(sure, return_inverse=True, return_counts=True)
    shares = np.bincount(place, weights=right) / counts
    knots = isotonic_regression(shares, weights=counts).x
    unseen = 1 / (len(truth) + 2)
    value = np.clip(np.interp(p.max(axis=1), levels, knots), unseen, 1 - unseen)
    return _topped(p, np.maximum(value, 1 / len(LETTERS) + MARGIN))


def _topped(p: NDArray[Any], value: NDArray[Any]) -> NDArray[np.float64]:
    """`p` with `value` [n], above 1/6, for the top letter, which stays on top."""
    top = np.arange(len(p)), p.argmax(axis=1)
    rest, even = p.copy(), np.full_like(p, 1 / (len(LETTERS) - 1))
    rest[top] = even[top] = 0
    total = rest.sum(axis=1, keepdims=True)
    shares = np.divide(rest, total, out=even.copy(), where=total > 0)
    most = value / (1 - value) - MARGIN  # the maximum share that stays below the top
    highest = shares.max(axis=1)
    mix = np.clip((highest - most) / np.maximum(highest - even.max(), MARGIN), 0, 1)[:, None]
    scaled = (1 - value)[:, None] * (mix * even + (1 - mix) * shares)
    scaled[top] = value
    return np.asarray(scaled)


def _percentile(name: str, value: float, drawn: NDArray[Any], n: int, floored: int = 0) -> Metric:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Metric(name, value, float(low), float(high), n, n_unparsed=floored)


def _basic(name: str, value: float, drawn: NDArray[Any], n: int, chance: float) -> Metric:
    """Percentiles mirrored at the value, widened to include it; from 0 if chance gives as much."""
    low, high = (2 * value - float(end) for end in np.quantile(drawn, (0.975, 0.025)))
    low = 0.0 if value <= chance else max(0.0, min(low, value))
    return Metric(name, value, low, min(1.0, max(high, value)), n)


def _both(name: str, value: float, drawn: NDArray[Any], n: int) -> Metric:
    """The union of the percentile and the basic interval."""
    ends = np.quantile(drawn, (0.025, 0.975))
    every = (value, *map(float, ends), *map(float, 2 * value - ends))
    return Metric(name, value, max(-1.0, min(every)), min(1.0, max(every)), n)
