"""One notebook in one child process, and the truth about how it ended.

papermill's own record calls a crashed notebook completed: see `verdict` for ours.
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
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from workbench.errors import NotebookError
from workbench.files import write_whole
from workbench.nb import child
from workbench.nb.injected import prepared
from workbench.nb.verdict import Outcome, judge, own_cells

if TYPE_CHECKING:
    from collections.abc import Mapping

KERNEL = "workbench"
RUN_DIR = "WORKBENCH_RUN_DIR"
TIMEOUT = 900.0
CELL_TIMEOUT = 300.0
# nbclient gives a kernel 5 s to leave by itself.
_GRACE = 10.0
PATIENCE = 3600.0


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


def execute(source: Path, output: Path, **options: Any) -> Outcome:
    """Execute a notebook and wait for its end; as `Execution`, which also takes the options."""
    run = Execution(source, output, **options)
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
    """A notebook that runs in a fresh interpreter, in the notebook's own folder.

    Args:
        source: The notebook.
        output: Where the executed copy goes; what lay there is replaced.
        run_dir: Where the notebook writes, told to it as `WORKBENCH_RUN_DIR`.
        folder: Where it runs, if `source` is a copy of a notebook from there.
        parameters: Values for the parameters cell, checked already.
        timeout: Seconds for the whole notebook.
        kernel: The Jupyter kernel's name.
        variables: More environment variables for it.
        ready: A child that waits already; a new one by default.

    Raises:
        NotebookError: A value cannot be written into the notebook; then nothing has run.
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
        self._cells, self._output = own_cells(source), output.resolve()
        folder = (folder or source.parent).resolve()
        write_whole(self._output, prepared(source, parameters or {}))
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
        said = _last_words(self._child.log)
        self._child.close()
        return judge(code, self._cells, self._output, seconds, said)

    def end(self) -> None:
        """End it now; half a notebook would pass for a whole one, so that the copy goes too."""
        if self._process.poll() is None:
            _end(self._process)
        self._child.close()
        self._output.unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """This process's variables, with paths that hold in another folder too."""
    found = dict(os.environ)
    for name in {"PYTHONPATH", "WORKBENCH_DATA", "WORKBENCH_CACHE"} & {*found}:
        parts = found[name].split(os.pathsep) if found[name] else []
        found[name] = os.pathsep.join(str(Path(part).absolute()) for part in parts)
    return found


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


def _last_words(log: IO[bytes]) -> str:
    """The last error that was printed, else the last line."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").split("\n")]
    found = [line for line in lines if line]
    errors = [line for line in found if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return [*found[-1:], *errors][-1] if found else ""
