"""An answer of a masked-diffusion model as it comes to be, step by step."""

from __future__ import annotations

import math
from dataclasses import replace

from workbench.engines.diffusion import Denoising, DiffusionEngine
from workbench.errors import EngineError
from workbench.lazy import pd
from workbench.types import Sampling


def denoised(
    engine: DiffusionEngine,
    prompt: str,
    sampling: Sampling | None = None,
    denoising: Denoising | None = None,
) -> pd.DataFrame:
    """Which token of an answer was committed when, and how sure the model was of it.

    Args:
        sampling: how to answer, and how long the canvas is; greedy by default.
        denoising: the settings; None is those of the engine.

    Returns:
        A row for each token of the answer, in order: `place`, `token`, `text`, `step` (from 1),
        `probability` at that step.

    Raises:
        InputError: the prompt and its canvas do not fit into the context.
        EngineError: the model failed.
    """
    sampling = replace(sampling or Sampling(), logprobs=0)
    row = engine.row(engine.encode(prompt), sampling, denoising, seed=0)
    denoiser = engine.denoiser(1)
    denoiser.add(row)
    steps: dict[int, int] = {}
    before = row.ids.clone()
    while not row.done:
        denoiser.step()
        changed = (row.ids != before).nonzero()[:, 0].tolist()
        steps |= dict.fromkeys(changed, row.forwards)
        before = row.ids.clone()
    done = row.completion()
    if done.error is not None:
        raise EngineError(done.error)
    first = len(row.prompt)
    return pd.DataFrame([
        {"place": place, "token": one.token_id, "text": engine.tokenizer.decode([one.token_id]),
         "step": steps[first + place], "probability": math.exp(one.logprob)}
        for place, one in enumerate(done.logprobs or ())
    ])  # fmt: skip
