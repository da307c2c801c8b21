"""Notebooks: run, refresh, validate and check them; a notebook itself needs `approx` and `expect`.

Importing this package costs nothing: papermill, nbformat, pandas and typer are imported by the
modules that use them.
"""

from workbench.nb.approx import approx
from workbench.nb.expect import expect

__all__ = ["approx", "expect"]
