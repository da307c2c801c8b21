from __future__ import annotations

import math

import pytest

from benchmarks import skills
from benchmarks.engine import make_prompts
from benchmarks.table import Row, as_text, gain_row, ratio_row, share_row
from workbench.engines.vllm import VLLMEngine
from workbench.stats import difference, proportion
from workbench.tiny import MODEL


def test_a_ratio_is_judged_by_its_median() -> None:
    row = ratio_row("speed", [0.9, 1.1, 0.96], 0.95)
    assert (row.value, row.low, row.high, row.holds) == (0.96, 0.9, 1.1, True)
    assert not ratio_row("speed", [0.9, 1.1, 0.94], 0.95).holds


def test_a_share_must_lie_between_its_bounds() -> None:
    row = share_row(proportion("claims", 92, 100), least=0.9)
    assert (row.value, row.unit, row.bound, row.holds) == (92, " %", "≥ 90 %", True)
    assert "100 items" in row.measured
    assert not share_row(proportion("claims", 92, 100), least=0.6, most=0.9).holds
    assert not share_row(proportion("claims", 92, 100, n_failed=1), least=0.9).holds


def test_a_gain_must_be_large_and_sure() -> None:
    better, worse = [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50
    row = gain_row(difference("votes", better, worse), least=0.05)
    assert row.value == pytest.approx(10)
    assert row.holds
    assert not gain_row(difference("votes", better, worse), least=0.15).holds
    assert not gain_row(difference("votes", [1.0, *worse[1:]], worse)).holds


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_every_skill_is_measured(plain: VLLMEngine, skill: str) -> None:
    rows = skills.SKILLS[skill](plain, 30)
    assert all(math.isfinite(row.value) for row in rows)
    assert rows[0].what.startswith(skill)
    assert {row.runs for row in rows if row.of == "items"} <= {*range(1, 61)}


@pytest.mark.slow
def test_vllm_and_transformers_agree_and_any_text_comes_back(plain: VLLMEngine) -> None:
    assert skills._same_tokens(plain, MODEL, 12).holds
    trips = skills._any_text(MODEL)[-1]
    assert (trips.what.split()[0], trips.holds) == ("texts", True)


def test_the_table_says_what_fails() -> None:
    text = as_text([ratio_row("speed", [2.0], 3), Row("left", 0, "", "0", holds=True)])
    lines = text.splitlines()
    assert "FAILS" in lines[2]
    assert "holds" in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_prompts_differ_and_repeat() -> None:
    assert len(set(make_prompts(200))) == 200
    assert make_prompts(50) == make_prompts(50) != make_prompts(50, seed=1)
