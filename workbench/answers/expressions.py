"""Whether two mathematical expressions are the same, by Math-Verify in a process of its own.

Sympy can run for ever on a short line, so the process has a time limit and a new one is started
after it. It is a plain child, not one of `multiprocessing`: that would run the caller's script
again (spawn), or copy its threads and GPU handles (fork).
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from workbench.errors import WorkbenchError

__all__ = ["LONGEST", "same_expression"]

SECONDS = 3.0
LONGEST = 400
"""Characters of an expression that is still looked at."""


class _Worker:
    """The process, started when it is first needed; one question at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, first: str, second: str) -> bool | None:
        with self.lock:
            try:
                process = self.ready()
                assert process.stdin
                assert process.stdout
                process.stdin.write(json.dumps([SECONDS, first, second]) + "\n")
                process.stdin.flush()
                reply = process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            except BaseException:  # Ctrl-C: the reply would be taken for that of the next question
                self.stop()
                raise
            if not reply:
                self.stop()
            return json.loads(reply) if reply else None

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
        assert process.stdout
        word = json.loads(process.stdout.readline() or '"it died"')
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

    That is: one is over 400 characters or cannot be parsed, or 3 seconds were not enough.

    Raises:
        WorkbenchError: Math-Verify cannot be started at all.
    """
    if max(len(first), len(second)) > LONGEST:
        return None
    return _worker.ask(first, second)
