"""A plugin for vLLM, which each vLLM process runs first where this package is installed.

On a CPU with matrix tiles (AMX), a process must request them from the kernel before use. vLLM's
attention in bfloat16 does not: unless a large matrix product ran before, the process ends with an
illegal instruction. So this plugin requests them.
"""

from __future__ import annotations

from contextlib import suppress


def register() -> None:
    """Request matrix tiles, if the CPU has them."""
    import torch

    with suppress(AttributeError, RuntimeError):  # a private function, which may disappear
        torch.cpu._init_amx()
