"""Notebooks: run, validate and check them; notebooks themselves use `approx` and `expect`.

Importing this package is fast: the modules that use papermill, pandas and nbval import them.
"""

from workbench.nb.tolerance import approx, expect

__all__ = ["approx", "expect"]
