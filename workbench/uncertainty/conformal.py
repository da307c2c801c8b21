"""Sets of letters that hold the right one as often as was asked for: split conformal prediction.

Some items calibrate: the scores of their right letters give a threshold. On the other items each
letter that scores no more is in the set. The scores are LAC and APS: see `sets`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.errors import InputError
from workbench.stats import Z, mean, proportion
from workbench.types import Metric
from workbench.uncertainty.choices import LETTERS, checked, halves
from workbench.uncertainty.sets import BOTH, ROOT, Rule, Score, Sets, scored, sets_of, threshold

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

log = logging.getLogger("workbench")


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
        found = [proportion("accuracy", int(right.sum()), len(right))]
        if len(self.scores) > 1:
            found += _measured("", self.scores, self.answers, right)
        for one in self.scores:
            found += _measured(f" {one.score.upper()}", (one,), self.answers, right)
        for letter in "EF":
            chosen = self.predicted == LETTERS.index(letter)
            found.append(proportion(f"{letter} rate", int(chosen.sum()), len(chosen)))
        return tuple(found)

    def coverage_by(self, groups: ArrayLike) -> pd.DataFrame:
        """Coverage where it may hide below the mean: in each group of test rows.

        Args:
            groups: one value for each row given to `conformal_report`, those dropped included.

        Returns:
            A row a group and score: group, score, n, coverage, low, high (95 %, Wilson), set_size.

        Raises:
            InputError: not one value a row.
        """
        import pandas as pd

        told = np.asarray(groups, dtype=object)
        if told.shape != (self.rows,):
            raise InputError(
                f"groups of shape {told.shape} for {self.rows} rows of logits: give one value for "
                "each, those dropped included"
            )
        frame, rows = pd.DataFrame({"group": told[self.test]}), []
        for group, part in frame.groupby("group", dropna=False):
            places = part.index.to_numpy()
            for one in self.scores:
                sets = one.sets[places]
                hits = int(sets[np.arange(len(sets)), self.answers[places]].sum())
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
        InputError: a value is out of its range, there are too few rows, or see `choices.checked`.
    """
    alpha = check_settings(alpha, score, rule)
    told, truth = checked(logits, answers)
    kept = _kept(len(told), drop)
    fit, test = (kept[half] for half in halves(len(kept), calibration, split_seed))
    predicted = told.argmax(axis=1)
    found: dict[str, Sets] = {}
    for name in _names(score):
        cells, own = scored(told, truth, name, rule)
        cut = threshold(own[fit], alpha, rule)
        found[name] = one = sets_of(name, cells[test], truth[test], predicted[test], cut)
        if one.empty == len(test):
            log.warning(
                "conformal: %s leaves all %d sets empty at alpha=%g; each holds its likeliest "
                "letter only because one was put there",
                name.upper(),
                len(test),
                alpha,
            )
    top = predicted[test]
    return ConformalReport(
        acc=float((top == truth[test]).mean()),
        coverage=float(np.mean([one.coverage for one in found.values()])),
        set_size=float(np.mean([one.set_size for one in found.values()])),
        uacc=float(np.mean([one.uacc for one in found.values()])),
        e_rate=float((top == LETTERS.index("E")).mean()),
        f_rate=float((top == LETTERS.index("F")).mean()),
        lac=found.get("lac"),
        aps=found.get("aps"),
        calibration=fit,
        test=test,
        answers=truth[test],
        predicted=top,
        missing=_missing(told[fit], truth[fit], alpha),
        alpha=alpha,
        rule=rule,
        rows=len(told),
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
    import pandas as pd

    alpha = check_settings(alpha, score, rule)
    _whole("splits", splits, 1)
    _whole("seed", seed, 0)
    told, truth = checked(logits, answers)
    predicted = told.argmax(axis=1)
    _missing(told, truth, alpha)
    each = {name: scored(told, truth, name, rule) for name in _names(score)}
    rows: list[dict[str, Any]] = []
    for split in range(seed, seed + splits):
        fit, test = halves(len(truth), calibration, split)
        acc = float((predicted[test] == truth[test]).mean())
        for name, (cells, own) in each.items():
            cut = threshold(own[fit], alpha, rule)
            one = sets_of(name, cells[test], truth[test], predicted[test], cut)
            rows.append({
                "split": split, "score": name, "coverage": one.coverage,
                "covered_before": one.covered_before, "set_size": one.set_size,
                "uacc": one.uacc, "acc": acc,
            })  # fmt: skip
    return pd.DataFrame(rows)


def split_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """What `conformal_splits` found, over the splits of these very items.

    Returns:
        A row a score and measure: score, measure, splits, mean, sd over the splits, sem (standard
        error of the mean), and low and high, the mean's 95 % interval.
    """
    measures = ["coverage", "covered_before", "set_size", "uacc"]
    long = frame.melt("score", measures, var_name="measure", value_name="value")
    parts = long.groupby(["score", "measure"], sort=False)["value"]
    table = parts.agg(splits="size", mean="mean", sd="std", sem="sem").reset_index()
    low, high = table["mean"] - Z * table["sem"], table["mean"] + Z * table["sem"]
    return table.assign(low=low, high=high)


def check_settings(alpha: object, score: object, rule: object) -> float:
    """The level, if there are such a score and rule.

    Raises:
        InputError: there are not, or it is none.
    """
    if not (isinstance(alpha, float | np.floating) and 0 < alpha < 1):
        raise InputError(f"alpha={alpha!r}: give a number between 0 and 1, such as 0.1")
    for name, value, known in (
        ("score", score, ("both", *BOTH)),
        ("rule", rule, ("ye2024", "exact")),
    ):
        if value not in known:
            raise InputError(f"{name}={value!r}: give one of {', '.join(known)}")
    return float(alpha)


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value!r}: must be a whole number from {least}")


def _names(score: Literal["both", "lac", "aps"]) -> tuple[Score, ...]:
    return BOTH if score == "both" else (score,)


def _kept(n: int, drop: Sequence[int]) -> NDArray[np.int64]:
    """Places of the rows that are not dropped."""
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


def _missing(logits: NDArray[Any], answers: NDArray[np.int64], alpha: float) -> float:
    """Share of rows whose right letter is missing, with a warning where it spoils the sets."""
    share = float(np.isneginf(logits[np.arange(len(logits)), answers]).mean())
    if share > alpha / 2:
        log.warning(
            "conformal: the right letter is missing in %.1f %% of rows (alpha is %g %%), and all "
            "sets are large for it: ask for more log-probabilities",
            100 * share,
            100 * alpha,
        )
    return share


def _measured(
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
