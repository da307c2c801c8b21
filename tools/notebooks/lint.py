"""Hygiene of a committed notebook: one function per rule, one finding per fault.

`lint(path)` runs nothing. A notebook without findings runs and compares the same anywhere.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tempfile
import tokenize
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import NotebookError
from workbench.nb.execution import KERNEL
from workbench.nb.notebook import PARAMETERS_TAG, RAISES, SKIP, Notebook, joined, load, statements
from workbench.nb.parameters import faults
from workbench.nb.tolerance import MIME, Column, read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # Each fault is the index of its cell, or None, and what is wrong.
    _Faults = Iterator[tuple[int | None, str]]

MOST_CODE_CELLS = 15
_RAISES = frozenset({RAISES, "nbval-raises-exception"})
_NBVAL = frozenset({"nbval-ignore-output", "nbval-check-output", "nbval-skip"})
TAGS = _NBVAL | _RAISES | {PARAMETERS_TAG, SKIP}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_PICTURES = frozenset({"image/png", "image/jpeg"})
_ROOTS = (
    "Users|Volumes|app|builds|content|data|etc|home|kaggle|media|mnt|opt|private|root|scratch|"
    "srv|tmp|usr|var|workspace|workspaces"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


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
        NotebookError: the file is broken, so that no rule can be checked.
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
    yield from faults(notebook)
    if not notebook.parameters:
        yield None, f"no code cell is tagged `{PARAMETERS_TAG}`, so that no value can be set"
        return
    cell = notebook.parameters[0]
    body = statements(cell.source) or []
    lines = tokenize.generate_tokens(io.StringIO(cell.source).readline) if body else ()
    commented = {
        token.start[0]
        for token in lines
        if token.type == tokenize.COMMENT and token.string.strip("# ")
    }
    for node in body:
        code = ast.unparse(node).partition("\n")[0]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            yield cell.index, f"`{code}` is not `name: type = value  # comment`"
        elif node.value is None:
            yield cell.index, f"`{code}` has no value"
        elif not commented & {node.lineno, node.end_lineno}:
            yield cell.index, f"`{code}` has no comment that says what it is"


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
        columns = read_table(data)
    except NotebookError as error:
        yield str(error)
        return
    for column in columns:
        if vague(column):
            yield f"column {column.name!r}: no figure of it can leave {column.tolerance}; narrow it"


def vague(column: Column) -> bool:
    """Whether the tolerance is as wide as the figures themselves, so that none can fail."""
    figures = [value for value in column.cells if isinstance(value, int | float)]
    if column.relative is not None:
        return column.relative >= 1
    if column.within is None or not figures:
        return False
    return column.within >= max(figures) - min(figures) + max(map(abs, figures))


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


@cache
def _pattern() -> re.Pattern[str]:
    # The machine's own folders as well: their first part may be on no list.
    own = (Path.cwd(), Path.home(), Path(sys.prefix), Path(tempfile.gettempdir()))
    own_roots = {re.escape(path.parts[1]) for path in own if len(path.parts) > 1}
    names = "|".join([_ROOTS, *sorted(own_roots)])
    # What may not stand before: a URL's host, a relative path, `</data>`, `{folder}/tmp`.
    posix = rf"(?<![\w.)\]}}/~<-])/(?:{names})(?:/[^\s'\"<>|,;:)\]}}]*|(?![\w.-]))"
    return re.compile(rf"{posix}|file://[^\s'\"]+|\b[A-Z]:\\\w[^\s'\"]*")


def absolute_paths(text: str) -> list[str]:
    """The absolute paths in a text, in order; API routes and URLs are none."""
    return _pattern().findall(_ANSI.sub("", text))


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)
