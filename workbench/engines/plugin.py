"""What every process of vLLM does first where this package is installed (a plugin of vLLM's).

On a CPU with matrix tiles (AMX) a process must ask the kernel before it uses them. vLLM's attention
in bfloat16 does not ask: it ends by an illegal instruction, unless a large matrix product came
before. So it is asked for here.
"""

from __future__ import annotations

from contextlib import suppress


def register() -> None:
    """Ask for matrix tiles, where there are any."""
    import torch

    with suppress(AttributeError, RuntimeError):  # a private function: it may go
        torch.cpu._init_amx()
