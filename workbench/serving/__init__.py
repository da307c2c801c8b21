"""A vLLM server in a process of its own, for work over HTTP: started, awaited, ended."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from workbench.engines.folder import check_adapters
from workbench.engines.source import Source
from workbench.engines.vllm import unavailable
from workbench.errors import EngineUnavailableError, InputError
from workbench.runs import run_dir
from workbench.serving.address import check_port, free_port, warn_if_open
from workbench.serving.key import from_environment
from workbench.serving.presets import (
    PRESETS,
    Preset,
    arguments,
    find_preset,
    served,
)
from workbench.serving.process import open_log
from workbench.serving.server import PortTakenError, Server

__all__ = ["PRESETS", "Preset", "Server", "serve"]

logger = logging.getLogger("workbench")

TIMEOUT = 600.0
TIMEOUT_PRESET = 1800.0  # hundreds of gigabytes are read first


def serve(
    model: str | None = None,
    preset: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    log: str | Path | None = None,
    timeout: float | None = None,
    **options: Any,
) -> Server:
    """Start a vLLM server and wait until it answers.

    A key in the environment variable `WORKBENCH_API_KEY` is asked of every client, at every path
    but `/health`.

    Args:
        model: hub name or local folder; None is the embedded model.
        preset: settings for models of a size: "8b", "70b", "405b" (see `PRESETS`).
        host: where it listens; the default is reached from this machine only.
        port: None is a free one.
        log: the file for its output, which is added to; None is a new one in `runs/serve/`.
        timeout: seconds to wait for it; None is 600, or 1800 with a preset.
        options: flags of vLLM's server in snake case, which win over the preset: True is
            `--flag`, False `--no-flag`, None leaves a default of ours out.

    Raises:
        InputError: an unknown preset or option, a port that is taken, too few GPUs, a folder that
            is broken or has pickles for weights.
        EngineUnavailableError: vLLM is not installed here.
        EngineError: it ended, or did not answer in time; quotes what vLLM said.
    """
    if reason := unavailable():
        raise EngineUnavailableError(f"no server can run here: {reason}. Install with `make setup`")
    chosen = find_preset(preset, options)
    source = Source.find(model)
    source.check_causal()
    settings = arguments(source, chosen, options)
    own = {"tokenizer", "skip_tokenizer_init", "config"} & settings.keys()
    source.check(settings, tokenizer=not own, whole=True)
    check_adapters(settings.get("lora_modules"))
    limit = timeout if timeout is not None else TIMEOUT_PRESET if chosen else TIMEOUT
    if not limit > 0:
        raise InputError(f"timeout={timeout!r} must be a positive number of seconds")
    if port is not None:
        check_port(host, port)
    warn_if_open(host, from_environment())
    told, path = served(source, settings), _log_file(log)

    def start(at: int) -> Server:
        return Server(source, settings, told, path, host=host, port=at, timeout=limit)

    try:
        return start(port or free_port(host))
    except PortTakenError:  # between our looking and its taking
        if port is not None:
            raise
        return start(free_port(host))


def _log_file(path: str | Path | None) -> Path:
    """An empty file or the caller's own, ready to be added to."""
    if path is not None:
        file = Path(path).expanduser()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            open_log(file).close()
        except OSError as error:
            raise InputError(f"log={str(path)!r} cannot be written: {error}") from error
        return file
    folder, name = run_dir() / "serve", time.strftime("%Y%m%d-%H%M%S-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(".log", name, folder)
    except OSError:  # the project is read-only
        handle, made = tempfile.mkstemp(".log", "workbench-serve-")
    os.close(handle)
    return Path(made)
