"""Validate notebooks: nbval compares every stored output, and coverage must reach its floor.

One pytest in a child process, strict, without the repository's own pytest settings; only the
tables of `approx` have the tolerances that they state. The kernel is the one named `workbench`,
with its environment variables: `--nbval-kernel-name` says so, since `--nbval-current-env` would
win over it and start a bare interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import NotebookError
from workbench.nb.coverage import FLOOR, Coverage, coverage
from workbench.nb.lint import KERNEL
from workbench.nb.notebook import find
from workbench.nb.process import RUN_DIR, require_kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

CELL_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Validated:
    """One notebook: code cells that nbval ran, those that failed, and the coverage."""

    path: Path
    cells: int
    failed: int
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class Validation:
    """The verdict on all; `exit_code` is pytest's."""

    exit_code: int
    floor: float
    notebooks: tuple[Validated, ...]

    @property
    def ok(self) -> bool:
        """Whether every output is as stored and every notebook is covered well enough."""
        return self.exit_code == 0 and all(n.coverage.share >= self.floor for n in self.notebooks)


def validate(
    paths: Iterable[str | Path],
    *,
    floor: float = FLOOR,
    cell_timeout: float = CELL_TIMEOUT,
    jobs: int = 1,
) -> Validation:
    """Run notebooks and compare what they say with what is stored.

    Args:
        paths: Notebooks, or folders of them.
        floor: Least coverage of each notebook.
        cell_timeout: Seconds for one cell; a dead kernel is noticed only after them.
        jobs: Notebooks at a time.

    Raises:
        NotebookError: A path or the kernel is wrong, a file is broken, or pytest-xdist is not there
            for several at a time; then nothing has run.
    """
    if jobs > 1 and find_spec("xdist") is None:
        raise NotebookError(f"jobs={jobs}: needs `pip install pytest-xdist`, or give jobs=1")
    found = find(paths)
    measured = [coverage(path) for path in found]
    require_kernel()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        code = _run_pytest(found, Path(folder), report, cell_timeout, jobs)
        counts = _counts(report)
    notebooks = (
        Validated(one.path, *counts.get(one.path.resolve(), (0, 0)), one) for one in measured
    )
    return Validation(code, floor, tuple(notebooks))


def _run_pytest(
    paths: list[Path], folder: Path, report: Path, cell_timeout: float, jobs: int
) -> int:
    settings = folder / "pytest.ini"
    settings.write_text("[pytest]\njunit_family = xunit1\n", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--tb=short"),
        *("-p", "no:cacheprovider", "-p", "workbench.nb.tolerant"),
        *("-c", str(settings), f"--rootdir={Path.cwd()}"),
        *("--nbval", f"--nbval-kernel-name={KERNEL}", f"--nbval-cell-timeout={cell_timeout}"),
        f"--junit-xml={report}",
        *(str(path.resolve()) for path in paths),
    ]
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    if jobs > 1:
        command += ["-n", str(jobs), "--dist", "loadfile"]
        # Models that share the cores wait for each other's threads, spinning.
        env.setdefault("OMP_NUM_THREADS", "1")
    env["WORKBENCH_PROGRESS"] = "off"
    # What the notebooks write while they are validated is nobody's result.
    env[RUN_DIR] = str(folder)
    return subprocess.run(command, env=env, check=False).returncode


def _counts(report: Path) -> dict[Path, tuple[int, int]]:
    """Cells run and cells failed of each file."""
    counts: dict[Path, tuple[int, int]] = {}
    if not report.exists():
        return counts
    for case in ET.parse(report).iter("testcase"):
        path = Path(case.get("file", "")).resolve()
        ran, failed = counts.get(path, (0, 0))
        bad = any(case.find(tag) is not None for tag in ("failure", "error"))
        counts[path] = (ran + 1, failed + bad)
    return counts
