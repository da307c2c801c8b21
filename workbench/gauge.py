"""What a piece of work takes: seconds, processor, GPU, memory. Sampled by a thread beside it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

EVERY = 0.02  # seconds between two looks
GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured.

    Attributes:
        seconds: wall time.
        cpu: share of all the machine's cores that this process used.
        gpu: mean share of the time in which the GPU was busy; None without one.
        peak_memory_bytes: most memory at once: of the GPU where this process uses one, else of the
            process (all that it holds, models included).
        added_memory_bytes: how much of it was not in use before.
    """

    seconds: float
    cpu: float
    gpu: float | None
    peak_memory_bytes: int
    added_memory_bytes: int


class Gauge:
    """`with Gauge() as gauge: …`, then `gauge.reading`."""

    reading: Reading

    def __enter__(self) -> Self:
        self._gpu = _on_gpu()
        self._busy: list[float] = []
        self._peak = 0
        if self._gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            self._look()
        else:
            self._look()
            self._before = self._peak
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._processor = time.process_time()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        seconds = time.perf_counter() - self._start
        processor = time.process_time() - self._processor
        self._stop.set()
        self._thread.join()
        self._look()
        if self._gpu:
            import torch

            self._peak = torch.cuda.max_memory_allocated()
        gpu = sum(self._busy) / len(self._busy) if self._busy else None
        self.reading = Reading(
            seconds,
            processor / seconds / (os.cpu_count() or 1),
            gpu,
            self._peak,
            max(0, self._peak - self._before),
        )

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            self._look()

    def _look(self) -> None:
        if self._gpu:
            import torch

            with contextlib.suppress(Exception):  # no driver library: then memory only
                self._busy.append(torch.cuda.utilization() / 100)
        else:
            import psutil

            self._peak = max(self._peak, int(psutil.Process().memory_info().rss))


def free_memory() -> float:
    """Bytes of main memory that this process may still take, within its container's limits."""
    import psutil

    free = float(psutil.virtual_memory().available)
    return max(0.0, min([free, *_left_in_groups()]))


def _left_in_groups(root: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """What each control group around this process leaves; nothing without limits, or no Linux.

    Cached files count as used there, and are given back when memory is asked for.
    """
    left = []
    with contextlib.suppress(OSError, IndexError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            names = ("memory.max", "memory.current")
            top = root
            if "memory" in kinds.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
                top = root / "memory"
            elif kinds:
                continue
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # "max"
                    limit, used = (float((folder / name).read_text()) for name in names)
                    left.append(limit - used + _reclaimable(folder))
                if folder == top:
                    break
    return left


def _reclaimable(group: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        stat = {name: float(value) for name, value in pairs}
        return sum(
            stat.get(f"total_{name}", stat.get(name, 0.0))
            for name in ("inactive_file", "active_file")
        )
    return 0.0


def _on_gpu() -> bool:
    """Whether this process uses a GPU; asking must not start torch."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available() and torch.cuda.is_initialized())
