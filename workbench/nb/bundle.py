"""A table with tolerances as it is stored beside what a notebook shows, and what differs in two.

The bundle is one JSON value of an output's data: the columns with their values, the index first,
and a digest of the text beside it, so that neither can be changed without the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import NotebookError
from workbench.nb.expect import near
from workbench.nb.notebook import joined

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIME = "application/vnd.workbench.approx+json"
SHOWN = ("text/html", "text/plain")  # what a reader sees of the table


@dataclass(frozen=True, slots=True)
class Column:
    """A column; None is a missing value. Without a tolerance it is compared exactly.

    Raises:
        TypeError, ValueError: no such column can be.
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

    @property
    def vague(self) -> bool:
        """Whether the tolerance is as wide as the figures themselves, so that none can fail."""
        figures = [value for value in self.cells if isinstance(value, int | float)]
        if self.relative is not None:
            return self.relative >= 1
        if self.within is None or not figures:
            return False
        return self.within >= max(figures) - min(figures) + max(map(abs, figures))

    def holds(self, row: int, new: float | str | None) -> bool:
        """Whether a new value is near enough to the one of this row."""
        old = self.cells[row]
        if isinstance(old, int | float) and isinstance(new, int | float):
            share = None if self.relative is None else self.relative * abs(old)
            return near(new, old, (self.within or 0.0) if share is None else share)
        return old == new


def _finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def digest(data: Mapping[str, Any], columns: object) -> str:
    """What the text that a reader sees and the columns beside it come to, together."""
    text = "\0".join(
        [*(joined(data.get(mime, "")) for mime in SHOWN), json.dumps(columns, sort_keys=True)]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(data: Mapping[str, Any]) -> list[Column]:
    """The table in the data of an output.

    Raises:
        NotebookError: the bundle is broken, or the text beside it is not its own.
    """
    try:
        made, seal = data[MIME]["columns"], data[MIME]["digest"]
        columns = [Column(**column) for column in made]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _broken(error) from error
    if len({len(column.cells) for column in columns}) != 1:
        raise _broken("columns of several lengths, or none")
    if seal != digest(data, made):
        raise NotebookError(
            f"the table shown is not the one in {MIME}: one was changed by hand; refresh the "
            "notebook"
        )
    return columns


def _broken(why: object) -> NotebookError:
    return NotebookError(f"a broken {MIME}: {why}; refresh the notebook")


def paired(stored: Sequence[Any], fresh: Sequence[Any]) -> list[tuple[int, Any]]:
    """The fresh outputs with a bundle, by their place, and each with the stored one it stands for.

    Those that one side has more of are left out.
    """
    places = [place for place, output in enumerate(fresh) if MIME in output.get("data", ())]
    return list(zip(places, (o for o in stored if MIME in o.get("data", ())), strict=False))


def differences(stored: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
    """What is beyond the tolerances in the data of two outputs, in words; nothing if they agree.

    Tolerances must agree too: those of the code are the ones that the notebook states.
    """
    tables = []
    for whose, data in (("stored", stored), ("new", fresh)):
        try:
            tables.append(read(data))
        except NotebookError as error:
            return [f"the {whose} output: {error}"]
    old, new = tables
    for what, count in (("columns", _names), ("rows", _count)):
        if count(old) != count(new):
            return [f"{what}: stored {count(old)}, new {count(new)}"]
    found = [
        f"column {a.name!r}: the stored tolerance is {a.tolerance}, the code states {b.tolerance}"
        for a, b in zip(old, new, strict=True)
        if (a.within, a.relative) != (b.within, b.relative)
    ]
    return found + [
        f"row {old[0].cells[row]!r}, column {a.name!r}: stored {a.cells[row]!r}, new {value!r}, "
        f"tolerance {a.tolerance}"
        for a, b in zip(old, new, strict=True)
        for row, value in enumerate(b.cells)
        if not a.holds(row, value)
    ]


def _names(columns: list[Column]) -> object:
    return [column.name for column in columns]


def _count(columns: list[Column]) -> object:
    return len(columns[0].cells)
