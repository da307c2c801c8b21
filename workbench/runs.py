"""The folder for a run's files (`$WORKBENCH_RUN_DIR`, else `runs/` of the current project), the
commit of our code, and the location of the package's notebooks."""

from __future__ import annotations

import json
import math
import operator
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

from workbench.errors import InputError
from workbench.files import write_whole
from workbench.lazy import Figure, pd
from workbench.machine import checkout
from workbench.types import Metric

_BEGUN: set[Path] = set()
"""The metrics files that this process has begun."""


def commit() -> str | None:
    """The git commit of the clone that this package runs from; None if there is none."""
    if (clone := checkout()) is None:  # another project's repository may contain the environment
        return None
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() or None


def shipped_notebooks() -> Path:
    """The folder of our notebooks: the clone's, or the installed package's."""
    clone = checkout()
    return clone / "notebooks" if clone else Path(__file__).with_name("_notebooks")


def run_dir() -> Path:
    """The folder of this run; it does not depend on where a notebook's kernel starts."""
    if folder := os.environ.get("WORKBENCH_RUN_DIR"):
        return Path(folder)
    return project() / "runs"


def project() -> Path:
    """The folder of the current project; the current folder if there is none."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "pyproject.toml").exists()), here)


def save_figure(figure: Figure, name: str) -> Path:
    """Write `figures/<name>.png` of the run, and beside it `<name>_dark.png` for dark pages.

    The same picture gives the same bytes. One of that name is replaced.
    """
    from workbench.plots.theme import save

    save(figure, path := _placed("figures", f"{name}.png"))
    return path


def save_table(table: pd.DataFrame, name: str) -> Path:
    """Write `results/<name>.csv` of the run; an existing file is replaced."""
    path = _placed("results", f"{name}.csv")
    table.to_csv(path, index=False)
    return path


def _placed(folder: str, name: str) -> Path:
    """The path of a run's file, with its folder created."""
    path = run_dir() / folder / name
    path.parent.resolve().mkdir(parents=True, exist_ok=True)  # a link may point to a missing folder
    return path


def save_metrics(**metrics: Metric | float) -> None:
    """Add to `metrics.json` of the run: a notebook's headline numbers, which a sweep collects.

    An existing name is replaced, as when a cell runs again. Outside a run (`WORKBENCH_RUN_DIR`
    is not set), all notebooks share the file, and a kernel's first call starts a new one.
    Non-finite numbers are written as "nan", "inf" or "-inf".

    Raises:
        InputError: no metrics, or a value is not a number.
    """
    if not metrics:
        raise InputError("no metrics: pass at least one, such as accuracy=report.summary[0]")
    found = {name: _parts(name, value) for name, value in metrics.items()}
    path = run_dir() / "metrics.json"
    adds = path in _BEGUN or os.environ.get("WORKBENCH_RUN_DIR")
    known = (_saved(path) if adds else {}) | found
    write_whole(path, json.dumps(known, indent=1, allow_nan=False) + "\n")
    _BEGUN.add(path)


def _saved(path: Path) -> dict[str, object]:
    """The contents of a metrics file; empty if it is broken."""
    try:
        text = path.read_text(encoding="utf-8")
        # Another program may have written NaN, which is not JSON.
        found = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _parts(name: str, value: Metric | float) -> object:
    if not isinstance(value, Metric):
        return _number(name, value)
    parts = {part: number for part, number in asdict(value).items() if part != "name"}
    return {
        part: None if number is None else _number(f"{name}.{part}", number)
        for part, number in parts.items()
    }


def _number(name: str, value: float) -> float | str:
    """A number as Python's type, which JSON needs."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}={value!r:.60} is not a metric: pass a number or Metric") from None
    try:
        return int(operator.index(value))  # type: ignore[arg-type]  # TypeError if it is not whole
    except TypeError:
        return _finite(number)


def _finite(number: float | str) -> float | str:
    """A number, or its name if it is NaN or infinite, which JSON lacks."""
    number = float(number)
    return number if math.isfinite(number) else str(number)
