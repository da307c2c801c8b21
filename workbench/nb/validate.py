"""Validate notebooks: run each again, and compare its outputs with the stored ones.

It runs one pytest in a child process, strict, without the repository's own pytest settings, with
nbval and two plugins: `tolerance`, and this module, which makes nbval run cells as Jupyter does:

- a cell fails as soon as its kernel dies, and so do all later cells;
- a cell fails if the kernel reports a failure, whether an error was shown or not, and one that is
  marked as raising fails if it does not raise;
- a cell tagged `skip-execution` is skipped;
- a semicolon at the end hides the value, and `_` and `Out` have the earlier values;
- `clear_output` and updates of a display change a cell's outputs, until the cell ends.

The kernel is the one named `workbench`, with its environment variables. It is selected with
`--nbval-kernel-name`, since `--nbval-current-env` would start a bare interpreter instead.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

import nbformat

from workbench.errors import NotebookError
from workbench.machine import install_hint
from workbench.nb.execution import CELL_TIMEOUT, KERNEL, RUN_DIR, environment, require_kernel
from workbench.nb.notebook import SKIP, find, load
from workbench.progress import counted

try:
    import nbval.plugin
    from nbval.kernel import RunningKernel
    from nbval.plugin import IPyNbCell
except ModuleNotFoundError as error:
    needs = f"comparing stored outputs needs the package nbval: {install_hint('lab')}"
    raise NotebookError(needs) from error

if TYPE_CHECKING:
    import pytest

_DIED = "died"  # property of a cell in pytest's report; its value is the cell's index
_SLICE = 1.0  # seconds
_OUTPUTS = {"stream", "display_data", "execute_result", "error"}


@dataclass(frozen=True, slots=True)
class Validated:
    """One notebook: its code cells, those that failed, and the one in which the kernel died."""

    path: Path
    cells: int
    failed: int
    died: int | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """The result for all notebooks; `exit_code` is pytest's."""

    exit_code: int
    notebooks: tuple[Validated, ...]

    @property
    def ok(self) -> bool:
        """Whether every output matches the stored one."""
        return self.exit_code == 0


def validate(
    paths: str | Path | Iterable[str | Path], *, cell_timeout: float = CELL_TIMEOUT, jobs: int = 1
) -> Validation:
    """Run notebooks and compare their outputs with the stored ones.

    Args:
        paths: Notebooks, or folders of them.
        cell_timeout: Seconds per cell; a kernel that dies is noticed earlier.
        jobs: Notebooks at a time.

    Raises:
        NotebookError: A path or the kernel is wrong, a file is broken, or `jobs` is above 1 and
            pytest-xdist is missing; nothing has run.
    """
    if jobs > 1 and find_spec("xdist") is None:
        raise NotebookError(f"jobs={jobs}: needs `pip install pytest-xdist`, or give jobs=1")
    notebooks = find(paths)
    for path in notebooks:
        load(path)
        if re.search(r"\[|::", str(path.resolve())):
            raise NotebookError(f"{path}: nbval accepts no path with [ or ::; rename it")
    require_kernel()
    with counted(len(notebooks), "validate", "notebook"), tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        code = _run_pytest(notebooks, report, cell_timeout, jobs)
        cases: dict[Path, list[ET.Element]] = {path.resolve(): [] for path in notebooks}
        for case in ET.parse(report).iter("testcase") if report.exists() else ():
            cases.setdefault(Path(case.get("file", "")).resolve(), []).append(case)
    return Validation(code, tuple(_validated(path, cases[path.resolve()]) for path in notebooks))


def _run_pytest(paths: list[Path], report: Path, cell_timeout: float, jobs: int) -> int:
    settings = report.parent / "pytest.ini"
    settings.write_text("[pytest]\njunit_family = xunit1\n", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"),
        *("-p", "workbench.nb.tolerance", "-p", "workbench.nb.validate"),
        *("-c", str(settings), f"--rootdir={Path.cwd()}"),
        *("--nbval", f"--nbval-kernel-name={KERNEL}", f"--nbval-cell-timeout={cell_timeout}"),
        f"--junit-xml={report}",
        *(str(path.parent.resolve() / path.name) for path in paths),
    ]
    env = {k: v for k, v in environment().items() if k != "PYTEST_ADDOPTS"}
    if jobs > 1:
        command += ["-n", str(jobs), "--dist", "loadfile"]
        # Models that share the cores would wait for each other's threads, spinning.
        env.setdefault("OMP_NUM_THREADS", "1")
    env["WORKBENCH_PROGRESS"] = "off"
    # Files that the notebooks write during validation are discarded.
    env[RUN_DIR] = str(report.parent)
    return subprocess.run(command, env=env, check=False).returncode


