"""papermill's client for a kernel, with what it and nbclient do not do right.

There is an end to a cell's output, errors that IPython does not show are in the copy, and a
notebook may end itself.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from queue import Empty
from typing import Any

import nbformat
from nbclient.exceptions import CellExecutionComplete, CellExecutionError
from papermill.clientwrap import PapermillNotebookClient

from workbench.nb.child import CUT, RAISED

LIMIT = 10 * 2**20  # bytes kept of a cell's output: a picture fits, an endless log does not
MANY = 1000  # outputs
PATIENCE = 5.0  # seconds for a reply to follow the end of a cell
new_output: Any = nbformat.v4.new_output


class Client(PapermillNotebookClient):
    """Executes the cells of a notebook, and puts what they show into it."""

    def __init__(self, manager: Any, **options: Any) -> None:
        super().__init__(manager, **options)
        # By cell and where its output goes: how much that has kept, or more; whether it is full.
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._full: dict[tuple[int, int], int] = {}
        self._ended: Any = None  # the message that a cell is over
        self.on_cell_executed = _leave
        self.on_cell_error = _show

    def execute(self, **kwargs: Any) -> Any:
        """Run all cells on a new kernel."""
        self.reset_execution_trackers()
        with self.setup_kernel(**kwargs):
            self._replies, self.kc.shell_channel.get_msg = (
                self.kc.shell_channel.get_msg,
                self._reply,
            )
            # papermill asks at the end, where a kernel that was left does not answer any more.
            about = self.wait_for_reply(self.kc.kernel_info())
            self.nb.metadata["language_info"] = about["content"]["language_info"]
            self.papermill_execute_cells()
            self.set_widgets_metadata()
        return self.nb

    async def _reply(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109  # nbclient's
        """The next reply, looked for every second.

        What is sent on a socket can hide that something has arrived: without, a cell whose Output
        widget is drawn again and again never ends on a busy machine.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return await self._replies(timeout=max(0.0, min(1.0, end - time.monotonic())))
            except Empty:
                if self._ended and time.monotonic() - self._ended[0] > PATIENCE:
                    return _lost(self._ended[1])
                if time.monotonic() >= end:
                    raise

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """Note when a cell is over: where a kernel fails at an error, no reply follows."""
        self._ended = None
        try:
            return super().process_message(msg, cell, cell_index)
        except CellExecutionComplete:
            self._ended = time.monotonic(), {"cell": cell, "parent_header": msg["parent_header"]}
            raise

    def output(self, outs: Any, msg: Any, display_id: Any, cell_index: int) -> Any:
        """Keep what a message shows, a stream in one piece."""
        if (msg := self._cut(outs, msg, cell_index)) is None:
            return None
        if msg["msg_type"] != "stream" or self.clear_before_next_output or self._widget(msg):
            return super().output(outs, msg, display_id, cell_index)
        # nbclient's own `coalesce_streams` takes hours over a line of a million characters.
        name, end = msg["content"]["name"], len(outs)
        while end and outs[end - 1]["output_type"] == "stream":
            end -= 1
            if outs[end]["name"] == name:
                outs[end]["text"] = _drawn(outs[end]["text"], msg["content"]["text"])
                return None
        made = super().output(outs, msg, display_id, cell_index)
        if made:
            made["text"] = _drawn("", made["text"])
        outs[end:] = sorted(outs[end:], key=lambda out: out["name"], reverse=True)
        return made

    def _widget(self, msg: Any) -> Any:
        """The Output widget that takes a message instead of the cell."""
        hooks = self.output_hook_stack[msg["parent_header"].get("msg_id")]
        return hooks[-1] if hooks else None

    def _cut(self, outs: Any, msg: Any, cell_index: int) -> Any:
        """The message, or what fits of it, or None. What was drawn and cleared does not count."""
        place = self._widget(msg) or self
        kept = [] if place.clear_before_next_output else getattr(place, "outputs", outs)
        size, mine = _size(msg["content"]), (cell_index, id(place))
        if self._sizes[mine] + size > LIMIT and len(kept) != self._full.get(mine):
            self._sizes[mine] = sum(map(_size, kept))
        before = self._sizes[mine]
        if before + size <= LIMIT or msg["msg_type"] == "error":
            self._sizes[mine] += size
            return msg
        said = mine in self._full and kept
        # Of very many outputs none becomes shorter, and to count them each time would take hours.
        self._full[mine] = len(kept) if len(kept) > MANY else -1
        if said:
            return None
        text = msg["content"].get("text", "")[: LIMIT - before]
        self._sizes[mine] += len(text)
        header = {**msg["header"], "msg_type": "stream"}
        text += f"\n{CUT}it is longer than {LIMIT >> 20} MiB\n"
        cut = {"name": msg["content"].get("name", "stdout"), "text": text}
        return {**msg, "header": header, "msg_type": "stream", "content": cut}


def _size(content: Any) -> int:
    """Of a message or an output."""
    parts = [content.get("text", ""), *content.get("data", {}).values()]
    return sum(len(str(part)) for part in parts)


def _lost(ended: Any) -> Any:
    """The reply that was to come, made of what the cell shows of its error."""
    printed = "".join(out.get("text", "") for out in ended["cell"].outputs)
    lines = [line.strip(" |+-") for line in printed.splitlines()]
    named = [line for line in lines if re.match(r"[\w.]+: ", line)]
    error = {"ename": "NoReply", "evalue": named[-1] if named else "the kernel gave none"}
    content = {"status": "error", **error, "traceback": []}
    return {"parent_header": ended["parent_header"], "header": {}, "content": content}


def _drawn(before: str, text: str) -> str:
    """A stream with more text, in which a carriage return begins its line anew."""
    if "\r" not in text and not before.endswith("\r"):
        return before + text
    start = before.rfind("\n") + 1
    return before[:start] + "\n".join(map(_line, (before[start:] + text).split("\n")))


def _line(text: str) -> str:
    """What a line shows in the end; a return at its end has nothing to begin yet."""
    shown, ends = text.rstrip("\r"), text.endswith("\r")
    return shown.rpartition("\r")[2] + "\r" * ends


def _leave(*, cell: Any, execute_reply: Any, **_: Any) -> None:
    """`exit(code)` and `quit(code)` ask for the end without an error; it is that of `sys.exit`."""
    payload = execute_reply["content"].get("payload", ())
    asked = next((one for one in payload if one.get("source") == "ask_exit"), None)
    if asked is not None:
        code = asked.get("keepkernel")  # which is what ipykernel takes the argument for
        plain = code is None or isinstance(code, bool)
        error = {"ename": "SystemExit", "evalue": "" if plain else str(code)}
        cell.outputs.append(new_output("error", **error, traceback=[]))
        raise CellExecutionError.from_cell_and_msg(cell, {**error, "traceback": []})


def _show(*, cell: Any, execute_reply: Any, **_: Any) -> None:
    """Note that a cell raised, and show what IPython has only printed, as of a misspelt magic."""
    cell.metadata["papermill"][RAISED] = True
    if not any(out["output_type"] == "error" for out in cell.outputs):
        content = execute_reply["content"]
        error = {"ename": content.get("ename", "Error"), "evalue": content.get("evalue", "")}
        cell.outputs.append(new_output("error", **error, traceback=content.get("traceback", [])))
