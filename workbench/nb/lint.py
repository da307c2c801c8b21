"""Hygiene of a committed notebook: one rule a function, one finding a fault.

`lint(path)` runs nothing. What it lets through opens, runs and compares the same elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import NotebookError
from workbench.nb.absolute import absolute_paths, strings
from workbench.nb.bundle import MIME, read
from workbench.nb.notebook import PARAMETERS_TAG, RAISES, SKIP, Notebook, joined, load
from workbench.nb.parameters import untidy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    # Each fault is the index of its cell, or None, and what is wrong.
    _Faults = Iterator[tuple[int | None, str]]

KERNEL = "workbench"
MOST_CODE_CELLS = 15
_RAISES = frozenset({RAISES, "nbval-raises-exception"})
_NBVAL = frozenset({"nbval-ignore-output", "nbval-check-output", "nbval-skip"})
TAGS = _NBVAL | _RAISES | {PARAMETERS_TAG, SKIP}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_PICTURES = frozenset({"image/png", "image/jpeg"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault; `cell` counts all cells from 0 and is None where the whole file is meant."""

    path: Path
    cell: int | None
    rule: str
    message: str

    def __str__(self) -> str:
        where = f"{self.path}" if self.cell is None else f"{self.path} cell {self.cell}"
        return f"{where}: {self.rule}: {self.message}"


def lint(path: str | Path) -> list[Finding]:
    """Check one notebook against every rule.

    Raises:
        NotebookError: The file is broken, so that no rule can be asked.
    """
    notebook = load(path)
    return [
        Finding(notebook.path, cell, rule, message)
        for rule, faults in _RULES.items()
        for cell, message in faults(notebook)
    ]


def _format(notebook: Notebook) -> _Faults:
    if notebook.minor != 5:
        yield None, f"format 4.{notebook.minor}, not 4.5; refresh the notebook"


def _title(notebook: Notebook) -> _Faults:
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.kind != "markdown" or not first.source.lstrip().startswith("# "):
        yield 0, "the first cell is no markdown title; begin with `# Title`"


def _parameters(notebook: Notebook) -> _Faults:
    tagged = [c for c in notebook.cells if c.kind == "code" and PARAMETERS_TAG in c.tags]
    if not tagged:
        yield None, f"no code cell is tagged `{PARAMETERS_TAG}`, so that no value can be set"
    for cell in tagged[1:]:
        yield cell.index, f"a second cell tagged `{PARAMETERS_TAG}`; papermill takes the first"
    for cell in tagged[:1]:
        yield from ((cell.index, message) for message in untidy(cell.source))


def _counts(notebook: Notebook) -> _Faults:
    for place, cell in enumerate((c for c in notebook.code if c.runs), start=1):
        if cell.count is None:
            yield cell.index, "never run: without a count nbval compares nothing; refresh"
        elif cell.count != place:
            yield cell.index, f"count {cell.count} where {place} belongs; refresh in one go"


def _absolute(notebook: Notebook) -> _Faults:
    for path in _distinct(notebook.metadata):
        yield None, f"{path} in the metadata; refresh the notebook"
    for cell in notebook.cells:
        places: dict[str, Any] = {"source": cell.source, "metadata": cell.metadata}
        places["output"] = [_legible(output) for output in cell.outputs]
        for place, value in places.items():
            for path in _distinct(value):
                yield cell.index, f"{path} in the {place}; use a path relative to the repository"


def _distinct(value: Any) -> list[str]:
    return list(dict.fromkeys(p for text in strings(value) for p in absolute_paths(text)))


def _legible(output: dict[str, Any]) -> dict[str, Any]:
    """The output without pictures, and with lines joined."""
    data = {k: v for k, v in output.get("data", {}).items() if k not in _PICTURES}
    return {**output, "data": data, "text": joined(output.get("text", ""))}


def _widgets(notebook: Notebook) -> _Faults:
    if "widgets" in notebook.metadata:
        yield None, "widget state in the metadata; refresh the notebook"
    for cell in notebook.cells:
        if any(WIDGET_VIEW in output.get("data", {}) for output in cell.outputs):
            yield cell.index, "a widget view, whose id is random; show a picture or text"


def _errors(notebook: Notebook) -> _Faults:
    for cell in notebook.cells:
        for output in cell.outputs:
            if output["output_type"] == "error" and not _RAISES & set(cell.tags):
                remedy = "correct the cell, or tag it `raises-exception`"
                yield cell.index, f"a stored {output['ename']}; {remedy}"


def _stderr(notebook: Notebook) -> _Faults:
    for cell in notebook.cells:
        for output in cell.outputs:
            if output["output_type"] == "stream" and output["name"] == "stderr":
                line = joined(output["text"]).strip().partition("\n")[0]
                yield cell.index, f"stderr output ({line[:60]!r}); silence its source"


def _kernelspec(notebook: Notebook) -> _Faults:
    name = notebook.metadata.get("kernelspec", {}).get("name")
    if name != KERNEL:
        yield None, f"kernel {name!r}, not {KERNEL!r}; refresh the notebook"


def _size(notebook: Notebook) -> _Faults:
    cells = sum(cell.kind == "code" for cell in notebook.cells)
    if cells > MOST_CODE_CELLS:
        yield None, f"{cells} code cells, more than {MOST_CODE_CELLS}; move logic to the package"


def _tags(notebook: Notebook) -> _Faults:
    for cell in notebook.cells:
        for tag in cell.tags:
            if tag not in TAGS:
                yield cell.index, f"unknown tag {tag!r}; known are {', '.join(sorted(TAGS))}"


def _approx(notebook: Notebook) -> _Faults:
    for cell in notebook.cells:
        for output in cell.outputs:
            if MIME in output.get("data", {}):
                yield from ((cell.index, message) for message in _untrue(output["data"]))


def _untrue(data: dict[str, Any]) -> Iterator[str]:
    try:
        columns = read(data)
    except NotebookError as error:
        yield str(error)
        return
    for column in columns:
        if column.vague:
            yield f"column {column.name!r}: no figure of it can leave {column.tolerance}; narrow it"


_RULES: dict[str, Callable[[Notebook], _Faults]] = {
    "format": _format,
    "title": _title,
    "parameters": _parameters,
    "counts": _counts,
    "absolute-path": _absolute,
    "widgets": _widgets,
    "error-output": _errors,
    "stderr": _stderr,
    "kernelspec": _kernelspec,
    "size": _size,
    "tags": _tags,
    "approx": _approx,
}
