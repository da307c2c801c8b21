"""Validation coverage: the share of a notebook's cells that validation really judges.

Of the code cells that are not empty, those that only import, only comment or hold the parameters
do not count, unless they have output. A counted cell is covered if nbval 0.11 compares text of
its output, or if it ends in an assertion that a wrong value would fail. An output with a picture
or a widget view is not compared text: what nbval compares of it is the object's name. Nor is a
table of `approx` whose tolerances are all so wide that no figure could fail.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tools.notebooks.assertion import can_fail
from tools.notebooks.lint import WIDGET_VIEW, vague
from workbench.errors import NotebookError
from workbench.nb.notebook import PARAMETERS_TAG, RAISES, SKIP, Cell, joined, load, statements
from workbench.nb.tolerance import MIME, read_table

if TYPE_CHECKING:
    from pathlib import Path

FLOOR = 0.85
_UNCOMPARED = frozenset({"image/png", "image/jpeg", WIDGET_VIEW})
# nbval's own markers, as comments or (in lower case, with dashes) as tags.
_MARKERS = {
    "PYTEST_VALIDATE_IGNORE_OUTPUT": ("check", False),
    "NBVAL_IGNORE_OUTPUT": ("check", False),
    "NBVAL_CHECK_OUTPUT": ("check", True),
    "NBVAL_RAISES_EXCEPTION": ("raises", True),
    "NBVAL_SKIP": ("skip", True),
}
_TAG_MARKERS = {
    **{comment.lower().replace("_", "-"): marker for comment, marker in _MARKERS.items()},
    RAISES: ("raises", True),
    SKIP: ("skip", True),
}


@dataclass(frozen=True, slots=True)
class CellCoverage:
    """The verdict on one cell; `counted` says whether it is in the denominator."""

    index: int
    counted: bool
    covered: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """The verdicts on a notebook's code cells that are not empty."""

    path: Path
    cells: tuple[CellCoverage, ...]

    @property
    def counted(self) -> int:
        """Cells that could be judged."""
        return sum(cell.counted for cell in self.cells)

    @property
    def covered(self) -> int:
        """Cells that are judged."""
        return sum(cell.counted and cell.covered for cell in self.cells)

    @property
    def share(self) -> float:
        """Covered of counted; 0 where nothing counts, since then nothing is validated."""
        return self.covered / self.counted if self.counted else 0.0


def coverage(path: str | Path) -> Coverage:
    """Measure one notebook as it is stored.

    Raises:
        NotebookError: The file is broken.
    """
    notebook = load(path)
    return Coverage(notebook.path, tuple(_verdict(cell) for cell in notebook.code))


def _verdict(cell: Cell) -> CellCoverage:
    options = _options(cell)
    body = statements(cell.source)
    exempt = _exempt(cell, body)
    if exempt and not cell.outputs:
        return CellCoverage(cell.index, counted=False, covered=False, reason=exempt)
    covered, reason = _judged(cell, body, options)
    return CellCoverage(cell.index, counted=True, covered=covered, reason=reason)


def _exempt(cell: Cell, body: list[ast.stmt] | None) -> str:
    if PARAMETERS_TAG in cell.tags:
        return "parameters"
    if body is not None and not body:
        return "no statement"
    if body and all(isinstance(node, ast.Import | ast.ImportFrom) for node in body):
        return "imports only"
    return ""


def _judged(cell: Cell, body: list[ast.stmt] | None, options: dict[str, bool]) -> tuple[bool, str]:
    if options.get("skip"):
        return False, "skipped"
    # Under raises-exception a failing assertion passes.
    if body and can_fail(body) and not options.get("raises"):
        return True, "ends in an assertion"
    lack = _lack(cell, options)
    return not lack, lack or "output compared"


def _lack(cell: Cell, options: dict[str, bool]) -> str:
    """Why nbval compares no text of a cell's output; empty if it does."""
    if not options.get("check", True):
        return "output ignored, no assertion at the end"
    if cell.count is None:
        return "never run, so that nothing is compared"
    if not cell.outputs:
        return "no output, no assertion at the end"
    lacks = [_output_lack(output) for output in cell.outputs]
    return "" if "" in lacks else lacks[0]


def _output_lack(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if MIME in data:
        return _vague(data)
    if output["output_type"] == "stream":
        text = bool(joined(output["text"]).strip())
    elif output["output_type"] == "error":
        text = True
    else:
        text = bool(data) and not _UNCOMPARED & set(data)
    return "" if text else "no text output, no assertion at the end"


def _vague(data: dict[str, Any]) -> str:
    try:
        columns = [column for column in read_table(data) if column.tolerance != "none"]
    except NotebookError as error:
        return str(error)
    empty = columns and all(map(vague, columns))
    return "every tolerance is as wide as its column, so that no figure could fail" if empty else ""


def _options(cell: Cell) -> dict[str, bool]:
    """nbval's options of a cell: of tags, then of comments, the last word counts."""
    options = dict(_TAG_MARKERS[tag] for tag in cell.tags if tag in _TAG_MARKERS)
    for line in map(str.strip, cell.source.splitlines()):
        comment = line.lstrip("#").strip() if line.startswith("#") else ""
        if comment in _MARKERS:
            options.update([_MARKERS[comment]])
    return options
