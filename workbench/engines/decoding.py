"""How the baseline decodes a padded batch with seeds, stop texts and lengths per row.

`model.generate` has one seed and one length for a whole batch. Here each row draws from its own
generator (Gumbel-max: the likeliest token after noise is a draw from the distribution), so that an
answer does not depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench.errors import InputError, log
from workbench.lazy import torch
from workbench.progress import check
from workbench.types import Completion, Sampling, TokenLogprob

COLD = 1e-6  # below it logits overflow, and the draw is the likeliest token anyway
START = 32  # rows of the first automatic batch; smaller sizes would be outgrown at once
MOST = 4096
GROWTH = 1.1  # least growth in tokens per second for twice the rows
CONTEXT = 4  # tokens before an answer that affect how its first token is written


def padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """Token ids [n, longest] padded on the left, and the mask: 1 where it is not padding."""
    width = max(len(row) for row in rows)
    ids = [[0] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def added_text(tokenizer: Any, before: Sequence[int], generated: Sequence[int]) -> str:
    """The text that tokens add to those before: some are written differently at a text's start."""
    context = list(before[-CONTEXT:])
    start = tokenizer.decode(context, skip_special_tokens=True)
    whole: str = tokenizer.decode([*context, *generated], skip_special_tokens=True)
    if whole.startswith(start):
        return whole[len(start) :]
    return str(tokenizer.decode(generated, skip_special_tokens=True))


def warpers(sampling: Sampling) -> list[Any]:
    """Functions that warp logits [rows, vocabulary] of a draw: temperature, top-k, top-p, min-p."""
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return processors


class Decoding:
    """How one call decodes; `run` does a batch.

    Args:
        ends: tokens that end an answer.
        context: maximum number of tokens of a prompt and its answer.

    Raises:
        InputError: structured output, which this engine does not have, or more `logprobs` than
            the model has tokens.
    """

    def __init__(
        self, model: Any, tokenizer: Any, ends: tuple[int, ...], context: int, sampling: Sampling
    ) -> None:
        for name in ("choices", "regex", "json_schema"):
            if getattr(sampling, name) is not None:
                raise InputError(f'{name}=… needs engine="vllm": transformers has no such output')
        size = int(model.config.get_text_config().vocab_size)
        if (sampling.logprobs or 0) > size:
            raise InputError(f"logprobs={sampling.logprobs}: the model has only {size} tokens")
        self._model = model
        self._tokenizer = tokenizer
        self._context = context
        self.sampling = sampling
        self._ends = ends
        self._closing: dict[int, bool] = {}

    def width(self, prompt: int) -> int:
        """Maximum number of tokens in a row with a prompt of this length."""
        return min(prompt + self.sampling.max_tokens, self._context)

    def run(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int | None],
        limit: ThinkingLimit | None = None,
    ) -> list[Completion]:
        """Complete a batch of prompts (token ids), with a seed per row; None is a random one."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        ids, mask = padded(prompts, self._model.device)
        caps = [self.width(len(prompt)) - len(prompt) for prompt in prompts]
        watch = _Watch(self, prompts, caps)
        processors: list[Any] = [watch.note_logits] if self.sampling.logprobs is not None else []
        if limit is not None:
            processors.append(limit.processor(ids.shape[1]))
        if self.sampling.temperature > COLD:
            processors.append(_Draw(self.sampling, seeds, ids.device))
        config = GenerationConfig(max_new_tokens=max(caps), do_sample=False, pad_token_id=0)
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([watch]),
            )
        watch.take(out)
        generated = out[:, ids.shape[1] :].tolist()
        return [
            self._completion(prompt, row[:length], watch.logprobs(i, row[:length]))
            for i, (prompt, row, length) in enumerate(
                zip(prompts, generated, watch.lengths, strict=True)
            )
        ]

    def _completion(
        self, prompt: list[int], generated: list[int], logprobs: tuple[TokenLogprob, ...] | None
    ) -> Completion:
        text = self.text(prompt, generated)
        ends_at = [at for stop in self.sampling.stop if (at := text.find(stop)) >= 0]
        return Completion(
            text=text[: min(ends_at)] if ends_at else text,
            finish_reason="stop" if ends_at or self.ends(generated) else "length",
            token_ids=tuple(generated),
            logprobs=logprobs,
            prompt_tokens=len(prompt),
            completion_tokens=len(generated),
            cached_tokens=0,  # transformers keeps no cache between calls
        )

    def ends(self, generated: Sequence[int]) -> bool:
        """Whether the model has ended the answer."""
        return not self.sampling.ignore_eos and generated[-1] in self._ends

    def closes(self, token: int) -> bool:
        """Whether a token may complete a stop text; if not, the text need not be checked."""
        if (known := self._closing.get(token)) is None:
            text = self._tokenizer.decode([token])
            lasts = {stop[-1] for stop in self.sampling.stop}
            # Part of a character, or a space that is not written at a text's start: possible.
            known = "\ufffd" in text or " " in lasts or any(last in text for last in lasts)
            self._closing[token] = known
        return known

    def text(self, before: Sequence[int], generated: Sequence[int]) -> str:
        """The text that tokens add to those before."""
        return added_text(self._tokenizer, before, generated)


class _Watch:
    """Ends each row at its length or stop text, and records log-probabilities.

    `lengths` has each row's number of tokens up to its end; later tokens are not in its answer.
    """

    def __init__(
        self, decoding: Decoding, prompts: Sequence[list[int]], caps: Sequence[int]
    ) -> None:
        self.lengths: list[int | None] = [None] * len(caps)
        self._decoding = decoding
        self._prompts = prompts
        self._start = max(len(prompt) for prompt in prompts)
        self._caps = caps
        self._stop = decoding.sampling.stop
        # Each token has at least a byte, except special tokens and parts of characters.
        self._tail = max((len(text.encode()) for text in self._stop), default=0) + CONTEXT
        self._top = decoding.sampling.logprobs
        self._last: Any = None
        self._noted: list[tuple[Any, Any, Any]] = []

    def __call__(self, ids: Any, _scores: Any, **_: Any) -> Any:
        check()
        for row, generated in enumerate(ids[:, self._start :].tolist()):
            if self.lengths[row] is None and self._is_done(row, generated):
                self.lengths[row] = len(generated)
        return torch.tensor([one is not None for one in self.lengths], device=ids.device)

    def _is_done(self, row: int, generated: list[int]) -> bool:
        if len(generated) >= self._caps[row] or self._decoding.ends(generated):
            return True
        if not self._decoding.closes(generated[-1]):
            return False
        known = max(0, len(generated) - self._tail)
        text = self._decoding.text(generated[:known] or self._prompts[row], generated[known:])
        return any(stop in text for stop in self._stop)

    def note_logits(self, ids: Any, scores: Any) -> Any:
        """A logits processor that runs first: it records log-probabilities before any warping."""
        self.take(ids)
        self._last = scores.float().log_softmax(-1)
        return scores

    def take(self, ids: Any) -> None:
        """Record the last tokens."""
        if self._last is None:
            return
        chosen = self._last.gather(-1, ids[:, -1:]).squeeze(-1).tolist()
        top = self._last.topk(self._top, dim=-1) if self._top else None
        values, tokens = (top.values.tolist(), top.indices.tolist()) if top else (None, None)
        self._noted.append((chosen, values, tokens))

    def logprobs(self, row: int, generated: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
        """A row's log-probabilities, one entry per token."""
        if self._top is None:
            return None
        rows = []
        for token, (chosen, values, tokens) in zip(generated, self._noted, strict=False):
            top = tuple(zip(tokens[row], values[row], strict=True)) if values else ()
            rows.append(TokenLogprob(token, chosen[row], top))
        return tuple(rows)


