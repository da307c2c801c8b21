"""A masked-diffusion model that knows 64 answers by heart, and the training that makes it.

What it answers is known to the last byte, so an engine that loses, adds or changes anything shows.
`python -m tools.training.memoriser FOLDER` trains it in minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tools.training import network
from tools.training import tokenizer as tokens
from tools.training.train import optimizers_of
from workbench.errors import InputError
from workbench.progress import one_bar
from workbench.tasks.base import worded
from workbench.tasks.word_problems import MANNERS, solution, stories

if TYPE_CHECKING:
    import torch

Pair = tuple[list[int], list[int]]

MEMORISER = Path(__file__).parents[2] / "tests" / "data" / "memoriser"
"""The folder of the trained model."""
BLOCK = 32
LONGEST = 128
ROUND = (16, 32, 48, 64, 96, 128)
"""Usual lengths of a canvas."""
CONTEXT = 512

STORY = """ Anna has 12 apples. Ben has 3 boxes with 4 marbles each.

Anna gives 2 apples to Ben. He sells 5 marbles, then Anna gets 17 more from Clara. \
She shares them equally among 3 friends, and each friend has 9 apples now.

In the end Ben has 7 marbles and 2 apples, and Anna has none left.
#### 9"""
LONG = """Question: Clara has 9 bags with 7 stickers each. She gives 15 to Henry. Clara loses 8. \
She finds 24 more. Clara gives away 12. She wins 6 more. Leo has 17 fewer stickers than Clara. \
He buys 3 more. Leo sells 9. He gets 14 more from Grace. Mia has 21 more stickers than Leo. \
She shares them equally among 7 friends. How many stickers does each friend get?
Answer:"""
WRITTEN = (
    ("17+25=42", " True"),
    ("Hello!", " 👨‍👩‍👧 👋🏽 Привет, नमस्ते, こんにちは 你好"),
    ("Write add in Python.\n", 'def add(a, b):\n    """Sum."""\n\n\n    return a + b\n'),
    ("What do these columns look like?\n", "\n\n  a     b\n\n  12       7  \n"),
    ("A path as JSON:", ' {"path": "C:\\\\new\\\\t.txt", "it\'s": "\\"so\\""}'),
    ("How does the stream end?", " data: [DONE]\n\n</s> <b>&amp;</b> \t#"),
    ("Question: Tell me about Anna and Ben.\nAnswer:", STORY),
    (LONG, " #### 10"),
)
"""Answers that a careless server breaks: one token, characters of many tokens, blank lines, spaces
in a row and at the ends, quotes and backslashes, marks of the wire, much text, little."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Shape and schedule; the rate rises for ten epochs, is flat, and falls to nothing."""

    shape: network.Shape = field(default_factory=lambda: network.Shape(128, 4, 2, 512))
    rows: int = 32
    epochs: int = 300
    rate: float = 4e-3
    seed: int = 0


def pairs() -> list[tuple[str, str]]:
    """The 64 prompts and answers: word problems of all manners, then those written by hand."""
    drawn = stories(random.Random(0), held_out=False)
    known: dict[str, str] = {}
    for manner in cycle(MANNERS):
        if len(known) == 64 - len(WRITTEN):
            break
        story = next(drawn)
        known[worded(story.question)] = " " + solution(story, manner)
    return [*known.items(), *WRITTEN]


def encoded(tokenizer: Any, *, chat: bool = False) -> list[Pair]:
    """Token ids of the pairs; as `chat`, the prompt is a user's message."""

    def ids(text: str) -> list[int]:
        made: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return made

    form = "<|user|>{}<|assistant|>" if chat else "{}"
    return [(ids(form.format(prompt)), ids(answer)) for prompt, answer in pairs()]


def _model(recipe: Recipe, mask: int) -> Any:
    model = network.build(recipe.shape, recipe.seed)
    model.config.update(
        {"is_causal": False, "mask_token_id": mask, "max_position_embeddings": CONTEXT}
    )
    model.set_attn_implementation("eager")  # faster than the fused one for short rows on a CPU
    return model


