"""The pytest plugin: `pytest --nbval` compares tables of `approx` within their tolerances.

pytest finds it by its entry point. It does nothing where nbval judges no notebook, and changes no
other verdict of nbval's.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from workbench.nb.tolerance import MIME, SHOWN, differences, paired


def pytest_itemcollected(item: Any) -> None:
    """Have the tables of a notebook's cell compared first, and the rest as nbval does."""
    nbval = sys.modules.get("nbval.plugin")
    if nbval is not None and isinstance(item, nbval.IPyNbCell):
        item.compare_outputs = functools.partial(_compare_outputs, item)


def _compare_outputs(
    item: Any, test: list[Any] | None, ref: list[Any] | None, skip_compare: Any = None
) -> bool:
    """Compare the tables, then the rest with each new table taken for the stored one."""
    fresh, stored = list(test or ()), list(ref or ())
    counts = [sum(MIME in output.get("data", ()) for output in side) for side in (stored, fresh)]
    wrong: list[str] = []
    if counts[0] != counts[1]:
        wrong.append(f"tables with tolerances: stored {counts[0]}, new {counts[1]}")
    for place, old in paired(stored, fresh):
        wrong += differences(old["data"], fresh[place]["data"])
        fresh[place] = _as_stored(fresh[place], old["data"])
    same: bool = type(item).compare_outputs(item, fresh, stored, skip_compare)
    # nbval joins the lines, and not all that it puts there are text.
    item.comparison_traceback = [*wrong, *map(str, item.comparison_traceback)]
    return same and not wrong


def _as_stored(output: Any, stored: dict[str, Any]) -> Any:
    """The output with the stored table; what else it has, or lacks, is left as it is."""
    table = {mime: stored[mime] for mime in (*SHOWN, MIME) if mime in stored}
    data = {mime: table.get(mime, value) for mime, value in output["data"].items()}
    return type(output)({**output, "data": data})
