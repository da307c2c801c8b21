"""Masked diffusion against its promises: the same answers in any batch, and fewer forwards.

On the model that knows 64 answers by heart, or on the embedded one that solves problems, on a CPU
in float32; no store. One part needs a GPU, and is left out without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import batching, llada
from benchmarks.batching import CLIENTS, LENGTHS, SLOTS
from benchmarks.table import Row as Line
from benchmarks.table import ratio_row, share_row
from tools.training.memoriser import MEMORISER, pairs
from workbench.batching import continuous, static
from workbench.engines.diffusion import Denoising, DiffusionEngine, Row
from workbench.errors import InputError
from workbench.evaluation import accuracy_by
from workbench.tasks import WordProblems
from workbench.tradeoff import TradeOff
from workbench.types import Sampling

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
"""The first is what the others are compared to."""
SHORT = (1, 2)
"""Steps of a short problem."""
CANVAS = Sampling(max_tokens=64, stop=("\n\n",))

Say = Callable[[str], None]


def measure(parts: Sequence[str], repeats: int, say: Say) -> list[Line]:
    """Run these parts (none: all), in the order of `NAMES`.

    Raises:
        InputError: there is no such part.
    """
    if unknown := sorted({*parts} - {*NAMES}):
        raise InputError(f"part={unknown[0]!r}: give some of {', '.join(NAMES)}")
    lines: list[Line] = []
    with DiffusionEngine(
        str(MEMORISER), None, "bench", {"device": "cpu", "dtype": "float32"}
    ) as engine:
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


def _alone(engine: DiffusionEngine, _: int, say: Say) -> list[Line]:
    what = f"answers in mixed batches of {SLOTS} that are those of the same requests alone"
    lines = []
    for how, settings, count in (("", SETTINGS, ASKED), (", caches", CACHED, ASKED // 4)):
        together = list(_mixed(engine, count, settings))
        alone = list(_mixed(engine, count, settings))
        continuous(engine, together, SLOTS)
        say(f"{count} one by one{how}")
        continuous(engine, alone, 1)
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
        fixed = static(engine, theirs, SLOTS)
        joining = continuous(engine, mine, SLOTS)
        assert [r.completion() for r in theirs] == [r.completion() for r in mine]
        faster.append(fixed.seconds / joining.seconds)
        fewer.append(100 * (1 - joining.positions / fixed.positions))
    what = f"continuous over static batches of {SLOTS}, mixed lengths: "
    return [
        ratio_row(f"{what}requests a second", faster, 1.3),
        Line(f"{what}token-forwards saved", fewer[0], " %", "≥ 30 %", fewer[0] >= 30),
    ]


def _problems(_: DiffusionEngine, repeats: int, say: Say) -> list[Line]:
    """What thresholds and caches save, and cost, where an answer can be wrong."""
    options = {"device": "cpu", "dtype": "float32"}
    with DiffusionEngine(None, None, "bench", options) as engine:
        say(f"{len(TRADED)} settings, {PROBLEMS} problems, {repeats} rounds")
        measured = TradeOff(
            engine, TRADED, WordProblems(SHORT), PROBLEMS, sampling=CANVAS, repeats=repeats
        )
        shares = measured.run().summary
        longer = TradeOff(engine, TRADED[1:2], WordProblems(), PROBLEMS, sampling=CANVAS, repeats=1)
        by_steps = accuracy_by(longer.run().rows, "steps")
    table: Any = measured.table().to_dict("records")
    lines = []
    for number, (share, one) in enumerate(zip(shares, table, strict=True)):
        name = f"… {share.name}" if number else f"held-out problems of 1 or 2 steps, {share.name}"
        lines.append(share_row(replace(share, name=name), least=0.0 if number else 0.5))
        if number:
            lines += _traded(one, must=share.name == str(TRADED[1]))
        lines += _pace(one, repeats, alone=not number)
    told = [replace(share, name=f"… {TRADED[1]}, {share.name} steps") for share in by_steps]
    return lines + [share_row(share) for share in told]


def _traded(one: dict[str, Any], *, must: bool) -> list[Line]:
    """A setting against the first: accuracy and forwards."""
    points, fewer = one["points"], one["fewer"]
    return [
        Line("… … minus that of one token a step", points, " points",
             "within 2" if must else "reported", abs(points) <= 2 or not must, one["points_low"],
             one["points_high"], one["pairs"], "items"),
        Line("… … times fewer forwards", fewer, " ×", "≥ 3 ×" if must else "reported",
             fewer >= 3 or not must, one["fewer_low"], one["fewer_high"], one["pairs"], "items"),
    ]  # fmt: skip


def _pace(one: dict[str, Any], repeats: int, *, alone: bool) -> list[Line]:
    """How fast a setting is, and against the first."""
    pace = Line("… … tokens a second", one["tokens_per_s"], "", "reported", True, one["slowest"],
                one["fastest"], repeats)  # fmt: skip
    faster = Line("… … times as fast", one["faster"], " ×", "reported", True, one["faster_low"],
                  one["faster_high"], repeats)  # fmt: skip
    return [pace] if alone else [pace, faster]


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
                return continuous(engine, rows, slots).seconds / count

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
    "problems": _problems,
    "server": lambda _, repeats, say: batching.speed(repeats, say),
    "8b": _large,
    "load": lambda _, __, say: batching.load(say),
}
NAMES = tuple(PARTS)
