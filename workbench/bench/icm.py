"""ICM against its promises: exactness, tokens, time, quality, resuming.

The embedded model in vLLM in this process, float32, no store. Tokens are those that vLLM had to
compute; each search and each pass begins with an empty prefix cache.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workbench.bench.table import Row, ratio_row
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.icm import Claim, ICMReport, search
from workbench.icm.claim import Wording
from workbench.icm.compare import paired
from workbench.icm.journal import Journal
from workbench.icm.oracle import Oracle
from workbench.icm.orders import ORDERS, Order, Reference, Tree
from workbench.icm.settings import Step
from workbench.icm.study import ICMStudy, study
from workbench.icm.testbeds import Testbed, open_testbed
from workbench.types import Engine, EngineInfo, Errors, LabelScores, Metric, Usage

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NAMES", "Synthetic", "made_up", "measure"]

WORDING = Wording()
ALPHA = 20  # where claims are to be labelled well; exactness is shown at the default, 50
Say = Callable[[str], None]
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
        rows += _prompts(say)
    if any(name in PARTS for name in chosen):
        with _engine() as engine:
            engine.label_logprobs(["1+1=2"], WORDING.labels)  # what a first call sets up
            for name in filter(PARTS.__contains__, chosen):
                say(f"{name} …")
                rows += PARTS[name](engine, say)
    return rows


def _engine(**options: Any) -> VLLMEngine:
    return VLLMEngine(None, None, "benchmark", {"dtype": "float32", **options})


def _search(engine: VLLMEngine, bed: Testbed, order: Order, **settings: Any) -> ICMReport:
    engine.llm.reset_prefix_cache()
    return search(bed.claims, engine, order=order, wording=bed.wording, **settings)


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
                _search(engine, bed, order, n_iterations=steps, seed=seed)
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


class Synthetic:
    """A deterministic stand-in for a model, with what a search needs of an engine.

    A model that has a concept says of a claim what the concept says, the surer the more the labels
    of the demonstrations go with it (and the opposite where they go against it), and is less sure
    after few. What it makes of a claim's own words stays the same: noise by a hash of the claim.
    Claims on which the two are at odds are what a search comes back to and pays for, so there are
    as many as an 8B model has on GSM8K verification, whose groups these are: alone it is right by
    chance (48 % there), after golden labels 83 % of the time (81 %; arXiv 2506.10139).
    """

    STRENGTH, NOISE, FEW = 3.0, 3.0, 4

    def __init__(self, claims: Sequence[Claim]) -> None:
        self.info = EngineInfo(
            engine="synthetic", model="stand-in", revision="1", device="none", dtype="float64",
            context_length=0, versions={}, why="benchmark",
        )  # fmt: skip
        self.usage = Usage()
        self.asked = 0
        self._truth = {claim.text: 1 if claim.gold else -1 for claim in claims}
        self._own = {text: random.Random(text).gauss(0, self.NOISE) for text in self._truth}
        self._agrees = {
            f"{claim.text}{word}": 1 if label is claim.gold else -1
            for claim in claims
            for label, word in zip((True, False), WORDING.labels, strict=True)
        }

    def log_odds(self, prompt: str) -> float:
        """Of true, for the claim at the prompt's end."""
        *shown, claim = prompt.split(WORDING.after)
        agreement = sum(map(self._agrees.__getitem__, shown)) / (len(shown) + self.FEW)
        return self._truth[claim] * self.STRENGTH * agreement + self._own[claim]

    def label_logprobs(
        self,
        prompts: Sequence[str],
        labels: Sequence[str],  # noqa: ARG002
        *,
        errors: Errors = "raise",  # noqa: ARG002
    ) -> LabelScores:
        """As an engine's: of " True" and " False", which together have all probability."""
        import numpy as np

        self.asked += len(prompts)
        odds = np.array([self.log_odds(prompt) for prompt in prompts])
        found = -np.logaddexp(0, np.outer(odds, (-1, 1)))
        return LabelScores(found, found, np.zeros_like(found, bool), (None,) * len(prompts))


