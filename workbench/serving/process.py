"""A server's process and all its own: started with a guard that outlives us, ended as one group."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

GRACE = 10.0  # seconds to end in order
LAST = 15  # lines of its log that an error quotes
NOISE = r"    |  File |usage:|Traceback|The above exc|During handling|.*Warning:|W\d{4} |Loading "

# Outlives us and sees us die by the end of its input: then the server has to go too. A line of
# input means that all is done. The signal that Linux can send on a parent's death would not do:
# it comes when the *thread* that started the child ends.
GUARD = 'read -r line && exit; kill -s TERM -- "-$1"; sleep 10; kill -s KILL -- "-$1"'


@dataclass(frozen=True, slots=True)
class Child:
    process: subprocess.Popen[bytes]  # the server's, first of its group
    guard: subprocess.Popen[bytes]
    owner: int  # our own process id: a fork of us must not end what is ours


def open_log(path: Path) -> BinaryIO:
    """A file to be added to; a new one is for its owner alone, as prompts may end up in it."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def spawn(line: list[str], variables: dict[str, str], path: Path) -> Child:
    with open_log(path) as output:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
    try:
        guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "workbench-guard", str(process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except BaseException:
        signal_group(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return Child(process, guard, os.getpid())


def finish(child: Child) -> None:
    """End the whole group, and then its guard."""
    if os.getpid() != child.owner:
        return
    pid = child.process.pid
    try:
        signal_group(pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(GRACE)
    finally:
        signal_group(pid, signal.SIGKILL)
        child.process.wait()
        patience = time.monotonic() + GRACE
        while _lives(pid) and time.monotonic() < patience:
            time.sleep(0.02)
        with suppress(OSError):
            child.guard.communicate(b"\n")


def signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _lives(group: int) -> bool:
    """Whether any process of it is left, other than ended ones that nobody has collected."""
    psutil: Any = import_module("psutil")
    for process in psutil.process_iter(["status"]):
        with suppress(OSError):
            if os.getpgid(process.pid) == group and process.info["status"] != "zombie":
                return True
    return False


def last_lines(text: str) -> str:
    """What is said, without the frames of tracebacks, times, process names and repetitions."""
    form = r"^(\(.*?\) ?)?([A-Z]+ [\d-]+ [\d:]+ \[.*?\] ?)?"
    plain = [re.sub(form, "", line) for line in text.split("\n") if " WARNING " not in line]
    said = [line for line in plain if line.strip() and not re.match(NOISE, line)]
    return "\n".join(list(dict.fromkeys(reversed(said)))[:LAST][::-1])
