"""What a model gets on a CPU: number format, threads, and memory for its cache.

vLLM's defaults are a GPU's: 0.92 of all memory, and bfloat16 even where the processor has no such
arithmetic. Here all three follow what the machine has and what is free on it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.errors import EngineError

# Threads that wait for each other spin unless this is set before their library is loaded. With
# another busy process on two cores, 1,000 word problems took 36 to 61 s spinning, and 4 to 5 s not.
PASSIVE = {"OMP_WAIT_POLICY": "passive"}

# Flags of /proc/cpuinfo, any of which means arithmetic in that format.
UNITS = {
    "bfloat16": {"amx_bf16", "avx512_bf16", "bf16"},
    "float16": {"amx_fp16", "avx512_fp16", "asimdhp"},
}
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOATS = {"F64", "F32", "F16", "BF16"}
SHARE = 0.5  # of what is free beside weights and work: other programs live here too
ENOUGH = 4 * 2**30  # bytes of cache above which a CPU is not faster
USUAL = 512  # tokens of a usual request, prompt and answer
LEAST = 1024  # tokens of context below which nothing useful fits
STEP = 4096  # tokens of vLLM's step at the least, where prompts are not cut
FEW = 16  # requests at once that still make a batch worth having
GIB = 2**30


def fast_dtype(dtype: str, flags: Iterable[str] | None = None) -> str:
    """The format to compute in: `dtype` where the processor has it, else float32.

    Args:
        dtype: the model's, such as "bfloat16".
        flags: the processor's abilities; None reads them from this machine.
    """
    units = UNITS.get(dtype)
    found = _flags() if flags is None else set(flags)
    return "float32" if units and found and not units & found else dtype


def _flags() -> set[str]:
    """Abilities of this processor as Linux lists them; none where they are not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return set()
    names = ("flags", "features")
    return {
        flag
        for line in lines
        if line.partition(":")[0].strip().lower() in names
        for flag in line.partition(":")[2].split()
    }


def threads() -> int:
    """Threads worth having: cores that this process may use, each once, within its quota."""
    import psutil

    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    cores = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, cores, _quota(allowed)))


def use_threads() -> int:
    """Have PyTorch use them, unless the user has said how many; how many it uses now."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > threads():
        torch.set_num_threads(threads())
    return int(torch.get_num_threads())


def _quota(most: int) -> int:
    """CPUs that the container's limit leaves, of `most`."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # "max", or no such limit
            texts = (Path("/sys/fs/cgroup", name).read_text("ascii") for name in names)
            quota, period = map(float, " ".join(texts).split())
            return math.ceil(quota / period) if quota > 0 else most
    return most


def weights_size(folder: Path, dtype: str) -> int:
    """Bytes of a folder's safetensors once their floating-point tensors are in `dtype`.

    Raises:
        OSError, ValueError, KeyError: a file is broken.
    """
    index = folder / "model.safetensors.index.json"
    files = {*folder.glob("*.safetensors")}
    if index.is_file():
        files = {
            folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()
        }
    elif len(files) > 1:  # Mistral's own file beside the common one
        files -= {*folder.glob("consolidated*.safetensors")}
    total = 0
    for file in files:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(size, 10**8)))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            count = math.prod(entry["shape"])
            total += count * SIZES[dtype] if entry["dtype"] in FLOATS else end - start
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a model takes, in bytes.

    Attributes:
        dtype: what it computes in.
        weights: all of them, in that.
        token: of the cache, for one token.
        step: of a step's work, for one token of a prompt.
        row: of a step's work, for one request (its logits).
        context: tokens that the model holds, or that were asked for.
        sequences: requests that run at once.
        batched: most tokens of one step; 0 is the longest prompt, whole.
        fixed: the context was asked for, and is not cut.
    """

    dtype: str
    weights: int
    token: int
    step: int
    row: int
    context: int
    sequences: int
    batched: int = 0
    fixed: bool = False

    def work(self, context: int) -> int:
        """What one full step takes beside weights and cache."""
        return self.step * (self.batched or max(context, STEP)) + self.row * self.sequences

    def beside(self, context: int) -> int:
        """All but the cache."""
        return self.weights + self.work(context)

    def halved(self) -> tuple[Need, ...]:
        """The same in half the bytes, where that can be."""
        if self.dtype != "float32":
            return ()
        return (
            replace(
                self,
                dtype="bfloat16",
                weights=self.weights // 2,
                token=self.token // 2,
                step=self.step // 2,
            ),
        )

    def least(self, context: int) -> int:
        """What must be free for one request of so many tokens."""
        return self.beside(context) + math.ceil(self.token * context / SHARE)


@dataclass(frozen=True, slots=True)
class Room:
    """What it gets: bytes of cache, and tokens of context."""

    dtype: str
    cache: int
    context: int


def find_room(name: str, free: int, needs: Sequence[Need]) -> Room:
    """Cache and context for the first of the needs that fits.

    The cache holds one request of the whole context and usual ones beside it, in at most half of
    what is free beside weights and work. A context that does not fit is halved until it does.

    Args:
        name: the model's, for the message.
        free: bytes.
        needs: ways to run the model, the preferred one first.

    Raises:
        EngineError: nothing fits; says what would.
    """
    for need in needs:
        if (context := _context(need, free)) is not None:
            usual = need.sequences * min(USUAL, context)
            wanted = need.token * max(context, min(context + usual, ENOUGH // max(1, need.token)))
            cache = min(wanted, math.floor(SHARE * (free - need.beside(context))))
            return Room(need.dtype, max(cache, need.token * context), context)
    raise EngineError(_refusal(name, free, needs))


def _context(need: Need, free: int) -> int | None:
    """The longest context that fits, if a useful one does: the whole, or a power of two.

    A power of two, as stored answers are found by the context: a little more or less of free
    memory must not change it.
    """
    context = need.context
    while need.least(context) > free:
        context = 2 ** ((context - 1).bit_length() - 1)
        if need.fixed or context < LEAST:
            return None
    return context


def _refusal(name: str, free: int, needs: Sequence[Need]) -> str:
    least = min(needs, key=lambda one: one.least(min(one.context, LEAST)))
    short = least.context if least.fixed else min(least.context, LEAST)
    text = (
        f"model {name!r} does not fit into the {_gib(free)} of memory that are free: it takes "
        f"{_gib(least.weights)} of weights in {least.dtype}, {_gib(least.work(short))} to work and "
        f"a cache, {_gib(least.least(short))} in all for {short:,} tokens"
    )
    for way in (least, *least.halved()):
        for few in (least.sequences, FEW):
            smaller = replace(way, sequences=min(few, least.sequences), fixed=False)
            if (context := _context(smaller, free)) is not None:
                return (
                    f'{text}. It would fit with dtype="{way.dtype}", max_model_len={context}, '
                    f"max_num_seqs={smaller.sequences}"
                )
    return f"{text}. Close other programs, or take a smaller or a quantised model"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
