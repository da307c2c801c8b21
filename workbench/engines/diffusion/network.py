"""A masked-diffusion model in memory, and its cache of keys and values between steps.

It is a Llama of stock transformers with attention in both directions. In the cache, each row has
a slot filled by position. So rows of different lengths and at different blocks share a forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workbench.errors import InputError
from workbench.lazy import torch

GRAIN = 64  # tokens by which a cache grows


@dataclass(frozen=True, slots=True)
class Network:
    """A model and its special tokens.

    Attributes:
        model: a `LlamaForCausalLM` in evaluation mode.
        mask: the token for an undecided position.
        ends: tokens that end an answer.
        context: maximum number of tokens in a canvas.
        revision: the hub's commit of the weights, or "" for a folder.
    """

    model: Any
    tokenizer: Any
    mask: int
    ends: tuple[int, ...]
    context: int
    revision: str = ""

    @property
    def device(self) -> Any:
        return self.model.device

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary: token ids are below it."""
        return int(self.model.config.vocab_size)

    def hidden(self, ids: Any, valid: Any, positions: Any, cache: Any = None) -> Any:
        """The last layer [rows, length, width] over token ids [rows, length].

        Args:
            valid: bool [rows, keys], whether a key is real and not padding.
            positions: [rows or 1, length].
            cache: a cache's view (`KVCacheView`) that stores keys and values and returns more.
        """
        return self.model.model(
            input_ids=ids,
            attention_mask=valid[:, None, None, :],
            position_ids=positions,
            past_key_values=cache,
            use_cache=False,
        ).last_hidden_state

    def logits(self, hidden: Any) -> Any:
        """Float32 logits [..., vocabulary] of the last layer."""
        return self.model.lm_head(hidden).float()

    def check_bidirectional(self) -> None:
        """Refuse a causal model, whose tokens do not see the following ones.

        Raises:
            InputError: it is causal, despite its configuration.
        """
        ids = torch.full((2, 8), self.mask, device=self.device)
        ids[1, -1] = 0 if self.mask else 1
        valid = torch.ones_like(ids, dtype=torch.bool)
        with torch.inference_mode():
            seen = self.hidden(ids, valid, torch.arange(8, device=self.device)[None])
        if torch.equal(seen[0, 0], seen[1, 0]) and bool(seen.isfinite().all()):
            raise InputError(
                "the model's attention is causal: its first token does not see its last one, so "
                'it cannot fill masks. Use engine="vllm" or "transformers" for it'
            )


@dataclass(slots=True)
class KVCache:
    """Keys and values [slots, heads, width, head size] of each layer, allocated at first use."""

    slots: int
    width: int = 0
    layers: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def reserve(self, width: int) -> None:
        """Make room for canvases of `width` tokens, and one place for padding."""
        if width < self.width:
            return
        self.width = -(-(width + 1) // GRAIN) * GRAIN
        for layer, pair in self.layers.items():
            old = pair[0].shape[2]
            grown = tuple(x.new_zeros(*x.shape[:2], self.width, x.shape[3]) for x in pair)
            for new, x in zip(grown, pair, strict=True):
                new[:, :, :old] = x
            self.layers[layer] = (grown[0], grown[1])

    def layer(self, layer: int, like: Any) -> tuple[Any, Any]:
        """A layer's keys and values, allocated at first use."""
        if layer not in self.layers:
            heads, size = like.shape[1], like.shape[3]
            shape = (self.slots, heads, self.width, size)
            self.layers[layer] = (like.new_zeros(shape), like.new_zeros(shape))
        return self.layers[layer]


@dataclass(frozen=True, slots=True)
class KVCacheView:
    """One forward's access to a cache, in place of transformers' cache.

    Attributes:
        rows: the slot of each row.
        positions: [rows, length], where the forward's keys and values belong; None is the whole
            canvas from its beginning, which reads nothing from the cache.
        width: number of keys that a row may see.
    """

    cache: KVCache
    rows: Any
    positions: Any
    width: int

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Store these keys and values; returns all that the rows may see."""
        stores = self.cache.layer(layer, keys)
        if self.positions is None:
            for store, new in zip(stores, (keys, values), strict=True):
                store[self.rows, :, : new.shape[2]] = new
                store[self.rows, :, new.shape[2] :] = 0  # of the slot's previous row
            return keys, values
        for store, new in zip(stores, (keys, values), strict=True):
            store[self.rows[:, None], :, self.positions] = new.transpose(1, 2)
        return stores[0][self.rows, :, : self.width], stores[1][self.rows, :, : self.width]

    def get_seq_length(self, *_: Any) -> int:
        """Always 0: positions are passed explicitly."""
        return 0
