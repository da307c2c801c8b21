"""Metrics with intervals, and the kinds of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import ClassVar

from workbench.errors import InputError
from workbench.lazy import ArrayLike, NDArray, np
from workbench.reprs import Shown, measured

Z = 1.959964
"""Half the width of a 95 % interval in standard errors."""


@dataclass(frozen=True, slots=True, repr=False)
class Metric(Shown):  # noqa: PLW1641  # the hash of its fields is inherited
    """A headline number with its interval, and counts of rows that it leaves out.

    As text it is "0.42 (0.1 to 0.74, n = 20)", a `Share` "85.0 % (64.0 to 94.8, n = 20)" and a
    `ShareDifference` "+10.0 points (-3.2 to +21.8, n = 20)"; the classes differ only in this.
    """

    form: ClassVar[str] = "number"
    name: str
    value: float
    low: float
    high: float
    n: int
    n_failed: int = 0
    n_unparsed: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metric) and astuple(self) == astuple(other)

    def __str__(self) -> str:
        return measured(self)


class Share(Metric):
    """A share, from 0 to 1."""

    __slots__ = ()
    form = "share"


class ShareDifference(Metric):
    """One share minus another, from -1 to 1."""

    __slots__ = ()
    form = "share difference"


FORMS: Mapping[str, type[Metric]] = {one.form: one for one in (Metric, Share, ShareDifference)}
"""The kinds of metrics by `form`, which a saved report has with its numbers."""


def proportion(
    name: str, hits: int, n: int, *, n_failed: int = 0, n_unparsed: int = 0, level: float = 0.95
) -> Metric:
    """A share with its Wilson score interval (Wilson 1927), as a `Metric`.

    Args:
        hits, n: number of hits, and of all.
        n_failed, n_unparsed: rows that are not part of `n`, and rows that count in `n` as misses
            because nothing could be read from them.
        level: confidence level of the interval.

    Raises:
        InputError: `n` is 0, or `hits` is not within 0..n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise InputError(f"{name}: {hits} of {n} is not a share; nothing was counted")
    from statistics import NormalDist  # SciPy's import takes 0.9 of the 3 s of a sweep's point

    share, square = hits / n, NormalDist().inv_cdf((1 + level) / 2) ** 2
    low, high = wilson(share, n, square)
    low, high = low if hits else 0.0, high if hits < n else 1.0
    return Share(name, share, low, high, n, n_failed, n_unparsed)


def wilson(share: float, n: float, square: float) -> tuple[float, float]:
    """Wilson's interval of a share of n, for the square of the quantile."""
    half = (square * (share * (1 - share) / n + square / (4 * n * n))) ** 0.5
    ends = [(share + square / (2 * n) + side) / (1 + square / n) for side in (-half, half)]
    return max(0.0, ends[0]), min(1.0, ends[1])


def difference(name: str, values: ArrayLike, others: ArrayLike) -> Metric:
    """Mean of `values - others` over the same n items [n], with its paired 95 % interval.

    The interval is the normal approximation, good from about 30 items. For right or wrong answers,
    use `paired_shares`, which is good with few items too.

    Raises:
        InputError: the two differ in length, or there are fewer than 2 items.
    """
    a, b = np.asarray(values, float), np.asarray(others, float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise InputError(f"{name}: {a.shape} and {b.shape} are not 2 or more paired values")
    paired = a - b
    half = Z * float(paired.std(ddof=1)) / len(paired) ** 0.5
    middle = float(paired.mean())
    return Metric(name, middle, middle - half, middle + half, len(paired))


def paired_shares(name: str, right: ArrayLike, others: ArrayLike, *, n_failed: int = 0) -> Metric:
    """Share of `right` minus share of `others` over the same n items, with its 95 % interval.

    The value is the plain difference. The interval is the adjusted Wald interval of Agresti and
    Min (2005, Statistics in Medicine 24:729-740), which adds 1/2 to each of the four counts, so
    that it has a width even if the two never differ.

    Args:
        right, others: bool [n], right or wrong on each item.
        n_failed: items that are not part of these.

    Raises:
        InputError: the two differ in length, are empty, or have values other than right and wrong.
    """
    n, gained, lost = _pairs(name, right, others)
    total = n + 2
    middle = (gained - lost) / total
    half = Z * (gained + lost + 1 - (gained - lost) ** 2 / total) ** 0.5 / total
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return ShareDifference(name, (gained - lost) / n, low, high, n, n_failed)


def mcnemar(right: ArrayLike, others: ArrayLike) -> float:
    """Two-sided p-value of McNemar's exact test that both shares are the same.

    It uses the items where exactly one of the two is right: under the hypothesis, a fair coin.

    Raises:
        InputError: as `paired_shares`.
    """
    _, gained, lost = _pairs("mcnemar", right, others)
    if gained + lost == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue)


