"""Whether two libraries read a model folder alike: the first tokens after some texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.types import Sampling

__all__ = ["agreement", "compare"]

PROMPTS = ("The capital of France is", "Question: What is 2+3?\nAnswer:", "def main():\n    ")
NEAR = 0.05  # of log-probabilities: what rounding may turn round


def agreement(folder: Path, context: int) -> str:
    """Continue texts with each library; returns which did.

    Raises:
        WorkbenchError: they disagree, or transformers cannot.
    """
    from workbench.engines import unavailable

    ours = _first(folder, "transformers", {})
    if reason := unavailable("vllm"):
        return f"transformers only: {reason}"
    options = {
        "max_model_len": min(context, 128),
        "max_num_seqs": len(PROMPTS),
        "enforce_eager": True,
        "kv_cache_memory_bytes": 2**26,
    }
    try:
        theirs = _first(folder, "vllm", options)
    except WorkbenchError as error:
        return f"transformers only: vLLM: {error!s:.300}"
    compare(ours, theirs)
    return "vLLM and transformers"


def compare(ours: Sequence[dict[int, float]], theirs: Sequence[dict[int, float]]) -> None:
    """Refuse first tokens that differ by more than rounding.

    Raises:
        WorkbenchError: names the text and both tokens.
    """
    for prompt, one, other in zip(PROMPTS, ours, theirs, strict=True):
        mine, their = (max(scores, key=scores.__getitem__) for scores in (one, other))
        if one.get(their, -math.inf) < one[mine] - NEAR:
            raise WorkbenchError(
                f"vLLM continues {prompt!r} with token {their}, transformers with {mine}: the "
                "converted model is not the same in both, and was not kept"
            )


def _first(folder: Path, engine: str, options: Mapping[str, Any]) -> list[dict[int, float]]:
    """The likeliest first tokens after each prompt, with their log-probabilities."""
    from workbench.engines import open_engine

    sampling = Sampling(max_tokens=1, logprobs=5)
    with open_engine(str(folder), engine, store=None, dtype="float32", **options) as opened:
        answers = opened.generate(PROMPTS, sampling)
    if failed := [answer.error for answer in answers if answer.error]:
        raise WorkbenchError(f"{engine} cannot answer with the converted model: {failed[0]}")
    return [{int(i): p for i, p in (answer.logprobs or ())[0].top} for answer in answers]
