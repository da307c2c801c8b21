"""PyTorch in this process: how it starts, its device and memory, models built one at a time."""

from __future__ import annotations

import gc
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from types import FrameType
from typing import Any

from workbench import values
from workbench.errors import EngineUnavailableError, InputError
from workbench.machine import require

BUILDING = RLock()
# Threads that wait for each other spin unless this is set before their library is loaded. With
# another busy process on two cores, 1,000 word problems took 36 to 61 s spinning, and 4 to 5 s not.
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
# Set where the user has not: one process (an interrupt must reach the model), quiet start.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    **PASSIVE,
}
# How the libraries underneath say that memory ran out.
OUT_OF_MEMORY = (
    "out of memory", "available memory", "free memory", "can't allocate", "cannot allocate",
    "not enough memory", "kv cache is needed", "alloc_failed",
)  # fmt: skip


def prepare() -> None:
    """Set vLLM's environment; call it before anything imports vLLM or torch."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def whole_imports(say: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C takes effect once no import is under way; `say` is called where it has to wait.

    What is imported half way cannot be imported again: its native part is there already.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        importing = any(
            one.f_code.co_filename.startswith("<frozen importlib")
            for one, _ in traceback.walk_stack(frame)
        )
        if importing:
            say()
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        else:
            before(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def find_device(name: object) -> Any:
    """The device of that name; None is a GPU where there is one.

    Raises:
        InputError: an unknown name.
        EngineUnavailableError: it is not here, or PyTorch is not.
    """
    require("transformers", "torch")
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


def shown(kind: str) -> str:
    """The name of the device of that kind, for people."""
    if kind != "cuda":
        return kind
    import torch

    return f"cuda ({torch.cuda.get_device_name()})"


def collect(device: Any) -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def context_length(longest: int, requested: object) -> int:
    """How many tokens a prompt and its answer may have: as requested, or all the model holds.

    Raises:
        InputError: no whole number, or more than the model holds.
    """
    if requested is None:
        return longest
    return values.whole("max_model_len", requested, 1, longest)


def memory_ran_out(error: BaseException) -> bool:
    """Whether an exception of the libraries underneath says so."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


@contextmanager
def building() -> Iterator[None]:
    """Build a model of transformers alone, and leave PyTorch's number format as it was.

    While it builds one, it sets that format: two threads at once would leave that of one of them.
    """
    import torch

    with BUILDING:
        before = torch.get_default_dtype()
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def shape_only(config: Any) -> Any:
    """The model of a configuration without its numbers.

    Raises:
        Exception: transformers' own, in as many kinds as there are models.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with building(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
