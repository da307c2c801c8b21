"""Where a run writes (`$WORKBENCH_RUN_DIR`, else `runs/` of the project that holds the cwd), and
from which commit it comes."""

from __future__ import annotations

import json
import math
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import InputError
from workbench.types import Metric

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["commit", "project", "run_dir", "save_figure", "save_metrics", "save_table"]


def commit() -> str | None:
    """The git commit of the checkout that this package runs from, if it does."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None


def run_dir() -> Path:
    """The folder of this run; the same wherever a notebook's kernel happens to start."""
    if folder := os.environ.get("WORKBENCH_RUN_DIR"):
        return Path(folder)
    return project() / "runs"


def project() -> Path:
    """The folder of the project that holds the current folder; that one itself if none does."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "pyproject.toml").exists()), here)


def save_figure(figure: Figure, name: str) -> Path:
    """Write `figures/<name>.png` of the run; the same picture gives the same bytes."""
    path = run_dir() / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
    return path


def save_table(table: pd.DataFrame, name: str) -> Path:
    """Write `results/<name>.csv` of the run."""
    path = run_dir() / "results" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return path


def save_metrics(**metrics: Metric | float) -> None:
    """Write `metrics.json` of the run: a notebook's headline numbers, which a sweep collects.

    Raises:
        InputError: there are none, or one is no number.
    """
    if not metrics:
        raise InputError("no metrics: give one at least, such as accuracy=report.summary[0]")
    found: dict[str, object] = {}
    for name, value in metrics.items():
        if isinstance(value, Metric):
            parts = {n: _finite(n, v) for n, v in asdict(value).items() if n != "name"}
            found[name] = parts
        else:
            found[name] = _finite(name, value)
    path = run_dir() / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(name: str, value: float) -> float | None:
    """JSON has no NaN, and knows nothing of numpy."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}={value!r:.60} is no metric: give a number or a Metric") from None
    if not math.isfinite(number):
        return None
    return int(value) if isinstance(value, int) else number
