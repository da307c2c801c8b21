"""Masked diffusion against its targets: the same answers in any batch, and fewer forwards.

With the model that has memorised 64 answers, or the embedded one that solves problems, on a CPU in
float32, without a store. One part needs a GPU, and is left out without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import diffusion_server, llada, lmeval
from benchmarks.diffusion_server import CLIENTS, LENGTHS, SLOTS
from benchmarks.harness import (
    Measurement,
    Parts,
    Peers,
    Repeats,
    differing,
    judged,
    ratio,
    run_parts,
    share,
)
from tools.training.memoriser import MEMORISER, pairs
from workbench.batching import continuous, static
from workbench.cli.output import say
from workbench.engines.diffusion import Denoising, DiffusionEngine, Row
from workbench.evaluation import accuracy_by
from workbench.tasks import WordProblems
from workbench.tradeoff import TradeOff
from workbench.types import Sampling

ASKED = 1000
MIXED = 192
"""Requests in the comparison with static batches."""
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
PROBLEMS = 300
TRADED = (
    Denoising(),
    Denoising(threshold=0.9),
    *(
        Denoising(block_length=8, threshold=threshold, cache=cache)
        for threshold in (None, 0.9)
        for cache in ("none", "prefix", "dual")
    ),
)
"""The first is the baseline."""
SHORT = (1, 2)
"""Steps of a short problem."""
CANVAS = Sampling(max_tokens=64, stop=("\n\n",))


def measure(part: Parts = None, repeats: Repeats = 5, peers: Peers = None) -> list[Measurement]:
    """Masked diffusion: the same answers in any batch, continuous batching, its server."""
    if peers:
        return lmeval.diffusion(peers)
    return run_parts(PARTS, part, lambda: open_model(str(MEMORISER)), repeats=repeats)


def open_model(name: str | None, **options: Any) -> DiffusionEngine:
    """A diffusion model on the CPU in float32, or with other options; without a store."""
    return DiffusionEngine(name, None, "bench", {"device": "cpu", "dtype": "float32", **options})


def _mixed(engine: DiffusionEngine, count: int, settings: Sequence[Denoising]) -> Iterator[Row]:
    """Rows that differ in prompt, length, settings, temperature and seed."""
    prompts = [engine.encode(prompt) for prompt, _ in pairs()]
    for index, prompt in enumerate(islice(cycle(prompts), count)):
        sampling = Sampling(
            max_tokens=LENGTHS[index % len(LENGTHS)],
            temperature=TEMPERATURES[index // 5 % len(TEMPERATURES)],
        )
        yield engine.row(prompt, sampling, settings[index % len(settings)], seed=index)


def _alone(engine: DiffusionEngine) -> list[Measurement]:
    what = f"answers in mixed batches of {SLOTS} that are those of the same requests alone"
    rows = []
    for how, settings, count in (("", SETTINGS, ASKED), (", caches", CACHED, ASKED // 4)):
        together = list(_mixed(engine, count, settings))
        alone = list(_mixed(engine, count, settings))
        continuous(engine, together, SLOTS)
        say(f"{count} one by one{how}")
        continuous(engine, alone, 1)
        both = zip(together, alone, strict=True)
        same = sum(a.error is None and _answer(a) == _answer(b) for a, b in both)
        rows.append(judged(what + how, same, f" of {count:,}", f"{count}"))
    return rows


def _answer(row: Row) -> tuple[object, ...]:
    done = row.completion()
    return done.token_ids, done.text, done.finish_reason


def _published() -> list[Measurement]:
    apart = max(llada.difference(padding) for padding in (0, 30))
    what = "logits against LLaDA's formulas under its own tensors' names, largest difference"
    return [judged(what, apart, bound="≤ 1e-5")]


def _continuous(engine: DiffusionEngine, repeats: int) -> list[Measurement]:
    prompts = [engine.encode(prompt) for prompt, _ in pairs()]

    def rows() -> list[Row]:
        return [
            engine.row(prompt, Sampling(max_tokens=LENGTHS[i % len(LENGTHS)]), SETTINGS[0])
            for i, prompt in enumerate(islice(cycle(prompts), MIXED))
        ]

    faster, fewer = [], []
    for number in range(repeats):
        say(f"round {number + 1} of {repeats}")
        theirs, ours = rows(), rows()
        fixed = static(engine, theirs, SLOTS)
        joining = continuous(engine, ours, SLOTS)
        assert not differing([r.completion() for r in theirs], [r.completion() for r in ours])
        faster.append(fixed.seconds / joining.seconds)
        fewer.append(100 * (1 - joining.positions / fixed.positions))
    what = f"continuous over static batches of {SLOTS}, mixed lengths: "
    return [
        ratio(f"{what}requests per second", faster, 1.3),
        judged(f"{what}token-forwards saved", fewer[0], " %", "≥ 30"),
    ]


def _problems(repeats: int) -> list[Measurement]:
    """What thresholds and caches save and cost, on problems with wrong answers possible."""
    with open_model(None) as engine:
        say(f"{len(TRADED)} settings, {PROBLEMS} problems, {repeats} rounds")
        measured = TradeOff(
            engine, TRADED, WordProblems(SHORT), PROBLEMS, sampling=CANVAS, repeats=repeats
        )
        shares = measured.run().summary
        longer = TradeOff(engine, TRADED[1:2], WordProblems(), PROBLEMS, sampling=CANVAS, repeats=1)
        by_steps = accuracy_by(longer.run().rows, "steps")
    (base, first), *others = zip(shares, measured.table().to_dict("records"), strict=True)
    rows = [share(base, f"held-out problems of 1 or 2 steps, {base.name}", least=0.5)]
    rows.append(_pace(first, repeats))
    for right, setting in others:
        rows.append(share(right, f"… {right.name}"))
        rows += _traded(setting, repeats, must=right.name == str(TRADED[1]))
    return rows + [share(right, f"… {TRADED[1]}, {right.name} steps") for right in by_steps]


def _pace(setting: dict[Any, Any], repeats: int) -> Measurement:
    spread = {"low": setting["slowest"], "high": setting["fastest"], "runs": repeats}
    return judged("… … tokens per second", setting["tokens_per_s"], **spread)


def _traded(setting: dict[Any, Any], repeats: int, *, must: bool) -> list[Measurement]:
    """A setting against the first: accuracy, forwards and speed."""

    def row(what: str, name: str, bound: str, **over: Any) -> Measurement:
        low, high = setting[f"{name}_low"], setting[f"{name}_high"]
        unit = " points" if name == "points" else " ×"
        return judged(f"… … {what}", setting[name], unit, bound, low=low, high=high, **over)

    within, least = ("within 2", "≥ 3") if must else ("reported", "reported")
    items = {"runs": setting["pairs"], "of": "items"}
    return [
        row("minus that of one token per step", "points", within, **items),
        row("times fewer forwards", "fewer", least, **items),
        _pace(setting, repeats),
        row("times as fast", "faster", "reported", runs=repeats),
    ]


def _large(repeats: int) -> list[Measurement]:
    """LLaDA-8B's shapes with random weights, dual cache: a batch over row by row, on a GPU."""
    import torch

    if not torch.cuda.is_available():
        say("left out: PyTorch sees no GPU")
        return []
    faster = []
    with TemporaryDirectory() as scratch:
        folder = llada.write(Path(scratch) / "model", {}, **llada.SHAPES_8B)
        options = {"load_format": "dummy", "dtype": "bfloat16", "device": "cuda"}
        with open_model(str(folder), **options) as engine:
            how = Denoising(steps=64, cache="dual")
            sampling = Sampling(max_tokens=128, ignore_eos=True)
            prompts = [[1 + (i + k) % 500 for k in range(256)] for i in range(CLIENTS)]

            def seconds(slots: int, count: int) -> float:
                rows = [engine.row(prompt, sampling, how) for prompt in prompts[:count]]
                return continuous(engine, rows, slots).seconds / count

            seconds(CLIENTS, CLIENTS)  # warm
            for number in range(repeats):
                say(f"round {number + 1} of {repeats}")
                faster.append(seconds(1, 4) / seconds(CLIENTS, CLIENTS))
    what = f"8B shapes, dual cache, {CLIENTS} rows at once over one by one: requests per second"
    return [ratio(what, faster, 4)]


PARTS: Mapping[str, Callable[..., list[Measurement]]] = {
    "alone": _alone,
    "published": _published,
    "continuous": _continuous,
    "problems": _problems,
    "server": diffusion_server.speed,
    "8b": _large,
    "load": diffusion_server.load,
}