@dataclass(frozen=True, slots=True)
class ThinkingLimit:
    """Forces the end of thinking in each row of a batch whose thinking has `most` tokens.

    Attributes:
        start, end: the tokens around thinking.
        is_open: for each row, whether its prompt ends inside thinking.
    """

    start: int
    end: int
    most: int
    is_open: Sequence[bool]

    def processor(self, width: int) -> Callable[[Any, Any], Any]:
        """A logits processor for prompts of this width."""

        def force(ids: Any, scores: Any) -> Any:
            for row, made in enumerate(ids[:, width:].tolist()):
                marks = [at for at, token in enumerate(made) if token in (self.start, self.end)]
                thinking = made[marks[-1]] == self.start if marks else self.is_open[row]
                if thinking and len(made) - (marks[-1] + 1 if marks else 0) >= self.most:
                    scores[row] = float("-inf")
                    scores[row, self.end] = 0.0
            return scores

        return force


class _Draw:
    """Draws from each row's distribution with the row's generator."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int | None], device: Any) -> None:
        self._warpers = warpers(sampling)
        self._generators = [torch.Generator(device) for _ in seeds]
        for generator, seed in zip(self._generators, seeds, strict=True):
            generator.seed() if seed is None else generator.manual_seed(seed)

    def __call__(self, ids: Any, scores: Any) -> Any:
        for warp in self._warpers:
            scores = warp(ids, scores)
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log()  # -log of an exponential draw is a Gumbel draw


class BatchSize:
    """The number of rows in a batch: fixed, or adapted during one call.

    It doubles while tokens per second grow, and halves when memory runs out. The work changes
    during a call (long prompts come first). So a batch size that seems slower is compared with
    the smaller size, which runs right after it.
    """

    def __init__(self, what: str, size: int | Literal["auto"]) -> None:
        self._what = what
        self.auto = size == "auto"
        self.now = START if size == "auto" else size
        self.rates: dict[int, float] = {}  # latest tokens per second at each size
        self._growing = self.auto
        self._doubted: int | None = None  # a size that seemed slower

    @property
    def best(self) -> int:
        """The final size, or the fastest one measured so far."""
        if self._growing and self.rates:
            return max(self.rates, key=lambda size: self.rates[size])
        return self.now

    def note(self, rows: int, tokens: int, seconds: float, left: int) -> None:
        """Record a finished batch; of the `left` remaining rows, a trial gets at most half."""
        if not self._growing or rows != self.now:
            return
        self.rates[rows] = tokens / max(seconds, 1e-9)
        if self._doubted is not None:
            doubted, self._doubted = self._doubted, None
            if GROWTH * self.rates[rows] > self.rates[doubted]:
                self._growing = False
            else:
                self._grow(doubted, left)
        elif self.rates[rows] < GROWTH * self.rates.get(rows // 2, 0.0):
            self._doubted, self.now = rows, rows // 2
        else:
            self._grow(rows, left)

    def _grow(self, rows: int, left: int) -> None:
        self.now = 2 * rows if 2 * rows <= min(MOST, left / 2) else rows

    def out_of_memory(self, rows: int) -> bool:
        """Record that `rows` did not fit; False if there is no smaller size to try."""
        if not self.auto or rows == 1:
            return False
        log.warning(
            "%s: out of memory with %d rows per batch, trying %d", self._what, rows, rows // 2
        )
        self._growing = False
        self.now = rows // 2
        return True

    def log(self) -> None:
        """Log the batch size that was found."""
        seen = ", ".join(f"{rows}: {rate:,.0f}" for rows, rate in self.rates.items())
        log.info("%s: batch size %d (tokens per second: %s)", self._what, self.best, seen or "none")
