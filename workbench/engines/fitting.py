"""What vLLM is started with on a CPU where the caller has left it open; `cpu` has the rules."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.engines.cpu import STEP, Need, Room, fast_dtype, find_room, use_threads, weights_size
from workbench.engines.device import shape_only
from workbench.machine import free_memory

log = logging.getLogger("workbench")
SEQUENCES = {"server": 128, "process": 256}  # vLLM's own defaults
GIB = 2**30
# What libraries take while a model loads. Of Gemma 3 270M, weights, two copies of its output layer
# and this are 2.9 GB in float32 and 1.75 in bfloat16, which is what was measured.
RUNTIME = GIB // 2
SERVER = GIB  # what the engine's process takes before it has a model


@dataclass(frozen=True, slots=True)
class Fit:
    """Options to add to the caller's, and what a user should know of them."""

    options: dict[str, Any]
    note: str | None = None


def fit(arguments: Any, asked: Collection[str], use: str = "process") -> Fit:
    """Number format, context and cache for a model on this CPU; sets the threads too.

    Args:
        arguments: vLLM's `EngineArgs`.
        asked: names of the options that the caller gave, which stay.
        use: "process" or "server".

    Raises:
        EngineError: the model does not fit into the memory that is free; says what would.
        Exception: vLLM's own, for a model that it cannot read.
    """
    config = arguments.create_model_config()
    count = use_threads()
    needs = _needs(config, arguments, asked, use)
    workers = arguments.tensor_parallel_size * arguments.pipeline_parallel_size
    free = max(0, _free(workers) - (SERVER if use == "server" else 0))
    whole = {"kv_cache_memory_bytes", "gpu_memory_utilization"} & {*asked}
    if whole or os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        log.info("on this CPU: %s, %d threads", needs[0].dtype, count)
        return Fit({"dtype": needs[0].dtype})
    room = find_room(Path(arguments.model).name, free, needs)
    token = next(need.token for need in needs if need.dtype == room.dtype)
    log.info(
        "on this CPU: %s (%s), %d threads, %.1f GiB of cache for %s tokens, context %s; %.1f GiB "
        "were free",
        room.dtype, _why(room, needs, asked), count, room.cache / GIB,
        f"{room.cache // max(1, token):,}", f"{room.context:,}", free / GIB,
    )  # fmt: skip
    options = {"dtype": room.dtype, "kv_cache_memory_bytes": room.cache // workers}
    if room.context == needs[0].context:
        return Fit(options)
    note = (
        f"the context is {room.context:,} tokens of the model's {needs[0].context:,}: "
        f"{free / GIB:.1f} GiB of memory were free; max_model_len=… sets it"
    )
    return Fit(options | {"max_model_len": room.context}, note)


def _free(workers: int) -> int:
    """Bytes that so many workers may take: each takes them from one node of the memory."""
    free = free_memory()
    with suppress(Exception):  # vLLM's own look at the machine, which it may keep elsewhere
        from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

        node = get_memory_node_info(get_allowed_cpu_list()[0].numa_node)
        free = min(free, float(workers * node.available_memory))
    return int(free)


def _why(room: Room, needs: list[Need], asked: Collection[str]) -> str:
    if "dtype" in asked:
        return "set"
    if room.dtype != needs[0].dtype:
        return f"{needs[0].dtype} would be faster here, and does not fit"
    return "fast here" if len(needs) == 1 else f"faster here than {needs[1].dtype}"


def _needs(config: Any, arguments: Any, asked: Collection[str], use: str) -> list[Need]:
    """Ways to run the model: in the fast format, and in its own where that takes less."""
    own = str(config.dtype).removeprefix("torch.")
    quantised = config.quantization is not None
    fast = own if "dtype" in asked or quantised else fast_dtype(own)
    need = _need(config, arguments, fast, SEQUENCES[use])
    need = replace(need, fixed="max_model_len" in asked and arguments.max_model_len != -1)
    return [need] if fast == own else [need, *need.halved()]


def _need(config: Any, arguments: Any, dtype: str, sequences: int) -> Need:
    size = 4 if dtype == "float32" else 2
    text = config.hf_text_config
    heads, head = config.get_total_num_kv_heads(), config.get_head_size()
    hidden = config.get_hidden_size()
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    latent = config.use_mla
    stored = 1 if "fp8" in str(arguments.kv_cache_dtype) else size
    packed = config.get_vocab_size() * hidden * size  # the output layer, copied by vLLM
    return Need(
        dtype=dtype,
        weights=_weights(config, arguments, dtype) + 2 * packed + RUNTIME,
        # What is kept of a token is one vector a layer with latent attention, else 2 for each head.
        token=config.get_total_num_hidden_layers() * stored * head * (1 if latent else 2 * heads),
        step=size * (6 * hidden + 3 * int(inner)),
        row=3 * 4 * config.get_vocab_size(),  # logits, log-probabilities, and one copy
        context=config.max_model_len,
        sequences=arguments.max_num_seqs or sequences,
        batched=arguments.max_num_batched_tokens
        or (STEP if arguments.enable_chunked_prefill else 0),
    )


def _weights(config: Any, arguments: Any, dtype: str) -> int:
    """Bytes of the model's weights: from its files, or from its shapes where there are none yet."""
    from huggingface_hub import snapshot_download

    folder = Path(arguments.model)
    with suppress(OSError, ValueError, KeyError):  # a broken file is for who loads it to say
        if not folder.is_dir():
            folder = Path(snapshot_download(
                arguments.model, revision=arguments.revision, local_files_only=True
            ))  # fmt: skip
        if arguments.load_format != "dummy" and (size := weights_size(folder, dtype)):
            return size
    with suppress(Exception):  # vLLM knows models that transformers does not
        count = sum(int(one.numel()) for one in shape_only(config.hf_config).parameters())
        return count * (4 if dtype == "float32" else 2)
    log.warning("the size of %s is not known before it is loaded: it may not fit", arguments.model)
    return 0
