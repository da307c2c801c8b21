"""Whether two formulas are equal, by SymPy in a process of its own.

SymPy can run for ever on a short line, so the process may use a few seconds of CPU time for a
question, and a new one is started after it. CPU time and not the clock: a verdict must not depend
on what else the machine does. It is a plain child, not one of `multiprocessing`: that would run the
caller's script again (spawn), or copy its threads and GPU handles (fork).
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
"""Of CPU time for a question; half as long again to find out which of two formulas is to blame."""
SILENCE = 120.0
"""Seconds by the clock after which a worker that says nothing is replaced."""
MOST_SLOW, SLOW_FOR = 1024, 300.0
"""Formulas that took too long which are remembered, and for how many seconds."""
LOOK = 1.0
"""Seconds between looks at a worker that says nothing."""
ZERO: Formula = ["n", "0"]
LONGEST = 400
"""Characters of an expression that is still looked at."""


class _Worker:
    """The process, started when it is first needed; one question at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.slow: dict[str, float] = {}  # formulas, and when they were tried
        self.given_up = 0

    def ask(self, first: Formula, second: Formula) -> bool | None:
        with self.lock:
            pair = {json.dumps(one): one for one in (first, second)}
            now = time.monotonic()
            if any(now - self.slow.get(name, -SLOW_FOR) < SLOW_FOR for name in pair):
                self.given_up += 1
                return None
            reply = self.reply(first, second, SECONDS)
            if not reply:
                # Beside a number a harmless one is done in no time. With none to blame the worker
                # was stopped, perhaps, so the pair is asked about once more.
                slow = [n for n, one in pair.items() if not self.reply(one, ZERO, SECONDS / 2)]
                reply = "" if slow else self.reply(first, second, SECONDS)
                if not reply:
                    self.given_up += 1
                    self.slow |= dict.fromkeys(slow, now)
                    for oldest in list(self.slow)[:-MOST_SLOW]:
                        del self.slow[oldest]
            return json.loads(reply) if reply else None

    def reply(self, first: Formula, second: Formula, seconds: float) -> str:
        """A line of JSON, "" if it took too long."""
        try:
            process = self.ready()
            assert process.stdin
            process.stdin.write(json.dumps([seconds, first, second]) + "\n")
            process.stdin.flush()
            line = _line(process)
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
            [sys.executable, "-P", str(Path(__file__).with_name("sympy_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for its owner
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
                with suppress(OSError):  # a question was still in it
                    pipe.close()


def _line(process: subprocess.Popen[str]) -> str:
    """What the process says next, "" if it ends, is stopped, or says nothing in time."""
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
    """A forked child must not speak into its parent's pipes."""
    _of_parents.append(_worker.process)  # not collected: its end is not the child's to wait for
    _worker.lock, _worker.process = threading.Lock(), None


_of_parents: list[subprocess.Popen[str] | None] = []
atexit.register(_worker.stop)
os.register_at_fork(after_in_child=_forget)


def same_expression(first: str, second: str) -> bool | None:
    """Whether two expressions are equal, None where it cannot be told.

    That is: one is over 400 characters or not all of it is known (`formula`), SymPy cannot decide,
    or 1.5 seconds of CPU time were not enough.

    Raises:
        WorkbenchError: SymPy cannot be started at all.
    """
    if max(len(first), len(second)) > LONGEST:
        return None
    if tokens(first) == tokens(second):
        return True
    one, other = parse(first), parse(second)
    return None if one is None or other is None else _worker.ask(one, other)


def given_up() -> int:
    """Comparisons of this process so far for which the time was not enough."""
    return _worker.given_up
