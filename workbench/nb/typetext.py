"""Types as a parameters cell spells them: does a value fit, and how is a text read.

Understood are str, int, float, bool, None, object, list, tuple, dict, Literal, Optional and
unions with `|`: what papermill can write into a notebook.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SCALARS: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    # True is an int to Python, not to a reader.
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "None": lambda value: value is None,
    "object": lambda _: True,
    "list": lambda value: isinstance(value, list),
    "tuple": lambda value: isinstance(value, tuple),
    "dict": lambda value: isinstance(value, dict),
}
_WORDS: dict[str, object] = {"true": True, "false": False, "none": None, "null": None}


def spelled(annotation: ast.expr) -> str:
    """The type as the cell writes it."""
    return ast.unparse(annotation)


def fits(value: object, annotation: ast.expr) -> bool:
    """Whether a value is of a type.

    Raises:
        ValueError: The type is none of those understood.
    """
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id=name) if name in _SCALARS:
            return _SCALARS[name](value)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return fits(value, left) or fits(value, right)
        case ast.Subscript(value=ast.Name(id=name), slice=inner):
            return _fits_generic(value, name, inner)
    raise ValueError(f"the type {spelled(annotation)} is not one that a value can be given for")


def _fits_generic(value: object, name: str, inner: ast.expr) -> bool:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        return any(
            value == ast.literal_eval(p) and type(value) is type(ast.literal_eval(p)) for p in parts
        )
    if name == "Optional":
        return value is None or fits(value, inner)
    if name == "list" and len(parts) == 1:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if name == "dict" and len(parts) == 2:
        key, item = parts
        return isinstance(value, dict) and all(
            fits(k, key) and fits(v, item) for k, v in value.items()
        )
    if name == "tuple":
        return isinstance(value, tuple) and _fits_tuple(value, parts)
    raise ValueError(f"the type {name}[{spelled(inner)}] is not one that a value can be given for")


def _fits_tuple(value: tuple[object, ...], parts: list[ast.expr]) -> bool:
    if len(parts) == 2 and isinstance(parts[1], ast.Constant) and parts[1].value is ...:
        return all(fits(item, parts[0]) for item in value)
    return len(value) == len(parts) and all(map(fits, value, parts))


def read(text: str, annotation: ast.expr) -> object:
    """Read a text as a value of a type; a text that fits nothing else stays a string.

    Raises:
        ValueError: The text is no value of that type.
    """
    value: object = text
    try:
        value = _WORDS[text.lower()] if text.lower() in _WORDS else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text.lower().lstrip("+-") in {"inf", "nan"}:
            value = float(text)
    # 7 for a `str` is the text "7", but None for a `str | None` is None.
    plain = not fits("", annotation) or value is None or isinstance(value, bool)
    if plain and fits(value, annotation):
        return value
    if fits(text, annotation):
        return text
    raise ValueError(f"{text!r} is no {spelled(annotation)}")
