"""How the baseline decodes a padded batch: seeds, stop texts and lengths of each row's own.

`model.generate` knows one seed and one length for a whole batch. Here a row's draws come from its
own generator (Gumbel-max: the likeliest token after noise is a draw from the distribution), so that
an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.errors import InputError
from workbench.types import Completion, Sampling, TokenLogprob

__all__ = ["Decoding", "padded"]

CONTEXT = 4  # tokens before an answer that decide how its first one is written


def padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """Token ids [n, longest] with padding on the left, and the mask of what is not padding."""
    import torch

    width = max(len(row) for row in rows)
    ids = [[0] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class Decoding:
    """One call's way to decode; `run` does a batch.

    Args:
        ends: tokens that end an answer.
        context: most tokens of a prompt and its answer.

    Raises:
        InputError: structured output, which this engine does not have.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        ends: tuple[int, ...],
        context: int,
        sampling: Sampling,
    ) -> None:
        for name in ("choices", "regex", "json_schema"):
            if getattr(sampling, name) is not None:
                raise InputError(f'{name}=… needs engine="vllm": transformers has no such output')
        self._model = model
        self._tokenizer = tokenizer
        self._context = context
        self._sampling = sampling
        self._ends = ends

    def width(self, prompt: int) -> int:
        """Most tokens of a row whose prompt has so many."""
        return min(prompt + self._sampling.max_tokens, self._context)

    def run(self, prompts: Sequence[list[int]], seeds: Sequence[int | None]) -> list[Completion]:
        """Complete a batch of prompts (token ids); a seed for each row, None for a fresh one."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        ids, mask = padded(prompts, self._model.device)
        caps = [self.width(len(prompt)) - len(prompt) for prompt in prompts]
        watch = _Watch(self._tokenizer, ids.shape[1], caps, self._sampling)
        processors: list[Any] = [watch.note_logits] if self._sampling.logprobs is not None else []
        if self._sampling.temperature > 0:
            processors.append(_Draw(self._sampling, seeds, ids.device))
        config = GenerationConfig(
            max_new_tokens=max(caps),
            do_sample=False,
            eos_token_id=None if self._sampling.ignore_eos else list(self._ends) or None,
            pad_token_id=self._ends[0] if self._ends else 0,
        )
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([watch]),
            )
        watch.finish(out)
        made = out[:, ids.shape[1] :].tolist()
        return [
            self._completion(prompt, row[: watch.lengths[i] or len(row)], watch, i)
            for i, (prompt, row) in enumerate(zip(prompts, made, strict=True))
        ]

    def _completion(
        self, prompt: list[int], made: list[int], watch: _Watch, row: int
    ) -> Completion:
        ended = False
        if not self._sampling.ignore_eos:
            place = next((i for i, token in enumerate(made) if token in self._ends), None)
            ended = place is not None
            made = made if place is None else made[: place + 1]
        text = self._text(prompt, made)
        found = [at for stop in self._sampling.stop if (at := text.find(stop)) >= 0]
        return Completion(
            text=text[: min(found)] if found else text,
            finish_reason="stop" if ended or found else "length",
            token_ids=tuple(made),
            logprobs=watch.logprobs(row, made),
            prompt_tokens=len(prompt),
            completion_tokens=len(made),
        )

    def _text(self, prompt: list[int], made: list[int]) -> str:
        """What the tokens add to the prompt: some are written otherwise at a text's beginning."""
        before = self._tokenizer.decode(prompt[-CONTEXT:], skip_special_tokens=True)
        whole: str = self._tokenizer.decode(prompt[-CONTEXT:] + made, skip_special_tokens=True)
        if whole.startswith(before):
            return whole[len(before) :]
        return str(self._tokenizer.decode(made, skip_special_tokens=True))


class _Watch:
    """Ends each row at its own length or stop text, and notes log-probabilities on the way.

    A row's tokens count up to where it ended; what follows in the batch is padding.
    """

    def __init__(self, tokenizer: Any, start: int, caps: Sequence[int], sampling: Sampling) -> None:
        self.lengths: list[int | None] = [None] * len(caps)
        self._tokenizer = tokenizer
        self._start = start
        self._caps = caps
        self._stop = sampling.stop
        # Each token is a byte at least, but for special ones and halves of a character.
        self._tail = max((len(text.encode()) for text in sampling.stop), default=0) + 4
        self._top = sampling.logprobs
        self._last: Any = None
        self._noted: list[tuple[Any, Any, Any]] = []

    def __call__(self, ids: Any, _scores: Any, **_: Any) -> Any:
        import torch

        made = ids.shape[1] - self._start
        waiting = [i for i, length in enumerate(self.lengths) if length is None]
        tails = ids[waiting, max(self._start, ids.shape[1] - self._tail) :] if self._stop else []
        texts = self._tokenizer.batch_decode(tails, skip_special_tokens=True) if self._stop else []
        for place, row in enumerate(waiting):
            met = bool(texts) and any(stop in texts[place] for stop in self._stop)
            if met or made >= self._caps[row]:
                self.lengths[row] = made
        ended = [length is not None for length in self.lengths]
        return torch.tensor(ended, device=ids.device)

    def note_logits(self, ids: Any, scores: Any) -> Any:
        """As the first logits processor: keep the likeliest tokens, before anything bends them."""
        self._take(ids)
        self._last = scores.float().log_softmax(-1)
        return scores

    def finish(self, ids: Any) -> None:
        """The last tokens are known."""
        self._take(ids)
        self._last = None

    def _take(self, ids: Any) -> None:
        if self._last is None:
            return
        chosen = self._last.gather(-1, ids[:, -1:]).squeeze(-1).tolist()
        top = self._last.topk(self._top, dim=-1) if self._top else None
        values, tokens = (top.values.tolist(), top.indices.tolist()) if top else (None, None)
        self._noted.append((chosen, values, tokens))

    def logprobs(self, row: int, made: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
        """A row's log-probabilities, one for each token that it made."""
        if self._top is None:
            return None
        found = []
        for token, (chosen, values, tokens) in zip(made, self._noted, strict=False):
            likely = dict(zip(tokens[row], values[row], strict=True)) if values else {}
            likely.setdefault(token, chosen[row])
            top = sorted(likely.items(), key=lambda pair: -pair[1])
            found.append(TokenLogprob(token, chosen[row], tuple(top)))
        return tuple(found)


class _Draw:
    """Draws from each row's distribution with the row's own generator."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int | None], device: Any) -> None:
        import torch
        from transformers import (
            MinPLogitsWarper,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self._warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_k is not None:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            self._warpers.append(MinPLogitsWarper(sampling.min_p))
        self._generators = [torch.Generator(device) for _ in seeds]
        for generator, seed in zip(self._generators, seeds, strict=True):
            if seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed)

    def __call__(self, ids: Any, scores: Any) -> Any:
        import torch

        for warp in self._warpers:
            scores = warp(ids, scores)
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log()  # -log of an exponential draw is a Gumbel draw
