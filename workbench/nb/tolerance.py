"""Tolerances: how far the figures of a new run may differ from those stated in a notebook.

`expect("accuracy", value, stated=0.81, within=0.05)` prints a line that depends only on what was
stated, so that nbval can compare it on every machine, or raises an AssertionError.

A cell that ends in `approx(table, within={"accuracy": 0.05})` shows the table as pandas does. It
also stores a JSON value: the columns with their tolerances, the index first, and a digest of them
and the text, so that neither can be changed without the other.

The module is a pytest plugin, found by its entry point. With it, nbval compares such tables within
their tolerances. Without nbval it does nothing, and it changes no other verdict.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import numbers
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

from workbench.errors import NotebookError
from workbench.nb.notebook import joined

if TYPE_CHECKING:  # pytest inspects all names of a plugin, which would import pandas
    import pandas as pd

MIME = "application/vnd.workbench.approx+json"
SHOWN = ("text/html", "text/plain")  # the formats of the table that readers see
_INFINITIES = ("inf", "-inf")  # as text, because JSON has no infinity
# 0.3 - 0.2 is slightly above 0.1: a value exactly on the bound passes.
_ROUNDING = 1e-9


def expect(
    name: str,
    value: SupportsFloat,
    *,
    stated: float,
    within: float | None = None,
    relative: float | None = None,
) -> None:
    """Compare a measured value with a stated one.

    Args:
        name: What is measured; the first word of the printed line.
        value: The measured number.
        stated: The number that the text states.
        within: Maximum absolute difference.
        relative: Maximum difference as a share of `stated`; give this or `within`.

    Raises:
        AssertionError: The value is not a number or differs by more than the tolerance.
        NotebookError: The statement itself is unusable (no finite number, no positive tolerance).
    """
    if not math.isfinite(stated):
        raise NotebookError(f"{name}: stated={stated} is not a finite number; state one")
    given = within if relative is None else relative
    if given is None or (within is not None and relative is not None):
        raise NotebookError(
            f"{name}: within={within}, relative={relative}; give exactly one of the two"
        )
    if not (math.isfinite(given) and given > 0):
        raise NotebookError(f"{name}: the tolerance {given} must be finite and above 0")
    if relative is not None and stated == 0:
        raise NotebookError(f"{name}: relative= does not work with stated=0; use within=")
    share = relative is not None
    claim = f"{name}: {stated:g} ± " + (f"{given * 100:g} %" if share else f"{given:g}")
    measured = float(value)
    if not _near(measured, stated, abs(stated) * given if share else given):
        off = f"is off by {abs(measured - stated):.6g}"
        why = "is not a number" if math.isnan(measured) else off
        raise AssertionError(f"{claim} does not hold: the value {measured:.6g} {why}")
    print(f"{claim} holds")


def _near(value: float, stated: float, tolerance: float) -> bool:
    # Written so that NaN, which compares false with everything, fails.
    return abs(value - stated) <= tolerance * (1 + _ROUNDING)


@dataclass(frozen=True, slots=True, repr=False)
class Approximate:
    """A table with tolerances, as a notebook shows and stores it."""

    data: dict[str, Any]

    def __repr__(self) -> str:
        return str(self.data["text/plain"])

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return self.data


def approx(
    table: pd.DataFrame,
    *,
    within: Mapping[Any, float] | None = None,
    relative: Mapping[Any, float] | None = None,
) -> Approximate:
    """Show a table that another machine may compute slightly differently.

    Args:
        table: What to show, rounded for reading.
        within: Maximum absolute difference, by column.
        relative: Maximum difference as a share of the stored figure, by column. Columns in neither
            are compared exactly, as are the index and the names of the columns.

    Raises:
        NotebookError: A tolerance is not finite and above 0, is for a column that is missing or
            has no numbers, or a column has two tolerances.
    """
    absolute, shares = dict(within or {}), dict(relative or {})
    for name in [*absolute, *shares]:
        if name not in table.columns:
            raise NotebookError(f"no column {name!r}; there are {[*table.columns]}")
    names: Iterable[Any] = (*table.index.names, *table.columns.names)
    index = ", ".join(str(name) for name in names if name is not None) or "index"
    columns = [Column(index, [*map(_label, table.index)])]
    for place, name in enumerate(table.columns):
        values = [_value(value) for value in table.iloc[:, place]]
        texts = [one for one in values if isinstance(one, str) and one not in _INFINITIES]
        if texts and (name in absolute or name in shares):
            raise NotebookError(f"column {name!r} has {texts[0]!r}, which is not a number")
        try:
            columns.append(Column(_label(name), values, absolute.get(name), shares.get(name)))
        except ValueError as error:
            raise NotebookError(f"{error}; give one, finite and above 0") from error
    shown: Any = table  # pandas' stubs have no _repr_html_
    data = {"text/html": shown._repr_html_(), "text/plain": repr(table)}
    data = {mime: text for mime, text in data.items() if text is not None}
    made = [{k: v for k, v in asdict(one).items() if v is not None} for one in columns]
    return Approximate({**data, MIME: {"columns": made, "digest": digest(data, made)}})


def _label(label: Any) -> str:
    return ", ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def _value(value: Any) -> float | str | None:
    import pandas as pd

    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else str(float(value))


@dataclass(frozen=True, slots=True)
class Column:
    """A column; None is a missing value. Without a tolerance it is compared exactly.

    Raises:
        TypeError, ValueError: the column is malformed.
    """

    name: str
    cells: Sequence[float | str | None]
    within: float | None = None
    relative: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.cells, list):
            raise TypeError(f"column {self.name!r} has no name or no list of cells")
        for value in self.cells:
            if value is not None and not isinstance(value, str) and not _finite(value):
                raise ValueError(f"column {self.name!r} has the cell {value!r}")
        given = [one for one in (self.within, self.relative) if one is not None]
        if len(given) > 1 or any(not _finite(one) or one <= 0 for one in given):
            raise ValueError(f"column {self.name!r} has the tolerances {given}")

    @property
    def tolerance(self) -> str:
        """The tolerance in words."""
        if self.relative is not None:
            return f"± {100 * self.relative:g} %"
        return "none" if self.within is None else f"± {self.within:g}"

    def holds(self, row: int, new: float | str | None) -> bool:
        """Whether a new value is within the tolerance of this row's value."""
        old = self.cells[row]
        if isinstance(old, int | float) and isinstance(new, int | float):
            share = None if self.relative is None else self.relative * abs(old)
            return _near(new, old, (self.within or 0.0) if share is None else share)
        return old == new


