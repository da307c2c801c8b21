"""One notebook in one child process, and the truth about how it ended.

papermill's own record calls a crashed notebook completed, so the verdict here rests on the exit
code and on every cell that was sent having a count, the kernel's reply and no error.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from workbench.errors import NotebookError
from workbench.nb import child
from workbench.nb.lint import KERNEL
from workbench.nb.notebook import Cell, load

if TYPE_CHECKING:
    from collections.abc import Mapping

RUN_DIR = "WORKBENCH_RUN_DIR"
TIMEOUT = 900.0
# nbclient gives a kernel 5 s to leave by itself.
_GRACE = 10.0
PATIENCE = 3600.0
INJECTED_TAG = "injected-parameters"
_PUT_IN = {INJECTED_TAG, "papermill-error-cell-tag"}

Status = Literal["ok", "failed", "killed", "timeout"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one execution ended; `executed` of `cells` code cells ran without an error."""

    status: Status
    seconds: float
    cells: int
    executed: int
    detail: str


def require_kernel(name: str | None = None) -> None:
    """Refuse to begin where the kernel (`workbench` by default) is not installed.

    Raises:
        NotebookError: No kernel of that name is known.
    """
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    name = name or KERNEL
    manager = KernelSpecManager()
    try:
        manager.get_kernel_spec(name)
    except NoSuchKernel as error:
        remedy = f"there are {', '.join(sorted(manager.find_kernel_specs())) or 'none'}"
        if name == KERNEL:
            remedy = "run `make setup`"
        raise NotebookError(f"no Jupyter kernel {name!r}; {remedy}") from error


def execute(
    source: Path,
    output: Path,
    *,
    run_dir: Path,
    parameters: Mapping[str, object] | None = None,
    timeout: float = TIMEOUT,
) -> Outcome:
    """Execute a notebook in a fresh interpreter, in the caller's folder; as `Execution`."""
    run = Execution(source, output, run_dir=run_dir, parameters=parameters, timeout=timeout)
    try:
        while (outcome := run.poll(wait=PATIENCE)) is None:
            pass
    except BaseException:
        run.end()
        raise
    return outcome


class Child:
    """A fresh interpreter that imports what it needs, and then waits for the order to run."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # see close
        # A session of its own: Ctrl-C reaches the parent only, which then ends the child in order.
        # -P: the folder of child.py must not become the place where modules are looked for.
        self.process = subprocess.Popen(
            [sys.executable, "-P", child.__file__],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def send(self, order: Mapping[str, Any]) -> None:
        """Have it begin."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(pickle.dumps(order))
            self.process.stdin.flush()

    def close(self) -> None:
        """Let go of it when it has ended, or before it has got an order."""
        self.log.close()
        with contextlib.suppress(OSError):  # what it did not read any more
            assert self.process.stdin is not None
            self.process.stdin.close()
        self.process.wait()


class Execution:
    """A notebook that runs in a fresh interpreter, in the caller's folder.

    Args:
        source: The notebook.
        output: Where the executed copy goes; what lay there is removed first.
        run_dir: Where the notebook writes, told to it as `WORKBENCH_RUN_DIR`.
        parameters: Values for the parameters cell, checked already.
        timeout: Seconds for the whole notebook.
        kernel: The Jupyter kernel's name.
        variables: More environment variables for it.
        ready: A child that waits already; a new one by default.
    """

    def __init__(
        self,
        source: Path,
        output: Path,
        *,
        run_dir: Path,
        parameters: Mapping[str, object] | None = None,
        timeout: float = TIMEOUT,
        kernel: str | None = None,
        variables: Mapping[str, str] | None = None,
        ready: Child | None = None,
    ) -> None:
        self._source, self._output = source, output
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        notebook = {
            "input_path": _relative(source),
            "output_path": _relative(output),
            "parameters": dict(parameters or {}),
            "kernel_name": kernel or KERNEL,
            # Else a notebook without metadata, as an editor may save it, takes no parameters.
            "language": "python",
        }
        own = {RUN_DIR: str(run_dir), "WORKBENCH_PROGRESS": "off"}
        told = {**os.environ, **own, **(variables or {})}
        self._started = time.monotonic()
        self._deadline = self._started + timeout
        self._child = ready or Child()
        self._process = self._child.process
        self._child.send({"notebook": notebook, "folder": str(Path.cwd()), "variables": told})

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def poll(self, wait: float = 0.0) -> Outcome | None:
        """How it ended, or None if it has not within `wait` seconds; its time up, it is ended."""
        left = self._deadline - time.monotonic()
        try:
            code: int | None = self._process.wait(max(0.0, min(wait, left)))
        except subprocess.TimeoutExpired:
            if left > wait:
                return None
            _end(self._process)
            code = None
        seconds = round(time.monotonic() - self._started, 2)
        said = _last_line(self._child.log)
        self._child.close()
        return _judge(code, self._source, self._output, seconds, said)

    def end(self) -> None:
        """End it now; half a notebook would pass for a whole one, so that the copy goes too."""
        if self._process.poll() is None:
            _end(self._process)
        self._child.close()
        self._output.unlink(missing_ok=True)


def _relative(path: Path) -> str:
    # papermill stores the paths in the notebook, and reads braces in them as fields.
    return os.path.relpath(path).replace("{", "{{").replace("}", "}}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt the child, which shuts its kernel down; kill whatever is left of both."""
    psutil: Any = import_module("psutil")
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        family = []
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
    for left in family:
        with contextlib.suppress(psutil.Error):
            left.kill()
    process.wait()
    psutil.wait_procs(family, timeout=_GRACE)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _judge(code: int | None, source: Path, output: Path, seconds: float, said: str) -> Outcome:
    sent = [cell for cell in _own_cells(output) if cell.runs]
    done = sum(_succeeded(cell) for cell in sent)
    total = len(load(source).code)
    status = _status(code, whole=done == len(sent) == total)
    return Outcome(status, seconds, total, done, _detail(status, sent, said))


def _own_cells(output: Path) -> list[Cell]:
    """The copy's cells, numbered as in the source: without those that papermill put in."""
    try:
        cells = load(output).cells
    except NotebookError:
        # Nothing was written, or the writer was killed half way.
        return []
    own = [cell for cell in cells if not _PUT_IN & set(cell.tags)]
    return [replace(cell, index=index) for index, cell in enumerate(own)]


def _status(code: int | None, *, whole: bool) -> Status:
    if code is None:
        return "timeout"
    if code == child.KILLED or code < 0:
        return "killed"
    return "ok" if code == child.OK and whole else "failed"


def _succeeded(cell: Cell) -> bool:
    # A cell has its count as soon as it begins; only one that ended has the kernel's reply.
    replied = "shell.execute_reply" in cell.metadata.get("execution", ())
    return replied and cell.count is not None and not _errors(cell)


def _errors(cell: Cell) -> list[dict[str, Any]]:
    return [output for output in cell.outputs if output["output_type"] == "error"]


def _detail(status: Status, cells: list[Cell], said: str) -> str:
    if status == "ok":
        return ""
    broken = next((cell for cell in cells if not _succeeded(cell)), None)
    if broken is None:
        return said or "its cells did not all come to an end"
    if status != "failed":
        return (
            f"cell {broken.index}: {'the kernel died' if status == 'killed' else 'still running'}"
        )
    for error in _errors(broken):
        message = f"{error['ename']}: {error['evalue']}".partition("\n")[0]
        return f"cell {broken.index}: {message}"
    return said or f"cell {broken.index}: not run"
