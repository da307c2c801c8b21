"""Progress displays: a place in a notebook, or a line of a terminal."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from html import escape
from typing import Any

from workbench.feed import Stage


class Bar:
    """A stand-in for tqdm's bar, for a feed or a display; `disable` if it has no text."""

    def __init__(
        self,
        stage: Stage,
        advance: Callable[[Stage, int], None],
        close: Callable[[Stage], None],
        *,
        disable: bool,
    ) -> None:
        self.stage, self._advance, self._close = stage, advance, close
        self.disable = disable

    def update(self, count: int = 1) -> None:
        self._advance(self.stage, count)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:  # noqa: ARG002  # as tqdm
        self.stage.note = text

    def close(self) -> None:
        self._close(self.stage)


class Display(ABC):
    """Stages in progress, the outermost first, redrawn until the last one has ended.

    A separate thread draws them, so that they stay current during long steps. A failed drawing
    never ends the work.
    """

    _every = 0.25  # seconds between drawings
    _delay: float | None = None  # seconds before the first; None: the same

    def __init__(self) -> None:
        self._stages: list[Stage] = []
        self._lock = threading.RLock()

    def bar(self, stage: Stage) -> Bar:
        """The bar to update for a stage."""
        if not self._stages:
            self._ended = threading.Event()
            run = contextvars.copy_context().run  # output belongs to the current cell
            args = (self._redraw, self._ended)
            threading.Thread(target=run, args=args, name="workbench-bar", daemon=True).start()
        self._stages.append(stage)
        return Bar(stage, self._advance, self.close, disable=False)

    def close(self, stage: Stage) -> None:
        """End a stage; after the last one, drawing ends."""
        stage.ended = time.monotonic()
        self._stages = [one for one in self._stages if one is not stage]
        if not self._stages:
            self._ended.set()
            with self._lock, suppress(Exception):
                self._draw(last=True)

    def _advance(self, stage: Stage, count: int) -> None:
        stage.done += count

    def _redraw(self, ended: threading.Event) -> None:
        wait = self._every if self._delay is None else self._delay
        while not ended.wait(wait):
            with self._lock, suppress(Exception):
                if not ended.is_set():
                    self._draw()
            wait = self._every

    @abstractmethod
    def _draw(self, *, last: bool = False) -> None: ...


class Silent(Display):
    """Nothing."""

    def bar(self, stage: Stage) -> Bar:
        return Bar(stage, lambda *_: None, lambda _: None, disable=True)

    def _draw(self, *, last: bool = False) -> None: ...


class Page(Display):
    """One place below a notebook's cell, with plain text and bars, which keeps its last state.

    Args:
        always: whether to show work that ended before the first drawing.
    """

    _delay = 0.3

    def __init__(self, *, always: bool = False) -> None:
        super().__init__()
        self._all: list[Stage] = []
        self._always, self._place, self._text = always, None, ""

    def bar(self, stage: Stage) -> Bar:
        self._all.append(stage)
        return super().bar(stage)

    def _draw(self, *, last: bool = False) -> None:
        from IPython.display import display

        text = "\n".join(map(described, self._all))
        late = last and self._place is None and not (self._always and not self._all[-1].end)
        if late or text == self._text:
            return
        self._text = text
        data = {"text/plain": text, "text/html": "".join(map(_row, self._all))}
        place: Any = self._place
        if place is None:
            self._place = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            place.update(data, raw=True)


class TerminalLine(Display):
    """The last line of a terminal; other output appears above it."""

    _delay = 0.3

    def bar(self, stage: Stage) -> Bar:
        self._stage, self._stream, self._free = stage, sys.stderr, True
        self._before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (
            _Beside(one, self) if one is not None and one.isatty() else one for one in self._before
        )
        return super().bar(stage)

    def close(self, stage: Stage) -> None:
        super().close(stage)
        for name, before in zip(("stdout", "stderr"), self._before, strict=True):
            if isinstance(getattr(sys, name), _Beside):
                setattr(sys, name, before)

    def aside(self, write: Callable[[str], Any], text: str) -> Any:
        """Write other output; the line reappears after it ends with a line break."""
        with self._lock:
            if self._free and not self._ended.is_set():
                self._stream.write("\r\x1b[K")
                self._stream.flush()
            self._free = text.endswith("\n") if text else self._free
            return write(text)

    def _draw(self, *, last: bool = False) -> None:
        if not (last or self._free):
            return
        width = os.get_terminal_size(self._stream.fileno()).columns or 80
        text = described(self._stage)[: width - 1]
        if last:
            text = "" if self._stage.end else f"{text}\n"
        self._stream.write(("\r\x1b[K" if self._free else "\n") + text)
        self._stream.flush()


class _Beside:
    """A terminal's stream, below whose output the line is redrawn."""

    def __init__(self, stream: Any, line: TerminalLine) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> Any:
        return self._line.aside(self._stream.write, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def described(stage: Stage) -> str:
    """A stage as one line of text."""
    head, seconds = f"{stage.what}{stage.end and f' {stage.end}'}", stage.seconds
    if not stage.unit:
        return f"{head}{stage.note and f': {stage.note}'}, {seconds:,.0f} s"
    parts = [f"{head}: {stage}", f"{seconds:,.0f} s"]
    if stage.done and seconds:
        parts.append(f"{stage.done / seconds:,.1f} {stage.unit}s/s")
    if stage.ended is None and 0 < stage.done < stage.total:
        parts.append(f"{seconds / stage.done * (stage.total - stage.done):,.0f} s left")
    return ", ".join([*parts, *filter(None, [stage.note])])


def _row(stage: Stage) -> str:
    bar = f'<progress value="{stage.done}" max="{max(1, stage.total)}"></progress> '
    text = escape(described(stage))
    return f'<div style="font-size:13px">{bar if stage.unit else ""}{text}</div>'
