"""The child process: executes one notebook with papermill; its exit code says how it ended.

It is started by its path, so that it inherits nothing of the parent's state. Its order is a pickle
on stdin, which the parent then keeps open: when stdin closes, the parent has ended. papermill reads
and writes the copy and keeps its records. The kernel client differs from papermill's: it limits a
cell's output, records errors that IPython does not show, and lets a notebook end itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections import Counter
from queue import Empty
from typing import Any

if __name__ == "__main__":
    # A grammar of web addresses that nothing here needs and that takes 1 to 2 s to load.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

import nbformat
import psutil
from nbclient.exceptions import CellExecutionComplete, CellExecutionError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NotebookExecutionManager
from papermill.exceptions import PapermillExecutionError
from papermill.execute import (
    prepare_notebook_metadata,
    raise_for_execution_errors,
    remove_error_markers,
)
from papermill.iorw import load_notebook_node

from workbench.nb.execution import CUT, FAILED, INTERRUPTED, KILLED, OK, RAISED
from workbench.nb.notebook import SKIP

_ENDS = ("", "0", "None", "False")  # codes of a SystemExit that is not a failure
_GRACE = 10.0
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: processes that a notebook forks stay our children (Linux)
_LIMIT = 10 * 2**20  # maximum bytes of a cell's output: fits a picture, not an endless log
_MANY = 1000  # outputs
_REPLY_WAIT = 5.0  # seconds to wait for a reply after the end of a cell
new_output: Any = nbformat.v4.new_output


class Client(PapermillNotebookClient):
    """Executes the cells of a notebook, and stores their outputs in it."""

    def __init__(self, manager: Any, **options: Any) -> None:
        super().__init__(manager, **options)
        # By cell and destination of its output: bytes kept so far (at least); whether it is full.
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._full: dict[tuple[int, int], int] = {}
        self._ended: Any = None  # the message that a cell has ended
        self.on_cell_executed = _leave
        self.on_cell_error = _show

    def execute(self, **kwargs: Any) -> Any:
        """Run all cells on a new kernel."""
        self.reset_execution_trackers()
        with self.setup_kernel(**kwargs):
            self._replies = self.kc.shell_channel.get_msg
            self.kc.shell_channel.get_msg = self._reply
            # papermill asks at the end, when a kernel that has exited no longer answers.
            about = self.wait_for_reply(self.kc.kernel_info())
            self.nb.metadata["language_info"] = about["content"]["language_info"]
            self.papermill_execute_cells()
            self.set_widgets_metadata()
        return self.nb

    def execute_cell(self, cell: Any, cell_index: int, **more: Any) -> Any:
        """Run one cell; if the kernel dies, the copy says how."""
        try:
            return super().execute_cell(cell, cell_index, **more)
        except DeadKernelError:
            code = getattr(getattr(self.km.provisioner, "process", None), "returncode", None)
            error = {"ename": "DeadKernelError", "evalue": _death(code)}
            cell.outputs.append(new_output("error", **error, traceback=[_death(code)]))
            raise

    async def _reply(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109  # nbclient's
        """The next reply, checked for every second.

        Sending on a socket can hide an arrived message. Without the regular check, a cell that
        redraws an Output widget again and again never ends on a busy machine.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return await self._replies(timeout=max(0.0, min(1.0, end - time.monotonic())))
            except Empty:
                if self._ended and time.monotonic() - self._ended[0] > _REPLY_WAIT:
                    return _lost(self._ended[1])
                if time.monotonic() >= end:
                    raise

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """Record the end of a cell: if a kernel fails at an error, no reply follows."""
        self._ended = None
        try:
            return super().process_message(msg, cell, cell_index)
        except CellExecutionComplete:
            self._ended = time.monotonic(), {"cell": cell, "parent_header": msg["parent_header"]}
            raise

    def output(self, outs: Any, msg: Any, display_id: Any, cell_index: int) -> Any:
        """Store a message's output; consecutive parts of a stream become one."""
        if (msg := self._cut(outs, msg, cell_index)) is None:
            return None
        if msg["msg_type"] != "stream" or self.clear_before_next_output or self._widget(msg):
            return super().output(outs, msg, display_id, cell_index)
        # nbclient's own `coalesce_streams` takes hours for a line of a million characters.
        name, end = msg["content"]["name"], len(outs)
        while end and outs[end - 1]["output_type"] == "stream":
            end -= 1
            if outs[end]["name"] == name:
                outs[end]["text"] = _drawn(outs[end]["text"], msg["content"]["text"])
                return None
        if output := super().output(outs, msg, display_id, cell_index):
            output["text"] = _drawn("", output["text"])
        outs[end:] = sorted(outs[end:], key=lambda out: out["name"], reverse=True)
        return output

    def _widget(self, msg: Any) -> Any:
        """The Output widget that receives a message instead of the cell."""
        hooks = self.output_hook_stack[msg["parent_header"].get("msg_id")]
        return hooks[-1] if hooks else None

    def _cut(self, outs: Any, msg: Any, cell_index: int) -> Any:
        """The message, cut to the limit if necessary, or None. Cleared outputs do not count."""
        place = self._widget(msg) or self
        shown = [] if place.clear_before_next_output else getattr(place, "outputs", outs)
        size, key = _size(msg["content"]), (cell_index, id(place))
        if self._sizes[key] + size > _LIMIT and len(shown) != self._full.get(key):
            self._sizes[key] = sum(map(_size, shown))
        before = self._sizes[key]
        if before + size <= _LIMIT or msg["msg_type"] == "error":
            self._sizes[key] += size
            return msg
        was_cut = key in self._full and shown
        # With very many outputs, counting them each time would take hours.
        self._full[key] = len(shown) if len(shown) > _MANY else -1
        if was_cut:
            return None
        text = msg["content"].get("text", "")[: _LIMIT - before]
        self._sizes[key] += len(text)
        header = {**msg["header"], "msg_type": "stream"}
        text += f"\n{CUT}it is longer than {_LIMIT >> 20} MiB\n"
        cut = {"name": msg["content"].get("name", "stdout"), "text": text}
        return {**msg, "header": header, "msg_type": "stream", "content": cut}


