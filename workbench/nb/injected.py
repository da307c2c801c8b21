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
from workbench.nb.notebook import INJECTED_TAG, PARAMETERS_TAG

__all__ = ["injected", "prepared"]


def prepared(source: Path, values: Mapping[str, object]) -> str:
    """The text of a notebook that is ready to run: nothing of an earlier run, and these values.

    With values, a cell that an earlier run has put in is replaced; without, it stays.

    Raises:
        NotebookError: a value cannot be written.
    """
    nbformat: Any = import_module("nbformat")
    notebook = nbformat.v4.upgrade(nbformat.read(source, as_version=4))
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    if values:
        cells = [c for c in notebook.cells if INJECTED_TAG not in c.metadata.get("tags", ())]
        tags = [c.cell_type == "code" and c.metadata.get("tags", ()) for c in cells]
        place = next(i for i, names in enumerate(tags) if names and PARAMETERS_TAG in names)
        cell = nbformat.v4.new_code_cell(injected(values), metadata={"tags": [INJECTED_TAG]})
        notebook.cells = [*cells[: place + 1], cell, *cells[place + 1 :]]
    text: str = nbformat.writes(notebook)
    written = [c["source"] for c in json.loads(text)["cells"] if _is_injected(c)]
    if values and _read("".join(written[0])) != _lines(values):
        raise NotebookError(f"{source}: {dict(values)!r:.200} cannot be given unchanged")
    return text


def _is_injected(cell: Mapping[str, Any]) -> bool:
    return INJECTED_TAG in cell["metadata"].get("tags", ())


def injected(values: Mapping[str, object]) -> str:
    """The source of a cell that sets these values.

    Raises:
        NotebookError: one is not of numbers, texts and collections of them.
    """
    return "\n".join(["# Parameters", *(f"{n} = {text}" for n, text in _lines(values).items())])


def _lines(values: Mapping[str, object]) -> dict[str, str]:
    found = {}
    for name, value in values.items():
        try:
            found[name] = _written(value)
        except (ValueError, RecursionError) as error:
            raise NotebookError(f"{name} cannot be given to a notebook: {error}") from error
    return found


def _read(source: str) -> dict[str, str]:
    """What such a cell sets, each value as it would be written once more."""
    body = ast.parse(source).body
    return {
        ast.unparse(node.targets[0]): _written(_value(node.value))
        for node in body
        if isinstance(node, ast.Assign)
    }


def _written(value: object) -> str:
    match value:
        case float() if not math.isfinite(value):
            return f'float("{value}")'
        case list():
            return f"[{', '.join(map(_written, value))}]"
        case tuple():
            return f"({', '.join(map(_written, value))}{',' * (len(value) == 1)})"
        case set():
            return f"{{{', '.join(sorted(map(_written, value)))}}}" if value else "set()"
        case dict():
            return f"{{{', '.join(f'{_written(k)}: {_written(v)}' for k, v in value.items())}}}"
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
