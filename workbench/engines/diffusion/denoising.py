"""How a masked-diffusion model fills its canvas: the settings of one answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from workbench import values
from workbench.engines.local import check_options
from workbench.errors import InputError

Cache = Literal["none", "prefix", "dual"]
Remasking = Literal["low_confidence", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoising:
    """Which masked tokens are committed, and when (LLaDA, arXiv 2502.09992; Fast-dLLM, 2505.22618).

    The canvas is the prompt and `max_tokens` masks. It is filled block by block from the left; a
    step is one forward, after which some tokens of the current block are committed for good.

    Attributes:
        steps: steps for the whole canvas, shared evenly among the blocks; None is a token a step.
        block_length: tokens of a block. The last block is shorter where `max_tokens` is no
            multiple of it.
        threshold: commit the most confident token of a step and every other with at least this
            probability; excludes `steps`.
        cfg_scale: classifier-free guidance: logits l become u + (cfg_scale + 1)·(l − u), where u
            are those without the prompt; costs a second forward of the row.
        remasking: commit the tokens of highest probability, or some at random.
        cache: "none" runs over the whole canvas at each step; "prefix" keeps keys and values of
            what lies before the block while it is filled, "dual" of all that lies outside it.
            Both are approximations: what is kept does not see what is committed since.

    Raises:
        InputError: a value is out of its range, or two exclude each other.
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
                f"steps={self.steps} and threshold={self.threshold} exclude each other: a "
                "threshold decides how many steps there are; leave one of them out"
            )
        if self.threshold is not None and self.remasking == "random":
            raise InputError(
                f'threshold={self.threshold} needs remasking="low_confidence": random order has '
                "no probabilities to compare"
            )

    @classmethod
    def of(cls, options: dict[str, Any]) -> Denoising:
        """Settings by their names.

        Raises:
            InputError: an unknown name, and as for the class.
        """
        check_options(options, [field.name for field in fields(cls)], "diffusion")
        return cls(**options)

    def __str__(self) -> str:
        """What tells it from others, for tables and figures."""
        if self.threshold is not None:
            how = f"threshold {self.threshold:g}"
        else:
            how = "one token a step" if self.steps is None else f"{self.steps} steps"
        told = {
            "cache": f"{self.cache} cache",
            "block_length": f"blocks of {self.block_length}",
            "cfg_scale": f"guidance {self.cfg_scale:g}",
            "remasking": f"{self.remasking} order",
        }
        plain = {field.name: field.default for field in fields(self)}
        more = [text for name, text in told.items() if getattr(self, name) != plain[name]]
        return ", ".join([how, *more])

    def quotas(self, length: int) -> Sequence[int | None]:
        """Steps of each block of a canvas of `length` masks; None is until the block is full.

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
                f"block_length={self.block_length}): give at least {blocks}, or longer blocks"
            )
        if self.steps is None:
            last = length - (blocks - 1) * self.block_length
            return [self.block_length] * (blocks - 1) + [last]
        return [steps // blocks + (block < steps % blocks) for block in range(blocks)]


def _one_of(name: str, value: object, kind: Any) -> str:
    known = get_args(kind)
    if not isinstance(value, str) or value not in known:
        values.refuse(name, value, " or ".join(f'"{one}"' for one in known))
    return str(value)


# How each field is checked and made plain, in their order.
_FIELDS: dict[str, tuple[Any, ...]] = {
    "steps": (values.optional, values.whole, 1),
    "block_length": (values.whole, 1),
    "threshold": (values.optional, values.real, 0, 1),
    "cfg_scale": (values.real, 0, 100),
    "remasking": (_one_of, Remasking),
    "cache": (_one_of, Cache),
}
