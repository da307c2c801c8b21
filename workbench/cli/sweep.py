"""`workbench sweep`: run a notebook for every point of a grid, and show the table."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from workbench.cli.flags import Json, pairs
from workbench.cli.output import clean_exit, command_group, fail, say, show, table
from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.sweep import Results

app = command_group("Run a notebook for every point of a grid.")
Place = Annotated[Path | None, Option("--out", help="Folder of the results (default: runs/NAME).")]


@app.command("run")
def run_sweep(
    sweep: Annotated[Path, Argument(help="A YAML file; see notebooks/sweeps/.")],
    out: Place = None,
    jobs: Annotated[int, Option(min=1, help="Points at a time.")] = 1,
    timeout: Annotated[
        float | None, Option(min=1, help="Seconds per point (default: the file's).")
    ] = None,
    resume: Annotated[bool, Option(help="Skip points that are done or failed.")] = True,
    retry_failed: Annotated[bool, Option(help="Run failed points again.")] = False,
    slurm: Annotated[
        list[str] | None,
        Option(metavar="NAME=VALUE", help="Run on Slurm: account, time, gpus, mem, partition …"),
    ] = None,
    dry_run: Annotated[bool, Option(help="Only print what would run.")] = False,
    as_json: Json = False,
) -> None:
    """Run what is not done; non-zero unless all points are done. Ctrl-C keeps finished points."""
    from workbench.runs import run_dir
    from workbench.serving.slurm import SlurmJob
    from workbench.sweep import SlurmArray, Sweep, read_results, run
    from workbench.sweep.folder import SweepFolder
    from workbench.sweep.results import results
    from workbench.sweep.run import todo

    chosen = Sweep.read(sweep)
    if timeout is not None:
        chosen = dataclasses.replace(chosen, timeout=timeout)
    folder = out or run_dir() / chosen.name
    request = {"name": "workbench-sweep"} | pairs(slurm, "--slurm")
    executor = SlurmArray(SlurmJob.read(request)) if slurm else None
    if dry_run:
        place = SweepFolder(folder)
        plan = todo(chosen, place, resume=resume, retry_failed=retry_failed)
        _show(results(chosen.points, place), as_json=as_json)
        say(f"{len(plan)} of {len(chosen.points)} points would run")
        return
    try:
        with clean_exit():
            outcome = run(
                chosen, folder, jobs=jobs, resume=resume, retry_failed=retry_failed,
                executor=executor, say=say,
            )  # fmt: skip
    except KeyboardInterrupt:
        with contextlib.suppress(InputError):  # nothing has started
            say(", ".join(f"{n} {state}" for state, n in read_results(folder).states.items()))
        fail("stopped: run it again and it resumes", 130)
    _show(outcome, as_json=as_json)
    say(f"the table is {folder / 'results.csv'}; as a page: workbench report {folder}")
    if outcome.states.get("done", 0) < len(outcome.table):
        raise typer.Exit(1)


@app.command("show")
def show_sweep(
    sweep: Annotated[Path, Argument(help="A sweep's YAML file, or its folder of results.")],
    out: Place = None,
    as_json: Json = False,
) -> None:
    """Print the current table, also while the sweep runs."""
    from workbench.runs import run_dir
    from workbench.sweep import Sweep, read_results
    from workbench.sweep.folder import SweepFolder
    from workbench.sweep.results import results

    if sweep.is_dir():
        outcome = read_results(sweep)
    else:
        chosen = Sweep.read(sweep)
        outcome = results(chosen.points, SweepFolder(out or run_dir() / chosen.name))
    _show(outcome, as_json=as_json)


def _show(results: Results, *, as_json: bool) -> None:
    from workbench.sweep.grid import DETAIL, brief

    def cell(name: str, value: object) -> str:
        if isinstance(value, float) and name not in results.varied:
            return f"{value:.4g}"  # NaN was measured, so it is not a missing number
        return brief("" if value is None else value, DETAIL if name == "detail" else 40)

    columns = [str(name) for name in results.shown.columns]
    cells = [[cell(name, row[name]) for name in columns] for row in results.rows]
    # JSON has no NaN and no infinity; they become the texts "nan", "inf" and "-inf".
    rows = [
        {name: str(x) if isinstance(x, float) and not math.isfinite(x) else x
         for name, x in row.items()}
        for row in results.rows
    ]  # fmt: skip
    show(rows, table([brief(name) for name in columns], cells), as_json=as_json)
    for note in results.notes if not as_json else ():
        say(note)
