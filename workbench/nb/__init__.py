"""Notebooks: run, validate and check them; a notebook itself needs `approx` and `expect`.

Importing this package costs nothing: papermill, nbformat, pandas and nbval are imported by the
modules that use them.
"""

from workbench.nb.tolerance import approx, expect

__all__ = ["approx", "expect"]
