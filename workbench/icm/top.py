"""The published scores: of the twenty likeliest first tokens, for endpoints with nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from workbench.errors import EngineError, InputError
from workbench.types import Completion, Engine, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ScoreKind = Literal["exact", "top20"]
SCORES: tuple[ScoreKind, ...] = ("exact", "top20")

TOP, EPS = 20, 1e-5
NEITHER = (math.log(EPS), math.log(EPS))
"""The scores where neither label is among the likeliest tokens: log-odds of 0, as published."""


def compute_top_logprobs(
    prompts: Sequence[str], labels: tuple[str, str], engine: Engine
) -> NDArray[np.float64]:
    """log(1e-5 + sum of p over those of the 20 likeliest tokens that contain the label).

    Natural logarithm, float64 [n_prompts, 2]. A token counts for a label if it contains the label's
    text, in any case, and not the other one's (`solution_extraction.py` of Wen et al. 2025).

    Raises:
        EngineError: a prompt failed or has no log-probabilities; it never counts as 0.
        InputError: the engine names tokens by numbers and has no tokenizer.
    """
    import numpy as np

    rows = engine.generate(prompts, Sampling(max_tokens=1, logprobs=TOP), errors="return")
    for index, row in enumerate(rows):
        if row.error is not None or not row.logprobs or not row.logprobs[0].top:
            raise EngineError(
                f"prompt {index} of {len(prompts)} (…{prompts[index][-60:]!r}) could not be "
                f"scored: {row.error or 'the reply has no likeliest tokens'}",
                results=rows,
            )
    words = [label.strip().lower() for label in labels]
    mass = np.array([_mass(row, words, engine) for row in rows])
    return np.log(EPS + mass)


def _mass(row: Completion, words: Sequence[str], engine: Engine) -> tuple[float, float]:
    """Probability of the tokens that hold one word, and of those that hold the other."""
    assert row.logprobs is not None
    sums = [0.0, 0.0]
    for token, logprob in row.logprobs[0].top:
        text = _text(token, engine).lower()
        holds = [word in text for word in words]
        if sum(holds) == 1:
            sums[holds.index(True)] += math.exp(logprob)
    return sums[0], sums[1]


def _text(token: int | str, engine: Engine) -> str:
    if isinstance(token, str):
        return token
    tokenizer = getattr(engine, "tokenizer", None)
    if tokenizer is None:
        raise InputError(
            "scores='top20' needs the text of each token, and this server gives its number: take "
            "scores='exact', which such a server has"
        )
    return str(tokenizer.decode([token]))
