"""The child process: execute one notebook through papermill; the exit code says how it ended.

It is started by its path and stands alone, so that nothing of the parent's state reaches it. The
order comes as a pickle on stdin, which the parent then holds open: its end is the parent's end.
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
from collections import Counter
from typing import Any, ClassVar

OK = 0
FAILED = 10
KILLED = 11
INTERRUPTED = 12

LIMIT = 10 * 2**20  # bytes of a cell's output: a picture fits, an endless log does not
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


def _tidy(client: type[Any]) -> type[Any]:
    """The client, with an end to what it keeps of a cell's output, and a stream in one piece.

    nbclient's own `coalesce_streams` takes hours over a line of a million characters.
    """

    class Tidy(client):
        _sizes: ClassVar[Counter[int]] = Counter()

        def output(self, outs: Any, msg: Any, display_id: Any, cell_index: int) -> Any:
            if (msg := self._cut(msg, cell_index)) is None:
                return None
            if msg["msg_type"] != "stream" or self.clear_before_next_output:
                return super().output(outs, msg, display_id, cell_index)
            name, end = msg["content"]["name"], len(outs)
            while end and outs[end - 1]["output_type"] == "stream":
                end -= 1
                if outs[end]["name"] == name:
                    outs[end]["text"] += msg["content"]["text"]
                    return None
            made = super().output(outs, msg, display_id, cell_index)
            outs[end:] = sorted(outs[end:], key=lambda out: out["name"], reverse=True)
            return made

        def _cut(self, msg: Any, cell_index: int) -> Any:
            content, before = msg["content"], self._sizes[cell_index]
            parts = [content.get("text", ""), *content.get("data", {}).values()]
            self._sizes[cell_index] += sum(len(str(part)) for part in parts)
            if self._sizes[cell_index] <= LIMIT or msg["msg_type"] == "error":
                return msg
            if before > LIMIT:
                return None
            said = f"\n… output cut: it is longer than {LIMIT >> 20} MiB\n"
            text = content.get("text", "")[: LIMIT - before] + said
            header = {**msg["header"], "msg_type": "stream"}
            cut = {"name": content.get("name", "stdout"), "text": text}
            return {**msg, "header": header, "msg_type": "stream", "content": cut}

    return Tidy


def main() -> int:
    """Run the ordered notebook and return the exit code."""
    # A check of web addresses that nothing here needs, and that takes 1 to 2 s to be loaded.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    from nbclient.exceptions import DeadKernelError
    from papermill import engines
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook

    try:
        order = pickle.load(sys.stdin.buffer)
    except EOFError:  # it was not needed
        return OK
    threading.Thread(target=_follow_parent, daemon=True).start()
    _keep_orphans()
    os.chdir(order["folder"])
    os.environ.update(order["variables"])
    # papermill has no other place for it.
    engines.PapermillNotebookClient = _tidy(engines.PapermillNotebookClient)
    try:
        execute_notebook(**order["notebook"], progress_bar=False)
    except PapermillExecutionError:
        return FAILED
    except DeadKernelError:
        return KILLED
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        _end_family()
    return OK


if __name__ == "__main__":
    sys.exit(main())
