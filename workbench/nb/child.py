"""The child process: execute one notebook with papermill; the exit code says how it ended.

It is started by its path, so that nothing of the parent's state reaches it. The order comes as a
pickle on stdin, which the parent then holds open: its end is the parent's end. papermill reads and
writes the copy and keeps its records; the cells are executed by `client`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import threading
import time
from typing import Any

OK = 0
FAILED = 10
KILLED = 11
INTERRUPTED = 12

ENDS = ("", "0", "None", "False")  # codes of a SystemExit that is no failure
RAISED = "raised"  # in papermill's metadata of a cell that raised, whether it may or not
CUT = "… output cut: "
_GRACE = 10.0
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


def _follow_parent() -> None:
    # os.read, not sys.stdin: a thread that holds stdin's lock at exit aborts the interpreter.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(_GRACE)
    _end_family()  # it is stuck where no signal reaches it
    os._exit(INTERRUPTED)


def _keep_orphans() -> None:
    """What a notebook forks stays a child of ours when its parent ends (on Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)


def _end_family() -> None:
    """Kill what the notebook has left running."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    for left in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            left.kill()


def _execute(source: str, output: str, kernel: str) -> int:
    """Run the prepared notebook at `output`, in place; `source` is where it comes from."""
    from papermill.engines import NotebookExecutionManager
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import (
        prepare_notebook_metadata,
        raise_for_execution_errors,
        remove_error_markers,
    )
    from papermill.iorw import load_notebook_node

    from workbench.nb.client import Client
    from workbench.nb.notebook import SKIP

    notebook = prepare_notebook_metadata(load_notebook_node(output), source, output)
    notebook = remove_error_markers(notebook)
    stored = [
        (cell, cell.outputs, cell.execution_count)
        for cell in notebook.cells
        if cell.cell_type == "code" and SKIP in cell.metadata.tags
    ]
    manager = NotebookExecutionManager(notebook, output_path=output, progress_bar=False)
    manager.notebook_start()
    for cell, outputs, count in stored:
        cell.outputs, cell.execution_count = outputs, count
    try:
        # The outputs of a cell may take longer to be read than it took to run.
        Client(manager, kernel_name=kernel, iopub_timeout=600).execute()
    finally:
        manager.notebook_complete()
    failed = [cell for cell in notebook.cells if cell.metadata.papermill["exception"]]
    if not failed or _is_end(failed[-1]):
        return OK
    with contextlib.suppress(PapermillExecutionError):
        raise_for_execution_errors(notebook, output)  # marks the place in the copy
    return FAILED


def _is_end(cell: Any) -> bool:
    """Whether a cell has ended the notebook as `sys.exit(0)` does."""
    errors = [out for out in cell.outputs if out.output_type == "error"]
    return any(out.ename == "SystemExit" and out.evalue in ENDS for out in errors)


def main() -> int:
    """Run the ordered notebook and return the exit code."""
    # A check of web addresses that nothing here needs, and that takes 1 to 2 s to be loaded.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    import papermill.execute  # noqa: F401  # while there is no order yet
    from nbclient.exceptions import DeadKernelError

    try:
        order = pickle.load(sys.stdin.buffer)
    except EOFError:  # it was not needed
        return OK
    threading.Thread(target=_follow_parent, daemon=True).start()
    _keep_orphans()
    os.chdir(order["folder"])
    os.environ.update(order["variables"])
    try:
        return _execute(*order["notebook"])
    except DeadKernelError:
        return KILLED
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        _end_family()


if __name__ == "__main__":
    sys.exit(main())