def _size(content: Any) -> int:
    """The size of a message or an output."""
    parts = [content.get("text", ""), *content.get("data", {}).values()]
    return sum(len(str(part)) for part in parts)


def _death(code: int | None) -> str:
    """How a kernel died."""
    if not code or code == -signal.SIGKILL:  # killed by a user, or for lack of memory
        return "the kernel died"
    return f"the kernel died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


def _printed_errors(cell: Any) -> list[str]:
    """Errors that a cell shows as text; those of an exception group follow it."""
    printed = "".join(out.get("text", "") for out in cell.outputs)
    lines = [line.strip(" |+-") for line in printed.splitlines()]
    return [line for line in lines if re.match(r"[\w.]+: ", line)]


def _lost(ended: Any) -> Any:
    """A reply in place of the missing one, from the error that the cell shows."""
    named = _printed_errors(ended["cell"])
    error = {"ename": "NoReply", "evalue": named[-1] if named else "the kernel gave none"}
    content = {"status": "error", **error, "traceback": []}
    return {"parent_header": ended["parent_header"], "header": {}, "content": content}


def _drawn(before: str, text: str) -> str:
    """A stream with more text; a carriage return overwrites its line."""
    if "\r" not in text and not before.endswith("\r"):
        return before + text
    start = before.rfind("\n") + 1
    return before[:start] + "\n".join(map(_line, (before[start:] + text).split("\n")))


def _line(text: str) -> str:
    """The final text of a line; a return at its end does not overwrite anything yet."""
    shown, ends = text.rstrip("\r"), text.endswith("\r")
    return shown.rpartition("\r")[2] + "\r" * ends


def _leave(*, cell: Any, execute_reply: Any, **_: Any) -> None:
    """Handle `exit(code)` and `quit(code)` like `sys.exit`: they only request a regular end."""
    payload = execute_reply["content"].get("payload", ())
    request = next((one for one in payload if one.get("source") == "ask_exit"), None)
    if request is not None:
        code = request.get("keepkernel")  # ipykernel takes the argument for this
        plain = code is None or isinstance(code, bool)
        error = {"ename": "SystemExit", "evalue": "" if plain else str(code)}
        cell.outputs.append(new_output("error", **error, traceback=[]))
        raise CellExecutionError.from_cell_and_msg(cell, {**error, "traceback": []})


def _show(*, cell: Any, execute_reply: Any, **_: Any) -> None:
    """Record that a cell raised, and show errors that IPython only printed, as for a bad magic."""
    cell.metadata["papermill"][RAISED] = True
    if not any(out["output_type"] == "error" for out in cell.outputs):
        name, value = (execute_reply["content"].get(key, "") for key in ("ename", "evalue"))
        if name.endswith("ExceptionGroup"):
            leaves = [one for one in _printed_errors(cell) if "ExceptionGroup: " not in one]
            value = ": ".join([value, *filter(None, ["; ".join(leaves)])])
        error = {"ename": name or "Error", "evalue": value}
        # Not the reply's traceback, which belongs to an earlier error.
        cell.outputs.append(new_output("error", **error, traceback=[f"{name}: {value}"]))


def _execute(source: str, output: str, kernel: str) -> int:
    """Run the prepared notebook at `output`, in place; `source` is the original's path."""
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
        # Reading the outputs of a cell may take longer than running it.
        Client(manager, kernel_name=kernel, iopub_timeout=600).execute()
    finally:
        manager.notebook_complete()
    failed = [cell for cell in notebook.cells if cell.metadata.papermill["exception"]]
    ends = [out for cell in failed[-1:] for out in cell.outputs if out.get("ename") == "SystemExit"]
    if not failed or any(out.evalue in _ENDS for out in ends):
        return OK
    with contextlib.suppress(PapermillExecutionError):
        raise_for_execution_errors(notebook, output)  # marks the cell in the copy
    return FAILED


def _follow_parent() -> None:
    # os.read, not sys.stdin: a thread that holds stdin's lock at exit aborts the interpreter.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(_GRACE)
    _end_family()  # it hangs where no signal reaches it
    os._exit(INTERRUPTED)


def _end_family() -> None:
    """Kill the processes that the notebook has left running."""
    for left in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            left.kill()


def main() -> int:
    """Run the notebook of the order and return the exit code."""
    try:
        order = pickle.load(sys.stdin.buffer)
    except EOFError:  # there was no order
        return OK
    threading.Thread(target=_follow_parent, daemon=True).start()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)
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
