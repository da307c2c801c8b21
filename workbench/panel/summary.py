"""A job in words, numbers and a picture: what its view shows on the way and leaves behind."""

from __future__ import annotations

import io
import threading
from html import escape
from typing import TYPE_CHECKING, Any

from workbench.panel.record import Record
from workbench.plots import COLOURS, new_figure
from workbench.progress import Snapshot

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SAID = 300  # characters of an error
_drawing = threading.Lock()  # matplotlib draws for one thread at a time


def told(record: Record, state: Snapshot) -> list[tuple[str, str]]:
    """What there is to tell beside the parts: names and values, as people read them."""
    used = state.used
    found = []
    if used.requests:
        found.append(("failed", f"{used.failed:,} of {used.requests:,} requests"))
    if used.from_store:
        found.append(("from the store", f"{used.from_store:,}"))
    if used.prompt_tokens:
        found += [
            ("tokens", f"{used.prompt_tokens:,} in prompts, {used.completion_tokens:,} in answers"),
            ("tokens/s", f"{record.speed(state):,.0f}"),
        ]
        hits = used.cache_hit_rate
        found.append(("cache hits", "unknown" if hits is None else f"{hits:.0%}"))
    for name, count in (("retries", used.retries), ("too many requests", used.rate_limit_hits)):
        if count:
            found.append((name, f"{count:,}"))
    found += [
        (name, f"{value:,.2f}" if isinstance(value, float) else str(value))
        for name, value in state.facts.items()
    ]
    if record.error is not None:
        said = " ".join(str(record.error).split())
        found.append(("error", f"{type(record.error).__name__}: {said:.{SAID}}"))
    return found


def markup(record: Record) -> tuple[str, str]:
    """How a job ended as HTML and as plain text."""
    state = record.progress.snapshot()
    rows = [(record.name, f"{record.outcome}, {record.seconds:,.1f} s")]
    rows += [(stage.what, f"{stage}{stage.note and f' ({stage.note})'}") for stage in state.stages]
    rows += told(record, state)
    width = max(len(name) for name, _ in rows)
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in rows
    )
    plain = "\n".join(f"{name:{width}}  {value}" for name, value in rows)
    return f"<table>{cells}</table>", plain


def numbers(record: Record) -> pd.DataFrame:
    """A job as a row of numbers, under its name."""
    import pandas as pd

    state = record.progress.snapshot()
    used = state.used
    row: dict[str, Any] = {
        "state": record.outcome,
        "seconds": record.seconds,
        "progress": ", ".join(f"{stage.what} {stage}" for stage in state.stages),
        "requests": used.requests,
        "failed": used.failed,
        "from_store": used.from_store,
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "tokens_per_s": record.speed(state),
        "cache_hit_rate": used.cache_hit_rate,
        "retries": used.retries,
        "rate_limit_hits": used.rate_limit_hits,
    }
    return pd.DataFrame([row | dict(state.facts)], index=[record.name])


def draw(record: Record) -> Figure:
    """Tokens a second over time, and the energy where there is one."""
    energies = [(s.seconds, s.energy) for s in record.samples if s.energy is not None]
    lines = [("tokens a second", record.speeds())]
    if energies:
        lines.append(("energy", energies))
    with _drawing:
        figure, axes = new_figure(len(lines), height=2.4)
        for ax, colour, (name, points) in zip(axes, COLOURS, lines, strict=False):
            ax.plot([x for x, _ in points], [y for _, y in points], color=colour)
            ax.set_xlabel("seconds")
            ax.set_ylabel(name)
        axes[0].set_ylim(bottom=0)
    return figure


def png(record: Record) -> bytes:
    """The picture, as a file's bytes."""
    figure, file = draw(record), io.BytesIO()
    with _drawing:
        figure.savefig(file, format="png", dpi=80, bbox_inches="tight")
    return file.getvalue()