def _finite(value: object) -> bool:
    return type(value) is not bool and isinstance(value, int | float) and math.isfinite(value)


def digest(data: Mapping[str, Any], columns: object) -> str:
    """A digest of the text that a reader sees together with its columns."""
    text = [joined(data.get(mime, "")) for mime in SHOWN]
    whole = "\0".join([*text, json.dumps(columns, sort_keys=True)])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def read_table(data: Mapping[str, Any]) -> list[Column]:
    """The table in the data of an output.

    Raises:
        NotebookError: the JSON value is broken, or does not belong to the text.
    """
    try:
        stored, seal = data[MIME]["columns"], data[MIME]["digest"]
        columns = [Column(**column) for column in stored]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise NotebookError(f"a broken {MIME}: {error}; refresh the notebook") from error
    if len({len(column.cells) for column in columns}) != 1:
        raise NotebookError(f"a broken {MIME}: columns of several lengths, or none; refresh")
    if seal != digest(data, stored):
        raise NotebookError(
            f"the table shown is not the one in {MIME}: one was changed by hand; refresh the "
            "notebook"
        )
    return columns


def paired(stored: Sequence[Any], fresh: Sequence[Any]) -> list[tuple[int, Any]]:
    """The indexes of the fresh outputs with a table, each with its stored counterpart.

    Outputs without a counterpart are left out.
    """
    places = [place for place, output in enumerate(fresh) if MIME in output.get("data", ())]
    return list(zip(places, (o for o in stored if MIME in o.get("data", ())), strict=False))


def differences(stored: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
    """Differences beyond the tolerances between two outputs, as messages; empty if they agree.

    Tolerances must agree too: those of the code must be the ones that the notebook states.
    """
    tables = []
    for whose, data in (("stored", stored), ("new", fresh)):
        try:
            tables.append(read_table(data))
        except NotebookError as error:
            return [f"the {whose} output: {error}"]
    names = [[column.name for column in table] for table in tables]
    rows = [len(table[0].cells) for table in tables]
    if names[0] != names[1]:
        return [f"columns: stored {names[0]}, new {names[1]}"]
    if rows[0] != rows[1]:
        return [f"rows: stored {rows[0]}, new {rows[1]}"]
    pairs = list(zip(*tables, strict=True))
    return [
        f"column {old.name!r}: the stored tolerance is {old.tolerance}, the code states "
        f"{new.tolerance}"
        for old, new in pairs
        if (old.within, old.relative) != (new.within, new.relative)
    ] + [
        f"row {tables[0][0].cells[row]!r}, column {old.name!r}: stored {old.cells[row]!r}, "
        f"new {value!r}, tolerance {old.tolerance}"
        for old, new in pairs
        for row, value in enumerate(new.cells)
        if not old.holds(row, value)
    ]


def pytest_itemcollected(item: Any) -> None:
    """Compare the tables of a notebook's cell first, and the rest with nbval."""
    nbval = sys.modules.get("nbval.plugin")
    if nbval is not None and isinstance(item, nbval.IPyNbCell):
        item.compare_outputs = functools.partial(_compare_outputs, item)


def _compare_outputs(
    item: Any, test: list[Any] | None, ref: list[Any] | None, skip_compare: Any = None
) -> bool:
    """Compare the tables, then the rest, in which the stored tables replace the new ones."""
    fresh, stored = list(test or ()), list(ref or ())
    counts = [sum(MIME in output.get("data", ()) for output in side) for side in (stored, fresh)]
    wrong: list[str] = []
    if counts[0] != counts[1]:
        wrong.append(f"tables with tolerances: stored {counts[0]}, new {counts[1]}")
    for place, old in paired(stored, fresh):
        wrong += differences(old["data"], fresh[place]["data"])
        fresh[place] = _as_stored(fresh[place], old["data"])
    same: bool = type(item).compare_outputs(item, fresh, stored, skip_compare)
    # nbval joins the lines, and not all of its entries are text.
    item.comparison_traceback = [*wrong, *map(str, item.comparison_traceback)]
    return same and not wrong


def _as_stored(output: Any, stored: dict[str, Any]) -> Any:
    """The output with the stored table; its other data are unchanged."""
    table = {mime: stored[mime] for mime in (*SHOWN, MIME) if mime in stored}
    data = {mime: table.get(mime, value) for mime, value in output["data"].items()}
    return type(output)({**output, "data": data})
