"""The cost of an ICM search: prompts, computed tokens, time, by order of demonstrations."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from benchmarks.harness import Measurement, ratio, ratios, vllm_engine
from benchmarks.synthetic import Synthetic, made_up
from workbench.cli.output import say
from workbench.engines.vllm import VLLMEngine
from workbench.icm import Claim, ICMReport, search
from workbench.icm.annealing import Step
from workbench.icm.predictability import ORDERS, Order, Reference, Tree
from workbench.icm.reading import open_testbed
from workbench.icm.scorer import Cost, Scorer
from workbench.icm.testbeds import Testbed
from workbench.tasks import arithmetic
from workbench.types import Engine

ALPHA = 5  # low enough to label all claims; exactness is measured at the default, 50


def run(engine: VLLMEngine, bed: Testbed, order: Order, **settings: Any) -> ICMReport:
    """A search from an empty prefix cache."""
    engine.llm.reset_prefix_cache()
    return search(bed.claims, engine, order=order, wording=bed.wording, **settings)


def prompts(count: int = 64, seeds: int = 10, steps: int = 768) -> list[Measurement]:
    """Scored prompts of `reference` and `exact`, as counted by the scorer."""
    fewer = []
    for seed in range(seeds):
        claims = made_up(count, 4, seed)
        scored = {}
        for order in ("reference", "exact"):
            scorer = Synthetic(claims)
            search(claims, cast("Engine", scorer), order=order, n_iterations=steps, seed=seed)
            scored[order] = scorer.asked
        fewer.append(scored["reference"] / scored["exact"])
        say(f"seed {seed}: {scored['reference']:,} / {scored['exact']:,} prompts")
    shown = f"n = {count} in groups of 4, {steps} iterations, synthetic scorer"
    return [ratio(f"scored prompts, `reference` / `exact`, {shown}", fewer, 5)]


def passes(engine: VLLMEngine, count: int = 128, seeds: int = 3) -> list[Measurement]:
    """Computed tokens of one leave-one-out pass, in natural order and as a tree."""
    fewer = []
    for seed in range(seeds):
        bed = open_testbed("embedded", count=count, seed=seed)
        natural, tree = (one_pass(engine, bed, order) for order in (Reference, Tree))
        fewer.append(natural.computed_tokens / tree.computed_tokens)
        say(f"seed {seed}: {natural.computed_tokens:,} / {tree.computed_tokens:,} of "
            f"{tree.prompt_tokens:,} tokens computed")  # fmt: skip
    what = f"computed prompt tokens of a leave-one-out pass, n = {count}, natural order / tree"
    return [ratio(what, fewer, 5)]


def one_pass(engine: VLLMEngine, bed: Testbed, order: type[Reference]) -> Cost:
    """The cost of a leave-one-out pass over golden labels from an empty prefix cache."""
    oracle = Scorer(engine, bed.claims, bed.wording)
    engine.llm.reset_prefix_cache()
    order(oracle).all(tuple(claim.gold for claim in bed.claims))
    return oracle.cost


def full(
    engine: VLLMEngine, count: int = 128, steps: int = 60, seeds: int = 3
) -> list[Measurement]:
    """The first iterations from a full pool with random labels: tokens and time.

    Labels are consistent from the start, so there are no repairs before the first iteration. The
    KV cache holds 0.7 of the tokens of a pass in natural order, as that of an 8B model on a 141 GB
    GPU does with 256 claims of 40 tokens (0.9 of 1.3 million tokens). The published loop's cost
    per iteration depends on the groups: one pass if the new label is consistent, three if a pair
    has to be repaired; `tree` has the results of two of those three. So each kind of groups has
    its target: pairs, as in the published comparisons; four claims per problem, as in the published
    TruthfulQA and GSM8K; and the groups of the embedded testbed.
    """
    block = engine.llm.llm_engine.vllm_config.cache_config.block_size
    natural = one_pass(engine, _mixed(count, 0), Reference).computed_tokens
    blocks = int(max(0.7 * natural, engine.info.context_length)) // block + 1  # one is vLLM's own
    shown = f"n = {count}, KV of {blocks * block:,} tokens in blocks of {block}"
    what = f"first {steps} iterations from a full pool, {shown}, `reference` / `tree`"
    beds = (
        (f"{what}, pairs", _pairs, 12),
        ("… groups of one to three", _mixed, 10),
        ("… groups of four", _fours, 8),
    )
    rows = []
    with vllm_engine(dtype="float32", num_gpu_blocks_override=blocks) as small:
        for name, draw, least in beds:
            times: list[tuple[float, ...]] = []
            for seed in range(seeds):
                bed = draw(count, seed)
                tree = _first_steps(small, bed, "tree", steps, seed)
                reference = _first_steps(small, bed, "reference", steps, seed)
                times.append(tuple(a / (b or 1) for a, b in zip(reference, tree, strict=True)))
                say(f"{name}, seed {seed}: {reference[0]:,} / {tree[0]:,} tokens, "
                    f"{reference[1]:.0f} / {tree[1]:.0f} s")  # fmt: skip
            tokens, clock = zip(*times, strict=True)
            rows.append(ratio(f"{name}: computed tokens", tokens, least))
            rows.append(ratio("… wall-clock", clock, least / 2))
    return rows


def _mixed(count: int, seed: int) -> Testbed:
    return open_testbed("embedded", count=count, seed=seed)


def _pairs(count: int, seed: int) -> Testbed:
    """Embedded claims of those problems that have two."""
    bed = open_testbed("embedded", count=3 * count, seed=seed)
    groups = Counter(claim.group for claim in bed.claims)
    chosen = [claim for claim in bed.claims if groups[claim.group] == 2][:count]
    return replace(bed, claims=tuple(chosen))


def _fours(count: int, seed: int) -> Testbed:
    """Four claims per problem, one of them right."""
    rng = random.Random(f"fours-{seed}")
    groups: dict[str, list[Claim]] = {}
    for problem in arithmetic.problems(rng, held_out=True):
        if 4 * len(groups) >= count:
            break
        shown = [problem.result]
        while len(shown) < 4:
            if (wrong := arithmetic.wrong_result(problem, rng)) not in shown:
                shown.append(wrong)
        rng.shuffle(shown)
        groups[str(problem)] = [
            Claim(f"{problem}={value}", str(problem), str(value), value == problem.result)
            for value in shown
        ]
    claims = tuple(itertools.chain(*groups.values()))[:count]
    return replace(_mixed(count, seed), claims=claims, test=())


def _first_steps(
    engine: VLLMEngine, bed: Testbed, order: Order, steps: int, seed: int
) -> tuple[int, float]:
    """Tokens and seconds of the iterations alone."""
    start = time.perf_counter()
    last = 0, 0.0

    def note(step: Step) -> None:
        nonlocal last
        last = step.computed_tokens, time.perf_counter() - start

    labels = _labels(bed.claims, seed)
    report = run(engine, bed, order, n_seeds=labels, n_iterations=steps, seed=seed, on_step=note)
    before = report.history.iloc[0]
    return last[0] - int(before["computed_tokens"]), last[1] - float(before["seconds"])


def _labels(claims: Sequence[Claim], seed: int) -> list[bool]:
    """One random claim per problem is true; the only claim of a problem is true half the time."""
    rng = random.Random(f"labels-{seed}")
    groups: dict[str, list[str]] = {}
    for claim in claims:
        groups.setdefault(claim.group, []).append(claim.text)
    true = {rng.choice(texts if len(texts) > 1 else [*texts, ""]) for texts in groups.values()}
    return [claim.text in true for claim in claims]


def modes(
    engine: VLLMEngine, count: int = 64, seeds: int = 3, steps: int = 1000
) -> list[Measurement]:
    """The costs of whole searches in the three modes, the first as a multiple of the others."""
    units = ("prompts", "computed tokens", "seconds")
    spent: dict[Order, list[tuple[float, float, float]]] = {order: [] for order in ORDERS}
    for seed, order in itertools.product(range(seeds), ORDERS):
        bed = open_testbed("embedded", count=count, seed=seed)
        start = time.perf_counter()
        cost = run(engine, bed, order, alpha=ALPHA, n_iterations=steps, seed=seed).cost
        taken = time.perf_counter() - start
        spent[order].append((cost.prompts, cost.computed_tokens, taken))
        say(f"seed {seed}, {order}: {cost.prompts:,} prompts, {cost.computed_tokens:,} tokens, "
            f"{taken:.1f} s")  # fmt: skip
    columns = {order: [*zip(*costs, strict=True)] for order, costs in spent.items()}
    shown = f"whole searches, n = {count}, K = {steps}, alpha {ALPHA}: `reference` /"
    heads: dict[Order, str] = {"exact": f"{shown} `exact`,", "tree": "… `tree`,"}
    return [
        ratio(f"{head if number == 0 else '…'} {unit}", ratios(first, second))
        for order, head in heads.items()
        for number, (unit, first, second) in enumerate(
            zip(units, columns["reference"], columns[order], strict=True)
        )
    ]
