"""Labels scored by several engines at the same time: rows of all of them as they come."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Generator, Iterator, Sequence
from queue import SimpleQueue

from workbench.engines.base import BaseEngine
from workbench.engines.local import LocalEngine
from workbench.errors import EngineGoneError
from workbench.types import Engine, LabelRow, Prompt

log = logging.getLogger("workbench")


def scored_by_all(
    engines: Sequence[Engine], texts: Sequence[Prompt], letters: Sequence[str]
) -> Generator[tuple[int, LabelRow], None, None]:
    """Which engine (its place), and a row of it.

    Local models go in turn, since each would fill the machine, and servers beside them. Only this
    thread can be interrupted, and it does not wait for the others then.
    """
    here = [at for at, engine in enumerate(engines) if isinstance(engine, LocalEngine)] or [0]
    came: SimpleQueue[tuple[int, LabelRow | BaseException | None]] = SimpleQueue()
    stop = threading.Event()

    def read(number: int) -> None:
        try:
            for row in _streamed(engines[number], texts, letters):
                came.put((number, row))
                if stop.is_set():
                    return
            came.put((number, None))
        except BaseException as error:  # noqa: BLE001 - raised again in the other thread
            came.put((number, error))

    beside = [at for at in range(len(engines)) if at not in here]
    for number in beside:
        run = contextvars.copy_context().run  # knows of the bars
        threading.Thread(target=run, args=(read, number), daemon=True).start()
    try:
        for number in here:
            for row in _streamed(engines[number], texts, letters):
                yield number, row
        yield from _fetched(came, len(beside))
    finally:
        stop.set()


def _fetched(
    came: SimpleQueue[tuple[int, LabelRow | BaseException | None]], left: int
) -> Iterator[tuple[int, LabelRow]]:
    while left:
        number, found = came.get()
        if isinstance(found, BaseException):
            raise found
        if found is None:
            left -= 1
        else:
            yield number, found


def _streamed(
    engine: Engine, texts: Sequence[Prompt], letters: Sequence[str]
) -> Iterator[LabelRow]:
    """A row for each text, as they are answered; those of a lost engine failed."""
    left = dict.fromkeys(range(len(texts)))
    try:
        for row in _scored(engine, texts, letters):
            del left[row.index]
            yield row
    except EngineGoneError as gone:
        log.warning("elicit: %s", gone)
        for index in left:
            yield LabelRow(index, None, error=str(gone))


def _scored(engine: Engine, texts: Sequence[Prompt], letters: Sequence[str]) -> Iterator[LabelRow]:
    if isinstance(engine, BaseEngine):
        yield from engine.stream_labels(texts, letters)
        return
    scores = engine.label_logprobs(texts, letters, errors="return")
    for index, error in enumerate(scores.errors):
        told = None if error else tuple(map(float, scores.logprobs[index]))
        yield LabelRow(index, told, error=error)
