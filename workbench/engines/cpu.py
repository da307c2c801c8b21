"""Settings for a model on a CPU: number format, threads, and memory for its cache.

vLLM's defaults are for GPUs: 0.92 of all memory, and bfloat16 even if the processor lacks such
arithmetic. Here all three depend on the machine and its free memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.engines.checkpoints.checks import weights_size
from workbench.engines.device import shape_only
from workbench.errors import EngineError, log
from workbench.lazy import psutil, torch
from workbench.machine import free_memory

# Flags of /proc/cpuinfo; any of a format's flags means arithmetic in that format.
UNITS = {
    "bfloat16": {"amx_bf16", "avx512_bf16", "bf16"},
    "float16": {"amx_fp16", "avx512_fp16", "asimdhp"},
}
SEQUENCES = {"server": 128, "process": 256}  # vLLM's own defaults
SHARE = 0.5  # of the memory that weights and work leave free: other programs need some too
ENOUGH = 4 * 2**30  # bytes of cache; more does not make a CPU faster
USUAL = 512  # tokens of a typical request, prompt and answer
LEAST = 1024  # tokens of context below which nothing useful fits
STEP = 4096  # least tokens per step of vLLM, where prompts are not split
FEW = 16  # requests in a batch that is still efficient
GIB = 2**30
# Memory of libraries while a model loads. For Gemma 3 270M, this plus weights and two copies of
# the output layer is 2.9 GB in float32 and 1.75 GB in bfloat16, as measured.
RUNTIME = GIB // 2
SERVER = GIB  # memory of the engine's process without a model


def fast_dtype(dtype: str, flags: Iterable[str] | None = None) -> str:
    """The format to compute in: `dtype` if the processor supports it, else float32.

    Args:
        dtype: the model's, such as "bfloat16".
        flags: the processor's features; None reads them from this machine.
    """
    units = UNITS.get(dtype)
    known = _flags() if flags is None else set(flags)
    return "float32" if units and known and not units & known else dtype


def _flags() -> set[str]:
    """Features of this processor as Linux lists them; empty if unknown."""
    with suppress(OSError, ValueError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").lower().splitlines()
        rows = (line.partition(":")[2] for line in lines if line.startswith(("flags", "features")))
        return set(" ".join(rows).split())
    return set()


def threads() -> int:
    """Useful number of threads: physical cores for this process, within its CPU quota."""
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    cores = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, cores, _quota(allowed)))


def use_threads() -> int:
    """Set PyTorch's threads unless the user has set them; returns the number in use."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > threads():
        torch.set_num_threads(threads())
    return int(torch.get_num_threads())


def _quota(most: int) -> int:
    """CPUs that the container's limit allows, at most `most`."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # "max", or no such limit
            texts = (Path("/sys/fs/cgroup", name).read_text("ascii") for name in names)
            quota, period = map(float, " ".join(texts).split())
            return math.ceil(quota / period) if quota > 0 else most
    return most


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Memory that a model needs, in bytes.

    Attributes:
        dtype: the number format to compute in.
        weights: all weights, in that format.
        token: cache per token.
        step: work per prompt token of a step.
        row: work per request of a step (its logits).
        context: tokens: the model's context length, or the requested one.
        sequences: maximum number of requests in a batch.
        batched: maximum tokens per step; 0 is the longest prompt, unsplit.
        fixed: whether the context length was requested and must not be reduced.
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
        """Work memory of one full step, in bytes."""
        return self.step * (self.batched or max(context, STEP)) + self.row * self.sequences

    def overhead(self, context: int) -> int:
        """All but the cache, in bytes."""
        return self.weights + self.work(context)

    def halved(self) -> tuple[MemoryNeed, ...]:
        """The same need in bfloat16, if it is float32."""
        if self.dtype != "float32":
            return ()
        sizes = {name: getattr(self, name) // 2 for name in ("weights", "token", "step")}
        return (replace(self, dtype="bfloat16", **sizes),)

    def least(self, context: int) -> int:
        """Free bytes needed for one request of so many tokens."""
        return self.overhead(context) + math.ceil(self.token * context / SHARE)


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The settings: number format, bytes of cache, and tokens of context."""

    dtype: str
    cache: int
    context: int


