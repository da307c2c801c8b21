from __future__ import annotations

import math
from collections import Counter
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import icm, icm_cost
from benchmarks.synthetic import Synthetic, made_up
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.icm import search
from workbench.icm.claim import relations, violated
from workbench.types import Engine

LABELS = (" True", " False")
SMALL: dict[str, dict[str, Any]] = {
    "exact": {"counts": (4,), "seeds": 1, "steps": 10},
    "pass": {"count": 8, "seeds": 1},
    "full": {"count": 8, "steps": 8, "seeds": 1},
    "energy": {"count": 6, "seeds": 2, "steps": 10},
    "accuracy": {"count": 6, "seeds": 2, "test": 20},
    "cost": {"count": 6, "seeds": 1, "steps": 10},
}


def shown(flip: int, *places: int) -> str:
    """Claims before the query, the first `flip` of them with the wrong label."""
    claims = made_up(24, 4, 0)
    labels = (claims[i].gold is not (number < flip) for number, i in enumerate(places))
    both = zip(places, labels, strict=True)
    return "".join(f"{claims[i].text}{LABELS[not label]}\n\n" for i, label in both)


def test_the_stand_in_follows_the_labels_that_it_is_shown() -> None:
    claims = made_up(24, 4, 0)
    scorer, sign = Synthetic(claims), 1 if claims[20].gold else -1
    places, text = range(20), claims[20].text
    odds = [sign * scorer.log_odds(shown(flip, *places) + text) for flip in range(21)]
    assert odds == sorted(odds, reverse=True)
    assert len(set(odds)) == 21
    alone = sign * scorer.log_odds(text)
    assert odds[10] == pytest.approx(alone)
    assert odds[0] - alone == pytest.approx(alone - odds[20])
    few = sign * scorer.log_odds(shown(0, 0) + text)
    assert alone < few < odds[0]


def test_the_stand_in_does_not_mind_the_order_and_gives_probabilities() -> None:
    claims = made_up(24, 4, 0)
    scorer = Synthetic(claims)
    prompts = [shown(1, 3, 5, 7) + claims[0].text, shown(0, 5, 7) + shown(1, 3) + claims[0].text]
    scores = scorer.label_logprobs(prompts, LABELS)
    assert scores.logprobs[0] == pytest.approx(scores.logprobs[1])
    assert np.exp(scores.logprobs).sum(axis=1) == pytest.approx([1, 1])
    true, false = scores.logprobs[0]
    assert true - false == pytest.approx(scorer.log_odds(prompts[0]))
    assert scorer.asked == 2
    assert Synthetic(claims).log_odds(prompts[0]) == scorer.log_odds(prompts[0])


def test_right_made_up_claims_of_a_group_agree() -> None:
    claims = made_up(400, 4, 1)
    assert 150 < sum(bool(claim.gold) for claim in claims) < 250
    assert all((claim.answer_key == "right") is claim.gold for claim in claims)
    assert len({claim.group for claim in claims}) == 100


def test_prompts_are_counted_where_they_are_answered() -> None:
    claims = made_up(16, 4, 0)
    scorer = Synthetic(claims)
    found = search(claims, cast("Engine", scorer), order="reference", n_iterations=50)
    assert found.cost.prompts == scorer.asked > 50
    (row,) = icm_cost.prompts(count=16, seeds=1, steps=50)
    assert row.value > 1


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(InputError, match=r"'pas', did you mean 'pass'.*exact, prompts, pass"):
        icm.measure(["exact", "pas"])


@pytest.mark.parametrize("part", SMALL)
def test_every_part_is_measured(plain: VLLMEngine, part: str) -> None:
    measured = icm.PARTS[part](plain, **SMALL[part])
    assert measured
    assert all(math.isfinite(row.value) for row in measured)
    if part == "exact":
        assert all(row.holds for row in measured)


@pytest.mark.slow
def test_a_killed_search_goes_on(plain: VLLMEngine) -> None:
    (row,) = icm._killed(plain, count=8, steps=30, kills=1)
    assert row.holds


def test_all_parts_have_a_place() -> None:
    assert {*SMALL, "prompts", "killed"} == {*icm.PARTS}


def test_a_full_pool_begins_with_consistent_labels_by_chance() -> None:
    kinds = ((icm_cost._pairs, {2}), (icm_cost._mixed, {1, 2, 3}), (icm_cost._fours, {4}))
    for draw, sizes in kinds:
        bed = draw(40, 1)
        labels = icm_cost._labels(bed.claims, 0)
        assert len(labels) == 40
        assert set(Counter(claim.group for claim in bed.claims).values()) <= sizes
        assert not violated(relations(bed.claims), tuple(labels))
        assert labels != icm_cost._labels(bed.claims, 1)
        right = sum(a is claim.gold for a, claim in zip(labels, bed.claims, strict=True))
        assert 8 < right < 36
