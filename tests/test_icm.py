"""What a search rests on: rules, energies, seeds, gold that decides nothing, bad input."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_icm_search import ORDERS, Synthetic, claims_of, labels_of, shown_in, sums

from benchmarks.harness import reference_logprobs
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.icm import Claim, Wording, compute_logprobs_batched, search
from workbench.icm.annealing import temperature
from workbench.icm.claim import Relation, relations, violated
from workbench.icm.predictability import Order, energy
from workbench.tiny import MODEL
from workbench.types import Errors, LabelScores

# Rules and numbers.


def test_what_goes_together() -> None:
    broken = {
        "contradiction": {(True, True)},
        "implication": {(True, False), (False, True)},
        "asymmetry": {(True, True), (False, False)},
    }
    for kind, wrong in broken.items():
        pair = Relation(1, 0, kind)  # type: ignore[arg-type]
        for labels in product((True, False, None), repeat=2):
            assert pair.holds(labels) is (labels not in wrong), (kind, labels)
        for a, b in pair.repairs:
            assert pair.holds((b, a))
    assert Relation(0, 1, "implication").repairs == ((False, False), (True, True))
    assert Relation(0, 1, "contradiction").repairs == ((False, True), (True, False))


def test_who_is_related() -> None:
    keys = [
        ("q", "42"), ("q", "43"), ("r", "42"), ("q", None), ("q", "42"),
        ("s", "A>B"), ("s", "B>A"), ("s", "A>C"), ("s", "A>B"),
    ]  # fmt: skip
    claims = [Claim(f"c{i}", group, key) for i, (group, key) in enumerate(keys)]
    found = relations(claims)
    assert found == (
        Relation(0, 1, "contradiction"),
        Relation(0, 4, "implication"),
        Relation(1, 4, "contradiction"),
        Relation(5, 6, "asymmetry"),
        Relation(5, 7, "contradiction"),
        Relation(5, 8, "implication"),
        Relation(6, 7, "contradiction"),
        Relation(6, 8, "asymmetry"),
        Relation(7, 8, "contradiction"),
    )
    assert relations([replace(c, gold=i % 3 == 0) for i, c in enumerate(claims)]) == found
    assert relations(claims, "none") == ()
    labels = (True, True, True, True, False, False, False, None, False)
    assert violated(found, labels) == [found[0], found[1], found[3], found[7]]


def test_gold_as_the_key_is_for_replication_only() -> None:
    claims = [Claim(f"c{i}", "q", None, gold) for i, gold in enumerate((True, False, True))]
    assert relations(claims, "gold_key_replication") == (
        Relation(0, 1, "contradiction"),
        Relation(0, 2, "implication"),
        Relation(1, 2, "contradiction"),
    )
    claims[1] = replace(claims[1], gold=None)
    with pytest.raises(InputError, match="needs gold labels, and claim 1 has none"):
        relations(claims, "gold_key_replication")
    compared = [
        Claim(f"d{i}", "r", key, gold)
        for i, (key, gold) in enumerate([("A>B", True), ("B>A", False), ("A>B", True), ("A", True)])
    ]
    assert relations(compared, "gold_key_replication") == (
        Relation(0, 1, "asymmetry"),
        Relation(0, 2, "implication"),
        Relation(0, 3, "contradiction"),
        Relation(1, 2, "asymmetry"),
        Relation(1, 3, "contradiction"),
        Relation(2, 3, "contradiction"),
    )
    compared = [replace(claim, gold=not claim.gold) for claim in compared[:2]]
    assert relations(compared, "gold_key_replication") == (Relation(0, 1, "asymmetry"),)


def test_energy_by_hand() -> None:
    labels = (True, False, None, True)
    scores = {0: (-0.1, -2.5), 1: (-1.0, -0.5), 3: (-2.0, -0.25)}
    related = [
        Relation(0, 3, "contradiction"),
        Relation(0, 1, "implication"),
        Relation(0, 2, "asymmetry"),
    ]
    # log-odds of the labels 2.4, 0.5, -1.75; two pairs are broken
    assert energy(labels, scores, related, 6.0) == pytest.approx(6 * 1.15 / 3 - 2, abs=1e-12)
    found = energy(labels, scores, related[1:], 6.0, "log_prob")
    assert found == pytest.approx(6 * -2.6 / 3 - 1, abs=1e-12)


def test_temperatures_by_hand() -> None:
    paper = {1: 10, 10: 3.04919, 1500: 1.21358, 10**500: 0.01}
    for iteration, wanted in paper.items():
        assert temperature("paper", iteration, 77) == pytest.approx(wanted, abs=1e-5)
    code = {0: 10, 8: 1.854, 64: 1.070, 128: 0.933, 256: 0.827, 3000: 0.588, 10**400: 0.01}
    for accepted, wanted in code.items():
        assert temperature("code", 77, accepted) == pytest.approx(wanted, abs=1e-3)


def test_seeds_are_the_first_claims_half_of_them_true() -> None:
    claims = claims_of(12, 4)
    drawn = set()
    for count, seed in product((1, 5, 8, 40), range(3)):
        chosen: dict[str, Any] = {"n_seeds": count, "seed": seed, "consistency": "none"}
        report = search(claims, Synthetic(claims), n_iterations=0, **chosen)
        labels = labels_of(report)
        there = min(count, 12)
        assert labels[there:] == [None] * (12 - there)
        assert labels.count(True) == math.ceil(there / 2)
        assert len(report.history) == 1
        drawn.add((count, tuple(labels)))
    assert len(drawn) > 6
    given = [False, True, True]
    report = search(claims, Synthetic(claims), n_iterations=0, n_seeds=given, consistency="none")
    assert labels_of(report) == given + [None] * 9


# Gold labels measure and do nothing else.


def with_gold(claims: Sequence[Claim], gold: Sequence[bool | None]) -> list[Claim]:
    return [replace(claim, gold=value) for claim, value in zip(claims, gold, strict=True)]


@pytest.mark.parametrize("order", ORDERS)
def test_gold_labels_decide_nothing(order: Order) -> None:
    claims = claims_of(20, 4, seed=2)
    gold = [claim.gold for claim in claims]
    flipped = [not value for value in gold]
    shuffled = random.Random(1).sample(gold, len(gold))
    some = [None if i % 3 else value for i, value in enumerate(gold)]
    found = []
    for given in (gold, flipped, shuffled, some, [None] * len(gold)):
        engine = Synthetic(claims)
        variant = with_gold(claims, given)
        report = search(variant, engine, order=order, n_iterations=60, alpha=20.0)
        history = report.history.drop(columns=["label_accuracy", "seconds"])
        found.append((engine.calls, labels_of(report), report.energy, history))
        right = [
            a is b for a, b in zip(given, labels_of(report), strict=True) if None not in (a, b)
        ]
        named = {metric.name: metric for metric in report.summary}
        if not right:
            assert "label accuracy" not in named
            assert report.history["label_accuracy"].isna().all()
            continue
        assert named["label accuracy"].value == np.mean(right)
        assert named["label accuracy"].n == len(right)
        assert report.history["label_accuracy"].iloc[-1] == pytest.approx(np.mean(right))
    assert len(found[0][3]) > 10
    for other in found[1:]:
        assert other[:3] == found[0][:3]
        pd.testing.assert_frame_equal(other[3], found[0][3])


def test_the_leaking_rule_leaks_and_says_so() -> None:
    claims = claims_of(20, 4, seed=2)
    gold = [claim.gold for claim in claims]
    calls = []
    for given in (gold, random.Random(1).sample(gold, len(gold))):
        engine = Synthetic(claims)
        variant = with_gold(claims, given)
        report = search(variant, engine, consistency="gold_key_replication", n_iterations=40)
        calls.append(engine.calls)
        (note,) = (note for note in report.notes if "gold" in note)
        assert "leaked" in note
        assert note in report.provenance["notes"]
        assert report.provenance["consistency"] == "gold_key_replication"
    assert calls[0] != calls[1]
    honest = search(claims, Synthetic(claims), n_iterations=40)
    assert not any("leaked" in note for note in honest.notes)
    variant = with_gold(claims, [*gold[:7], None, *gold[8:]])
    with pytest.raises(InputError, match="claim 7 has none"):
        search(variant, Synthetic(claims), consistency="gold_key_replication")


# Bad input.

FEW = claims_of(8, 4)


def changed(**fields: Any) -> list[Claim]:
    return [*FEW[:3], replace(FEW[3], **fields), *FEW[4:]]


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ([], "at least 1 Claim"),
        (None, "at least 1 Claim"),
        ("claim", "at least 1 Claim"),
        ({"a": FEW[0]}, "at least 1 Claim"),
        (iter(FEW), "at least 1 Claim"),
        (["claim"], r"claims\[0\]='claim': must be a workbench"),
        ([*FEW, FEW[2]], r"claims\[2\] and \[8\] are the same claim 'c002'"),
        ([*FEW, Claim("c002", "elsewhere")], r"claims\[2\] and \[8\] are the same"),
        (changed(text=""), r"claims\[3\].text='': must be a text that is not empty"),
        (changed(text=" \n"), r"claims\[3\].text=.*: must be more than spaces"),
        (changed(text=5), r"claims\[3\].text=5"),
        (changed(gold="yes"), r"claims\[3\].gold='yes'"),
        (changed(gold=1), r"claims\[3\].gold=1"),
        (changed(group=["g0"]), r"claims\[3\].group="),
        (changed(group=None), r"claims\[3\].group="),
        (changed(answer_key=42), r"claims\[3\].answer_key="),
    ],
)
def test_claims_that_cannot_be_labelled(claims: Any, message: str, tmp_path: Path) -> None:
    engine = Synthetic(FEW)
    with pytest.raises(InputError, match=message):
        search(claims, engine, checkpoint=tmp_path / "search.jsonl")
    assert engine.calls == []
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n_seeds", (0, -1, 2.5, True, "8", None, [], [1, 0], "TF")),
        ("n_iterations", (-1, 1.0, "x", None)),
        ("seed", (-1, 0.5, None)),
        ("schedule", ("exp", None, [])),
        ("order", ("uid", None, [])),
        ("consistency", ("gold", None, [])),
        ("objective", ("sum", None, [])),
        ("scores", ("top5", None, [])),
        ("alpha", (0, -1, math.nan, math.inf, "x", None)),
    ],
)
def test_settings_out_of_range(name: str, values: tuple[Any, ...], tmp_path: Path) -> None:
    engine = Synthetic(FEW)
    for value in values:
        with pytest.raises(InputError, match=f"^{name}="):
            search(FEW, engine, checkpoint=tmp_path / "search.jsonl", **{name: value})
    assert engine.calls == []
    assert not any(tmp_path.iterdir())  # nothing that refuses the right value later


def test_a_chat_without_its_claim() -> None:
    with pytest.raises(InputError, match="where the claim goes"):
        Wording(chat="Is it true?")


def test_groups_of_one_and_one_claim() -> None:
    claims = claims_of(12, 1)
    report = search(claims, Synthetic(claims), n_iterations=150, alpha=20)
    assert "inconsistent pairs" not in {metric.name for metric in report.summary}
    assert None not in labels_of(report)
    for order in ORDERS:
        report = search(claims[:1], Synthetic(claims), order=order, n_iterations=5)
        assert len(labels_of(report)) == report.history["pool"].iloc[-1] == 1


def test_notes_on_one_class() -> None:
    claims = with_gold(claims_of(12, 1, "none"), [True] * 12)
    report = search(claims, Synthetic(claims), n_iterations=100, alpha=20, n_seeds=4)
    assert any("all gold labels are the same" in note for note in report.notes)
    same = len({*labels_of(report)} - {None}) == 1
    assert any("the same label" in note for note in report.notes) is same
    report = search(claims, Synthetic(claims), n_iterations=0, n_seeds=1)
    assert {"the search has given all claims the same label"} < {*report.notes}
    assert any(note.startswith("11 claims have no label") for note in report.notes)


class Faulty(Synthetic):
    """Answers are spoilt where `claim` is asked about after at least 10 others."""

    claim, spoil = "c005", ""

    def label_logprobs(self, prompts: Any, labels: Any, *, errors: Errors = "raise") -> LabelScores:
        assert errors == "return"
        scores = super().label_logprobs(prompts, labels, errors=errors)
        logprobs, upper, missing = scores.logprobs, scores.upper.copy(), scores.missing.copy()
        reasons = [*scores.errors]
        for i, prompt in enumerate(prompts):
            shown, query = shown_in(str(prompt))
            if query != self.claim or len(shown) < 10 or not self.spoil:
                continue
            if self.spoil == "failed":
                logprobs[i], upper[i], missing[i], reasons[i] = -np.inf, 0, True, "it broke down"
            elif self.spoil == "missing":
                logprobs[i, 1], missing[i, 1] = -np.inf, True
            else:
                logprobs[i, 1] = upper[i, 1] = float(self.spoil)
        return LabelScores(logprobs, upper, missing, tuple(reasons))


@pytest.mark.parametrize(
    ("order", "spoil"),
    [
        ("reference", "failed"),
        ("exact", "missing"),
        ("exact", "nan"),
        ("tree", "failed"),
        ("tree", "inf"),
        ("tree", "-inf"),
    ],
)
def test_what_has_no_score_stops_the_search(order: Order, spoil: str, tmp_path: Path) -> None:
    claims, path = claims_of(16, 2, "compared"), tmp_path / "search.jsonl"
    chosen: dict[str, Any] = {"order": order, "n_iterations": 40, "alpha": 20.0}
    wanted = search(claims, healthy := Synthetic(claims), **chosen)
    engine = Faulty(claims)
    engine.spoil = spoil
    why = "it broke down" if spoil == "failed" else r"log-probability of ' False' is missing"
    with pytest.raises(EngineError, match=rf"1 of \d+ prompts.*c005'.*{why}") as caught:
        search(claims, engine, checkpoint=path, **chosen)
    assert isinstance(caught.value.results, LabelScores)
    assert "NaN" not in path.read_text()
    answered = [prompt for call in engine.calls[:-1] for prompt in call]
    assert answered
    again = Synthetic(claims)
    report = search(claims, again, checkpoint=path, **chosen)
    assert answered + again.asked == healthy.asked
    assert (labels_of(report), report.energy) == (labels_of(wanted), wanted.energy)


def test_scores_of_a_batch() -> None:
    engine = Faulty(FEW)
    texts = ["c000", "c001 True\n\nc000", "c002 False\n\nc001"]
    found = compute_logprobs_batched(texts, [" True", " False"], engine)
    assert found.dtype == np.float64
    assert found.tolist() == [list(engine.row(text)) for text in texts]


def test_labels_that_begin_alike(plain: VLLMEngine) -> None:
    ends = (" Trust", " Truer")
    ids = plain.tokenizer(list(ends), add_special_tokens=False).input_ids
    assert ids[0][0] == ids[1][0]
    claims, wording = sums(8), Wording(labels=ends, after="\n")
    report = search(claims, plain, n_iterations=10, wording=wording)
    solved = [wording.solved(c, bool(y)) for c, y in zip(claims, labels_of(report), strict=True)]
    prompts = ["".join(solved[:i] + solved[i + 1 :]) + c.text for i, c in enumerate(claims)]
    wanted = reference_logprobs(MODEL, prompts, list(ends))
    assert np.abs(report.rows[["logprob_true", "logprob_false"]] - wanted).max(axis=None) < 1e-4
    with pytest.raises(InputError, match="must be two different words"):
        Wording(labels=(" True", " True"))
