"""What errors, stops, bars and loading models leave in a notebook and at a terminal."""

from __future__ import annotations

import os
import pty
import select
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from workbench.displays import described
from workbench.feed import Stage

Cell = tuple[list[str], list[str], str]  # errors as shown, displays in their last state, ename


class Kernel:
    """A real kernel, and what its cells show."""

    def __init__(self) -> None:
        env = {name: value for name, value in os.environ.items() if name != "WORKBENCH_PROGRESS"}
        self.manager, self.client = start_new_kernel(kernel_name="workbench", env=env)

    def run(self, code: str, stop: float | None = None) -> Cell:
        errors: list[str] = []
        shown: dict[str, str] = {}

        def note(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "error":
                errors.append("\n".join(content["traceback"]))
            elif "display" in message["msg_type"]:
                shown[content["transient"]["display_id"]] = content["data"]["text/plain"]

        if stop is not None:
            threading.Timer(stop, self.manager.interrupt_kernel).start()
        reply = self.client.execute_interactive(code, timeout=240, output_hook=note)
        return errors, [*shown.values()], reply["content"].get("ename", "")


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    one = Kernel()
    one.run("%colors nocolor\nimport time\nfrom workbench import open_engine, Sampling, watch")
    one.run("from workbench.progress import bars, check, one_bar")
    yield one
    one.client.stop_channels()
    one.manager.shutdown_kernel(now=True)


def test_an_error_is_the_users_line_and_the_message(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def bad(f):\n    return f(max_tokens=-1)\n")
    kernel.run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import own")
    (text,), _, name = kernel.run("x = 1\nown.bad(Sampling)")
    assert name == "InputError"
    assert "----> 2 own.bad(Sampling)" in text
    assert "return f(max_tokens=-1)" in text
    assert text.endswith("must be a whole number from 1\n(%tb shows all)")
    assert "site-packages" not in text
    assert "workbench/types.py" not in text
    assert len(text.splitlines()) < 12
    assert "\x1b" not in text
    (whole,), _, _ = kernel.run("%tb")
    assert "workbench/types.py" in whole
    assert "(%tb shows all)" not in whole


def test_modes_colours_and_causes(kernel: Kernel) -> None:
    cell = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    open_engine(7)"
    (text,), _, _ = kernel.run(cell)
    assert "while handling ZeroDivisionError: division by zero" in text
    kernel.run("%xmode Verbose")
    (text,), _, _ = kernel.run(cell)
    assert "workbench/engines/__init__.py" in text
    kernel.run("%xmode Context\n%colors neutral")
    (text,), _, _ = kernel.run("Sampling(max_tokens=-1)")
    assert "\x1b" in text
    kernel.run("%colors nocolor")


def test_a_stop_is_one_line_and_still_an_interrupt(kernel: Kernel) -> None:
    slow = "with one_bar(100, 'work', 'step') as bar:\n    for _ in range(100):\n"
    slow += "        bar.update(); time.sleep(0.1)"
    (text,), (shown,), name = kernel.run(slow, stop=2)
    assert name == "KeyboardInterrupt"
    assert text.startswith("stopped: work ")
    assert "\n" not in text
    assert shown.startswith("work stopped: ")
    (text,), _, _ = kernel.run("%tb")
    assert "time.sleep(0.1)" in text
    (text,), _, _ = kernel.run("time.sleep(30)", stop=1)
    assert "time.sleep(30)" in text  # the user's own code, as IPython shows it
    caught = f"try:\n    {slow.replace(chr(10), chr(10) + '    ')}\nexcept KeyboardInterrupt: pass"
    assert kernel.run(caught, stop=2)[::2] == ([], "")
    job = "def work():\n    while True: check(); time.sleep(0.01)\njob = watch(work); job.stop()"
    (text,), _, name = kernel.run(f"{job}\njob.result()")
    assert (name, len(text.splitlines())) == ("StoppedError", 1)


def test_bars_leave_their_last_state(kernel: Kernel) -> None:
    steps = "with bars({'a': 4, 'b': 9}, 'step') as both:\n    both['b'].update(3)\n"
    steps += "    for _ in range(4): both['a'].update(); time.sleep(0.2)\n    1 / 0"
    _, (shown,), _ = kernel.run(steps)
    first, second = shown.splitlines()
    assert first.startswith("a: 4 of 4 steps, 1 s, ")
    assert second.startswith("b failed: 3 of 9 steps, 1 s, ")


def test_a_loading_model_can_be_stopped_and_loaded_again(kernel: Kernel) -> None:
    opening = "engine = open_engine(engine='transformers', store=None)"
    errors, (shown,), name = kernel.run(opening, stop=0.8)
    assert name == "KeyboardInterrupt"
    assert errors == ["stopped: loading transformers, workbench-tiny"]
    assert shown.startswith(("loading stopped: ", "waiting for imports stopped"))
    errors, (shown,), _ = kernel.run(opening)
    assert (errors, shown.rpartition(",")[0]) == (
        [],
        "ready: transformers, workbench-tiny, float32",
    )
    assert kernel.run("open_engine('/no/such')")[1] == []


CODE = """
import sys, time
from workbench.progress import loading
with loading("vllm, tiny") as stage:
    time.sleep(0.8)
    print("a log line of somebody's")
    print("and another", file=sys.stderr)
    time.sleep(0.8)
    stage.note = "vllm, tiny, bfloat16"
print("after")
"""


def at_terminal(code: str) -> str:
    """What a program writes to a terminal."""
    child, terminal = pty.fork()
    if not child:
        os.environ.pop("WORKBENCH_PROGRESS", None)
        os.execv(sys.executable, [sys.executable, "-c", code])
    text, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                part = os.read(terminal, 65536)
            except OSError:  # it has ended
                break
            if not part:
                break
            text += part
    os.waitpid(child, 0)
    os.close(terminal)
    return text.decode()


def test_a_line_of_a_terminal_leaves_others_lines_whole() -> None:
    text = at_terminal(CODE)
    assert "loading: vllm, tiny, 1 s" in text
    lines = [line.rpartition("\x1b[K")[2].strip("\r") for line in text.split("\n")]
    assert lines == ["a log line of somebody's", "and another",
                     "ready: vllm, tiny, bfloat16, 2 s", "after", ""]  # fmt: skip


def test_texts_of_stages() -> None:
    stage = Stage("generate", "row", 100, 40, "2 failed", began=0.0, ended=4.0)
    assert described(stage) == "generate: 40 of 100 rows, 4 s, 10.0 rows/s, 2 failed"
    stage.end = "stopped"
    assert described(stage).startswith("generate stopped: 40 of 100 rows, 4 s")
