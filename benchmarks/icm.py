"""ICM against its targets: exactness, tokens, time, quality, resuming.

The embedded model in vLLM in this process, float32, without a store. Tokens are those that vLLM
computed; each search and each pass starts with an empty prefix cache.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    Measurement,
    Parts,
    differing,
    interval,
    judged,
    kill_at,
    run_parts,
    vllm_engine,
)
from benchmarks.icm_cost import ALPHA, full, modes, passes, prompts, run
from workbench.cli.output import say
from workbench.engines.vllm import VLLMEngine
from workbench.icm import ICMReport
from workbench.icm.claim import Wording
from workbench.icm.compare import paired
from workbench.icm.predictability import Order
from workbench.icm.reading import open_testbed
from workbench.icm.study import study


def measure(part: Parts = None) -> list[Measurement]:
    """ICM: exactness, prompts and tokens saved, quality against its alternatives, resuming."""
    return run_parts(PARTS, part, _embedded)


def _embedded() -> VLLMEngine:
    engine = vllm_engine(dtype="float32")
    engine.label_logprobs(["1+1=2"], Wording().labels)  # one-time set-up
    return engine


def _exact(
    engine: VLLMEngine,
    counts: Sequence[int] = (8, 16, 32),
    seeds: int = 20,
    steps: int = 100,
) -> list[Measurement]:
    """`exact` against `reference`: moves, labels, energies."""
    moves = unlike = 0
    worst = 0.0
    for count in counts:
        for seed in range(seeds):
            bed = open_testbed("embedded", count=count, seed=seed)
            both = [
                run(engine, bed, order, n_iterations=steps, seed=seed)
                for order in ("reference", "exact")
            ]
            first, second = map(_accepted, both)
            if [*first] == [*second] and both[0].labels == both[1].labels:
                worst = max(worst, *(abs(first[move] - second[move]) for move in first))
                moves += len(first)
            else:
                unlike += 1
        say(f"n = {count}: {unlike} runs differ so far, energies by {worst:.1e} at most")
    shown = f"n = {', '.join(map(str, counts))}, K = {steps}, {seeds} seeds each"
    what = f"`exact` against `reference`, {shown}: runs with other moves or labels"
    return [
        judged(what, unlike, bound="0", runs=len(counts) * seeds),
        judged(f"… energies of {moves:,} accepted moves", worst, " nats", "≤ 1e-4"),
    ]


def _accepted(report: ICMReport) -> dict[tuple[int, int], float]:
    """Energies of the accepted moves (iteration, claim); the first is the start."""
    rows = report.history[report.history["accepted"]]
    columns = rows[["iteration", "claim", "energy"]].itertuples(index=False, name=None)
    return {(int(iteration), int(claim)): float(energy) for iteration, claim, energy in columns}


def _energy(
    engine: VLLMEngine, count: int = 96, seeds: int = 10, steps: int = 1000
) -> list[Measurement]:
    """Results of `tree` and `exact`, both scored in natural order, like energies in reports."""
    orders: tuple[Order, ...] = ("tree", "exact")
    energies: dict[Order, list[float]] = {order: [] for order in orders}
    right: dict[Order, list[float]] = {order: [] for order in orders}
    labelled: dict[Order, list[int]] = {order: [] for order in orders}
    for seed in range(seeds):
        bed = open_testbed("embedded", count=count, seed=seed)
        for order in orders:
            report = run(engine, bed, order, alpha=ALPHA, n_iterations=steps, seed=seed)
            energies[order].append(report.energy)
            right[order].append(100 * report.summary[0].value)  # label accuracy
            labelled[order].append(count - report.labels.count(None))
        each = (f"{o} {energies[o][-1]:.2f}, {right[o][-1]:.0f} % right" for o in orders)
        say(f"seed {seed}: {'; '.join(each)}")
    share = 100 * sum(energies["tree"]) / sum(energies["exact"])
    worse = sum(a < 0.98 * b for a, b in zip(energies["tree"], energies["exact"], strict=True))
    apart = [a - b for a, b in zip(right["tree"], right["exact"], strict=True)]
    means = " and ".join(f"{statistics.mean(labelled[order]):.1f}" for order in orders)
    shown = f"n = {count} ({means} labelled), K = {steps}, alpha {ALPHA}"
    what = f"mean energy of `tree` / `exact`, {shown}, {worse} of {seeds} seeds worse"
    counts = zip(*labelled.values(), strict=True)
    whole = [seed for seed, both in enumerate(counts) if {*both} == {count}]
    tree, exact = (sum(energies[order][seed] for seed in whole) for order in orders)
    alike = 100 * tree / exact if whole else math.nan
    spread: dict[str, Any] = {"low": min(apart), "high": max(apart), "runs": seeds}
    less = statistics.mean(apart)
    return [
        judged(what, share, " %", "≥ 98"),
        judged(f"… of the {len(whole)} seeds where both label all", alike, " %", "≥ 98"),
        judged("… label accuracy, `tree` − `exact`, mean", less, " points", "≥ −2", **spread),
    ]


def _accuracy(
    engine: VLLMEngine, count: int = 96, seeds: int = 5, test: int = 200
) -> list[Measurement]:
    """Test accuracy with labels of the search and of its alternatives, on the same claims."""
    methods = ("zero-shot", "random labels", "bootstrapping", "ICM", "golden labels")
    bed = open_testbed("embedded", count=count * seeds, test_count=test)
    results = study(
        bed, engine, count=count, seeds=range(seeds), methods=methods, alpha=ALPHA, order="tree"
    )
    table = results.methods.set_index("method")
    for name, row in table.iterrows():
        least, most, right = (row[k] for k in ("worst_seed", "best_seed", "label_accuracy"))
        say(f"{name}: {row['value']:.1%} ({least:.1%} to {most:.1%}), labels {right:.1%} right")

    def against(what: str, rival: str, bound: str) -> Measurement:
        """The paired difference to an alternative, in points, with its interval."""
        apart, _ = paired(results.rows, "ICM", rival)
        name = f"{what} {rival} ({100 * table['value'][rival]:.1f} %)"
        return interval(apart, " points", bound, what=name, scale=100)

    tokens = table["finding_computed_tokens"]
    times = tokens["ICM"] / tokens["bootstrapping"]
    labels = f"ICM labels ({100 * table['value']['ICM']:.1f} %)"
    what = f"embedded claims, n = {count}, alpha {ALPHA}, {seeds} seeds: test accuracy with"
    last = f"… at {times:.1f} times its computed tokens against"
    return [
        against(f"{what} {labels} against", "golden labels", "≥ −3"),
        against("… against", "zero-shot", "≥ 20"),
        against("… against", "random labels", "≥ 0"),
        against(last, "bootstrapping", "reported"),
    ]


def _resumable(engine: VLLMEngine, path: Path, count: int, steps: int) -> ICMReport:
    bed = open_testbed("embedded", count=count)
    return run(engine, bed, "tree", n_iterations=steps, checkpoint=path)


CHILD = """
import sys
from pathlib import Path
from typing import Any
from benchmarks.harness import vllm_engine
from benchmarks.icm import _resumable
count, steps = map(int, sys.argv[2:])
_resumable(vllm_engine(dtype="float32"), Path(sys.argv[1]), count, steps)
"""


def _killed(
    engine: VLLMEngine, count: int = 32, steps: int = 300, kills: int = 5
) -> list[Measurement]:
    """`kill -9` at random places of the journal, and a new run after each; then to the end."""
    with tempfile.TemporaryDirectory() as name:
        whole, broken = Path(name) / "whole.jsonl", Path(name) / "killed.jsonl"
        expected = _resumable(engine, whole, count, steps).labels
        total = _lines(whole)
        ended = []
        for place in sorted(random.Random("killed").sample(range(1, total * 9 // 10), kills)):
            further = max(place, _lines(broken) + 1)
            ended.append(kill_at(further, lambda: _lines(broken), CHILD, broken, count, steps))
            say(f"killed after {ended[-1]} of {total} lines")
        labels = _resumable(engine, broken, count, steps).labels
    shown = ", ".join(map(str, ended))
    what = f"`kill -9` after {shown} of {total} journal lines, n = {count}: labels that differ"
    return [judged(what, differing(expected, labels), bound="0")]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


PARTS: Mapping[str, Callable[..., list[Measurement]]] = {
    "exact": _exact,
    "prompts": prompts,
    "pass": passes,
    "full": full,
    "energy": _energy,
    "accuracy": _accuracy,
    "killed": _killed,
    "cost": modes,
}
