"""Streams beside each other: nothing that came is lost, and nothing outlives the process."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from workbench.engines import unavailable
from workbench.engines.shared_llm import Inbox, SharedLLM
from workbench.engines.streams import Streams
from workbench.errors import EngineGoneError


def rows(*values: int, error: Exception | None = None) -> Generator[int, None, None]:
    yield from values
    if error is not None:
        raise error


def test_all_rows_come_and_each_stream_ends_once() -> None:
    streams: Streams[int] = Streams()
    for start in (0, 10, 20):
        streams.start(rows(*range(start, start + 10)))
    found: list[int] = []
    while streams.running:
        found += streams.take()
    assert sorted(found) == list(range(30))


def test_rows_before_an_error_are_taken_before_it_is_raised() -> None:
    streams: Streams[int] = Streams()
    streams.start(rows(1, 2, 3, error=ValueError("lost")))
    found: list[int] = []
    while len(found) < 3:
        found += streams.take()
    assert found == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(ValueError, match="lost"):
            streams.take()


def test_every_caller_of_a_model_that_stopped_is_given_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> None:
        raise RuntimeError("CUDA error")

    core = SimpleNamespace(step=step, get_num_unfinished_requests=lambda: 2)
    shared: Any = SharedLLM.__new__(SharedLLM)
    shared._lock, shared._owners, shared._users = threading.RLock(), {}, weakref.WeakSet[object]()
    shared._interrupted, shared._lost = False, None
    shared.llm = SimpleNamespace(llm_engine=core)
    monkeypatch.setattr("workbench.engines.shared_llm._clean_up", lambda: None)
    for _ in range(2):  # the first one steps, and the second finds that nothing is there
        inbox = Inbox()
        inbox.pending["1"] = "1-x"
        with pytest.raises(EngineGoneError, match="stopped mid-run: CUDA error"):
            shared.take(inbox)
    with pytest.raises(EngineGoneError, match="CUDA error"):
        shared.send(Inbox(), [1], None, None)


INTERRUPTED = """
import os, signal, threading
from workbench import Sampling, open_engine
from workbench.agents import Ask
from workbench.evaluation import evaluate

def program(case):
    answer = yield Ask(case.prompt)
    if not begun.is_set():
        begun.set()
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    answer = yield Ask(case.prompt, Sampling(max_tokens=400, ignore_eos=True))
    return answer.text

begun = threading.Event()
engine = open_engine(engine="transformers", store=None)
evaluate("sums", engine, program, count=100)
"""


@pytest.mark.skipif(unavailable("transformers") is not None, reason="needs transformers")
def test_an_interrupted_script_ends_as_others_do() -> None:
    """And not by an abort, which Python's end is for a thread that computes."""
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert "KeyboardInterrupt" in done.stderr
    # 1 where `tabulate` is installed: PyTorch imports it at exit, and Python forgets the interrupt.
    assert done.returncode in (130, -2, 1), done.stderr[-2000:]
