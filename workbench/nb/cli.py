"""`workbench notebook`: run, check, validate and refresh notebooks from a terminal."""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from workbench.errors import NotebookError, WorkbenchError
from workbench.nb.coverage import FLOOR, Coverage, coverage
from workbench.nb.lint import lint
from workbench.nb.notebook import find
from workbench.nb.parameters import Text
from workbench.nb.process import TIMEOUT
from workbench.nb.tables import table
from workbench.nb.validate import CELL_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

app = typer.Typer(no_args_is_help=True, help="Run, check, validate and refresh notebooks.")

Paths = Annotated[list[Path], typer.Argument(help="Notebooks, or folders of them.")]
Seconds = Annotated[float, typer.Option(help="Seconds for one notebook.", min=1)]
Floor = Annotated[float, typer.Option(help="Least coverage of each notebook.", min=0, max=1)]


class _Pairs(TyperCommand):
    """Lets `-p name value` stand for `-p name=value`, which is all that typer can read."""

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
    # An option that follows is none, but a negative number is.
    option = value is not None and re.match(r"--|-[A-Za-z](?!nf|an)", value)
    if value is None or option or name.startswith("-"):
        _fail(f"error: -p {name} has no value; give -p NAME VALUE, or -p NAME=VALUE", 2)
    return value


def _given(texts: Sequence[str]) -> dict[str, Text]:
    """Parameters by name, each once."""
    values: dict[str, Text] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise NotebookError(f"-p {text!r} names no parameter; give -p NAME VALUE")
        if name in values:
            raise NotebookError(f"-p {name} is given twice; give it once")
        values[name] = Text(value)
    return values


def told(command: Callable[..., None]) -> Callable[..., None]:
    """Show what is wrong with the request in a line, not in a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise
        except (WorkbenchError, OSError) as error:
            _fail(f"error: {error}", 2)

    return run


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


@app.command("run", cls=_Pairs)
@told
def run_command(
    paths: Paths,
    out: Annotated[Path, typer.Option(help="Folder for copies, figures and results.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="Set a parameter."),
    ] = None,
    timeout: Seconds = TIMEOUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Run notebooks, each in a fresh interpreter; non-zero unless all are ok."""
    from workbench.nb.run import run

    say = functools.partial(typer.echo, err=as_json)
    frame = run(paths, out, _given(parameter or ()), timeout, say=say)
    if as_json:
        typer.echo(json.dumps(frame.to_dict(orient="records"), indent=1, ensure_ascii=False))
    if not (frame["status"] == "ok").all():
        raise typer.Exit(1)


@app.command()
@told
def check(paths: Paths, floor: Floor = FLOOR) -> None:
    """Check what is stored, without running it; non-zero on any finding."""
    findings: list[str] = []
    measured: list[Coverage] = []
    for path in find(paths):
        try:
            findings.extend(map(str, lint(path)))
            measured.append(coverage(path))
        except NotebookError as error:
            findings.append(str(error))
    findings.extend(_low(measured, floor))
    typer.echo(_coverage_table(measured))
    if findings:
        _fail("\n".join([*findings, f"{len(findings)} findings"]), 1)


@app.command()
@told
def validate(
    paths: Paths,
    floor: Floor = FLOOR,
    cell_timeout: Annotated[
        float, typer.Option(help="Seconds for one cell.", min=1)
    ] = CELL_TIMEOUT,
    jobs: Annotated[int, typer.Option(help="Notebooks at a time.", min=1)] = 1,
) -> None:
    """Run notebooks through nbval and compare every stored output."""
    from workbench.nb.validate import validate as compare

    result = compare(paths, floor=floor, cell_timeout=cell_timeout, jobs=jobs)
    failed = [n.failed for n in result.notebooks]
    typer.echo(_coverage_table([n.coverage for n in result.notebooks], failed))
    for one in result.notebooks:
        if one.died is not None:
            typer.echo(f"{one.path} cell {one.died}: the kernel died", err=True)
    if not result.ok:
        low = _low([n.coverage for n in result.notebooks], floor)
        _fail("\n".join([*low, f"not valid (pytest ended with {result.exit_code})"]), 1)


@app.command()
@told
def refresh(paths: Paths, timeout: Seconds = TIMEOUT) -> None:
    """Execute notebooks in place and normalise them for a commit."""
    from workbench.nb.refresh import refresh as renew

    done = renew(paths, timeout, say=typer.echo)
    if any(one.status != "ok" for one in done):
        raise typer.Exit(1)


def _low(measured: Sequence[Coverage], floor: float) -> list[str]:
    return [
        f"{one.path} cell {cell.index}: coverage {one.share:.2f} < {floor:.2f}: {cell.reason}"
        for one in measured
        if one.share < floor
        for cell in one.cells
        if cell.counted and not cell.covered
    ]


def _coverage_table(measured: Sequence[Coverage], failed: Sequence[int] | None = None) -> str:
    headers = ["notebook", "counted", "covered", "share"]
    rows = [[str(one.path), one.counted, one.covered, _Share(one.share)] for one in measured]
    if failed is not None:
        headers.append("failed")
        rows = [[*row, bad] for row, bad in zip(rows, failed, strict=True)]
    return table(headers, rows)


class _Share(float):
    """A share as the table shows it."""

    def __str__(self) -> str:
        return f"{float(self):.2f}"


if __name__ == "__main__":
    sys.exit(app())