def _pairs(name: str, right: ArrayLike, others: ArrayLike) -> tuple[int, int, int]:
    """Number of items; of items where only the first, or only the second, is right."""
    a, b = np.asarray(right), np.asarray(others)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(f"{name}: {a.shape} and {b.shape} are not the same items, at least 1")
    if not np.isin([a, b], [0, 1]).all():
        raise InputError(f"{name}: each item must be right (1) or wrong (0) and nothing else")
    return len(a), int((a > b).sum()), int((a < b).sum())


def balanced_accuracy(name: str, right: ArrayLike, answers: ArrayLike) -> Metric:
    """Mean, over the answers that occur, of the share of their items that is right.

    The 95 % interval combines the answers' Wilson intervals (Newcombe 1998, method 10).

    Args:
        right: bool [n].
        answers: the true class of each item [n].

    Raises:
        InputError: there are no items.
    """
    hits, classes = np.asarray(right, float), np.asarray(answers)
    if not len(hits):
        raise InputError(f"{name}: nothing was counted")
    groups = [hits[classes == one] for one in np.unique(classes)]
    parts = [proportion(name, int(group.sum()), len(group)) for group in groups]
    value = float(np.mean([part.value for part in parts]))
    below = sum((part.value - part.low) ** 2 for part in parts) ** 0.5 / len(parts)
    above = sum((part.high - part.value) ** 2 for part in parts) ** 0.5 / len(parts)
    return Share(name, value, value - below, value + above, len(hits))


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of the top answer (Guo et al. 2017, section 2, equation 3).

    Args:
        confidence: probability of the chosen answer [n], binned in equal widths over (0, 1].
        right: whether the answer was right [n].

    Raises:
        InputError: no answers, different lengths, or a value is not a probability.
    """
    p, hit = np.asarray(confidence, float), np.asarray(right, float)
    if not p.size or p.shape != hit.shape or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"confidence {p.shape} and right {hit.shape}: no valid probabilities")
    place = np.clip(np.ceil(p * bins) - 1, 0, bins - 1)
    return sum(abs(float((p - hit)[place == b].sum())) for b in range(bins)) / len(p)


def mean(name: str, values: ArrayLike, least: float, most: float) -> Metric:
    """Mean of values [n] on a scale from `least` to `most`, with its 95 % t interval.

    From 0 to 1 it is a `Share`, from -1 to 1 a `ShareDifference`.

    If all values are equal (or there is only one), the spread is unknown, not 0. Then as many
    further values as the Wilson interval of 0 of n allows may be at either end.

    Raises:
        InputError: no values, or one is not on the scale.
    """
    x = on_scale(name, values, least, most)
    if (x == x[0]).all():
        return without_spread(Metric(name, float(x[0]), least, most, len(x)), len(x))
    error = float(x.std(ddof=1)) / len(x) ** 0.5
    return t_interval(Metric(name, float(x.mean()), least, most, len(x)), error, len(x) - 1)


def on_scale(name: str, values: ArrayLike, least: float, most: float) -> NDArray[np.float64]:
    """The values [n]; refuses none of them, or one that is not on the scale."""
    x = np.asarray(values, float)
    if x.ndim != 1 or not len(x) or not ((x >= least) & (x <= most)).all():
        raise InputError(f"{name}: {x.shape} are not values from {least} to {most}, at least 1")
    return x


def without_spread(whole: Metric, units: int) -> Metric:
    """A mean with the ends of its scale, of which nothing varies between the sampled units."""
    other, middle = Z**2 / (units + Z**2), whole.value
    low, high = middle - other * (middle - whole.low), middle + other * (whole.high - middle)
    return in_kind(whole, middle, low, high)


def t_interval(whole: Metric, error: float, freedom: float) -> Metric:
    """A mean with the ends of its scale: it gets its t interval, within the scale."""
    from scipy.stats import t

    half = float(t.ppf(0.975, freedom)) * error
    middle = min(max(whole.value, whole.low), whole.high)  # rounding may exceed the scale
    return in_kind(whole, middle, max(whole.low, middle - half), min(whole.high, middle + half))


def in_kind(whole: Metric, middle: float, low: float, high: float) -> Metric:
    """A number in the form of its scale: from 0 to 1 a `Share`, from -1 a `ShareDifference`."""
    scale = (whole.low, whole.high)
    kind = {(0.0, 1.0): Share, (-1.0, 1.0): ShareDifference}.get(scale, Metric)
    return kind(whole.name, middle, low, high, whole.n)


def mean_share(name: str, shares: ArrayLike, *, n_failed: int = 0, n_unparsed: int = 0) -> Metric:
    """Mean of the shares [n] of n items: Wilson's interval if all are 0 or 1, else the t interval.

    Without items, the result is unknown, not 0: NaN, from 0 to 1.

    Raises:
        InputError: as `mean`.
    """
    x = np.asarray(shares, float)
    if not len(x):
        return Share(name, float("nan"), 0.0, 1.0, 0, n_failed, n_unparsed)
    if np.isin(x, (0.0, 1.0)).all():
        return proportion(name, int(x.sum()), len(x), n_failed=n_failed, n_unparsed=n_unparsed)
    return replace(mean(name, x, 0.0, 1.0), n_failed=n_failed, n_unparsed=n_unparsed)


def kappa(name: str, verdicts: ArrayLike, gold: ArrayLike, *, power: int | None = None) -> Metric:
    """Cohen's kappa: agreement beyond chance on n items (Cohen 1960), with its 95 % interval.

    The standard error is the large-sample one of Fleiss, Cohen and Everitt (1969, Psychological
    Bulletin 72:323-327). If it is 0 (they never differ, or one of them never varies), the
    interval is that of the agreement (Wilson) at the same chance agreement. If both have the same
    single class, nothing can be beyond chance: 0, from -1 to 1.

    Args:
        verdicts, gold: the classes [n] from two sources, per item.
        power: None counts all disagreements alike; 1 and 2 weight them by this power of the
            distance between the classes, which must be numbers (Cohen 1968).

    Raises:
        InputError: the two differ in length, are empty, or are not numbers where required.
    """
    a, b = np.asarray(verdicts), np.asarray(gold)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(f"{name}: {a.shape} and {b.shape} are not the same items, at least 1")
    n, classes = len(a), np.unique(np.concatenate([a, b]))
    if power is not None and not (power > 0 and np.issubdtype(classes.dtype, np.number)):
        raise InputError(f"{name}: power={power!r} needs numbers as classes, and to be above 0")
    if len(classes) == 1:
        return Metric(name, 0.0, -1.0, 1.0, n)
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (np.searchsorted(classes, a), np.searchsorted(classes, b)), 1)
    apart = 1 - np.eye(len(classes))
    if power is not None:
        apart = np.abs(np.subtract.outer(classes, classes)).astype(float) ** power
    return _beyond_chance(name, counts, 1 - apart / apart.max())


def _beyond_chance(name: str, counts: NDArray[np.float64], w: NDArray[np.float64]) -> Metric:
    """Kappa from the number of items per pair of classes, and the weight of each pair."""
    n = int(counts.sum())
    p, rows, columns = counts / n, counts.sum(1) / n, counts.sum(0) / n
    observed, chance = float((w * counts).sum()) / n, float(rows @ w @ columns)
    margins = (w @ columns)[:, None] + (rows @ w)[None, :]
    spread = float((p * (w * (1 - chance) - margins * (1 - observed)) ** 2).sum())
    spread -= (observed * chance - 2 * chance + observed) ** 2
    value = (observed - chance) / (1 - chance)
    if spread > 1e-12:
        half = Z * (spread / n) ** 0.5 / (1 - chance) ** 2
        low, high = value - half, value + half
    else:
        share = proportion(name, round(observed * n), n)
        low, high = ((end - chance) / (1 - chance) for end in (share.low, share.high))
    return Metric(name, value, max(-1.0, min(low, value)), min(1.0, max(high, value)), n)
