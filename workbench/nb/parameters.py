"""The parameters cell: the parameters of a notebook, and checks of their values.

The cell is parsed, never run. An unknown name or a value of the wrong type is refused before
anything runs (papermill only warns). So is a value from which the cell computes another default.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import NotebookError
from workbench.nb.literals import MisfitError, fit, injected, read, type_of
from workbench.nb.notebook import PARAMETERS_TAG, Cell, Notebook, statements
from workbench.values import near


@dataclass(frozen=True, slots=True)
class Text:
    """A value from a command line; it is parsed according to the parameter's type."""

    text: str


def faults(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """Faults that prevent values from being set, or make them ineffective, each with its cell."""
    for cell in notebook.parameters[1:]:
        yield cell.index, f"a second cell tagged `{PARAMETERS_TAG}`; papermill takes the first"
    for cell in notebook.parameters[:1]:
        if statements(cell.source) is None:
            yield cell.index, "the parameters cell is not plain Python"
        for node in (body := _body(cell)):
            # A computed default, or a type that only Python can check, is not checked here.
            with suppress(ValueError):
                if isinstance(node, ast.AnnAssign) and node.value is not None:
                    value = ast.literal_eval(node.value)
                    try:
                        fit(value, node.annotation)
                    except MisfitError:
                        yield cell.index, f"`{ast.unparse(node)}`: the value is not of its type"
        for name in _parameters(body):
            for other in _computed(body, {name}):
                fault = f"{other!r} is computed from {name!r} before that is given"
                yield cell.index, f"{fault}; compute it below"


def resolve(notebook: Notebook, given: Mapping[str, object]) -> dict[str, object]:
    """Check values against a notebook's parameters cell.

    Args:
        given: Values by name. A `Text` is parsed as the parameter's type (by default the type of
            its default); a path in it is relative to the current folder.

    Returns:
        The values, of the parameters' types.

    Raises:
        NotebookError: A name is unknown, a value does not fit its type or cannot be written into a
            notebook, or a default that is not given is computed from one that is.
    """
    body = _body(*notebook.parameters[:1])
    known, values = _parameters(body), dict[str, object]()
    for name, value in given.items():
        if name not in known:
            there = f"; it has {', '.join(known)}"
            none = "; it has none; tag a cell of plain assignments `parameters`"
            remedy = near(name, known) or there if known else none
            raise NotebookError(f"{notebook.path} has no parameter {name!r}{remedy}")
        values[name] = _checked(f"{notebook.path}: {name}", known[name][0], value, notebook.path)
    for other, name in _computed(body, {*given}).items():
        raise NotebookError(
            f"{notebook.path}: {other!r} is computed from {name!r} in the parameters cell, before "
            f"{name!r} is given, and would not change: give {other!r} too, or compute it below"
        )
    for cell in notebook.parameters[1:]:
        for name in _parameters(_body(cell)).keys() & values.keys():
            raise NotebookError(
                f"{notebook.path}: {name!r} is set again in cell {cell.index}, a second one "
                f"tagged `{PARAMETERS_TAG}`; keep one"
            )
    injected(values)
    return values


def _checked(name: str, kind: ast.expr, value: object, notebook: Path) -> object:
    try:
        if not isinstance(value, Text):
            return fit(value, kind)
        typed = read(value.text, kind)
        with suppress(MisfitError):  # a Literal that looks like a file's name is kept
            return fit(_from_here(typed, notebook.parent), kind)
    except ValueError as error:
        if isinstance(error, MisfitError) and not isinstance(value, Text):
            raise NotebookError(
                f"{name}={value!r:.100} is not of the type {ast.unparse(kind)}; give one"
            ) from None
        raise NotebookError(f"{name} cannot be set: {error}; give another value") from error
    return typed


def _from_here(value: object, home: Path) -> object:
    """An absolute path for a path typed here, since the notebook runs in another folder."""
    if isinstance(value, list | tuple):
        return type(value)(_from_here(one, home) for one in value)
    if isinstance(value, dict):
        return {key: _from_here(one, home) for key, one in value.items()}
    if not isinstance(value, str) or Path.cwd() == home.resolve():
        return value
    # Not normalised, because .. behind a link is another folder.
    return str(Path.cwd() / value) if _is_path(value) else value


def _is_path(text: str) -> bool:
    """Whether a typed text is a path: by its form, or because it exists here."""
    if text in {".", ".."} or text.startswith(("./", "../")):
        return True
    try:
        path = Path(text or "\0")
        named = ("/" in text or "." in text) and path.exists()
        return named or (path / "config.json").exists()  # a model's folder
    except (OSError, ValueError):
        return False


def default(notebook: Notebook, name: str) -> object:
    """A parameter's default; None if it is computed or the parameter does not exist."""
    _, value = _parameters(_body(*notebook.parameters[:1])).get(name, (None, None))
    try:
        return ast.literal_eval(value) if value else None
    except ValueError:
        return None


def _body(*cells: Cell) -> list[ast.stmt]:
    return [node for cell in cells for node in statements(cell.source) or ()]


def _parameters(body: list[ast.stmt]) -> dict[str, tuple[ast.expr, ast.expr | None]]:
    """The types and defaults of the names that a cell sets; the last assignment counts."""
    types = dict[str, tuple[ast.expr, ast.expr | None]]()
    for node in body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=value):
                types[name] = kind, value
            case ast.Assign(targets=targets, value=value):
                pairs = (pair for target in targets for pair in _pairs(target, value))
                types |= {name: (type_of(one), one) for name, one in pairs}
    return types


