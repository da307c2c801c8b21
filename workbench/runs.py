"""Where a run writes (`$WORKBENCH_RUN_DIR`, else `runs/` of the project that holds the cwd), and
from which commit it comes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["commit", "run_dir", "save_figure", "save_table"]


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
    here = Path.cwd()
    for parent in (here, *here.parents):
        if (parent / "pyproject.toml").exists():
            return parent / "runs"
    return here / "runs"


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
