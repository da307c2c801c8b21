"""pandas and NumPy, each imported when something of it is first used: that takes a while.

And types of theirs and of matplotlib, for annotations.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["ArrayLike", "Axes", "Axis", "Figure", "NDArray", "np", "pd"]

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray
else:

    class _Lazy:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(import_module(self._name), name)

    np, pd = _Lazy("numpy"), _Lazy("pandas")
    ArrayLike = Axes = Axis = Figure = NDArray = Any
