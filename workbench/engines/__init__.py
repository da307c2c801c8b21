"""`open_engine`: one way to open any model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from workbench.engines import diffusion, ray, transformers, vllm
from workbench.engines.base import BaseEngine
from workbench.engines.device import whole_imports
from workbench.engines.identity import HARMLESS, repeatable
from workbench.engines.remote import RemoteEngine
from workbench.engines.source import EMBEDDED, EMBEDDED_DIFFUSION
from workbench.errors import EngineUnavailableError, InputError
from workbench.feed import Stage
from workbench.machine import install_hint
from workbench.progress import loading, waiting
from workbench.store import Store, open_store
from workbench.types import EngineInfo

__all__ = ["ENGINES", "open_engine", "unavailable"]

log = logging.getLogger("workbench")
URL = "WORKBENCH_BASE_URL"
MISSING = "not installed"  # in the reason why an engine is unavailable
# With no other options, another engine has the same model and may take over.
SAME_ANSWERS = HARMLESS | {"device"}


@dataclass(frozen=True, slots=True)
class EngineKind:
    """A kind of engine: its constructor; a function that returns why it cannot run here (None if it
    can); and the extra with its dependencies (see `install_hint`)."""

    make: Callable[..., BaseEngine]
    unavailable: Callable[[], str | None]
    part: str = "transformers"


def _no_server() -> str | None:
    return None if os.environ.get(URL) else f"no server is set ({URL} or base_url)"


ENGINES: Mapping[str, EngineKind] = {
    "vllm": EngineKind(vllm.VLLMEngine, vllm.unavailable, ""),
    "remote": EngineKind(RemoteEngine, _no_server),
    "transformers": EngineKind(transformers.TransformersEngine, transformers.unavailable),
    "diffusion": EngineKind(diffusion.DiffusionEngine, diffusion.unavailable),
    "ray": EngineKind(ray.RayEngine, ray.unavailable, "ray"),
}
AUTO = ("vllm", "remote", "transformers")  # tried in this order


def unavailable(engine: str) -> str | None:
    """The reason why an engine cannot run here; None if it can."""
    return ENGINES[engine].unavailable()


def open_engine(
    model: str | None = None,
    engine: str = "auto",
    *,
    base_url: str | Sequence[str] | None = None,
    store: str | Path | None = "default",
    **options: Any,
) -> BaseEngine:
    """Open a model.

    Args:
        model: hub name, local folder or .gguf file (converted once, see `convert_gguf`), or a
            served name; None is the embedded model, or the only one that the server lists.
        engine: "vllm" (in this process), "remote" (an OpenAI-compatible server), "transformers"
            (the baseline, in padded batches), "diffusion" (a model of the LLaDA family), "ray"
            (replicas of a vLLM model on a cluster), or "auto": the first of vLLM, remote and
            transformers that works here. If it is lost mid-run, "auto" continues with the next one
            that has the same model and revision (see `info.failovers`).
        base_url: the server's URL, or several to share the work (in a list, or with commas), or a
            folder or file that lists them and is read again (see `remote.fleet`); default
            `WORKBENCH_BASE_URL`.
        store: "default" keeps answers in the user's cache folder, a path in that file, None
            nowhere.
        options: arguments of the underlying engine, such as `max_model_len`, `device`,
            `load_format="dummy"` (in process); `tensor_parallel_size`, `quantization`, `adapter`
            (vLLM); `batch_size` (transformers); `max_concurrency` and the other fields of
            `RemoteOptions` (remote); `batch_size` and the fields of `Denoising` (diffusion);
            `replicas`, `address` and those of vLLM (Ray).

    Raises:
        InputError: an unknown engine or option, a folder without a model, an invalid URL.
        EngineUnavailableError: the engine cannot run here; lists every reason.
        EngineError: the model could not be loaded.
        StoreError: the store file cannot be used.
    """
    if model is not None and (not isinstance(model, str) or not model):
        raise InputError(f"model={model!r} must be a hub name, a folder, or None")
    if engine != "auto" and engine not in ENGINES:
        raise InputError(f'engine={engine!r} is unknown; known: "auto", {", ".join(ENGINES)}')
    url = base_url or os.environ.get(URL)
    responses = open_store(store)
    try:
        first = "vllm" if engine == "auto" else engine
        with loading(_named(first, model)) as stage, whole_imports(partial(waiting, "imports")):
            if engine == "auto":
                opened = _first(model, url, responses, options, stage)
                if base_url and opened.info.engine != "remote":
                    opened._note('base_url is for a failover only: engine="remote" uses the server')
            else:
                opened = _open(
                    engine, model, url=url, store=responses, why="requested", options=options
                )
            stage.note = _ready(opened.info)
    except BaseException:
        if responses is not None:
            responses.close()
        raise
    log.info("%r (%s)", opened, opened.info.why)
    return opened


def _named(engine: str, model: str | None) -> str:
    """What is loading, for people; the last part of a path."""
    embedded = {"remote": None, "diffusion": EMBEDDED_DIFFUSION}.get(engine, EMBEDDED)
    name = Path(model).name if model and Path(model).exists() else model or embedded
    return f"{engine}, {name}" if name else engine


def _ready(info: EngineInfo) -> str:
    place = info.device if info.engine == "remote" else info.dtype
    return f"{_named(info.engine, info.model)}, {place}"


def _open(
    engine: str,
    model: str | None,
    *,
    url: str | Sequence[str] | None,
    store: Store | None,
    why: str,
    options: Mapping[str, Any],
) -> BaseEngine:
    """Open one engine.

    Raises:
        EngineUnavailableError: it cannot run here.
    """
    if engine == "remote":
        options = {**options, "base_url": url}
    elif reason := unavailable(engine):
        hint = install_hint(ENGINES[engine].part)
        raise EngineUnavailableError(f"{engine}: {reason}; install it with {hint}")
    opened = ENGINES[engine].make(model, store, why, options)
    opened._info = replace(opened._info, options=repeatable(options))
    return opened


def _first(
    model: str | None,
    url: str | Sequence[str] | None,
    store: Store | None,
    options: Mapping[str, Any],
    stage: Stage,
) -> BaseEngine:
    """The first engine that can run here; those after it are for failover."""
    reasons: list[str] = []
    names = [name for name in AUTO if name != "remote" or url]
    for position, name in enumerate(names):
        why = f"auto: {name}, since {'; '.join(reasons)}"
        if name == "vllm":
            why = "auto: vLLM can run in this process"
        stage.what, stage.note = "loading", _named(name, model)
        if position:
            stage.note += f" (not {', '.join(names[:position])})"
        try:
            opened = _open(name, model, url=url, store=store, why=why, options=options)
        except (EngineUnavailableError, InputError) as error:
            if isinstance(error, InputError) and name != "remote":
                raise
            log.info("%s", error)
            reasons.append(f"{name}: {gap}" if (gap := unavailable(name)) else str(error))
            continue
        if set(options) <= SAME_ANSWERS and opened.variant:
            later = partial(_open, model=opened.info.model, url=url, store=None, why="", options={})
            able = [n for n in names[position + 1 :] if n == "remote" or not unavailable(n)]
            opened.followed_by(partial(later, name) for name in able)
        return opened
    if not url:
        reasons.append(f"remote: {_no_server()}")
    text = "; ".join(reasons)
    if MISSING in text:
        text += f". Install one: {install_hint()}"
    raise EngineUnavailableError(f"no engine can run here. {text}")