def plan_cache(name: str, free: int, needs: Sequence[MemoryNeed]) -> CachePlan:
    """Cache and context for the first of the needs that fits.

    The cache holds one request of the whole context plus typical ones, in at most half of the
    memory that weights and work leave free. A context that does not fit is halved until it does.

    Args:
        name: the model's name, for the message.
        free: free bytes.
        needs: ways to run the model, in order of preference.

    Raises:
        EngineError: nothing fits; says what would fit.
    """
    for need in needs:
        if (context := _context(need, free)) is not None:
            usual = need.sequences * min(USUAL, context)
            wanted = need.token * max(context, min(context + usual, ENOUGH // max(1, need.token)))
            cache = min(wanted, math.floor(SHARE * (free - need.overhead(context))))
            return CachePlan(need.dtype, max(cache, need.token * context), context)
    raise EngineError(_refusal(name, free, needs))


def _context(need: MemoryNeed, free: int) -> int | None:
    """The longest useful context that fits: the whole, or a power of two; None if none fits.

    Keys of stored answers include the context length. With powers of two, a small change in free
    memory does not change it.
    """
    context = need.context
    while need.least(context) > free:
        context = 2 ** ((context - 1).bit_length() - 1)
        if need.fixed or context < LEAST:
            return None
    return context


def _refusal(name: str, free: int, needs: Sequence[MemoryNeed]) -> str:
    least = min(needs, key=lambda one: one.least(min(one.context, LEAST)))
    short = least.context if least.fixed else min(least.context, LEAST)
    text = (
        f"model {name!r} does not fit into the {_gib(free)} of free memory: it needs "
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
    return f"{text}. Close other programs, or use a smaller or quantised model"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def vllm_defaults(*, on_cpu: bool, small: bool) -> dict[str, Any]:
    """vLLM's options if the caller sets none; `small` is a model like the embedded one."""
    if not on_cpu:
        return {"enforce_eager": True, "gpu_memory_utilization": 0.2} if small else {}
    # Smaller blocks share more of a prefix: twice the label scores per second, at the same decoding
    # speed. Prompts are not split, as vLLM cannot rewind a seeded request's generator on a CPU: it
    # stops with "CPU Generator does not use offset". Compilation would make Gemma 3 270M a fifth
    # faster, but it would open in 65 s instead of 13.
    defaults = {"block_size": 32, "enable_chunked_prefill": False, "enforce_eager": True}
    return defaults | ({"dtype": "float32"} if small else {})  # gives the same text on every CPU


def fit(
    arguments: Any, explicit: Collection[str], use: str = "process"
) -> tuple[dict[str, Any], str | None]:
    """vLLM's settings that the caller left open; also sets the number of threads.

    Args:
        arguments: vLLM's `EngineArgs`.
        explicit: names of the options that the caller set, which are kept.
        use: "process" or "server".

    Returns:
        Number format, context and cache; and a note for the user, or None.

    Raises:
        EngineError: the model does not fit into free memory; says what would fit.
        Exception: vLLM's, for a model that it cannot read.
    """
    config = arguments.create_model_config()
    count = use_threads()
    needs = _needs(config, arguments, explicit, use)
    workers = arguments.tensor_parallel_size * arguments.pipeline_parallel_size
    free = max(0, _free(workers) - (SERVER if use == "server" else 0))
    whole = {"kv_cache_memory_bytes", "gpu_memory_utilization"} & {*explicit}
    if whole or os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        log.info("on this CPU: %s, %d threads", needs[0].dtype, count)
        return {"dtype": needs[0].dtype}, None
    plan = plan_cache(Path(arguments.model).name, free, needs)
    token = next(need.token for need in needs if need.dtype == plan.dtype)
    if "dtype" in explicit:
        why = "set"
    elif plan.dtype != needs[0].dtype:
        why = f"{needs[0].dtype} would be faster here, but does not fit"
    else:
        why = "fast here" if len(needs) == 1 else f"faster here than {needs[1].dtype}"
    log.info(
        "on this CPU: %s (%s), %d threads, %.1f GiB of cache for %s tokens, context %s; %.1f GiB "
        "were free",
        plan.dtype, why, count, plan.cache / GIB, f"{plan.cache // max(1, token):,}",
        f"{plan.context:,}", free / GIB,
    )  # fmt: skip
    options = {"dtype": plan.dtype, "kv_cache_memory_bytes": plan.cache // workers}
    if plan.context == needs[0].context:
        return options, None
    note = (
        f"the context is {plan.context:,} tokens instead of the model's {needs[0].context:,}, as "
        f"{free / GIB:.1f} GiB of memory were free; max_model_len=… sets it"
    )
    return options | {"max_model_len": plan.context}, note


def _free(workers: int) -> int:
    """Free bytes for so many workers, which all allocate on one NUMA node."""
    free = free_memory()
    with suppress(Exception):  # vLLM's function, which may move
        from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

        node = get_memory_node_info(get_allowed_cpu_list()[0].numa_node)
        free = min(free, float(workers * node.available_memory))
    return int(free)


def _needs(config: Any, arguments: Any, explicit: Collection[str], use: str) -> list[MemoryNeed]:
    """Ways to run the model: in the fast format, and in its format if that needs less memory."""
    own = str(config.dtype).removeprefix("torch.")
    quantised = config.quantization is not None
    fast = own if "dtype" in explicit or quantised else fast_dtype(own)
    need = _need(config, arguments, fast, SEQUENCES[use])
    need = replace(need, fixed="max_model_len" in explicit and arguments.max_model_len != -1)
    return [need] if fast == own else [need, *need.halved()]


def _need(config: Any, arguments: Any, dtype: str, sequences: int) -> MemoryNeed:
    size = 4 if dtype == "float32" else 2
    text = config.hf_text_config
    heads, head = config.get_total_num_kv_heads(), config.get_head_size()
    hidden = config.get_hidden_size()
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    latent = config.use_mla
    stored = 1 if "fp8" in str(arguments.kv_cache_dtype) else size
    packed = config.get_vocab_size() * hidden * size  # the output layer, copied by vLLM
    return MemoryNeed(
        dtype=dtype,
        weights=_weights(config, arguments, dtype) + 2 * packed + RUNTIME,
        # Cache per token: one vector per layer with latent attention, else 2 per head.
        token=config.get_total_num_hidden_layers() * stored * head * (1 if latent else 2 * heads),
        step=size * (6 * hidden + 3 * int(inner)),
        row=3 * 4 * config.get_vocab_size(),  # logits, log-probabilities, and one copy
        context=config.max_model_len,
        sequences=arguments.max_num_seqs or sequences,
        batched=arguments.max_num_batched_tokens
        or (STEP if arguments.enable_chunked_prefill else 0),
    )


def _weights(config: Any, arguments: Any, dtype: str) -> int:
    """Bytes of the weights, by the files; without files, by the shapes."""
    from huggingface_hub import snapshot_download

    folder = Path(arguments.model)
    with suppress(OSError, ValueError, KeyError):  # the loader reports a broken file
        if not folder.is_dir():
            folder = Path(snapshot_download(
                arguments.model, revision=arguments.revision, local_files_only=True
            ))  # fmt: skip
        if arguments.load_format != "dummy" and (size := weights_size(folder, dtype)):
            return size
    with suppress(Exception):  # vLLM supports models that transformers does not
        count = sum(int(one.numel()) for one in shape_only(config.hf_config).parameters())
        return count * (4 if dtype == "float32" else 2)
    log.warning("the size of %s is unknown before it is loaded: it may not fit", arguments.model)
    return 0
