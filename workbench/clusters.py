"""Intervals where values are not independent: clusters of items, and items crossed with seeds."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.errors import InputError, log
from workbench.lazy import ArrayLike, NDArray, np
from workbench.stats import Metric, Share, in_kind, on_scale, t_interval, wilson, without_spread

ROUNDING = 1e-12
"""A standard error below this is 0."""


def clustered_error(values: ArrayLike, clusters: ArrayLike) -> tuple[float, int]:
    """Standard error of a mean whose errors are alike within clusters, and their number G.

    √(G/(G-1) Σ_g (Σ_(i in g) (x_i - x̄))²) / n: the clustered standard error of Miller (2024,
    arXiv 2411.00640, section 2.2) with the correction G/(G-1) for few clusters, which is the
    linearised error of a ratio (Cochran 1977, Sampling Techniques). NaN for one cluster.

    Args:
        values: one per item [n]; differences for a paired comparison (section 4.2 there).
        clusters: the cluster of each item [n], such as the passage that it asks about.
    """
    parts = _cluster_parts(np.asarray(values, float)[:, None], clusters)[:, 0]
    count = len(parts)
    return float(parts.std(ddof=1)) / count**0.5 if count > 1 else float("nan"), count


def _cluster_parts(table: NDArray[np.float64], clusters: ArrayLike) -> NDArray[np.float64]:
    """What each cluster adds to the mean of values [n, m], as values [G, m] with the same mean."""
    groups, places = np.unique(np.asarray(clusters).astype(str), return_inverse=True)
    sums = np.zeros((len(groups), table.shape[1]))
    np.add.at(sums, places, table - table.mean())
    return np.asarray(table.mean() + sums * (len(groups) / len(table)))


def clustered_mean(
    name: str, values: ArrayLike, clusters: ArrayLike, least: float = 0.0, most: float = 1.0
) -> Metric:
    """Mean of values [n] whose errors are alike within clusters [n], with its 95 % interval.

    The standard error is `clustered_error`, with the t quantile of G-1 degrees of freedom. If all
    values are 0 or 1, it is Wilson's interval of as many independent items as have that error, at
    most n (Franco et al. 2019, J. Survey Statistics and Methodology 7:334-364). If the error is 0,
    the spread is unknown: as `mean`, with each cluster as one value. One cluster gives no
    interval: it is the whole scale, and a warning says so.

    Raises:
        InputError: as `mean`, or the two differ in length.
    """
    x, groups = on_scale(name, values, least, most), np.asarray(clusters)
    if groups.shape != x.shape:
        raise InputError(f"{name}: {len(x)} values and {groups.shape} clusters: give one for each")
    error, count = clustered_error(x, groups)
    middle = float(x.mean())
    whole = Metric(name, middle, least, most, len(x))
    if count == 1:
        log.warning("%s: all %d items are one cluster, so there is no interval", name, len(x))
        return in_kind(whole, middle, least, most)
    if error < ROUNDING:
        return without_spread(whole, count)
    if (least, most) != (0, 1) or not np.isin(x, (0, 1)).all():
        return t_interval(whole, error, count - 1)
    from scipy.stats import t

    size = min(len(x), middle * (1 - middle) / error**2)
    low, high = wilson(middle, size, float(t.ppf(0.975, count - 1)) ** 2)
    return Share(name, middle, low, high, len(x))


def crossed_mean(
    name: str, table: ArrayLike, clusters: ArrayLike | None = None
) -> tuple[Metric, Mapping[str, float]]:
    """Mean of shares [n items, m seeds], with a 95 % interval over both items and seeds.

    Both are random samples, crossed: a value is mean + item + seed + rest. With the mean squares
    of a two-way analysis of variance, the squared standard error is (MS_items + MS_seeds -
    MS_rest) / (n m), and the t quantile has the degrees of freedom of Satterthwaite (1946,
    Biometrics Bulletin 2:110-114; Brennan 2001, Generalizability Theory). If seeds (or items) vary
    no more than the rest, their part is 0.

    Args:
        clusters: the cluster of each item [n]; None if items are independent.

    Returns:
        The metric, and the parts of its squared standard error: items (or clusters), seeds, rest.

    Raises:
        InputError: fewer than 2 items (or clusters) or seeds, or values that are no shares.
    """
    x = np.asarray(table, float)
    if x.ndim != 2 or min(x.shape) < 2 or not ((x >= 0) & (x <= 1)).all():
        raise InputError(f"{name}: {x.shape} are not shares of 2 or more items and 2 or more seeds")
    parts = x if clusters is None else _cluster_parts(x, clusters)
    rows, columns = parts.shape
    if rows < 2:
        raise InputError(f"{name}: all items are one cluster, so there is no interval")
    middle = float(x.mean())
    of_rows, of_columns = parts.mean(1), parts.mean(0)
    rest = parts - of_rows[:, None] - of_columns + middle
    free = (rows - 1, columns - 1, (rows - 1) * (columns - 1))
    squares = [columns * of_rows.var(ddof=1), rows * of_columns.var(ddof=1), np.sum(rest**2)]
    a, b, e = (float(one) / parts.size for one in (*squares[:2], squares[2] / free[2]))
    shown = {"items": max(a - e, 0.0), "seeds": max(b - e, 0.0), "rest": e}
    used = [(a, free[0]), (b, free[1]), (-e, free[2])]
    used = used[:1] if b <= e else used[1:2] if a <= e else used
    square = sum(part for part, _ in used)
    whole = Metric(name, middle, 0.0, 1.0, len(x))
    if square < ROUNDING**2:
        return without_spread(whole, rows), shown
    freedom = square**2 / sum(part**2 / one for part, one in used)
    return t_interval(whole, square**0.5, freedom), shown
