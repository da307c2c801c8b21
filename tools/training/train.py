"""Trains the embedded models: generated text in, a folder that the engines load out.

`Recipe()` is that of the Llama, from nothing. `MASKED` makes its masked-diffusion sibling out of
it, which knows sums, and where numbers stand, from the start. Batch k is made from (seed, k)
alone, so a run that was stopped resumes exactly where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.training import masked, network
from tools.training import tokenizer as tokens
from tools.training.marks import END, split
from tools.training.stages import stage_at
from tools.training.text import documents
from workbench.errors import InputError, WorkbenchError
from workbench.progress import one_bar
from workbench.tiny import MODEL

if TYPE_CHECKING:
    import torch

GIVEN = 0.1
"""Weight in the loss of a token that does not follow from the text before it."""
SAVE_EVERY = 100
CONTEXT_MASKED = 512

Batch = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Shape and schedule. `tokens` make a step; the rate is constant, then falls to nothing.

    A `masked` model fills masks, seeing all of its row, where the other continues a text.
    """

    shape: network.Shape = field(default_factory=network.Shape)
    tokens: int = 8192
    steps: int = 9000
    rate: float = 4e-3
    seed: int = 0
    masked: bool = False


MASKED = Recipe(tokens=6144, steps=5000, masked=True)


def _row(stream: Iterator[str], encode: Any, length: int) -> tuple[list[int], list[float]]:
    """Token ids and loss weights of one row: whole documents, the last one cut."""
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) <= length:
        text, spans = split(next(stream))
        encoding = encode(text)
        ids += encoding.ids
        by_character = [GIVEN] * (len(text) + 1)
        for start, end, weight in spans:
            by_character[start:end] = [weight] * (end - start)
        weights += [by_character[start] for start, _ in encoding.offsets]
    return ids[: length + 1], weights[: length + 1]