def made_up(count: int, size: int, seed: int) -> list[Claim]:
    """Claims in groups like solutions of a problem: right ones share their answer."""
    rng = random.Random(f"made-up-{seed}")
    claims = []
    for index in range(count):
        right = rng.random() < 0.5
        key = "right" if right else f"wrong {rng.randrange(3)}"
        claims.append(Claim(f"claim {seed}.{index}", f"group {index // size}", key, right))
    return claims


def _prompts(say: Say, count: int = 64, seeds: int = 10, steps: int = 768) -> list[Row]:
    """Scored prompts of `reference` and `exact`, as the scorer itself counts them."""
    ratios = []
    for seed in range(seeds):
        claims = made_up(count, 4, seed)
        asked = {}
        for order in ("reference", "exact"):
            scorer = Synthetic(claims)
            engine = cast("Engine", scorer)
            search(claims, engine, order=order, n_iterations=steps, seed=seed)
            asked[order] = scorer.asked
        ratios.append(asked["reference"] / asked["exact"])
        say(f"seed {seed}: {asked['reference']:,} / {asked['exact']:,} prompts")
    shown = f"n = {count} in groups of 4, {steps} iterations, synthetic scorer"
    return [ratio_row(f"scored prompts, `reference` / `exact`, {shown}", ratios, 5)]


def _pass(engine: VLLMEngine, say: Say, count: int = 128, seeds: int = 3) -> list[Row]:
    """Computed tokens of one leave-one-out pass, in natural order and as a tree."""
    ratios = []
    for seed in range(seeds):
        bed = open_testbed("embedded", count=count, seed=seed)
        labels = tuple(claim.gold for claim in bed.claims)
        tokens = []
        for kind in (Reference, Tree):
            oracle = Oracle(engine, bed.claims, bed.wording, Journal(None, {}))
            engine.llm.reset_prefix_cache()
            kind(oracle).all(labels)
            tokens.append(oracle.cost.computed_tokens)
        ratios.append(tokens[0] / tokens[1])
        whole = oracle.cost.prompt_tokens
        say(f"seed {seed}: {tokens[0]:,} / {tokens[1]:,} of {whole:,} tokens computed")
    what = f"computed prompt tokens of a leave-one-out pass, n = {count}, natural order / tree"
    return [ratio_row(what, ratios, 5)]


def _full(engine: VLLMEngine, say: Say, count: int = 128, steps: int = 60) -> list[Row]:
    """The first iterations from a full pool with random labels: tokens and time.

    The KV cache holds 0.7 of what a pass in natural order computes, as that of an 8B model on a
    141 GB GPU does with 256 claims of 40 tokens (0.9 of 1.3 million tokens). Each iteration that
    would change a label costs both orders a pass over claims of 10 tokens, of which `tree` must
    compute in any order half a block of 32, the claim and the query.
    """
    bed = open_testbed("embedded", count=count)
    block = engine.llm.llm_engine.vllm_config.cache_config.block_size
    room = max(0.7 * _natural_pass(engine, bed), engine.info.context_length)
    blocks = int(room) // block + 1  # vLLM keeps one for itself
    spent = {}
    with _engine(num_gpu_blocks_override=blocks) as small:
        for order in ("tree", "reference"):
            spent[order] = _first_steps(small, bed, order, steps)
            tokens, seconds, *whole = spent[order]
            say(f"{order}: {tokens:,.0f} tokens in {seconds:.0f} s, the whole search "
                f"{whole[0]:,.0f} in {whole[1]:.0f} s")  # fmt: skip
    what = f"first {steps} iterations from a full pool, n = {count}, `reference` / `tree`"
    rows = (
        (f"{what}, KV of {blocks * block:,} tokens in blocks of {block}: computed tokens", 15),
        ("… wall-clock", 6),
        ("… with mending the random start and `tree`'s pass at the end: computed tokens", 0),
        ("… wall-clock", 0),
    )
    ratios = (a / b for a, b in zip(spent["reference"], spent["tree"], strict=True))
    return [
        Row(name, ratio, " ×", f"≥ {least} ×" if least else "reported", ratio >= least)
        for (name, least), ratio in zip(rows, ratios, strict=True)
    ]


