"""The engine against bare vLLM and against its promises, on the embedded model.

Speed is a ratio of interleaved runs of the same 1,024 prompts in one process on one loaded model.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.table import Row, ratio_row
from workbench.engines import vllm
from workbench.errors import EngineError
from workbench.store import Store
from workbench.tasks.arithmetic import problems
from workbench.tiny import MODEL
from workbench.types import Sampling

SAMPLING = Sampling(max_tokens=32)
Say = Callable[[str], None]


def make_prompts(count: int, seed: int = 0) -> list[str]:
    """Different prompts of three solved sums and an open one; the model goes on with more."""
    rng = random.Random(f"bench-{seed}")
    made: dict[str, None] = {}
    while len(made) < count:
        shots = [f"{p}={p.result}\n" for p in islice(problems(rng, held_out=False), 3)]
        (last,) = islice(problems(rng, held_out=True), 1)
        made["".join(shots) + f"{last}="] = None
    return list(made)


def measure(pairs: int, prompts: int, say: Say, *, commands: bool = False) -> list[Row]:
    """Run all measurements; takes some minutes. `commands` adds `make demo` and `make test`."""
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
        rows += [_command(say, "demo", 300), _command(say, "test", 720)]
    return rows


def _engine(store: Path | None) -> vllm.VLLMEngine:
    return vllm.VLLMEngine(None, Store(store) if store else None, "benchmark", {})


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _throughput(texts: list[str], pairs: int, folder: Path) -> list[Row]:
    off: list[float] = []
    on: list[float] = []
    again: list[float] = []
    with _engine(None) as plain:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=SAMPLING.max_tokens, temperature=0.0)
        llm: Any = plain.llm
        llm.generate(texts, params, use_tqdm=False)  # warm up
        for number in range(pairs):
            kept = _engine(folder / f"speed-{number}.sqlite")
            runs: list[Callable[[], object]] = [
                lambda: llm.generate(texts, params, use_tqdm=False),
                lambda: plain.generate(texts, SAMPLING),
                lambda kept=kept: kept.generate(texts, SAMPLING),  # type: ignore[misc]
            ]
            seconds: dict[int, float] = {}
            for which in _rotated(range(3), number):  # no run is always the first or the last
                llm.reset_prefix_cache()
                seconds[which] = _timed(runs[which])
            off.append(seconds[0] / seconds[1])
            on.append(seconds[0] / seconds[2])
            again.append(seconds[2] / _timed(runs[2]))
            kept.close()
    size = f"{len(texts):,} × {SAMPLING.max_tokens} tokens"
    return [
        ratio_row(f"`generate`, store off, against bare vLLM, {size}", off, 0.97),
        ratio_row(f"`generate`, store on, against bare vLLM, {size}", on, 0.95),
        ratio_row("the same requests again, from the store, against computing", again, 20),
    ]


def _rotated(items: range, by: int) -> list[int]:
    cut = by % len(items)
    return [*items[cut:], *items[:cut]]


def _label_error(texts: list[str]) -> Row:
    """Largest difference from log-softmax of transformers, over single and longer labels.

    All likely enough to be asked for: at p = 1e-16 float32 itself is off by 1e-4, here and there.
    """
    labels = [" True", " False", "4", "42", "7\n", " True\n12"]
    with _engine(None) as engine:
        scores = engine.label_logprobs(texts, labels).logprobs
    worst = float(abs(scores - reference_logprobs(texts, labels)).max())
    what = f"`label_logprobs` against transformers, float32, {len(texts)} prompts × {len(labels)}"
    return Row(what, worst, " nats", "≤ 1e-4", worst <= 1e-4)


def reference_logprobs(texts: list[str], labels: list[str]) -> Any:
    """Label log-probabilities [n_texts, n_labels], one text at a time, without cleverness."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        MODEL, dtype=torch.float32, trust_remote_code=False
    )
    found = np.empty((len(texts), len(labels)))
    ends = [tokenizer(label, add_special_tokens=False).input_ids for label in labels]
    for i, text in enumerate(texts):
        start = tokenizer(text).input_ids
        for j, end in enumerate(ends):
            with torch.inference_mode():
                logits = model(torch.tensor([start + end])).logits[0].double()
            at = logits.log_softmax(-1)[len(start) - 1 : -1]
            found[i, j] = float(at.gather(1, torch.tensor(end)[:, None]).sum())
    return found


def _interrupt(texts: list[str], folder: Path) -> Row:
    """Ctrl-C in mid-call: nothing left in vLLM, finished rows kept, the next answers right."""
    path = folder / "interrupt.sqlite"
    with _engine(None) as plain, _engine(path) as kept:
        wanted = [row.text for row in plain.generate(texts, SAMPLING)]

        def press() -> None:
            while len(Store(path)) == 0:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press, daemon=True).start()
        try:
            kept.generate(texts, SAMPLING)
            stopped = False
        except KeyboardInterrupt:
            stopped = True
        left = kept.llm.llm_engine.get_num_unfinished_requests()
        finished = len(Store(path))
        rows = kept.generate(texts, SAMPLING)
        reused = sum(row.from_store for row in rows)
        right = [row.text for row in rows] == wanted
    good = stopped and left == 0 and right and 0 < finished == reused < len(texts)
    what = f"interrupted after {finished} of {len(texts)} rows, then used again: requests left"
    return Row(what, left, "", "0, answers equal", good)


CHILD = """
import sys
from pathlib import Path
from benchmarks.engine import SAMPLING, make_prompts, _engine
_engine(Path(sys.argv[1])).generate(make_prompts(int(sys.argv[2])), SAMPLING)
"""


def _resume(texts: list[str], folder: Path) -> Row:
    """`kill -9` halfway, run again: all finished rows reused, outputs as if uninterrupted."""
    path = folder / "killed.sqlite"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(len(texts))])
    while not path.exists() or len(Store(path)) < len(texts) // 2:
        if child.poll() is not None:
            raise EngineError(f"the run that was to be killed ended by itself ({child.returncode})")
        time.sleep(0.01)
    child.kill()
    child.wait()
    finished = len(Store(path))
    with _engine(path) as engine:
        rows = engine.generate(texts, SAMPLING)
        reused = engine.usage.from_store
        computed = engine.usage.requests - reused
    with _engine(None) as plain:
        wanted = [row.text for row in plain.generate(texts, SAMPLING)]
    differing = sum(row.text != want for row, want in zip(rows, wanted, strict=True))
    good = differing == 0 and reused == finished and computed == len(texts) - finished
    what = f"`kill -9` after {finished} of {len(texts)} rows, run again: {reused} reused, differing"
    return Row(what, differing, "", "0, each row once", good)


def _import_time(runs: int = 7) -> Row:
    """Seconds that `import workbench` adds to starting Python."""

    def start(code: str) -> float:
        return _timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))

    start("import workbench")
    added = [start("import workbench") - start("pass") for _ in range(runs)]
    middle = statistics.median(added)
    return Row(
        "`import workbench`", middle, " s", "< 0.3 s", middle < 0.3, min(added), max(added), runs
    )


def _command(say: Say, target: str, most: float) -> Row:
    say(f"make {target} …")
    start = time.perf_counter()
    done = subprocess.run(["make", target], check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        say("\n".join((done.stdout + done.stderr).splitlines()[-40:]))
    good = done.returncode == 0 and seconds < most
    return Row(f"`make {target}`, environment built", seconds, " s", f"< {most:g} s", good)
