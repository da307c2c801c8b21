"""Sets of letters that hold the right one as often as was asked for: split conformal prediction.

Some items calibrate: the scores of their right letters give a threshold. On the other items each
letter that scores no more is in the set. The scores are LAC and APS: see `logits`.
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
"""What a guess over all letters has as its set size, in UAcc: the most that UAcc can be."""
_MEASURES = ("coverage", "covered_before", "set_size", "uacc")


@dataclass(frozen=True, slots=True, eq=False)
class Sets:
    """The sets that one score gives for the test rows.

    Attributes:
        threshold: the highest score in a set; inf: too few items, or too many truths missing.
        coverage: share of sets that hold the right letter.
        set_size: mean number of letters.
        uacc: accuracy times sqrt(6) / set_size (Ye et al. 2024).
        sets: bool [n_test, 6]; where no letter was in, the likeliest one was put there.
        empty: sets without a letter before that.
        covered_before: coverage before that, the one that conformal prediction speaks of.
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
    """How good the answers are, and how large the sets that hold the right one.

    Attributes:
        acc: share of test rows with the right letter on top.
        coverage, set_size, uacc: as in `Sets`; the mean of both scores' values if there are both.
        e_rate, f_rate: shares of test rows with the letter E or F on top.
        lac, aps: each score's own sets, None if it was not asked for.
        calibration, test: places of the rows in the arrays given, int64.
        answers, predicted: right letters of the test rows, and those on top.
        missing: share of calibration rows whose right letter is missing.
        rows: how many rows were given, those dropped included.
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
        """The scores there are, LAC first."""
        return tuple(one for one in (self.lac, self.aps) if one is not None)

    def metrics(self) -> tuple[Metric, ...]:
        """All shares and means with 95 % intervals, over test items at these very thresholds.

        Shares have Wilson's interval, set sizes the t interval. That of UAcc is by the delta
        method; where no item differs from another, accuracy's and set size's are joined.
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
        """Coverage where it may hide below the mean: in each group of test rows.

        Args:
            groups: one value for each row given to `conformal_report`, those dropped included.

        Returns:
            A row a group and score: group, score, n, coverage, low, high (95 %, Wilson), set_size.

        Raises:
            InputError: not one value a row.
        """
        group_of = np.asarray(groups, dtype=object)
        if group_of.shape != (self.rows,):
            raise InputError(
                f"groups of shape {group_of.shape} for {self.rows} rows of logits: give one value "
                "for each, those dropped included"
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
    logits: ArrayLike,
    answers: ArrayLike,
    *,
    alpha: float = 0.1,
    score: Literal["both", "lac", "aps"] = "both",
    rule: Rule = "ye2024",
    calibration: float = 0.5,
    split_seed: int = 42,
    drop: Sequence[int] = (),
) -> ConformalReport:
    """Calibrate on some rows, make the other rows' sets, and measure them.

    Args:
        logits: [n, 6], or log-probabilities; -inf where a letter is missing. A missing letter is in
            a set only where the threshold is inf.
        answers: [n], letters or their places from 0.
        alpha: share of sets that may lack the right letter.
        score: "lac" gives the smallest sets, "aps" sets that grow with a question's difficulty.
        rule: "exact" is split conformal prediction to the letter, in float64; there APS takes
            equally likely letters together. "ye2024" is what the published benchmark (Ye et al.
            2024, NeurIPS) computes, in float32 and with a threshold one rank higher.
        calibration: share of rows to calibrate on, drawn with `split_seed`.
        drop: places of rows that are neither, such as those shown as examples.

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
                "conformal: %s leaves all %d sets empty at alpha=%g; each holds its likeliest "
                "letter only because one was put there", one.score.upper(), len(test), table.alpha,
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
    logits: ArrayLike,
    answers: ArrayLike,
    *,
    splits: int = 200,
    seed: int = 0,
    alpha: float = 0.1,
    score: Literal["both", "lac", "aps"] = "both",
    rule: Rule = "ye2024",
    calibration: float = 0.5,
) -> pd.DataFrame:
    """The same with many random halves, to see what the choice of halves does.

    Args:
        splits: how many, with the split seeds `seed`, `seed` + 1 and so on.

    Returns:
        A row a split and score: split, score, coverage, covered_before, set_size, uacc, acc.

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
    """What `conformal_splits` returned, over the splits of these very items.

    Returns:
        A row a score and measure: score, measure, splits, mean, sd over the splits, sem (standard
        error of the mean), and low and high, the mean's 95 % interval.
    """
    long = frame.melt("score", _MEASURES, var_name="measure", value_name="value")
    parts = long.groupby(["score", "measure"], sort=False)["value"]
    table = parts.agg(splits="size", mean="mean", sd="std", sem="sem").reset_index()
    low, high = table["mean"] - Z * table["sem"], table["mean"] + Z * table["sem"]
    return table.assign(low=low, high=high)


def check_settings(alpha: object, score: object, rule: object) -> float:
    """The level, if there are such a score and rule.

    Raises:
        InputError: there are not, or it is none.
    """
    level = values.real("alpha", alpha, 0, 1)
    if level in {0, 1}:
        values.refuse("alpha", alpha, "a number between 0 and 1, such as 0.1")
    values.known("score", score, ("both", *SCORES))
    values.known("rule", rule, get_args(Rule))
    return level


@dataclass(frozen=True, slots=True, eq=False)
class _ScoredRows:
    """Rows with their `conformal_scores`, to be split in one way or in many."""

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
        """Each score's sets of the test rows, calibrated on the others."""
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
        """Share of rows whose right letter is missing, with a warning where it spoils the sets."""
        share = float(np.isneginf(self.logits[rows, self.answers[rows]]).mean())
        if share > self.alpha / 2:
            log.warning(
                "conformal: the right letter is missing in %.1f %% of rows (alpha is %g %%), and "
                "all sets are large for it: ask for more log-probabilities",
                100 * share, 100 * self.alpha,
            )  # fmt: skip
        return share


def _not_dropped(n: int, drop: Sequence[int]) -> NDArray[np.int64]:
    """Places of the rows that are left."""
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
    """Coverage, set size and UAcc, the mean over `scores` of each."""
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
