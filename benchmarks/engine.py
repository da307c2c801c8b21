"""The engine against bare vLLM and against its targets, on the embedded model.

Speed is a ratio of interleaved runs of the same 1,024 prompts in one process on one loaded model.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import (
    Measurement,
    differing,
    judged,
    kill_at,
    median,
    ratio,
    reference_logprobs,
    seconds,
    stored,
    vllm_engine,
)
from workbench.cli.output import say
from workbench.tasks.arithmetic import problems
from workbench.tiny import MODEL
from workbench.types import Sampling

SAMPLING = Sampling(max_tokens=32)


def make_prompts(count: int, seed: int = 0) -> list[str]:
    """Different prompts of three solved sums and an open one; the model continues with more."""
    rng = random.Random(f"bench-{seed}")
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        shots = [f"{p}={p.result}\n" for p in islice(problems(rng, held_out=False), 3)]
        (last,) = islice(problems(rng, held_out=True), 1)
        prompts["".join(shots) + f"{last}="] = None
    return list(prompts)


def measure(
    pairs: Annotated[int, typer.Option(min=1, help="Interleaved pairs of runs.")] = 7,
    prompts: Annotated[int, typer.Option(min=8)] = 1024,
    *,
    commands: Annotated[bool, typer.Option(help="Time `make demo` and `make test` too.")] = False,
) -> list[Measurement]:
    """Our engine against bare vLLM, the store, resuming, interrupts, exactness, import time."""
    texts = make_prompts(prompts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("store against bare vLLM …")
        rows = _throughput(texts, pairs, folder)
        say("label log-probabilities against transformers …")
        rows += [_label_error(texts[:500])]
        say("interrupt …")
        rows += [_interrupt(texts, folder)]
        say("kill -9 and resume …")
        rows += [_resume(texts, folder)]
    say("import …")
    rows += [_import_time()]
    if commands:
        rows += [_command("demo", 300), _command("test", 720)]
    return rows


def _throughput(texts: list[str], pairs: int, folder: Path) -> list[Measurement]:
    off: list[float] = []
    on: list[float] = []
    again: list[float] = []
    with vllm_engine() as plain:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=SAMPLING.max_tokens, temperature=0.0)
        llm: Any = plain.llm
        llm.generate(texts, params, use_tqdm=False)  # warm up
        for number in range(pairs):
            storing = vllm_engine(folder / f"speed-{number}.sqlite")
            runs: list[Callable[[], object]] = [
                lambda: llm.generate(texts, params, use_tqdm=False),
                lambda: plain.generate(texts, SAMPLING),
                lambda storing=storing: storing.generate(texts, SAMPLING),  # type: ignore[misc]
            ]
            times: dict[int, float] = {}
            for turn in range(3):
                which = (number + turn) % 3  # no run is always the first or the last
                llm.reset_prefix_cache()
                times[which] = seconds(runs[which])
            off.append(times[0] / times[1])
            on.append(times[0] / times[2])
            again.append(times[2] / seconds(runs[2]))
            storing.close()
    size = f"{len(texts):,} × {SAMPLING.max_tokens} tokens"
    return [
        ratio(f"`generate`, store off, against bare vLLM, {size}", off, 0.97),
        ratio(f"`generate`, store on, against bare vLLM, {size}", on, 0.95),
        ratio("the same requests again, from the store, against computing", again, 20),
    ]


def _label_error(texts: list[str]) -> Measurement:
    """Largest difference from transformers' log-softmax, over single and longer labels.

    All labels are reasonably likely: at p = 1e-16 float32 itself is sometimes off by 1e-4.
    """
    labels = [" True", " False", "4", "42", "7\n", " True\n12"]
    with vllm_engine() as engine:
        scores = engine.label_logprobs(texts, labels).logprobs
    worst = float(abs(scores - reference_logprobs(MODEL, texts, labels)).max())
    what = f"`label_logprobs` against transformers, float32, {len(texts)} prompts × {len(labels)}"
    return judged(what, worst, " nats", "≤ 1e-4")


def _interrupt(texts: list[str], folder: Path) -> Measurement:
    """Ctrl-C during a call: nothing left in vLLM, finished rows kept, later answers right."""
    path = folder / "interrupt.sqlite"
    with vllm_engine() as plain, vllm_engine(path) as storing:
        expected = [row.text for row in plain.generate(texts, SAMPLING)]

        def press() -> None:
            while not stored(path):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press, daemon=True).start()
        try:
            storing.generate(texts, SAMPLING)
            stopped = False
        except KeyboardInterrupt:
            stopped = True
        left = storing.llm.llm_engine.get_num_unfinished_requests()
        finished = stored(path)
        rows = storing.generate(texts, SAMPLING)
    reused = sum(row.from_store for row in rows)
    right = [row.text for row in rows] == expected
    good = stopped and right and 0 < finished == reused < len(texts)
    what = f"interrupted after {finished} of {len(texts)} rows, then used again: requests left"
    return judged(what, left, bound="0, answers equal", also=good)


CHILD = """
import sys
from pathlib import Path
from benchmarks.engine import SAMPLING, make_prompts
from benchmarks.harness import vllm_engine
vllm_engine(Path(sys.argv[1])).generate(make_prompts(int(sys.argv[2])), SAMPLING)
"""


def _resume(texts: list[str], folder: Path) -> Measurement:
    """`kill -9` halfway, then a new run: all finished rows reused, outputs as if uninterrupted."""
    path = folder / "killed.sqlite"
    finished = kill_at(len(texts) // 2, lambda: stored(path), CHILD, path, len(texts))
    with vllm_engine(path) as engine:
        texts_again = [row.text for row in engine.generate(texts, SAMPLING)]
        reused = engine.usage.from_store
        computed = engine.usage.requests - reused
    with vllm_engine() as plain:
        unlike = differing(texts_again, [row.text for row in plain.generate(texts, SAMPLING)])
    good = reused == finished and computed == len(texts) - finished
    what = f"`kill -9` after {finished} of {len(texts)} rows, run again: {reused} reused, differing"
    return judged(what, unlike, bound="0, each row once", also=good)


def _import_time(runs: int = 7) -> Measurement:
    """Seconds that `import workbench` adds to starting Python."""

    def start(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True))

    start("import workbench")
    added = [start("import workbench") - start("pass") for _ in range(runs)]
    return median("`import workbench`", added, " s", "< 0.3")


def _command(target: str, most: float) -> Measurement:
    say(f"make {target} …")
    start = time.perf_counter()
    done = subprocess.run(["make", target], check=False, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode:
        say("\n".join((done.stdout + done.stderr).splitlines()[-40:]))
    what = f"`make {target}`, environment built"
    return judged(what, taken, " s", f"< {most:g}", also=done.returncode == 0)
