"""The feed of work that somebody watches: where it is, what it used, and whether to stop.

A watched call has a `Progress` in its context. What works underneath tells it where it is and asks
between two steps whether to stop: a stop ends the work as Ctrl-C would, and keeps as much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from workbench.types import Usage

AGAIN = 1.25  # a stage that begins again and again has a milestone only where so much was added


@dataclass(slots=True)
class Stage:
    """One kind of step, how many there are and how many are done; `note` is where it stands.

    Without a unit it is one step of unknown length. `end` says how it ended, "" if well.
    """

    what: str
    unit: str
    total: int = 0
    done: int = 0
    note: str = ""
    milestone: int = 0  # steps done at the latest
    end: str = ""
    began: float = field(default_factory=time.monotonic, compare=False)
    ended: float | None = field(default=None, compare=False)

    @property
    def quarters(self) -> int:
        """How many quarters are done."""
        return 4 * self.done // self.total if self.total else 0

    @property
    def seconds(self) -> float:
        """How long it takes, or took."""
        return (self.ended or time.monotonic()) - self.began

    def __str__(self) -> str:
        if not self.unit:
            return self.note
        return f"{self.done:,} of {self.total:,} {self.unit}{'s' * (self.total != 1)}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the work stands at one moment."""

    stages: tuple[Stage, ...]
    used: Usage
    facts: Mapping[str, float | str]
    stopping: bool


class Progress:
    """The feed of work that somebody watches, from any thread.

    Args:
        above: of the work that this is a part of; to stop that is to stop this.
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
        """A stage of the work; one that was there already gets so much longer."""
        with self._lock:
            stage = self._stages.setdefault(what, Stage(what, unit))
            stage.total += total
            return stage

    def advance(self, stage: Stage, count: int) -> None:
        """So many steps more are done."""
        with self._lock:
            before = stage.quarters
            stage.done += count
            if stage.quarters > before and stage.done >= AGAIN * stage.milestone:
                stage.milestone = stage.done
                self._milestones.append(replace(stage))

    def add(self, used: Usage) -> None:
        """What has been used since this was called the last time."""
        with self._lock:
            self._used += used

    def fact(self, name: str, value: float | str | None) -> None:
        """A number or a word to be shown under a name; None takes it away."""
        with self._lock:
            if value is None:
                self._facts.pop(name, None)
            else:
                self._facts[name] = value

    def stop(self) -> None:
        """Have the work end at its next step."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether the work is to end."""
        return self._stop.is_set() or (self._above is not None and self._above.stopping)

    def snapshot(self) -> Snapshot:
        """A copy of everything."""
        with self._lock:
            stages = tuple(replace(stage) for stage in self._stages.values())
            return Snapshot(stages, self._used, dict(self._facts), self.stopping)

    def milestones(self, start: int = 0) -> list[Stage]:
        """A stage as it was whenever a quarter of it was done, in that order, from `start` on.

        They rest on counts alone, so that the same work has the same ones; only where several
        streams share a stage (an agent's later rounds) is it as long as those begun so far.
        """
        with self._lock:
            return self._milestones[start:]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Work in here feeds this one."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)
STOP: ContextVar[threading.Event | None] = ContextVar("stop", default=None)
"""Work of a context ends at its next step once this is set."""


def current() -> Progress | None:
    """The feed of this context, if anybody watches."""
    return _CURRENT.get()


def stopping() -> bool:
    """Whether somebody watches and has said stop, or the thread that this one works for has."""
    progress, stop = _CURRENT.get(), STOP.get()
    return (progress is not None and progress.stopping) or (stop is not None and stop.is_set())


def check() -> None:
    """End here if somebody has said stop; call it where the state is whole.

    Raises:
        KeyboardInterrupt: as Ctrl-C does, so that work has one way of being interrupted.
    """
    if stopping():
        raise KeyboardInterrupt


def fact(name: str, value: float | str | None) -> None:
    """Show a fact to whoever watches; see `Progress.fact`."""
    if (progress := _CURRENT.get()) is not None:
        progress.fact(name, value)
