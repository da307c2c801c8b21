"""Trains the embedded model from nothing: generated text in, a folder that vLLM loads out.

Batch k is made from (seed, k) alone, so a run that was stopped goes on exactly where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.tiny import tokenizer as tokens
from workbench.tiny.arithmetic import documents

if TYPE_CHECKING:
    import torch

__all__ = ["Recipe", "train"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Shape and schedule. `rows * length` tokens make a step; the rate falls as a cosine."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 384
    length: int = 256
    rows: int = 24
    steps: int = 2000
    rate: float = 3e-3
    seed: int = 0


def _model(recipe: Recipe) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=tokens.VOCABULARY,
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def _batches(recipe: Recipe, encode: Any, start: int) -> Iterator[torch.Tensor]:
    """Token ids [rows, length + 1], packed documents; one batch a step from `start`."""
    import torch

    for step in range(start, recipe.steps):
        source = documents(recipe.seed * 1_000_003 + step)
        need = recipe.rows * (recipe.length + 1)
        ids: list[int] = []
        while len(ids) < need:
            for encoding in encode(list(islice(source, 64))):
                ids += encoding.ids
        yield torch.tensor(ids[:need]).view(recipe.rows, recipe.length + 1)


def _rate(recipe: Recipe, step: int) -> float:
    warm = min(1.0, (step + 1) / 100)
    return recipe.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))


def _save_state(path: Path, state: dict[str, Any]) -> None:
    import torch

    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def _export(model: Any, recipe: Recipe, losses: list[float], folder: Path) -> None:
    import copy

    import torch

    tokens.save(folder)
    copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(folder)
    record = {"recipe": asdict(recipe), "loss_every_100_steps": [round(x, 4) for x in losses]}
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def train(folder: Path, recipe: Recipe | None = None, device: str = "cpu") -> None:
    """Train into `folder`; run again after a stop, it resumes from `folder/state.pt`.

    Raises:
        InputError: `folder` holds the state of another recipe.
    """
    import torch
    from tqdm.auto import tqdm

    recipe = recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    model = _model(recipe).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.rate, (0.9, 0.98), weight_decay=0.05)
    losses: list[float] = []
    start, state_path = 0, folder / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise InputError(
                f"{state_path} belongs to another recipe ({state['recipe']}); "
                "choose another folder or delete that file"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, losses = state["step"], state["losses"]
    encode = tokens.build().encode_batch
    recent: list[float] = []
    bar = tqdm(_batches(recipe, encode, start), total=recipe.steps, initial=start, desc="training")
    for step, batch in enumerate(bar, start):
        for group in optimizer.param_groups:
            group["lr"] = _rate(recipe, step)
        ids = batch.to(device)
        logits = model(input_ids=ids[:, :-1]).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            losses.append(sum(recent) / len(recent))
            recent = []
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
            _save_state(
                state_path,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "losses": losses,
                    "recipe": asdict(recipe),
                },
            )
    _export(model, recipe, losses, folder)
    state_path.unlink(missing_ok=True)
