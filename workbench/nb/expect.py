"""The comparer for stated numbers: a notebook says a number, and this holds it to its word.

`expect("accuracy", value, stated=0.81, within=0.05)` prints one line that depends on what was
stated only, so that nbval can compare it on every machine, or raises an AssertionError.
"""

from __future__ import annotations

import math
from typing import SupportsFloat

from workbench.errors import NotebookError

# 0.3 - 0.2 is a hair above 0.1: a value that lies exactly on the bound holds.
_ROUNDING = 1e-9


def expect(
    name: str,
    value: SupportsFloat,
    *,
    stated: float,
    within: float | None = None,
    relative: float | None = None,
) -> None:
    """Hold a measured value to a stated one.

    Args:
        name: What is measured; it opens the printed line.
        value: The measured number.
        stated: The number that the text states.
        within: Largest absolute difference allowed.
        relative: Largest difference allowed as a share of `stated`; give this or `within`.

    Raises:
        AssertionError: The value is not a number or lies farther away than the tolerance.
        NotebookError: The statement itself is unusable (no finite number, no positive tolerance).
    """
    tolerance, shown = _tolerance(name, stated, within, relative)
    measured = float(value)
    claim = f"{name}: {stated:g} ± {shown}"
    off = abs(measured - stated)
    if not near(measured, stated, tolerance):
        why = "is not a number" if math.isnan(measured) else f"is off by {off:.6g}"
        raise AssertionError(f"{claim} does not hold: the value {measured:.6g} {why}")
    print(f"{claim} holds")


def near(value: float, stated: float, tolerance: float) -> bool:
    """Whether a value lies within a tolerance of a stated one; NaN is near to nothing."""
    # Written so that NaN, which compares false with everything, does not hold.
    return abs(value - stated) <= tolerance * (1 + _ROUNDING)


def _tolerance(
    name: str, stated: float, within: float | None, relative: float | None
) -> tuple[float, str]:
    if not math.isfinite(stated):
        raise NotebookError(f"{name}: stated={stated} is not a finite number; state one")
    given = within if relative is None else relative
    if given is None or (within is not None and relative is not None):
        raise NotebookError(
            f"{name}: within={within}, relative={relative}; give exactly one of the two"
        )
    if not (math.isfinite(given) and given > 0):
        raise NotebookError(f"{name}: the tolerance {given} must be finite and above 0")
    if relative is None:
        return given, f"{given:g}"
    if stated == 0:
        raise NotebookError(f"{name}: no share of stated=0 is a tolerance; use within=")
    return abs(stated) * given, f"{given * 100:g} %"
