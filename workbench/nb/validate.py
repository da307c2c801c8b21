"""Validate notebooks: nbval compares every stored output with what the cells show now.

One pytest in a child process, strict, without the repository's own pytest settings; `plugin` lists
where the verdict differs from nbval's own. The kernel is the one named `workbench`, with its
environment variables: `--nbval-kernel-name` says so, since `--nbval-current-env` would win over it
and start a bare interpreter.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import NotebookError
from workbench.nb.notebook import find, load
from workbench.nb.process import KERNEL, RUN_DIR, environment, require_kernel
from workbench.progress import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

CELL_TIMEOUT = 300.0
DIED = "died"
"""Property of a cell in pytest's report: the kernel died in it; its value is the cell's index."""


@dataclass(frozen=True, slots=True)
class Validated:
    """One notebook: its code cells, those that failed, and the one in which the kernel died."""

    path: Path
    cells: int
    failed: int
    died: int | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """The verdict on all; `exit_code` is pytest's."""

    exit_code: int
    notebooks: tuple[Validated, ...]

    @property
    def ok(self) -> bool:
        """Whether every output is as stored."""
        return self.exit_code == 0


def validate(
    paths: Iterable[str | Path],
    *,
    cell_timeout: float = CELL_TIMEOUT,
    jobs: int = 1,
) -> Validation:
    """Run notebooks and compare what they say with what is stored.

    Args:
        paths: Notebooks, or folders of them.
        cell_timeout: Seconds for one cell; a kernel that dies is noticed before.
        jobs: Notebooks at a time.

    Raises:
        NotebookError: A path or the kernel is wrong, a file is broken, or pytest-xdist is not there
            for several at a time; then nothing has run.
    """
    if jobs > 1 and find_spec("xdist") is None:
        raise NotebookError(f"jobs={jobs}: needs `pip install pytest-xdist`, or give jobs=1")
    found = find(paths)
    for path in found:
        if re.search(r"\[|::", str(path.resolve())):
            raise NotebookError(f"{path}: nbval takes no path with [ or ::, rename it")
    for path in found:
        load(path)
    require_kernel()
    with counted(len(found), "validate", "notebook"), tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        code = _run_pytest(found, Path(folder), report, cell_timeout, jobs)
        cases = _cases(report)
    notebooks = (_validated(path, cases.get(path.resolve(), [])) for path in found)
    return Validation(code, tuple(notebooks))


def _run_pytest(
    paths: list[Path], folder: Path, report: Path, cell_timeout: float, jobs: int
) -> int:
    settings = folder / "pytest.ini"
    settings.write_text("[pytest]\njunit_family = xunit1\n", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--tb=short"),
        *("-p", "no:cacheprovider", "-p", "workbench.nb.plugin"),
        *("-c", str(settings), f"--rootdir={Path.cwd()}"),
        *("--nbval", f"--nbval-kernel-name={KERNEL}", f"--nbval-cell-timeout={cell_timeout}"),
        f"--junit-xml={report}",
        *(str(path.parent.resolve() / path.name) for path in paths),
    ]
    env = {k: v for k, v in environment().items() if k != "PYTEST_ADDOPTS"}
    if jobs > 1:
        command += ["-n", str(jobs), "--dist", "loadfile"]
        # Models that share the cores wait for each other's threads, spinning.
        env.setdefault("OMP_NUM_THREADS", "1")
    env["WORKBENCH_PROGRESS"] = "off"
    # What the notebooks write while they are validated is nobody's result.
    env[RUN_DIR] = str(folder)
    return subprocess.run(command, env=env, check=False).returncode


def _cases(report: Path) -> dict[Path, list[ET.Element]]:
    """The cells of each file that nbval took."""
    cases: dict[Path, list[ET.Element]] = {}
    for case in ET.parse(report).iter("testcase") if report.exists() else ():
        cases.setdefault(Path(case.get("file", "")).resolve(), []).append(case)
    return cases


def _validated(path: Path, cases: list[ET.Element]) -> Validated:
    bad = (case.find("failure") is not None or case.find("error") is not None for case in cases)
    notes = (note for case in cases for note in case.iter("property"))
    died = next((int(note.get("value", "")) for note in notes if note.get("name") == DIED), None)
    return Validated(path, len(cases), sum(bad), died)
