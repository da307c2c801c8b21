"""Values as literals in a notebook's source: fitted to a type, read from a text, written.

Supported types: str, int, float, bool, None, object, list, tuple, set, dict, Literal, Optional and
unions, also by typing's names and in quotes.
"""

from __future__ import annotations

import ast
import json
import math
import numbers
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from workbench.errors import NotebookError

_NAMES = {"Any": "object", "List": "list", "Tuple": "tuple", "Dict": "dict", "Set": "set"}
_TYPES: dict[str, type] = {
    "str": str, "bool": bool, "int": int, "float": float, "list": list, "tuple": tuple,
    "set": set, "dict": dict, "None": type(None),
}  # fmt: skip
# A switch or a number in common notation.
_NUMBER = re.compile(
    r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan|infinity)|true|false", re.IGNORECASE
)
_WORDS: dict[str, object] = {"true": True, "false": False, "none": None, "null": None}


class MisfitError(ValueError):
    """A value does not fit a type."""


def type_of(value: ast.expr | None) -> ast.expr:
    """The type of a default; `object` if it is None or computed."""
    name = "object"
    with suppress(ValueError, TypeError, RecursionError):
        name = type(ast.literal_eval(value)).__name__ if value is not None else name
    return ast.Name(id=name if name in _TYPES else "object")


def fit(value: object, annotation: ast.expr) -> object:
    """The value converted to a type of Python's own: 1 as a float is 1.0, [1] as a tuple is (1,).

    Raises:
        MisfitError: it does not fit.
        ValueError: the type is not supported.
    """
    try:
        value = _plain(value)
    except RecursionError:
        raise MisfitError("it contains itself") from None
    for convert in (False, True):
        with suppress(MisfitError):
            return _fit(value, annotation, convert)
    raise MisfitError(f"{value!r:.100} is not of type {ast.unparse(annotation)}")


def _plain(value: Any) -> object:
    """Numbers and texts of other packages as Python's own, which can be written in a cell."""
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
    # NumPy's bool is not Python's.
    return bool(value) if type(value).__name__ in {"bool", "bool_"} else value


def _parts(kind: ast.expr) -> tuple[str, list[ast.expr] | None]:
    """A type's name and the content of its brackets (None without brackets); a union is `Union`."""
    name, parts = "", None
    match kind:
        case ast.Constant(value=None):
            name = "None"
        case ast.Constant(value=str(text)):
            with suppress(SyntaxError):
                return _parts(ast.parse(text, mode="eval").body)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            pass
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            name, parts = "Union", [left, right]
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Optional" and parts:
        return "Union", [*parts, ast.Constant(value=None)]
    return _NAMES.get(name, name), parts


def _fit(value: Any, annotation: ast.expr, convert: bool) -> object:
    name, parts = _parts(annotation)
    if name == "object":
        return value
    if name == "Union" and parts:
        return _first(value, parts, convert)
    if name == "Literal" and parts:
        if any(type(value) is type(x) and value == x for x in map(ast.literal_eval, parts)):
            return value
        raise MisfitError
    if name not in _TYPES:
        raise _unknown(annotation)
    value = _converted(value, name, convert)
    return value if parts is None else _fit_items(value, annotation, parts, convert)


def _fit_items(value: object, annotation: ast.expr, parts: list[ast.expr], convert: bool) -> object:
    match value, parts:
        case ((list() | set()), [kind]):
            return type(value)(_fit(item, kind, convert) for item in value)
        case dict(), [key, kind]:
            return {_fit(k, key, convert): _fit(v, kind, convert) for k, v in value.items()}
        case tuple(), kinds:
            if len(kinds) == 2 and ast.unparse(kinds[1]) == "...":
                kinds = [kinds[0]] * len(value)
            if len(kinds) != len(value):
                raise MisfitError
            return tuple(_fit(one, kind, convert) for one, kind in zip(value, kinds, strict=True))
    raise _unknown(annotation)


def _unknown(annotation: ast.expr) -> ValueError:
    return ValueError(f"no value can be given for the type {ast.unparse(annotation)}")


def _converted(value: object, name: str, convert: bool) -> object:
    # True is an int to Python, but not to a reader.
    if type(value) is _TYPES[name]:
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
        except ValueError as unknown:  # another alternative may fit
            error = unknown
    raise error


def read(text: str, annotation: ast.expr) -> object:
    """Read a text as a value of a type: the first alternative that fits, the text itself last.

    It accepts Python's literals and JSON. Quotes are removed if the text would have another value
    without them, or if the type accepts anything.

    Raises:
        ValueError: the text is not a value of that type.
    """
    with suppress(MisfitError):
        value = _literal(text)
        if isinstance(value, int | float) and not _NUMBER.fullmatch(text):
            with suppress(MisfitError):  # an id such as 1_2
                return fit(text, annotation)
        anything = _parts(annotation)[0] == "object"
        if not isinstance(value, str) or anything or not isinstance(read(value, annotation), str):
            return fit(value, annotation)
    return fit(text, annotation)


def _literal(text: str) -> object:
    """The value of a text that is a Python literal or JSON."""
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    if word.lstrip("+-") in {"inf", "nan", "infinity"}:
        with suppress(ValueError):
            return float(text)
    for reader in (ast.literal_eval, json.loads):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = reader(text)
            source_of(value)  # refuses Ellipsis and complex numbers
            return value
    raise MisfitError


def injected(values: Mapping[str, object]) -> str:
    """The source of a cell that sets these values, each parsed again and compared.

    Raises:
        NotebookError: a value is not made of numbers, texts and collections of them.
    """
    lines = ["# Parameters"]
    for name, value in values.items():
        try:
            source = source_of(value)
            names = {"__builtins__": {}, "float": float, "set": set}
            if source_of(eval(source, names)) != source:
                raise ValueError(f"{value!r:.100} would become another value")  # noqa: TRY301
        except (ValueError, TypeError, RecursionError, SyntaxError, MemoryError) as error:
            raise NotebookError(f"{name} cannot be given to a notebook: {error}") from error
        lines.append(f"{name} = {source}")
    return "\n".join(lines)


def source_of(value: object) -> str:
    """A value as Python source.

    Raises:
        ValueError: it is not made of numbers, texts and collections of them.
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
