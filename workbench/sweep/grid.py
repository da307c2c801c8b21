"""A grid: the points of a sweep, from factors that are multiplied and conditions that filter.

A point maps names to values. This module does not depend on notebooks.
"""

from __future__ import annotations

import ast
import math
import random
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

from workbench import values
from workbench.errors import InputError

Point = Mapping[str, object]
Points = list[dict[str, object]]  # within `Grid`, `list` is a field
DETAIL = 200  # characters of an error that a terminal shows
MOST = 10_000  # points per sweep; more is probably a typing error
NODES = (
    ast.Expression, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.Add,
    ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod,
    ast.Compare, ast.cmpop, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RandomValue:
    """Random numbers from `low` to `high`, uniform or log-uniform; integers if both bounds are.

    Raises:
        InputError: the range is invalid.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        for value in (self.low, self.high):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"random: low={self.low!r}, high={self.high!r} must be numbers")
        if not self.low < self.high or not self.high - self.low <= sys.float_info.max:
            raise InputError(f"random: low={self.low} must be below high={self.high}")
        if self.log and self.low <= 0:
            raise InputError(f"random: low={self.low} has no logarithm: give a number above 0")

    def draw(self, chance: random.Random) -> float:
        """Draw one number."""
        if self.log:
            value = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = chance.uniform(self.low, self.high)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return round(value) if self.log else chance.randint(self.low, self.high)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


@dataclass(frozen=True, slots=True)
class Random:
    """A number of points, drawn from ranges and lists; the same for the same seed."""

    points: int
    of: Mapping[str, RandomValue | Sequence[object]]
    seed: int = 0

    def __post_init__(self) -> None:
        values.whole("random: points", self.points, 1)
        if not isinstance(self.of, Mapping) or not self.of:
            raise InputError(f"random: of={self.of!r:.60} names no parameter to draw")
        for name, choices in self.of.items():
            if not isinstance(choices, RandomValue):
                _check_values("random", name, choices)

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Random:
        """From the mapping of a YAML file, with ranges as `{low: …, high: …}`.

        Raises:
            InputError: an unknown key, or an invalid value.
        """
        check_mapping("random", settings, [one.name for one in fields(cls)])
        of = settings.get("of") or {}
        check_mapping("random: of", of)
        known = [one.name for one in fields(RandomValue)]
        drawn = dict(of)
        for name, choices in of.items():
            if isinstance(choices, Mapping):
                check_mapping(f"random: {name}", choices, known)
                drawn[name] = RandomValue(**choices)
        return cls(settings.get("points", 0), drawn, settings.get("seed", 0))

    def draw(self) -> list[Point]:
        """Draw the points."""
        chance = random.Random(f"grid/{self.seed}")
        return [
            {
                name: one.draw(chance) if isinstance(one, RandomValue) else chance.choice(one)
                for name, one in self.of.items()
            }
            for _ in range(self.points)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The combinations of several factors; every point of the grid has one value of each.

    Attributes:
        product: names with lists of values, in all combinations.
        zip: names with lists of equal length: the first values together, and so on.
        list: complete points; a parameter that one of them leaves out keeps its default.
        random: points drawn at random.
        seeds: values of `seed`, each combined with all others.
        where: expressions in the names, such as `"shots < 4 or seed == 0"`. A point stays if all
            of them are true. An expression with a name that a point of `list` leaves out is false
            for that point.

    Raises:
        InputError: a factor is empty or malformed, two factors share a name, a condition cannot be
            parsed, or there are no points or too many.
    """

    product: Mapping[str, Sequence[object]] = field(default_factory=dict)
    zip: Mapping[str, Sequence[object]] = field(default_factory=dict)
    list: Sequence[Point] = ()
    random: Random | None = None
    seeds: Sequence[int] = ()
    where: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._check_kinds()
        lengths = {name: len(values) for name, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"zip: the lists differ in length ({lengths}): give equal lengths")
        for point in self.list:
            if not isinstance(point, Mapping) or not all(isinstance(n, str) for n in point):
                raise InputError(
                    f"list: {point!r:.60} is not a point: give names with their values"
                )
        names = self._names()
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise InputError(f"{twice[0]!r} is in two parts of the grid: give it in one of them")
        if not 0 < (size := self._size()) <= MOST:
            raise InputError(
                f"the grid has {size:,} points; a sweep takes 1 to {MOST:,}: "
                f"{'narrow it' if size else 'give it some'}"
            )
        for condition in self.where:
            _parsed(condition)

    def _check_kinds(self) -> None:
        if isinstance(self.where, str):
            object.__setattr__(self, "where", (self.where,))
        for factor in ("product", "zip"):
            check_mapping(factor, getattr(self, factor))
            for name, choices in getattr(self, factor).items():
                _check_values(factor, name, choices)
        if not isinstance(self.random, Random | None):
            raise InputError(f"random: {self.random!r:.60} must be a workbench.sweep.Random")
        if not _is_list(self.list):
            raise InputError(f"list: {self.list!r:.60} must be a list of points")
        if not _is_list(self.seeds) or not all(type(seed) is int for seed in self.seeds[:99]):
            raise InputError(
                f"seeds: {self.seeds!r:.60} must be whole numbers, or the number of seeds from 0"
            )
        if not _is_list(self.where):
            raise InputError(f"where: {self.where!r:.60} must be a list of texts")

    def _names(self) -> Sequence[str]:
        listed = dict.fromkeys(name for point in self.list for name in point)
        drawn = self.random.of if self.random else {}
        return [*self.product, *self.zip, *listed, *drawn, *(["seed"] if self.seeds else [])]

    def check_where(self, fixed: Collection[str] = ()) -> None:
        """Refuse a condition with a name that does not vary.

        Raises:
            InputError: a name is `fixed`, or not in the grid.
        """
        names = self._names()
        for condition in self.where:
            for name in sorted(_used(_parsed(condition)) - {*names}):
                near = values.near(name, names)
                why = "is fixed" if name in fixed else f"is not in the grid{near}"
                varies = ", ".join(names) or "nothing"
                raise InputError(f"where: {condition!r}: {name!r} {why}; what varies: {varies}")

    def _size(self) -> int:
        zipped = len(next(iter(self.zip.values()))) if self.zip else 1
        drawn = self.random.points if self.random else 1
        combined = math.prod(len(choices) for choices in self.product.values())
        return combined * zipped * drawn * (len(self.list) or 1) * (len(self.seeds) or 1)

    @property
    def points(self) -> Points:
        """All points, those of the last factor next to each other, without duplicates.

        Raises:
            InputError: the conditions leave no point, or one has a name that does not vary.
        """
        self.check_where()
        rows = product(*self.product.values())
        combined = [dict(zip(self.product, row, strict=True)) for row in rows]
        pairs = zip(*self.zip.values(), strict=True)
        zipped = [dict(zip(self.zip, row, strict=True)) for row in pairs] or [{}]
        drawn = self.random.draw() if self.random else [{}]
        seeded = [{"seed": seed} for seed in self.seeds] or [{}]
        every: Iterator[dict[str, object]] = (
            {name: value for part in parts for name, value in part.items()}
            for parts in product(combined, zipped, self.list or [{}], drawn, seeded)
        )
        fitting = [point for point in every if all(_holds(text, point) for text in self.where)]
        if not fitting:
            raise InputError(f"no point of the grid fulfils where={list(self.where)}: loosen it")
        return list({repr(point): point for point in fitting}.values())


def check_mapping(name: str, value: object, known: Sequence[str] | None = None) -> None:
    """Refuse a value that is not a mapping, or has a key that is not in `known`.

    Raises:
        InputError: the message names the value or the key.
    """
    if not isinstance(value, Mapping) or not all(isinstance(n, str) and n for n in value):
        raise InputError(f"{name}: {value!r:.60} must be names with their values")
    for key in value if known is not None else ():
        values.known(f"key of {name}", key, known or ())


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _check_values(factor: str, name: str, choices: Any) -> None:
    if not _is_list(choices) or not choices:
        raise InputError(f"{factor}: {name}={choices!r:.60} must be a list of 1 value or more")


def _parsed(condition: object) -> ast.Expression:
    """A condition as a syntax tree, of nothing but comparisons and arithmetic."""
    if not isinstance(condition, str):
        raise InputError(f"where={condition!r:.60} must be a text, such as 'shots < 4'")
    try:
        tree = ast.parse(condition.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"where: {condition!r} is not an expression: {error}") from error
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            raise InputError(
                f"where: {condition!r} has more than names, values, comparisons, and/or/not and "
                "+ - * / %"
            )
    return tree


def _holds(condition: str, point: Point) -> bool:
    tree = _parsed(condition)
    if not _used(tree) <= {*point}:
        return False
    try:
        scope: dict[str, Any] = {"__builtins__": {}, **point}
        return bool(eval(compile(tree, "where", "eval"), scope))  # only comparisons: see _parsed
    except (TypeError, ArithmeticError, MemoryError) as error:
        detail = f"cannot be evaluated for {listed(point)}: {error}"
        raise InputError(f"where: {condition!r} {detail}") from error


def _used(tree: ast.Expression) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def brief(value: object, most: int = 40) -> str:
    """A value for a terminal: one short line, without control characters."""
    text = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in str(value)[: most + 1]
    )
    return text if len(text) <= most else f"{text[: most - 1]}…"


def listed(point: Point) -> str:
    """A point as one line of text."""
    return ", ".join(f"{brief(name)}={brief(value)}" for name, value in point.items())
