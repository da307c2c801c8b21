"""Notebooks: run, validate and check them; notebooks themselves use `approx` and `expect`.

Importing this package is fast: papermill, nbformat, pandas and nbval are imported by the modules
that use them.
"""

from workbench.nb.tolerance import approx, expect

__all__ = ["approx", "expect"]
