"""`workbench notebook`: run, check and validate notebooks from a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from workbench.cli.flags import Json, pairs
from workbench.cli.new import copy, lab
from workbench.cli.output import command_group, fail, say, table
from workbench.errors import InputError, NotebookError
from workbench.nb.execution import CELL_TIMEOUT, TIMEOUT
from workbench.nb.notebook import find, load
from workbench.nb.parameters import Text, faults

app = command_group("Run, check, validate, copy and open notebooks.")
app.command("copy")(copy)
app.command("lab", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(lab)

Paths = Annotated[list[Path], Argument(help="Notebooks, or folders of them.")]
Seconds = Annotated[float, Option(help="Seconds per notebook.", min=1)]


class _Pairs(TyperCommand):
    """Accepts `-p name value` as well as `-p name=value`, the only form that typer parses."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined: list[str] = []
        rest = iter(args)
        for arg in rest:
            joined.append(arg)
            if arg in {"-p", "--parameter"}:
                name = next(rest, "")
                joined.append(
                    name if "=" in name else f"{name}={_value_of(name, next(rest, None))}"
                )
        return super().parse_args(ctx, joined)


def _value_of(name: str, value: str | None) -> str:
    # A following option is not a value, but a negative number is.
    option = value is not None and re.match(r"--|-[A-Za-z](?!nf|an)", value)
    if value is None or option or name.startswith("-"):
        raise InputError(f"-p {name} has no value; give -p NAME VALUE, or -p NAME=VALUE")
    return value


@app.command("run", cls=_Pairs)
def run_command(
    paths: Paths,
    out: Annotated[Path, Option(help="Folder for copies, figures and results.")],
    parameter: Annotated[
        list[str] | None, Option("-p", "--parameter", metavar="NAME VALUE", help="Set a parameter.")
    ] = None,
    timeout: Seconds = TIMEOUT,
    as_json: Json = False,
) -> None:
    """Run notebooks, each in a fresh interpreter; non-zero unless all are ok."""
    from workbench.nb.many import run

    values = {name: Text(value) for name, value in pairs(parameter, "-p").items()}
    frame = run(paths, out, values, timeout, say=say if as_json else typer.echo)
    if as_json:
        typer.echo(json.dumps(frame.to_dict(orient="records"), indent=1, ensure_ascii=False))
    if not (frame["status"] == "ok").all():
        raise typer.Exit(1)


@app.command()
def check(paths: Paths) -> None:
    """Check languages and parameters cells without running; non-zero on any finding."""
    findings: list[str] = []
    for path in find(paths):
        try:
            findings += [f"{path} cell {cell}: {fault}" for cell, fault in faults(load(path))]
        except NotebookError as error:
            findings.append(str(error))
    if findings:
        fail("\n".join([*findings, f"{len(findings)} findings"]), 1)


@app.command()
def validate(
    paths: Paths,
    cell_timeout: Annotated[float, Option(help="Seconds per cell.", min=1)] = CELL_TIMEOUT,
    jobs: Annotated[int, Option(help="Notebooks at a time.", min=1)] = 1,
) -> None:
    """Run notebooks with nbval and compare every stored output."""
    find(paths)  # fails before the slow imports
    from workbench.nb.validate import validate as compare

    result = compare(paths, cell_timeout=cell_timeout, jobs=jobs)
    rows = [(str(one.path), one.cells, one.failed) for one in result.notebooks]
    typer.echo(table(("notebook", "cells", "failed"), rows))
    for one in result.notebooks:
        if one.died is not None:
            typer.echo(f"{one.path} cell {one.died}: the kernel died", err=True)
    if not result.ok:
        fail(f"not valid (pytest ended with {result.exit_code})", 1)
