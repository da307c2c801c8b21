"""Which masked tokens a step commits, and to what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.engines.decoding import COLD, warpers
from workbench.engines.diffusion.denoising import Remasking
from workbench.types import Sampling


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the model would write at each masked position of a row's block.

    Attributes:
        tokens: the likeliest, or drawn at a temperature.
        logprobs: their natural log-probabilities, before any temperature.
        confidences: what decides which are committed first: the same, or random numbers.
        top: the likeliest tokens at each position with theirs, if asked for.
    """

    tokens: list[int]
    logprobs: list[float]
    confidences: list[float]
    top: list[list[tuple[int, float]]]


def propose(
    logits: Any, mask: int, sampling: Sampling, remasking: Remasking, generator: Any
) -> Proposal:
    """A row's proposal from its logits [masked positions, vocabulary].

    In float64, as published: at float32 the noise of a draw loses the tail of the distribution
    (LLaDA's generate.py). The mask itself is never proposed.
    """
    import torch

    wide = logits.double()
    logprobs = wide.log_softmax(-1)
    scores = wide.clone()
    scores[:, mask] = -torch.inf
    if sampling.temperature > COLD:
        for warp in warpers(sampling):
            scores = warp(None, scores)
        noise = torch.empty_like(scores).exponential_(generator=generator)
        scores = scores - noise.log()  # -log of an exponential draw is a Gumbel draw
    tokens = scores.argmax(-1)
    found = logprobs.gather(-1, tokens[:, None])[:, 0]
    top: list[list[tuple[int, float]]] = []
    if sampling.logprobs:
        logprobs[:, mask] = -torch.inf
        best = logprobs.topk(sampling.logprobs, -1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    order = found
    if remasking == "random":
        order = torch.rand(found.shape, generator=generator, device=found.device)
    return Proposal(tokens.tolist(), found.tolist(), order.tolist(), top)


def chosen(confidences: Sequence[float], quota: int | None, threshold: float) -> list[int]:
    """Which of the masked positions are committed: a quota of the most confident, or by threshold.

    Args:
        quota: how many; None is all of at least `threshold`, and the most confident in any case.
        threshold: in the unit of `confidences`.

    Returns:
        Indices into `confidences`, the most confident first, the leftmost first where equal.
    """
    order = sorted(range(len(confidences)), key=lambda index: -confidences[index])
    if quota is not None:
        return order[:quota]
    return order[:1] + [index for index in order[1:] if confidences[index] >= threshold]
