"""One answer during denoising: its canvas, settings, random numbers and progress."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

from workbench import values
from workbench.engines.base import failure
from workbench.engines.decoding import added_text
from workbench.engines.diffusion.denoising import Denoising, Proposal, most_confident, propose
from workbench.engines.diffusion.network import Network
from workbench.errors import InputError
from workbench.lazy import torch
from workbench.store import digest
from workbench.types import Completion, Sampling, TokenLogprob

BROKEN = "\ufffd"  # how a decoder writes part of a character


class Row:
    """The canvas is the prompt and `max_tokens` masks; committed tokens never change.

    Attributes:
        prompt: its tokens.
        ids: the canvas, tokens [length] on the CPU.
        forwards: steps so far.
        fresh: whether the next step needs a forward over the whole canvas.
        ended: whether the latest step has ended a block, or the answer.
        done: whether it finished, or failed with `error`.

    Raises:
        InputError: structured output, the mask among the prompt's tokens, too few steps, or a
            canvas longer than the context length.
    """

    def __init__(
        self,
        network: Network,
        prompt: Sequence[int],
        sampling: Sampling,
        denoising: Denoising,
        seed: int | None,
    ) -> None:
        _check(network, prompt, sampling)
        self.prompt = tuple(prompt)
        self.sampling, self.denoising = sampling, denoising
        self._seed = secrets.randbits(63) if seed is None else seed
        length = sampling.max_tokens
        self.ids = torch.tensor([*prompt, *[network.mask] * length])
        self.forwards = 0
        self.fresh = True
        self.ended = self.done = False
        self.error: str | None = None
        self._network = network
        self._quotas = denoising.quotas(length)
        self._most = sum(steps or denoising.block_length for steps in self._quotas)
        self._block = 0
        self._step = 0  # within the block
        self._settled = 0  # tokens of the answer before its first mask
        self._stopped = False
        self._noted: dict[int, TokenLogprob] = {}

    @property
    def slots(self) -> int:
        """Rows of a forward that it occupies: 2 with guidance, else 1."""
        return 2 if self.denoising.cfg_scale else 1

    @property
    def span(self) -> tuple[int, int]:
        """First position of its block in the canvas, and the one after its last."""
        start = len(self.prompt) + self._block * self.denoising.block_length
        return start, min(start + self.denoising.block_length, len(self.ids))

    def masked(self) -> list[int]:
        """Canvas positions in this block that are still masked."""
        start, end = self.span
        here: Any = self.ids[start:end] == self._network.mask
        return [start + place for place in here.nonzero()[:, 0].tolist()]

    def propose(self, logits: Any) -> Proposal:
        """A proposal from its logits; a repeated step draws the same random numbers."""
        seed = int.from_bytes(digest(self._seed, self.forwards)[:7], "big")
        generator: Any = torch.Generator(self._network.device).manual_seed(seed)
        how = self.denoising.remasking
        return propose(logits, self._network.mask, self.sampling, how, generator)

    def commit(self, positions: Sequence[int], proposal: Proposal) -> int:
        """Commit a step's proposal at the open positions; returns how many tokens it commits."""
        self.forwards += 1
        if any(math.isnan(value) for value in proposal.logprobs):
            self.fail("the model's logits are not numbers (NaN or infinite)")
            return 0
        if self.forwards > self._most:
            self.fail(f"the canvas was not filled after {self._most} steps")
            return 0
        limit = self.denoising.threshold
        least = math.log(limit) if limit else -math.inf
        picked = most_confident(proposal.confidences, self._quota(), least)
        for index in picked:
            self.ids[positions[index]] = proposal.tokens[index]
            self._note(positions[index], index, proposal)
        self._step += 1
        self.fresh = self.denoising.cache == "none"
        self._settle()
        filled = len(picked) == len(positions)
        if filled and not self.done:
            self._block, self._step, self.fresh = self._block + 1, 0, True
            self.done = self._block == len(self._quotas)
        self.ended = filled or self.done
        return len(picked)

    def rewind(self) -> None:
        """Return to the beginning of its block, the only place where a cache can be filled."""
        if self.denoising.cache != "none":
            start, end = self.span
            self.ids[start:end] = self._network.mask
            self.forwards -= self._step
            self._step, self._settled = 0, min(self._settled, start - len(self.prompt))
        self.fresh = True

    def fail(self, reason: str) -> None:
        """End it with an error."""
        self.done, self.ended, self.error = True, True, reason

    def text(self) -> str:
        """The settled part of the answer; later calls only add to it."""
        text = added_text(self._network.tokenizer, self.prompt, self._made())
        if found := [at for stop in self.sampling.stop if (at := text.find(stop)) >= 0]:
            return text[: min(found)]
        if self.done:
            return text
        text = text.rstrip(BROKEN)
        begun = (
            stop[:size]
            for stop in self.sampling.stop
            for size in range(1, min(len(stop), len(text) + 1))
        )
        return text[: len(text) - max((len(x) for x in begun if text.endswith(x)), default=0)]

    def completion(self) -> Completion:
        """The answer, once it is done."""
        if self.error is not None:
            return failure(self.error, len(self.prompt))
        made = self._made()
        noted = None
        if self.sampling.logprobs is not None:
            noted = tuple(self._noted[len(self.prompt) + place] for place in range(len(made)))
        return Completion(
            text=self.text(),
            finish_reason="stop" if self._stopped else "length",
            token_ids=tuple(made),
            logprobs=noted,
            prompt_tokens=len(self.prompt),
            completion_tokens=len(made),
            cached_tokens=0,
        )

    def _made(self) -> list[int]:
        """The settled tokens of the answer, including the token that ends it."""
        start = len(self.prompt)
        tokens: list[int] = self.ids[start : start + self._settled].tolist()
        return tokens

    def _quota(self) -> int | None:
        """How many tokens this step commits: the block's, shared evenly (LLaDA, generate.py)."""
        if (steps := self._quotas[self._block]) is None:
            return None
        start, end = self.span
        share, rest = divmod(end - start, steps)
        return share + (self._step < rest)

    def _note(self, position: int, index: int, proposal: Proposal) -> None:
        if self.sampling.logprobs is None:
            return
        token, logprob = proposal.tokens[index], proposal.logprobs[index]
        top = tuple(proposal.top[index]) if proposal.top else ()
        self._noted[position] = TokenLogprob(token, logprob, top)

    def _settle(self) -> None:
        """Find how far the answer is settled, and whether it ends there."""
        answer = self.ids[len(self.prompt) :].tolist()
        mask = self._network.mask
        before = self._settled
        while self._settled < len(answer) and answer[self._settled] != mask:
            self._settled += 1
        if not self.sampling.ignore_eos:
            ends = (at for at in range(before, self._settled) if answer[at] in self._network.ends)
            if (end := next(ends, None)) is not None:
                self._settled = end + 1
                self.done = self._stopped = True
        if self.sampling.stop and self._settled > before:
            self._cut(answer, before)

    def _cut(self, answer: Sequence[int], before: int) -> None:
        """End it at the token that completes a stop text."""

        def holds(size: int) -> bool:
            text = added_text(self._network.tokenizer, self.prompt, answer[:size])
            return any(stop in text for stop in self.sampling.stop)

        if holds(self._settled):
            sizes = range(before + 1, self._settled)
            self._settled = next((size for size in sizes if holds(size)), self._settled)
            self.done = self._stopped = True


def _check(network: Network, prompt: Sequence[int], sampling: Sampling) -> None:
    for name in ("choices", "regex", "json_schema", "max_reasoning_tokens"):
        if getattr(sampling, name) is not None:
            raise InputError(f'{name}=… needs engine="vllm": a diffusion model has no such output')
    for token in prompt:
        values.whole("a token id of the prompt", token, 0, network.vocabulary - 1)
    if (sampling.logprobs or 0) > network.vocabulary:
        raise InputError(
            f"logprobs={sampling.logprobs}: the model has only {network.vocabulary} tokens"
        )
    if network.mask in prompt:
        raise InputError(
            f"the prompt holds the mask token ({network.mask}), which marks positions to be "
            "filled: take it out"
        )
    if len(prompt) + sampling.max_tokens > network.context:
        raise InputError(
            f"the prompt has {len(prompt)} tokens and max_tokens={sampling.max_tokens}, the "
            f"context holds {network.context}: shorten the prompt or lower max_tokens"
        )
