"""Selective prediction: how well a confidence signal separates right answers from wrong ones.

A signal is a number per answer, higher if the model is surer. Answers with equal signals form a
block. A value that depends on their order is averaged over all orders, so row order has no effect.

A resample is a weight per item: how often it was drawn. Answers are sorted only once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench import values
from workbench.errors import InputError, log
from workbench.lazy import ArrayLike, NDArray, pd
from workbench.tasks.options import LETTERS
from workbench.types import Report
from workbench.uncertainty.logits import check_logits, softmax

BASELINES = ("random", "length")
SIGNALS = {
    "majority share": ("majority_share", 1),
    "semantic entropy": ("entropy_weighted", -1),
    "discrete entropy": ("entropy_discrete", -1),
    "mean log-probability": ("mean_logprob", 1),
    "p(true)": ("p_true", 1),
}
"""For a report of `sample_uncertainty`: the column of each signal, and its sign."""

COVERAGES = (50, 80)
"""Percent of the answers kept, for the two accuracies of a report."""

CELLS = 2**21
"""Weights in memory at a time: 16 MiB."""


def resampled(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each of n items is in each bootstrap resample: [some, n], `resamples` in all.

    The same arguments give the same resamples, so measurements of two methods are paired.

    Raises:
        InputError: `resamples` or `seed` is out of range.
    """
    left = values.whole("resamples", resamples, 1)
    rng = np.random.default_rng(values.whole("seed", seed, 0))
    some = max(1, CELLS // max(n, 1))
    return (_drawn(n, min(some, left - start), rng) for start in range(0, left, some))


def _drawn(n: int, some: int, rng: np.random.Generator) -> NDArray[np.int64]:
    drawn = rng.integers(0, n, (some, n)) + n * np.arange(some)[:, None]
    return np.bincount(drawn.ravel(), minlength=some * n).reshape(some, n)


@dataclass(frozen=True, slots=True, eq=False)
class _Sorted:
    """Answers from the surest to the least sure; `starts` are where the blocks of equals begin."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    right: NDArray[np.int64]
    thresholds: NDArray[Any]

    @classmethod
    def of(cls, signal: NDArray[Any], right: NDArray[np.int64]) -> _Sorted:
        order = np.argsort(-signal, kind="stable")
        falling = signal[order]
        starts = np.flatnonzero(np.append(True, falling[1:] != falling[:-1]))
        return cls(order, starts, right[order], falling[starts])

    def blocks(self, weights: NDArray[np.int64] | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Answers and wrong answers in each block, for each row of weights [some, n]."""
        if weights is None:
            weights = np.ones((1, len(self.order)), np.int64)
        w = weights[:, self.order]
        items = np.add.reduceat(w, self.starts, axis=1)
        return items, np.add.reduceat(w * (1 - self.right), self.starts, axis=1)


def _auroc(items: NDArray[Any], wrong: NDArray[Any]) -> NDArray[np.float64]:
    """The share of pairs of a right and a wrong answer in which the right one is surer."""
    right = items - wrong
    surer = np.cumsum(right, axis=1) - right / 2  # ties within the block count half
    pairs = (right.sum(axis=1) * wrong.sum(axis=1)).astype(float)
    pairs[pairs == 0] = np.nan
    return np.asarray((wrong * surer).sum(axis=1) / pairs)


def _aurc(items: NDArray[Any], wrong: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over k of the expected share of wrong answers among the k surest.

    After T answers with E wrong, the j-th of a block of t, e of them wrong, has an expected share
    of (E + j e/t) / (T + j). Its sum over the block uses tabulated sums of reciprocals.
    """
    n = int(items[0].sum())
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, n + 1)))
    until, errors = np.cumsum(items, axis=1), np.cumsum(wrong, axis=1) - wrong
    before = until - items
    reciprocals = harmonic[until] - harmonic[before]
    share = wrong / np.maximum(items, 1)
    areas = errors * reciprocals + share * (items - before * reciprocals)
    return np.asarray(areas.sum(axis=1) / n)


def _accuracies(items: NDArray[Any], wrong: NDArray[Any]) -> dict[str, float]:
    """Expected accuracy of the surest answers, at least the given percentages of all answers."""
    until, errors = np.append(0, np.cumsum(items[0])), np.append(0, np.cumsum(wrong[0]))
    fewest = {percent: -(-int(until[-1]) * percent // 100) for percent in COVERAGES}
    return {
        f"accuracy_{percent}": 1 - float(np.interp(k, until, errors)) / k
        for percent, k in fewest.items()
    }


def risk_coverage(confidence: ArrayLike, right: ArrayLike) -> pd.DataFrame:
    """The share of wrong answers among those kept, for each threshold.

    Args:
        confidence: [n], higher is surer.
        right: [n], right (1) or wrong (0).

    Returns:
        One row per distinct confidence, from the highest: coverage (share of the answers that are
        at least as sure), risk (share of wrong answers among these), threshold.

    Raises:
        InputError: the lengths differ, there are fewer than 2 items, a confidence is NaN, or an
            answer is neither right nor wrong.
    """
    ordered = _Sorted.of(*_signal("confidence", confidence, right))
    items, wrong = (np.cumsum(counts[0]) for counts in ordered.blocks())
    table = {"coverage": items / items[-1], "risk": wrong / items, "threshold": ordered.thresholds}
    return pd.DataFrame(table)


def aurc(confidence: ArrayLike, right: ArrayLike) -> float:
    """Area under the risk-coverage curve, 0 is best: the mean share of wrong answers among the k
    surest, over k from 1 to n.

    If k splits answers of equal confidence, the expected share counts, as for a random choice among
    them. A signal without information has the share of wrong answers among all.

    Raises:
        InputError: as `risk_coverage`.
    """
    return float(_aurc(*_Sorted.of(*_signal("confidence", confidence, right)).blocks())[0])


def auroc(confidence: ArrayLike, right: ArrayLike) -> float:
    """Probability that a right answer has a higher confidence than a wrong one; ties count half.

    A half is chance, 1 is best. NaN if all answers are right, or all wrong: no pair to compare.

    Raises:
        InputError: as `risk_coverage`.
    """
    return float(_auroc(*_Sorted.of(*_signal("confidence", confidence, right)).blocks())[0])


def selective_report(
    signals: Mapping[str, ArrayLike], right: ArrayLike, *, lengths: ArrayLike,
    against: str = "length", resamples: int = 1000, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Measure how well each signal separates right answers from wrong ones, with two baselines:
    random numbers, and the length of the answer or prompt (shorter counts as surer).

    Args:
        signals: by name, [n] each, higher is surer.
        right: [n], right (1) or wrong (0).
        lengths: [n], in any unit.
        against: the signal or baseline that the AUROC of each is compared to.
        resamples: bootstrap resamples of the items, the same for all signals.
        seed: of the resamples and of the random baseline.

    Returns:
        One row per signal, the baselines last: signal, n, auroc, aurc, `above_length` (its AUROC
        minus that of `against`, whose name it has), each of these three with `_low` and `_high`,
        and `accuracy_50` and `accuracy_80`, the accuracy of the surest half and four fifths.
        Intervals are 95 % percentile intervals, paired for `above_…` (the bootstrap of pROC, Robin
        et al. 2011, BMC Bioinformatics 12:77). They have no width if all resamples agree, and they
        leave out resamples with only right or only wrong answers; if the sample is like that, AUROC
        and its intervals are NaN.

    Raises:
        InputError: no signals, one with a baseline's name or wrong shape, or as `risk_coverage`.
    """
    weights_of_all = resampled(np.size(right), resamples, seed)
    every, hit = _with_baselines(signals, right, lengths, seed)
    values.known("signal", against, every)
    ordered = {name: _Sorted.of(values, hit) for name, values in every.items()}
    parts = {name: [_areas(one)] for name, one in ordered.items()}
    for weights in weights_of_all:
        for name, one in ordered.items():
            parts[name].append(_areas(one, weights))
    drawn = {name: np.concatenate(each) for name, each in parts.items()}
    other = drawn[against][:, 0]
    return pd.DataFrame(
        {
            "signal": name,
            "n": len(hit),
            **_with_interval("auroc", areas[:, 0]),
            **_with_interval("aurc", areas[:, 1]),
            **_with_interval(f"above_{against}", areas[:, 0] - other),
            **_accuracies(*ordered[name].blocks()),
        }
        for name, areas in drawn.items()
    )


def from_options(logits: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Confidence signals from the probabilities of six options, higher is surer.

    Args:
        logits: [n, 6], -inf for a missing letter.

    Returns:
        `confidence`, the highest probability; `margin`, its distance to the second; `entropy`, the
        negative entropy in nats. All are [n] and do not depend on which letter is right.

    Raises:
        InputError: as `logits.check_logits`.
    """
    from scipy.special import xlogy

    n = len(np.atleast_1d(np.asarray(logits)))
    scores, _ = check_logits(logits, np.arange(n) % len(LETTERS))  # placeholder answers
    # Sorted first, so that the same six numbers in another order give the same bits, a tie.
    p = softmax(np.sort(scores.astype(float), axis=1))
    entropy = xlogy(p, p).sum(axis=1)
    return {"confidence": p[:, -1], "margin": p[:, -1] - p[:, -2], "entropy": entropy}


def signals(report: Report | pd.DataFrame) -> dict[str, NDArray[Any]]:
    """The signals in a report of `sample_uncertainty` (or its rows), [n] each, higher is surer.

    All use the same rows: those that did not fail and have all signals that any row has.

    Raises:
        InputError: there are no such rows.
    """
    rows, columns = _complete(report)
    return {
        name: sign * rows[column].to_numpy(float)
        for name, (column, sign) in SIGNALS.items()
        if column in columns
    }


def selective(
    report: Report | pd.DataFrame, resamples: int = 1000, seed: int = 0, *, against: str = "length"
) -> pd.DataFrame:
    """`selective_report` for the signals of a `sample_uncertainty` report: how well each separates
    right greedy answers from wrong ones, with random numbers and question length as baselines.

    Raises:
        InputError: as `signals` and `selective_report`.
    """
    rows, _ = _complete(report)
    return selective_report(signals(rows), rows["correct"], lengths=rows["length"],
                            against=against, resamples=resamples, seed=seed)  # fmt: skip


def _complete(report: Report | pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    rows = report.rows if isinstance(report, Report) else report
    done = rows[rows["error"].isna()]
    columns = [column for column, _ in SIGNALS.values() if done[column].notna().any()]
    complete = done.dropna(subset=columns)
    if not columns or complete.empty:
        raise InputError(f"{len(rows)} rows, none with signals: `error` and `unknown` say why")
    if less := len(done) - len(complete):
        log.warning("%d of %d rows are left out: they lack a signal (`unknown`)", less, len(done))
    return complete, columns


def _areas(one: _Sorted, weights: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    items, wrong = one.blocks(weights)
    return np.column_stack([_auroc(items, wrong), _aurc(items, wrong)])


def _with_interval(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """The first value, and the 95 % percentile interval of the others."""
    drawn = values[1:][~np.isnan(values[1:])]
    known = len(drawn) > 0 and not np.isnan(values[0])
    low, high = np.quantile(drawn, (0.025, 0.975)) if known else (np.nan, np.nan)
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def _signal(
    name: str, signal: ArrayLike, right: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Both as arrays; infinite values are the surest and the least sure."""
    numbers, hit = np.asarray(signal), np.asarray(right)
    if hit.ndim != 1 or len(hit) < 2:
        raise InputError(f"right of shape {hit.shape}: give one verdict per item, for 2 or more")
    if (neither := ~np.isin(hit, [0, 1])).any() or hit.dtype.kind not in "biuf":
        item = int(neither.argmax())
        raise InputError(f"right: item {item} is {hit[item]!r}; give right (1) or wrong (0)")
    if numbers.shape != hit.shape:
        raise InputError(
            f"{name} of shape {numbers.shape} for {len(hit)} items: give one number for each"
        )
    if numbers.dtype.kind not in "biuf":
        raise InputError(f"{name} of type {numbers.dtype}: give numbers, higher where surer")
    if (missing := np.isnan(numbers.astype(float))).any():
        raise InputError(
            f"{name}: item {int(missing.argmax())} is NaN; leave such items out of all signals"
        )
    return numbers.astype(float), hit.astype(np.int64)


def _with_baselines(
    signals: Mapping[str, ArrayLike], right: ArrayLike, lengths: ArrayLike, seed: int
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    if not signals:
        raise InputError(f"signals={signals!r}: give at least one, by name")
    if taken := sorted(set(signals) & set(BASELINES)):
        raise InputError(f"signals: {taken[0]!r} is the name of a baseline; give it another name")
    shorter, hit = _signal("lengths", lengths, right)
    every = {name: _signal(name, signal, right)[0] for name, signal in signals.items()}
    # A second number in the seed, so that the random numbers differ from those of the resamples.
    every["random"] = np.random.default_rng([seed, 1]).random(len(hit))
    return every | {"length": -shorter}, hit
