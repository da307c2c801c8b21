"""The search: against an independent port of the published loop, and order by order.

Most of it runs on a deterministic stand-in for a model; the real one follows at the end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, combinations, islice
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes import FakeEngine

from workbench import Sampling
from workbench.engines.remote import RemoteEngine
from workbench.engines.vllm import VLLMEngine
from workbench.icm import Claim, ICMReport, Step, Wording, search
from workbench.icm.annealing import Schedule
from workbench.icm.predictability import Objective, Order, by_halves
from workbench.serving import Server
from workbench.tasks.arithmetic import equations
from workbench.tiny import MODEL
from workbench.types import Completion, Engine, Errors, LabelScores

NOISE = 6  # of the stand-in's beliefs; the truth's own weight is 2
ORDERS: tuple[Order, ...] = ("reference", "exact", "tree")


class Synthetic(FakeEngine):
    """Log-odds of a claim: whole numbers over its demonstrations, so no rounding depends on order.

    Args:
        claims: those that it knows; it believes their gold, whatever a search is given later.
        places: demonstrations count differently by their place before the query.
        context: tokens (words) that fit, 0 for any.
        labels: as its prompts have them.
    """

    def __init__(
        self,
        claims: Sequence[Claim],
        seed: int = 0,
        *,
        places: bool = True,
        context: int = 0,
        labels: tuple[str, str] = (" True", " False"),
    ) -> None:
        rng = np.random.default_rng(seed)
        truth = np.array([1 if claim.gold else -1 for claim in claims])
        noise = rng.integers(-NOISE, NOISE + 1, (len(claims),) * 2)
        weights = (2 * np.outer(truth, truth) + noise).tolist()
        own = rng.integers(-4, 5, len(claims)).tolist()
        self._own = {claim.text: own[i] for i, claim in enumerate(claims)}
        self._weights = {
            claim.text: {
                other.text + end: sign * weights[i][j]
                for j, other in enumerate(claims)
                for end, sign in zip(labels, (1, -1), strict=True)
            }
            for i, claim in enumerate(claims)
        }
        super().__init__(engine="synthetic", context_length=context)
        self._places = places
        self.calls: list[list[str]] = []

    @property
    def asked(self) -> list[str]:
        """All prompts in the order in which they came."""
        return [prompt for call in self.calls for prompt in call]

    def row(self, prompt: str) -> tuple[float, float]:
        """Log-probability of true and false; together they leave something for other words."""
        *shown, query = prompt.split("\n\n")
        weights, total, last = self._weights[query], self._own[query], len(shown)
        for place, text in enumerate(shown):
            total += weights[text] * (4 + (last - place) % 5 if self._places else 6)
        odds = total / (8 * max(1, last))
        return -math.log(1.1 + math.exp(-odds)), -math.log(1.1 + math.exp(odds))

    def label_logprobs(self, prompts: Any, labels: Any, *, errors: Errors = "raise") -> LabelScores:
        texts = [str(prompt) for prompt in prompts]
        self.calls.append(texts)
        more = max(len(label.split()) for label in labels)
        reasons = tuple(self._too_long(text, more) for text in texts)
        rows = [
            (-math.inf,) * 2 if reason else self.row(text)
            for text, reason in zip(texts, reasons, strict=True)
        ]
        self.usage = replace(
            self.usage,
            requests=self.usage.requests + len(texts),
            prompt_tokens=self.usage.prompt_tokens + sum(len(text.split()) for text in texts),
        )
        found = np.array(rows, float)
        missing = np.isneginf(found)
        return LabelScores(found, np.where(missing, 0, found), missing, reasons)

    def generate(
        self,
        prompts: Any,
        sampling: Sampling = Sampling(),  # noqa: B008
        *,
        errors: Errors = "raise",
    ) -> list[Completion]:
        texts = [str(prompt) for prompt in prompts]
        self.usage = replace(self.usage, requests=self.usage.requests + len(texts))
        return [
            Completion(
                text="",
                finish_reason="length",
                prompt_tokens=len(text.split()),
                error=self._too_long(text, 1),
            )
            for text in texts
        ]

    def _too_long(self, text: str, more: int) -> str | None:
        tokens, context = len(text.split()) + more, self.info.context_length
        return f"{tokens} tokens do not fit" if context and tokens > context else None


def claims_of(count: int, size: int = 4, kind: str = "keys", seed: int = 0) -> list[Claim]:
    """Claims in groups; answer keys, or comparisons, that agree with gold for the most part."""
    rng = random.Random(f"{count}/{size}/{kind}/{seed}")
    made = []
    for index in range(count):
        group, place = divmod(index, size)
        gold = rng.random() < 0.4
        key = "right" if gold is (rng.random() < 0.9) else rng.choice(("wrong", "off"))
        if kind == "compared":
            gold, key = (group + place) % 2 == 0, ("A>B", "B>A")[place % 2]
        made.append(Claim(f"c{index:03}", f"g{group}", key, gold))
    return made


def labels_of(report: ICMReport) -> list[bool | None]:
    return [None if pd.isna(label) else bool(label) for label in report.rows["label"]]


def moves_of(report: ICMReport) -> list[tuple[int, int]]:
    accepted = report.history[report.history["accepted"]]
    return list(zip(accepted["iteration"], accepted["claim"], strict=True))[1:]


def energies_of(report: ICMReport) -> list[float]:
    return list(report.history["energy"][report.history["accepted"]])


def assert_same(report: ICMReport, other: ICMReport, *but: str) -> None:
    """Labels, scores, energy and history, all but the time it took."""
    pd.testing.assert_frame_equal(report.rows, other.rows)
    assert report.energy == other.energy
    left = ["seconds", *but]
    pd.testing.assert_frame_equal(
        report.history.drop(columns=left), other.history.drop(columns=left)
    )


class Published:
    """The published loop (sections 1.1 to 1.3 of the reference page) and nothing else.

    Chance comes from streams named like those of the search; the page leaves that open.
    """

    def __init__(self, claims: Sequence[Claim], engine: Engine, alpha: float, seed: int) -> None:
        self.claims, self.engine, self.alpha, self.seed = claims, engine, alpha, seed
        self.repairs = {"contradiction": 0, "implication": 0}
        self.moves: list[tuple[int, int]] = []
        self.tried = 0
        start = [1, 1, 1, 1, 0, 0, 0, 0]
        self.chance("seeds/").shuffle(start)
        self.y = dict(enumerate(start))
        self.y = self.fixed(self.y, self.energy(self.y), 0)
        self.energies = [self.energy(self.y)]

    def chance(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}/{what}")

    def log_odds(self, y: dict[int, int], e: int) -> float:
        shown = (f"{self.claims[i].text} {bool(y[i])}\n\n" for i in sorted(y) if i != e)
        prompt = "".join(shown) + self.claims[e].text
        true, false = self.engine.label_logprobs([prompt], [" True", " False"]).logprobs[0]
        return float(true - false)

    def violating(self, y: dict[int, int]) -> list[tuple[int, int, str]]:
        found = []
        for i, j in combinations(sorted(y), 2):
            a, b = self.claims[i], self.claims[j]
            if a.group == b.group and a.answer_key == b.answer_key:
                found += [(i, j, "implication")] * (y[i] != y[j])
            elif a.group == b.group:
                wrong = y[i] == y[j] and bool(y[i] or a.answer_key in ("A>B", "B>A"))
                found += [(i, j, "contradiction")] * wrong
        return found

    def energy(self, y: dict[int, int]) -> float:
        own = [self.log_odds(y, i) if y[i] else -self.log_odds(y, i) for i in sorted(y)]
        return self.alpha * sum(own) / len(own) - len(self.violating(y))

    def fixed(self, y: dict[int, int], best: float, iteration: int) -> dict[int, int]:
        decided = False
        for k in range(10):
            bad = self.violating(y)
            self.chance(f"repair/{iteration}/{k}").shuffle(bad)
            for i, j, kind in bad:
                ends = ((0, 0), (1, 1)) if kind == "implication" else ((0, 1), (1, 0))
                options = [y | {i: a, j: b} for a, b in ends]
                first, second = map(self.energy, options)
                if max(first, second) >= best:
                    best, y, decided = max(first, second), options[second > first], True
                    self.repairs[kind] += 1
                    break
            if not decided:
                break
        return y

    def step(self, iteration: int, schedule: str) -> None:
        near = {self.claims[i].group for i in self.y}
        weights = [
            100 if i not in self.y and c.group in near else 1 for i, c in enumerate(self.claims)
        ]
        e = self.chance(f"draw/{iteration}").choices(range(len(weights)), weights)[0]
        label = int(self.log_odds(self.y, e) > 0)
        if label == self.y.get(e):
            return
        self.tried += 1
        new = self.fixed(self.y | {e: label}, -1e6, iteration)
        value, flips = self.energy(new), len(self.moves)
        slow = 0.99 * math.log(iteration) if schedule == "paper" else 2 * math.log(1 + flips)
        heat = max(0.01, 10 / (1 + slow))
        likely = math.exp(min(700, (value - self.energies[-1]) / heat))
        if self.chance(f"accept/{iteration}").random() < likely:
            self.y = new
            self.moves.append((iteration, e))
            self.energies.append(value)


LANDSCAPES = [
    (16, 4, "keys", 4),
    (16, 4, "keys", 10),  # the seeds stay at odds: repairing them would cost too much
    (24, 4, "keys", 1),
    (24, 4, "keys", 2),
    (20, 4, "compared", 2),
    (24, 2, "compared", 3),
]


@pytest.mark.parametrize("schedule", ["paper", "code"])
@pytest.mark.parametrize(("count", "size", "kind", "seed"), LANDSCAPES)
def test_reference_is_the_published_loop(
    count: int, size: int, kind: str, seed: int, schedule: Schedule
) -> None:
    claims = claims_of(count, size, kind, seed)
    engine, other = Synthetic(claims, seed), Synthetic(claims, seed)
    wanted = Published(claims, engine, alpha=15.0, seed=seed)
    for iteration in range(1, 61):
        wanted.step(iteration, schedule)
    found = search(
        claims, other, order="reference", n_iterations=60, schedule=schedule, seed=seed, alpha=15.0
    )
    assert moves_of(found) == wanted.moves
    assert labels_of(found) == [
        bool(wanted.y[i]) if i in wanted.y else None for i in range(len(claims))
    ]
    assert energies_of(found) == pytest.approx(wanted.energies, abs=1e-9)
    assert other.asked == engine.asked
    # … and it was no walk in the park: moves refused, pairs repaired.
    assert len(found.history) - 1 == wanted.tried > len(wanted.moves) > 5
    assert wanted.repairs["contradiction"] >= 1
    assert wanted.repairs["implication"] >= 1 or (kind, size) == ("compared", 2)


@pytest.mark.parametrize("context", [0, 32], ids=["whole", "capped"])
@pytest.mark.parametrize("objective", ["log_odds", "log_prob"])
@pytest.mark.parametrize("seed", [1, 4])
def test_exact_is_reference_without_asking_twice(
    seed: int, objective: Objective, context: int
) -> None:
    claims = claims_of(24, 4, "keys", seed)
    engines = {order: Synthetic(claims, seed, context=context) for order in ORDERS[:2]}
    steps: dict[str, list[Step]] = {order: [] for order in ORDERS[:2]}
    reference, exact = (
        search(
            claims, engines[order], order=order, seed=seed, objective=objective, n_iterations=150,
            alpha=20.0, on_step=steps[order].append,
        )
        for order in ORDERS[:2]
    )  # fmt: skip
    assert moves_of(exact) == moves_of(reference)
    assert energies_of(exact) == pytest.approx(energies_of(reference), abs=1e-9)
    pd.testing.assert_frame_equal(exact.rows, reference.rows)
    assert len(moves_of(exact)) > 10
    assert any("demonstrations" in note for note in exact.notes) is bool(context)
    assert set(engines["exact"].asked) == set(engines["reference"].asked)
    assert len(steps["exact"]) <= len(steps["reference"]) == 150
    for step, full in zip(steps["exact"], steps["reference"], strict=False):
        assert (step.pool, step.tried, step.accepted) == (full.pool, full.tried, full.accepted)


@pytest.mark.parametrize("context", [0, 32], ids=["whole", "capped"])
def test_exact_asks_nothing_twice(context: int) -> None:
    claims = claims_of(24, 4, "keys", 1)
    engine = Synthetic(claims, 1, context=context)
    search(claims, engine, order="exact", seed=1, n_iterations=150, alpha=20.0)
    assert len(engine.asked) == len(set(engine.asked))


def test_saved_tokens_are_those_that_reference_asks_for() -> None:
    claims = claims_of(24, 4, "keys", 1)
    steps: dict[str, list[Step]] = {order: [] for order in ORDERS[:2]}
    for order in ORDERS[:2]:
        engine = Synthetic(claims, 1)
        search(claims, engine, order=order, seed=1, n_iterations=80, on_step=steps[order].append)
    pairs = list(zip(steps["exact"], steps["reference"], strict=False))
    assert len(pairs) > 40
    for step, full in pairs:
        assert step.computed_tokens + step.saved_tokens == full.prompt_tokens


def test_exact_asks_for_a_fifth_at_most() -> None:
    claims = claims_of(64, 4, "keys", 0)
    asked = {}
    for order in ORDERS[:2]:
        engine = Synthetic(claims, 0)
        report = search(claims, engine, order=order, n_iterations=768, alpha=20.0)
        asked[order] = len(engine.asked), labels_of(report)
        assert report.cost.prompts == len(engine.asked)
    assert asked["exact"][1] == asked["reference"][1]
    assert 5 * asked["exact"][0] <= asked["reference"][0]


def test_it_ends_where_no_label_can_change() -> None:
    claims = claims_of(16, 2, "compared", 0)
    for order in ORDERS[1:]:
        steps: list[Step] = []
        engine = Synthetic(claims)
        report = search(
            claims, engine, order=order, n_iterations=900, alpha=20, on_step=steps.append
        )
        assert len(steps) < 100
        assert None not in labels_of(report)
        # … and the published loop, which does not notice, changes nothing any more.
        more = search(claims, Synthetic(claims), order="reference", n_iterations=200, alpha=20)
        assert len(more.history) <= len(report.history) or order == "tree"
        assert labels_of(more) == labels_of(report) or order == "tree"


@pytest.mark.parametrize("seed", range(2))
def test_tree_is_exact_where_order_does_not_matter(seed: int) -> None:
    claims = claims_of(48, 4, "keys", seed)
    exact, tree = (
        search(
            claims, Synthetic(claims, seed, places=False), order=order, seed=seed,
            n_iterations=200, alpha=20.0,
        )
        for order in ORDERS[1:]
    )  # fmt: skip
    assert moves_of(tree) == moves_of(exact)
    assert len(moves_of(tree)) > 40
    assert energies_of(tree) == pytest.approx(energies_of(exact), abs=1e-9)
    pd.testing.assert_frame_equal(tree.rows, exact.rows)


def shown_in(prompt: str) -> tuple[tuple[str, ...], str]:
    *shown, query = prompt.split("\n\n")
    return tuple(shown), query


def prefixes(prompts: Sequence[str]) -> set[tuple[str, ...]]:
    """What a model computes where it computes no prefix twice."""
    every = (shown_in(prompt)[0] for prompt in prompts)
    return {shown[:end] for shown in every for end in range(1, len(shown) + 1)}


@pytest.mark.parametrize("order", ORDERS)
def test_each_claim_is_asked_about_after_all_others(order: Order) -> None:
    claims = claims_of(40, 4, "keys", 1)
    engine = Synthetic(claims, 1)
    search(claims, engine, order=order, seed=1, n_iterations=120, alpha=20.0)
    pools: dict[int, list[int]] = {}
    fresh: dict[int, int] = {}
    known: set[frozenset[str]] = set()
    computed: set[tuple[str, ...]] = set()
    for call in engine.calls:
        parsed = [shown_in(prompt) for prompt in call]
        labels = {text for shown, _ in parsed for text in shown}
        pool = frozenset(text.split()[0] for text in labels)
        for shown, query in parsed:
            others = {text.split()[0] for text in shown}
            assert len(others) == len(shown)
            assert query not in others
            if len(call) == 1:
                assert others in known or others | {query} in known
            else:
                assert others | {query} == pool
        if len(call) > 1:
            assert len(labels) == len(pool)  # one label a claim within a pass
            assert len({query for _, query in parsed}) == len(parsed)
            known.add(pool)
        if len(call) + 1 >= len(pool):  # (nearly) whole passes
            here = prefixes(call)
            pools.setdefault(len(pool), []).append(len(here))
            fresh[len(pool)] = min(len(here - computed), fresh.get(len(pool), 10**6))
            computed |= here
    assert set(pools) >= {8, 12, 20, 23, 24, 25, 39, 40}  # with a tail, and the tree rebuilt
    for size in (8, 24, 40):
        natural = sum(range(size)) + size - 1
        most = size * math.ceil(math.log2(size)) if order == "tree" else natural
        assert most / 2 < min(pools[size]) <= most
    if order == "tree":  # one more claim in the tail is one more demonstration a prompt
        assert all(fresh[size] <= 2 * size for size in (9, 12, 20, 23, 25, 39))


def test_halves() -> None:
    for count in range(20):
        pool = random.Random(count).sample(range(100), count)
        found = dict(by_halves(pool))
        assert list(found) == pool
        assert all(sorted([*others, one]) == sorted(pool) for one, others in found.items())
    found = dict(by_halves(range(64)))
    assert len({others[:end] for others in found.values() for end in range(1, 64)}) == 64 * 6
    assert set(found[0][:32]) == set(range(32, 64))  # the far half first, the nearest last
    assert found[0][-1] == 1


# The real model.

LINES = Wording(after="\n")


def sums(count: int, seed: int = 0) -> list[Claim]:
    """Claims about sums for the embedded model."""
    groups = equations(random.Random(f"sums-{seed}"), held_out=True)
    drawn = islice(chain.from_iterable(groups), count)
    return [Claim(str(c), str(c.problem), str(c.shown), c.right) for c in drawn]


@pytest.mark.parametrize(("count", "seed"), [(8, 0), (8, 1), (16, 0), (16, 1)])
def test_exact_is_reference_on_a_model(plain: VLLMEngine, count: int, seed: int) -> None:
    claims = sums(count, seed)
    reference, exact = (
        search(claims, plain, order=order, seed=seed, n_iterations=60, wording=LINES)
        for order in ORDERS[:2]
    )
    assert moves_of(exact) == moves_of(reference)
    assert labels_of(exact) == labels_of(reference)
    assert energies_of(exact) == pytest.approx(energies_of(reference), abs=1e-4)
    assert exact.energy == pytest.approx(reference.energy, abs=1e-4)
    assert exact.cost.prompts < reference.cost.prompts


@cache
def by_hand() -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(MODEL), model


def scored(claims: Sequence[Claim], labels: Sequence[bool | None]) -> np.ndarray[Any, Any]:
    """Log-probability of the label and of the other one for each labelled claim."""
    import torch

    tokenizer, model = by_hand()
    pool = [i for i, label in enumerate(labels) if label is not None]
    words = {True: " True", False: " False"}
    ids = {label: tokenizer(word).input_ids for label, word in words.items()}
    rows = []
    for i in pool:
        others = (f"{claims[j].text}{words[bool(labels[j])]}\n" for j in pool if j != i)
        tokens = tokenizer("".join(others) + claims[i].text).input_ids
        with torch.inference_mode():
            at = model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)
        mine = bool(labels[i])
        rows.append([float(at[ids[mine][0]]), float(at[ids[not mine][0]])])
    return np.array(rows)


@pytest.mark.parametrize("objective", ["log_odds", "log_prob"])
@pytest.mark.parametrize("order", ORDERS[1:])
def test_the_energy_is_that_of_the_model_alone(
    plain: VLLMEngine, order: Order, objective: Objective
) -> None:
    claims = sums(14, 2)
    report = search(
        claims, plain, order=order, objective=objective, n_iterations=40, alpha=30, wording=LINES
    )
    labels = labels_of(report)
    mine, other = scored(claims, labels).T
    broken = sum(
        claims[i].group == claims[j].group and labels[i] is labels[j] is True
        for i, j in combinations(range(len(claims)), 2)
    )
    likely = mine - other if objective == "log_odds" else mine
    assert report.energy == pytest.approx(30 * likely.mean() - broken, abs=1e-4 * 30)
    assert report.provenance["predictability"] == pytest.approx(likely.mean(), abs=1e-4)
    rows = report.rows.dropna(subset=["label"])
    own = np.where(rows["label"], rows["logprob_true"], rows["logprob_false"])
    assert np.abs(own - mine).max() < 1e-4


def test_a_server_finds_the_same_labels(plain: VLLMEngine, server: Server) -> None:
    claims = sums(8, 1)
    here = search(claims, plain, n_iterations=20, wording=LINES)
    with RemoteEngine(None, None, "test", {"base_url": server.url}) as remote:
        there = search(claims, remote, n_iterations=20, wording=LINES)
    assert labels_of(there) == labels_of(here)
    assert moves_of(there) == moves_of(here)
    assert there.energy == pytest.approx(here.energy, abs=1e-3)
    assert there.cost.prompts == here.cost.prompts
