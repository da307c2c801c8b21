"""Masked diffusion against its promises: the same answers in any batch, and fewer forwards.

On the small model that knows 64 answers by heart, on a CPU in float32; no store. One part needs a
GPU, and is left out without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workbench.bench import batching, llada
from workbench.bench.batching import CLIENTS, LENGTHS, SLOTS
from workbench.bench.table import Row as Line
from workbench.bench.table import ratio_row
from workbench.engines.diffusion import Counts, Denoising, DiffusionEngine, Row
from workbench.engines.diffusion.commit import propose
from workbench.engines.diffusion.forward import forward
from workbench.engines.diffusion.lanes import Lanes
from workbench.errors import InputError
from workbench.tiny.memoriser import pairs
from workbench.types import Sampling

__all__ = ["NAMES", "measure"]

ASKED = 1000
MIXED = 192
"""Requests of the comparison with static batches."""
SETTINGS = (
    Denoising(threshold=0.9),
    Denoising(block_length=16),
    Denoising(block_length=16, steps=8),
    Denoising(threshold=0.9, cfg_scale=0.5),
    Denoising(remasking="random", steps=16),
)
CACHED = (
    Denoising(threshold=0.9, cache="prefix"),
    Denoising(threshold=0.9, cache="dual", block_length=16),
    Denoising(steps=32, cache="dual", cfg_scale=0.5),
)
TEMPERATURES = (0.0, 0.7)

Say = Callable[[str], None]


def measure(parts: Sequence[str], repeats: int, say: Say) -> list[Line]:
    """Run these parts (none: all), in the order of `NAMES`.

    Raises:
        InputError: there is no such part.
    """
    if unknown := sorted({*parts} - {*NAMES}):
        raise InputError(f"part={unknown[0]!r}: give some of {', '.join(NAMES)}")
    lines: list[Line] = []
    with DiffusionEngine(None, None, "bench", {"device": "cpu", "dtype": "float32"}) as engine:
        for name in (name for name in NAMES if name in parts or not parts):
            say(f"{name} …")
            lines += PARTS[name](engine, repeats, say)
    return lines


def _mixed(engine: DiffusionEngine, count: int, settings: Sequence[Denoising]) -> Iterator[Row]:
    """Rows that differ in prompt, length, settings, temperature and seed."""
    prompts = [engine.encode(prompt) for prompt, _ in pairs()]
    for index, prompt in enumerate(islice(cycle(prompts), count)):
        sampling = Sampling(
            max_tokens=LENGTHS[index % len(LENGTHS)],
            temperature=TEMPERATURES[index // 5 % len(TEMPERATURES)],
        )
        yield engine.row(prompt, sampling, settings[index % len(settings)], seed=index)


def _run(engine: DiffusionEngine, rows: Sequence[Row], slots: int) -> Counts:
    """Denoise rows to their end; what it took."""
    denoiser = engine.denoiser(slots)
    for row in rows:
        denoiser.add(row)
    while denoiser.live or denoiser.waiting:
        denoiser.step()
    return denoiser.counts


def _alone(engine: DiffusionEngine, _: int, say: Say) -> list[Line]:
    what = f"answers in mixed batches of {SLOTS} that are those of the same requests alone"
    lines = []
    for how, settings, count in (("", SETTINGS, ASKED), (", caches", CACHED, ASKED // 4)):
        together = list(_mixed(engine, count, settings))
        alone = list(_mixed(engine, count, settings))
        _run(engine, together, SLOTS)
        say(f"{count} one by one{how}")
        _run(engine, alone, 1)
        pairs_of = zip(together, alone, strict=True)
        same = sum(a.error is None and _answer(a) == _answer(b) for a, b in pairs_of)
        lines.append(Line(what + how, same, f" of {count:,}", f"{count:,}", same == count))
    return lines


def _answer(row: Row) -> tuple[object, ...]:
    done = row.completion()
    return done.token_ids, done.text, done.finish_reason


def _published(*_: Any) -> list[Line]:
    apart = max(llada.difference(padding) for padding in (0, 30))
    what = "logits against LLaDA's formulas under its own tensors' names, largest difference"
    return [Line(what, apart, "", "≤ 1e-5", apart <= 1e-5)]


@dataclass(frozen=True, slots=True)
class _Took:
    seconds: float
    forwards: int
    tokens: int


def _static(engine: DiffusionEngine, rows: Sequence[Row]) -> _Took:
    """Batches that end with their last row, as other servers have them."""
    network = engine.network
    assert network is not None
    start, forwards, tokens = time.perf_counter(), 0, 0
    import torch

    for at in range(0, len(rows), SLOTS):
        batch = rows[at : at + SLOTS]
        while not all(row.done for row in batch):
            opens = [[] if row.done else row.masked() for row in batch]
            with torch.inference_mode():
                lanes = {row: [place] for place, row in enumerate(batch)}
                run = forward(network, lanes, Lanes(SLOTS), opens, whole=True)
                for row, places, logits in zip(batch, opens, run.logits, strict=True):
                    if not row.done:
                        how = row.denoising.remasking
                        found = propose(logits, network.mask, row.sampling, how, row.generator())
                        row.commit(places, found)
            forwards, tokens = forwards + 1, tokens + run.tokens
    return _Took(time.perf_counter() - start, forwards, tokens)


def _continuous(engine: DiffusionEngine, repeats: int, say: Say) -> list[Line]:
    prompts = [engine.encode(prompt) for prompt, _ in pairs()]

    def rows() -> list[Row]:
        return [
            engine.row(prompt, Sampling(max_tokens=LENGTHS[i % len(LENGTHS)]), SETTINGS[0])
            for i, prompt in enumerate(islice(cycle(prompts), MIXED))
        ]

    faster, fewer = [], []
    for number in range(repeats):
        say(f"round {number + 1} of {repeats}")
        theirs, mine = rows(), rows()
        static = _static(engine, theirs)
        start = time.perf_counter()
        counts = _run(engine, mine, SLOTS)
        seconds = time.perf_counter() - start
        assert [r.completion() for r in theirs] == [r.completion() for r in mine]
        faster.append(static.seconds / seconds)
        fewer.append(100 * (1 - counts.tokens / static.tokens))
    what = f"continuous over static batches of {SLOTS}, mixed lengths: "
    return [
        ratio_row(f"{what}requests a second", faster, 1.3),
        Line(f"{what}token-forwards saved", fewer[0], " %", "≥ 30 %", fewer[0] >= 30),
    ]


def _large(_: DiffusionEngine, repeats: int, say: Say) -> list[Line]:
    """LLaDA-8B's shapes with random weights, dual cache: a batch over row by row, on a GPU."""
    import torch

    if not torch.cuda.is_available():
        say("left out: PyTorch sees no GPU")
        return []
    ratios = []
    with TemporaryDirectory() as scratch:
        folder = llada.write(Path(scratch) / "model", {}, **llada.SHAPES_8B)
        options = {"load_format": "dummy", "dtype": "bfloat16", "device": "cuda"}
        with DiffusionEngine(str(folder), None, "bench", options) as engine:
            how = Denoising(steps=64, cache="dual")
            sampling = Sampling(max_tokens=128, ignore_eos=True)
            prompts = [[1 + (i + k) % 500 for k in range(256)] for i in range(CLIENTS)]

            def seconds(slots: int, count: int) -> float:
                rows = [engine.row(prompt, sampling, how) for prompt in prompts[:count]]
                start = time.perf_counter()
                _run(engine, rows, slots)
                return (time.perf_counter() - start) / count

            seconds(CLIENTS, CLIENTS)  # warm
            for number in range(repeats):
                say(f"round {number + 1} of {repeats}")
                ratios.append(seconds(1, 4) / seconds(CLIENTS, CLIENTS))
    what = f"8B shapes, dual cache, {CLIENTS} rows at once over one by one: requests a second"
    return [ratio_row(what, ratios, 4)]


PARTS: dict[str, Callable[[DiffusionEngine, int, Say], list[Line]]] = {
    "alone": _alone,
    "published": _published,
    "continuous": _continuous,
    "server": lambda _, repeats, say: batching.speed(repeats, say),
    "8b": _large,
    "load": lambda _, __, say: batching.load(say),
}
NAMES = tuple(PARTS)
