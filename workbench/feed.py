"""The feed of watched work: its progress, its usage, and whether to stop.

A watched call has a `Progress` in its context. The work reports its progress to it, and checks
between steps whether to stop. A stop ends the work as Ctrl-C does, and keeps as much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from workbench.types import Usage

AGAIN = 1.25  # least growth between milestones of a stage that is extended repeatedly


@dataclass(slots=True)
class Stage:
    """One kind of step with its total and number done; `note` is a short text about it.

    Without a unit it is one step of unknown length. `end` says how it ended; "" if normally.
    """

    what: str
    unit: str
    total: int = 0
    done: int = 0
    note: str = ""
    milestone: int = 0  # steps done at the last milestone
    end: str = ""
    began: float = field(default_factory=time.monotonic, compare=False)
    ended: float | None = field(default=None, compare=False)

    @property
    def quarters(self) -> int:
        """Number of finished quarters."""
        return 4 * self.done // self.total if self.total else 0

    @property
    def seconds(self) -> float:
        """How long it takes so far, or took."""
        return (self.ended or time.monotonic()) - self.began

    def __str__(self) -> str:
        if not self.unit:
            return self.note
        return f"{self.done:,} of {self.total:,} {self.unit}{'s' * (self.total != 1)}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the work at one moment."""

    stages: tuple[Stage, ...]
    used: Usage
    facts: Mapping[str, float | str]
    stopping: bool


class Progress:
    """The feed of watched work; usable from any thread.

    Args:
        above: the feed of the enclosing work; stopping that stops this too.
    """

    def __init__(self, above: Progress | None = None) -> None:
        self._above = above
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._stages: dict[str, Stage] = {}
        self._milestones: list[Stage] = []
        self._facts: dict[str, float | str] = {}
        self._used = Usage()

    def stage(self, what: str, total: int, unit: str) -> Stage:
        """A stage of the work; if it exists, its total grows by `total`."""
        with self._lock:
            stage = self._stages.setdefault(what, Stage(what, unit))
            stage.total += total
            return stage

    def advance(self, stage: Stage, count: int) -> None:
        """Record `count` more finished steps."""
        with self._lock:
            before = stage.quarters
            stage.done += count
            if stage.quarters > before and stage.done >= AGAIN * stage.milestone:
                stage.milestone = stage.done
                self._milestones.append(replace(stage))

    def add(self, used: Usage) -> None:
        """Add usage since the last call."""
        with self._lock:
            self._used += used

    def fact(self, name: str, value: float | str | None) -> None:
        """Show a number or a text under a name; None removes it."""
        with self._lock:
            if value is None:
                self._facts.pop(name, None)
            else:
                self._facts[name] = value

    def stop(self) -> None:
        """Make the work end at its next step."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether the work should end."""
        return self._stop.is_set() or (self._above is not None and self._above.stopping)

    def snapshot(self) -> Snapshot:
        """A copy of the state."""
        with self._lock:
            stages = tuple(replace(stage) for stage in self._stages.values())
            return Snapshot(stages, self._used, dict(self._facts), self.stopping)

    def milestones(self, start: int = 0) -> list[Stage]:
        """Copies of a stage for each finished quarter, in order, from number `start`.

        They depend on counts alone, so that the same work gives the same ones. Exception: if
        several streams share a stage (an agent's later rounds), its total is of those begun so far.
        """
        with self._lock:
            return self._milestones[start:]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Work in this context reports to this feed."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)
STOP: ContextVar[threading.Event | None] = ContextVar("stop", default=None)
"""Once this is set, work in its context ends at its next step."""


def current() -> Progress | None:
    """The feed of this context, if the work is watched."""
    return _CURRENT.get()


def stopping() -> bool:
    """Whether a stop was requested, for this work or the work that it belongs to."""
    progress, stop = _CURRENT.get(), STOP.get()
    return (progress is not None and progress.stopping) or (stop is not None and stop.is_set())


def check() -> None:
    """Stop here if a stop was requested; call it where the state is consistent.

    Raises:
        KeyboardInterrupt: as for Ctrl-C, so that there is one way to interrupt work.
    """
    if stopping():
        raise KeyboardInterrupt


def fact(name: str, value: float | str | None) -> None:
    """Show a fact to watchers; see `Progress.fact`."""
    if (progress := _CURRENT.get()) is not None:
        progress.fact(name, value)
