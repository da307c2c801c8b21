"""ICM against its promises: exactness, tokens, time, quality, resuming.

The embedded model in vLLM in this process, float32, no store. Tokens are those that vLLM had to
compute; each search and each pass begins with an empty prefix cache.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.icm_cost import ALPHA, Say, embedded_engine, full, modes, passes, prompts, run
from benchmarks.table import Row
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.icm import ICMReport
from workbench.icm.claim import Wording
from workbench.icm.compare import paired
from workbench.icm.predictability import Order
from workbench.icm.study import ICMStudy, study
from workbench.icm.testbeds import open_testbed
from workbench.types import Metric

if TYPE_CHECKING:
    import pandas as pd

WORDING = Wording()
Part = Callable[[VLLMEngine, Say], list[Row]]


def measure(parts: Sequence[str], say: Say) -> list[Row]:
    """Run these parts (none: all, which takes long), in the order of `NAMES`.

    Raises:
        InputError: there is no such part.
    """
    if unknown := sorted({*parts} - {*NAMES}):
        raise InputError(f"part={unknown[0]!r}: give some of {', '.join(NAMES)}")
    chosen = [name for name in NAMES if name in parts or not parts]
    rows: list[Row] = []
    if "prompts" in chosen:
        say("prompts …")
        rows += prompts(say)
    if any(name in PARTS for name in chosen):
        with embedded_engine() as engine:
            engine.label_logprobs(["1+1=2"], WORDING.labels)  # what a first call sets up
            for name in filter(PARTS.__contains__, chosen):
                say(f"{name} …")
                rows += PARTS[name](engine, say)
    return rows


def _exact(
    engine: VLLMEngine,
    say: Say,
    counts: Sequence[int] = (8, 16, 32),
    seeds: int = 20,
    steps: int = 100,
) -> list[Row]:
    """`exact` against `reference`: moves, labels, energies."""
    moves = differing = 0
    worst = 0.0
    for count in counts:
        for seed in range(seeds):
            bed = open_testbed("embedded", count=count, seed=seed)
            found = [
                run(engine, bed, order, n_iterations=steps, seed=seed)
                for order in ("reference", "exact")
            ]
            first, second = (_accepted(one) for one in found)
            if [*first] == [*second] and found[0].labels == found[1].labels:
                worst = max(worst, *(abs(first[move] - second[move]) for move in first))
                moves += len(first)
            else:
                differing += 1
        say(f"n = {count}: {differing} runs differ so far, energies by {worst:.1e} at most")
    shown = f"n = {', '.join(map(str, counts))}, K = {steps}, {seeds} seeds each"
    what = f"`exact` against `reference`, {shown}: runs with other moves or labels"
    return [
        Row(what, differing, "", "0", differing == 0, runs=len(counts) * seeds),
        Row(f"… energies of {moves:,} accepted moves", worst, " nats", "≤ 1e-4", worst <= 1e-4),
    ]


def _accepted(found: ICMReport) -> dict[tuple[int, int], float]:
    """Energies of the accepted moves (iteration, claim); the first is the start."""
    rows = found.history[found.history["accepted"]]
    columns = rows[["iteration", "claim", "energy"]].itertuples(index=False, name=None)
    return {(int(iteration), int(claim)): float(energy) for iteration, claim, energy in columns}


def _energy(
    engine: VLLMEngine, say: Say, count: int = 96, seeds: int = 10, steps: int = 1000
) -> list[Row]:
    """What `tree` and `exact` find, both scored in natural order (as reports' energies are)."""
    orders: tuple[Order, ...] = ("tree", "exact")
    energies: dict[Order, list[float]] = {order: [] for order in orders}
    right: dict[Order, list[float]] = {order: [] for order in orders}
    labelled: dict[Order, list[int]] = {order: [] for order in orders}
    for seed in range(seeds):
        bed = open_testbed("embedded", count=count, seed=seed)
        for order in orders:
            found = run(engine, bed, order, alpha=ALPHA, n_iterations=steps, seed=seed)
            energies[order].append(found.energy)
            right[order].append(100 * found.summary[0].value)  # label accuracy
            labelled[order].append(count - found.labels.count(None))
        told = (f"{o} {energies[o][-1]:.2f}, {right[o][-1]:.0f} % right" for o in orders)
        say(f"seed {seed}: {'; '.join(told)}")
    share = 100 * sum(energies["tree"]) / sum(energies["exact"])
    worse = sum(a < 0.98 * b for a, b in zip(energies["tree"], energies["exact"], strict=True))
    apart = [a - b for a, b in zip(right["tree"], right["exact"], strict=True)]
    less = statistics.mean(apart)
    means = " and ".join(f"{statistics.mean(labelled[order]):.1f}" for order in orders)
    shown = f"n = {count} ({means} labelled), K = {steps}, alpha {ALPHA}"
    what = f"mean energy of `tree` / `exact`, {shown}, {worse} of {seeds} seeds worse"
    counts = zip(*labelled.values(), strict=True)
    whole = [seed for seed, both in enumerate(counts) if {*both} == {count}]
    tree, exact = (sum(energies[order][seed] for seed in whole) for order in orders)
    alike = 100 * tree / exact if whole else math.nan
    return [
        Row(what, share, " %", "≥ 98 %", share >= 98),
        Row(f"… of the {len(whole)} seeds where both label all", alike, " %", "≥ 98 %",
            alike >= 98),
        Row("… label accuracy, `tree` − `exact`, mean", less, " points", "≥ −2 points", less >= -2,
            min(apart), max(apart), seeds),
    ]  # fmt: skip


def _accuracy(
    engine: VLLMEngine, say: Say, count: int = 96, seeds: int = 5, test: int = 200
) -> list[Row]:
    """Test accuracy with labels of the search against its rivals, on the same claims."""
    methods = ("zero-shot", "random labels", "bootstrapping", "ICM", "golden labels")
    bed = open_testbed("embedded", count=count * seeds, test_count=test)
    found = study(
        bed, engine, count=count, seeds=range(seeds), methods=methods, alpha=ALPHA, order="tree"
    )
    table = found.methods.set_index("method")
    for name, row in table.iterrows():
        least, most, right = (row[k] for k in ("worst_seed", "best_seed", "label_accuracy"))
        say(f"{name}: {row['value']:.1%} ({least:.1%} to {most:.1%}), labels {right:.1%} right")
    tokens = table["finding_computed_tokens"]
    times = tokens["ICM"] / tokens["bootstrapping"]
    mine = f"ICM labels ({100 * table['value']['ICM']:.1f} %)"
    what = f"embedded claims, n = {count}, alpha {ALPHA}, {seeds} seeds: test accuracy with {mine}"
    rows = [
        _against(found, table, f"{what} against", "golden labels", -3),
        _against(found, table, "… against", "zero-shot", 20),
        _against(found, table, "… against", "random labels", 0),
    ]
    last = f"… at {times:.1f} times its computed tokens against"
    return [*rows, _against(found, table, last, "bootstrapping", None)]


def _against(found: ICMStudy, table: pd.DataFrame, what: str, rival: str, least: int | None) -> Row:
    """The paired difference to a rival, in points, with its interval over claims and seeds."""
    apart: Metric
    apart, _ = paired(found.rows, "ICM", rival)
    value, low, high = (100 * x for x in (apart.value, apart.low, apart.high))
    name = f"{what} {rival} ({100 * table['value'][rival]:.1f} %)"
    bound = "reported" if least is None else f"≥ {least} points".replace("-", "−")
    holds = least is None or value >= least
    return Row(name, value, " points", bound, holds, low, high, apart.n, "items")


def _resumable(engine: VLLMEngine, path: Path, count: int, steps: int) -> ICMReport:
    bed = open_testbed("embedded", count=count)
    return run(engine, bed, "tree", n_iterations=steps, checkpoint=path)


CHILD = """
import sys
from pathlib import Path
from benchmarks.icm import _resumable
from benchmarks.icm_cost import embedded_engine
_resumable(embedded_engine(), Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


def _killed(
    engine: VLLMEngine, say: Say, count: int = 32, steps: int = 300, kills: int = 5
) -> list[Row]:
    """`kill -9` at random places of the journal, each time run again; then run to the end."""
    with tempfile.TemporaryDirectory() as name:
        whole, broken = Path(name) / "whole.jsonl", Path(name) / "killed.jsonl"
        wanted = _resumable(engine, whole, count, steps).labels
        total = _lines(whole)
        places = sorted(random.Random("killed").sample(range(1, total * 9 // 10), kills))
        ended = []
        for place in places:
            ended.append(_kill_at(broken, place, [str(broken), str(count), str(steps)]))
            say(f"killed after {ended[-1]} of {total} lines")
        found = _resumable(engine, broken, count, steps).labels
    differing = sum(a is not b for a, b in zip(wanted, found, strict=True))
    shown = ", ".join(map(str, ended))
    what = f"`kill -9` after {shown} of {total} journal lines, n = {count}: labels that differ"
    return [Row(what, differing, "", "0", differing == 0)]


def _kill_at(path: Path, place: int, arguments: Sequence[str]) -> int:
    """Kill a search once its journal has so many lines, and more than before; returns how many."""
    place = max(place, _lines(path) + 1)
    environment = os.environ | {"WORKBENCH_PROGRESS": "off"}
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], env=environment)
    try:
        while _lines(path) < place:
            if child.poll() is not None:
                raise EngineError(f"the run to be killed ended by itself ({child.returncode})")
            time.sleep(0.001)
    finally:
        child.kill()
        child.wait()
    return _lines(path)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


PARTS: Mapping[str, Part] = {
    "exact": _exact, "pass": passes, "full": full, "energy": _energy, "accuracy": _accuracy,
    "killed": _killed, "cost": modes,
}  # fmt: skip
"""Those that need the model."""
NAMES = ("exact", "prompts", "pass", "full", "energy", "accuracy", "killed", "cost")
