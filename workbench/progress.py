"""How far long work is, told to whoever watches it; and the word to stop.

A watched call has a `Progress` in its context. What works underneath tells it where it is and asks
between two steps whether to go on: then a stop ends it as Ctrl-C would, and all is kept that Ctrl-C
would have kept. Where nobody watches, nothing here does anything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import Any

from workbench.types import Usage

AGAIN = 1.25  # a part that is begun again and again has a line only where so much has been added

_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)


@dataclass(slots=True)
class Part:
    """One kind of step, how many there are and how many are done; `note` is where it stands."""

    what: str
    unit: str
    total: int = 0
    done: int = 0
    note: str = ""
    told: int = 0  # at its latest milestone

    @property
    def quarters(self) -> int:
        """How many quarters are done."""
        return 4 * self.done // self.total if self.total else 0

    def __str__(self) -> str:
        return f"{self.done:,} of {self.total:,} {self.unit}{'s' * (self.total != 1)}"


@dataclass(frozen=True, slots=True)
class State:
    """Where the work stands at one moment."""

    parts: tuple[Part, ...]
    used: Usage
    facts: Mapping[str, float | str]
    stopping: bool


class Progress:
    """What work tells on its way, from any thread.

    Args:
        above: of the work that this is a part of; to stop that is to stop this.
    """

    def __init__(self, above: Progress | None = None) -> None:
        self._above = above
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._parts: dict[str, Part] = {}
        self._milestones: list[Part] = []
        self._facts: dict[str, float | str] = {}
        self._used = Usage()

    def part(self, what: str, total: int, unit: str) -> Part:
        """A part of the work; one that was there already gets so much longer."""
        with self._lock:
            part = self._parts.setdefault(what, Part(what, unit))
            part.total += total
            return part

    def advance(self, part: Part, count: int) -> None:
        """So many steps more are done."""
        with self._lock:
            before = part.quarters
            part.done += count
            if part.quarters > before and part.done >= AGAIN * part.told:
                part.told = part.done
                self._milestones.append(replace(part))

    def note(self, part: Part, text: str) -> None:
        """Where a part stands."""
        with self._lock:
            part.note = text

    def add(self, used: Usage) -> None:
        """What has been used since this was called the last time."""
        with self._lock:
            self._used = plus(self._used, used)

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

    def state(self) -> State:
        """A copy of everything."""
        with self._lock:
            parts = tuple(replace(part) for part in self._parts.values())
            return State(parts, self._used, dict(self._facts), self.stopping)

    def milestones(self, start: int = 0) -> list[Part]:
        """A part as it was whenever a quarter of it was done, in that order, from `start` on.

        They rest on counts alone, so that the same work has the same ones.
        """
        with self._lock:
            return self._milestones[start:]

    @contextmanager
    def told(self) -> Iterator[None]:
        """What runs in here tells this one."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


def current() -> Progress | None:
    """What the work of this context is to tell, if anybody watches it."""
    return _CURRENT.get()


def stopping() -> bool:
    """Whether somebody watches and has said stop."""
    progress = _CURRENT.get()
    return progress is not None and progress.stopping


def check() -> None:
    """End here if somebody has said stop; call it where the state is whole.

    Raises:
        KeyboardInterrupt: as Ctrl-C does, so that work has one way of being interrupted.
    """
    if stopping():
        raise KeyboardInterrupt


def fact(name: str, value: float | str | None) -> None:
    """Tell a fact to whoever watches; see `Progress.fact`."""
    progress = _CURRENT.get()
    if progress is not None:
        progress.fact(name, value)


def plus(one: Usage, other: Usage) -> Usage:
    """The sum; None is unknown, and so is what it is added to."""
    both = {f.name: (getattr(one, f.name), getattr(other, f.name)) for f in fields(Usage)}
    peak = max(both.pop("peak_memory_bytes"))
    sums: dict[str, Any] = {k: None if None in ab else ab[0] + ab[1] for k, ab in both.items()}
    return Usage(**sums, peak_memory_bytes=peak)
