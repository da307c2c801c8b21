"""Notebooks: run, refresh, validate and check them; in a notebook only `expect` is needed.

Importing this package costs nothing: papermill, nbformat, pandas and typer are imported by the
modules that use them.
"""

from workbench.nb.expect import expect

__all__ = ["expect"]
