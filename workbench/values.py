"""Values that people give, checked and made plain: numbers, texts, switches, JSON.

A number out of a table (NumPy's, pandas') is the same request as Python's own, so it becomes one.
"""

from __future__ import annotations

import difflib
import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from workbench.errors import InputError
from workbench.lazy import pd

LARGEST = 2**63 - 1
MISSING = {"None", "nan", "NaT", "<NA>"}
"""How the values print that stand for no value."""
T = TypeVar("T")


def refuse(name: str, value: object, need: str) -> NoReturn:
    """Say which value is wrong, in one line, and what it must be."""
    try:
        shown = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001  # a number of thousands of digits, or somebody's own class
        shown = f"a {type(value).__name__}"
    raise InputError(f"{name}={shown:.80}: must be {need}") from None


def is_missing(value: object) -> bool:
    """Whether it stands for no value: None, NaN and pandas' own."""
    return not isinstance(value, str) and str(value) in MISSING


def written(value: object) -> str:
    """As a text: a list, an array or a mapping as JSON, others as Python prints them."""
    nested = isinstance(value, Mapping | list | tuple) or getattr(value, "ndim", 0) > 0
    try:
        return json.dumps(value, default=_of_json, ensure_ascii=False) if nested else str(value)
    except (
        TypeError,
        ValueError,
        RecursionError,
    ):  # keys that are no texts
        return str(value)


def _of_json(value: object) -> Any:
    try:
        return _plain(value)
    except TypeError:
        return str(value)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Its values as Python's own; a float of fewer than 64 bits keeps the digits that it prints."""
    cells = frame.astype(object)
    for place, kind in enumerate(frame.dtypes):
        if kind.kind == "f" and kind.itemsize < 8:
            short = frame.iloc[:, place].to_numpy(f"f{kind.itemsize}", na_value=math.nan)
            cells.isetitem(place, short.astype(str).astype(float).astype(object))
    return cells


def optional(name: str, value: object, check: Callable[..., T], *limits: float) -> T | None:
    """`check`, where None is a value too."""
    if value is None:
        return None
    try:
        return check(name, value, *limits)
    except InputError as error:
        raise InputError(str(error).replace(": must be ", ": must be None or ", 1)) from None


def whole(name: str, value: object, least: int, most: int = LARGEST) -> int:
    """A whole number from `least` to `most`, as Python's own.

    Raises:
        InputError: it is none; names the remedy for one that is written as a fraction.
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
        # Of 0.9 in half the bits the same digits, not the same fraction.
        return float(str(value)) if hasattr(value, "dtype") else float(value)
    except (ValueError, OverflowError):
        return math.inf


def real(name: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """A number from `low` (or `above` it) to `high`, as Python's own.

    Raises:
        InputError: it is none.
    """
    number = _number(value)
    if number is not None and (low < number if above else low <= number) and number <= high:
        return number + 0.0  # never -0.0
    most = "" if math.isinf(high) else f"{', at most' if above else ' to'} {high:,.10g}"
    refuse(name, value, f"a number {'above' if above else 'from'} {low:g}{most}")


def flag(name: str, value: object) -> bool:
    """True or False.

    Raises:
        InputError: anything else.
    """
    kind = (str(getattr(value, "dtype", "")), getattr(value, "ndim", None))
    if isinstance(value, bool) or kind == ("bool", 0):
        return bool(value)
    refuse(name, value, "True or False")


def choice(name: str, value: object, *choices: str) -> str:
    """One text out of a few.

    Raises:
        InputError: it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        refuse(name, value, " or ".join(f'"{one}"' for one in choices))
    return str(value)


def text(name: str, value: object) -> str:
    """A text that is not empty.

    Raises:
        InputError: it is none, or holds half a character (a lone surrogate).
    """
    if (made := _text(value)) is None:
        refuse(name, value, "a text that is not empty, of whole characters")
    return made


def texts(name: str, value: object) -> tuple[str, ...]:
    """Texts in their order, out of a list, an array or a column.

    Raises:
        InputError: they are no such thing, or one of them is empty.
    """
    if isinstance(value, str):
        refuse(name, value, f"a tuple of texts: ({value!r:.40},)")
    given: Any = value.tolist() if getattr(value, "ndim", 0) == 1 else value  # type: ignore[attr-defined]
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
        refuse(name, value, "a tuple of texts, () for none")
    made = [_text(one) for one in given]
    if None in made:
        wrong = given[made.index(None)]
        refuse(name, value, f"non-empty texts of whole characters, and {wrong!r:.40} is none")
    return tuple(one for one in made if one is not None)


def _text(value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character, which no model can write
        return None
    return str.__str__(value)  # NumPy has a kind of its own


def known(kind: str, name: object, names: Iterable[str], otherwise: str = "") -> str:
    """A name out of a few.

    Args:
        kind: What it is the name of, such as "agent".
        name: What was given.
        names: All there are.
        otherwise: What else could have been given, for the message.

    Raises:
        InputError: there is none of this name; says the nearest and all.
    """
    choices = list(names)
    if isinstance(name, str) and name in choices:
        return name
    hint = near(name, choices) or "."
    listed = ", ".join(choices) or "none"
    raise InputError(f"no {kind} {name!r:.80}{hint} Known: {listed}{otherwise}")


def near(name: object, names: Iterable[str]) -> str:
    """ ", did you mean 'x'?" with the nearest of the names; "" if none is near."""
    lower = {one.lower(): one for one in names}
    found = difflib.get_close_matches(str(name).lower(), lower, 1)
    return f", did you mean {lower[found[0]]!r}?" if found else ""


def json_object(name: str, value: object) -> dict[str, Any]:
    """A copy that is plain JSON.

    Raises:
        InputError: it is no mapping, or holds what JSON has not.
    """
    if not isinstance(value, Mapping):
        refuse(name, value, 'a dictionary, such as {"type": "object"}')
    try:
        made: dict[str, Any] = json.loads(json.dumps(dict(value), default=_plain, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        refuse(name, value, f"JSON: {error!s:.120}")
    return made


def json_text(value: Any) -> Any:
    """For `json.dumps`, what JSON has no word for: NumPy's as Python's own, all else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _plain(value: object) -> Any:
    """What JSON can hold of other kinds of numbers and collections."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # NumPy's
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")
