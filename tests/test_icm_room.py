"""Prompts that fit: each by its own tokens, and no claim that costs another its place."""

from __future__ import annotations

import logging
import random
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_icm_search import (
    LINES,
    ORDERS,
    Synthetic,
    claims_of,
    energies_of,
    labels_of,
    shown_in,
    sums,
)

from workbench.engines.remote import RemoteEngine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.icm import Claim, Wording, bootstrap, evaluate_labels, salience, search
from workbench.icm.predictability import Order, Reference
from workbench.icm.scorer import ContextFit, Scorer
from workbench.serving import Server
from workbench.tiny import MODEL
from workbench.types import Completion, Errors, Sampling

WORDING = Wording()
LONG = " and" * 60


def with_long(context: int, more: str = LONG) -> tuple[list[Claim], Synthetic]:
    claims = claims_of(40, 4)
    claims[3] = replace(claims[3], text=claims[3].text + more)
    return claims, Synthetic(claims, context=context)


def shown_by(engine: Synthetic) -> dict[str, list[tuple[str, ...]]]:
    """What was shown before each claim, without labels, prompt by prompt."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for prompt in engine.asked:
        shown, query = shown_in(prompt)
        found.setdefault(query, []).append(tuple(text.rsplit(" ", 1)[0] for text in shown))
    return found


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("context", [90, 120, 40])
def test_a_long_claim_changes_nothing_for_the_others(order: Order, context: int) -> None:
    """39 short claims of two tokens: at 90 all of them fit, at 120 beside half of the long one."""
    claims, engine = with_long(context, LONG if context > 40 else " and" * 30)
    long = claims[3].text
    search(claims, engine, order=order, n_iterations=0, n_seeds=[True, False] * 20)
    others = Synthetic(claims, context=context)
    short = [claim for claim in claims if claim.text != long]
    search(short, others, order=order, n_iterations=0, n_seeds=([True, False] * 20)[:39])
    found, wanted = shown_by(engine), shown_by(others)
    for claim in short:
        kept = {name for name in found[claim.text][0] if name != long}
        assert kept == set(wanted[claim.text][0])
    mine = found[long][0]
    left = context - 1 - len(long.split()) - 1
    assert len(mine) == min(39, left // 2)
    assert all(long not in shown for prompts in found.values() for shown in prompts) is (
        context < 2 * 38 + 61 + 2
    )


@pytest.mark.parametrize("context", [25, 38, 64])
def test_each_prompt_is_as_full_as_it_can_be(context: int) -> None:
    rng = random.Random(context)
    claims = [
        replace(claim, text=claim.text + " and" * rng.choice((0, 1, 2, 3, 5)))
        for claim in claims_of(48, 4)
    ]
    engine, free = Synthetic(claims, context=context), Synthetic(claims)
    report = search(claims, engine, order="exact", n_iterations=0, n_seeds=48, seed=5)
    search(claims, free, order="exact", n_iterations=0, n_seeds=48, seed=5)
    counts, times = [], dict.fromkeys((claim.text for claim in claims), 0)
    for prompt, whole in zip(engine.calls[0], free.calls[0], strict=True):
        (kept, query), (every, same) = shown_in(prompt), shown_in(whole)
        assert query == same
        rest = iter(every)
        assert all(text in rest for text in kept)  # in the prompt's own order
        left = context - 2 - len(prompt.split())  # for the label, and one to be sure
        assert 0 <= left < min(len(text.split()) for text in every if text not in kept)
        counts.append(len(kept))
        for text in kept:
            times[text.rsplit(" ", 1)[0]] += 1
    (note,) = (note for note in report.notes if "demonstrations" in note)
    assert f"after {statistics.fmean(counts):.1f} of its 47" in note
    assert f"({min(counts)} to {max(counts)})" in note
    # Neighbours show nearly the same, so prefixes are shared; and not the last ones of the file.
    often = [count for count in times.values() if count > 36]
    assert len(often) >= min(counts) - 3
    places = [place for place, count in enumerate(times.values()) if count > 36]
    assert min(places) < 24 <= max(places)


def test_what_is_left_out_depends_on_seed_and_text_alone() -> None:
    claims = claims_of(40, 4)
    engine = Synthetic(claims, context=30)
    shown = range(1, 40)

    def kept(room: ContextFit, known: list[Claim], labelled: list[int] | range) -> set[str]:
        return {known[i].text for i in room.select(labelled, claims[0].text)}

    first = kept(ContextFit(engine, claims, WORDING), claims, shown)
    assert len(first) == 13
    assert kept(ContextFit(engine, claims[::-1], WORDING), claims[::-1], range(39)) == first
    assert kept(ContextFit(engine, claims, WORDING, seed=1), claims, shown) != first
    fewer = ContextFit(engine, claims[:30], WORDING)
    assert kept(fewer, claims, range(1, 30)) >= {text for text in first if text < "c030"}
    seen = {
        index
        for seed in range(30)
        for index in ContextFit(engine, claims, WORDING, seed).select(shown, "c000")
    }
    assert seen == {*shown}


@pytest.mark.parametrize("scheme", ["short", "mixed"])
def test_no_length_is_favoured(scheme: str) -> None:
    rng = random.Random(scheme)
    sizes = (0, 1) if scheme == "short" else (1, 8, 12)
    claims = [Claim(f"c{i:03}" + " and" * rng.choice(sizes), f"g{i}") for i in range(200)]
    engine = Synthetic(claims, context=200)
    length = [len(claim.text.split()) for claim in claims]
    means = []
    for seed in range(20):
        kept = ContextFit(engine, claims, WORDING, seed).select(range(1, 200), claims[0].text)
        means.append(statistics.fmean(length[i] for i in kept))
    assert statistics.fmean(means) == pytest.approx(statistics.fmean(length), rel=0.08)


# A claim that does not fit even alone.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", [0, 3, 39])
def test_a_claim_that_does_not_fit_costs_nothing(
    order: Order, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    short = claims_of(39, 4)
    long = Claim("much" + " and" * 5_000, short[min(place, 38)].group, "right", gold=True)
    claims = [*short[:place], long, *short[place:]]
    engine, other = Synthetic(claims, context=95), Synthetic(claims, context=95)
    other.row = engine.row  # type: ignore[method-assign]  # the same beliefs
    chosen = {"order": order, "n_iterations": 80, "alpha": 20.0}
    with caplog.at_level(logging.WARNING, "workbench"):
        report = search(claims, engine, **chosen)  # type: ignore[arg-type]
    wanted = search(short, other, **chosen)  # type: ignore[arg-type]
    assert engine.asked == other.asked
    labels = labels_of(report)
    assert labels.pop(place) is None
    assert labels == labels_of(wanted)
    assert energies_of(report) == energies_of(wanted)
    assert report.energy == wanted.energy
    row = report.rows.iloc[place]
    assert row["error"].startswith("the claim has 5,001 tokens, the context holds 95")
    assert report.rows["error"].notna().sum() == 1 + labels.count(None)
    assert "1 of 40 claims do not fit" in caplog.text
    assert "demonstrations on average" not in caplog.text
    assert any("does not hold them: 1 of 40" in note for note in report.notes)
    assert not any("None" in prompt for prompt in engine.asked)


def test_given_seeds_and_bootstrapping_pass_over_it() -> None:
    claims, engine = with_long(95, " and" * 100)
    given = [True, False, True, True, False]
    report = search(claims, engine, n_seeds=given, n_iterations=0, consistency="none")
    assert labels_of(report) == [True, False, True, None, False] + [None] * 35
    found = bootstrap(claims, engine)
    assert found.labels[3] is None
    rest = bootstrap([*claims[:3], *claims[4:]], engine)
    assert found.labels[:3] + found.labels[4:] == rest.labels
    with pytest.raises(InputError, match="no claim with a label fits"):
        search(claims[3:], engine, n_seeds=[True])
    with pytest.raises(InputError, match=r"no claim fits.*has 101 tokens"):
        search(claims[3:4], engine)


def test_a_warning_says_how_many_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    claims = claims_of(40, 4)
    with caplog.at_level(logging.WARNING, "workbench"):
        search(claims, Synthetic(claims, context=30), n_iterations=2)
        search(claims, Synthetic(claims, context=120), n_iterations=2)
    (line,) = caplog.messages
    assert line == "icm: the context holds 13.0 of 39 demonstrations on average (13 to 13)"


class Refusing(Synthetic):
    """Counts nothing of what it refuses, as servers do."""

    reason = "This model's maximum context length is 95 tokens"

    def generate(
        self,
        prompts: Any,
        sampling: Sampling = Sampling(),  # noqa: B008
        *,
        errors: Errors = "raise",
    ) -> list[Completion]:
        rows = super().generate(prompts)
        return [
            replace(row, prompt_tokens=0, error=self.reason) if row.error else row for row in rows
        ]


def test_a_server_that_does_not_count_what_it_refuses() -> None:
    claims, _ = with_long(0, " and" * 100)
    engine = Refusing(claims, context=95)
    report = search(claims, engine, n_iterations=5)
    assert "maximum context length is 95" in report.rows["error"][3]
    engine.reason = "it broke down"
    with pytest.raises(EngineError, match="cannot be scored: it broke down"):
        search(claims, engine, n_iterations=5)


# On a model.


@pytest.mark.parametrize("more", [-1, 0, 500])
def test_a_claim_that_does_not_fit_into_a_model(plain: VLLMEngine, more: int) -> None:
    claims = sums(8)
    length = plain.info.context_length + more  # one token per digit
    claims[5] = replace(claims[5], text="7" * length)
    report = search(claims, plain, n_iterations=3, wording=LINES)
    assert report.rows["error"][5].startswith(f"the claim has {length:,} tokens, the context")
    assert None not in labels_of(report)[:5]


def test_a_server_fits_prompts_as_the_model_in_this_process(
    plain: VLLMEngine, server: Server
) -> None:
    claims = sums(240, 1)
    claims[5] = replace(claims[5], text="7" * 3000)
    with RemoteEngine(None, None, "test", {"base_url": server.url}) as remote:
        here, there = (Scorer(e, claims, LINES) for e in (plain, remote))
        assert [*here.unfit] == [*there.unfit] == [5]
        labels = tuple(bool(claim.gold) for claim in claims)
        for target in (0, 7, 239):
            others = [i for i in range(240) if i != target]
            assert here.prompt(labels, others, target) == there.prompt(labels, others, target)
        assert 100 < here.shown_counts.mean < here.shown_counts.of == 239


@pytest.mark.parametrize("words", [LINES, Wording(), Wording((" Yes", " No"), after=" | ")])
def test_sums_of_pieces_are_those_of_prompts(plain: VLLMEngine, words: Wording) -> None:
    """The room that is left unused: never less than nothing, and a few tokens at most."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    claims = sums(300, 2)
    room = ContextFit(plain, claims, words)
    end = len(tokenizer(words.labels[0] + words.after).input_ids)
    longest = max(len(tokenizer(label).input_ids) for label in words.labels)
    spare = []
    for target in range(0, 300, 13):
        kept = room.select([i for i in range(300) if i != target], claims[target].text)
        assert 100 < len(kept) < 299
        text = "".join(words.solved(claims[i], i % 2 == 0) for i in kept) + claims[target].text
        spare.append(plain.info.context_length - longest - len(tokenizer(text).input_ids))
    assert min(spare) >= 1
    assert statistics.median(spare) <= end + 12  # less than the shortest demonstration has


