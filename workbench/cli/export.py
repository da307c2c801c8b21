"""`workbench export`: saved reports in the formats of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from workbench import values
from workbench.cli.evaluate import load_reports
from workbench.errors import InputError
from workbench.types import Report

FILES = {
    "csv": "rows.csv", "jsonl": "rows.jsonl", "xlsx": "report.xlsx", "inspect": "inspect.eval",
    "md": "summary.md", "tex": "summary.tex", "hf": "dataset", "wandb": "", "mlflow": "",
}  # fmt: skip


def export_reports(
    runs: Annotated[list[Path], Argument(help="Folders of saved reports.")],
    to: Annotated[str, Option(help=f"One of {', '.join(FILES)}.", autocompletion=lambda: [*FILES])],
    out: Annotated[
        Path | None, Option(help="Default: a file in the folder; md and tex are printed.")
    ] = None,
    project: Annotated[str, Option(help="Of wandb or mlflow.")] = "workbench",
) -> None:
    """Export saved reports: to papers, spreadsheets, data sets, inspect view, trackers."""
    from workbench.export import export, summary_table

    values.known("--to", to, FILES)
    reports = load_reports(runs)
    if out is not None and (not FILES[to] or out.suffix != Path(FILES[to]).suffix):
        raise InputError(f"--out {out}: --to {to} writes {FILES[to] or 'no file'}")
    if out is None and to in {"md", "tex"}:
        typer.echo(summary_table(reports, "latex" if to == "tex" else "markdown"), nl=False)
    elif to in {"md", "tex", "xlsx"}:
        typer.echo(export(reports, out or runs[0] / FILES[to]))
    elif out is not None and len(runs) > 1:
        raise InputError(f"--out {out}: --to {to} writes a file for each report; leave --out out")
    else:
        for run, (name, report) in zip(runs, reports.items(), strict=True):
            typer.echo(_export(report, to, out or run / FILES[to], project, name))


def _export(report: Report, to: str, place: Path, project: str, name: str) -> object:
    """Export one report; returns where it is."""
    if to == "hf":
        report.to_hf().save_to_disk(str(place))
        return place
    return report.export(place) if FILES[to] else f"{to}: run {report.log(to, project, name)}"
