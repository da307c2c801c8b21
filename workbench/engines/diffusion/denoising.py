"""How a masked-diffusion model fills its canvas: settings, and the tokens that a step commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from workbench import values
from workbench.engines.decoding import COLD, warpers
from workbench.errors import InputError
from workbench.lazy import torch
from workbench.types import Sampling

Cache = Literal["none", "prefix", "dual"]
Remasking = Literal["low_confidence", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoising:
    """Which masked tokens are committed, and when (LLaDA, arXiv 2502.09992; Fast-dLLM, 2505.22618).

    The canvas is the prompt and `max_tokens` masks. It is filled block by block from the left. A
    step is one forward, which commits some tokens of the current block for good.

    Attributes:
        steps: steps for the whole canvas, shared evenly among the blocks; None is one per token.
        block_length: tokens per block. The last block is shorter if `max_tokens` is no multiple
            of it.
        threshold: commit the most confident token of a step and every other with at least this
            probability; excludes `steps`.
        cfg_scale: classifier-free guidance: logits l become u + (cfg_scale + 1)·(l − u), where u
            are those without the prompt. It needs two forwards per row.
        remasking: commit the tokens of highest probability, or random ones.
        cache: "none" runs over the whole canvas at each step. "prefix" keeps keys and values of
            the tokens before the block while it is filled, "dual" of all outside it. Both are
            approximations: cached values do not reflect tokens committed since.

    Raises:
        InputError: a value is out of its range, or two values exclude each other.
    """

    steps: int | None = None
    block_length: int = 32
    threshold: float | None = None
    cfg_scale: float = 0.0
    remasking: Remasking = "low_confidence"
    cache: Cache = "none"

    def __post_init__(self) -> None:
        for name, (check, *limits) in _FIELDS.items():  # equal settings are the same request
            object.__setattr__(self, name, check(name, getattr(self, name), *limits))
        if self.threshold is not None and self.steps is not None:
            raise InputError(
                f"steps={self.steps} and threshold={self.threshold} exclude each other, as a "
                "threshold decides the number of steps: leave one of them out"
            )
        if self.threshold is not None and self.remasking == "random":
            raise InputError(
                f'threshold={self.threshold} needs remasking="low_confidence": random order has '
                "no probabilities to compare"
            )

    def __str__(self) -> str:
        """A short name, for tables and figures."""
        if self.threshold is not None:
            how = f"threshold {self.threshold:g}"
        else:
            how = "one token per step" if self.steps is None else f"{self.steps} steps"
        texts = {
            "cache": f"{self.cache} cache",
            "block_length": f"blocks of {self.block_length}",
            "cfg_scale": f"guidance {self.cfg_scale:g}",
            "remasking": f"{self.remasking} order",
        }
        plain = {field.name: field.default for field in fields(self)}
        more = [text for name, text in texts.items() if getattr(self, name) != plain[name]]
        return ", ".join([how, *more])

    def quotas(self, length: int) -> Sequence[int | None]:
        """Steps of each block of a canvas of `length` masks; None means until the block is full.

        Raises:
            InputError: fewer steps than blocks.
        """
        blocks = -(-length // self.block_length)
        if self.threshold is not None:
            return [None] * blocks
        steps = length if self.steps is None else self.steps
        if steps < blocks:
            raise InputError(
                f"steps={steps} are too few for {blocks} blocks (max_tokens={length}, "
                f"block_length={self.block_length}): use at least {blocks}, or longer blocks"
            )
        if self.steps is None:
            last = length - (blocks - 1) * self.block_length
            return [self.block_length] * (blocks - 1) + [last]
        return [steps // blocks + (block < steps % blocks) for block in range(blocks)]


# How each field is checked and normalised, in the order of the fields.
_FIELDS: dict[str, tuple[Any, ...]] = {
    "steps": (values.optional, values.whole, 1),
    "block_length": (values.whole, 1),
    "threshold": (values.optional, values.real, 0, 1),
    "cfg_scale": (values.real, 0, 100),
    "remasking": (values.choice, *get_args(Remasking)),
    "cache": (values.choice, *get_args(Cache)),
}


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the model proposes for each masked position of a row's block.

    Attributes:
        tokens: the likeliest ones, or draws at a temperature.
        logprobs: their natural log-probabilities, before any temperature.
        confidences: decide the order of commits: probabilities, or random numbers.
        top: the likeliest tokens at each position with log-probabilities, if requested.
    """

    tokens: list[int]
    logprobs: list[float]
    confidences: list[float]
    top: list[list[tuple[int, float]]]


def propose(
    logits: Any, mask: int, sampling: Sampling, remasking: Remasking, generator: Any
) -> Proposal:
    """A row's proposal from its logits [masked positions, vocabulary].

    In float64, as published: in float32 the noise of a draw loses the tail of the distribution
    (LLaDA's generate.py). The mask is never proposed.
    """
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
    own = logprobs.gather(-1, tokens[:, None])[:, 0]
    top: list[list[tuple[int, float]]] = []
    if sampling.logprobs:
        logprobs[:, mask] = -torch.inf
        best = logprobs.topk(sampling.logprobs, -1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    order = own
    if remasking == "random":
        order = torch.rand(own.shape, generator=generator, device=own.device)
    return Proposal(tokens.tolist(), own.tolist(), order.tolist(), top)


def most_confident(confidences: Sequence[float], quota: int | None, threshold: float) -> list[int]:
    """The masked positions to commit: a quota of the most confident, or all above a threshold.

    Args:
        quota: how many; None commits all of at least `threshold`, and always the most confident.
        threshold: in the unit of `confidences`.

    Returns:
        Indices into `confidences`, most confident first; for ties, leftmost first.
    """
    order = sorted(range(len(confidences)), key=lambda index: -confidences[index])
    if quota is not None:
        return order[:quota]
    return order[:1] + [index for index in order[1:] if confidences[index] >= threshold]
