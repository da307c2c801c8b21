"""One notebook in one child process, and a reliable report of how it ended.

papermill's own record calls a crashed notebook completed. Here a run is ok if the kernel replied to
every cell that was sent, and only a cell that ends the notebook itself (`sys.exit(0)`, `exit()`)
stopped the run. The kernel's reply counts, not what a cell shows. A cell tagged `skip-execution` is
not sent, one tagged `raises-exception` may raise.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from workbench.errors import NotebookError
from workbench.files import write_whole
from workbench.lazy import psutil
from workbench.machine import checkout
from workbench.nb.literals import injected
from workbench.nb.notebook import PUT_IN, RAISES, Cell, joined, load, prepared

KERNEL = "workbench"
RUN_DIR = "WORKBENCH_RUN_DIR"
TIMEOUT = 900.0
CELL_TIMEOUT = 300.0
_GRACE = 10.0  # nbclient waits 5 s for a kernel to exit by itself
_WAIT = 3600.0
# The child's exit codes, and its marks in the copy.
OK, FAILED, KILLED, INTERRUPTED = 0, 10, 11, 12
RAISED = "raised"  # in papermill's metadata of a cell that raised, allowed to or not
CUT = "… output cut: "

Status = Literal["ok", "failed", "killed", "timeout"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one execution ended; `executed` of `cells` code cells ran without a fault.

    `detail` is the reason for any status other than ok, or a note on an ok run.
    """

    status: Status
    seconds: float
    cells: int
    executed: int
    detail: str


def require_kernel(name: str | None = None) -> None:
    """Check that the kernel (`workbench` by default) is installed.

    Raises:
        NotebookError: No kernel has this name.
    """
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    name = name or KERNEL
    manager = KernelSpecManager()
    try:
        manager.get_kernel_spec(name)
    except NoSuchKernel as error:
        remedy = f"there are {', '.join(sorted(manager.find_kernel_specs())) or 'none'}"
        if name == KERNEL:
            again = f"python -m ipykernel install --sys-prefix --name {KERNEL}"
            remedy = f"run `{'make setup' if checkout() else again}`"
        raise NotebookError(f"no Jupyter kernel {name!r}; {remedy}") from error


def execute(source: Path, output: Path, **options: Any) -> Outcome:
    """Execute a notebook and wait for its end; takes the options of `Execution`."""
    run = Execution(source, output, **options)
    try:
        while (outcome := run.poll(wait=_WAIT)) is None:
            pass
    except BaseException:
        run.end()
        raise
    return outcome


class Child:
    """A fresh interpreter that imports what it needs, and then waits for the order to run."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # see close
        # A new session: Ctrl-C reaches only the parent, which then ends the child properly.
        # -P: modules are imported only from the environment's folders.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("client.py"))],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def send(self, order: Mapping[str, Any]) -> None:
        """Send the order to run."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(pickle.dumps(order))
            self.process.stdin.flush()

    def last_words(self) -> str:
        """The last error that was printed, else the last line."""
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().decode(errors="replace").split("\n")]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return next((one for one in [*errors[-1:], *reversed(lines)] if one), "")

    def close(self) -> None:
        """Release a child that has ended, or end one that has no order yet."""
        self.log.close()
        with contextlib.suppress(OSError):  # data that it no longer read
            assert self.process.stdin is not None
            self.process.stdin.close()
        self.process.wait()


