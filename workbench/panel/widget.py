"""The view in a notebook that a person looks at; at the end a table and a picture take its place.

Its callback does nothing but set the word to stop: it may run in another thread, or while a cell
waits. Everything is drawn by the panel's own thread.
"""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from workbench.panel.record import Record
from workbench.panel.summary import markup, png, told
from workbench.plots import COLOURS
from workbench.progress import Snapshot, Stage

PARTS = 8  # shown, the latest
WIDTH, HEIGHT = 420, 56  # of the line of speeds, in pixels


class Widget:
    """Bars, facts, the speed over time, and a button; open it in the cell that starts the job."""

    def __init__(self, record: Record) -> None:
        import ipywidgets
        from IPython.display import display

        self._record = record
        self._text = ipywidgets.HTML(_live(record, record.progress.snapshot()))
        self._button = ipywidgets.Button(description="Stop", icon="stop", button_style="danger")
        self._button.on_click(lambda _: record.progress.stop())
        self._box = ipywidgets.VBox([self._text, self._button])
        nothing = {"text/plain": "", "text/html": ""}
        show: Any = display
        self._view = show(self._box, display_id=True)
        self._figure = show(nothing, raw=True, display_id=True)

    def draw(self, state: Snapshot) -> None:
        """Redraw."""
        self._text.value = _live(self._record, state)
        if state.stopping and not self._button.disabled:
            self._button.disabled, self._button.description = True, "Stopping"

    def tell(self) -> None:
        """Nothing: who waits looks on."""

    def end(self) -> None:
        """Leave a table and a picture, and no widget."""
        table, plain = markup(self._record)
        self._view.update({"text/html": table, "text/plain": plain}, raw=True)
        for widget in (self._box, self._text, self._button):
            for part in (widget, widget.layout, getattr(widget, "style", None)):
                if part is not None:
                    part.close()
        if any(sample.tokens for sample in self._record.samples):
            image = base64.b64encode(png(self._record)).decode()
            self._figure.update({"image/png": image, "text/plain": "<figure>"}, raw=True)


def _live(record: Record, state: Snapshot) -> str:
    facts = [f"{escape(name)} <b>{escape(value)}</b>" for name, value in told(record, state)]
    lines = [
        f"<b>{escape(record.name)}</b> {record.outcome}, {record.seconds:,.0f} s",
        *map(_bar, state.stages[-PARTS:]),
        " · ".join(facts),
    ]
    return "".join(f"<div>{line}</div>" for line in lines) + _chart(record.speeds())


def _bar(stage: Stage) -> str:
    bar = f'<progress value="{stage.done}" max="{max(1, stage.total)}"></progress>'
    return f"{bar} {escape(stage.what)}: {stage} <small>{escape(stage.note)}</small>"


def _chart(speeds: list[tuple[float, float]]) -> str:
    """Tokens a second over time, drawn by hand."""
    if len(speeds) < 2:
        return ""
    longest, highest = speeds[-1][0], max(speed for _, speed in speeds) or 1.0
    points = " ".join(
        f"{seconds / longest * WIDTH:.1f},{(1 - speed / highest) * HEIGHT + 1:.1f}"
        for seconds, speed in speeds
    )
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT + 2}" style="background:#f6f6f6">'
        f'<polyline points="{points}" fill="none" stroke="{COLOURS[0]}" stroke-width="1.5"/></svg>'
        f"<div><small>tokens/s over {longest:,.0f} s, at most {highest:,.0f}</small></div>"
    )
