"""Streams of answers: each is read in a separate thread, and one thread gets all their rows."""

from __future__ import annotations

import atexit
import contextvars
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from workbench.engines.base import BaseEngine
from workbench.progress import STOP
from workbench.types import Engine, LabelRow, Labels, Prompt

T = TypeVar("T")

_alive: set[tuple[Streams[Any], threading.Thread]] = set()


class Streams(Generic[T]):
    """Several streams read at the same time; the thread that waits for them can be interrupted.

    Attributes:
        running: number of streams whose end has not been returned yet.
    """

    def __init__(self) -> None:
        self.running = 0
        self._results: SimpleQueue[T | BaseException | None] = SimpleQueue()
        self._stop = threading.Event()
        self._error: BaseException | None = None  # of a stream, after the rows that came before it

    def start(self, rows: Generator[T, None, None]) -> None:
        """Read these rows too, in the current context, which has the progress bars."""
        self.running += 1
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._read, rows), name="stream", daemon=True).start()

    def _read(self, rows: Generator[T, None, None]) -> None:
        STOP.set(self._stop)
        _alive.add(me := (self, threading.current_thread()))
        try:
            with closing(rows):
                for row in rows:
                    self._results.put(row)
                    if self._stop.is_set():
                        return
            self._results.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the other thread
            self._results.put(error)
        finally:
            _alive.discard(me)

    def take(self) -> list[T]:
        """Wait, then return all new rows; none if a stream has ended without one.

        A stream's error is raised once the rows before it have been returned.
        """
        rows: list[T] = []
        while self._error is None and not (rows and self._results.empty()):
            result = self._results.get()
            if isinstance(result, BaseException):
                self._error = result
            elif result is None:
                self.running -= 1
                break
            else:
                rows.append(result)
        if self._error is not None and not rows:
            raise self._error
        return rows

    def stop(self) -> None:
        """Make all streams end at their next step, without waiting."""
        self._stop.set()


@atexit.register
def _stop_all() -> None:
    """Stop all streams when Python exits: threads inside a model would crash the interpreter."""
    for streams, _ in (running := [*_alive]):
        streams.stop()
    for _, thread in running:
        thread.join(10)  # seconds


def stream_labels(engine: Engine, prompts: Sequence[Prompt], labels: Labels) -> Iterator[LabelRow]:
    """Scores as they arrive; all at once if the engine has no `stream_labels`."""
    if isinstance(engine, BaseEngine):
        yield from engine.stream_labels(prompts, labels)
        return
    scores = engine.label_logprobs(prompts, labels, errors="return")
    for index, error in enumerate(scores.errors):
        size = len(scores.labels_of(index)) if scores.ragged else None
        both = (scores.logprobs[index][:size], scores.upper[index][:size])
        logprobs, upper = (tuple(map(float, row)) for row in both)
        yield LabelRow(index, None if error else logprobs, error=error, upper=upper)
