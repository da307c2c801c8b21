"""What is known of a job: how far it is, what it took over time, how it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from workbench.progress import Progress, Snapshot

Outcome = Literal["running", "done", "stopped", "failed"]

MOST = 512  # samples
PIECES = 80  # of the time, each with a speed of its own
SHORTEST = 0.5  # seconds of a piece: answers come in bursts


@dataclass(frozen=True, slots=True)
class Sample:
    """What had been done after so many seconds."""

    seconds: float
    tokens: int
    energy: float | None


class Record:
    """A job from its beginning; one thread looks, any may read.

    Attributes:
        outcome: "running", or how it ended.
        error: what it raised, if it failed.
        samples: the past, evenly; where they get too many, every other one is dropped.
    """

    def __init__(self, name: str, progress: Progress) -> None:
        self.name, self.progress = name, progress
        self.outcome: Outcome = "running"
        self.error: BaseException | None = None
        self.samples = [Sample(0.0, 0, None)]
        self._every = 0.0  # seconds between two of them
        self._start = time.perf_counter()
        self._seconds: float | None = None

    @property
    def seconds(self) -> float:
        """That it has taken."""
        return time.perf_counter() - self._start if self._seconds is None else self._seconds

    def end(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """It runs no more."""
        self._seconds = self.seconds
        self.error, self.outcome = error, outcome  # who sees how it ended sees why

    def look(self) -> Snapshot:
        """Where it stands, which is noted if it is time."""
        state, seconds = self.progress.snapshot(), self.seconds
        if seconds - self.samples[-1].seconds >= self._every or self._seconds is not None:
            energy = state.facts.get("energy")
            number = energy if isinstance(energy, float) else None
            self.samples.append(Sample(seconds, _tokens(state), number))
        if len(self.samples) > MOST:
            self.samples = self.samples[::2]
            self._every = 2 * seconds / MOST
        return state

    def speeds(self) -> list[tuple[float, float]]:
        """(seconds, tokens a second) of one piece of the time after the other."""
        samples = self.samples
        shortest = max(SHORTEST, samples[-1].seconds / PIECES)
        found: list[tuple[float, float]] = []
        first = samples[0]
        for sample in samples[1:]:
            took = sample.seconds - first.seconds
            if took >= shortest or (not found and sample is samples[-1] and took):
                found.append((sample.seconds, (sample.tokens - first.tokens) / took))
                first = sample
        return found

    def speed(self, state: Snapshot) -> float:
        """Tokens a second, all in all."""
        return _tokens(state) / max(self.seconds, 1e-9)

    def line(self) -> str:
        """How it stands, in a line without times."""
        parts = [f"{stage.what} {stage}" for stage in self.progress.snapshot().stages]
        return ", ".join([self.outcome, *parts])


def _tokens(state: Snapshot) -> int:
    return state.used.prompt_tokens + state.used.completion_tokens
