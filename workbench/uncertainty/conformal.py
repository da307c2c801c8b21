"""Split conformal prediction: sets of letters that contain the right one with a required rate.

The scores of the right letters in the calibration items give a threshold. For the other items, the
set has each letter whose score is at most the threshold. The scores are LAC and APS: see `logits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from workbench import values
from workbench.errors import InputError, log
from workbench.lazy import ArrayLike, NDArray, pd
from workbench.stats import Z, mean, proportion
from workbench.tasks.options import LETTERS
from workbench.types import Metric
from workbench.uncertainty.logits import (
    Rule,
    Score,
    check_logits,
    conformal_scores,
    split_rows,
    threshold,
)

SCORES: tuple[Score, ...] = get_args(Score)
ROOT = len(LETTERS) ** 0.5
"""The factor in UAcc, and its maximum: the root of the number of letters (Ye et al. 2024)."""
_MEASURES = ("coverage", "covered_before", "set_size", "uacc")


@dataclass(frozen=True, slots=True, eq=False)
class Sets:
    """The sets of one score for the test rows.

    Attributes:
        threshold: the maximum score in a set; inf: too few items, or too many missing truths.
        coverage: share of sets with the right letter.
        set_size: mean number of letters.
        uacc: accuracy times sqrt(6) / set_size (Ye et al. 2024).
        sets: bool [n_test, 6]; an empty set was given its likeliest letter.
        empty: number of sets that were empty before that.
        covered_before: coverage before that, to which the conformal guarantee applies.
    """

    score: Score
    threshold: float
    coverage: float
    set_size: float
    uacc: float
    sets: NDArray[np.bool_]
    empty: int
    covered_before: float


@dataclass(frozen=True, slots=True, eq=False)
class ConformalReport:
    """How good the answers are, and how large the sets that contain the right one.

    Attributes:
        acc: share of test rows with the right letter on top.
        coverage, set_size, uacc: as in `Sets`; the mean over both scores if there are both.
        e_rate, f_rate: shares of test rows with the letter E or F on top.
        lac, aps: the sets of each score, None if it was not requested.
        calibration, test: indexes of the rows in the input arrays, int64.
        answers, predicted: right letters of the test rows, and their top letters.
        missing: share of calibration rows whose right letter is missing.
        rows: number of input rows, dropped ones included.
    """

    acc: float
    coverage: float
    set_size: float
    uacc: float
    e_rate: float
    f_rate: float
    lac: Sets | None
    aps: Sets | None
    calibration: NDArray[np.int64]
    test: NDArray[np.int64]
    answers: NDArray[np.int64]
    predicted: NDArray[np.int64]
    missing: float
    alpha: float
    rule: Rule
    rows: int

    @property
    def scores(self) -> tuple[Sets, ...]:
        """The available scores, LAC first."""
        return tuple(one for one in (self.lac, self.aps) if one is not None)

    def metrics(self) -> tuple[Metric, ...]:
        """All shares and means with 95 % intervals over test items, for fixed thresholds.

        Shares have Wilson's interval, set sizes the t interval. UAcc has one by the delta method;
        if no item differs from another, the intervals of accuracy and set size are combined.
        """
        right = self.predicted == self.answers
        metrics = [proportion("accuracy", int(right.sum()), len(right))]
        if len(self.scores) > 1:
            metrics += _set_metrics("", self.scores, self.answers, right)
        for one in self.scores:
            metrics += _set_metrics(f" {one.score.upper()}", (one,), self.answers, right)
        for letter in "EF":
            chosen = self.predicted == LETTERS.index(letter)
            metrics.append(proportion(f"{letter} rate", int(chosen.sum()), len(chosen)))
        return tuple(metrics)

    def coverage_by(self, groups: ArrayLike) -> pd.DataFrame:
        """Coverage in each group of test rows, where it can be below the mean.

        Args:
            groups: one value for each row given to `conformal_report`, dropped ones included.

        Returns:
            One row per group and score: group, score, n, coverage, low, high (95 %, Wilson),
            set_size.

        Raises:
            InputError: the number of values is not the number of rows.
        """
        group_of = np.asarray(groups, dtype=object)
        if group_of.shape != (self.rows,):
            raise InputError(
                f"groups of shape {group_of.shape} for {self.rows} rows of logits: give one value "
                "for each, dropped ones included"
            )
        rows = []
        test = pd.Series(group_of[self.test])
        for group, part in test.groupby(test, dropna=False):
            for one in self.scores:
                sets, answers = one.sets[part.index], self.answers[part.index]
                hits = int(sets[np.arange(len(sets)), answers].sum())
                share = proportion("coverage", hits, len(sets))
                rows.append({
                    "group": group, "score": one.score, "n": share.n, "coverage": share.value,
                    "low": share.low, "high": share.high, "set_size": sets.sum(axis=1).mean(),
                })  # fmt: skip
        return pd.DataFrame(rows)


def conformal_report(
    logits: ArrayLike, answers: ArrayLike, *, alpha: float = 0.1,
    score: Literal["both", "lac", "aps"] = "both", rule: Rule = "ye2024", calibration: float = 0.5,
    split_seed: int = 42, drop: Sequence[int] = (),
) -> ConformalReport:  # fmt: skip
    """Calibrate on some rows, compute the other rows' sets, and measure them.

    Args:
        logits: [n, 6], or log-probabilities; -inf for a missing letter, which is in a set only if
            the threshold is inf.
        answers: [n], letters or their indexes from 0.
        alpha: accepted share of sets without the right letter.
        score: "lac" gives the smallest sets, "aps" sets that grow with a question's difficulty.
        rule: "exact" is exact split conformal prediction, in float64; its APS takes equally likely
            letters together. "ye2024" is what the published benchmark (Ye et al. 2024, NeurIPS)
            computes, in float32 and with a threshold one rank higher.
        calibration: share of rows to calibrate on, drawn with `split_seed`.
        drop: indexes of rows to use for neither, such as rows shown as examples.

    Raises:
        InputError: a value is out of its range, there are too few rows, or see
            `logits.check_logits`.
    """
    table = _ScoredRows.of(logits, answers, alpha, score, rule)
    left = _not_dropped(len(table.answers), drop)
    fit, test = (left[part] for part in split_rows(len(left), calibration, split_seed))
    sets = table.sets(fit, test)
    for one in sets:
        if one.empty == len(test):
            log.warning(
                "conformal: %s leaves all %d sets empty at alpha=%g; each was given its likeliest "
                "letter", one.score.upper(), len(test), table.alpha,
            )  # fmt: skip
    by_score = {one.score: one for one in sets}
    top = table.predicted[test]
    return ConformalReport(
        acc=float((top == table.answers[test]).mean()),
        coverage=float(np.mean([one.coverage for one in sets])),
        set_size=float(np.mean([one.set_size for one in sets])),
        uacc=float(np.mean([one.uacc for one in sets])),
        e_rate=float((top == LETTERS.index("E")).mean()),
        f_rate=float((top == LETTERS.index("F")).mean()),
        lac=by_score.get("lac"),
        aps=by_score.get("aps"),
        calibration=fit,
        test=test,
        answers=table.answers[test],
        predicted=top,
        missing=table.missing(fit),
        alpha=table.alpha,
        rule=rule,
        rows=len(table.answers),
    )


def conformal_splits(
    logits: ArrayLike, answers: ArrayLike, *, splits: int = 200, seed: int = 0, alpha: float = 0.1,
    score: Literal["both", "lac", "aps"] = "both", rule: Rule = "ye2024", calibration: float = 0.5,
) -> pd.DataFrame:  # fmt: skip
    """Repeat `conformal_report` with many random splits, to show the effect of the split.

    Args:
        splits: number of splits, with the split seeds `seed`, `seed` + 1 and so on.

    Returns:
        One row per split and score: split, score, coverage, covered_before, set_size, uacc, acc.

    Raises:
        InputError: as `conformal_report`.
    """
    table = _ScoredRows.of(logits, answers, alpha, score, rule)
    splits, seed = values.whole("splits", splits, 1), values.whole("seed", seed, 0)
    table.missing(np.arange(len(table.answers)))
    rows: list[dict[str, Any]] = []
    for split in range(seed, seed + splits):
        fit, test = split_rows(len(table.answers), calibration, split)
        acc = float((table.predicted[test] == table.answers[test]).mean())
        for one in table.sets(fit, test):
            measures = {name: getattr(one, name) for name in _MEASURES}
            rows.append({"split": split, "score": one.score, **measures, "acc": acc})
    return pd.DataFrame(rows)


def split_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the splits that `conformal_splits` returned, for these items.

    Returns:
        One row per score and measure: score, measure, splits, mean, sd over the splits, low and
        high (between which 95 % of single splits lie), and sem, the Monte-Carlo error of the mean.
        None is a confidence interval: all splits share the same items.
    """
    long = frame.melt("score", _MEASURES, var_name="measure", value_name="value")
    parts = long.groupby(["score", "measure"], sort=False)["value"]
    table = parts.agg(splits="size", mean="mean", sd="std").reset_index()
    low, high = (parts.quantile(share).to_numpy() for share in (0.025, 0.975))
    return table.assign(low=low, high=high, sem=parts.sem().to_numpy())