def _pairs(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    match target:
        case ast.Name(id=name):
            yield name, value
        case ast.Tuple(elts=names) | ast.List(elts=names):
            values = value.elts if isinstance(value, ast.Tuple | ast.List) else []
            each = values if len(values) == len(names) else [None] * len(names)
            for part, one in zip(names, each, strict=True):
                yield from _pairs(part, one)


def _computed(body: list[ast.stmt], given: set[str]) -> dict[str, str]:
    """Names whose value is computed from the default of a given one, each with that one."""
    moved, stale, known = {name: name for name in given}, dict[str, str](), {*_parameters(body)}
    for node in body:
        now, later = (
            next((moved[name] for name in names if name in moved), None) for names in _reads(node)
        )
        for name in _sets(node, known) - given:
            if now:
                stale[name] = now
            if now or later:
                moved[name] = now or later or ""
    return stale


def _sets(node: ast.stmt, known: set[str]) -> set[str]:
    """Names that a statement binds, changes or seeds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    names = set[str]()
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            names.add(part.id)
        called = isinstance(part, ast.Call)
        target = part.func if isinstance(part, ast.Call) else part
        if called and "seed" in ast.unparse(target).rpartition(".")[2]:
            names.add(ast.unparse(target))
        if not isinstance(target, ast.Attribute | ast.Subscript):
            continue
        root: ast.expr = target
        while isinstance(root, ast.Attribute | ast.Subscript):
            root = root.value
        stored = isinstance(target.ctx, ast.Store)
        if isinstance(root, ast.Name) and root.id in known and (called or stored):
            names.add(root.id)
        elif stored and not called:
            names.add(ast.unparse(target))
    return names


def _reads(node: ast.AST) -> tuple[set[str], set[str]]:
    """Names that a statement reads immediately, and those read when a function is called."""
    now, later = set[str](), set[str]()
    called: list[Any] = []
    match node:
        case ast.Name(id=name, ctx=ast.Load()):
            now.add(name)
        case ast.Lambda(body=value):
            called = [value]
        case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body):
            called = body
    for part in ast.iter_child_nodes(node):
        part_now, part_later = _reads(part)
        (later if part in called else now).update(part_now)
        later |= part_later
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        later -= {arg.arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)}
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        targets = [one for each in node.generators for one in ast.walk(each.target)]
        now -= {one.id for one in targets if isinstance(one, ast.Name)}
        now |= _reads(node.generators[0].iter)[0]
    return now, later
