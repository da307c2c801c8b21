"""The process that compares formulas. It is run by its path and imports nothing of workbench.

It reads lines of JSON `[seconds of CPU time, first, second]`, with formulas from `formula`, and
answers each with `true`, `false` or `null` (undecided). The kernel ends the process when the
seconds are used up, even within C code. It ends with its input, so it never outlives its parent.
"""

from __future__ import annotations

import json
import operator
import os
import resource
import signal
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

MEMORY = 4 * 2**30
"""Maximum bytes of address space: a tower of powers needs more than any machine has."""
DIGITS = 40
# Expressions are compared at positive values and at others. If they are equal only at the first,
# as ln(x²) and 2 ln(x) are, the comparison is undecided.
POINTS = (
    ("13/7", "29/11", "17/19", "41/23"),
    ("31/37", "5/13", "43/17", "7/29"),
    ("-13/7", "29/11", "-17/19", "-5/3"),
)
OPERATORS: dict[tuple[int, str], Any] = {
    (1, "-"): operator.neg, (2, "+"): operator.add, (2, "*"): operator.mul,
    (2, "/"): operator.truediv, (2, "^"): operator.pow,
}  # fmt: skip
SCALAR = {"n", "v", "+", "-", "*", "/", "^", "!", "f", "pm"}
LESS = {">": "<", r"\ge": r"\le"}
sympy: Any = None


def main() -> None:
    """Serve until the input ends."""
    global sympy  # noqa: PLW0603  # imported late, to say so where it is missing
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library's prints must not be read as answers
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with suppress(OSError, ValueError):  # the time limit works without it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        sympy = import_module("sympy")
        same(["+", ["f", "sqrt", ["n", "8"]], ["v", "x"]], ["+", ["v", "x"], ["n", "1"]])  # warm
    except ImportError as error:
        print(json.dumps(str(error)), file=answers)
        return
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        seconds, first, second = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            verdict = same(first, second)
        except Exception:  # noqa: BLE001 - sympy's, of any kind
            verdict = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), file=answers)


def same(first: Any, second: Any) -> bool | None:
    """Whether two formulas are equal."""
    first, second = _shape(first), _shape(second)
    kinds = {first[0], second[0]}
    if kinds <= SCALAR:
        return _equal(first, second)
    if "rel" in kinds:
        return _related(first, second)
    if kinds <= {"list", r"\{"}:
        return _same_items(_items(first), _items(second))
    if len(kinds) == 2:
        unsure = kinds & {"mat", "cup", "cap", "t"} or _holds([first, second], "rel")
        return None if unsure else False
    return _same_structure(first, second)


def _related(first: Any, second: Any) -> bool | None:
    """Compare if at least one is a relation: x = 5 is 5, x < 3 an interval."""
    if first[0] == second[0]:
        return _same_relation(first, second)
    relation, other = (first, second) if first[0] == "rel" else (second, first)
    if len(relation) == 4 and relation[2] in {"=", r"\in"} and relation[1][0] == "v":
        return same(relation[3], other)
    if other[0] in SCALAR and set(relation[2::2]) == {"="}:
        return False
    interval = _interval(_upwards(relation))
    return same(interval, other) if interval and other[0] in {"(", "["} else None


def _same_structure(first: Any, second: Any) -> bool | None:
    """Compare words, unions, matrices, tuples and intervals."""
    if first[0] == "t":
        return bool(first[1].casefold() == second[1].casefold())
    if first[0] in {"cup", "cap"}:
        return _same_items(first[1:], second[1:])
    if [*map(len, first[1:])] != [*map(len, second[1:])] and first[0] == "mat":
        return False
    if first[0] == "mat":
        cells = [[cell for row in one[1:] for cell in row] for one in (first, second)]
    elif first[1] != second[1] or len(first) != len(second):  # the bracket that closes
        return False
    else:
        cells = [first[2:], second[2:]]
    return _all(same(a, b) for a, b in zip(*cells, strict=True))


def _shape(formula: Any) -> Any:
    """A plus-minus as a list of both values."""
    if formula[0] in SCALAR and _holds(formula, "pm"):
        return ["list", _chosen(formula, 1), _chosen(formula, -1)]
    return formula


def _holds(formula: Any, head: str) -> bool:
    return isinstance(formula, list) and (
        formula[0] == head or any(_holds(part, head) for part in formula)
    )


def _chosen(formula: Any, sign: int) -> Any:
    if not isinstance(formula, list):
        return formula
    head, *rest = [_chosen(part, sign) for part in formula]
    if head != "pm":
        return [head, *rest]
    return ["+", rest[0], rest[1] if sign > 0 else ["-", rest[1]]]


def _items(formula: Any) -> list[Any]:
    return list(formula[1:] if formula[0] == "list" else formula[2:])


