"""A pytest plugin for nbval: tables shown by `approx` are compared within their tolerances.

`pytest --nbval -p workbench.nb.tolerant`. All other outputs are compared as before, to the letter;
without the plugin these tables are too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from nbval.plugin import IPyNbCell

from workbench.nb.bundle import MIME, SHOWN, differences, paired

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

__all__ = ["pytest_itemcollected"]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give a cell the comparison that knows tolerances."""
    if isinstance(item, IPyNbCell):
        cell: Any = item
        cell.compare_outputs = partial(_compare, cell, cell.compare_outputs)


def _compare(
    cell: Any,
    strict: Callable[..., bool],
    test: list[Any] | None,
    ref: list[Any] | None,
    skip_compare: Any = None,
) -> bool:
    """Compare the tables, then the rest with each new table taken for the stored one."""
    fresh, stored = list(test or ()), list(ref or ())
    wrong: list[str] = []
    counts = [sum(MIME in output.get("data", ()) for output in side) for side in (stored, fresh)]
    if counts[0] != counts[1]:
        wrong.append(f"tables with tolerances: stored {counts[0]}, new {counts[1]}")
    for place, old in paired(stored, fresh):
        wrong += differences(old["data"], fresh[place]["data"])
        fresh[place] = _as_stored(fresh[place], old["data"])
    same = strict(fresh, stored, skip_compare)
    # nbval joins the lines, and not all that it puts there are text.
    cell.comparison_traceback = [*wrong, *map(str, cell.comparison_traceback)]
    return same and not wrong


def _as_stored(output: Any, stored: dict[str, Any]) -> Any:
    """The output with the stored table; what else it has, or lacks, is left as it is."""
    table = {mime: stored[mime] for mime in (*SHOWN, MIME) if mime in stored}
    data = {mime: table.get(mime, value) for mime, value in output["data"].items()}
    return type(output)({**output, "data": data})
