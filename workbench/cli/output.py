"""Shared by all commands: printing, saving, errors and interrupts."""

from __future__ import annotations

import io
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from workbench.errors import InputError, WorkbenchError
from workbench.lazy import Axes, Figure, pd
from workbench.types import Metric, Report

USAGE: Any = typer.BadParameter.__base__
"""The base class of all mistakes in a command line."""


class _Commands(TyperGroup):
    """Shows an error as one line, not as a traceback."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _in_a_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _in_a_line():
            return super().invoke(ctx)


@contextmanager
def _in_a_line() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except InputError as error:
        fail(f"error: {' '.join(str(error).split())}", 2)
    except (WorkbenchError, OSError) as error:
        fail(f"error: {error}", 2)
    except USAGE as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # it has printed the help
            raise
        fail(f"error: {_mistake(error)}", 2)


def _mistake(error: Any) -> str:
    """The mistake in a command line, and its remedy."""
    names = getattr(error, "possibilities", None)
    text = " ".join((error.message if names else error.format_message()).split()).rstrip(".")
    text = text[:1].lower() + text[1:].replace(". Did", "; did")
    if names:
        return f"{text}; did you mean {' or '.join(names)}?"
    where = error.ctx.command_path if error.ctx else "workbench"
    return text if text.endswith("?") else f"{text}; see {where} --help"


def command_group(about: str) -> typer.Typer:
    """A group of commands with a line of help; errors of the package exit with status 2."""
    return typer.Typer(
        cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, help=about
    )


def fail(message: str, status: int) -> NoReturn:
    """End the command with a message on stderr."""
    say(message)
    raise typer.Exit(status)


def say(text: str) -> None:
    """Print progress and notes, on stderr."""
    typer.echo(text, err=True)


def show(data: Any, text: str, *, as_json: bool) -> None:
    """Print a result: as text, or its data (a frame or plain values) as JSON."""
    if not as_json:
        typer.echo(text)
    elif hasattr(data, "to_json"):
        typer.echo(data.to_json(orient="records", indent=1))
    else:
        typer.echo(json.dumps(data, indent=1, ensure_ascii=False))


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format rows in aligned columns, regardless of the terminal's width.

    Args:
        headers: one word per column.
        rows: one value per column; text is left-aligned, numbers are right-aligned.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    left = [isinstance(value, str) for value in (rows[0] if rows else headers)]
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for header, to_left in zip(headers, left, strict=True):
        grid.add_column(Text(header), justify="left" if to_left else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    console = Console(file=io.StringIO(), width=sys.maxsize, color_system=None)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value).expandtabs()
    if math.isnan(value):
        return "–"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def show_frame(frame: pd.DataFrame, columns: Sequence[str] | None = None, *, as_json: bool) -> None:
    """Print a data frame; as text only these columns."""
    part = frame if columns is None else frame[[*columns]]
    headers = [str(name).replace("_", " ") for name in part.columns]
    show(frame, table(headers, [*part.itertuples(index=False)]), as_json=as_json)


def show_metrics(metrics: Sequence[Metric], *, as_json: bool) -> None:
    """Print numbers with their intervals, one per line."""
    rows = [[m.name, m.value, m.low, m.high, m.n, m.n_failed, m.n_unparsed] for m in metrics]
    text = table(["", "value", "low", "high", "n", "failed", "unparsed"], rows)
    show([asdict(metric) for metric in metrics], text, as_json=as_json)


def show_report(
    report: Report, draw: Callable[[Axes], None] | None, out: Path | None, *,
    as_json: bool, more: Sequence[Metric] = (),
) -> None:  # fmt: skip
    """Print a report's headline numbers; save it with its figure if `out` is given."""
    from workbench.plots import new_figure

    show_metrics([*report.summary, *more], as_json=as_json)
    if out is not None:
        figure, (ax,) = new_figure()
        if draw is not None:
            draw(ax)
        save(report, out, figure)
        say(f"summary, rows and figure are in {out}")


def check_new(folder: Path | None) -> None:
    """Refuse a folder that exists or cannot be created, before the work starts."""
    if folder is None:
        return
    if folder.exists():
        raise InputError(f"{folder} exists already: choose another folder for this report")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}; choose another folder") from error


def save(report: Report, out: Path, figure: Figure | None = None) -> None:
    """Save a report.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        report.save(out, figure)
    except OSError as error:
        raise InputError(f"the report could not be written to {out}: {error}") from error


@contextmanager
def clean_exit() -> Iterator[None]:
    """Make SIGTERM end the work as Ctrl-C does: half-written files are removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
