"""A masked-diffusion model in memory: a Llama of stock transformers that attends to both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.errors import InputError


@dataclass(frozen=True, slots=True)
class Network:
    """A model and what its tokens mean.

    Attributes:
        model: a `LlamaForCausalLM` in evaluation mode.
        mask: the token that stands for what is not decided yet.
        ends: tokens that end an answer.
        context: most tokens of a canvas.
        revision: which weights they are: the hub's commit, or "" for a folder.
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
        """Token ids are below it."""
        return int(self.model.config.vocab_size)

    def hidden(self, ids: Any, valid: Any, positions: Any, keep: Any = None) -> Any:
        """The last layer [rows, length, width] over token ids [rows, length].

        Args:
            valid: bool [rows, keys], which keys are there and not padding.
            positions: [rows or 1, length].
            keep: a cache's view (`lanes.View`) that takes keys and values, or gives more.
        """
        return self.model.model(
            input_ids=ids,
            attention_mask=valid[:, None, None, :],
            position_ids=positions,
            past_key_values=keep,
            use_cache=False,
        ).last_hidden_state

    def logits(self, hidden: Any) -> Any:
        """Float32 logits [..., vocabulary] of the last layer."""
        return self.model.lm_head(hidden).float()

    def check_bidirectional(self) -> None:
        """Refuse a model whose tokens do not see what follows them.

        Raises:
            InputError: it is causal, in spite of its configuration.
        """
        import torch

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
