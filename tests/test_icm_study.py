"""Labels put to use: test accuracy, bootstrapping, methods side by side, what is said of them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes import FakeEngine
from scipy.stats import t as student

from workbench.comparison import compare, compare_p
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.icm import (
    METHODS,
    Claim,
    ICMStudy,
    Wording,
    bootstrap,
    evaluate_chat,
    evaluate_labels,
    search,
    study,
)
from workbench.icm.claim import Labelled, consistent_labels, relations, violated
from workbench.icm.compare import (
    _accuracy,
    agreement,
    discrimination,
    join,
    method_table,
    paired,
    seed_notes,
    verdicts,
)
from workbench.icm.testbeds import Testbed, embedded
from workbench.stats import mcnemar, paired_shares, proportion
from workbench.types import (
    Errors,
    LabelScores,
    Metric,
    Prompt,
    Usage,
)


class Scripted(FakeEngine):
    """Log-odds of true by a rule of the test: NaN is a missing score, a text why it failed."""

    def __init__(self, rule: Callable[[Prompt], float | str], cached: int | None = 0) -> None:
        super().__init__(engine="scripted")
        self.usage = Usage(cached_tokens=cached)
        self._rule = rule
        self.calls: list[list[str]] = []

    def label_logprobs(self, prompts: Any, labels: Any, *, errors: Errors = "raise") -> LabelScores:
        self.calls.append([str(prompt) for prompt in prompts])
        said = [self._rule(prompt) for prompt in prompts]
        errors_of = tuple(one if isinstance(one, str) else None for one in said)
        odds = np.array([math.nan if isinstance(one, str) else one for one in said])
        rows = np.stack([odds, -odds], axis=1) / 2
        used = self.usage
        cached = None if used.cached_tokens is None else used.cached_tokens + len(prompts)
        self.usage = replace(
            used,
            requests=used.requests + len(prompts),
            prompt_tokens=used.prompt_tokens + sum(len(str(prompt)) for prompt in prompts),
            cached_tokens=cached,
        )
        return LabelScores(rows, rows, np.zeros(rows.shape, bool), errors_of)


def golden(bed: Testbed) -> Labelled:
    return [(claim, bool(claim.gold)) for claim in bed.claims]


def without_gold(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    return tuple(replace(claim, gold=None) for claim in claims)


def odds_after(shown: Labelled, test: Sequence[Claim], engine: VLLMEngine) -> list[float]:
    """Another way to the scores of embedded claims."""
    before = "".join(f"{claim.text} {label}\n" for claim, label in shown)
    prompts = [before + claim.text for claim in test]
    logprobs = engine.label_logprobs(prompts, [" True", " False"]).logprobs
    return [float(true - false) for true, false in logprobs]


TOO_LONG = Claim("1+" * 2000 + "1=2001", "long", "2001", True)


def test_golden_demonstrations_tell_what_is_asked(plain: VLLMEngine) -> None:
    bed = embedded(32, 60)
    many = evaluate_labels(golden(bed), bed.test, plain, wording=bed.wording)
    none = evaluate_labels([], bed.test, plain, wording=bed.wording)
    assert [metric.name for metric in many.summary] == ["test accuracy", "judged True"]
    assert (many.summary[0].n, many.summary[0].n_failed) == (60, 0)
    assert (many.provenance["demonstrations"], none.provenance["demonstrations"]) == (32, 0)
    gain = compare(many, none)
    assert gain.low > 0.2
    assert compare_p(many, none) < 1e-4
    assert gain.value == pytest.approx(many.summary[0].value - none.summary[0].value)
    for report, shown in ((many, golden(bed)), (none, [])):
        odds = odds_after(shown, bed.test, plain)
        assert list(report.rows["log_odds"]) == pytest.approx(odds, abs=1e-4)
        assert [*report.rows["verdict"]] == [value > 0 for value in odds]
        right = [(value > 0) is claim.gold for value, claim in zip(odds, bed.test, strict=True)]
        assert [*report.rows["correct"]] == right
        true = sum(value > 0 for value in odds)
        assert report.summary == (
            proportion("test accuracy", sum(right), 60),
            proportion("judged True", true, 60),
        )
    assert many.usage.requests == 60


def test_labels_of_a_search_are_shown_in_its_own_wording(plain: VLLMEngine) -> None:
    bed = embedded(32, 30)
    found = search(bed.claims, plain, n_seeds=12, n_iterations=0, wording=bed.wording)
    assert len(found.labelled()) == 12
    report = evaluate_labels(found, bed.test, plain)
    assert report.provenance["labelled"] == 12
    odds = odds_after(found.labelled(), bed.test, plain)
    assert list(report.rows["log_odds"]) == pytest.approx(odds, abs=1e-4)
    other = evaluate_labels(found.labelled(), bed.test, plain)
    assert list(other.rows["log_odds"]) != pytest.approx(odds, abs=0.1)
    explicit = evaluate_labels(found, bed.test, plain, wording=Wording())
    assert list(explicit.rows["log_odds"]) == pytest.approx(list(other.rows["log_odds"]), abs=1e-4)
    names = found.summary[0].name, report.summary[0].name
    assert names == ("label accuracy", "test accuracy")
    assert (found.summary[0].n, report.summary[0].n) == (12, 30)


@pytest.mark.parametrize(
    ("shown", "test", "message"),
    [
        ([(Claim("b", "1"), True)], [Claim("a", "1"), Claim("b", "2")], "claim 'b' is a demonstra"),
        ([], [], r"test_claims=\[\]: give a list of at least 1 Claim"),
        ([], "text", "test_claims='text': give"),
        ([], [Claim("a", "1")] * 2, r"test_claims\[0\] and \[1\] are the same claim 'a'"),
        ([(Claim("b", "1"), True)] * 2, [Claim("a", "1")], r"claims\[0\] and \[1\] are the same"),
        ([(Claim("b", "1"), None)], [Claim("a", "1")], r"\(Claim.* must be a claim with its label"),
        ([(Claim("b", "1"), "False")], [Claim("a", "1")], "must be a claim with its label"),
        ([Claim("b", "1")], [Claim("a", "1")], r"Claim\(.*must be a claim with its label"),
        ([("b", True)], [Claim("a", "1")], r"claims\[0\]='b': must be a workbench"),
    ],
)
def test_what_cannot_be_evaluated(shown: Any, test: Any, message: str) -> None:
    engine = Scripted(lambda _: 1.0)
    with pytest.raises(InputError, match=message):
        evaluate_labels(shown, test, engine)
    assert not engine.calls


def test_without_gold_there_are_verdicts_and_no_accuracy(plain: VLLMEngine) -> None:
    bed = embedded(16, 20)
    judged = evaluate_labels(golden(bed), bed.test, plain, wording=bed.wording)
    hidden = without_gold(bed.test)
    report = evaluate_labels(golden(bed), hidden, plain, wording=bed.wording)
    assert report.summary == judged.summary[1:]
    assert [*report.rows["verdict"]] == [*judged.rows["verdict"]]
    half = evaluate_labels(golden(bed), bed.test[:9] + hidden[9:], plain, wording=bed.wording)
    assert [(metric.name, metric.n) for metric in half.summary] == [
        ("test accuracy", 9),
        ("judged True", 20),
    ]
    assert half.summary[0].value == judged.rows["correct"][:9].mean()


def test_a_row_that_failed_is_data(plain: VLLMEngine, tmp_path: Path) -> None:
    bed = embedded(16, 20)
    whole = evaluate_labels(golden(bed), bed.test, plain, wording=bed.wording)
    for shown in (golden(bed), []):
        test = (*bed.test[:5], TOO_LONG, *bed.test[5:])
        report = evaluate_labels(shown, test, plain, wording=bed.wording)
        metric = report.summary[0]
        assert (metric.n, metric.n_failed) == (20, 1)
        assert report.provenance["demonstrations"] == len(shown)  # it caps nothing
        bad = report.rows.iloc[5]
        assert "the context of workbench-tiny holds" in bad["error"]
        assert (bad["verdict"], bad["correct"]) == (None, False)
        assert math.isnan(bad["log_odds"])
        if shown:
            others = report.rows.drop(index=5)
            assert [*others["log_odds"]] == pytest.approx([*whole.rows["log_odds"]], abs=1e-4)
            assert metric.value == whole.summary[0].value
            saved = pd.read_parquet(report.save(tmp_path / "one") / "rows.parquet")
            assert saved["error"].notna().sum() == 1
    chat = evaluate_chat((*bed.test, TOO_LONG), plain, wording=bed.wording)
    assert (chat.summary[0].n, chat.summary[0].n_failed) == (20, 1)
    for shown in (golden(bed), []):
        with pytest.raises(EngineError, match=r"no test claim could be judged\. First: the prompt"):
            evaluate_labels(shown, [TOO_LONG], plain)


def test_a_missing_score_is_no_verdict() -> None:
    odds = {"a": 0.1, "b": math.nan, "c": -0.1, "d": 0.2}
    engine = Scripted(lambda prompt: odds[str(prompt)])
    test = [Claim(text, "1", gold=text == "a") for text in odds]
    report = evaluate_labels([], test, engine)
    assert [*report.rows["verdict"]] == [True, None, False, True]
    assert [*report.rows["error"].notna()] == [False, True, False, False]
    assert "engine that scores labels is needed" in report.rows["error"][1]
    assert report.summary == (
        proportion("test accuracy", 2, 3, n_failed=1),
        proportion("judged True", 2, 3, n_failed=1),
    )


def test_a_chat_asks_each_claim_alone(plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = embedded(1, 40)
    report = evaluate_chat(bed.test, plain, wording=bed.wording)
    assert [metric.name for metric in report.summary] == ["test accuracy", "judged True"]
    assert report.summary[0].value > 0.8
    chats = [[{"role": "user", "content": f"Is it true that {c.text}?"}] for c in bed.test]
    logprobs = plain.label_logprobs(chats, bed.wording.chat_labels).logprobs
    assert list(report.rows["log_odds"]) == pytest.approx([*(logprobs[:, 0] - logprobs[:, 1])])
    plain_text = evaluate_labels([], bed.test, plain, wording=bed.wording)
    assert compare(report, plain_text).low > 0  # a bare claim does not say what is asked
    monkeypatch.setattr(plain.tokenizer, "chat_template", None)
    with pytest.raises(InputError, match="workbench-tiny has no chat template"):
        evaluate_chat(bed.test, plain)
    with pytest.raises(InputError, match=r"test_claims=.*at least 1"):
        evaluate_chat([], plain)


# Bootstrapping.


def keyed(*keys: str | None, size: int = 100) -> list[Claim]:
    """Claims with these answers, `size` in a group."""
    return [Claim(f"c{i}", f"g{i // size}", key) for i, key in enumerate(keys)]


def likeliness(odds: Sequence[float], labels: Sequence[bool]) -> float:
    return sum(value if label else -value for value, label in zip(odds, labels, strict=True))


@pytest.mark.parametrize("answers", ["ab", "abc", ["A>B", "B>A"], ["A>B", "B>A", "x"], [None, "a"]])
def test_mended_labels_are_the_likeliest_consistent_ones(answers: Sequence[str | None]) -> None:
    rng = random.Random(str(answers))
    changed = 0
    for _ in range(60):
        claims = keyed(*rng.choices(answers, k=7), size=rng.choice([2, 3, 4, 7]))
        related = relations(claims)
        odds = [rng.uniform(-3, 3) for _ in claims]
        labels = consistent_labels(dict(enumerate(odds)), related)
        assert not violated(related, labels)
        free = [
            labels for labels in product([False, True], repeat=7) if not violated(related, labels)
        ]
        assert likeliness(odds, labels) == pytest.approx(max(likeliness(odds, one) for one in free))
        changed += labels != tuple(value > 0 for value in odds)
        alone = set(range(7)) - {i for pair in related for i in (pair.first, pair.second)}
        assert all(labels[i] is (odds[i] > 0) for i in alone)
    assert changed > 10


def test_mending_ends() -> None:
    # Pair by pair it goes round in a circle: the likelier of two, then what it implies, and again.
    related = relations(keyed("a", "a", "b"))
    assert consistent_labels({0: 5.0, 1: -4.0, 2: 3.0}, related) == (False, False, True)
    # Each of two comparisons wants one that is true, and the group just one: no labels would do.
    related = relations(keyed("A>B", "B>A", "C>D", "D>C"))
    labels = consistent_labels({0: 1.0, 1: 2.0, 2: -3.0, 3: 1.5}, related)
    assert labels == (False, True, False, False)
    assert len(violated(related, labels)) == 1
    assert all(violated(related, one) for one in product([False, True], repeat=4))


def said(prompt: Prompt) -> tuple[dict[str, bool], str]:
    """What a prompt in the default wording shows, and what it asks."""
    *shown, query = str(prompt).split("\n\n")
    split = [one.rsplit(" ", 1) for one in shown]
    assert len({text for text, _ in split}) == len(split)
    return {text: label == "True" for text, label in split}, query


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_it_begins_with_the_likelier_half(count: int) -> None:
    claims = keyed(*[None] * count)
    rank = {claim.text: random.Random(claim.text).random() for claim in claims}
    engine = Scripted(lambda prompt: 20 + rank[said(prompt)[1]])
    done = bootstrap(claims, engine, rounds=0)
    top = sorted(rank, key=rank.__getitem__)[(count + 1) // 2 :]
    assert {c.text for c, label in zip(claims, done.labels, strict=True) if label} == {*top}
    assert (done.rounds, done.settled, done.cost.prompts) == (0, False, count)
    assert engine.calls == [[claim.text for claim in claims]]


def test_each_round_asks_each_claim_after_all_others() -> None:
    claims = keyed(*"aabbccdd", size=4)
    rng = random.Random(0)
    weights = {(a.text, b.text): rng.gauss(0, 1) for a in claims for b in claims}

    def rule(prompt: Prompt) -> float:
        shown, query = said(prompt)
        own = weights[query, query]
        return own + sum(weights[query, text] * (1 if up else -1) for text, up in shown.items())

    engine = Scripted(rule)
    done = bootstrap(claims, engine, rounds=20)
    first, *rounds = engine.calls
    assert len(rounds) == done.rounds
    related, texts = relations(claims), [claim.text for claim in claims]
    odds = {texts.index(prompt): rule(prompt) for prompt in first}
    middle = (sorted(odds.values())[3] + sorted(odds.values())[4]) / 2
    labels = consistent_labels({i: value - middle for i, value in odds.items()}, related)
    for number, prompts in enumerate(rounds, 1):
        asked = [said(prompt) for prompt in prompts]
        assert sorted(query for _, query in asked) == texts
        known = dict(zip(texts, labels, strict=True))
        for shown, query in asked:
            assert shown == {text: label for text, label in known.items() if text != query}
        new = consistent_labels({texts.index(said(p)[1]): rule(p) for p in prompts}, related)
        assert (new == labels) is (number == len(rounds) and done.settled)
        labels = new
    assert done.labels == labels
    assert done.cost.prompts == len(first) * (1 + len(rounds)) == engine.usage.requests
    assert done.cost.prompt_tokens == engine.usage.prompt_tokens


def test_it_may_never_settle() -> None:
    def follow(prompt: Prompt) -> float:
        shown, query = said(prompt)
        return sum(1 if up else -1 for up in shown.values()) or float(query == "c0")

    done = bootstrap(keyed(None, None), Scripted(follow), rounds=5)
    assert (done.rounds, done.settled, done.labels) == (5, False, (False, True))


def test_bootstrapping_embedded_claims(plain: VLLMEngine) -> None:
    bed = embedded(40, 1)
    before = plain.usage
    done = bootstrap(bed.claims, plain, wording=bed.wording)
    used = plain.usage.since(before)
    assert done.settled
    assert not violated(relations(bed.claims), done.labels)
    right = [label is claim.gold for label, claim in zip(done.labels, bed.claims, strict=True)]
    assert sum(right) > 34
    assert done.cost.prompts == used.requests == 40 * (1 + done.rounds)
    assert (done.cost.prompt_tokens, done.cost.computed_tokens) == (
        used.prompt_tokens,
        used.computed_tokens,
    )
    assert 0 < done.cost.computed_tokens < done.cost.prompt_tokens / 2
    again = bootstrap(bed.claims, plain, rounds=done.rounds + 3, wording=bed.wording)
    assert (again.labels, again.rounds) == (done.labels, done.rounds)
    assert bootstrap(without_gold(bed.claims), plain, wording=bed.wording).labels == done.labels


@pytest.mark.parametrize(
    ("claims", "rule", "message"),
    [
        ([], "auto", r"claims=\[\]: give a list of at least"),
        (keyed("a", "b"), "all", "consistency='all': give one of auto, none"),
        (keyed("a", "b"), "gold_key_replication", "needs gold labels, and claim 0 has none"),
    ],
)
def test_what_cannot_be_bootstrapped(claims: list[Claim], rule: Any, message: str) -> None:
    engine = Scripted(lambda _: 1.0)
    with pytest.raises(InputError, match=message):
        bootstrap(claims, engine, consistency=rule)
    assert not engine.calls
    with pytest.raises(EngineError, match=r"1 of 2 prompts could not be scored\. First, prompt 1"):
        bootstrap(keyed("a", "b"), Scripted(lambda p: math.nan if p == "c1" else 1.0))


# Methods side by side.


def frame(**methods: Sequence[Sequence[int | None]]) -> pd.DataFrame:
    """Verdicts, a sequence a seed: right (1), wrong (0) or failed (None)."""
    return pd.DataFrame(
        {
            "method": method, "seed": seed, "id": f"claim {index}", "correct": right == 1,
            "error": "too long" if right is None else None,
        }
        for method, seeds in methods.items()
        for seed, verdicts in enumerate(seeds)
        for index, right in enumerate(verdicts)
    )  # fmt: skip


def t_half(values: Sequence[float] | pd.Series[float]) -> float:
    x = np.asarray(values, float)
    return float(student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)


A, B = [1] * 14 + [0] * 6, [1] * 9 + [0] * 11
EVEN, ODD = [1, 0] * 10, [0, 1] * 10


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_seeds_that_change_nothing_add_no_certainty(seeds: int) -> None:
    rows = frame(a=[A] * seeds, b=[B] * seeds)
    assert _accuracy(rows[rows["method"] == "a"]) == proportion("", 14, 20)
    assert paired(rows, "a", "b") == (paired_shares("", A, B), mcnemar(A, B))
    assert paired(rows, "a", "a")[1] == 1
    metric, p = paired(frame(a=[[1] * 20] * seeds, b=[[0] * 20] * seeds), "a", "b")
    assert metric.value == 1
    assert p == pytest.approx(2**-19)


def test_intervals_are_over_claims_and_seeds() -> None:
    rows = frame(a=[A, [1] * 16 + [0] * 4, [1] * 15 + [0] * 5], b=[B] * 3)
    metric = _accuracy(rows[rows["method"] == "a"])
    shares = [1] * 14 + [2 / 3, 1 / 3] + [0] * 4
    half = math.hypot(t_half(shares), t_half([14 / 20, 16 / 20, 15 / 20]))
    assert metric.n == 20
    assert metric.value == pytest.approx(0.75)
    assert (metric.low, metric.high) == pytest.approx((0.75 - half, min(1, 0.75 + half)))
    found, p = paired(rows, "a", "b")
    half = math.hypot(
        t_half([a - b for a, b in zip(shares, B, strict=True)]), t_half([5 / 20, 7 / 20, 6 / 20])
    )
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert p == pytest.approx(math.erfc(1.959964 * 0.3 / half / 2**0.5))
    back, same = paired(rows, "b", "a")
    assert (back.value, back.low, same) == pytest.approx((-found.value, -found.high, p))


def test_right_at_one_seed_and_wrong_at_the_other_is_no_knowledge() -> None:
    rows = frame(random=[[1] * 40, [0] * 40], other=[[0] * 40, [1] * 40], golden=[[1] * 40] * 2)
    metric = _accuracy(rows[rows["method"] == "random"])
    assert (metric.value, metric.low, metric.high) == (0.5, 0, 1)
    for method, other, value in (("random", "golden", -0.5), ("random", "other", 0)):
        found, p = paired(rows, method, other)
        assert found.value == value
        assert -1 <= found.low < -0.9
        assert 0.9 < found.high <= 1
        assert p > 0.1


def test_what_differs_at_no_claim_or_alike_at_each() -> None:
    # The same labels at each seed, though seeds differ: no difference, and still some doubt.
    rows = frame(a=[EVEN, [1] * 20], b=[EVEN, [1] * 20], c=[EVEN, ODD], d=[[0] * 20] * 2)
    metric, p = paired(rows, "a", "b")
    assert (metric.value, p) == (0, 1)
    assert -0.2 < metric.low < 0 < metric.high < 0.2
    # Each claim is right at one seed of two.
    metric, p = paired(rows, "c", "d")
    assert metric.value == 0.5
    assert 0.2 < metric.low < 0.5 < metric.high < 0.8
    away = (metric.value - metric.low) / 1.959964  # the end that lies towards 0
    assert p == pytest.approx(math.erfc(0.5 / away / 2**0.5))
    assert 0 < p < 1e-3
    assert paired(rows, "d", "c")[1] == p


def test_a_claim_that_failed_at_a_seed_is_counted_apart() -> None:
    holes = [1, None, *A[2:]]
    rows = frame(a=[holes, A], b=[B, B])
    metric = _accuracy(rows[rows["method"] == "a"])
    assert metric == proportion("", 13, 19, n_failed=1)
    kept = [0, *range(2, 20)]
    expected = paired_shares("", [A[i] for i in kept], [B[i] for i in kept])
    assert paired(rows, "a", "b")[0] == paired(rows, "a", "b")[0] == expected
    rows = frame(a=[[None] * 4], b=[[1, 0, 1, 0]])
    nothing = _accuracy(rows[rows["method"] == "a"])
    assert (nothing.n, nothing.n_failed, nothing.low, nothing.high) == (0, 4, 0, 1)
    assert math.isnan(nothing.value)
    metric, p = paired(rows, "a", "b")
    assert (metric.n, metric.low, metric.high, math.isnan(p)) == (0, -1, 1, True)


def test_methods_that_do_not_differ_seldom_seem_to() -> None:
    rng = np.random.default_rng(0)
    wrong = covered = 0
    for _ in range(100):
        hard = rng.beta(2, 1, 30)  # each claim's chance to be right
        shift = rng.normal(0, 0.1, (2, 3))  # and each seed's luck
        chance = np.clip(hard + shift[..., None], 0, 1)
        drawn = (rng.random(chance.shape) < chance).astype(int).tolist()
        rows = frame(a=drawn[0], b=drawn[1])
        metric, p = paired(rows, "a", "b")
        assert (p < 0.05) is (metric.low > 0 or metric.high < 0)
        wrong += p < 0.05
        mine = _accuracy(rows[rows["method"] == "a"])
        covered += mine.low <= 2 / 3 <= mine.high
    assert wrong <= 8
    assert covered >= 92


RUN: dict[str, Any] = {
    "auroc": 0.7, "auroc_low": 0.5, "auroc_high": 0.9,
    "labels": 10, "label_accuracy": 0.5, "labels_true": 0.5, "finding_prompts": 4,
    "finding_prompt_tokens": 90, "finding_computed_tokens": 40, "finding_seconds": 0.5,
    "test_prompts": 20, "test_prompt_tokens": 300, "test_computed_tokens": 50, "test_seconds": 0.1,
}  # fmt: skip


def test_the_table_of_methods() -> None:
    rows = frame(**{"b": [A, A], "golden labels": [[1] * 20, B], "a": [B, A]})
    runs = pd.DataFrame(
        [
            {"method": "a", "seed": 0, **RUN},
            {"method": "a", "seed": 1, **RUN, "label_accuracy": 0.9, "finding_prompts": 8},
            {"method": "b", "seed": 0, **RUN, "label_accuracy": None, "labels_true": None},
            {"method": "golden labels", "seed": 0, **RUN, "label_accuracy": 1.0},
            {"method": "golden labels", "seed": 1, **RUN, "label_accuracy": 1.0},
        ]
    )
    table = method_table(rows, runs)
    assert [*table["method"]] == ["b", "golden labels", "a"]
    assert [*table["seeds"]] == [1, 2, 2]
    by_name = table.set_index("method")
    a, b, gold = by_name.loc["a"], by_name.loc["b"], by_name.loc["golden labels"]
    assert (a["value"], a["worst_seed"], a["best_seed"]) == pytest.approx((23 / 40, 9 / 20, 0.7))
    assert (a["label_accuracy"], a["labels_opposite"]) == pytest.approx((0.7, 0.3))
    assert (a["finding_prompts"], a["test_prompts"], a["labels"]) == (6, 20, 10)
    assert b[["label_accuracy", "labels_opposite", "labels_true"]].isna().all()
    assert gold.filter(like="versus").isna().all()
    metric, p = paired(rows, "a", "golden labels")
    found = tuple(a[["versus_golden", "versus_golden_low", "versus_golden_high"]])
    assert (*found, a["versus_golden_p"]) == (metric.value, metric.low, metric.high, p)
    bare = method_table(rows[rows["method"] != "golden labels"], runs)
    assert bare.filter(like="versus").isna().all(axis=None)
    assert [*bare] == [*table]
    documented = str(method_table.__doc__).split("Returns:")[1]
    for name in map(str, table):
        assert name.removeprefix("finding_").removeprefix("test_") in documented


def conclusions(
    ours: Sequence[int], theirs: Sequence[int], icm: dict[str, Any], boot: dict[str, Any]
) -> str:
    rows = frame(ICM=[ours], bootstrapping=[theirs])
    runs = [RUN | {"method": "ICM", "seed": 0} | icm]
    runs += [RUN | {"method": "bootstrapping", "seed": 0} | boot]
    return "\n".join(verdicts(rows, method_table(rows, pd.DataFrame(runs))))


def test_what_is_said_of_the_search() -> None:
    cost = {"finding_computed_tokens": 100}
    text = conclusions([1] * 20, [0] * 20, cost, {})
    assert text.startswith("ICM beats bootstrapping here (+100.0, +")
    assert text.endswith("points, p = 1.9e-06), at 2.5 times its computed tokens")
    assert conclusions(A, A, cost, {}).startswith("ICM does not beat bootstrapping here (+0.0, -")
    little = conclusions([1] * 12 + [0] * 8, [1] * 10 + [0] * 10, cost, {})
    assert little.startswith("ICM does not beat bootstrapping here (+10.0, -")
    assert "does not beat bootstrapping here (-100.0" in conclusions([0] * 20, [1] * 20, cost, {})
    # A store gave the answers: there is no price to report.
    for icm, boot in ((0, 40), (40, 0), (0, 0)):
        costs = [{"finding_computed_tokens": tokens} for tokens in (icm, boot)]
        assert conclusions(A, A, *costs).endswith("p = 1)")
    for share, upside_down in ((0.4, True), (0.5, False), (0.6, False)):
        text = conclusions(A, A, {"label_accuracy": share}, {})
        assert ("ICM: 60% of its labels are opposite to gold" in text) is upside_down
        assert "bootstrapping: " not in text
    assert "bootstrapping: 90% of its labels" in conclusions(A, A, {}, {"label_accuracy": 0.1})
    assert "opposite" not in conclusions(A, A, {"label_accuracy": None}, {"label_accuracy": None})
    rows = frame(**{"random labels": [A], "ICM": [A]})
    runs = pd.DataFrame(
        [RUN | {"method": name, "label_accuracy": 0.0} for name in ("random labels", "ICM")]
    )
    (note,) = verdicts(rows, method_table(rows, runs))
    assert note.startswith("ICM: 100% of its labels are opposite")


def test_a_seed_that_a_mean_hides_is_named() -> None:
    rows = frame(ICM=[A, [0] * 20, A], bootstrapping=[A, A, [0] * 20])
    facts = {
        ("ICM", 1): {"labels_true": 0.03, "label_accuracy": 0.55},
        ("bootstrapping", 2): {"label_accuracy": 0.0},
    }
    runs = pd.DataFrame(
        RUN | {"method": method, "seed": seed} | facts.get((method, seed), {})
        for method in ("ICM", "bootstrapping")
        for seed in range(3)
    )
    assert seed_notes(rows, runs) == [
        "ICM, seed 1 (test accuracy 0.00): it has collapsed, 3% of its labels are True",
        "bootstrapping, seed 2 (test accuracy 0.00): 100% of its labels are opposite to gold",
    ]
    assert seed_notes(rows, runs.assign(label_accuracy=None, labels_true=0.5)) == []
    assert seed_notes(rows[rows["seed"] == 1], runs[runs["seed"] == 1]) == []


def test_auroc_by_hand() -> None:
    metric = discrimination("x", [3, 1, 2, 0, math.nan], [True, True, False, False, True])
    assert (metric.value, metric.n, metric.n_failed) == (0.75, 4, 1)
    odds = np.random.default_rng(0).normal(size=400) + np.repeat([1.0, 0.0], 200)
    metric = discrimination("x", odds, [True] * 200 + [False] * 200)
    pairs_won = (odds[:200, None] > odds[200:]).mean()
    assert metric.value == pytest.approx(pairs_won)
    assert metric.low < metric.value < metric.high < metric.low + 0.12
    alike = discrimination("x", [1.0, 2.0, None], [True] * 3)  # type: ignore[arg-type]
    assert math.isnan(alike.value)
    assert (alike.n, alike.n_failed) == (2, 1)


def test_seeds_agree_on_claims_that_both_have_labelled() -> None:
    claims = keyed(*[None] * 12)
    found = {
        0: [(claim, True) for claim in claims[:10]],
        3: [(claim, i % 4 != 0) for i, claim in enumerate(claims[2:])],
        5: [(claim, True) for claim in claims[10:]],
    }
    metrics = {metric.name: metric for metric in agreement(found)}
    assert metrics["seeds 0 and 3: equal"] == proportion("seeds 0 and 3: equal", 6, 8)
    assert metrics["seeds 0 and 3: inverted"] == proportion("seeds 0 and 3: inverted", 2, 8)
    assert len(metrics) == 4  # seeds 0 and 5 have no claim in common
    assert agreement({0: found[0]}) == []


# Studies.

BED = embedded(24, 40, seed=3)
CHOSEN: dict[str, Any] = {"count": 16, "seeds": (0, 1), "n_seeds": 6, "n_iterations": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def whole(_loaded: VLLMEngine, folder: Path) -> ICMStudy:
    """All methods on embedded claims."""
    engine = VLLMEngine(None, None, "test", {})
    return study(BED, engine, checkpoints=folder / "journals", **CHOSEN)


def test_a_study_has_all_methods(whole: ICMStudy) -> None:
    table = whole.methods.set_index("method")
    assert (*table.index,) == METHODS
    assert len(whole.rows) == len(METHODS) * 2 * 40
    assert not whole.rows.duplicated(["method", "seed", "id"]).any()
    once = ["zero-shot", "zero-shot chat"]
    assert {name: 1 if name in once else 2 for name in METHODS} == dict(table["seeds"])
    assert (table["n"] == 40).all()
    assert (table["n_failed"] == 0).all()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert (table["worst_seed"] <= table["value"]).all()
    assert (table["value"] <= table["best_seed"]).all()
    assert [metric.name for metric in whole.summary] == [f"{m}: test accuracy" for m in METHODS]
    for metric, (name, row) in zip(whole.summary, table.iterrows(), strict=True):
        assert (metric.value, metric.low, metric.high) == (row["value"], row["low"], row["high"])
        assert metric == replace(
            _accuracy(whole.rows[whole.rows["method"] == name]), name=metric.name
        )
    labelled = table["labels"] > 0
    assert [*table.index[labelled]] == ["random labels", "bootstrapping", "ICM", "golden labels"]
    for column in ("label_accuracy", "labels_true", "labels_opposite"):
        assert (table[column].notna() == labelled).all()
    assert (table["auroc"].notna() == (table.index != "majority class")).all()
    assert (table["label_accuracy"] + table["labels_opposite"])[labelled].tolist() == [1.0] * 4
    assert table.loc["golden labels", "label_accuracy"] == 1
    assert table["versus_golden"].isna().sum() == 1
    worth = table["value"]
    assert worth["golden labels"] > worth["zero-shot"] + 0.2
    assert worth["ICM"] > worth["zero-shot"] + 0.2


def test_each_row_of_a_study_is_what_that_method_gives(whole: ICMStudy, plain: VLLMEngine) -> None:
    for seed in (0, 1):
        bed = BED.draw(16, seed)
        true = sum(bool(claim.gold) for claim in bed.claims)
        rows = {
            m: part.reset_index()
            for m, part in whole.rows[whole.rows["seed"] == seed].groupby("method")
        }
        majority = rows["majority class"]
        assert {*majority["verdict"]} == {true > 8}
        assert [*majority["correct"]] == [claim.gold is (true > 8) for claim in BED.test]
        found = whole.searches[seed]
        assert found.claims == bed.claims
        shown = {"golden labels": golden(bed), "ICM": found.labelled(), "zero-shot": []}
        for method, labelled in shown.items():
            alone = evaluate_labels(labelled, BED.test, plain, wording=BED.wording).rows
            assert [*rows[method]["log_odds"]] == pytest.approx([*alone["log_odds"]], abs=1e-4)
            assert [*rows[method]["correct"]] == [*alone["correct"]]
        chat = evaluate_chat(BED.test, plain, wording=BED.wording).rows
        assert [*rows["zero-shot chat"]["correct"]] == [*chat["correct"]]
    table = whole.methods.set_index("method")
    icm = [r.rows.loc[r.rows["label"].notna(), ["label", "gold"]] for r in whole.searches]
    right = [(rows["label"] == rows["gold"]).mean() for rows in icm]
    assert table.loc["ICM", "label_accuracy"] == pytest.approx(np.mean(right))
    assert table.loc["ICM", "labels"] == np.mean([*map(len, icm)])


def test_gold_labels_of_claims_decide_nothing(whole: ICMStudy, plain: VLLMEngine) -> None:
    methods = ["random labels", "bootstrapping", "ICM"]
    turned = tuple(replace(claim, gold=not claim.gold) for claim in BED.claims)
    other = study(replace(BED, claims=turned), plain, methods=methods, **CHOSEN)
    first = whole.rows[whole.rows["method"].isin(methods)]
    odds = [rows.sort_values(["method", "seed", "id"])["log_odds"] for rows in (first, other.rows)]
    assert [*odds[0]] == pytest.approx([*odds[1]], abs=1e-4)
    tables = [one.methods.set_index("method").loc[methods] for one in (whole, other)]
    names = ["label_accuracy", "labels_opposite"]  # of labels: the test is judged as before
    for name, swapped in zip(names, names[::-1], strict=True):
        assert [*tables[0][name]] == pytest.approx([*tables[1][swapped]])
    assert [*tables[0]["value"]] == [*tables[1]["value"]]
    chance = tables[0].loc["random labels"]
    assert 0.2 < chance["label_accuracy"] < 0.8
    assert chance["label_accuracy"] != chance["value"]


def test_costs_are_those_of_each_method_alone(whole: ICMStudy, plain: VLLMEngine) -> None:
    table = whole.methods.set_index("method")
    costs = [str(name) for name in table if str(name).startswith(("finding_", "test_"))]
    counted = [name for name in costs if not name.endswith("seconds")]
    assert len(counted) == 6
    for method in ("zero-shot", "bootstrapping", "golden labels"):
        alone = study(BED, plain, methods=[method], **CHOSEN).methods.iloc[0]
        assert dict(alone[counted]) == dict(table.loc[method, counted])
    for name in ("prompts", "prompt_tokens", "computed_tokens"):
        spent = [getattr(found.cost, name) for found in whole.searches]
        assert table.loc["ICM", f"finding_{name}"] == np.mean(spent)
        free = ["zero-shot", "zero-shot chat", "random labels", "golden labels", "majority class"]
        assert (table.loc[free, f"finding_{name}"] == 0).all()
    assert [*table["test_prompts"]] == [0] + [40] * 6
    assert (table["test_computed_tokens"] <= table["test_prompt_tokens"]).all()
    assert (
        whole.usage.prompt_tokens
        == (table["seeds"] * (table["finding_prompt_tokens"] + table["test_prompt_tokens"])).sum()
    )


def test_notes_of_a_study(whole: ICMStudy) -> None:
    assert whole.provenance["notes"] == [*whole.notes]
    (verdict,) = [note for note in whole.notes if "bootstrapping" in note]
    metric, _ = paired(whole.rows, "ICM", "bootstrapping")
    assert verdict.startswith("ICM beats" if metric.low > 0 else "ICM does not beat bootstrapping")
    assert "times its computed tokens" in verdict
    assert not any("store" in note or "cache" in note for note in whole.notes)


def test_a_study_goes_on_from_its_checkpoints(
    whole: ICMStudy, folder: Path, plain: VLLMEngine
) -> None:
    journals = sorted((folder / "journals").iterdir())
    assert [path.name for path in journals] == ["embedded-seed-0.jsonl", "embedded-seed-1.jsonl"]
    before = [path.read_bytes() for path in journals]
    steps: list[object] = []
    again = study(
        BED, plain, methods=["ICM"], checkpoints=folder / "journals", on_step=steps.append, **CHOSEN
    )
    assert [found.usage.requests for found in again.searches] == [0, 0]
    assert plain.usage.requests == 2 * 40  # the test alone
    assert [path.read_bytes() for path in journals] == before
    for found, first in zip(again.searches, whole.searches, strict=True):
        assert (found.labels, found.energy, found.cost) == (first.labels, first.energy, first.cost)
    assert steps
    columns = ["value", "labels", "label_accuracy", "finding_computed_tokens"]
    mine = whole.methods[whole.methods["method"] == "ICM"]
    assert [*again.methods[columns].iloc[0]] == [*mine[columns].iloc[0]]
    with pytest.raises(InputError, match="is of another search: its claims"):
        study(
            BED, plain, methods=["ICM"], checkpoints=folder / "journals", **(CHOSEN | {"count": 8})
        )


def test_a_study_is_saved_with_its_searches(whole: ICMStudy, folder: Path) -> None:
    saved = whole.save(folder / "saved")
    table = pd.read_csv(saved / "methods.csv")
    pd.testing.assert_frame_equal(table, whole.methods, check_dtype=False)
    assert len(pd.read_parquet(saved / "rows.parquet")) == len(whole.rows)
    summary = json.loads((saved / "summary.json").read_text())
    assert summary["provenance"]["notes"] == [*whole.notes]
    for seed, found in enumerate(whole.searches):
        part = saved / f"search-{seed}"
        history = pd.read_parquet(part / "history.parquet")
        pd.testing.assert_frame_equal(history, found.history)
        assert len(pd.read_csv(part / "labels.csv")) == len(found.claims)
        assert (part / "labels.jsonl").exists()


def test_seeds_of_two_machines_are_joined(whole: ICMStudy, folder: Path, plain: VLLMEngine) -> None:
    parts = [study(BED, plain, **CHOSEN | {"seeds": (seed,)}) for seed in (0, 1)]
    for seed, part in enumerate(parts):
        assert part.searches[0].labels == whole.searches[seed].labels
    saved = [part.save(folder / f"part-{seed}") for seed, part in enumerate(parts)]
    table = join(*saved)
    steady = [name for name in whole.methods if not str(name).endswith("seconds")]
    pd.testing.assert_frame_equal(table[steady], whole.methods[steady], check_dtype=False)
    with pytest.raises(InputError, match="seed 0 is in two of the studies"):
        join(saved[0], saved[0])
    other = study(BED, plain, **CHOSEN | {"seeds": (2,), "alpha": 30.0}).save(folder / "other")
    with pytest.raises(InputError, match=r"other is of another study than .*part-0: its alpha"):
        join(*saved, other)
    with pytest.raises(InputError, match="journals holds no saved study"):
        join(folder / "journals")
    with pytest.raises(InputError, match="at least 1"):
        join()


def test_a_study_in_batches_labels_all_claims(plain: VLLMEngine, tmp_path: Path) -> None:
    options = CHOSEN | {"count": None, "methods": ["ICM"], "checkpoints": tmp_path}
    found = study(BED, plain, batch_size=8, **options)
    assert [report.labels.count(None) for report in found.searches] == [0, 0]
    assert found.methods["labels"][0] == len(BED.claims)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "embedded-seed-0", "embedded-seed-1",
    ]  # fmt: skip
    alone = study(BED, plain, batch_size=8, **options | {"seeds": [1]})
    assert alone.searches[0].usage.requests == 0  # the other seed decided nothing
    assert alone.searches[0].labels == found.searches[1].labels
    said = [note for note in found.notes if "batch" in note]
    assert all(note.startswith("seed") for note in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["ICM", "icm"]}, r"methods=\['icm'\]: give some of majority class, zero-shot"),
        ({"methods": []}, r"methods=\[\]: give some of"),
        ({"methods": "ICM"}, "methods=.*give some of"),
        ({"alfa": 3}, "'alfa' is not a setting of a search; known: .*'alpha'"),
        ({"seed": 3}, "'seed' is not a setting of a search"),
        ({"alpha": -1}, "alpha=-1: must be"),
        ({"n_iterations": 2.5}, "n_iterations=2.5: must be"),
        ({"order": "uid"}, "order='uid': must be one of reference, exact, tree"),
        ({"consistency": "all"}, "consistency='all': give one of"),
        ({"seeds": []}, r"seeds=\[\]: give at least 1, all different"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]: give at least 1, all different"),
        ({"seeds": 2}, "seeds=2: give at least 1"),
        ({"seeds": [0, -1]}, "seed=-1: must be a whole number from 0"),
        ({"seeds": [0, "1"]}, "seed='1': must be a whole number from 0"),
        ({"count": 0}, "count=0: must be a whole number from 1"),
    ],
)
def test_what_cannot_be_studied(options: dict[str, Any], message: str) -> None:
    engine = Scripted(lambda _: 1.0)
    with pytest.raises(InputError, match=message):
        study(BED, engine, **(CHOSEN | options))
    assert not engine.calls


def test_a_study_needs_gold_in_its_test_and_not_in_its_claims(plain: VLLMEngine) -> None:
    for test in ((), without_gold(BED.test), (*BED.test[1:], *without_gold(BED.test[:1]))):
        with pytest.raises(InputError, match="embedded: a study needs test claims with gold"):
            study(replace(BED, test=test), plain)
    hidden = replace(BED, claims=without_gold(BED.claims))
    with pytest.raises(InputError, match="needs gold labels, and claim 0 has none"):
        study(hidden, plain, consistency="gold_key_replication")
    with pytest.raises(InputError, match=r"none is left. golden labels: left out, as not all"):
        study(hidden, plain, methods=["golden labels"])
    assert plain.usage.requests == 0
    chosen = CHOSEN | {"seeds": [0], "n_iterations": 5}
    for claims in (hidden.claims, (*BED.claims[:-1], *hidden.claims[-1:])):
        found = study(replace(BED, claims=claims), plain, **chosen)
        assert [*found.methods["method"]] == [*METHODS[1:-1]]
        for method in ("majority class", "golden labels"):
            assert f"{method}: left out, as not all claims have gold labels" in found.notes
        assert found.methods.filter(like="versus").isna().all(axis=None)
        labels = found.methods[["label_accuracy", "labels_opposite"]]
        assert bool(labels.isna().all(axis=None)) is (claims is hidden.claims)
        assert not any("opposite" in note for note in found.notes)
        assert found.methods["value"].notna().all()


def test_a_concept_found_upside_down_is_told() -> None:
    claims = [Claim(f"c{i}", f"g{i // 2}", str(i), i % 2 == 0) for i in range(12)]
    test = tuple(Claim(f"t{i}", "t", str(i), i % 2 == 0) for i in range(6))
    truth = {claim.text: claim.gold for claim in (*claims, *test)}
    engine = Scripted(lambda prompt: -3.0 if truth[said(prompt)[1]] else 3.0)
    bed = Testbed("upside", tuple(claims), test)
    methods = ["bootstrapping", "ICM", "golden labels"]
    found = study(bed, engine, methods=methods, n_iterations=200)
    for name in methods[:2]:
        assert any(note.startswith(f"{name}: 100% of its labels are opp") for note in found.notes)
    table = found.methods.set_index("method")
    assert [*table["labels_opposite"]] == [1, 1, 0]
    assert [*table["value"]] == [0, 0, 0]  # as it is, and never 1 − 0
    assert any(note.startswith("ICM does not beat bootstrapping here") for note in found.notes)
    assert any("prefix cache cannot be emptied" in note for note in found.notes)


def test_a_model_without_chats(plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain.tokenizer, "chat_template", None)
    both = ["zero-shot", "zero-shot chat"]
    found = study(BED, plain, methods=both)
    assert [*found.methods["method"]] == ["zero-shot"]
    (note,) = found.notes
    assert note.startswith("zero-shot chat: left out (workbench-tiny has no chat template")
    with pytest.raises(InputError, match=r"none is left. zero-shot chat: left out \(workbench"):
        study(BED, plain, methods=both[1:])
    # A server reports it for each prompt.
    base = Scripted(lambda prompt: 1.0 if isinstance(prompt, str) else "no template", cached=None)
    found = study(BED, base, methods=both)
    assert [*found.methods["method"]] == ["zero-shot"]
    assert found.notes[0] == (
        "zero-shot chat: left out (no test claim could be judged. First: no template)"
    )
    assert found.notes[1].startswith("the server does not report cached tokens")
    broken = Scripted(lambda prompt: "no answer")
    with pytest.raises(EngineError, match="First: no answer"):
        study(BED, broken, methods=both)


def test_answers_from_the_store_are_reported(kept: VLLMEngine) -> None:
    chosen = CHOSEN | {"seeds": [0], "n_iterations": 5, "methods": ["bootstrapping", "ICM"]}
    first, again = (study(BED, kept, **chosen) for _ in range(2))
    assert [*first.methods["value"]] == [*again.methods["value"]]
    assert first.usage.prompt_tokens > again.usage.prompt_tokens == 0
    assert any("times its computed tokens" in note for note in first.notes)
    assert not any("times its computed tokens" in note for note in again.notes)
    origin = (
        f"{again.usage.requests} of {again.usage.requests} answers came from the response store"
    )
    assert any(note.startswith(origin) for note in again.notes)


def test_gold_labels_that_leak_are_told(plain: VLLMEngine) -> None:
    chosen = CHOSEN | {"seeds": [0], "n_iterations": 5, "consistency": "gold_key_replication"}
    for method in ("bootstrapping", "ICM"):
        notes = study(BED, plain, methods=[method], **chosen).notes
        assert any("consistency was judged by the gold labels" in note for note in notes)
    assert not study(BED, plain, methods=["golden labels"], **chosen).notes


def test_failed_test_claims_are_counted_in_a_study(plain: VLLMEngine) -> None:
    bed = replace(BED, test=(*BED.test[:10], TOO_LONG))
    methods = ["majority class", "zero-shot", "random labels", "golden labels"]
    found = study(bed, plain, methods=methods, count=16, seeds=(0, 1))
    table = found.methods.set_index("method")
    assert [*table["n"]] == [11, 10, 10, 10]
    assert [*table["n_failed"]] == [0, 1, 1, 1]
    metric: Metric = paired(found.rows, "majority class", "golden labels")[0]
    assert metric.n == 10