def _validated(path: Path, cases: list[ET.Element]) -> Validated:
    bad = (case.find("failure") is not None or case.find("error") is not None for case in cases)
    notes = (note for case in cases for note in case.iter("property"))
    died = next((int(note.get("value", "")) for note in notes if note.get("name") == _DIED), None)
    return Validated(path, len(cases), sum(bad), died)


def pytest_configure() -> None:
    """Make nbval use this module's kernels, and register one more tag."""
    nbval.plugin.RunningKernel = _Kernel
    nbval.plugin.metadata_tags[SKIP] = "skip"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give nbval's cell the class below, since nbval cannot be configured to use it."""
    if isinstance(item, IPyNbCell):
        item.__class__ = _Cell


class _DiedError(Exception):
    """The kernel has died."""


class _Kernel(RunningKernel):
    """Records its last request, the reply to it (empty if none), and where it died."""

    request = ""
    reply: dict[str, Any]
    died = ""

    def execute_cell_input(self, cell_input: str, allow_stdin: bool | None = None) -> str:
        self.reply = {}
        # With history, unlike nbval: else a semicolon hides no value, and `_` is empty.
        self.request = self.kc.execute(cell_input, allow_stdin=allow_stdin, stop_on_error=False)
        return self.request

    def get_message(self, stream: str, timeout: float | None = None) -> dict[str, Any]:
        end = time.monotonic() + (math.inf if timeout is None else timeout)
        while True:
            left = max(0.0, end - time.monotonic())
            try:
                message: dict[str, Any] = super().get_message(stream, min(left, _SLICE))
            except Empty:
                if not self.is_alive():
                    raise _DiedError from None
                if left <= _SLICE:
                    raise
            else:
                if stream == "shell":
                    self.reply = message["content"]
                return message


class _Cell(IPyNbCell):
    """A cell's final outputs, and the kernel's own report of how it ended."""

    clears: bool  # before the next output
    places: dict[str, list[int]]  # indexes of each display's outputs

    def runtest(self) -> None:
        kernel = self.parent.kernel
        self.clears, self.places = False, {}
        self.parent.get_kernel_message = self._message
        if not (self.options["skip"] or self.parent.timed_out or kernel.is_alive()):
            self._dead()
        try:
            super().runtest()
        except _DiedError:
            self._dead()
        self._check(kernel.reply)

    def _dead(self) -> None:
        kernel = self.parent.kernel
        if kernel.died:
            self.raise_cell_error(f"not run: the kernel died in {kernel.died}")
        kernel.died = self.name
        index = next(i for i, cell in enumerate(self.parent.nb.cells) if cell is self.cell)
        self.user_properties.append((_DIED, index))
        self.raise_cell_error("the kernel died")

    def _check(self, reply: dict[str, Any]) -> None:
        """Fail a cell that nbval passes if the kernel reported otherwise."""
        if not reply:
            self.raise_cell_error("it timed out")
        raised, meant = reply["status"] == "error", self.options["check_exception"]
        if raised and not meant:
            self.raise_cell_error(f"{reply['ename']}: {reply['evalue']}")
        if meant and not raised:
            self.raise_cell_error("it is marked as raising, but raised nothing")

    def _message(self, timeout: float | None = None, stream: str = "iopub") -> dict[str, Any]:
        """The next message for nbval."""
        kernel = self.parent.kernel
        while True:
            message: dict[str, Any] = kernel.get_message(stream, timeout)
            own = message["parent_header"].get("msg_id") == kernel.request
            if not (own and self._applied(message["msg_type"], message["content"])):
                return message

    def _applied(self, kind: str, content: dict[str, Any]) -> bool:
        """Apply a message to the outputs so far; returns whether that is its only effect."""
        if kind == "clear_output":
            self.clears = True
        if self.clears and (kind in _OUTPUTS or not content.get("wait", True)):
            self.test_outputs.clear()
            self.clears, self.places = False, {}
        if place := (content.get("transient") or {}).get("display_id"):
            shown = self.places.setdefault(place, [])
            for index in shown:
                self.test_outputs[index].update(data=content["data"], metadata=content["metadata"])
            if kind in _OUTPUTS:
                shown.append(len(self.test_outputs))
        return kind in {"clear_output", "update_display_data"}

    def compare_outputs(
        self, test: list[Any] | None, ref: list[Any] | None, skip_compare: Any = None
    ) -> bool:
        """Compare, including an error that the kernel only printed, as a run's copy has it."""
        reply, fresh = self.parent.kernel.reply, list(test or ())
        raised = reply.get("status") == "error" and self.options["check_exception"]
        if raised and not any("ename" in output for output in fresh):
            error = {"ename": reply["ename"], "evalue": reply["evalue"], "traceback": []}
            fresh.append(nbformat.v4.new_output("error", **error))  # type: ignore[no-untyped-call]
        same: bool = super().compare_outputs(fresh, ref, skip_compare)
        return same
