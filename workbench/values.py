"""Checks of users' values, which become plain Python: numbers, texts, switches, paths, JSON.

A number from a table (NumPy's, pandas') means the same request as Python's, so it becomes one.
"""

from __future__ import annotations

import difflib
import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from workbench.errors import InputError
from workbench.lazy import pd

LARGEST = 2**63 - 1
MISSING = {"None", "nan", "NaT", "<NA>"}
"""How missing values print."""
T = TypeVar("T")


def refuse(name: str, value: object, need: str) -> NoReturn:
    """Raise an InputError that names the wrong value and what it must be, in one line."""
    try:
        shown = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001  # a number of thousands of digits, or a custom class
        shown = f"a {type(value).__name__}"
    raise InputError(f"{name}={shown:.80}: must be {need}") from None


def is_missing(value: object) -> bool:
    """Whether it is a missing value: None, NaN or pandas' NA."""
    return not isinstance(value, str) and str(value) in MISSING


def written(value: object) -> str:
    """A value as text: a list, an array or a mapping as JSON, others as Python prints them."""
    nested = isinstance(value, Mapping | list | tuple) or getattr(value, "ndim", 0) > 0
    try:
        return json.dumps(value, default=json_text, ensure_ascii=False) if nested else str(value)
    except (TypeError, ValueError, RecursionError):  # keys that are not texts
        return str(value)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame's values as Python's; short floats keep the digits that they print."""
    cells = frame.astype(object)
    for place, kind in enumerate(frame.dtypes):
        if kind.kind == "f" and kind.itemsize < 8:
            short = frame.iloc[:, place].to_numpy(f"f{kind.itemsize}", na_value=math.nan)
            cells.isetitem(place, short.astype(str).astype(float).astype(object))
    return cells


def optional(name: str, value: object, check: Callable[..., T], *limits: float) -> T | None:
    """`check`, but None is valid too."""
    if value is None:
        return None
    try:
        return check(name, value, *limits)
    except InputError as error:
        raise InputError(str(error).replace(": must be ", ": must be None or ", 1)) from None


def whole(name: str, value: object, least: int, most: int = LARGEST) -> int:
    """A whole number from `least` to `most`, as a Python int.

    Raises:
        InputError: it is not one; suggests the nearest for a fraction.
    """
    number = _number(value)
    if isinstance(value, numbers.Integral) and least <= int(value) <= most and number is not None:
        return int(value)
    shown = most != LARGEST or (number or 0) > most
    need = f"a whole number from {least}" + (f" to {most:,}" if shown else "")
    if number is not None and number.is_integer() and least <= number <= most:
        need += f", such as {int(number)}"
    refuse(name, value, need)


def _number(value: object) -> float | None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        # for 0.9 in 16 bits: the same digits, not the same fraction
        return float(str(value)) if hasattr(value, "dtype") else float(value)
    except (ValueError, OverflowError):
        return math.inf


def real(name: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """A number from `low` (or `above` it) to `high`, as a Python float.

    Raises:
        InputError: it is not one.
    """
    number = _number(value)
    if number is not None and (low < number if above else low <= number) and number <= high:
        return number + 0.0  # never -0.0
    most = "" if math.isinf(high) else f"{', at most' if above else ' to'} {high:,.10g}"
    refuse(name, value, f"a number {'above' if above else 'from'} {low:g}{most}")


def flag(name: str, value: object) -> bool:
    """True or False.

    Raises:
        InputError: any other value.
    """
    kind = (str(getattr(value, "dtype", "")), getattr(value, "ndim", None))
    if isinstance(value, bool) or kind == ("bool", 0):
        return bool(value)
    refuse(name, value, "True or False")


def choice(name: str, value: object, *choices: str) -> str:
    """One of a few texts.

    Raises:
        InputError: it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        refuse(name, value, " or ".join(f'"{one}"' for one in choices))
    return str(value)


def text(name: str, value: object) -> str:
    """A non-empty text.

    Raises:
        InputError: not a text, empty, or it has a lone surrogate (half a character).
    """
    if (made := _text(value)) is None:
        refuse(name, value, "a text that is not empty, of whole characters")
    return made


def texts(name: str, value: object) -> tuple[str, ...]:
    """Texts in order, from a list, an array or a column.

    Raises:
        InputError: it is none of these, or a text is empty.
    """
    if isinstance(value, str):
        refuse(name, value, f"a tuple of texts: ({value!r:.40},)")
    given: Any = value.tolist() if getattr(value, "ndim", 0) == 1 else value  # type: ignore[attr-defined]
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
        refuse(name, value, "a tuple of texts, () for none")
    made = [_text(one) for one in given]
    if None in made:
        wrong = given[made.index(None)]
        refuse(name, value, f"non-empty texts of whole characters, but {wrong!r:.40} is not")
    return tuple(one for one in made if one is not None)


def paths(given: str | Path | Iterable[str | Path]) -> list[Path]:
    """One path or several, as a list; `~` is the home folder."""
    several = [given] if isinstance(given, str | Path) else given
    return [Path(one).expanduser() for one in several]


def _text(value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which no model can write
        return None
    return str.__str__(value)  # NumPy has a type of texts


def known(kind: str, name: object, names: Iterable[str], otherwise: str = "") -> str:
    """One of a few names.

    Args:
        kind: what it names, such as "agent".
        name: the given name.
        names: all names.
        otherwise: other possibilities, for the message.

    Raises:
        InputError: no such name; suggests the nearest and lists all.
    """
    choices = list(names)
    if isinstance(name, str) and name in choices:
        return name
    hint = near(name, choices) or "."
    listed = ", ".join(choices) or "none"
    raise InputError(f"no {kind} {name!r:.80}{hint} Known: {listed}{otherwise}")


def near(name: object, names: Iterable[str]) -> str:
    """ ", did you mean 'x'?" with the nearest name; "" if none is near."""
    lower = {one.lower(): one for one in names}
    found = difflib.get_close_matches(str(name).lower(), lower, 1)
    return f", did you mean {lower[found[0]]!r}?" if found else ""


def json_object(name: str, value: object) -> dict[str, Any]:
    """A plain JSON copy of a mapping.

    Raises:
        InputError: it is not a mapping, or has values that JSON lacks.
    """
    if not isinstance(value, Mapping):
        refuse(name, value, 'a dictionary, such as {"type": "object"}')
    try:
        made: dict[str, Any] = json.loads(json.dumps(dict(value), default=_plain, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        refuse(name, value, f"JSON: {error!s:.120}")
    return made


def json_text(value: Any) -> Any:
    """For `json.dumps`: mappings and NumPy's values as Python's, other unknown types as text."""
    try:
        return _plain(value)
    except TypeError:
        return str(value)


def _plain(value: object) -> Any:
    """A number or collection of another type as a JSON value."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # NumPy's
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
