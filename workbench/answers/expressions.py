"""Whether two formulas are equal, computed by SymPy in a separate process.

SymPy can run forever on a short line. So the process has a limit of CPU time per question, and
is replaced if it exceeds it. The limit is CPU time, not wall time, so that the verdict does not
depend on the machine's load. The process is a plain child, not one of `multiprocessing`, which
would run the caller's script again (spawn) or copy its threads and GPU handles (fork).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from workbench.answers.formula import Formula, parse, tokens
from workbench.errors import WorkbenchError
from workbench.lazy import psutil

SECONDS = 1.5
"""CPU time per question; half as much for each test of which formula is the slow one."""
SILENCE = 120.0
"""Wall-clock seconds after which a worker without output is replaced."""
MOST_SLOW, SLOW_FOR = 1024, 300.0
"""How many slow formulas to remember, and for how many seconds."""
LOOK = 1.0
"""Seconds between checks of a worker without output."""
ZERO: Formula = ["n", "0"]
LONGEST = 400
"""Maximum characters of an expression."""


class _Worker:
    """The worker process, started at the first question; it answers one question at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.slow: dict[str, float] = {}  # formulas, and the times at which they were tried
        self.given_up = 0

    def ask(self, first: Formula, second: Formula) -> bool | None:
        with self.lock:
            pair = {json.dumps(one): one for one in (first, second)}
            now = time.monotonic()
            if any(now - self.slow.get(name, -SLOW_FOR) < SLOW_FOR for name in pair):
                self.given_up += 1
                return None
            if not (reply := self.reply(first, second, SECONDS)):
                # A harmless formula compares with a number at once. If neither is slow, the worker
                # may have been suspended, so the pair is tried once more.
                slow = [n for n, one in pair.items() if not self.reply(one, ZERO, SECONDS / 2)]
                reply = "" if slow else self.reply(first, second, SECONDS)
                if not reply:
                    self.given_up += 1
                    self.slow |= dict.fromkeys(slow, now)
                    for oldest in list(self.slow)[:-MOST_SLOW]:
                        del self.slow[oldest]
            return json.loads(reply) if reply else None

    def reply(self, first: Formula, second: Formula, seconds: float) -> str:
        """A line of JSON, "" after a time-out."""
        try:
            process = self.ready()
            assert process.stdin
            process.stdin.write(json.dumps([seconds, first, second]) + "\n")
            process.stdin.flush()
            line = _line(process)
        except BrokenPipeError:
            line = ""
        except BaseException:  # Ctrl-C: the reply would be read as that of the next question
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
            # -P: the modules in the worker's folder must not hide those of the standard library.
            [sys.executable, "-P", str(Path(__file__).with_name("sympy_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C goes to the parent only
        )
        state = json.loads(_line(process) or '"it died"')
        if state != "ready":
            raise WorkbenchError(
                f"expressions cannot be compared, no worker starts: {state}; "
                f"{sys.executable} needs the package sympy"
            )
        return process

    def stop(self) -> None:
        process, self.process = self.process, None
        if process:
            process.kill()
            process.wait()
            for pipe in filter(None, (process.stdin, process.stdout)):
                with suppress(OSError):  # it still held a question
                    pipe.close()


def _line(process: subprocess.Popen[str]) -> str:
    """The next line of the process; "" if it ends, is stopped, or prints nothing in time."""
    assert process.stdout
    end = time.monotonic() + SILENCE
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([process.stdout], [], [], min(left, LOOK))
        if ready:
            return process.stdout.readline()
        if _is_stopped(process.pid):
            break
    return ""


def _is_stopped(pid: int) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return True


_worker = _Worker()


def _forget() -> None:
    """Keep a forked child from writing into its parent's pipes."""
    _of_parents.append(_worker.process)  # kept, because a child must not wait for its end
    _worker.lock, _worker.process = threading.Lock(), None


_of_parents: list[subprocess.Popen[str] | None] = []
atexit.register(_worker.stop)
os.register_at_fork(after_in_child=_forget)


def same_expression(first: str, second: str) -> bool | None:
    """Whether two expressions are equal, None if undecided.

    Undecided: one is over 400 characters or has a part that `formula` does not support, SymPy has
    no answer, or 1.5 seconds of CPU time were not enough.

    Raises:
        WorkbenchError: SymPy cannot be started.
    """
    if max(len(first), len(second)) > LONGEST:
        return None
    if tokens(first) == tokens(second):
        return True
    one, other = parse(first), parse(second)
    return None if one is None or other is None else _worker.ask(one, other)


def given_up() -> int:
    """The number of comparisons that this process has abandoned at the time limit so far."""
    return _worker.given_up
