"""A report as a run of Weights & Biases or of MLflow.

A number has its bounds beside it: `accuracy`, `accuracy.low`, `accuracy.high`, `accuracy.n`. One
that is not finite is left out.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from workbench.export import need, public
from workbench.export.tables import python_rows
from workbench.reprs import spent

if TYPE_CHECKING:
    from workbench.types import Report

BAD = re.compile(r"[^\w\-. /]")  # in names of MLflow
TABLE_ROWS = 10_000  # of a table in Weights & Biases, its own limit; the file has all rows


def numbers(report: Report) -> dict[str, float]:
    """The finite numbers of the summary with their bounds and counts, the usage, the cost."""
    found: dict[str, float | None] = {}
    for one in report.summary:
        about = asdict(one)
        found[about.pop("name")] = about.pop("value")
        found |= {f"{one.name}.{part}": number for part, number in about.items()}
    found |= {f"usage.{name}": number for name, number in asdict(report.usage).items()}
    found["cost"] = spent(report)
    return {name: float(n) for name, n in found.items() if n is not None and math.isfinite(n)}


def log_to_wandb(report: Report, project: str, name: str | None) -> str:
    wandb = need("wandb", "wandb")
    quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True)
    about = {"project": project, "name": name, "config": public(report.provenance)}
    with (
        TemporaryDirectory() as folder,
        wandb.init(**about, settings=quiet, reinit="create_new") as run,
    ):
        rows = python_rows(report.rows.head(TABLE_ROWS))
        table = wandb.Table(dataframe=rows, allow_mixed_types=True)
        run.log({**numbers(report), "rows": table})
        artifact = wandb.Artifact(f"report-{run.id}", type="report")
        for path in _files(report, Path(folder)):
            artifact.add_file(str(path))
        run.log_artifact(artifact)
        return str(run.id)


def log_to_mlflow(report: Report, project: str, name: str | None) -> str:
    entities, client = need("mlflow", "mlflow.entities"), need("mlflow", "mlflow").MlflowClient()
    now = int(1000 * time.time())
    known = client.get_experiment_by_name(project)
    place = known.experiment_id if known else client.create_experiment(project)
    run = str(client.create_run(place, run_name=name).info.run_id)
    for one, value in numbers(report).items():
        name = BAD.sub("_", one)[:250]
        client.log_batch(run, metrics=[entities.Metric(name, value, now, 0)])
    for one, text in public(report.provenance).items():
        client.log_batch(run, params=[entities.Param(BAD.sub("_", one)[:250], text[:6000])])
    with TemporaryDirectory() as folder:
        for path in _files(report, Path(folder)):
            client.log_artifact(run, str(path))
    client.set_terminated(run)
    return run


TRACKERS: Mapping[str, Callable[[Report, str, str | None], str]] = {
    "wandb": log_to_wandb,
    "mlflow": log_to_mlflow,
}


def _files(report: Report, folder: Path) -> Iterator[Path]:
    """The rows, the trace if there is one, and the summary, as files."""
    for name in ("rows", "trace"):
        if (frame := getattr(report, name, None)) is not None:
            frame.to_parquet(folder / f"{name}.parquet", index=False)
            yield folder / f"{name}.parquet"
    yield report.export(folder / "summary.md")