def _same_items(first: list[Any], second: list[Any]) -> bool | None:
    """Whether the items are the same in any order."""
    left, unsure = list(second), False
    if len(first) != len(second):
        return False
    for one in first:
        verdicts = [same(one, other) for other in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            unsure = True
        else:
            return False
    return None if unsure else True


def _all(verdicts: Any) -> bool | None:
    known = [*verdicts]
    return False if False in known else None if None in known else True


def _same_relation(first: Any, second: Any) -> bool | None:
    """Whether one is a multiple of the other, or all steps are the same."""
    first, second = _upwards(first), _upwards(second)
    if first[2::2] != second[2::2]:
        return None
    if _all(same(a, b) for a, b in zip(first[1::2], second[1::2], strict=True)):
        return True
    if (
        len(first) > 4
        or not {first[i][0] for i in (1, 3)} | {second[i][0] for i in (1, 3)} <= SCALAR
    ):
        return None
    one, other = (_value(side[1]) - _value(side[3]) for side in (first, second))
    ratio = sympy.simplify(one / other) if other != 0 else sympy.nan
    if ratio.is_number and ratio.is_finite and ratio != 0:
        return bool(first[2] in {"=", r"\ne"} or ratio.is_positive)
    symbols = one.free_symbols | other.free_symbols
    plain = symbols and one.is_polynomial(*symbols) and other.is_polynomial(*symbols)
    return False if plain else None


def _interval(relation: Any) -> Any:
    """x < 3 or 1 ≤ x < 3 as an interval, None for any other relation."""
    sides, signs = relation[1::2], relation[2::2]
    low, high = ["-", ["v", r"\infty"]], ["v", r"\infty"]
    names = [at for at, side in enumerate(sides) if side[0] == "v" and side != high]
    if len(names) != 1 or len(sides) > 3 or not {*signs} <= {"<", r"\le"}:
        return None
    at = names[0]
    below = sides[at - 1] if at else low
    above = sides[at + 1] if at + 1 < len(sides) else high
    opens = "[" if at and signs[at - 1] == r"\le" else "("
    closes = "]" if at < len(signs) and signs[at] == r"\le" else ")"
    return [opens, closes, below, above]


def _upwards(relation: Any) -> Any:
    """A relation with < instead of >."""
    if not {*relation[2::2]} <= LESS.keys():
        return relation
    turned = relation[:0:-1]
    return ["rel", *(LESS.get(part, part) if at % 2 else part for at, part in enumerate(turned))]


def _equal(first: Any, second: Any) -> bool | None:
    one, other = _value(first), _value(second)
    if one == other:
        return True
    if one.is_Rational and other.is_Rational:
        return False
    if one.has(sympy.oo, sympy.zoo, sympy.nan) or other.has(sympy.oo, sympy.zoo, sympy.nan):
        return False
    near = [_agree(one, other, at) for at in POINTS[:2]]
    if False in near:
        return None if _opaque(first) or _opaque(second) else False
    return None if None in near else _agree(one, other, POINTS[2]) or None


def _agree(one: Any, other: Any, at: tuple[str, ...]) -> bool | None:
    """Whether two expressions have the same value at these values of their symbols."""
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    values = {symbol: sympy.Rational(at[i % 4]) + i // 4 for i, symbol in enumerate(symbols)}
    pair = [sympy.N(side.subs(values), DIGITS + 10) for side in (one, other)]
    if not all(value.is_number and value.is_finite for value in pair):
        return None
    size = max(abs(value) for value in pair)
    return bool(abs(pair[0] - pair[1]) <= size * sympy.Float(10) ** -DIGITS)


def _opaque(formula: Any) -> bool:
    """Whether it has a logarithm without a base, or an undefined function."""
    if not isinstance(formula, list):
        return False
    if formula[:2] == ["f", "log"] and len(formula) == 3:
        return True
    return (formula[0] == "v" and "(" in formula[1]) or any(map(_opaque, formula))


def _value(formula: Any) -> Any:
    """A formula as a SymPy expression."""
    head, *rest = formula
    if head in {"n", "v"}:
        return sympy.Rational(rest[0]) if head == "n" else _named(rest[0])
    if head == "f":
        return _function(rest[0], [*map(_value, rest[1:])])
    values = [*map(_value, rest)]
    return sympy.factorial(*values) if head == "!" else OPERATORS[len(rest), head](*values)


def _named(name: str) -> Any:
    known = {"e": sympy.E, "i": sympy.I, r"\pi": sympy.pi, r"\infty": sympy.oo}
    return known.get(name) or sympy.Symbol(name, real=True)


def _function(name: str, values: list[Any]) -> Any:
    if name == "log":  # the base is unknown, but the same everywhere
        base = values[1] if len(values) > 1 else sympy.Symbol("?base", positive=True)
        return sympy.log(values[0]) / sympy.log(base)
    known = {
        "ln": "log", "abs": "Abs", "binom": "binomial", "ceil": "ceiling",
        "arcsin": "asin", "arccos": "acos", "arctan": "atan",
    }  # fmt: skip
    return getattr(sympy, known.get(name, name))(*values)


if __name__ == "__main__":
    main()
