"""What several commands have in common: options, and how a report is shown."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.bench.cli import say
from workbench.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from workbench.types import Metric, Report

Model = Annotated[
    str | None, typer.Option(help="Hub name, folder or .gguf file (default: the embedded model).")
]
StorePath = Annotated[
    str, typer.Option(help='Response store: "default", a path, or "none" for no store.')
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="NAME=VALUE", help="An engine argument, as JSON."),
]
EngineName = Annotated[
    str, typer.Option(help='"auto", "vllm", "remote", "transformers" or "diffusion".')
]
Folder = Annotated[
    Path | None, typer.Option("--out", help="A new folder for the report: numbers, rows, figure.")
]


@contextmanager
def tidy_end() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does: what is half made is taken away."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_new(folder: Path | None) -> None:
    """Before the work and not after it."""
    if folder is not None and folder.exists():
        raise InputError(f"{folder} exists already: choose another folder for this report")
    try:
        if folder is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}; choose another folder") from error


def show_report(
    report: Report, more: list[Metric], figure: Figure, out: Path | None, *, as_json: bool
) -> None:
    """Print a report's headline numbers, and keep it where asked."""
    show_metrics([*report.summary, *more], as_json=as_json)
    if out is not None:
        save(report, out, figure)
        say(f"summary, rows and figure are in {out}")


def show_metrics(metrics: list[Metric], *, as_json: bool) -> None:
    from workbench.nb.tables import table

    if as_json:
        typer.echo(json.dumps([asdict(metric) for metric in metrics], indent=1))
    else:
        rows = [
            [m.name, *(f"{x:.4g}" for x in (m.value, m.low, m.high)), m.n, m.n_failed, m.n_unparsed]
            for m in metrics
        ]
        typer.echo(table(["", "value", "low", "high", "n", "failed", "unparsed"], rows))


def save(report: Report, out: Path, figure: Figure | None = None) -> None:
    """Keep a report.

    Raises:
        InputError: it cannot be written there.
    """
    try:
        report.save(out, figure)
    except OSError as error:
        raise InputError(f"the report could not be written to {out}: {error}") from error


def engine_options(pairs: list[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--option {pair!r} must be NAME=VALUE")
        if name in ("model", "engine", "store"):
            raise InputError(f"--option {pair!r}: {name} is no engine argument; see --help")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
