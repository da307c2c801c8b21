from __future__ import annotations

from workbench.bench.engine import make_prompts
from workbench.bench.table import Row, as_text, ratio_row


def test_a_ratio_is_judged_by_its_median() -> None:
    row = ratio_row("speed", [0.9, 1.1, 0.96], 0.95)
    assert (row.value, row.low, row.high, row.holds) == (0.96, 0.9, 1.1, True)
    assert not ratio_row("speed", [0.9, 1.1, 0.94], 0.95).holds


def test_the_table_says_what_fails() -> None:
    text = as_text([ratio_row("speed", [2.0], 3), Row("left", 0, "", "0", holds=True)])
    lines = text.splitlines()
    assert "FAILS" in lines[2]
    assert "holds" in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_prompts_differ_and_repeat() -> None:
    assert len(set(make_prompts(200))) == 200
    assert make_prompts(50) == make_prompts(50) != make_prompts(50, seed=1)
