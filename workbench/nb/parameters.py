"""The typed parameters cell: what a notebook can be given, and whether a value fits.

The cell is read, never run: every line is `name: type = value  # comment`. A name that is not
there or a value of another type is refused before anything runs (papermill only warns).
"""

from __future__ import annotations

import ast
import difflib
import io
import tokenize
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.errors import NotebookError
from workbench.nb.notebook import Notebook, statements
from workbench.nb.typetext import fits, read, spelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Text:
    """A value as typed on a command line; the parameter's type says how to read it."""

    text: str


def untidy(source: str) -> Iterator[str]:
    """What is wrong with a parameters cell, in words."""
    body = statements(source)
    if body is None:
        yield "the parameters cell is not plain Python"
        return
    commented = _commented_lines(source)
    for node in body:
        code = ast.unparse(node).partition("\n")[0]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            yield f"`{code}` is not `name: type = value  # comment`"
            continue
        if node.value is None:
            yield f"`{code}` has no value"
        elif _misfit(node.annotation, node.value):
            yield f"`{code}`: the value is not of its type"
        if not commented & {node.lineno, node.end_lineno}:
            yield f"`{code}` has no comment that says what it is"


def _misfit(annotation: ast.expr, value: ast.expr) -> bool:
    try:
        return not fits(ast.literal_eval(value), annotation)
    except ValueError:
        # A computed default or a type that only Python can judge.
        return False


def _commented_lines(source: str) -> set[int]:
    lines = io.StringIO(source).readline
    return {
        token.start[0]
        for token in tokenize.generate_tokens(lines)
        if token.type == tokenize.COMMENT and token.string.strip("# ")
    }


def resolve(notebook: Notebook, given: Mapping[str, object]) -> dict[str, object]:
    """Check values against a notebook's parameters cell.

    Args:
        notebook: The notebook that will run.
        given: Values by name; a `Text` is read as the parameter's type says.

    Returns:
        The values, read where they were text.

    Raises:
        NotebookError: A name is unknown, or a value does not fit its type.
    """
    if not given:
        return {}
    types = _types(notebook)
    values: dict[str, object] = {}
    for name, value in given.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}?" if near else "it has none; tag a cell `parameters`"
            raise NotebookError(f"{notebook.path} has no parameter {name!r}; {hint}")
        values[name] = _value(notebook, name, value, types[name])
    return values


def _types(notebook: Notebook) -> dict[str, ast.expr]:
    cell = notebook.parameters
    body = statements(cell.source) if cell is not None else None
    return {
        node.target.id: node.annotation
        for node in body or ()
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _value(notebook: Notebook, name: str, value: object, annotation: ast.expr) -> object:
    shown = spelled(annotation)
    try:
        if isinstance(value, Text):
            return read(value.text, annotation)
        if fits(value, annotation):
            return value
    except ValueError as error:
        raise NotebookError(f"{notebook.path}: {name}: {shown} cannot be set: {error}") from error
    raise NotebookError(f"{notebook.path}: {name}={value!r} is not of the type {shown}; give one")
