"""Masked-diffusion models (the LLaDA-8B family) in this process, behind the `Engine` protocol."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import islice
from typing import Any

from workbench import values
from workbench.engines.chat import CHAT, ChatOptions
from workbench.engines.device import collect, find_device, prepare, shown
from workbench.engines.diffusion.checkpoint import read
from workbench.engines.diffusion.denoiser import Counts, Denoiser
from workbench.engines.diffusion.denoising import Denoising
from workbench.engines.diffusion.likelihood import bounds
from workbench.engines.diffusion.network import Network
from workbench.engines.diffusion.row import Row
from workbench.engines.identity import deciding
from workbench.engines.local import LocalEngine
from workbench.engines.requests import Request
from workbench.engines.source import EMBEDDED_DIFFUSION, Source, check_options
from workbench.engines.transformers import unavailable
from workbench.machine import versions
from workbench.store import Store
from workbench.types import Completion, LabelRow, Message, Prompt, Sampling

__all__ = ["Counts", "Denoiser", "Denoising", "DiffusionEngine", "Row", "unavailable"]

BATCH = 8
SETTINGS = tuple(field.name for field in fields(Denoising))
OPTIONS = (
    "batch_size", "device", "dtype", "load_format", "mask_token_id", "max_model_len", "revision",
    *SETTINGS, *CHAT,
)  # fmt: skip


class DiffusionEngine(LocalEngine):
    """A masked-diffusion model behind the `Engine` protocol; rows join and leave at any step.

    `label_logprobs` returns the bound on the likelihood that such a model is trained on. It is
    exact for labels of one token (see `likelihood`).

    Args:
        model: hub name or local folder of a LLaDA-8B model, or of a Llama with
            `"is_causal": false`; None is the embedded one.
        store: where answers are kept.
        why: why this engine was chosen, for `info`.
        options: `batch_size` (rows in a batch, 8), the fields of `Denoising`, `device`, `dtype`,
            `revision`, `max_model_len`, `mask_token_id`, `load_format="dummy"` (random weights),
            the fields of `ChatOptions`.

    Raises:
        InputError: an unknown option, or a model that is incomplete or no masked-diffusion model.
        EngineUnavailableError: the requested device does not exist.
        EngineError: the model does not fit into memory.
    """

    def __init__(
        self, model: str | None, store: Store | None, why: str, options: Mapping[str, Any]
    ) -> None:
        check_options(options, OPTIONS, "diffusion")
        self.denoising = Denoising(**{k: v for k, v in options.items() if k in SETTINGS})
        self._slots = values.whole("batch_size", options.get("batch_size", BATCH), 1)
        self._chats = ChatOptions.of(options)
        prepare()
        device = find_device(options.get("device"))
        source = Source.find(model, EMBEDDED_DIFFUSION)
        self._lock = threading.Lock()
        network = read(source, device, options)
        self.network: Network | None = network
        self._tokenizer, self._vocabulary = network.tokenizer, network.vocabulary
        self._mask_name: str | None = self._tokenizer.convert_ids_to_tokens(network.mask)
        # Once, before other threads use the tokenizer: the setting is shared with them.
        self._mask_spelt = self._tokenizer(
            self._mask_name or "", add_special_tokens=False, split_special_tokens=True
        ).input_ids
        self._weights = source.weights()
        own = {k: v for k, v in options.items() if k not in ("batch_size", "device", *CHAT)}
        super().__init__(
            source,
            store,
            network.revision,
            decisive=deciding(own | self._chats.given),
            identity={
                "engine": "diffusion",
                # The remaining room decides the canvas, and thus the answer.
                "options": [options.get("load_format"), network.mask, network.context],
                "denoising": asdict(self.denoising),
                "chats": self._chats.given,
            },
            engine="diffusion",
            device=shown(device.type),
            dtype=str(network.model.dtype).removeprefix("torch."),
            context_length=network.context,
            versions=versions("transformers", "torch"),
            why=why,
        )

    @property
    def batch_size(self) -> int:
        """Maximum number of rows in a batch."""
        return self._slots

    def encode(self, text: str) -> list[int]:
        """A prompt's tokens; the mask's name in it is plain text."""
        return self._tokens([text])[0]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """A chat's tokens, up to the start of the answer.

        Raises:
            InputError: the model has no chat template, or the template refuses the chat.
        """
        return self._tokens([messages])[0]

    def row(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        denoising: Denoising | None = None,
        seed: int | None = None,
    ) -> Row:
        """An answer to denoise, for a `denoiser`.

        Raises:
            InputError: see `Row`.
        """
        return Row(self._open(), prompt, sampling, denoising or self.denoising, seed)

    def denoiser(self, slots: int | None = None) -> Denoiser:
        """A separate batch over this model; None has as many slots as the engine."""
        return Denoiser(self._open(), self._slots if slots is None else slots, self._lock)

    def _open(self) -> Network:
        self._check_open()
        assert self.network is not None
        return self.network

    def _free(self) -> None:
        with self._lock:
            device = self.network.device if self.network else None
            self.network = None
        if device is not None:
            collect(device)

    def _tokens(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Tokens per prompt; the mask's name in a prompt is plain text."""
        tokens, mask = super()._tokens(prompts), self._open().mask
        for index, ids in enumerate(tokens):
            if mask in ids:
                prompt = prompts[index]
                text = prompt if isinstance(prompt, str) else self._chat_texts([prompt])[0]
                tokens[index] = self._spelt(text, special=isinstance(prompt, str))
        return tokens

    def _spelt(self, text: str, *, special: bool) -> list[int]:
        """Tokens of a text; the mask's name becomes the tokens of its letters."""
        first, *rest = text.split(self._mask_name) if self._mask_name else [text]
        (ids,) = self._encoded([first], special=special)
        for part in rest:
            ids += self._mask_spelt + self._encoded([part], special=False)[0]
        return ids

    def _complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Completion]]]:
        fit, refused = self._jobs(requests)
        if refused:
            yield refused
        denoiser, asked = self.denoiser(), dict[Row, Request]()
        jobs = iter(sorted(fit, key=lambda job: -len(job[1])))  # similar lengths together
        while True:
            self._check_open()
            for request, ids in islice(jobs, max(0, 2 * denoiser.slots - len(asked))):
                row = self._row(request, ids)
                asked[row] = request
                denoiser.add(row)
            if not asked:
                return
            if done := [row for row in denoiser.step() if row.done]:
                rows = [(asked.pop(row), row.completion(), row.prompt) for row in done]
                yield [(one, self._without_thinking(one, answer, ids)) for one, answer, ids in rows]

    def _row(self, request: Request, ids: Sequence[int]) -> Row:
        sampling, seed = request.sampling, request.seed
        room = self.info.context_length - len(ids)  # the context length ends an answer
        if sampling.max_tokens > room:
            sampling = replace(sampling, max_tokens=room)
        if sampling.temperature == 0:  # a random order of commits must be repeatable
            seed = int.from_bytes(request.key[:7], "big")
        return self.row(ids, sampling, seed=seed)

    def _label_tokens(self, labels: Sequence[str]) -> list[list[int]]:
        return [self._spelt(label, special=False) for label in labels]

    def _score(
        self, prompts: Sequence[Prompt], labels: Sequence[tuple[str, ...]]
    ) -> Iterator[list[LabelRow]]:
        trees = self._trees(labels, chains=False)
        fit, refused = self._fitting(prompts, [tree.depth for tree in trees])
        if refused:
            yield refused
        targets = {index: trees[index].labels for index in fit}
        for index, logprobs in bounds(self._open(), self._lock, fit, targets, self._slots):
            self._check_open()
            size, reason = len(fit[index]), "the model's log-probabilities are not numbers"
            if logprobs is None:
                reason = "out of memory with this prompt alone: shorten it"
            elif all(map(math.isfinite, logprobs)):
                yield [LabelRow(index, tuple(logprobs), size, lengths=trees[index].lengths)]
                continue
            yield [LabelRow(index, None, size, error=reason)]
