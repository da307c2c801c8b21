"""PyTorch in this process: environment, device and memory; models are built one at a time."""

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
from workbench.lazy import torch
from workbench.machine import require

BUILDING = RLock()
# Waiting threads spin unless this is set before their library is loaded. With another busy process
# on two cores, 1,000 word problems took 36 to 61 s with spinning, and 4 to 5 s without.
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
# Defaults: one process (an interrupt must reach the model), and no messages at the start.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    **PASSIVE,
}
# How libraries report that memory ran out.
OUT_OF_MEMORY = (
    "out of memory", "available memory", "free memory", "can't allocate", "cannot allocate",
    "not enough memory", "kv cache is needed", "alloc_failed",
)  # fmt: skip


def prepare() -> None:
    """Set vLLM's environment variables; call it before vLLM or torch is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def whole_imports(say: Callable[[], None]) -> Iterator[None]:
    """Delay Ctrl-C until no import is running; `say` is called if there is a delay.

    An interrupted import cannot be repeated: its native part is already loaded.
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
    """The device of that name; None is a GPU if there is one.

    Raises:
        InputError: an unknown name.
        EngineUnavailableError: the device, or PyTorch, is not available.
    """
    require("transformers", "torch")
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise InputError(
            f'device={name!r}: give "cpu" or "cuda"; CUDA_VISIBLE_DEVICES selects a GPU'
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
    return f"cuda ({torch.cuda.get_device_name()})"


def collect(device: Any) -> None:
    """Free memory that is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def context_length(longest: int, requested: object) -> int:
    """Maximum number of tokens in a prompt and its answer: as requested, or the model's.

    Raises:
        InputError: not a whole number, or more than the model's context length.
    """
    if requested is None:
        return longest
    return values.whole("max_model_len", requested, 1, longest)


def memory_ran_out(error: BaseException) -> bool:
    """Whether an exception means that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


@contextmanager
def building() -> Iterator[None]:
    """Build transformers models one at a time, and restore PyTorch's number format.

    Building a model sets that format globally: two threads at once would leave the wrong one.
    """
    with BUILDING:
        before = torch.get_default_dtype()
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def shape_only(config: Any) -> Any:
    """The model of a configuration, without values in its tensors.

    Raises:
        Exception: transformers', of many kinds.
    """
    from transformers import AutoModelForCausalLM

    with building(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
