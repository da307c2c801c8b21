"""A server as a process: all that it starts ends with it, and nothing of it outlives us."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

GRACE = 10.0  # seconds to end in order
QUOTED = 15  # lines of its log that an error quotes
NOISE = r"    |  File |usage:|Traceback|The above exc|During handling|.*Warning:|W\d{4} |Loading "

# Outlives us and sees us die by the end of its input: then the server has to go too. A line of
# input means that all is done. The signal that Linux can send on a parent's death would not do:
# it comes when the *thread* that started the process ends.
WATCHDOG = 'read -r line && exit; kill -s TERM -- "-$1"; sleep 10; kill -s KILL -- "-$1"'


def open_log(path: Path) -> BinaryIO:
    """A file to be added to; a new one is for its owner alone, as prompts may end up in it."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


class ServerProcess:
    """A program that runs, in a process group of its own, until `finish`.

    Args:
        log: the file for its output, which is added to.
    """

    def __init__(self, line: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self.log, self._owner = log, os.getpid()
        self._log_begins = log.stat().st_size if log.exists() else 0
        with open_log(log) as output:
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
        try:
            self._watchdog = subprocess.Popen(
                ["/bin/sh", "-c", WATCHDOG, "workbench-guard", str(self.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            self.kill()
            self._process.wait()
            raise

    @property
    def pid(self) -> int:
        """Its process id, which is that of its group too."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.exit_code() is None

    def exit_code(self, wait: float = 0.0) -> int | None:
        """What it ended with; None if it runs after `wait` seconds."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(wait)
        return None

    def output(self) -> str:
        """What it has written to its log."""
        with self.log.open("rb") as file:
            file.seek(self._log_begins)
            return file.read().decode(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def finish(self) -> None:
        """End the whole group, by force what is left after 10 s."""
        if os.getpid() != self._owner:  # a fork of us must not end what is ours
            return
        try:
            self.kill(signal.SIGTERM)
            self.exit_code(GRACE)
        finally:
            self.kill()
            self._process.wait()
            deadline = time.monotonic() + GRACE
            while self._group_runs() and time.monotonic() < deadline:
                time.sleep(0.02)
            with suppress(OSError):
                self._watchdog.communicate(b"\n")

    def _group_runs(self) -> bool:
        """Whether any process of it is left, but for ended ones that nobody has collected."""
        psutil: Any = import_module("psutil")
        for process in psutil.process_iter(["status"]):
            with suppress(OSError):
                if os.getpgid(process.pid) == self.pid and process.info["status"] != "zombie":
                    return True
        return False


def last_lines(text: str) -> str:
    """The end of a log, without the frames of tracebacks, times, process names and repetitions."""
    prefix = r"^(\(.*?\) ?)?([A-Z]+ [\d-]+ [\d:]+ \[.*?\] ?)?"
    plain = [re.sub(prefix, "", line) for line in text.split("\n") if " WARNING " not in line]
    telling = [line for line in plain if line.strip() and not re.match(NOISE, line)]
    return "\n".join(list(dict.fromkeys(reversed(telling)))[:QUOTED][::-1])