class Execution:
    """A notebook that runs in a fresh interpreter, in the notebook's own folder.

    Args:
        source: The notebook.
        output: The path of the executed copy; an existing file is replaced.
        run_dir: Where the notebook writes; it is in `WORKBENCH_RUN_DIR`.
        folder: Where it runs, if `source` is a copy of a notebook from there.
        parameters: Values for the parameters cell, already checked.
        timeout: Seconds for the whole notebook.
        kernel: The Jupyter kernel's name.
        variables: Additional environment variables.
        ready: A child that is already waiting; a new one by default.

    Raises:
        NotebookError: A value cannot be written into the notebook, and nothing has run.
    """

    def __init__(
        self,
        source: Path,
        output: Path,
        *,
        run_dir: Path,
        folder: Path | None = None,
        parameters: Mapping[str, object] | None = None,
        timeout: float = TIMEOUT,
        kernel: str | None = None,
        variables: Mapping[str, str] | None = None,
        ready: Child | None = None,
    ) -> None:
        self._cells, self._output = _own(_cells(source)), output.resolve()
        folder = (folder or source.parent).resolve()
        write_whole(self._output, prepared(source, injected(parameters) if parameters else ""))
        # papermill stores the paths in the notebook.
        paths = [os.path.relpath(path.resolve(), folder) for path in (source, output)]
        own = {RUN_DIR: str(run_dir.absolute()), "WORKBENCH_PROGRESS": "off"}
        self._started = time.monotonic()
        self._deadline = self._started + timeout
        self._child = ready or Child()
        self._process = self._child.process
        self._child.send(
            {
                "notebook": (*paths, kernel or KERNEL),
                "folder": str(folder),
                "variables": {**environment(), **own, **(variables or {})},
            }
        )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def poll(self, wait: float = 0.0) -> Outcome | None:
        """The outcome, or None if it has not ended within `wait` seconds; ends it at a time-out."""
        left = self._deadline - time.monotonic()
        try:
            code: int | None = self._process.wait(max(0.0, min(wait, left)))
        except subprocess.TimeoutExpired:
            if left > wait:
                return None
            _end(self._process)
            code = None
        seconds = round(time.monotonic() - self._started, 2)
        last_words = self._child.last_words()
        self._child.close()
        return _judge(code, self._cells, _cells(self._output), seconds, last_words)

    def end(self) -> None:
        """End it now and remove the copy, since a partial one would look complete."""
        if self._process.poll() is None:
            _end(self._process)
        self._child.close()
        self._output.unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """This process's variables, with paths that are also valid in another folder."""
    variables = dict(os.environ)
    for name in {"PYTHONPATH", "WORKBENCH_DATA", "WORKBENCH_CACHE", "WORKBENCH_STORE"} & {
        *variables
    }:
        parts = variables[name].split(os.pathsep) if variables[name] else []
        variables[name] = os.pathsep.join(str(Path(part).absolute()) for part in parts)
    return variables


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt the child, which shuts its kernel down; then kill any remaining processes."""
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


def _judge(
    code: int | None, own: Sequence[Cell], copy: Sequence[Cell], seconds: float, last_words: str
) -> Outcome:
    """The outcome, from the child's exit code (None: it timed out) and the executed copy.

    `own` are the notebook's cells as they were at the start; they are counted and numbered.
    """
    # The copy has the same cells in the same order; papermill's additions are left out of both.
    pairs = zip(own, _own(copy), strict=False)
    sent = [replace(cell, index=place.index) for place, cell in pairs if cell.runs]
    end = next((n for n, cell in enumerate(sent) if code == OK and _stopped(cell)), None)
    due = sent if end is None else sent[: end + 1]
    done = sum(_succeeded(cell, code) for cell in due)
    total = sum(cell.runs for cell in own)
    whole = done == len(due) and (end is not None or len(sent) == total)
    status: Status = "ok" if code == OK and whole else "failed"
    if code is None:
        status = "timeout"
    elif code == KILLED or code < 0:
        status = "killed"
    detail = "; ".join(_notes(due)) if status == "ok" else _reason(status, code, due, last_words)
    if wrong := [error for cell in copy if PUT_IN & {*cell.tags} for error in cell.errors]:
        detail = f"the injected parameters: {_named(wrong[0])}"
    return Outcome(status, seconds, total, done, detail)


def _cells(path: Path) -> Sequence[Cell]:
    try:
        return load(path).cells
    except NotebookError:
        # Nothing was written, or the writer was killed.
        return ()


def _own(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if not PUT_IN & {*cell.tags}]


def _succeeded(cell: Cell, code: int | None) -> bool:
    # A cell has its count when it begins; only a finished one has the kernel's reply.
    replied = "shell.execute_reply" in cell.metadata.get("execution", ())
    return replied and cell.count is not None and (code == OK or not _stopped(cell))


def _stopped(cell: Cell) -> bool:
    """Whether the run stopped here: by an error or, if the child exited normally, an exit."""
    return bool(cell.metadata.get("papermill", {}).get("exception"))


def _notes(cells: list[Cell]) -> Iterator[str]:
    for cell in cells:
        raised = cell.metadata.get("papermill", {}).get(RAISED)
        if _stopped(cell):
            yield f"cell {cell.index}: ended the notebook, without a failure"
        elif RAISES in cell.tags and not raised:
            yield f"cell {cell.index}: is tagged {RAISES}, but raised nothing"
        elif cell.errors and not raised:
            yield f"cell {cell.index}: shows {_named(cell.errors[0])}, and the kernel ran on"
        if any(CUT in joined(one.get("text", "")) for one in cell.outputs):
            yield f"cell {cell.index}: its output is cut"


def _reason(status: Status, code: int | None, cells: list[Cell], last_words: str) -> str:
    if (broken := next((cell for cell in cells if not _succeeded(cell, code)), None)) is None:
        return last_words or "not all of its cells ended"
    if status == "timeout":
        why = "still running"
    elif status == "killed":
        why = broken.errors[-1]["evalue"] if broken.errors else "the kernel died"
    elif broken.errors:
        why = _named(broken.errors[-1])
    elif last_words:
        return last_words
    else:
        why = "not run"
    return f"cell {broken.index}: {why}"


def _named(error: Mapping[str, Any]) -> str:
    message = error["evalue"].partition("\n")[0]
    return f"{error['ename']}: {message}" if message else str(error["ename"])
