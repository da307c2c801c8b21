"""The parameters cell: what a notebook can be given, and whether a value fits.

The cell is read, never run. A name that is not there or a value of another type is refused before
anything runs (papermill only warns), and so is one from which the cell computes another default.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import NotebookError
from workbench.nb.injected import injected
from workbench.nb.notebook import PARAMETERS_TAG, Notebook, statements
from workbench.nb.typetext import MisfitError, fit, read, spelled, type_of

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


def faults(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """What keeps values from a notebook, or makes them count for nothing, each with its cell."""
    tagged = [
        cell for cell in notebook.cells if cell.kind == "code" and PARAMETERS_TAG in cell.tags
    ]
    for cell in tagged[1:]:
        yield cell.index, f"a second cell tagged `{PARAMETERS_TAG}`; papermill takes the first"
    for cell in tagged[:1]:
        body = statements(cell.source)
        if body is None:
            yield cell.index, "the parameters cell is not plain Python"
        for node in body or ():
            if isinstance(node, ast.AnnAssign) and node.value and _misfit(node):
                yield cell.index, f"`{ast.unparse(node)}`: the value is not of its type"
        for name in _parameters(body or []):
            for other in _computed(body or [], {name}):
                yield (
                    cell.index,
                    f"{other!r} is computed from {name!r} before that is given; compute it below",
                )


def _misfit(node: ast.AnnAssign) -> bool:
    try:
        fit(ast.literal_eval(node.value or ast.Constant(None)), node.annotation)
    except MisfitError:
        return True
    except ValueError:
        # A computed default or a type that only Python can judge.
        return False
    return False


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
    _check_last(notebook, values)
    injected(values)
    return values


def _check_last(notebook: Notebook, values: Mapping[str, object]) -> None:
    """Refuse a value that a second parameters cell would set back."""
    tagged = [cell for cell in notebook.code if PARAMETERS_TAG in cell.tags]
    for cell in tagged[1:]:
        for name in _parameters(statements(cell.source) or []):
            if name in values:
                raise NotebookError(
                    f"{notebook.path}: {name!r} is set again in cell {cell.index}, a second one "
                    f"tagged `{PARAMETERS_TAG}`; keep one"
                )


def _near(name: str, known: Mapping[str, object]) -> str:
    if not known:
        return "it has none; tag a cell of plain assignments `parameters`"
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
        case (
            (ast.Tuple(elts=names) | ast.List(elts=names)),
            (ast.Tuple(elts=values) | ast.List(elts=values)),
        ) if len(names) == len(values):
            for part, one in zip(names, values, strict=True):
                yield from _pairs(part, one)
        case ((ast.Tuple(elts=names) | ast.List(elts=names)), _):
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
    """What a statement binds, changes or seeds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _is_stored(n)}
    for part in ast.walk(node):
        call = isinstance(part, ast.Call)
        inside = part.func if isinstance(part, ast.Call) else part
        if call and "seed" in ast.unparse(inside).rpartition(".")[2]:
            names.add(ast.unparse(inside))
        if not isinstance(inside, ast.Attribute | ast.Subscript):
            continue
        root: ast.expr = inside
        while isinstance(root, ast.Attribute | ast.Subscript):
            root = root.value
        if isinstance(root, ast.Name) and root.id in known and (call or _is_stored(inside)):
            names.add(root.id)
        elif not call and _is_stored(inside):
            names.add(ast.unparse(inside))
    return names


def _is_stored(node: ast.Name | ast.Attribute | ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Store)


def _reads(node: ast.AST) -> tuple[set[str], set[str]]:
    """Names that a statement reads at once, and those that it reads when a function is called."""
    if isinstance(node, ast.Name):
        return ({node.id} if isinstance(node.ctx, ast.Load) else set()), set()
    now, later, bound = set[str](), set[str](), set[str]()
    for part in ast.iter_child_nodes(node):
        found = _reads(part)
        inner = node.body if isinstance(node, LATE) else ()
        if part is inner or (isinstance(inner, list) and part in inner):
            later |= found[0] | found[1]
        else:
            now |= found[0]
            later |= found[1]
    if isinstance(node, LATE):
        later -= {arg.arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)}
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        targets = [n for one in node.generators for n in ast.walk(one.target)]
        bound = {n.id for n in targets if isinstance(n, ast.Name)}
        now = (now - bound) | _reads(node.generators[0].iter)[0]
    return now, later


def _value(notebook: Notebook, parameter: Parameter, value: object) -> object:
    shown, kind = f"{notebook.path}: {parameter.name}", parameter.type
    try:
        if not isinstance(value, Text):
            return fit(value, kind)
        found = read(value.text, kind)
        try:
            return fit(_from_here(found, notebook.path.parent), kind)
        except MisfitError:  # of a Literal
            return found
    except ValueError as error:
        if isinstance(error, MisfitError) and not isinstance(value, Text):
            raise NotebookError(
                f"{shown}={value!r:.100} is not of the type {spelled(kind)}; give one"
            ) from None
        raise NotebookError(f"{shown} cannot be set: {error}; give another value") from error


def _from_here(value: object, home: Path) -> object:
    """A path as it was typed, for a notebook that runs in another folder: an absolute one."""
    if isinstance(value, list | tuple):
        return type(value)(_from_here(one, home) for one in value)
    if isinstance(value, dict):
        return {key: _from_here(one, home) for key, one in value.items()}
    if not isinstance(value, str) or Path.cwd() == home.resolve():
        return value
    # Not normalised: behind a link .. is another folder.
    return str(Path.cwd() / value) if _is_path(value) else value


def _is_path(text: str) -> bool:
    """Whether a text that was typed is a path: by its form, or as it names what is here."""
    if text in {".", ".."} or text.startswith(("./", "../")):
        return True
    try:
        path = Path(text or "\0")
        named = ("/" in text or "." in text) and path.exists()
        return named or (path / "config.json").exists()  # a model's folder
    except (OSError, ValueError):
        return False
