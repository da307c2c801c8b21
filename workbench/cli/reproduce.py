"""`workbench reproduce`: a saved report again, and what differs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Exit, Option

from workbench.cli import flags
from workbench.cli.output import check_new, save, say, show, show_metrics, table
from workbench.lazy import pd
from workbench.reprs import brief

if TYPE_CHECKING:
    from workbench.reproduction import Reproduction

LISTED = 20
"""How many differing values are printed."""


def reproduce(
    run: Annotated[Path, Argument(help="A folder with a saved report.")],
    model: Annotated[str | None, Option(help="Where the model is here, if it has moved.")] = None,
    engine: Annotated[str | None, Option(help="Another kind of engine than the report's.")] = None,
    dtype: Annotated[str | None, Option(help="Another number format than the report's.")] = None,
    task: Annotated[Path | None, Option(help="The task's file, if it has moved.")] = None,
    tolerance: Annotated[
        float, Option(min=0, help="Maximum difference of numbers that count as the same.")
    ] = 1e-4,
    store: Annotated[
        str | None, Option(help="A new file for the answers, to resume (default: none).")
    ] = None,
    option: flags.Options = None,
    out: flags.Folder = None,
    as_json: flags.Json = False,
) -> None:
    """Run a saved report again past the store. Status 0: the same; 1: it differs; 2: cannot run."""
    from workbench.reproduction import reproduce as repeat

    check_new(out)
    given: dict[str, Any] = flags.engine_options(option)
    given |= {"dtype": dtype} if dtype else {}
    done = repeat(run, model=model, engine=engine, task=task, tolerance=tolerance, store=store,
                  **given)  # fmt: skip
    if as_json:
        show(_plain(done), "", as_json=True)
    else:
        typer.echo(done.verdict())
        show_metrics(done.summary, as_json=False)
        _print(done.differing(provenance=True), ["what", "then", "now"])
        _print(done.differing(), ["id", "what", "then", "now", "difference"])
        for note in done.notes:
            say(note)
    if out is not None:
        save(done, out)
        say(f"summary and rows are in {out}")
    raise Exit(done.status)


def _plain(done: Reproduction) -> dict[str, Any]:
    """What is printed as JSON; a difference of texts is null."""
    parts = {"provenance": done.differing(provenance=True), "results": done.differing()}
    rows = {name: json.loads(part.to_json(orient="records")) for name, part in parts.items()}
    metrics = [asdict(metric) for metric in done.summary]
    about = {"cannot": done.cannot, "notes": [*done.notes], "summary": metrics}
    return {"status": done.status, "verdict": done.verdict(), **about, **rows}


def _print(part: pd.DataFrame, names: list[str]) -> None:
    rows = [
        [" ".join(brief(v, 48).split()) if isinstance(v, str) else v for v in row]
        for row in part[names].head(LISTED).itertuples(index=False)
    ]
    if rows:
        more = f"\nthe first {LISTED} of {len(part):,}" if len(part) > LISTED else ""
        typer.echo(f"\n{table(names, rows)}{more}")
