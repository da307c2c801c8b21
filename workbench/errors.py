"""Our errors: every message names the wrong value and the remedy."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger("workbench")  # of the whole package
HINT = "(%tb shows all)"


class WorkbenchError(Exception):
    """Base of all errors that workbench raises deliberately.

    IPython shows the user's lines that led to it and the message; `%tb` shows everything.
    """

    def _render_traceback_(self) -> list[str]:
        return _rendered(self, _short)


class InputError(WorkbenchError, ValueError):
    """An argument has the wrong type, shape or value."""


class EngineError(WorkbenchError, RuntimeError):
    """An engine could not finish a call.

    Attributes:
        results: all rows of the call, finished ones included; or None.
    """

    def __init__(self, message: str = "", results: object = None) -> None:
        super().__init__(message)
        self.results = results


class EngineGoneError(EngineError):
    """An engine was lost mid-run: finished rows are kept, the rest can run elsewhere."""


class EngineUnavailableError(EngineError):
    """No requested engine can run here."""


class StoreError(WorkbenchError, RuntimeError):
    """A store file cannot be used; it was not changed."""


class NotebookError(WorkbenchError, RuntimeError):
    """A notebook or its parameters are invalid."""


class StoppedError(WorkbenchError, RuntimeError):
    """The work was stopped before it was done; finished work is kept."""

    def _render_traceback_(self) -> list[str]:
        return _rendered(self, lambda _: [_grey(str(self))])


def show_as_line(error: BaseException, text: str) -> None:
    """Make IPython show an interrupt as one grey line.

    Scripts and `except` see the usual error. Other errors are unchanged.
    """
    if type(error).__name__ in {"KeyboardInterrupt", "CancelledError"}:
        show: Any = partial(_rendered, error, lambda _: [_grey(text)])
        error._render_traceback_ = show  # type: ignore[attr-defined]


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def _rendered(error: BaseException, short: Any) -> list[str]:
    """The lines for IPython: everything after `%tb` or with `%xmode Verbose`."""
    if (shell := _shell()) is None:
        return traceback.format_exception(error)
    if shell.InteractiveTB.mode in {"Verbose", "Docs"} or _within_tb():
        show = shell.InteractiveTB.structured_traceback
        return list(show(type(error), error, error.__traceback__))
    return list(short(error))


def _within_tb() -> bool:
    """Whether the magic `%tb` is running, which IPython shows in no other way."""
    for frame, _ in traceback.walk_stack(None):
        name = frame.f_globals.get("__name__")
        if (name, frame.f_code.co_name) == ("IPython.core.magics.execution", "tb"):
            return True
    return False


def _short(error: WorkbenchError) -> list[str]:
    """The user's lines and the message, in IPython's colours and mode."""
    own = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_users(frame.f_code.co_filename)
    ]
    shown: TracebackType | None = None
    for frame, line in reversed(own[:1] + own[1:][-2:]):
        shown = TracebackType(shown, frame, frame.f_lasti, line)
    said = WorkbenchError("\n".join([str(error), *_causes(error), HINT]))
    for note in getattr(error, "__notes__", ()):
        said.add_note(note)
    show = _shell().InteractiveTB.structured_traceback
    lines = show(type(error), said, shown, tb_offset=0, context=2)
    head = ("---", "Traceback (most recent call last)")
    return [line for line in lines if not any(part in line.split("\n")[0] for part in head)]


def _is_users(path: str) -> bool:
    import sysconfig

    places = sysconfig.get_paths()
    others = [places[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = [f"{folder}{os.sep}" for folder in (Path(__file__).parent, *others)]
    return not path.startswith(("<frozen", "<string>", *folders))


def _causes(error: BaseException) -> Iterator[str]:
    """The error's causes, unless its message has them."""
    cause = error.__cause__
    how = "caused by"
    if cause is None and not error.__suppress_context__:
        cause, how = error.__context__, "while handling"
    if cause is not None and (not str(cause) or str(cause)[:60] not in str(error)):
        yield f"{how} {'; '.join(_leaves(cause))}"


def _leaves(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield traceback.format_exception_only(error)[-1].strip()


def _grey(text: str) -> str:
    """Grey with a lighter background, if there are colours, to be readable on light and dark."""
    plain = _shell().colors.lower() == "nocolor"
    return text if plain else f"\x1b[38;5;240;48;5;255m{text}\x1b[39;49m"