def check_settings(alpha: object, score: object, rule: object) -> float:
    """The checked level; also checks score and rule.

    Raises:
        InputError: the level is not between 0 and 1, or the score or rule is unknown.
    """
    level = values.real("alpha", alpha, 0, 1)
    if level in {0, 1}:
        values.refuse("alpha", alpha, "a number between 0 and 1, such as 0.1")
    values.known("score", score, ("both", *SCORES))
    values.known("rule", rule, get_args(Rule))
    return level


@dataclass(frozen=True, slots=True, eq=False)
class _ScoredRows:
    """Rows with their `conformal_scores`, for one split or many."""

    logits: NDArray[Any]
    answers: NDArray[np.int64]
    predicted: NDArray[np.int64]
    alpha: float
    rule: Rule
    scored: dict[Score, tuple[NDArray[np.float64], NDArray[np.float64]]]

    @classmethod
    def of(
        cls, logits: ArrayLike, answers: ArrayLike, alpha: float,
        score: Literal["both", "lac", "aps"], rule: Rule,
    ) -> _ScoredRows:  # fmt: skip
        alpha = check_settings(alpha, score, rule)
        cells, places = check_logits(logits, answers)
        names = SCORES if score == "both" else (score,)
        scored = {name: conformal_scores(cells, places, name, rule) for name in names}
        return cls(cells, places, cells.argmax(axis=1), alpha, rule, scored)

    def sets(self, fit: NDArray[np.int64], test: NDArray[np.int64]) -> list[Sets]:
        """The test rows' sets of each score, calibrated on the others."""
        predicted, answers, rows = self.predicted[test], self.answers[test], np.arange(len(test))
        each = []
        for score, (cells, own) in self.scored.items():
            highest = threshold(own[fit], self.alpha, self.rule)
            sets = cells[test] <= highest
            before = float(sets[rows, answers].mean())
            empty = ~sets.any(axis=1)
            sets[empty, predicted[empty]] = True
            size = float(sets.sum(axis=1).mean())
            each.append(Sets(
                score=score,
                threshold=1 + highest,
                coverage=float(sets[rows, answers].mean()),
                set_size=size,
                uacc=float((predicted == answers).mean()) * ROOT / size,
                sets=sets,
                empty=int(empty.sum()),
                covered_before=before,
            ))  # fmt: skip
        return each

    def missing(self, rows: NDArray[np.int64]) -> float:
        """Share of rows whose right letter is missing; warns if it makes the sets too large."""
        share = float(np.isneginf(self.logits[rows, self.answers[rows]]).mean())
        if share > self.alpha / 2:
            log.warning(
                "conformal: the right letter is missing in %.1f %% of rows (alpha is %g %%), which "
                "makes all sets large: ask for more log-probabilities",
                100 * share, 100 * self.alpha,
            )  # fmt: skip
        return share


