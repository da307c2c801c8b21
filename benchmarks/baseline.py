"""vLLM against the transformers baseline, and the baseline against its targets.

Embedded model, float32; runs alternate between two loaded models in one process.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated

import typer

from benchmarks.harness import (
    Measurement,
    Repeats,
    differing,
    judged,
    ratio,
    ratios,
    seconds,
)
from workbench.cli.output import say
from workbench.engines.transformers import TransformersEngine
from workbench.evaluation import evaluate
from workbench.load import BATCHES, Load, open_both, versus
from workbench.tasks import WordProblems
from workbench.throughput import Throughput
from workbench.types import Engine

FIXED = (1, 2, 4, 8, 16, 32, 64, 128)
TASK = WordProblems()


def measure(
    repeats: Repeats = 3, prompts: Annotated[int, typer.Option(min=64)] = 1024
) -> list[Measurement]:
    """vLLM against transformers, and transformers in batches against one by one."""
    engine, baseline = open_both()
    assert baseline is not None
    with engine, baseline:
        say("throughput …")
        load = Load()
        size = f"{load.prompt_tokens} + {load.output_tokens} tokens"
        rows = against_baseline(engine, baseline, load, repeats, size, bars=(8, 1.5))
        say("word problems …")
        rows += [_task(engine, baseline, repeats)]
        say("verdicts …")
        rows += [_verdicts(engine, baseline, min(prompts, 500))]
        say("batches against one by one …")
        rows += [_same_tokens(baseline, min(prompts, 200))]
    say("automatic batch size …")
    return [*rows, _automatic(prompts, repeats)]


def against_baseline(  # noqa: PLR0917
    engine: Engine,
    baseline: Engine,
    load: Load,
    repeats: int,
    size: str,
    batches: Sequence[int] = BATCHES,
    bars: tuple[float, float] = (0, 0),
) -> list[Measurement]:
    """vLLM over transformers at batch 1 and at its best batch, and over bare vLLM; alternating."""
    report = Throughput(versus(engine, baseline, batches), [load], repeats=repeats).run()
    table = report.rows.pivot_table(index="repeat", columns="label", values="requests_per_s")
    ours = table["vllm, all at once"]
    theirs = table[[label for label in table if str(label).startswith("transformers")]]
    one, best = theirs["transformers, batch 1"], theirs.max(axis=1)
    bare = table["bare LLM.generate, all at once"]
    sizes = ", ".join(map(str, batches))
    return [
        ratio(f"vLLM over transformers at batch 1, {size}", ratios(ours, one), bars[0]),
        ratio(f"… at its best of {sizes}", ratios(ours, best), bars[1]),
        ratio("… over bare `LLM.generate`", ratios(ours, bare)),
    ]


def _prompts(count: int, seed: int = 0, most_shots: int = 0) -> list[str]:
    """Word problems after 0 to `most_shots` examples in turn, so that their lengths differ."""
    items = enumerate(TASK.items(count, seed))
    return [str(TASK.prompt(item, shots=number % (most_shots + 1))) for number, item in items]


def _task(engine: Engine, baseline: Engine, repeats: int) -> Measurement:
    """Answers of different lengths: a batch of the baseline waits for its longest one."""

    def times(number: int) -> tuple[float, float]:
        prompts = _prompts(256, seed=number)
        slow = seconds(lambda: baseline.generate(prompts, TASK.sampling))
        return slow, seconds(lambda: engine.generate(prompts, TASK.sampling))

    what = "… on 256 word problems, whose answers differ in length, at batch 32"
    return ratio(what, ratios(*zip(*map(times, range(repeats)), strict=True)))


def _verdicts(engine: Engine, baseline: Engine, count: int) -> Measurement:
    ours, theirs = (evaluate(TASK, one, count=count).rows for one in (engine, baseline))
    texts = differing(ours["text"], theirs["text"])
    what = f"verdicts of vLLM unlike those of transformers, {count} items ({texts} other texts)"
    return judged(what, differing(ours["correct"], theirs["correct"]), bound="0")


def _same_tokens(baseline: Engine, count: int) -> Measurement:
    prompts = _prompts(count, most_shots=2)
    together = baseline.generate(prompts, TASK.sampling)
    with TransformersEngine(None, None, "benchmark", {"batch_size": 1}) as single:
        alone = single.generate(prompts, TASK.sampling)
    unlike = differing([row.token_ids for row in together], [row.token_ids for row in alone])
    lengths = [row.prompt_tokens for row in alone]
    what = f"batch 32 unlike one by one, {count} prompts of {min(lengths)} to {max(lengths)} tokens"
    return judged(what, unlike, bound="0")


def _automatic(count: int, repeats: int) -> Measurement:
    """Automatic against the best fixed size; each run has a new engine and includes the search."""
    prompts = _prompts(count, most_shots=2)

    def rate(size: int | str, some: int) -> float:
        with TransformersEngine(None, None, "benchmark", {"batch_size": size}) as engine:
            engine.generate(prompts[-8:], TASK.sampling)
            speed = some / seconds(lambda: engine.generate(prompts[:some], TASK.sampling))
            say(f"  batch size {size}: {speed:.0f} prompts per second")
            return speed

    # A few prompts are enough to measure a slow size.
    slow = max(rate(size, min(count, 16 * size)) for size in FIXED[:5])
    fixed: dict[int, list[float]] = {size: [] for size in FIXED[5:]}
    automatic = []
    for _ in range(repeats):
        automatic.append(rate("auto", count))
        for size, rates in fixed.items():
            rates.append(rate(size, count))
    best = max(fixed, key=lambda size: statistics.median(fixed[size]))
    what = (
        f"automatic batch size over the best fixed one of 1 to {FIXED[-1]}, {best}; {count} prompts"
    )
    return ratio(what, ratios(automatic, [max(one, slow) for one in fixed[best]]), 0.9)
