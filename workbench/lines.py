"""Long work where stderr is no terminal, as under Slurm and nohup: a plain line a minute."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from workbench.progress import Part

EVERY = 60.0  # seconds from line to line, and before the first


def watched() -> bool:
    """Whether a person may see bars: at a terminal or in a notebook."""
    return "ipykernel.zmqshell" in sys.modules or sys.stderr.isatty()


@contextmanager
def counted(total: int, what: str, unit: str) -> Iterator[Callable[[], None]]:
    """Lines for work that shows a person something else than a bar; what it yields is a step."""
    if watched() or os.environ.get("WORKBENCH_PROGRESS") == "off":
        yield lambda: None
        return
    bar = Lines().bar(Part(what, unit, total))
    try:
        yield bar.update
    finally:
        bar.close()


class Lines:
    """One line for all parts of the work that are under way, the outermost first.

    A thread of its own writes it, so that it comes too where a single step takes long.
    """

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def bar(self, part: Part) -> _Bar:
        """What is updated for a part, in a bar's place."""
        if not self._parts:
            self._ended, self._start = threading.Event(), time.monotonic()
            threading.Thread(target=self._write, args=(self._ended,), daemon=True).start()
        self._parts.append(part)
        return _Bar(self, part)

    def close(self, part: Part) -> None:
        """A part of the work is over, and with the last one the lines are."""
        self._parts = [one for one in self._parts if one is not part]
        if not self._parts:
            self._ended.set()

    def _write(self, ended: threading.Event) -> None:
        while not ended.wait(EVERY):
            minutes = f"{(time.monotonic() - self._start) / 60:,.0f} min"
            told = [[f"{one.what}: {one}", one.note] for one in self._parts]
            if told:  # or they have ended just now
                told[0].insert(1, minutes)
                with suppress(OSError, ValueError):  # a stream that is closed or full stops no work
                    line = "; ".join(", ".join(filter(None, one)) for one in told)
                    print(line, file=sys.stderr, flush=True)


class _Bar:
    """As a bar of tqdm."""

    disable = False  # its text is wanted

    def __init__(self, lines: Lines, part: Part) -> None:
        self._lines, self._part = lines, part

    def update(self, count: int = 1) -> None:
        self._part.done += count

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:  # noqa: ARG002  # as tqdm
        self._part.note = text

    def close(self) -> None:
        self._lines.close(self._part)
