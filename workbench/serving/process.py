"""A server as a process group, which ends as a whole and does not outlive this process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from workbench.lazy import psutil

GRACE = 10.0  # seconds to end after SIGTERM
QUOTED = 15  # lines of the log that an error quotes
NOISE = r"    |  File |usage:|Traceback|The above exc|During handling|.*Warning:|W\d{4} |Loading "

# This shell outlives us. Its input ends when we die, and then it stops the server. A line of input
# means that nothing is left to stop. Linux's signal on a parent's death does not work: it is sent
# when the *thread* that started the process ends.
WATCHDOG = 'read -r line && exit; kill -s TERM -- "-$1"; sleep 10; kill -s KILL -- "-$1"'


def open_log(path: Path) -> BinaryIO:
    """A file to append to; a new one is readable by its owner only, as it may contain prompts."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


class ServerProcess:
    """A running program in a separate process group, until `finish`.

    Args:
        log: the file for its output, which is appended to.
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
        """Its process id, which is also the id of its group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self.exit_code() is None

    def exit_code(self, wait: float = 0.0) -> int | None:
        """Its exit code; None if it still runs after `wait` seconds."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(wait)
        return None

    def output(self) -> str:
        """The contents of its log."""
        with self.log.open("rb") as file:
            file.seek(self._log_begins)
            return file.read().decode(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def finish(self) -> None:
        """Stop the whole group, with SIGKILL after 10 s."""
        if os.getpid() != self._owner:  # a fork of us must not stop our processes
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
        """Whether any process of the group is left, apart from zombies."""
        for process in psutil.process_iter(["status"]):
            with suppress(OSError):
                if os.getpgid(process.pid) == self.pid and process.info["status"] != "zombie":
                    return True
        return False


def last_lines(text: str) -> str:
    """The end of a log, without tracebacks' frames, times, process names and repetitions."""
    prefix = r"^(\(.*?\) ?)?([A-Z]+ [\d-]+ [\d:]+ \[.*?\] ?)?"
    plain = [re.sub(prefix, "", line) for line in text.split("\n") if " WARNING " not in line]
    kept = [line for line in plain if line.strip() and not re.match(NOISE, line)]
    return "\n".join(list(dict.fromkeys(reversed(kept)))[:QUOTED][::-1])
