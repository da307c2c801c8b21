"""Whether two mathematical expressions are the same, by Math-Verify in a process of its own.

Math-Verify drops what it does not know, `18+?` would be 18 to it: `notation` sees to that.
Sympy can run for ever on a short line, so the process has a time limit and a new one is started
after it; an expression that took too long once is not tried again. It is a plain child, not one
of `multiprocessing`: that would run the caller's script again (spawn), or copy its threads and GPU
handles (fork).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from workbench.answers.notation import comparable, latex
from workbench.errors import WorkbenchError

__all__ = ["LONGEST", "same_expression"]

SECONDS = 1.5
"""For a question; half as long again to find out which of two expressions is to blame."""
GRACE = 5.0
"""Seconds more after which a worker that says nothing, a stopped one for example, is replaced."""
STARTUP = 60.0
KEPT = 1024
"""Expressions that took too long which are remembered."""
LONGEST = 400
"""Characters of an expression that is still looked at."""


class _Worker:
    """The process, started when it is first needed; one question at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.hopeless: dict[str | tuple[str, str], None] = {}

    def ask(self, first: str, second: str) -> bool | None:
        with self.lock:
            pair = (first, second)
            if not self.hopeless.keys().isdisjoint((*pair, pair)):
                return None
            reply = self.reply(*pair, SECONDS)
            if not reply:
                # Beside a number a harmless one is done in no time. With none to blame the worker
                # was stopped, perhaps, so the pair is asked about once more.
                slow = next((one for one in pair if not self.reply(one, "0", SECONDS / 2)), None)
                reply = "" if slow else self.reply(*pair, SECONDS)
                if not reply:
                    self.hopeless[slow or pair] = None
                    for known in list(self.hopeless)[:-KEPT]:
                        del self.hopeless[known]
            return json.loads(reply) if reply else None

    def reply(self, first: str, second: str, seconds: float) -> str:
        """A line of JSON, "" if it took too long."""
        try:
            process = self.ready()
            assert process.stdin
            process.stdin.write(json.dumps([seconds, first, second]) + "\n")
            process.stdin.flush()
            line = _line(process, seconds + GRACE)
        except BrokenPipeError:
            line = ""
        except BaseException:  # Ctrl-C: the reply would be taken for that of the next question
            self.stop()
            raise
        if not line:
            self.stop()
        return line

    def ready(self) -> subprocess.Popen[str]:
        if self.process and self.process.poll() is None:
            return self.process
        self.stop()
        self.process = process = subprocess.Popen(
            # -P: the modules beside the worker must not hide those of the standard library.
            [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for its owner
        )
        word = json.loads(_line(process, STARTUP) or '"it died"')
        if word != "ready":
            raise WorkbenchError(
                f"expressions cannot be compared, no worker starts: {word}; "
                f"{sys.executable} needs the package math-verify"
            )
        return process

    def stop(self) -> None:
        process, self.process = self.process, None
        if process:
            process.kill()
            process.wait()
            for pipe in filter(None, (process.stdin, process.stdout)):
                with suppress(OSError):  # a question was still in it
                    pipe.close()


def _line(process: subprocess.Popen[str], seconds: float) -> str:
    """What the process says next, "" if it ends or says nothing in time."""
    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else ""


_worker = _Worker()


def _forget() -> None:
    """A forked child must not speak into its parent's pipes."""
    _left.append(_worker.process)  # not collected: its end is not the child's to wait for
    _worker.lock, _worker.process = threading.Lock(), None


_left: list[subprocess.Popen[str] | None] = []
atexit.register(_worker.stop)
os.register_at_fork(after_in_child=_forget)


def same_expression(first: str, second: str) -> bool | None:
    """Whether two expressions are equal, None where it cannot be told.

    That is: one is over 400 characters or cannot be parsed, has signs that would be dropped, or 1.5
    seconds were not enough.

    Raises:
        WorkbenchError: Math-Verify cannot be started at all.
    """
    if max(len(first), len(second)) > LONGEST:
        return None
    one, other = latex(first), latex(second)
    return _worker.ask(one, other) if comparable(one, other) else None