def _not_dropped(n: int, drop: Sequence[int]) -> NDArray[np.int64]:
    """Indexes of the remaining rows."""
    places = np.asarray(drop)
    if not places.size:
        return np.arange(n)
    if places.ndim != 1 or places.dtype.kind not in "iu":
        raise InputError(f"drop={drop!r}: give places of rows, whole numbers from 0")
    wrong = places[(places < 0) | (places >= n)]
    if wrong.size:
        raise InputError(f"drop: there is no row {wrong[0]}; give places from 0 to {n - 1}")
    rows, times = np.unique(places, return_counts=True)
    if len(rows) < len(places):
        raise InputError(f"drop: row {rows[times > 1][0]} is named twice; name each row once")
    return np.delete(np.arange(n), places)


def _set_metrics(
    suffix: str, scores: tuple[Sets, ...], answers: NDArray[np.int64], right: NDArray[np.bool_]
) -> list[Metric]:
    """Coverage, set size and UAcc, each averaged over `scores`."""
    rows = np.arange(len(right))
    covered = np.stack([one.sets[rows, answers] for one in scores], axis=1)
    sizes = np.stack([one.sets.sum(axis=1) for one in scores], axis=1)
    name = f"coverage{suffix}"
    return [
        proportion(name, int(covered.sum()), len(covered))
        if len(scores) == 1
        else mean(name, covered.mean(axis=1), 0, 1),
        mean(f"set size{suffix}", sizes.mean(axis=1), 1, len(LETTERS)),
        _uacc(f"UAcc{suffix}", right, sizes),
    ]


def _uacc(name: str, right: NDArray[np.bool_], sizes: NDArray[np.int64]) -> Metric:
    """Mean over the columns of `sizes` of accuracy / size * sqrt(6)."""
    n, acc, size = len(right), right.mean(), sizes.mean(axis=0)
    value = float((acc * ROOT / size).mean())
    pull = ROOT * ((right - acc)[:, None] / size - acc * (sizes - size) / size**2).mean(axis=1)
    half = Z * float(pull.std(ddof=1)) / n**0.5 if n > 1 else 0.0
    if half > 1e-12:
        return Metric(name, value, max(0.0, value - half), min(ROOT, value + half), n)
    share = proportion(name, int(right.sum()), n)
    ends = [mean(name, column, 1, len(LETTERS)) for column in sizes.T]
    low = float(np.mean([share.low * ROOT / end.high for end in ends]))
    high = float(np.mean([share.high * ROOT / end.low for end in ends]))
    return Metric(name, value, low, high, n)
