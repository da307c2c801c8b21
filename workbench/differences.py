"""Two runs of one experiment, value by value: what is the same, what differs, and by how much.

Both are reports as `verdicts.load` returns them, so that their values have the same types.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from numbers import Real
from typing import Any

from workbench.lazy import np, pd
from workbench.types import Report
from workbench.values import is_missing
from workbench.verdicts import Evaluation

COLUMNS = ["id", "what", "then", "now", "difference", "same"]
PROVENANCE, SUMMARY = "provenance", "summary"
"""The `id` of values that belong to no row."""
SKIPPED = {"from_store"}
"""Columns that say how an answer came, not what it is."""
OUTCOMES = (
    "why", "notes", "failovers", "style_why", "usage", "cost", "n_timed_out", "energy",
    "predictability", "options.dtype",
)  # fmt: skip
"""Names in the provenance that are results, or follow from other names."""
CALL = ("round", "call", "sample")
ABSENT = "(none)"

Pair = tuple[str, str, Any, Any]


def differences(then: Report, now: Report, key: Sequence[str], tolerance: float) -> pd.DataFrame:
    """All values of two reports side by side.

    Args:
        key: the columns that name a row; rows that share a name are matched in their order.
        tolerance: maximum absolute difference of numbers that are the same.

    Returns:
        A row per value: `id` (the values of `key`, or `PROVENANCE` or `SUMMARY`), `what` (its
        column or name), `then` and `now` as text, `difference` (absolute, of a number or the
        largest of several; NaN for texts) and `same`.
    """
    found = [*_of_mappings(PROVENANCE, _named(then.provenance), _named(now.provenance))]
    found += _of_mappings(SUMMARY, _metrics(then), _metrics(now))
    found += _of_frames(then.rows, now.rows, key)
    if isinstance(then, Evaluation) and isinstance(now, Evaluation) and len(then.trace):
        found += _of_frames(_readable(then.trace), _readable(now.trace), key, CALL)
    return pd.DataFrame([_row(*pair, tolerance) for pair in found], columns=COLUMNS)


def _named(provenance: Mapping[str, Any]) -> dict[str, Any]:
    names = dict(_flat(provenance))
    return {n: v for n, v in names.items() if not any(f".{end}." in f".{n}." for end in OUTCOMES)}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values within, by names such as `engines.0.dtype`; a list of plain values is one."""
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield name, value
        return
    for inner, one in value.items():
        yield from _flat(one, f"{name}.{inner}" if name else str(inner))


def _metrics(report: Report) -> dict[str, list[Any]]:
    return {one.name: [*asdict(one).values()][1:] for one in report.summary}


def _of_mappings(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Pair]:
    yield from ((key, name, then.get(name), now.get(name)) for name in {**then, **now})


def _of_frames(
    then: pd.DataFrame, now: pd.DataFrame, key: Sequence[str], within: Sequence[str] = ()
) -> Iterator[Pair]:
    """Rows with the same key side by side; `within` names several rows of one `id`."""
    sides = [_by_key(one, [*key, *within]) for one in (then, now)]
    columns = [n for n in {**dict(then), **dict(now)} if n not in {*key, *within, *SKIPPED}]
    for name in {**sides[0], **sides[1]}:
        here = ", ".join(name[: len(key)])
        at = "".join(f"{k} {v} " for k, v in zip(within, name[len(key) :], strict=False))
        one, other = (side.get(name) for side in sides)
        if one is None or other is None:
            yield here, f"{at}row", one and "a row", other and "a row"
        else:
            yield from ((here, f"{at}{what}", one.get(what), other.get(what)) for what in columns)


def _by_key(frame: pd.DataFrame, key: Sequence[str]) -> dict[tuple[str, ...], dict[Any, Any]]:
    found: dict[tuple[str, ...], dict[Any, Any]] = {}
    for row in frame.to_dict("records"):
        name = tuple(str(row.get(one)) for one in key)
        while name in found:
            name = (*name, "again")
        found[name] = row
    return found


def _readable(trace: pd.DataFrame) -> pd.DataFrame:
    """A trace in which the scores of labels are lists of numbers."""
    scores = trace["kind"].eq("score") & trace["error"].isna()
    pairs = zip(scores, trace["text"], strict=True)
    return trace.assign(text=[json.loads(text) if score else text for score, text in pairs])


def _row(key: str, what: str, then: Any, now: Any, tolerance: float) -> dict[str, Any]:
    apart, texts = _apart(then, now), (_text(then), _text(now))
    same = texts[0] == texts[1] if apart is None else apart <= tolerance
    values = (key, what, *texts, math.nan if apart is None else apart, same)
    return dict(zip(COLUMNS, values, strict=True))


def _apart(then: Any, now: Any) -> float | None:
    """The largest absolute difference of two numbers, or of lists of numbers; None for others."""
    if all(isinstance(x, Real) and not isinstance(x, bool | np.bool_) for x in (then, now)):
        one, other = float(then), float(now)
        equal = one == other or (math.isnan(one) and math.isnan(other))
        return 0.0 if equal else abs(one - other)
    lists = all(isinstance(x, list | tuple | np.ndarray) for x in (then, now))
    each = [*map(_apart, then, now)] if lists and len(then) == len(now) else []
    known = [one for one in each if one is not None]
    if not each or len(known) < len(each):
        return None
    return math.nan if any(map(math.isnan, known)) else max(known)


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return ABSENT if is_missing(value) else str(value)
