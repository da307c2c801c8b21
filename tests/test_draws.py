"""Sampling without a seed: resumed where it was cut short, never replayed where it was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.injector import Faults, Injector
from workbench import Sampling
from workbench.engines.remote import RemoteEngine
from workbench.engines.requests import ResumableDraw
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError
from workbench.store import Store, digest

HOT = Sampling(max_tokens=12, temperature=1.0)
PROMPTS = [f"{a}+{a}=" for a in range(10, 40)]
CALL = digest("a call")


def texts(rows: Any) -> list[str]:
    return [row.text for row in rows]


def test_a_finished_call_is_never_replayed(kept: VLLMEngine) -> None:
    first, second = (kept.generate(PROMPTS, HOT) for _ in range(2))
    assert not any(row.from_store for row in [*first, *second])
    assert texts(first) != texts(second)
    several = [kept.generate(PROMPTS[:2], Sampling(max_tokens=8, temperature=1.0, n=3))
               for _ in range(2)]  # fmt: skip
    assert not any(s.from_store for rows in several for row in rows for s in row.samples)


def test_with_a_seed_and_without_chance_it_is(kept: VLLMEngine) -> None:
    for sampling in (Sampling(max_tokens=8), Sampling(max_tokens=8, temperature=1.0, seed=3)):
        first, second = (kept.generate(PROMPTS, sampling) for _ in range(2))
        assert texts(first) == texts(second)
        assert all(row.from_store for row in second)


def test_a_call_that_its_reader_left_is_resumed(kept: VLLMEngine) -> None:
    stream = kept.stream(PROMPTS, HOT)
    got = dict(next(stream) for _ in range(10))
    stream.close()
    again = kept.generate(PROMPTS, HOT)
    assert [again[i].text for i in got] == [row.text for row in got.values()]
    assert sum(row.from_store for row in again) >= 10
    assert not any(row.from_store for row in kept.generate(PROMPTS, HOT))


def test_other_prompts_or_another_sampling_are_another_call(kept: VLLMEngine) -> None:
    stream = kept.stream(PROMPTS, HOT)
    next(stream)
    stream.close()
    assert not any(row.from_store for row in kept.generate(PROMPTS[::-1], HOT))
    warm = Sampling(max_tokens=12, temperature=0.5)
    assert not any(row.from_store for row in kept.generate(PROMPTS, warm))
    assert any(row.from_store for row in kept.generate(PROMPTS, HOT))


def test_all_taken_but_not_asked_further_is_finished(kept: VLLMEngine) -> None:
    stream = kept.stream(PROMPTS, HOT)
    for _ in PROMPTS:
        next(stream)
    stream.close()
    assert not any(row.from_store for row in kept.generate(PROMPTS, HOT))


def test_failed_rows_are_asked_again_and_the_others_kept(tmp_path: Path) -> None:
    server = Injector(Faults(poison="12+12"), revision="a" * 12)
    store = Store(tmp_path / "s.sqlite")
    with server, RemoteEngine(None, store, "test", {"base_url": server.url}) as engine:
        with pytest.raises(EngineError, match="1 of 30 prompts failed"):
            engine.generate(PROMPTS, HOT)
        server.plan = Faults()
        rows = engine.generate(PROMPTS, HOT)
        assert [row.from_store for row in rows].count(False) == 1
        assert not any(row.from_store for row in engine.generate(PROMPTS, HOT))


CHILD = """
import sys
from pathlib import Path
from workbench import Sampling
from workbench.engines.remote import RemoteEngine
from workbench.store import Store
prompts = [f"{a}+{a}=" for a in range(10, 40)]
options = {"base_url": sys.argv[1], "prompts_per_request": 1, "max_concurrency": 1}
with RemoteEngine(None, Store(Path(sys.argv[2])), "test", options) as engine:
    for done, (index, row) in enumerate(engine.stream(prompts, Sampling(max_tokens=12, temperature=1.0))):
        print(done, flush=True)
"""  # noqa: E501


def test_killed_it_is_resumed_and_running_it_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "s.sqlite"
    with Injector(revision="a" * 12, latency=0.05) as server:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, server.url, str(file)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        for _ in range(8):
            child.stdout.readline()
        with RemoteEngine(None, Store(file), "test", {"base_url": server.url}) as engine:
            beside = engine.generate(PROMPTS, HOT)  # the same call, while the child's runs
            assert not any(row.from_store for row in beside)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with RemoteEngine(None, Store(file), "test", {"base_url": server.url}) as engine:
            assert sum(row.from_store for row in engine.generate(PROMPTS, HOT)) >= 8


def test_a_store_that_is_closed_first_loses_nothing(tmp_path: Path) -> None:
    with Injector(revision="a" * 12, latency=0.05) as server:
        options = {"base_url": server.url, "prompts_per_request": 1, "max_concurrency": 2}
        engine = RemoteEngine(None, Store(tmp_path / "s.sqlite"), "test", options)
        stream = engine.stream(PROMPTS, HOT)
        for _ in range(5):
            next(stream)
        engine.close()
        stream.close()
        with RemoteEngine(None, Store(tmp_path / "s.sqlite"), "test", options) as engine:
            assert sum(row.from_store for row in engine.generate(PROMPTS, HOT)) >= 5


def test_threads_of_one_call_draw_apart(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    numbers = []

    def draw() -> None:
        one = ResumableDraw(store, CALL)
        numbers.append(one.number)
        time.sleep(0.1)
        one.end(store, finished=True)

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [0, 1, 2, 3]
    assert ResumableDraw(None, CALL).number == 0  # without a store there is nothing to distinguish


def test_answers_of_another_format_are_not_read(
    kept: VLLMEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.generate(PROMPTS[:3], Sampling(max_tokens=4))
    monkeypatch.setattr("workbench.engines.base.FORMAT", 1)  # as they were stored before
    older = VLLMEngine(None, Store(tmp_path / "store.sqlite"), "test", {})
    assert not any(row.from_store for row in older.generate(PROMPTS[:3], Sampling(max_tokens=4)))
