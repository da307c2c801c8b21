"""A Llama as one function of its parameters: what training runs, faster than the general class.

The parameters are those of `transformers.LlamaForCausalLM`, which also saves them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tools.training.tokenizer import VOCABULARY

if TYPE_CHECKING:
    import torch

CONTEXT = 2048
THETA = 10_000.0
EPSILON = 1e-5

Weights = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network; a head has `width / heads` dimensions."""

    width: int = 192
    layers: int = 6
    heads: int = 3
    feed_forward: int = 512


def build(shape: Shape, seed: int) -> Any:
    """The network with random weights, as transformers knows it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def _rotation(length: int, size: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    rate = THETA ** (-torch.arange(0, size, 2, device=like.device) / size)
    angle = torch.arange(length, device=like.device)[:, None] * rate
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _attention(
    shape: Shape, weights: Weights, x: torch.Tensor, where: str, *, causal: bool
) -> torch.Tensor:
    import torch
    from torch.nn import functional

    rows, length, _ = x.shape
    size = shape.width // shape.heads
    cos, sin = _rotation(length, size, x)

    def heads(name: str) -> torch.Tensor:
        y = functional.linear(x, weights[f"{where}.{name}_proj.weight"])
        return y.view(rows, length, shape.heads, size).transpose(1, 2)

    def turned(y: torch.Tensor) -> torch.Tensor:
        a, b = y.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    q, k, v = turned(heads("q")), turned(heads("k")), heads("v")
    if x.is_cuda or length > 512:
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    else:  # on a CPU the plain formula is twice as fast as the fused one for short rows
        scores = q * size**-0.5 @ k.transpose(-1, -2)
        if causal:
            scores += torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
        y = torch.softmax(scores, -1) @ v
    y = y.transpose(1, 2).reshape(rows, length, shape.width)
    return functional.linear(y, weights[f"{where}.o_proj.weight"])


def forward(shape: Shape, weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """Logits [rows, length, vocabulary] of token ids [rows, length], in the weights' precision."""
    return logits(weights, hidden(shape, weights, ids))


def logits(weights: Weights, states: torch.Tensor) -> torch.Tensor:
    """Logits [..., vocabulary] of states [..., width]."""
    from torch.nn import functional

    return functional.linear(states, weights["model.embed_tokens.weight"])


def hidden(
    shape: Shape, weights: Weights, ids: torch.Tensor, *, causal: bool = True
) -> torch.Tensor:
    """States [rows, length, width] of token ids [rows, length], before the last matrix.

    Args:
        causal: whether a token sees only those before it.
    """
    from torch.nn import functional

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.rms_norm(x, (shape.width,), weights[f"{name}.weight"], EPSILON)

    x = functional.embedding(ids, weights["model.embed_tokens.weight"])
    for number in range(shape.layers):
        layer = f"model.layers.{number}"
        y = normed(x, f"{layer}.input_layernorm")
        x = x + _attention(shape, weights, y, f"{layer}.self_attn", causal=causal)
        y = normed(x, f"{layer}.post_attention_layernorm")
        gate = functional.linear(y, weights[f"{layer}.mlp.gate_proj.weight"])
        up = functional.linear(y, weights[f"{layer}.mlp.up_proj.weight"])
        x = x + functional.linear(
            functional.silu(gate) * up, weights[f"{layer}.mlp.down_proj.weight"]
        )
    return normed(x, "model.norm")


def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function through `torch.compile` where a compiler is there; on a CPU 1.4 × faster."""
    import shutil

    import torch

    if not torch.cuda.is_available() and not shutil.which("g++"):
        return function
    wrapped: Callable[..., torch.Tensor] = torch.compile(function, dynamic=False)
    return wrapped
