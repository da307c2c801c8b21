"""`workbench report`: one HTML page of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report_page(
    run: Annotated[
        Path,
        typer.Argument(
            help="A folder of a sweep, a saved report or executed notebooks; or one notebook."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The page (default: in the folder).")
    ] = None,
) -> None:
    """One HTML page with the numbers, the figures, what failed and where it all comes from."""
    from workbench.report import render

    typer.echo(render(run, out))