def _batch(recipe: Recipe, tokenizer: Any, step: int) -> Batch:
    """Token ids as seen, those to be predicted, and loss weights, each [rows, length]."""
    import torch

    progress, seed = step / recipe.steps, recipe.seed * 1_000_003 + step
    if recipe.masked:
        mask, end = map(tokenizer.token_to_id, (tokens.MASK, END))
        rows = masked.batch(
            seed, recipe.tokens, progress, lambda text: tokenizer.encode(text).ids,
            mask=mask, end=end,
        )  # fmt: skip
        seen, target, weights = map(torch.tensor, rows)
        return seen, target, weights
    length = stage_at(progress).length
    stream = documents(seed, progress)  # every row begins with a document
    cut = [_row(stream, tokenizer.encode, length) for _ in range(max(1, recipe.tokens // length))]
    ids, weights = map(torch.tensor, zip(*cut, strict=True))
    return ids[:, :-1], ids[:, 1:], weights[:, 1:]


def _rate(recipe: Recipe, step: int) -> float:
    """Share of the full rate at a step: up in 100 steps, then flat, then down from 45 % on."""
    return min(1.0, (step + 1) / 100, (1 - step / recipe.steps) / 0.55)


def optimizers_of(model: Any, rate: float, decay: float = 0.05) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    import torch

    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(inner, rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, rate, (0.9, 0.98), weight_decay=0.0),
    ]


class _Run:
    """A training in progress: what `state.pt` holds, and one step of it."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        import torch
        from safetensors.torch import load_file

        self.recipe, self.device = recipe, device
        self.model = network.build(recipe.shape, recipe.seed)
        if recipe.masked and recipe.shape == network.Shape():
            start = load_file(MODEL / "model.safetensors")
            start["lm_head.weight"] = start["model.embed_tokens.weight"]  # they are one
            self.model.load_state_dict(start)
        self.model.to(device)
        self.optimizers = optimizers_of(self.model, recipe.rate)
        self.hidden = network.compiled(partial(network.hidden, causal=not recipe.masked))
        fast = device != "cpu" or torch.cpu._is_avx512_bf16_supported()
        self.dtype = torch.bfloat16 if fast else torch.float32
        self.step = 0
        self.losses: list[float] = []

    def learn(self, batch: Batch) -> float:
        """One step; returns the mean loss of the learned tokens in nats."""
        import torch

        seen, target, weights = (part.to(self.device) for part in batch)
        share = _rate(self.recipe, self.step)
        parameters = {n: p.to(self.dtype) for n, p in self.model.named_parameters()}
        counted = weights > 0
        states = self.hidden(self.recipe.shape, parameters, seen)[counted]
        logits, weights = network.logits(parameters, states).float(), weights[counted]
        loss = torch.nn.functional.cross_entropy(logits, target[counted], reduction="none")
        ((loss * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.rate * share
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        learned = weights >= 1
        return float(loss.detach()[learned].mean())

    def save(self, path: Path) -> None:
        """Write the state; what was there before stays until the new one is whole."""
        import torch

        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "losses": self.losses,
            "recipe": asdict(self.recipe),
        }
        path = path.resolve()
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                torch.save(state, file)
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch wraps what the file raises
            part.unlink(missing_ok=True)
            raise WorkbenchError(
                f"step {self.step} could not be saved to {path} ({error}); the state before it is "
                "whole: make room and run the same command again"
            ) from error

    def load(self, path: Path) -> None:
        import torch

        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            recipe = state["recipe"]
        except Exception as error:  # a broken file fails in as many ways as there are bytes
            raise InputError(
                f"{path} is no state of a training ({error}); delete it to start again"
            ) from error
        if asdict(Recipe()) | recipe != asdict(self.recipe):
            raise InputError(
                f"{path} belongs to another recipe ({recipe}); "
                "choose another folder or delete that file"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.losses = state["step"], state["losses"]

    def export(self, folder: Path) -> None:
        import copy

        import torch

        model = copy.deepcopy(self.model).to("cpu", torch.bfloat16)
        if self.recipe.masked:
            tokens.save(folder, masked=True, context=CONTEXT_MASKED)
            mask = tokens.build(masked=True).token_to_id(tokens.MASK)
            model.config.update({"is_causal": False, "mask_token_id": mask})
            model.config.update({"max_position_embeddings": CONTEXT_MASKED})
        else:
            tokens.save(folder)
        model.save_pretrained(folder)
        losses = [round(loss, 4) for loss in self.losses]
        record = {"recipe": asdict(self.recipe), f"loss_every_{SAVE_EVERY}_steps": losses}
        (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def _check(folder: Path, device: str) -> None:
    """Refuse a folder that would be mixed up or overwritten, and a device that is not there."""
    import torch

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder to train into")
    others = [path for path in folder.glob("*") if path.name not in {"state.pt", "state.part"}]
    if others and not (folder / "state.pt").exists():
        raise InputError(
            f"{folder} holds other files ({others[0].name}, …) and no training to resume; "
            "choose a new folder"
        )
    if device not in {"cpu", "cuda"} or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"device={device!r} is not here; use cpu, or cuda where a GPU is")


def train(folder: Path, recipe: Recipe | None = None, device: str = "cpu") -> list[float]:
    """Train into `folder`; run again after a stop, it resumes from `folder/state.pt`.

    Needs torch, transformers, tokenizers and safetensors, and no other package.

    Returns:
        The mean loss of each `SAVE_EVERY` steps, of the tokens that can be learned, in nats.

    Raises:
        InputError: `folder` holds the state of another recipe, a broken state or other files, or
            the device is not there.
        WorkbenchError: a state could not be written; the one before is kept.
    """
    recipe = recipe or Recipe()
    _check(folder, device)
    folder.resolve().mkdir(parents=True, exist_ok=True)
    run, state = _Run(recipe, device), folder / "state.pt"
    if state.exists():
        run.load(state)
    tokenizer = tokens.build(masked=recipe.masked)
    recent: list[float] = []
    with one_bar(recipe.steps, "training", "step") as bar:
        bar.update(run.step)
        for step in range(run.step, recipe.steps):
            recent.append(run.learn(_batch(recipe, tokenizer, step)))
            if run.step % SAVE_EVERY == 0 or run.step == recipe.steps:
                run.losses.append(sum(recent) / len(recent))
                recent = []
                bar.set_postfix_str(f"loss {run.losses[-1]:.4f}", refresh=False)
                run.save(state)
            bar.update(1)
    run.export(folder)
    state.unlink(missing_ok=True)
    return run.losses
