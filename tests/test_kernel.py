"""A notebook's Stop button, on a real kernel with the real engine."""

from __future__ import annotations

import time
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from workbench.engines.vllm import unavailable

START = """
from workbench import Sampling
from workbench.engines import open_engine
from benchmarks.engine import make_prompts
texts = make_prompts(400)
engine = open_engine(store=store)
"""


def ask(client: Any, code: str, seconds: float = 120) -> tuple[str, str]:
    """Run a cell; returns what it printed and the name of its error."""
    printed: list[str] = []

    def note(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    reply = client.execute_interactive(code, timeout=seconds, output_hook=note)
    return "".join(printed), reply["content"].get("ename", "")


@pytest.mark.skipif(unavailable() is not None, reason="needs vLLM")
def test_stop_ends_a_long_cell_and_the_next_one_works(tmp_path: Any) -> None:
    manager, client = start_new_kernel(kernel_name="workbench")
    try:
        printed, error = ask(client, f"store = {str(tmp_path / 's.sqlite')!r}\n{START}")
        assert (printed, error) == ("", "")  # loading says nothing in a notebook

        client.execute("rows = engine.generate(texts * 8, Sampling(max_tokens=400, seed=1, "
                       "temperature=1.0))")  # fmt: skip
        time.sleep(3)
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
        code = (
            "print(engine.llm.llm_engine.get_num_unfinished_requests(), "
            "engine.generate(['12+30='], Sampling(max_tokens=2))[0].text)"
        )
        assert ask(client, code) == ("0 42\n", "")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


EXPERIMENTS = """
from workbench import open_engine
from workbench.evaluation import evaluate
from workbench.load import Load, Runner
from workbench.tasks import WordProblems
from workbench.throughput import Throughput
engine = open_engine(store=store)
plain = open_engine(store=None)
measured = Throughput([Runner("vllm", plain)], [Load(requests=16, output_tokens=8)], repeats=5000)
"""


@pytest.mark.slow
@pytest.mark.skipif(unavailable() is not None, reason="needs vLLM")
def test_stopped_experiments_keep_what_was_measured(tmp_path: Any) -> None:
    manager, client = start_new_kernel(kernel_name="workbench")
    try:
        ask(client, f"store = {str(tmp_path / 's.sqlite')!r}\n{EXPERIMENTS}")
        for cell in ("measured.run()", "evaluate(WordProblems(), engine, count=1500)"):
            client.execute(cell)
            time.sleep(4)
            manager.interrupt_kernel()
            assert client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
        code = (
            "report = measured.report(); print(0 < len(measured.rows) < 5000, "
            "report.provenance['complete'], report.summary[0].n == len(measured.rows))"
        )
        assert ask(client, code) == ("True False True\n", "")
        code = "print(evaluate(WordProblems(), engine, count=1500).rows['from_store'].any())"
        assert ask(client, code) == ("True\n", "")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
