"""`approx`: a table whose figures are compared within stated tolerances, not to the digit.

A cell that ends in `approx(table, within={"accuracy": 0.05})` shows the table as pandas does, and
stores beside it the values and tolerances that `workbench notebook validate` compares.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import NotebookError
from workbench.nb.bundle import MIME, Column, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

_INFINITIES = ("inf", "-inf")  # as text, for JSON has none


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
    """Show a table that another machine may compute a little differently.

    Args:
        table: What to show, rounded as it is to be read.
        within: Largest absolute difference allowed, by column.
        relative: Largest difference allowed as a share of the stored figure, by column. Columns
            in neither are compared exactly, as are the index and the names of the columns.

    Raises:
        NotebookError: A tolerance is not finite and above 0, is of a column that is not there or
            has no figures, or a column has two.
    """
    absolute, shares = dict(within or {}), dict(relative or {})
    for name in [*absolute, *shares]:
        if name not in table.columns:
            raise NotebookError(f"no column {name!r} to be near; there are {[*table.columns]}")
    columns = [Column(_index_name(table), [_label(label) for label in table.index])]
    for place, name in enumerate(table.columns):
        values = [_value(value) for value in table.iloc[:, place]]
        columns.append(_column(name, values, absolute.get(name), shares.get(name)))
    shown: Any = table  # the stubs of pandas know no _repr_html_
    data = {"text/html": shown._repr_html_(), "text/plain": repr(table)}
    data = {mime: text for mime, text in data.items() if text is not None}
    made = [_json(column) for column in columns]
    return Approximate({**data, MIME: {"columns": made, "digest": digest(data, made)}})


def _column(
    name: Any, values: list[float | str | None], within: float | None, relative: float | None
) -> Column:
    if within is not None or relative is not None:
        for value in values:
            if isinstance(value, str) and value not in _INFINITIES:
                raise NotebookError(f"column {name!r} has {value!r}: no figure to be near")
    try:
        return Column(_label(name), values, within, relative)
    except ValueError as error:
        raise NotebookError(f"{error}; give one, finite and above 0") from error


def _value(value: Any) -> float | str | None:
    import pandas as pd

    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else str(float(value))


def _label(label: Any) -> str:
    return ", ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def _index_name(table: pd.DataFrame) -> str:
    names: Iterable[Any] = (*table.index.names, *table.columns.names)
    return ", ".join(str(name) for name in names if name is not None) or "index"


def _json(column: Column) -> dict[str, Any]:
    tolerances = {"within": column.within, "relative": column.relative}
    given = {name: value for name, value in tolerances.items() if value is not None}
    return {"name": column.name, "cells": column.cells, **given}
