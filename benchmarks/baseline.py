"""vLLM against the transformers baseline, and the baseline against what it promises.

Embedded model, float32, runs in turns on two loaded models in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks.table import Row, ratio_row
from workbench.engines.transformers import TransformersEngine
from workbench.evaluation import evaluate
from workbench.load import BATCHES, Load, open_both, versus
from workbench.tasks import WordProblems
from workbench.throughput import Throughput
from workbench.types import Engine

if TYPE_CHECKING:
    import pandas as pd

FIXED = (1, 2, 4, 8, 16, 32, 64, 128)
TASK = WordProblems()
Say = Callable[[str], None]


def measure(repeats: int, prompts: int, say: Say) -> list[Row]:
    """Run all measurements; takes some minutes.

    Args:
        repeats: runs of each speed.
        prompts: how many the automatic batch size has to find its way in.
    """
    engine, baseline = open_both()
    assert baseline is not None
    with engine, baseline:
        say("throughput …")
        rows = _throughput(engine, baseline, repeats)
        say("word problems …")
        rows += [_task(engine, baseline, repeats)]
        say("verdicts …")
        rows += [_verdicts(engine, baseline, min(prompts, 500))]
        say("batches against one by one …")
        rows += [_same_tokens(baseline, min(prompts, 200))]
    say("automatic batch size …")
    return [*rows, _automatic(prompts, repeats, say)]


def _throughput(engine: Engine, baseline: Engine, repeats: int) -> list[Row]:
    load = Load()
    report = Throughput(versus(engine, baseline), [load], repeats=repeats).run()
    table = report.rows.pivot_table(index="repeat", columns="label", values="requests_per_s")
    first, bare = table["vllm, all at once"], table["bare LLM.generate, all at once"]
    slow = table[[label for label in table if str(label).startswith("transformers")]]
    size = f"{load.prompt_tokens} + {load.output_tokens} tokens"
    one, best = slow["transformers, batch 1"], slow.max(axis=1)
    sizes = ", ".join(map(str, BATCHES))
    return [
        ratio_row(f"vLLM over transformers at batch 1, {size}", _ratios(first, one), 8),
        ratio_row(f"… at its best of {sizes}", _ratios(first, best), 1.5),
        _reported("… over bare `LLM.generate`", _ratios(first, bare)),
    ]


def _ratios(values: pd.Series[float], others: pd.Series[float]) -> list[float]:
    return [float(a) / float(b) for a, b in zip(values, others, strict=True)]


def _reported(what: str, ratios: Sequence[float]) -> Row:
    middle, runs = statistics.median(ratios), len(ratios)
    return Row(what, middle, " ×", "reported", True, min(ratios), max(ratios), runs)


def _seconds(engine: Engine, prompts: Sequence[str]) -> float:
    start = time.perf_counter()
    engine.generate(prompts, TASK.sampling)
    return time.perf_counter() - start


def _prompts(count: int, seed: int = 0, most_shots: int = 0) -> list[str]:
    """Word problems after 0 to `most_shots` examples, in turns: lengths that differ."""
    items = enumerate(TASK.items(count, seed))
    return [str(TASK.prompt(item, shots=number % (most_shots + 1))) for number, item in items]


def _task(engine: Engine, baseline: Engine, repeats: int) -> Row:
    """Answers end where they end: the baseline's batch waits for its longest."""
    ratios = []
    for number in range(repeats):
        prompts = _prompts(256, seed=number)
        slow = _seconds(baseline, prompts)
        ratios.append(slow / _seconds(engine, prompts))
    what = "… on 256 word problems, whose answers differ in length, at batch 32"
    return _reported(what, ratios)


def _verdicts(engine: Engine, baseline: Engine, count: int) -> Row:
    ours, theirs = (evaluate(TASK, one, count=count).rows for one in (engine, baseline))
    differing = int((ours["correct"] != theirs["correct"]).sum())
    texts = int((ours["text"] != theirs["text"]).sum())
    what = f"verdicts of vLLM unlike those of transformers, {count} items ({texts} other texts)"
    return Row(what, differing, "", "0", differing == 0)


def _same_tokens(baseline: Engine, count: int) -> Row:
    prompts = _prompts(count, most_shots=2)
    together = baseline.generate(prompts, TASK.sampling)
    with TransformersEngine(None, None, "benchmark", {"batch_size": 1}) as single:
        alone = single.generate(prompts, TASK.sampling)
    pairs = zip(together, alone, strict=True)
    differing = sum(a.token_ids != b.token_ids for a, b in pairs)
    lengths = [row.prompt_tokens for row in alone]
    what = f"batch 32 unlike one by one, {count} prompts of {min(lengths)} to {max(lengths)} tokens"
    return Row(what, differing, "", "0", differing == 0)


def _automatic(count: int, repeats: int, say: Say) -> Row:
    """Against the best fixed size, each run a new engine, so that finding out is part of it."""
    prompts = _prompts(count, most_shots=2)

    def rate(size: int | str, some: int) -> float:
        with TransformersEngine(None, None, "benchmark", {"batch_size": size}) as engine:
            engine.generate(prompts[-8:], TASK.sampling)
            seconds = _seconds(engine, prompts[:some])
            say(f"  batch size {size}: {some / seconds:.0f} prompts a second")
            return some / seconds

    # What is slow is known to be slow from a few prompts.
    slow = max(rate(size, min(count, 16 * size)) for size in FIXED[:5])
    fixed: dict[int, list[float]] = {size: [] for size in FIXED[5:]}
    mine = []
    for _ in range(repeats):
        mine.append(rate("auto", count))
        for size, rates in fixed.items():
            rates.append(rate(size, count))
    best = max(fixed, key=lambda size: statistics.median(fixed[size]))
    ratios = [a / max(b, slow) for a, b in zip(mine, fixed[best], strict=True)]
    what = (
        f"automatic batch size over the best fixed one of 1 to {FIXED[-1]}, {best}; {count} prompts"
    )
    return ratio_row(what, ratios, 0.9)