def test_what_is_shown_beside_test_claims(plain: VLLMEngine) -> None:
    claims = list({claim.text: claim for claim in sums(260, 3)}.values())[:240]
    shown, test = [(claim, bool(claim.gold)) for claim in claims[:230]], claims[230:]
    report = evaluate_labels(shown, test, plain, wording=LINES)
    facts = report.provenance
    assert facts["labelled"] == 230
    assert 100 < facts["demonstrations_least"] <= facts["demonstrations"]
    assert facts["demonstrations"] <= facts["demonstrations_most"] < 230
    room = ContextFit(plain, claims[:230], LINES, more=[claim.text for claim in test])
    kept = [room.select(range(230), claim.text) for claim in test]
    assert facts["demonstrations"] == statistics.fmean(map(len, kept))
    prompts = [
        "".join(LINES.solved(*shown[i]) for i in some) + claim.text
        for some, claim in zip(kept, test, strict=True)
    ]
    wanted = plain.label_logprobs(prompts, LINES.labels).logprobs
    found = report.rows["log_odds"].to_numpy()
    assert np.abs(found - (wanted[:, 0] - wanted[:, 1])).max() < 1e-4


def test_a_claim_that_does_not_fit_does_not_decide_what_is_long() -> None:
    """Five short and four long ones: one more long one, left out, moved the median across."""
    short = [Claim(f"s{n}", str(n)) for n in range(5)]
    long = [Claim(f"l{n}" + " and" * 7, f"l{n}") for n in range(4)]
    far = Claim("far" + " and" * 60, "far")
    found = []
    for claims in ([*short, *long], [*short, *long, far]):
        room = ContextFit(Synthetic(claims, context=22), claims, WORDING)
        others = ([i for i in range(9) if i != one] for one in range(9))
        found.append([room.select(shown, claims[i].text) for i, shown in enumerate(others)])
    assert found[0] == found[1]
    assert min(map(len, found[0])) < 8


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_are_compared_after_what_the_search_showed(seed: int) -> None:
    claims = claims_of(16, 4)
    engine = Synthetic(claims, context=30)
    report = search(claims, engine, n_iterations=5, n_seeds=16, consistency="none", seed=seed)
    shown = []
    for pass_over in (
        lambda: salience(report, engine),
        lambda: Reference(Scorer(engine, claims, WORDING, seed=seed)).all(report.labels),
    ):
        engine.asked.clear()
        pass_over()
        shown.append({query: {*prompts} for query, prompts in shown_by(engine).items()})
    assert shown[0] == shown[1]
    assert min(len(one) for prompts in shown[1].values() for one in prompts) < 15
