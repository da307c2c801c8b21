"""Streams of answers, each read in a thread of its own and handed to one thread as they come."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from queue import SimpleQueue
from typing import Generic, TypeVar

from workbench.engines.base import BaseEngine
from workbench.progress import STOP
from workbench.types import Engine, LabelRow, Prompt

T = TypeVar("T")


class Streams(Generic[T]):
    """Several streams read at the same time; the thread that waits for them can be interrupted.

    Attributes:
        running: streams whose end has not been handed out yet.
    """

    def __init__(self) -> None:
        self.running = 0
        self._results: SimpleQueue[T | BaseException | None] = SimpleQueue()
        self._stop = threading.Event()

    def start(self, rows: Generator[T, None, None]) -> None:
        """Read these rows too, in the context of here, which knows of the bars."""
        self.running += 1
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._read, rows), name="stream", daemon=True).start()

    def _read(self, rows: Generator[T, None, None]) -> None:
        STOP.set(self._stop)
        try:
            with closing(rows):
                for row in rows:
                    self._results.put(row)
                    if self._stop.is_set():
                        return
            self._results.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the other thread
            self._results.put(error)

    def next(self) -> T | None:
        """The next row of any stream, None where one has ended; raises what a stream raised."""
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        self.running -= result is None
        return result

    def stop(self) -> None:
        """Have all end at their next step, and do not wait for it."""
        self._stop.set()


def stream_labels(
    engine: Engine, prompts: Sequence[Prompt], labels: Sequence[str]
) -> Iterator[LabelRow]:
    """Scores as they come; of an engine that has no stream of them, all at once."""
    if isinstance(engine, BaseEngine):
        yield from engine.stream_labels(prompts, labels)
        return
    scores = engine.label_logprobs(prompts, labels, errors="return")
    for index, error in enumerate(scores.errors):
        logprobs, upper = (tuple(map(float, row[index])) for row in (scores.logprobs, scores.upper))
        yield LabelRow(index, None if error else logprobs, error=error, upper=upper)
