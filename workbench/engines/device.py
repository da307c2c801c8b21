"""The device that a model of PyTorch runs on, and how many tokens it may hold there."""

from __future__ import annotations

import gc
from typing import Any

from workbench.errors import EngineUnavailableError, InputError

# How the libraries underneath say that memory ran out.
OUT_OF_MEMORY = (
    "out of memory", "available memory", "free memory", "can't allocate", "cannot allocate",
    "not enough memory", "kv cache is needed", "alloc_failed",
)  # fmt: skip


def find_device(name: object) -> Any:
    """The device of that name; None is a GPU where there is one.

    Raises:
        InputError: an unknown name.
        EngineUnavailableError: it is not here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise InputError(
            f'device={name!r}: give "cpu" or "cuda"; which GPU is for CUDA_VISIBLE_DEVICES to say'
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailableError(
            f"device={name!r}: PyTorch sees no GPU here; leave `device` out, or see "
            "`workbench info` for what this machine has"
        )
    return torch.device(name)


def shown(device: Any) -> str:
    """A device's name for people."""
    if device.type != "cuda":
        return str(device)
    import torch

    return f"cuda ({torch.cuda.get_device_name(device)})"


def collect(device: Any) -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def context_length(longest: int, asked: object) -> int:
    """How many tokens a prompt and its answer may have: as asked for, or all that the model holds.

    Raises:
        InputError: no whole number, or more than the model holds.
    """
    if asked is None:
        return longest
    if not isinstance(asked, int) or isinstance(asked, bool) or not 1 <= asked <= longest:
        raise InputError(f"max_model_len={asked!r}: this model holds 1 to {longest} tokens")
    return asked


def memory_ran_out(error: BaseException) -> bool:
    """Whether an exception of the libraries underneath says so."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)
