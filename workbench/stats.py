"""Intervals for measured numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.errors import InputError
from workbench.types import Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "balanced_accuracy",
    "calibration_error",
    "difference",
    "mcnemar",
    "paired_shares",
    "proportion",
]

Z = 1.959964
"""Half the width of a 95 % interval in standard errors."""


def proportion(
    name: str, hits: int, n: int, *, n_failed: int = 0, n_unparsed: int = 0, level: float = 0.95
) -> Metric:
    """A share with its Wilson score interval (Wilson 1927), as a `Metric`.

    Args:
        hits, n: how many of how many.
        n_failed, n_unparsed: rows that are no part of `n`, and rows counted in `n` as misses
            because nothing could be read from them.
        level: confidence of the interval.

    Raises:
        InputError: `n` is 0, or `hits` is not within 0..n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise InputError(f"{name}: {hits} of {n} is no share; nothing was counted")
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(level, method="wilson")
    low, high = float(interval.low), float(interval.high)
    return Metric(name, hits / n, low, high, n, n_failed, n_unparsed)


def difference(name: str, values: ArrayLike, others: ArrayLike) -> Metric:
    """Mean of `values - others` over the same n items [n], with its paired 95 % interval.

    The interval is the normal one, good from about 30 items on. For right or wrong there is
    `paired_shares`, which is good with few items too.

    Raises:
        InputError: the two differ in length, or there are fewer than 2 items.
    """
    import numpy as np

    a, b = np.asarray(values, float), np.asarray(others, float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise InputError(f"{name}: {a.shape} and {b.shape} are no paired values of 2 or more items")
    paired = a - b
    half = Z * float(paired.std(ddof=1)) / len(paired) ** 0.5
    middle = float(paired.mean())
    return Metric(name, middle, middle - half, middle + half, len(paired))


def paired_shares(name: str, right: ArrayLike, others: ArrayLike, *, n_failed: int = 0) -> Metric:
    """Share of `right` minus share of `others` over the same n items, with its 95 % interval.

    The value is the plain difference; the interval is the adjusted Wald interval of Agresti and
    Min (2005, Statistics in Medicine 24:729-740), which adds 1/2 to each of the four counts, so
    that it has a width even where the two never differ.

    Args:
        right, others: bool [n], right or wrong on each item.
        n_failed: items that are no part of these.

    Raises:
        InputError: the two differ in length, are empty, or hold more than right and wrong.
    """
    n, gained, lost = _pairs(name, right, others)
    total = n + 2
    middle = (gained - lost) / total
    half = Z * (gained + lost + 1 - (gained - lost) ** 2 / total) ** 0.5 / total
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Metric(name, (gained - lost) / n, low, high, n, n_failed)


def mcnemar(right: ArrayLike, others: ArrayLike) -> float:
    """Two-sided p-value of McNemar's exact test that both shares are the same.

    It looks at the items where just one of the two is right: a fair coin would have chosen which.

    Raises:
        InputError: as `paired_shares`.
    """
    _, gained, lost = _pairs("mcnemar", right, others)
    if gained + lost == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue)


def _pairs(name: str, right: ArrayLike, others: ArrayLike) -> tuple[int, int, int]:
    """How many items, and on how many only the first or only the second is right."""
    import numpy as np

    a, b = np.asarray(right), np.asarray(others)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(f"{name}: {a.shape} and {b.shape} are not the same items, 1 at least")
    if not np.isin([a, b], [0, 1]).all():
        raise InputError(f"{name}: each item must be right (1) or wrong (0) and nothing else")
    return len(a), int((a > b).sum()), int((a < b).sum())


def balanced_accuracy(name: str, right: ArrayLike, answers: ArrayLike) -> Metric:
    """Mean over the answers that occur of the share of their items that is right.

    The 95 % interval joins the answers' Wilson intervals (Newcombe 1998, method 10).

    Args:
        right: bool [n].
        answers: the true class of each item [n].

    Raises:
        InputError: there are no items.
    """
    import numpy as np

    hits, classes = np.asarray(right, float), np.asarray(answers)
    if not len(hits):
        raise InputError(f"{name}: nothing was counted")
    groups = [hits[classes == one] for one in np.unique(classes)]
    parts = [proportion(name, int(group.sum()), len(group)) for group in groups]
    value = float(np.mean([part.value for part in parts]))
    below = sum((part.value - part.low) ** 2 for part in parts) ** 0.5 / len(parts)
    above = sum((part.high - part.value) ** 2 for part in parts) ** 0.5 / len(parts)
    return Metric(name, value, value - below, value + above, len(hits))


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of the top answer (Guo et al. 2017, section 2, equation 3).

    Args:
        confidence: probability of the chosen answer [n], binned in equal widths over (0, 1].
        right: whether it was right [n].

    Raises:
        InputError: there are none, the two differ in length, or one is no probability.
    """
    import numpy as np

    p, hit = np.asarray(confidence, float), np.asarray(right, float)
    if not p.size or p.shape != hit.shape or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"confidence {p.shape} and right {hit.shape}: no probabilities of answers")
    place = np.clip(np.ceil(p * bins) - 1, 0, bins - 1)
    return sum(abs(float((p - hit)[place == b].sum())) for b in range(bins)) / len(p)