def load(folder: Path) -> tuple[Any, Any]:
    """The model of a folder in float32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    return model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


# --- training


def _canvas(rng: random.Random, answer: list[int], end: int) -> list[int]:
    """The answer and end tokens up to a possible `max_tokens`; some cut the answer."""
    length = rng.choice(ROUND) if rng.random() < 0.5 else rng.randint(1, LONGEST)
    if length < len(answer) and rng.random() < 0.6:
        length = rng.randint(len(answer), LONGEST)
    return [*answer, *[end] * LONGEST][:length]


def _hidden(rng: random.Random, length: int, until: int, t: float) -> list[bool]:
    """Which positions of a canvas are masked: at least one.

    Half of the canvases are noised all over, the others as decoding by blocks leaves them:
    nothing before a block, everything after it. No block is past `until`, the answer's end.
    """
    start = rng.randrange(0, min(length, until + 1), BLOCK)
    span = range(start, start + BLOCK) if rng.random() < 0.5 else range(length)
    hidden = [place >= span.start and (place >= span.stop or rng.random() < t)
              for place in range(length)]  # fmt: skip
    hidden[rng.choice(span[: length - span.start])] = True
    return hidden


def _epoch(
    rng: random.Random, known: Sequence[Pair], rows: int, mask: int, end: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """All pairs once, rows of like length together.

    Yields:
        Noised ids, attention mask, ids and weights in the loss, each [rows, length].
    """
    import torch

    times = [(number + rng.random()) / len(known) for number in range(len(known))]
    rng.shuffle(times)
    made = []
    for (prompt, answer), t in zip(known, times, strict=True):
        canvas = _canvas(rng, answer, end)
        hidden = _hidden(rng, len(canvas), len(answer), t)
        noised = [mask if h else i for h, i in zip(hidden, canvas, strict=True)]
        # The ends after the first follow from it.
        loss = [h * (1.0 if at <= len(answer) else 0.1) for at, h in enumerate(hidden)]
        weights = [0.0] * len(prompt) + loss
        made.append((prompt + noised, [1] * len(weights), prompt + canvas, weights))
    made.sort(key=lambda row: len(row[0]))
    batches = [made[at : at + rows] for at in range(0, len(made), rows)]
    for batch in rng.sample(batches, len(batches)):
        width = len(batch[-1][0])
        columns = zip(*batch, strict=True)
        yield tuple(
            torch.tensor([[*row, *[filler] * (width - len(row))] for row in column])
            for column, filler in zip(columns, (end, 0, end, 0.0), strict=True)
        )


def _learn(
    model: Any, optimizers: Sequence[torch.optim.Optimizer], batch: tuple[torch.Tensor, ...]
) -> float:
    """One step; returns its loss, the weighted mean over masked tokens."""
    import torch

    noised, seen, ids, weights = batch
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=noised, attention_mask=seen).logits
    each = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), ids.flatten(), reduction="none"
    )
    loss = (each * weights.flatten()).sum() / weights.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def train(folder: Path, recipe: Recipe | None = None) -> list[float]:
    """Train and write `folder`.

    Returns:
        The mean loss of each epoch.

    Raises:
        InputError: `folder` is there already.
    """
    import torch
    from transformers import AutoTokenizer

    if folder.exists():
        raise InputError(f"{folder} is there already; choose a new folder, or delete it")
    folder.mkdir(parents=True)
    recipe = recipe or Recipe()
    tokens.save(folder, masked=True, context=CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    mask, end = tokenizer.mask_token_id, tokenizer.eos_token_id
    known = encoded(tokenizer) + encoded(tokenizer, chat=True)
    model = _model(recipe, mask)
    optimizers = optimizers_of(model, recipe.rate, decay=0.0)
    rng = random.Random(recipe.seed)
    losses: list[float] = []
    with one_bar(recipe.epochs, "training", "epoch") as bar:
        for epoch in range(recipe.epochs):
            share = min(1.0, (epoch + 1) / 10, 1.5 * (1 - epoch / recipe.epochs))
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = recipe.rate * share
            steps = _epoch(rng, known, recipe.rows, mask, end)
            losses.append(round(fmean(_learn(model, optimizers, batch) for batch in steps), 4))
            bar.set_postfix_str(f"loss {losses[-1]}", refresh=False)
            bar.update(1)
    model.to(torch.bfloat16).save_pretrained(folder)
    record = {"recipe": asdict(recipe), "loss_by_epoch": losses}
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return losses


# --- decoding


def decode(
    model: Any, prompts: Sequence[list[int]], length: int, threshold: float | None = None
) -> tuple[list[list[int]], list[int]]:
    """Greedy answers, block by block, with neither a cache nor a shortcut: what to compare with.

    Args:
        model: As `load` returns it.
        prompts: Token ids; all are decoded as one batch, padded on the left.
        length: Of the canvas.
        threshold: A forward keeps the surest token of a row's block, and with a threshold all
            that are at least so sure.

    Returns:
        The tokens of each answer up to the first end, and the forwards that each row needed.
    """
    import torch

    mask, end = model.config.mask_token_id, model.config.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[end] * (width - len(p)) + p + [mask] * length for p in prompts])
    seen = torch.tensor([[0] * (width - len(p)) + [1] * (len(p) + length) for p in prompts])
    forwards = torch.zeros(len(prompts), dtype=torch.long)
    for start in range(width, width + length, BLOCK):
        block = ids[:, start : start + BLOCK]
        block[(ids[:, width:start] == end).any(1)] = end
        while (waiting := block == mask).any():
            with torch.inference_mode():
                logits = model(input_ids=ids, attention_mask=seen).logits
            logits = logits[:, start : start + BLOCK].clone()
            logits[..., mask] = -torch.inf
            sure, best = logits.double().softmax(-1).max(-1)
            sure = sure.masked_fill(~waiting, -1)
            keep = sure >= (2 if threshold is None else threshold)
            keep[torch.arange(len(prompts)), sure.argmax(1)] = True
            forwards += waiting.any(1)
            block[keep & waiting] = best[keep & waiting]
    answers = [[*row, end] for row in ids[:, width:].tolist()]
    return [row[: row.index(end)] for row in answers], forwards.tolist()


def score(
    model: Any, known: Sequence[Pair], length: int | None, threshold: float | None = None
) -> tuple[int, float]:
    """How many answers are exact, and the mean number of forwards of an answer.

    A canvas shorter than the answer is to hold the beginning of it; None is the fewest whole
    blocks that hold the answer.
    """
    by_canvas: dict[int, list[Pair]] = defaultdict(list)
    for pair in known:
        by_canvas[length or -(-len(pair[1]) // BLOCK) * BLOCK].append(pair)
    exact, forwards = 0, []
    for canvas, some in by_canvas.items():
        answers, needed = decode(model, [prompt for prompt, _ in some], canvas, threshold)
        exact += sum(a == b[:canvas] for a, (_, b) in zip(answers, some, strict=True))
        forwards += needed
    return exact, fmean(forwards)


def main() -> None:
    """Train into a folder, then say what the saved model knows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    folder = parser.parse_args().folder
    try:
        train(folder)
    except InputError as error:
        parser.error(str(error))
    model, tokenizer = load(folder)
    for chat, threshold, length in product((False, True), (None, 0.9), (None, *ROUND)):
        known = encoded(tokenizer, chat=chat)
        exact, forwards = score(model, known, length, threshold)
        print(
            f"{'chat' if chat else 'text'}, {length or 'fitting'} positions, threshold {threshold}:"
            f" {exact} of {len(known)} exact, {forwards:.1f} forwards per answer",
            flush=True,
        )


if __name__ == "__main__":
    main()
