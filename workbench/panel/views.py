"""How a job is shown: a widget where somebody may press a button, else lines, or nothing at all."""

from __future__ import annotations

import os
import sys
from typing import Protocol

from workbench.errors import InputError
from workbench.panel.record import Record
from workbench.progress import Snapshot

KINDS = ("widget", "lines", "off")
LIVE = ("JPY_SESSION_NAME", "VSCODE_PID")  # who sets these shows the kernel's widgets to a person


class View(Protocol):
    """What a job's view does."""

    def draw(self, state: Snapshot) -> None:
        """Show how things stand; called by one thread, some times a second."""

    def tell(self) -> None:
        """Say what is new; called by the thread that waits for the job, again and again."""

    def end(self) -> None:
        """The job has ended: leave behind what is to stay; called once, by the one thread."""


class Silent:
    """Nothing."""

    def draw(self, state: Snapshot) -> None:
        """Nothing."""

    def tell(self) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines(Silent):
    """A line for each quarter of a part and one for the end: counts only, the same each time.

    They are printed by who waits, so that a notebook has them in the cell that does.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._told = 0
        self._ended = False

    def tell(self) -> None:
        """Print what is new."""
        record = self._record
        ended = record.outcome != "running"  # before the milestones are read: then they are all
        new = record.progress.milestones(self._told)
        self._told += len(new)
        for part in new:
            mine = record.name.rpartition(".")[2] == part.what
            print(f"{record.name}{'' if mine else f', {part.what}'}: {part}", flush=True)
        if ended and not self._ended:
            self._ended = True
            print(self._last(), flush=True)

    def _last(self) -> str:
        record, used = self._record, self._record.progress.snapshot().used
        if record.outcome == "stopped":
            return f"{record.name}: {record.line()}"
        if record.error is not None:
            return f"{record.name}: failed, {type(record.error).__name__}"
        counts = f", {used.requests:,} requests, {used.failed:,} failed" if used.requests else ""
        return f"{record.name}: done{counts}"


def kind() -> str:
    """Which view there is to be: `WORKBENCH_PROGRESS`, or what suits the surroundings.

    Raises:
        InputError: no such view.
    """
    asked = os.environ.get("WORKBENCH_PROGRESS")
    if asked and asked not in KINDS:
        raise InputError(f"WORKBENCH_PROGRESS={asked!r}: give one of {', '.join(KINDS)}, or none")
    if asked in {"lines", "off"}:
        return asked
    ipython = sys.modules.get("IPython")
    in_kernel = hasattr(ipython.get_ipython() if ipython else None, "kernel")
    live = asked == "widget" or any(name in os.environ for name in LIVE)
    return "widget" if in_kernel and live else "lines"
