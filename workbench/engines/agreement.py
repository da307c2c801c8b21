"""Whether two libraries agree on a model folder: they compare the first tokens after some texts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.engines.checkpoints.checks import weights_size
from workbench.errors import WorkbenchError
from workbench.machine import free_memory
from workbench.types import Sampling

PROMPTS = ("The capital of France is", "Question: What is 2+3?\nAnswer:", "def main():\n    ")
TIMES = 2.5  # the memory a library needs for this, as a multiple of the weights in float32
NEAR = 0.05  # difference of log-probabilities within which rounding may swap two tokens


def agreement(folder: Path, context: int) -> str:
    """Continue texts with each library; returns which did, or why none ran.

    vLLM runs in a separate process, as this one may already have an engine.

    Raises:
        WorkbenchError: they disagree, or transformers fails.
    """
    from workbench.engines import unavailable

    needed, free = TIMES * weights_size(folder, "float32"), free_memory()
    if needed > free:
        return f"none: it needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    ours = _first(folder, "transformers", {"device": "cpu"})
    if reason := unavailable("vllm"):
        return f"transformers only: {reason}"
    line = [sys.executable, "-m", __name__, str(folder), str(min(context, 128))]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["it ended"])[-1]
        return f"transformers only: vLLM: {last_line:.300}"
    theirs = json.loads(done.stdout.splitlines()[-1])
    compare(ours, [{int(token): value for token, value in one} for one in theirs])
    return "vLLM and transformers"


def main(folder: str, context: str) -> None:
    """Print vLLM's answers as JSON; if it fails, end with the reason on standard error."""
    options = {
        "max_model_len": int(context),
        "max_num_seqs": len(PROMPTS),
        "enforce_eager": True,
        "kv_cache_memory_bytes": 2**26,
    }
    try:
        answers = _first(Path(folder), "vllm", options)
    except WorkbenchError as error:
        sys.exit(str(error))
    print(json.dumps([list(one.items()) for one in answers]))


def compare(ours: Sequence[dict[int, float]], theirs: Sequence[dict[int, float]]) -> None:
    """Check that first tokens differ by rounding at most.

    Raises:
        WorkbenchError: they differ by more; names the text and both tokens.
    """
    for prompt, one, other in zip(PROMPTS, ours, theirs, strict=True):
        our_token, their_token = (max(scores, key=scores.__getitem__) for scores in (one, other))
        if one.get(their_token, -math.inf) < one[our_token] - NEAR:
            raise WorkbenchError(
                f"vLLM continues {prompt!r} with token {their_token}, transformers with "
                f"{our_token}: the converted model is not the same in both, and was not kept"
            )


def _first(folder: Path, engine: str, options: Mapping[str, Any]) -> list[dict[int, float]]:
    """The likeliest first tokens after each prompt: {token: log-probability}."""
    from workbench.engines import open_engine

    sampling = Sampling(max_tokens=1, logprobs=5)
    with open_engine(str(folder), engine, store=None, dtype="float32", **options) as opened:
        answers = opened.generate(PROMPTS, sampling)
    if failed := [answer.error for answer in answers if answer.error]:
        raise WorkbenchError(f"{engine} cannot answer with the converted model: {failed[0]}")
    return [{int(i): p for i, p in (answer.logprobs or ())[0].top} for answer in answers]


if __name__ == "__main__":
    main(*sys.argv[1:])