def _natural_pass(engine: VLLMEngine, bed: Testbed) -> int:
    """Tokens that a leave-one-out pass in natural order computes from an empty cache."""
    oracle = Oracle(engine, bed.claims, bed.wording, Journal(None, {}))
    engine.llm.reset_prefix_cache()
    Reference(oracle).all(tuple(claim.gold for claim in bed.claims))
    return oracle.cost.computed_tokens


def _first_steps(engine: VLLMEngine, bed: Testbed, order: Order, steps: int) -> tuple[float, ...]:
    """Tokens and seconds of the iterations alone, then those of the whole search."""
    last = 0, 0.0
    start = time.perf_counter()

    def note(step: Step) -> None:
        nonlocal last
        last = step.computed_tokens, time.perf_counter() - start

    found = _search(engine, bed, order, n_seeds=len(bed.claims), n_iterations=steps, on_step=note)
    seconds = time.perf_counter() - start
    before = found.history.iloc[0]  # the pool's labels once they are consistent
    alone = last[0] - float(before["computed_tokens"]), last[1] - float(before["seconds"])
    return *alone, found.cost.computed_tokens, seconds


def _energy(
    engine: VLLMEngine, say: Say, count: int = 48, seeds: int = 10, steps: int = 1000
) -> list[Row]:
    """What `tree` and `exact` find, both scored in natural order (as reports' energies are)."""
    orders: tuple[Order, ...] = ("tree", "exact")
    energies: dict[Order, list[float]] = {order: [] for order in orders}
    right: dict[Order, list[float]] = {order: [] for order in orders}
    labelled: dict[Order, list[int]] = {order: [] for order in orders}
    for seed in range(seeds):
        bed = open_testbed("embedded", count=count, seed=seed)
        for order in orders:
            found = _search(engine, bed, order, alpha=ALPHA, n_iterations=steps, seed=seed)
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
    return [
        Row(what, share, " %", "≥ 98 %", share >= 98),
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
    return _search(engine, bed, "tree", n_iterations=steps, checkpoint=path)


CHILD = """
import sys
from pathlib import Path
from workbench.bench.icm import _engine, _resumable
_resumable(_engine(), Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
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


def _cost(
    engine: VLLMEngine, say: Say, count: int = 32, seeds: int = 3, steps: int = 300
) -> list[Row]:
    """What the three modes of a whole search cost, the first as a multiple of the others."""
    what = ("prompts", "computed tokens", "seconds")
    spent: dict[Order, list[tuple[float, float, float]]] = {order: [] for order in ORDERS}
    for seed, order in itertools.product(range(seeds), ORDERS):
        bed = open_testbed("embedded", count=count, seed=seed)
        start = time.perf_counter()
        cost = _search(engine, bed, order, alpha=ALPHA, n_iterations=steps, seed=seed).cost
        seconds = time.perf_counter() - start
        spent[order].append((cost.prompts, cost.computed_tokens, seconds))
        say(f"seed {seed}, {order}: {cost.prompts:,} prompts, {cost.computed_tokens:,} tokens, "
            f"{seconds:.1f} s")  # fmt: skip
    shown = f"n = {count}, {steps} iterations, alpha {ALPHA}: `reference` /"
    return [
        ratio_row(
            f"{shown} `{order}`, {name}",
            [a[i] / b[i] for a, b in zip(spent["reference"], spent[order], strict=True)],
            0,
        )
        for order in ("exact", "tree")
        for i, name in enumerate(what)
    ]


PARTS: Mapping[str, Part] = {
    "exact": _exact, "pass": _pass, "full": _full, "energy": _energy, "accuracy": _accuracy,
    "killed": _killed, "cost": _cost,
}  # fmt: skip
"""Those that need the model."""
NAMES = ("exact", "prompts", "pass", "full", "energy", "accuracy", "killed", "cost")
