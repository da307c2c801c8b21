"""`python -m benchmarks uncertainty`: each part measures what it says, in small."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from benchmarks import uncertainty
from benchmarks.injector import Faults
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError

FOLDER = Path(os.environ.get("WORKBENCH_DATA", "none"))
needs_data = pytest.mark.skipif(
    not all((FOLDER / name).is_file() for name in (uncertainty.LOGITS, uncertainty.TABLE)),
    reason="needs the logits of MMBench: WORKBENCH_DATA is not set or lacks uncertainty/mmbench_*",
)


@pytest.fixture
def made() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits of 1,000 answers that are drawn from half of these: the model is too sure."""
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.normal(size=(1000, 6))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return 2 * logits, (p.cumsum(axis=1) < rng.random((1000, 1))).sum(axis=1).clip(0, 5)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """One published number is another one than it was, one is not there."""
    read = pd.read_csv

    def wrong(path: Path, **options: str) -> pd.DataFrame:
        table = read(path, **options)  # type: ignore[call-overload]
        table.iloc[0, table.columns.get_loc("uacc_APS")] += 1e-8
        table.iloc[1, table.columns.get_loc("mce")] = np.nan
        return table  # type: ignore[no-any-return]

    monkeypatch.setattr(pd, "read_csv", wrong)


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(InputError, match=r"no part 'speed'.*Known: published, coverage"):
        uncertainty.measure(["speed"])


def test_tables_that_are_not_here_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    assert uncertainty.measure(["published", "coverage"]) == []
    heard = capsys.readouterr().err.splitlines()
    assert sum(text.startswith("left out:") and "mmbench" in text for text in heard) == 2


@needs_data
def test_the_published_table_comes_out() -> None:
    sets, errors, seconds = uncertainty._published()
    assert (sets.value, errors.value) == (0, 0)
    assert sets.what.endswith("of 312")
    assert errors.what.endswith("of 52")
    assert seconds.value > 0


@needs_data
def test_a_number_unlike_the_published_one_is_counted(moved: None) -> None:
    sets, errors, _ = uncertainty._published()
    assert [(row.value, row.holds) for row in (sets, errors)] == [(1, False)] * 2


@needs_data
def test_coverage_is_told_over_splits() -> None:
    outside, filled = uncertainty._coverage(models=2, splits=40)
    assert outside.holds
    assert outside.low is not None
    assert outside.high is not None
    assert 0.89 < outside.low < outside.high < 0.91
    assert (outside.runs, filled.runs) == (4, 2)
    assert filled.value > outside.high


def test_nothing_is_lost_in_the_queue(capsys: pytest.CaptureFixture[str]) -> None:
    lost, wrong, many, one, cpu, most = uncertainty._queue(50, 0.01)
    assert (lost.value, wrong.value) == (0, 0)
    assert lost.holds
    assert wrong.holds
    assert many.holds == (many.value <= 1.3)
    assert one.value > 1  # nothing is faster than its ideal
    assert 0 < cpu.value < 1000
    assert most.value > 1
    assert "128 at once" in most.what
    # Each question in a separate request, besides those of the warm-up and what finds this out.
    several, single, again = (
        int(text.split(" ")[0]) for text in capsys.readouterr().err.splitlines()
    )
    assert several < 50
    assert 150 < single < 160
    assert 150 < again < 160


def test_questions_that_fail_and_other_letters_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uncertainty, "_tops", lambda _: {" B": -0.1, " A": -3.0})
    found = uncertainty._waited(Faults(poison="case 7?"), 20, 0.01, 8)
    assert found["lost"] == 3  # in each prompt
    assert 30 < found["wrong"] < 57
    assert found["seconds"] > 0.01


def test_options_are_judged(made: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    logits, answers = made
    for row in uncertainty._covered(logits, answers):
        assert row.low is not None
        assert row.low < 90 < row.value + 10
        assert row.runs == 500
    before, warm, less, level, fewer = uncertainty._rescaled(logits, answers)
    assert "temperature 2" in warm.what or "temperature 1.9" in warm.what
    for after, gain in ((warm, less), (level, fewer)):
        assert gain.value == pytest.approx(after.value - before.value)
        assert gain.holds
    assert (less.bound, fewer.bound) == ("reported", "< 0, interval too")
    worse = uncertainty._rescaled(logits / 2, answers)[-1]
    assert worse.holds == (worse.value < 0 and worse.high is not None and worse.high < 0)
    right = logits.argmax(axis=1) == answers
    sure, random, length, half = uncertainty._selected(logits, right, np.arange(1000))
    assert sure.value > 60
    assert abs(random.value - 50) < 5
    assert abs(length.value - 50) < 5
    assert half.value > 100 * right.mean()


def test_the_embedded_model_is_judged(plain: VLLMEngine) -> None:
    rows = uncertainty._embedded(plain, 120)
    accuracy, lac, aps, *_ = rows
    assert (accuracy.runs, lac.runs, aps.runs) == (120, 60, 60)
    assert len(rows) == 12
    assert all(row.holds for row in rows if row.bound == "reported")
