"""Failures of ours: every message names the value that was wrong and what to do about it."""

from __future__ import annotations


class WorkbenchError(Exception):
    """Base of all errors that workbench raises on purpose."""


class InputError(WorkbenchError, ValueError):
    """An argument has the wrong type, shape or value."""


class EngineError(WorkbenchError, RuntimeError):
    """An engine could not finish what it was asked.

    Attributes:
        results: all rows of the call, the finished ones included, where there are any.
    """

    def __init__(self, message: str, results: object = None) -> None:
        super().__init__(message)
        self.results = results


class EngineGoneError(EngineError):
    """An engine died in the middle: what was finished is kept, the rest can run elsewhere."""


class EngineUnavailableError(EngineError):
    """No engine that was asked for can run here."""


class StoreError(WorkbenchError, RuntimeError):
    """A store file cannot be used as it is; it was left untouched."""


class NotebookError(WorkbenchError, RuntimeError):
    """A notebook or its parameters are not what they should be."""


class StoppedError(WorkbenchError, RuntimeError):
    """Somebody stopped the work before it was done; what was finished is kept."""
