"""Long work where stderr is a file: a line now and then, from every kind of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.progress import UsageTracker
from workbench.types import EngineInfo

BEGIN = """
import logging, sys, time
from workbench import progress
progress.EVERY = 0.3
sys.path.insert(0, sys.argv[1])
"""
SEARCH = """
from test_icm_report import CLAIMS, Slow
from workbench.icm import search
search(CLAIMS, Slow(CLAIMS), n_iterations=40, n_seeds=28, order="exact")
"""
NESTED = """
from workbench.progress import CallProgress
with progress.one_bar(3, "study", "method") as bar:
    bar.update(1)
    with progress.one_bar(1500, "icm", "iteration") as inner:
        inner.update(340)
        inner.set_postfix_str("energy 53.1")
        with progress.quiet():
            call = CallProgress(5, "label_logprobs")
        time.sleep(0.5)
        call.bar.close()
    time.sleep(0.4)
"""
PARTS = """
with progress.bars({"all": 4, "one": 1}, "row") as bars:
    time.sleep(0.4)
"""
CALL = """
from workbench.progress import CallProgress
call = CallProgress(1200, "generate")
call.add_stored(1)
time.sleep(0.4)
call.bar.close()
time.sleep(0.4)
"""
COUNTED = """
with progress.counted(2, "run", "notebook") as step:
    step()
    time.sleep(0.4)
"""
CLOSED = CALL.replace("time.sleep", "sys.stderr.close(); time.sleep", 1) + "print('to the end')"


def lines_of(code: str, tmp_path: Path, begin: str = BEGIN, **more: str) -> list[str]:
    path, env = tmp_path / "stderr", os.environ | more
    if not more:
        env.pop("WORKBENCH_PROGRESS", None)
    with path.open("w") as file:
        command = [sys.executable, "-c", begin + code, str(Path(__file__).parent)]
        subprocess.run(command, stderr=file, env=env, check=True)
    return path.read_text().splitlines()


def test_a_search_says_where_it_is(tmp_path: Path) -> None:
    lines = lines_of(SEARCH, tmp_path, BEGIN.replace("0.3", "0.05"))
    assert len(lines) >= 2
    for line in lines:
        assert re.fullmatch(r"icm: \d+ of 40 iterations, 0 min(, pool \d+, energy .*)?", line)


def test_parts_under_way_are_in_one_line(tmp_path: Path) -> None:
    first, *_, last = lines_of(NESTED, tmp_path)
    assert first == "study: 1 of 3 methods, 0 min; icm: 340 of 1,500 iterations, energy 53.1"
    assert last == "study: 1 of 3 methods, 0 min"
    assert lines_of(PARTS, tmp_path) == ["all: 0 of 4 rows, 0 min; one: 0 of 1 row"]


def test_a_call_alone_and_its_end(tmp_path: Path) -> None:
    (line,) = lines_of(CALL, tmp_path)
    assert line.startswith("generate: 1 of 1,200 rows, 0 min, 0 tokens/s")
    assert lines_of(CLOSED, tmp_path) == []
    assert lines_of(COUNTED, tmp_path) == ["run: 1 of 2 notebooks, 0 min"]


@pytest.mark.parametrize("code", [SEARCH, CALL, COUNTED])
def test_off_is_off_and_the_first_minute_is_quiet(code: str, tmp_path: Path) -> None:
    assert lines_of(code, tmp_path, WORKBENCH_PROGRESS="off") == []
    assert lines_of(code, tmp_path, BEGIN.replace("progress.EVERY = 0.3", "")) == []


def test_lines_cost_a_call_nothing() -> None:
    from workbench.progress import Lines, Stage

    begin = time.perf_counter()
    for _ in range(200):
        Lines().bar(Stage("generate", "row", 1)).close()
    assert (time.perf_counter() - begin) / 200 < 0.002


def test_seconds_of_calls_at_the_same_time_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("workbench.progress.time.perf_counter", lambda: clock[0])
    info = EngineInfo(engine="vllm", model="m", revision="r", device="cpu", dtype="float32",
                      context_length=0, versions={}, why="")  # fmt: skip
    tracker = UsageTracker(info)
    with tracker.call("generate", 1):
        clock[0] = 2
        with tracker.call("label_logprobs", 1):
            clock[0] = 5
        assert tracker.usage().seconds == 5
        clock[0] = 10
    clock[0] = 20
    with tracker.call("generate", 1):
        clock[0] = 21
    assert tracker.usage().seconds == 11
