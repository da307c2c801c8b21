from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import harness, skills
from benchmarks.engine import make_prompts
from benchmarks.harness import Measurement, as_text, gain, judged, ratio, run_parts, share
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError
from workbench.stats import difference, proportion
from workbench.tiny import MODEL


def test_a_ratio_is_judged_by_its_median() -> None:
    row = ratio("speed", [0.9, 1.1, 0.96], 0.95)
    assert (row.value, row.low, row.high, row.holds) == (0.96, 0.9, 1.1, True)
    assert not ratio("speed", [0.9, 1.1, 0.94], 0.95).holds


def test_a_share_must_lie_between_its_bounds() -> None:
    row = share(proportion("claims", 92, 100), least=0.9)
    assert (row.value, row.unit, row.bound, row.holds) == (92, " %", "≥ 90 %", True)
    assert "100 items" in row.measured
    assert not share(proportion("claims", 92, 100), least=0.6, most=0.9).holds
    assert not share(proportion("claims", 92, 100, n_failed=1), least=0.9).holds


def test_a_gain_must_be_large_and_sure() -> None:
    better, worse = [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50
    row = gain(difference("votes", better, worse), least=0.05)
    assert row.value == pytest.approx(10)
    assert row.holds
    assert not gain(difference("votes", better, worse), least=0.15).holds
    assert not gain(difference("votes", [1.0, *worse[1:]], worse)).holds


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
    text = as_text([ratio("speed", [2.0], 3), judged("left", 0, bound="0")])
    lines = text.splitlines()
    assert "FAILS" in lines[2]
    assert "holds" in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_prompts_differ_and_repeat() -> None:
    assert len(set(make_prompts(200))) == 200
    assert make_prompts(50) == make_prompts(50) != make_prompts(50, seed=1)


@pytest.mark.parametrize(
    ("bound", "holds", "shown"),
    [
        ("≤ 5", True, "≤ 5 s"),
        ("< 5", False, "< 5 s"),
        ("≥ −2", True, "≥ −2 s"),
        ("≥ 1 and ≤ 4", False, "≥ 1 s and ≤ 4 s"),
        ("5", True, "5 s"),
        ("1,000", False, "1,000 s"),
        ("within 4", False, "within 4 s"),
        ("5, and no more", True, "5 s, and no more"),
        ("reported", True, "reported"),
    ],
)
def test_a_bar_is_judged_as_it_is_written(bound: str, holds: bool, shown: str) -> None:
    row = judged("time", 5, " s", bound)
    assert (row.holds, row.bound) == (holds, shown)
    assert not judged("time", 5, " s", bound, also=False).holds


def test_a_part_gets_what_it_asks_for_and_the_engine_is_opened_once() -> None:
    opened: list[Any] = []

    def one(repeats: int) -> list[Measurement]:
        return [judged("one", repeats)]

    def two(engine: Any, count: int = 3) -> list[Measurement]:
        return [judged("two", count, bound=f"{len(opened)}", also=engine is None)]

    class Opened:
        def __enter__(self) -> None:
            opened.append(self)

        def __exit__(self, *_: object) -> None:
            opened.append("closed")

    parts: dict[str, Any] = {"one": one, "two": two, "again": two}
    assert [row.value for row in run_parts(parts, ["one"], Opened, repeats=5)] == [5]
    assert not opened
    rows = run_parts(parts, None, Opened, repeats=5)
    assert [row.bound for row in rows] == ["reported", "1", "1"]
    assert opened[1:] == ["closed"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of the benchmark of sweeps with parts that take no time."""
    from benchmarks import sweep

    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(sweep.PARTS, "chaos", lambda: iter([judged("lost", 0, bound="0")]))
    monkeypatch.setitem(sweep.PARTS, "overhead", lambda: iter([judged("time", 2, " s", "< 1")]))

    def invoke(*words: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
        return CliRunner().invoke(command.app, words)

    return invoke


def test_a_run_is_written_with_its_machine_and_versions(run: Any, tmp_path: Path) -> None:
    done = run("sweep", "--part", "chaos")
    assert done.exit_code == 0, done.output
    assert "| lost | 0 " in done.output
    kept = json.loads((tmp_path / "results" / "sweep-chaos.json").read_text())
    assert kept["command"] == "python -m benchmarks sweep --part chaos"
    assert kept["date"].startswith("20")
    assert {"cpu", "memory"} <= {*kept["machine"]}
    assert {"python", "workbench", "commit"} <= {*kept["versions"]}
    (row,) = kept["rows"]
    assert (row["what"], row["value"], row["bound"], row["holds"]) == ("lost", 0, "0", True)


def test_a_run_that_fails_is_written_where_it_was_asked_to(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine" / "run.json"
    done = run("sweep", "--part", "overhead", "--json", "--out", str(file))
    assert done.exit_code == 1
    assert json.loads(done.stdout) == json.loads(file.read_text())
    assert json.loads(done.stdout)["command"].endswith("--out run.json")
    assert not (tmp_path / "results").exists()


def test_every_benchmark_is_a_command_with_its_options() -> None:
    for name in command.NAMES:
        shown = CliRunner().invoke(command.app, [name, "--help"], env={"COLUMNS": "200"}).output
        assert "--out" in shown
        assert "--json" in shown
    assert "no part 'speed'" in CliRunner().invoke(command.app, ["icm", "--part", "speed"]).output


def test_a_process_is_killed_where_it_was_to_be(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.touch()
    endless = """
import sys, time
for _ in range(1000):
    open(sys.argv[1], "a").write("x")
    time.sleep(0.01)
"""

    def length() -> int:
        return len(lines.read_text())

    assert 3 <= harness.kill_at(3, length, endless, lines) < 100
    with pytest.raises(EngineError, match="ended by itself"):
        harness.kill_at(5000, length, "pass")
