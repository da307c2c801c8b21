"""Intervals for measured numbers."""

from __future__ import annotations

from workbench.errors import InputError
from workbench.types import Metric

__all__ = ["proportion"]


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
