"""What determines an answer: weights, number format and options, but not a path.

The rule is the same for models in this process and behind our servers. So a stored answer is
reused only where the same answer would be computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.reprs import HIDDEN, SECRET_NAME, masked
from workbench.store import digest, folder_digest

# Options that never change an answer, or that the key of a stored answer has anyway.
HARMLESS = frozenset(
    {
        "address", "async_scheduling", "block_size", "compilation_config", "cpu_offload_gb",
        "cpus_per_replica",
        "disable_log_stats", "distributed_executor_backend", "dtype", "enable_chunked_prefill",
        "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization",
        "kv_cache_memory_bytes", "max_logprobs", "max_model_len", "max_num_batched_tokens",
        "max_num_seqs", "max_parallel_loading_workers", "pipeline_parallel_size", "replicas",
        "revision", "start_timeout", "tensor_parallel_size", "use_tqdm_on_load",
    }
)  # fmt: skip


def deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that can change an answer; files and folders are replaced by their digests."""
    chosen = {k: v for k, v in options.items() if k not in HARMLESS and v is not None}
    return {name: _content(value) for name, value in sorted(chosen.items())}


def repeatable(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an engine for a report, to open it again: plain values without secrets.

    An adapter and a chat template in a file also have their digest, as "adapter.sha256".
    """
    given = {name: value for name, value in options.items() if value is not None}
    found = {n: _public(value) for n, value in given.items() if not SECRET_NAME.search(n)}
    for name in {"adapter", "chat_template"} & found.keys():
        if (content := _content(found[name])) != repr(found[name]):
            found[f"{name}.sha256"] = digest(content).hex()
    return found


def _public(value: Any) -> Any:
    """A value as JSON has it. What looks like a key is hidden, but not within longer texts."""
    if isinstance(value, Mapping):
        return {str(name): _public(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_public(one) for one in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if " " in text else masked(text).replace(f"://{HIDDEN}@", "://")


def _content(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _content(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_content(one) for one in value]
    if isinstance(value, str | Path):
        name, equals, rest = str(value).partition("=")  # such as name=path for an adapter
        if equals and rest.startswith(("/", ".", "~")):
            return [name, _content(rest)]
        path = Path(value).expanduser()
        try:
            if path.is_dir():
                return folder_digest(path)
            if path.is_file():
                return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:  # too long for a path, such as a whole chat template
            pass
    return repr(value)


def variant(revision: str, dtype: str, options: Mapping[str, Any]) -> str:
    """A short name for all that determines an answer: `3fa2bc91d0e1-float32`.

    Args:
        revision: digest of the weights' folder, or the hub's commit.
        dtype: the number format of the computation.
        options: the `deciding` options; if there are any, the name ends with their digest.
    """
    tail = [digest(dict(options)).hex()[:8]] if options else []
    return "-".join([revision[:12], dtype, *tail])
