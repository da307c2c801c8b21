"""`open_engine`: one way in, whatever answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.engines import transformers, vllm
from workbench.errors import EngineUnavailableError, InputError
from workbench.store import open_store
from workbench.types import Engine

__all__ = ["ENGINES", "open_engine", "unavailable"]

log = logging.getLogger("workbench")

# In the order in which "auto" tries them: how to tell that one cannot run here.
ENGINES: Mapping[str, Callable[[], str | None]] = {
    "vllm": vllm.unavailable,
    "transformers": transformers.unavailable,
}
MADE_BY: Mapping[str, Callable[..., Engine]] = {
    "vllm": vllm.VLLMEngine,
    "transformers": transformers.TransformersEngine,
}


def unavailable(engine: str) -> str | None:
    """Why an engine cannot run here, or None if it can."""
    return ENGINES[engine]()


def open_engine(
    model: str | None = None,
    engine: str = "auto",
    *,
    store: str | Path | None = "default",
    **options: Any,
) -> Engine:
    """Open a model for work.

    Args:
        model: hub name or local folder; None is the embedded model.
        engine: "vllm" (in this process), "transformers" (the baseline, in padded batches), or
            "auto": the first that can run here.
        store: "default" keeps responses in the user's cache folder, a path in that file, None
            nowhere.
        options: arguments of the engine underneath, such as `max_model_len`, `device`,
            `load_format="dummy"` (both); `tensor_parallel_size`, `quantization`, `adapter`
            (vLLM); `batch_size` (transformers).

    Raises:
        InputError: an unknown engine or option, or a folder without a model.
        EngineUnavailableError: the engine cannot run here; names every reason.
        EngineError: the model could not be loaded.
        StoreError: the store file cannot be used.
    """
    if model is not None and (not isinstance(model, str) or not model):
        raise InputError(f"model={model!r} must be a hub name, a folder, or None")
    if engine != "auto" and engine not in ENGINES:
        raise InputError(f'engine={engine!r} is unknown; known: "auto", {", ".join(ENGINES)}')
    reasons = {name: unavailable(name) for name in ENGINES if engine in ("auto", name)}
    chosen = next((name for name, reason in reasons.items() if reason is None), None)
    if chosen is None:
        text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise EngineUnavailableError(f"no engine can run here. {text}. Install with `make setup`")
    why = "asked for" if engine == chosen else _why(chosen, reasons)
    opened = open_store(store)
    try:
        made = MADE_BY[chosen](model, opened, why, options)
    except BaseException:
        if opened is not None:
            opened.close()
        raise
    log.info("%r (%s)", made, why)
    return made


def _why(chosen: str, reasons: Mapping[str, str | None]) -> str:
    if chosen == "vllm":
        return "auto: vLLM can run in this process"
    passed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    return f"auto: {chosen}, since {passed}"
