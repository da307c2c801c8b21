"""The cell that gives a notebook its parameters: written here, read back, and compared.

papermill writes the same cell for its own users, but a tuple as a text and every key of a
dictionary as one, so that a notebook would run to its end with other values than were checked.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from workbench.errors import NotebookError
from workbench.nb.notebook import INJECTED_TAG, PARAMETERS_TAG, read_notebook


def prepared(source: Path, values: Mapping[str, object]) -> str:
    """The text of a notebook that is ready to run: nothing of an earlier run, and these values.

    With values, a cell that an earlier run has put in is replaced; without, it stays.

    Raises:
        NotebookError: a value cannot be written.
    """
    nbformat: Any = import_module("nbformat")
    notebook = nbformat.v4.upgrade(nbformat.from_dict(read_notebook(source)))
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    if values:
        cells = [cell for cell in notebook.cells if not _is_injected(cell)]
        place = next(i for i, cell in enumerate(cells) if _is_tagged(cell, PARAMETERS_TAG))
        cell = nbformat.v4.new_code_cell(injected(values), metadata={"tags": [INJECTED_TAG]})
        notebook.cells = [*cells[: place + 1], cell, *cells[place + 1 :]]
    text: str = nbformat.writes(notebook)
    written = ["".join(c["source"]) for c in json.loads(text)["cells"] if _is_injected(c)]
    if values and _read(written[0]) != _lines(values):
        raise NotebookError(f"{source}: {dict(values)!r:.200} cannot be given unchanged")
    return text


def _is_tagged(cell: Mapping[str, Any], tag: str) -> bool:
    return cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", ())


def _is_injected(cell: Mapping[str, Any]) -> bool:
    return _is_tagged(cell, INJECTED_TAG) and not _is_tagged(cell, PARAMETERS_TAG)


def injected(values: Mapping[str, object]) -> str:
    """The source of a cell that sets these values.

    Raises:
        NotebookError: one is not of numbers, texts and collections of them.
    """
    source = "\n".join(["# Parameters", *(f"{n} = {v}" for n, v in _lines(values).items())])
    if _read(source) != _lines(values):
        raise NotebookError(f"{dict(values)!r:.200} cannot be given unchanged")
    return source


def _lines(values: Mapping[str, object]) -> dict[str, str]:
    found = {}
    for name, value in values.items():
        try:
            found[name] = source_of(value)
            ast.parse(found[name], mode="eval")
        except (ValueError, RecursionError, SyntaxError, MemoryError) as error:
            raise NotebookError(f"{name} cannot be given to a notebook: {error}") from error
    return found


def _read(source: str) -> dict[str, str]:
    """What such a cell sets, each value as it would be written once more."""
    body = ast.parse(source).body
    return {
        ast.unparse(node.targets[0]): source_of(_value(node.value))
        for node in body
        if isinstance(node, ast.Assign)
    }


def source_of(value: object) -> str:
    """A value as the source that makes it.

    Raises:
        ValueError: it is not of numbers, texts and collections of them.
    """
    match value:
        case float() if not math.isfinite(value):
            return f'float("{value}")'
        case list():
            return f"[{', '.join(map(source_of, value))}]"
        case tuple():
            return f"({', '.join(map(source_of, value))}{',' * (len(value) == 1)})"
        case set():
            return f"{{{', '.join(sorted(map(source_of, value)))}}}" if value else "set()"
        case dict():
            return f"{{{', '.join(f'{source_of(k)}: {source_of(v)}' for k, v in value.items())}}}"
        case None | bool() | int() | float() | str():
            return repr(value)
    raise ValueError(f"{value!r:.100} is a {type(value).__name__}; give numbers, texts, lists")


def _value(source: ast.expr) -> object:
    match source:
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(text))]):
            return float(text)
        case ast.List(elts=items):
            return [*map(_value, items)]
        case ast.Tuple(elts=items):
            return tuple(map(_value, items))
        case ast.Set(elts=items):
            return {*map(_value, items)}
        case ast.Dict(keys=keys, values=values):
            return {_value(k): _value(v) for k, v in zip(keys, values, strict=True) if k}
    return ast.literal_eval(source)
