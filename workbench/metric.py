"""A measured number with its interval, and which kind of number it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import ClassVar

from workbench.reprs import Shown, measured


@dataclass(frozen=True, slots=True, repr=False)
class Metric(Shown):  # noqa: PLW1641  # it has the hash of its fields
    """A headline number with its interval and everything that did not count towards it.

    As text it is "0.42 (0.1 to 0.74, n = 20)", a `Share` "85.0 % (64.0 to 94.8, n = 20)" and a
    `ShareDifference` "+10.0 points (-3.2 to +21.8, n = 20)"; they differ in nothing else.
    """

    form: ClassVar[str] = "number"
    name: str
    value: float
    low: float
    high: float
    n: int
    n_failed: int = 0
    n_unparsed: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metric) and astuple(self) == astuple(other)

    def __str__(self) -> str:
        return measured(self)


class Share(Metric):
    """A share of all, from 0 to 1."""

    __slots__ = ()
    form = "share"


class ShareDifference(Metric):
    """One share minus another, from -1 to 1."""

    __slots__ = ()
    form = "share difference"


FORMS: Mapping[str, type[Metric]] = {one.form: one for one in (Metric, Share, ShareDifference)}
"""The kinds of metrics by their `form`, which a saved report has beside its numbers."""
