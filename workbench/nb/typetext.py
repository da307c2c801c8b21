"""Types as a parameters cell spells them: a value made to fit, and a text read as one.

Understood are str, int, float, bool, None, object, list, tuple, set, dict, Literal, Optional and
unions, also by typing's names and in quotes.
"""

from __future__ import annotations

import ast
import json
import numbers
import re
from contextlib import suppress
from typing import Any

from workbench.nb.injected import source_of

NAMES = {"Any": "object", "List": "list", "Tuple": "tuple", "Dict": "dict", "Set": "set"}
PLAIN: dict[str, type] = {
    "str": str, "bool": bool, "int": int, "float": float, "list": list, "tuple": tuple,
    "set": set, "dict": dict, "None": type(None),
}  # fmt: skip
# A switch or a number as everybody writes it.
NUMBER = re.compile(
    r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan|infinity)|true|false", re.IGNORECASE
)
WORDS: dict[str, object] = {"true": True, "false": False, "none": None, "null": None}


class MisfitError(ValueError):
    """A value is not of a type."""


def spelled(annotation: ast.expr) -> str:
    """The type as the cell writes it."""
    return ast.unparse(annotation)


def type_of(value: ast.expr | None) -> ast.expr:
    """The type of a default; `object` where it is None or has to be computed."""
    name = "object"
    with suppress(ValueError, TypeError, RecursionError):
        made = ast.literal_eval(value) if value is not None else None
        name = type(made).__name__
    return ast.Name(id=name if name in PLAIN else "object")


def fit(value: object, annotation: ast.expr) -> object:
    """The value as one of a type, of Python's own kinds: 1 as a float is 1.0, [1] a tuple is (1,).

    Raises:
        MisfitError: it is none.
        ValueError: the type is none of those understood.
    """
    try:
        value = _plain(value)
    except RecursionError:
        raise MisfitError("it holds itself") from None
    for convert in (False, True):
        with suppress(MisfitError):
            return _fit(value, annotation, convert)
    raise MisfitError(f"{value!r:.100} is no {spelled(annotation)}")


def _plain(value: Any) -> object:
    """Numbers and texts of other packages as Python's own, which is what a cell can say."""
    match value:
        case str():
            return str.__str__(value)
        case bool():
            return value
        case numbers.Real():
            return int(value) if isinstance(value, numbers.Integral) else float(value)
        case list() | tuple() | set():
            return next(t for t in (list, tuple, set) if isinstance(value, t))(map(_plain, value))
        case dict():
            return {_plain(k): _plain(v) for k, v in value.items()}
    # NumPy's is no bool of Python's.
    return bool(value) if type(value).__name__ in {"bool", "bool_"} else value


def _fit(value: object, annotation: ast.expr, convert: bool) -> object:
    match annotation:
        case ast.Constant(value=None):
            return _one(value, "None", convert)
        case ast.Constant(value=str(text)):
            with suppress(SyntaxError):
                return _fit(value, ast.parse(text, mode="eval").body, convert)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return _one(value, NAMES.get(name, name), convert)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _first(value, [left, right], convert)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _generic(value, NAMES.get(name, name), parts, convert)
    raise _unknown(annotation)


def _unknown(annotation: ast.expr) -> ValueError:
    return ValueError(f"the type {spelled(annotation)} is not one that a value can be given for")


def _one(value: object, name: str, convert: bool) -> object:
    if name == "object":
        return value
    if name not in PLAIN:
        raise _unknown(ast.Name(id=name))
    # True is an int to Python, not to a reader.
    if type(value) is PLAIN[name]:
        return value
    if name == "tuple" and convert and isinstance(value, list):
        return tuple(value)
    if name == "float" and convert and type(value) is int:
        with suppress(OverflowError):
            return float(value)
    raise MisfitError


def _first(value: object, kinds: list[ast.expr], convert: bool) -> object:
    error: ValueError = MisfitError()
    for kind in kinds:
        try:
            return _fit(value, kind, convert)
        except MisfitError:
            continue
        except ValueError as unknown:  # another alternative may do
            error = unknown
    raise error


def _generic(value: object, name: str, parts: list[ast.expr], convert: bool) -> object:
    match name, parts:
        case "Literal", _:
            if any(type(value) is type(x) and value == x for x in map(ast.literal_eval, parts)):
                return value
            raise MisfitError
        case "Union", _:
            return _first(value, parts, convert)
        case "Optional", [kind]:
            return _first(value, [kind, ast.Constant(value=None)], convert)
        case (("list" | "set"), [kind]):
            found: Any = _one(value, name, convert)
            return PLAIN[name](_fit(item, kind, convert) for item in found)
        case "dict", [key, kind]:
            found = _one(value, name, convert)
            return {_fit(k, key, convert): _fit(v, kind, convert) for k, v in found.items()}
        case "tuple", _:
            found = _one(value, name, convert)
            if len(parts) == 2 and isinstance(parts[1], ast.Constant) and parts[1].value is ...:
                parts = [parts[0]] * len(found)
            if len(parts) != len(found):
                raise MisfitError
            return tuple(_fit(v, kind, convert) for v, kind in zip(found, parts, strict=True))
    raise _unknown(ast.Subscript(ast.Name(id=name), ast.Tuple(parts) if parts[1:] else parts[0]))


def read(text: str, annotation: ast.expr) -> object:
    """Read a text as a value of a type: the first alternative that fits, the text itself last.

    Python's literals and JSON are understood. Where a text in quotes would be another value
    without them, or anything at all is taken, the quotes are taken off.

    Raises:
        ValueError: the text is no value of that type.
    """
    with suppress(MisfitError):
        value = _value(text)
        if isinstance(value, int | float) and not NUMBER.fullmatch(text):
            with suppress(MisfitError):  # an id such as 1_2
                return fit(text, annotation)
        if not isinstance(value, str) or _needs_quotes(value, annotation):
            return fit(value, annotation)
    return fit(text, annotation)


def _needs_quotes(text: str, annotation: ast.expr) -> bool:
    if isinstance(annotation, ast.Name) and annotation.id in {"object", "Any"}:
        return True
    return not isinstance(read(text, annotation), str)


def _value(text: str) -> object:
    """What a text says as a literal or as JSON."""
    if text.strip().lower() in WORDS:
        return WORDS[text.strip().lower()]
    if text.strip().lower().lstrip("+-") in {"inf", "nan", "infinity"}:
        with suppress(ValueError):
            return float(text)
    for reader in (ast.literal_eval, json.loads):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = reader(text)
            source_of(value)  # no Ellipsis, no complex number
            return value
    raise MisfitError
