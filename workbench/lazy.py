"""Libraries that are imported at their first use, as the import is slow.

It also has types of these libraries and of matplotlib, for annotations.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "ArrayLike", "Axes", "Axis", "Figure", "NDArray", "np", "pd", "psutil", "ray", "torch", "v4",
]  # fmt: skip

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    psutil: Any
    ray: Any
    v4: Any
else:

    class _Lazy:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(import_module(self._name), name)

    np, pd, psutil, ray, torch = map(_Lazy, ("numpy", "pandas", "psutil", "ray", "torch"))
    v4 = _Lazy("nbformat.v4")
    ArrayLike = Axes = Axis = Figure = NDArray = Any
