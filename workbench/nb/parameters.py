"""The parameters cell: what a notebook can be given, and whether a value fits.

The cell is read, never run. A name that is not there or a value of another type is refused before
anything runs (papermill only warns), and so is one from which the cell computes another default.
"""

from __future__ import annotations

import ast
import difflib
import io
import os
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import NotebookError
from workbench.nb.injected import injected
from workbench.nb.notebook import Notebook, statements
from workbench.nb.typetext import MisfitError, fit, read, spelled, type_of

__all__ = ["Text", "default", "resolve", "untidy"]

LATE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True, slots=True)
class Text:
    """A value as typed on a command line; the parameter's type says how to read it."""

    text: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One that the cell sets; `value` is its default."""

    name: str
    type: ast.expr
    value: ast.expr | None


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
    for name in _parameters(body):
        for other in _computed(body, {name}):
            yield f"{other!r} is computed from {name!r} before that is given; compute it below"


def _misfit(annotation: ast.expr, value: ast.expr) -> bool:
    try:
        fit(ast.literal_eval(value), annotation)
    except MisfitError:
        return True
    except ValueError:
        # A computed default or a type that only Python can judge.
        return False
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
        given: Values by name. A `Text` is read as the parameter's type says (that of the default
            where the cell states none); one that is a path is taken from the current folder.

    Returns:
        The values, of the parameters' types.

    Raises:
        NotebookError: A name is unknown, a value does not fit its type or cannot be written into a
            notebook, or a default that is not given is computed from one that is.
    """
    if not given:
        return {}
    cell = notebook.parameters
    body = (statements(cell.source) if cell is not None else None) or []
    known = _parameters(body)
    values = {}
    for name, value in given.items():
        if name not in known:
            raise NotebookError(f"{notebook.path} has no parameter {name!r}; {_near(name, known)}")
        values[name] = _value(notebook, known[name], value)
    for other, name in _computed(body, {*given}).items():
        raise NotebookError(
            f"{notebook.path}: {other!r} is computed from {name!r} in the parameters cell, before "
            f"{name!r} is given, and would stay as it is: give {other!r} too, or compute it below"
        )
    injected(values)
    return values


def _near(name: str, known: Mapping[str, object]) -> str:
    if not known:
        return "it has none; tag a cell `parameters`"
    if near := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {near[0]!r}?"
    return f"it has {', '.join(known)}"


def default(notebook: Notebook, name: str) -> object:
    """What a parameter is if it is not given; None where it is computed, or there is no such."""
    cell = notebook.parameters
    found = _parameters((statements(cell.source) if cell else None) or []).get(name)
    try:
        return ast.literal_eval(found.value) if found and found.value else None
    except ValueError:
        return None


def _parameters(body: list[ast.stmt]) -> dict[str, Parameter]:
    """What a cell sets by name, with or without a type; of a name set twice, the last counts."""
    found = []
    for node in body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=value):
                found.append(Parameter(name, kind, value))
            case ast.Assign(targets=targets, value=value):
                pairs = (pair for target in targets for pair in _pairs(target, value))
                found += [Parameter(name, type_of(value), value) for name, value in pairs]
    return {one.name: one for one in found}


def _pairs(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    match target, value:
        case ast.Name(id=name), _:
            yield name, value
        case ast.Tuple(elts=names), ast.Tuple(elts=values) if len(names) == len(values):
            for part, one in zip(names, values, strict=True):
                yield from _pairs(part, one)
        case ast.Tuple(elts=names), _:
            for part in names:
                yield from _pairs(part, None)


def _computed(body: list[ast.stmt], given: set[str]) -> dict[str, str]:
    """Names that keep a value made from the default of a given one, each with that one."""
    moved = {name: name for name in given}
    found = {}
    for node in body:
        read_now, read_later = _reads(node)
        now = next((moved[name] for name in read_now if name in moved), None)
        later = next((moved[name] for name in read_later if name in moved), None)
        for name in _sets(node, {*_parameters(body)}) - given:
            if now:
                found[name] = now
            if now or later:
                moved[name] = now or later or ""
    return found


def _sets(node: ast.stmt, known: set[str]) -> set[str]:
    """Names that a statement binds, and those whose insides it changes."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _is_stored(n)}
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        names = {node.name}
    for part in ast.walk(node):
        inside = part.func if isinstance(part, ast.Call) else part
        if isinstance(inside, ast.Attribute | ast.Subscript) and (
            isinstance(part, ast.Call) or _is_stored(inside)
        ):
            root: ast.expr = inside
            while isinstance(root, ast.Attribute | ast.Subscript):
                root = root.value
            names |= {root.id} & known if isinstance(root, ast.Name) else set()
    return names


def _is_stored(node: ast.Name | ast.Attribute | ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Store)


def _reads(node: ast.AST) -> tuple[list[str], list[str]]:
    """Names that a statement reads at once, and those that it reads when a function is called."""
    now = [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else []
    later: list[str] = []
    parts = [*ast.iter_child_nodes(node)]
    if isinstance(node, LATE):
        inner = node.body if isinstance(node.body, list) else [node.body]
        parts = [part for part in parts if part not in inner]
        later += [n.id for part in inner for n in ast.walk(part) if isinstance(n, ast.Name)]
    for found in map(_reads, parts):
        now += found[0]
        later += found[1]
    return now, later


def _value(notebook: Notebook, parameter: Parameter, value: object) -> object:
    shown = f"{notebook.path}: {parameter.name}"
    try:
        if isinstance(value, Text):
            return _from_here(read(value.text, parameter.type), notebook.path.parent)
        return fit(value, parameter.type)
    except ValueError as error:
        if isinstance(error, MisfitError) and not isinstance(value, Text):
            kind = spelled(parameter.type)
            raise NotebookError(
                f"{shown}={value!r:.100} is not of the type {kind}; give one"
            ) from None
        raise NotebookError(f"{shown} cannot be set: {error}; give another value") from error


def _from_here(value: object, home: Path) -> object:
    """A path as it was typed, for a notebook that runs in another folder: an absolute one."""
    if isinstance(value, list | tuple):
        return type(value)(_from_here(one, home) for one in value)
    if not isinstance(value, str) or Path.cwd() == home.resolve():
        return value
    return os.path.normpath(Path.cwd() / value) if _is_path(value) else value


def _is_path(text: str) -> bool:
    """Whether a text that was typed is a path: by its form, or as it names what is here."""
    if text in {".", ".."} or text.startswith(("./", "../")):
        return True
    try:
        path = Path(text)
        named = ("/" in text or "." in text) and path.exists()
        return named or (path / "config.json").exists()  # a model's folder
    except (OSError, ValueError):
        return False
