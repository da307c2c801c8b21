"""LLaDA as published, in plain formulas with its original tensor names, as a reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workbench.engines.diffusion import DiffusionEngine
from workbench.tiny import MODEL

CONFIG = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "activation_type": "silu",
    "block_type": "llama", "d_model": 64, "n_heads": 4, "n_kv_heads": 4, "n_layers": 3,
    "mlp_hidden_size": 128, "max_sequence_length": 256, "rms_norm_eps": 1e-5, "rope": True,
    "rope_theta": 500000.0, "vocab_size": 640, "embedding_size": 640, "weight_tying": False,
    "layer_norm_type": "rms", "include_bias": False, "mask_token_id": 600, "eos_token_id": 0,
    "pad_token_id": 0, "dtype": "float32",
}  # fmt: skip
SHAPES_8B = {
    "d_model": 4096, "n_heads": 32, "n_kv_heads": 32, "n_layers": 32, "mlp_hidden_size": 12288,
    "max_sequence_length": 4096, "vocab_size": 126464, "embedding_size": 126464,
    "mask_token_id": 126336, "dtype": "bfloat16",
}  # fmt: skip
MASK = 600
WIDTH, HEADS, LAYERS, INNER = 64, 4, 3, 128


def weights(seed: int = 0, spread: float = 0.3) -> dict[str, Any]:
    """Random tensors of a small LLaDA under its original names."""
    import torch

    random = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Any:
        return spread * torch.randn(shape, generator=random)

    tensors = {f"model.transformer.{name}.weight": drawn(640, WIDTH) for name in ("wte", "ff_out")}
    tensors["model.transformer.ln_f.weight"] = 1 + drawn(WIDTH)
    for layer in range(LAYERS):
        block = f"model.transformer.blocks.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            tensors[f"{block}.{name}.weight"] = drawn(WIDTH, WIDTH)
        for name in ("ff_proj", "up_proj"):
            tensors[f"{block}.{name}.weight"] = drawn(INNER, WIDTH)
        tensors[f"{block}.ff_out.weight"] = drawn(WIDTH, INNER)
        for name in ("attn_norm", "ff_norm"):
            tensors[f"{block}.{name}.weight"] = 1 + drawn(WIDTH)
    return tensors


def logits(tensors: dict[str, Any], ids: Any) -> Any:
    """Logits [length, vocabulary] of one canvas; every token attends to every other."""
    import torch
    from torch.nn.functional import embedding, linear, rms_norm, silu

    def of(name: str) -> Any:
        return tensors[f"model.transformer.{name}.weight"]

    length, size = len(ids), WIDTH // HEADS
    rate = 500000.0 ** (-torch.arange(0, size, 2) / size)
    angle = (torch.arange(length)[:, None] * rate).repeat(1, 2)

    def turned(x: Any) -> Any:
        a, b = x.chunk(2, -1)
        return x * angle.cos() + torch.cat((-b, a), -1) * angle.sin()

    def heads(x: Any) -> Any:
        return x.view(length, HEADS, size).transpose(0, 1)

    x = embedding(ids, of("wte"))
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        y = rms_norm(x, (WIDTH,), of(f"{block}.attn_norm"), 1e-5)
        q, k, v = (heads(linear(y, of(f"{block}.{name}_proj"))) for name in "qkv")
        seen = torch.softmax(turned(q) @ turned(k).transpose(1, 2) / size**0.5, -1) @ v
        x = x + linear(seen.transpose(0, 1).reshape(length, WIDTH), of(f"{block}.attn_out"))
        y = rms_norm(x, (WIDTH,), of(f"{block}.ff_norm"), 1e-5)
        y = silu(linear(y, of(f"{block}.ff_proj"))) * linear(y, of(f"{block}.up_proj"))
        x = x + linear(y, of(f"{block}.ff_out"))
    return linear(rms_norm(x, (WIDTH,), of("ln_f"), 1e-5), of("ff_out"))


def denoise(
    tensors: dict[str, Any],
    prompt: list[int],
    length: int,
    block: int,
    *,
    steps: int | None = None,
    threshold: float | None = None,
    cfg_scale: float = 0.0,
) -> tuple[list[int], int]:
    """The published sampler at temperature 0 for one prompt: its canvas, and the forwards."""
    import torch

    ids = torch.tensor([*prompt, *[MASK] * length])
    per_block = (steps or length) // (length // block)
    forwards = 0
    for start in range(len(prompt), len(ids), block):
        step = 0
        while bool((ids[start : start + block] == MASK).any()):
            scores = logits(tensors, ids)
            if cfg_scale:
                bare = ids.clone()
                bare[: len(prompt)] = MASK
                without = logits(tensors, bare)
                scores = without + (cfg_scale + 1) * (scores - without)
            forwards += 1
            sure = scores.double().softmax(-1)
            scores[:, MASK] = -torch.inf
            best = scores.argmax(-1)
            sure = sure.gather(-1, best[:, None])[:, 0]
            sure[ids != MASK] = -1
            sure[start + block :] = -1
            order = sure.argsort(descending=True, stable=True)
            if threshold is None:
                quota = block // per_block + (step < block % per_block)
                taken = order[:quota]
            else:
                taken = torch.cat((order[:1], order[1:][sure[order[1:]] >= threshold]))
            ids[taken] = best[taken]
            step += 1
    return ids[len(prompt) :].tolist(), forwards


def write(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    """A LLaDA checkpoint with these tensors, with the embedded model's tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder / name)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    if tensors:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def difference(padding: int) -> float:
    """The largest difference between the engine's logits and these formulas, with `padding`."""
    import torch

    tensors = weights(spread=0.1)
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(1, MASK, (3, 40), generator=random)
    valid = torch.ones(3, 40 + padding, dtype=torch.bool)
    valid[:, 40:] = False
    padded = torch.nn.functional.pad(ids, (0, padding), value=MASK)
    with TemporaryDirectory() as scratch, torch.inference_mode():
        folder = write(Path(scratch) / "model", tensors)
        with DiffusionEngine(str(folder), None, "bench", {"device": "cpu"}) as engine:
            network = engine.network
            assert network is not None
            places = torch.arange(40 + padding)[None]
            ours = network.logits(network.hidden(padded, valid, places))[:, :40]
        right = torch.stack([logits(tensors, row) for row in ids])
    return float((ours - right).abs().max())
