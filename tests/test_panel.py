"""The panel: a Stop that works on every engine, a view that says the same each time."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from pandas.testing import assert_frame_equal

from benchmarks.engine import make_prompts
from benchmarks.injector import Faults, Injector
from workbench import Sampling
from workbench.engines.diffusion import DiffusionEngine
from workbench.engines.remote import RemoteEngine
from workbench.engines.transformers import TransformersEngine
from workbench.engines.vllm import VLLMEngine, unavailable
from workbench.errors import InputError, StoppedError
from workbench.evaluation import evaluate
from workbench.frontend import chosen_view
from workbench.icm import Claim, search
from workbench.load import Load, Runner
from workbench.panel import (
    MAX_SAMPLES,
    MAX_SPEEDS,
    WatchedCall,
    _ended,
    _History,
    watch,
)  # fmt: skip
from workbench.progress import Progress, check, current, fact, one_bar
from workbench.store import Store
from workbench.tasks.arithmetic import equations
from workbench.throughput import Throughput
from workbench.types import Usage

TEXTS = make_prompts(3000)
LONG = Sampling(max_tokens=24, ignore_eos=True)
SUM = (["12+30="], Sampling(max_tokens=2))
QUICK = 10.0  # seconds; it is a tenth of one where nothing else runs


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_PROGRESS", "off")


def reached(job: WatchedCall[Any], rows: int = 1) -> None:
    """Wait until so many rows are there, which are not all."""
    while job.state == "running" and int(job.summary()["requests"].iloc[0]) < rows:
        job.wait(0.01)
    assert job.state == "running"


def stop(job: WatchedCall[Any]) -> float:
    """Stop it; the seconds until it has ended."""
    start = time.perf_counter()
    job.stop()
    with pytest.raises(StoppedError, match="was stopped"):
        job.result()
    took = time.perf_counter() - start
    print(f"{job}: ended {took:.2f} s after stop()")
    assert took < QUICK
    assert job.state == "stopped"
    return took


def counted(steps: int, wait: Callable[[], object] = lambda: None) -> int:
    """Work without an engine."""
    with one_bar(steps, "counting", "step") as bar:
        for _ in range(steps):
            wait()
            bar.update()
    return steps


def for_ever() -> None:
    """Work that only a stop ends."""
    while True:
        check()
        time.sleep(0.001)


def test_a_watched_evaluation_is_the_same(plain: VLLMEngine) -> None:
    job = watch(evaluate, "word_problems", plain, count=60)
    watched, direct = job.result(), evaluate("word_problems", plain, count=60)
    assert_frame_equal(watched.rows, direct.rows)
    assert watched.summary == direct.summary
    row = job.summary().iloc[0]
    assert (row["state"], row["requests"], row["failed"]) == ("done", 60, 0)
    assert row["progress"] == "generate 60 of 60 rows"
    assert row["completion_tokens"] == watched.usage.completion_tokens
    assert row["prompt_tokens"] == watched.usage.prompt_tokens
    assert repr(job) == "<job evaluate: done, generate 60 of 60 rows>"
    assert job.figure().axes[0].get_ylabel() == "tokens per second"


def test_stop_on_vllm(kept: VLLMEngine, tmp_path: Path) -> None:
    job = watch(kept.generate, TEXTS, LONG)
    reached(job, 5)
    stop(job)
    finished = int(job.summary()["requests"].iloc[0])
    assert 5 <= finished == len(Store(tmp_path / "store.sqlite")) < len(TEXTS)
    assert kept.llm.llm_engine.get_num_unfinished_requests() == 0
    assert kept.generate(*SUM)[0].text == "42"
    again = watch(kept.generate, TEXTS, LONG)
    reached(again, finished + 1)
    assert int(again.summary()["from_store"].iloc[0]) == finished
    stop(again)


def test_stop_on_transformers(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with TransformersEngine(None, Store(path), "test", {"batch_size": 8}) as engine:
        job = watch(engine.generate, TEXTS, LONG)
        reached(job)
        stop(job)
        assert 8 <= len(Store(path)) == int(job.summary()["requests"].iloc[0]) < len(TEXTS)
        assert engine.generate(*SUM)[0].text == "42"
        scored = watch(engine.label_logprobs, TEXTS, [" True", " False"])
        reached(scored)
        stop(scored)


def test_stop_in_the_middle_of_a_batch() -> None:
    """One batch of transformers takes long: its forwards are where it ends."""
    with TransformersEngine(None, None, "test", {"batch_size": 8}) as engine:
        job = watch(engine.generate, TEXTS[:8], Sampling(max_tokens=900, ignore_eos=True))
        while job.state == "running" and "of 8" not in repr(job):
            job.wait(0.01)
        assert job.state == "running"
        stop(job)
        assert "0 of 8 rows" in repr(job)
        assert engine.generate(*SUM)[0].text == "42"


def test_stop_on_diffusion(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with DiffusionEngine(None, Store(path), "test", {}) as engine:
        job = watch(engine.generate, TEXTS, Sampling(max_tokens=64))
        reached(job)
        stop(job)
        assert 1 <= len(Store(path)) == int(job.summary()["requests"].iloc[0]) < len(TEXTS)
        assert engine.generate(*SUM)[0].error is None
        scored = watch(engine.label_logprobs, TEXTS, [" 17", " 423"])
        reached(scored)
        stop(scored)


def test_stop_of_a_search(plain: VLLMEngine, tmp_path: Path) -> None:
    groups = equations(random.Random(0), held_out=True)
    drawn = islice(chain.from_iterable(groups), 40)
    claims = [Claim(str(c), str(c.problem), str(c.shown), c.right) for c in drawn]
    journal = tmp_path / "journal.jsonl"
    job = watch(
        search, claims, plain, order="reference", n_iterations=5000, checkpoint=journal
    )  # fmt: skip
    while job.state == "running" and "energy" not in job.summary():
        job.wait(0.01)
    row = job.summary().iloc[0]
    assert row["progress"].startswith("icm ")
    assert row["progress"].endswith("of 5,000 iterations")
    assert {"energy", "acceptance", "labelled"} < set(row.index)
    stop(job)
    assert journal.read_text().count("\n") > 3
    assert [ax.get_ylabel() for ax in job.figure().axes] == ["tokens per second", "energy, nats"]


def test_a_stopped_measurement_goes_on(plain: VLLMEngine) -> None:
    measured = Throughput(
        [Runner("vllm", plain)], [Load(requests=8, output_tokens=4)], repeats=5000
    )
    had = 0
    for _ in range(2):
        job = watch(measured.run)
        while len(measured.rows) < had + 3:
            assert not job.wait(0.01)
        stop(job)
        assert had + 3 <= len(measured.rows) < 5000
        assert "throughput" in repr(job)
        had = len(measured.rows)


def test_stop_where_a_server_hangs(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    options = {"prompts_per_request": 1, "max_concurrency": 4}
    with Injector() as server:
        given = {"base_url": server.url, **options}
        with RemoteEngine(None, Store(path), "test", given) as engine:
            engine.generate(TEXTS[:20], Sampling(max_tokens=8))
            server.plan = Faults(rate_hang=1.0)
            job = watch(engine.generate, TEXTS[:40], Sampling(max_tokens=8))
            reached(job, 20)
            while "4 of" not in job.summary().iloc[0].get("requests in flight", ""):
                assert not job.wait(0.01)
            stop(job)
            assert "requests in flight" not in job.summary()
            server.plan = Faults()
            rows = engine.generate(TEXTS[:40], Sampling(max_tokens=8))
            assert [row.from_store for row in rows] == [True] * 20 + [False] * 20


def test_a_stop_where_a_server_hangs_at_first() -> None:
    """It is tried out whether it takes several prompts: that can be stopped too."""
    with Injector() as server, RemoteEngine(None, None, "test", {"base_url": server.url}) as engine:
        server.plan = Faults(rate_hang=1.0)
        job = watch(engine.generate, TEXTS[:40], Sampling(max_tokens=8))
        while not server.requests:
            assert not job.wait(0.01)
        stop(job)


def test_retries_are_counted() -> None:
    with Injector(Faults(rate_429=0.3), seed=1) as server:
        given = {"base_url": server.url, "prompts_per_request": 1}
        with RemoteEngine(None, None, "test", given) as engine:
            job = watch(engine.generate, TEXTS[:40], Sampling(max_tokens=8))
            assert len(job.result()) == 40
            row, used = job.summary().iloc[0], engine.usage
    assert (row["retries"], row["rate_limit_hits"]) == (used.retries, used.rate_limit_hits)
    assert row["retries"] > 0
    assert row["peak requests in flight"] >= 1


def test_two_jobs_share_a_model(plain: VLLMEngine) -> None:
    """To stop one is not to stop the other, nor does it wait for that."""
    brief = Sampling(max_tokens=12, ignore_eos=True)
    long = watch(plain.generate, TEXTS, brief)
    reached(long)
    short = watch(plain.generate, TEXTS[:20], Sampling(max_tokens=8))
    assert len(short.result()) == 20
    other = watch(plain.generate, TEXTS[:200], brief)
    while "of 200" not in repr(other):
        other.wait(0.01)
    stop(other)
    assert long.state == "running"
    stop(long)
    assert plain.llm.llm_engine.get_num_unfinished_requests() == 0


def test_what_a_function_raises_is_raised() -> None:
    def refuse(_: str) -> None:
        raise InputError("this <b>value</b> is none")

    job = watch(refuse, "hush")
    for _ in range(2):
        with pytest.raises(InputError, match="is none"):
            job.result()
    assert job.state == "failed"
    assert repr(job) == "<job refuse: failed>"
    shown = _ended(job)
    assert "this &lt;b&gt;value&lt;/b&gt; is none" in shown["text/html"]
    assert "InputError: this <b>value</b> is none" in shown["text/plain"]
    assert "hush" not in str(shown)


def test_a_result_that_is_not_there_yet() -> None:
    job = watch(for_ever)
    assert not job.wait(0.0)
    with pytest.raises(TimeoutError, match="still runs after 0"):
        job.result(0.01)
    assert job.state == "running"
    stop(job)


def test_await_gives_the_same_and_leaves_the_loop_free() -> None:
    async def main() -> None:
        go = threading.Event()
        job = watch(counted, 3, go.wait)
        asyncio.get_running_loop().call_soon(go.set)  # the loop runs on, or this never ends
        assert await job == 3
        assert await job == 3
        failing = watch(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            await failing
        stopped = watch(for_ever)
        stopped.stop()
        with pytest.raises(StoppedError):
            await stopped

    asyncio.run(main())


def test_a_cancelled_await_stops_the_job() -> None:
    async def main() -> WatchedCall[None]:
        job = watch(for_ever)

        async def wait() -> None:
            await job

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return job

    assert asyncio.run(main()).state == "stopped"


def test_ctrl_c_in_result_stops_the_job(kept: VLLMEngine, tmp_path: Path) -> None:
    job = watch(kept.generate, TEXTS, LONG)

    def press() -> None:
        reached(job)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        job.result()
    assert job.state == "stopped"
    assert 0 < len(Store(tmp_path / "store.sqlite")) < len(TEXTS)
    assert kept.generate(*SUM)[0].text == "42"


def test_a_job_in_a_job_is_stopped_with_it() -> None:
    inner: list[WatchedCall[None]] = []

    def outer() -> None:
        inner.append(watch(for_ever))
        inner[0].result()

    job = watch(outer)
    while not inner:
        assert not job.wait(0.01)
    stop(job)
    assert inner[0].state == "stopped"


def test_a_stop_that_comes_too_late_changes_nothing() -> None:
    job = watch(int, "7")
    assert job.result() == 7
    job.stop()
    assert (job.result(), job.state) == (7, "done")


def test_python_ends_though_a_job_runs() -> None:
    code = (
        "import time; from workbench.panel import watch; from workbench.progress import check\n"
        "def work():\n"
        "    try:\n"
        "        while True: check(); time.sleep(0.01)\n"
        "    finally: print('cleaned up', flush=True)\n"
        "watch(work)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (ran.stdout, ran.stderr) == ("cleaned up\n", "")


def test_unwatched_work_is_unchanged() -> None:
    from tqdm import tqdm

    assert current() is None
    check()
    fact("energy", 1.0)
    with one_bar(2, "work", "step") as bar:
        assert isinstance(bar, tqdm)
    assert watch(current).result() is not None
    assert current() is None


def lines(work: Callable[[], WatchedCall[Any]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    job = work()
    capsys.readouterr()
    job.wait()
    return capsys.readouterr().out.splitlines()


def test_lines_are_the_same_each_time(
    plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKBENCH_PROGRESS", "lines")
    work = partial(watch, evaluate, "word_problems", plain, count=60)
    first = lines(work, capsys)
    assert first == [
        "evaluate, generate: 15 of 60 rows",
        "evaluate, generate: 30 of 60 rows",
        "evaluate, generate: 45 of 60 rows",
        "evaluate, generate: 60 of 60 rows",
        "evaluate: done, 60 requests, 0 failed",
    ]
    assert lines(work, capsys) == first
    assert lines(partial(watch, counted, 2), capsys) == [
        "counted, counting: 1 of 2 steps",
        "counted, counting: 2 of 2 steps",
        "counted: done",
    ]
    assert lines(partial(watch, int, "x"), capsys) == ["int: failed, ValueError"]
    job = watch(for_ever)
    job.stop()
    assert lines(lambda: job, capsys) == ["for_ever: stopped"]
    assert lines(lambda: job, capsys) == []  # one report is enough


def test_many_calls_make_few_lines() -> None:
    progress = Progress()
    for _ in range(1000):
        stage = progress.stage("generate", 10, "row")
        for _ in range(10):
            progress.advance(stage, 1)
    milestones = [(stage.done, stage.total) for stage in progress.milestones()]
    assert milestones[:4] == [(3, 10), (5, 10), (8, 10), (10, 10)]
    assert len(milestones) < 40
    assert progress.snapshot().stages[0].done == 10_000


@pytest.mark.parametrize(
    ("given", "in_kernel", "wanted"),
    [
        ({}, False, "lines"),
        ({}, True, "lines"),  # papermill, nbclient, nbval
        ({"JPY_SESSION_NAME": "a.ipynb"}, True, "widget"),
        ({"VSCODE_PID": "7"}, True, "widget"),
        ({"VSCODE_PID": "7"}, False, "lines"),  # a terminal there
        ({"WORKBENCH_PROGRESS": "widget"}, True, "widget"),
        ({"WORKBENCH_PROGRESS": "widget"}, False, "lines"),
        ({"WORKBENCH_PROGRESS": "off", "JPY_SESSION_NAME": "a"}, True, "off"),
        ({"WORKBENCH_PROGRESS": "lines", "JPY_SESSION_NAME": "a"}, True, "lines"),
    ],
)
def test_the_surroundings_choose_the_view(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], in_kernel: bool, wanted: str
) -> None:
    import IPython

    for name in ("WORKBENCH_PROGRESS", "JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    shell = type("Shell", (), {"kernel": None})() if in_kernel else None
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    assert chosen_view() == wanted


def test_an_unknown_view_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_PROGRESS", "of")
    with pytest.raises(InputError, match="'of': use widget, lines or off"):
        watch(for_ever)


def test_an_async_function_is_refused() -> None:
    async def work() -> None: ...

    with pytest.raises(InputError, match="work is async"):
        watch(work)


def test_progress_is_reported_from_many_threads() -> None:
    progress = Progress()

    def report(number: int) -> None:
        stage = progress.stage("work", 1000, "step")
        for step in range(1000):
            progress.advance(stage, 1)
            progress.add(Usage(requests=1, prompt_tokens=2))
            progress.fact(f"fact {number}", step)

    threads = [threading.Thread(target=report, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = progress.snapshot()
    assert str(state.stages[0]) == "8,000 of 8,000 steps"
    assert (state.used.requests, state.used.prompt_tokens) == (8000, 16_000)
    assert state.facts == {f"fact {number}": 999 for number in range(8)}


def test_a_long_past_takes_little_room() -> None:
    history = _History()
    for step in range(1, 40_001):
        history.add(0.25 * step, 25 * step, None, last=step == 40_000)
    assert 200 < len(history.samples) <= MAX_SAMPLES
    assert history.samples[-1][0] == 10_000
    speeds = history.speeds()
    assert 60 < len(speeds) <= MAX_SPEEDS
    assert {round(speed) for _, speed in speeds} == {100}


START = """
from workbench import Sampling
from workbench.engines import open_engine
from benchmarks.engine import make_prompts
from workbench.panel import watch
texts = make_prompts(3000)
engine = open_engine(store=store)
engine.generate(texts[:1], Sampling(max_tokens=2))
"""
WATCHED = "job = watch(engine.generate, texts, Sampling(max_tokens=24, ignore_eos=True))"
AFTER = (
    "print(job.wait(60), job.state, engine.llm.llm_engine.get_num_unfinished_requests(), "
    "engine.generate(['12+30='], Sampling(max_tokens=2))[0].text, len(engine._store))"
)


class Notebook:
    """What a front end sees of a kernel: a cell's outputs as they would be saved, and widgets."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager, self._client = manager, client
        self.outputs: dict[str, dict[str, Any]] = {}
        self.comms: dict[str, dict[str, Any]] = {}
        self.printed = ""
        self.error = ""

    def run(self, code: str, until: Callable[[], bool] | None = None) -> float:
        """Run a cell to its end, or until something is seen; the seconds that it took."""
        start = time.perf_counter()
        self.outputs.clear()
        self.printed = self.error = ""
        self._request = self._client.execute(code)
        self.follow(until)
        return time.perf_counter() - start

    def follow(self, until: Callable[[], bool] | None = None) -> None:
        """Read on."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                message = self._client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            self._note(message)
            mine = message["parent_header"].get("msg_id") == self._request
            idle = message["content"].get("execution_state") == "idle"
            if (until is None and mine and idle) or (until is not None and until()):
                return
        raise AssertionError("it does not end")

    def _note(self, message: dict[str, Any]) -> None:
        content, what = message["content"], message["msg_type"]
        if what in {"display_data", "update_display_data"}:
            self.outputs[content["transient"]["display_id"]] = content["data"]
        elif what == "comm_open":
            self.comms[content["comm_id"]] = dict(content["data"]["state"])
        elif what == "comm_msg" and content["comm_id"] in self.comms:
            self.comms[content["comm_id"]] |= content["data"].get("state", {})
        elif what == "comm_close":
            self.comms.pop(content["comm_id"], None)
        elif what == "stream":
            self.printed += content["text"]
        elif what == "error":
            self.error = content["ename"]

    def button(self) -> str:
        (found,) = (i for i, state in self.comms.items() if state["_model_name"] == "ButtonModel")
        return found

    def shows(self, text: str) -> bool:
        return any(text in str(state.get("value")) for state in self.comms.values())

    def press(self) -> None:
        """As the front end does it."""
        data = {"method": "custom", "content": {"event": "click"}}
        message = self._client.session.msg("comm_msg", {"comm_id": self.button(), "data": data})
        self._client.shell_channel.send(message)


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    from jupyter_client.manager import start_new_kernel

    env = {**os.environ, "WORKBENCH_PROGRESS": "widget"}
    manager, client = start_new_kernel(kernel_name="workbench", env=env)
    try:
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.skipif(unavailable() is not None, reason="needs vLLM")
def test_the_stop_button_of_a_cell_that_awaits(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run(f"store = {str(tmp_path / 's.sqlite')!r}\n{START}")
    assert (notebook.printed, notebook.error) == ("", "")
    before = set(notebook.comms)  # of the bar of an unwatched call
    notebook.run(f"{WATCHED}\nawait job", until=lambda: notebook.shows("cache hits"))
    view, nothing = notebook.outputs.values()
    assert "application/vnd.jupyter.widget-view+json" in view
    assert nothing == {"text/plain": "", "text/html": ""}
    start = time.perf_counter()
    notebook.press()
    notebook.follow()
    took = time.perf_counter() - start
    print(f"the cell ended {took:.2f} s after the button was pressed")
    assert took < QUICK
    assert notebook.error == "StoppedError"
    table, figure = notebook.outputs.values()
    assert set(table) == {"text/html", "text/plain"}
    assert "stopped" in table["text/plain"]
    assert "cache hits" in table["text/html"]
    assert set(figure) == {"image/png", "text/plain"}
    assert set(notebook.comms) == before
    assert "widget" not in json.dumps([table, {**figure, "image/png": ""}])
    notebook.run(AFTER)
    *said, rows = notebook.printed.split()
    assert said == ["True", "stopped", "0", "42"]
    assert 1 < int(rows) < 3000

    notebook.run(WATCHED)  # the cell ends at once, and the button works on
    assert notebook.error == ""
    notebook.press()
    notebook.run(AFTER)
    assert notebook.printed.split()[:4] == ["True", "stopped", "0", "42"]

    notebook.run(f"{WATCHED}\nawait job", until=lambda: notebook.shows("cache hits"))
    notebook.manager.interrupt_kernel()  # the notebook's own stop
    notebook.follow()
    assert notebook.error in {"KeyboardInterrupt", "CancelledError"}
    notebook.run(AFTER)
    assert notebook.printed.split()[:4] == ["True", "stopped", "0", "42"]


LAB = [
    f"store = 's.sqlite'\n{START.strip()}\nprint('loaded')",
    f"{WATCHED}\nawait job",
    "print('after', len(engine._store), engine.generate(['12+30='], Sampling(max_tokens=2))[0])",
]
