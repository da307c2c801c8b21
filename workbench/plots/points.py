"""The table of a sweep, one row per point, as figures need it: means over repeats, Pareto fronts.

Such a table has the columns `state` ("done", or how the point ended), the parameters, and each
metric with, where known, `<metric>.low` and `<metric>.high`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from workbench.errors import InputError
from workbench.lazy import np, pd
from workbench.stats import mean

STATES = {"timeout": "timed out"}
ABOUT = ("key", "state", "detail")


def averaged(table: pd.DataFrame, metric: str, by: Sequence[str]) -> pd.DataFrame:
    """The mean of a metric over the repeats (such as seeds) of each combination of values.

    Args:
        by: columns that distinguish combinations; None is a value like others.

    Returns:
        One row per combination, in order of appearance: the columns `by`, `<metric>`,
        `<metric>.low`, `<metric>.high`, `points` (that have a number), `failed` (that have none),
        and `interval`, which says what the 95 % interval is of. "repeats": the mean of several
        points, by their spread (t), which knows nothing of the items within a point; "own": what
        the metric came with, where there is one point or all repeats agree; "none": unknown. The
        interval of a share stays between 0 and 1.

    Raises:
        InputError: a column is missing, or has a name that the result needs.
    """
    names = [metric, f"{metric}.low", f"{metric}.high", "points", "failed", "interval"]
    check_columns(table, [metric, *by])
    if taken := [name for name in by if name in names]:
        raise InputError(f"by={taken[0]!r}: the result has a column of this name; rename yours")
    table = table.reset_index(drop=True)
    facts = pd.DataFrame({name: finite(table, name) for name in names[:3]})
    scale = (0.0, 1.0) if is_share(table, metric) else (-math.inf, math.inf)
    places: dict[tuple[str, ...], list[int]] = {}
    texts = [table[name].map(shown) for name in by]
    for place, point in enumerate(zip(*texts, strict=True) if by else [()] * len(table)):
        places.setdefault(point, []).append(place)
    rows = []
    for at in places.values():
        part = facts.iloc[at].dropna(subset=metric)
        found = _interval(metric, part, scale)
        about = [table[name].iloc[at[0]] for name in by]
        rows.append([*about, *found[:3], len(part), len(at) - len(part), found[3]])
    return pd.DataFrame(rows, columns=[*by, *names])


def is_share(table: pd.DataFrame, metric: str) -> bool:
    """Whether a metric is taken to be a share: it has intervals, and all is from 0 to 1."""
    value, low, high = (finite(table, metric + end) for end in ("", ".low", ".high"))
    inside = all(one.dropna().between(0, 1).all() for one in (value, low, high))
    return bool(inside and low.notna().any())


def written(value: float, *ends: float, share: bool = False) -> str:
    """A value as a figure has it, of a share in percent, and below it the ends of its interval."""
    numbers = [100 * one if share else one for one in (value, *ends)]
    forms = ["{:.1f}" if share else "{:,.0f}" if abs(one) >= 1000 else "{:.3g}" for one in numbers]
    texts = [form.format(one) for form, one in zip(forms, numbers, strict=True)]
    return texts[0] + (f"\n{'–'.join(texts[1:])}" if ends and "nan" not in texts else "")


def _interval(
    metric: str, part: pd.DataFrame, scale: tuple[float, float]
) -> tuple[float, float, float, str]:
    """The mean with its ends, and what they are of."""
    values, low, high = (part[name].astype(float) for name in part.columns)
    if values.empty:
        return math.nan, math.nan, math.nan, "none"
    if (values != values.iloc[0]).any():
        found = mean(metric, values, *scale)
        return found.value, found.low, found.high, "repeats"
    own = bool(low.notna().any() and high.notna().any())
    return float(values.iloc[0]), float(low.min()), float(high.max()), "own" if own else "none"


def pareto(table: pd.DataFrame, cost: str, metric: str) -> pd.Series[bool]:
    """Which points are on the front: no other costs as little and has more, or less and as much.

    Raises:
        InputError: a column is missing.
    """
    check_columns(table, [cost, metric])
    costs, values = finite(table, cost), finite(table, metric)
    both = costs.notna() & values.notna()
    best = values[both].groupby(costs[both]).max()  # in order of cost
    before = best.cummax().shift(fill_value=-math.inf)
    front = (values == costs.map(best)) & (values > costs.map(before))
    return (both & front).rename("pareto")


def left_out(table: pd.DataFrame, *metrics: str) -> str:
    """How many points lack a number and why, such as "3 of 24 points failed"; "" if none does."""
    numberless = ~finite(table, metrics[0]).notna()
    for metric in metrics[1:]:
        numberless |= finite(table, metric).isna()
    states = table["state"].where(table["state"] != "done", "without a number")[numberless]
    counts = [(n, STATES.get(str(state), str(state))) for state, n in states.value_counts().items()]
    if not counts:
        return ""
    (first, state), *rest = counts
    return ", ".join(
        [f"{first} of {len(table)} points {state}", *(f"{n} {state}" for n, state in rest)]
    )


def finite(table: pd.DataFrame, metric: str) -> pd.Series[float]:
    """The finished points' numbers, NaN for all else, or where there is no such column."""
    if metric not in table:
        return pd.Series(math.nan, table.index)
    found = pd.to_numeric(table[metric], errors="coerce").astype(float)
    return found.where((table["state"] == "done") & np.isfinite(found))


def numbers(column: pd.Series[Any]) -> pd.Series[float] | None:
    """The column as floats; None where it is empty or a value of it is no finite number."""
    whole = len(column) and all(
        isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        for value in column
    )
    return column.astype(float) if whole else None


def levels(column: pd.Series[Any]) -> list[str]:
    """The different values as texts: numbers by size, others by appearance, None last."""
    known = column.dropna()
    size = numbers(known)
    kept = known if size is None else size.sort_values()
    kept = known.sort_values() if known.dtype == bool else kept
    texts = [*dict.fromkeys(kept.map(shown))]
    return [*texts, "None"] if len(known) < len(column) else texts


def shown(value: Any) -> str:
    """A value as it stands in a figure; equal texts are equal values."""
    if pd.isna(value) is True:
        return "None"
    if not isinstance(value, Real) or isinstance(value, bool):
        return str(value)
    number = float(value)
    text = f"{number:g}"
    text = text if float(text) == number else repr(number)
    if not number or 0.01 <= abs(number) < 1e6:
        return text
    power = np.format_float_scientific(number, trim="-", exp_digits=1).replace("e+", "e")
    return min(power, text, key=len)


def varied(table: pd.DataFrame, *metrics: str) -> list[str]:
    """The columns before the first metric, which are parameters, that have several values."""
    columns = [str(name) for name in table.columns if name not in ABOUT]
    measured = {*metrics, *(name.rpartition(".")[0] for name in columns if name.endswith(".n"))}
    first = next((i for i, name in enumerate(columns) if name in measured), len(columns))
    return [name for name in columns[:first] if len({*table[name].map(shown)}) > 1]


def check_columns(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Refuse a table that lacks one, or has no rows.

    Raises:
        InputError: it names the column that is nearest.
    """
    for name in ("state", *names):
        if name not in table:
            near = difflib.get_close_matches(name, map(str, table.columns), 1, 0)
            hint = f"the nearest is {near[0]!r}" if near else "it has none"
            raise InputError(f"the table has no column {name!r}: {hint}")
    if table.empty:
        raise InputError("the table has no rows, so there is nothing to draw; give 1 at least")
