"""Streams of answers, each read in a thread of its own and handed to one thread as they come."""

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
from workbench.types import Engine, LabelRow, Prompt

T = TypeVar("T")

_alive: set[tuple[Streams[Any], threading.Thread]] = set()


class Streams(Generic[T]):
    """Several streams read at the same time; the thread that waits for them can be interrupted.

    Attributes:
        running: streams whose end has not been handed out yet.
    """

    def __init__(self) -> None:
        self.running = 0
        self._results: SimpleQueue[T | BaseException | None] = SimpleQueue()
        self._stop = threading.Event()
        self._error: BaseException | None = None  # of a stream, behind rows that came before it

    def start(self, rows: Generator[T, None, None]) -> None:
        """Read these rows too, in the context of here, which knows of the bars."""
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
        """Wait, then all rows that have come: none where a stream has ended without one.

        What a stream raised is raised once the rows before it have been taken.
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
        """Have all end at their next step, and do not wait for it."""
        self._stop.set()


@atexit.register
def _stop_all() -> None:
    """Python ends: so do its streams, for threads that run on within a model would crash it."""
    for streams, _ in (running := [*_alive]):
        streams.stop()
    for _, thread in running:
        thread.join(10)  # seconds


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
