"""What a process has that no other of its number had, however the clock is set meanwhile."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any


def born(pid: int) -> str | float:
    """The boot and the tick of it in which a process began; elsewhere than on Linux, the time.

    Raises:
        psutil.Error: there is no such process.
    """
    psutil: Any = import_module("psutil")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:  # not Linux, or it has ended
        return float(psutil.Process(pid).create_time())
    return f"{boot} {stat.rpartition(')')[2].split()[19]}"  # its name may hold spaces and brackets
