"""Sweeps against their targets: nothing lost or doubled under disturbance, little overhead.

The points are real notebooks on real kernels, and the disturbances are real too: SIGKILL,
time-outs, exceptions, Ctrl-C and `kill -9` of the sweep itself.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import Measurement, Parts, judged, median, python, run_parts
from workbench.cli.output import say
from workbench.nb.execution import KERNEL
from workbench.runs import project
from workbench.sweep import Grid, Results, Sweep, run

POINTS = 24
SHORT = 12
COUNT = 20  # items of a short point
FEW = 6
PARAMETERS = "n: int = 0  # which point"
WORK = """\
import json, os, random, signal, time
from pathlib import Path

with open("tally", "a") as tally:
    tally.write(f"{n}\\n")
trouble = Path("trouble", str(n))
if trouble.exists():
    kind = trouble.read_text()
    trouble.unlink()
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "timeout":
        time.sleep(600)
    raise ValueError("as it was asked to")
time.sleep(0.5)
"""
KEEP = """\
chance = random.Random(n)
values = {"value": chance.random(), "low": 0.0, "high": 1.0, "n": n}
folder = Path(os.environ["WORKBENCH_RUN_DIR"])
folder.mkdir(parents=True, exist_ok=True)
print((folder / "metrics.json").write_text(json.dumps({"score": values})))
"""
KINDS = ("killed", "timeout", "failed")
TIMEOUT = 12.0
COMMAND = """
import signal
from workbench.cli import app
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a script runs this with &
app()
"""


def measure(part: Parts = None) -> list[Measurement]:
    """Sweeps: killed, stopped and resumed; their overhead; one server against loading in each."""
    return run_parts(PARTS, part)


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """A folder with the notebook of a point, as the working directory."""
    nbformat: Any = import_module("nbformat")
    cells = [nbformat.v4.new_code_cell(code) for code in (PARAMETERS, WORK, KEEP)]
    cells[0].metadata["tags"] = ["parameters"]
    with TemporaryDirectory() as name, contextlib.chdir(name):
        nbformat.write(nbformat.v4.new_notebook(cells=cells), "point.ipynb")
        yield Path(name)


def _sweep(points: int) -> Sweep:
    grid = Grid(product={"n": range(points)})
    return Sweep(notebook=Path("point.ipynb"), name="points", grid=grid, timeout=TIMEOUT)


def _chaos() -> Iterator[Measurement]:
    """Disturb three quarters of the points, and the sweep itself, until all have ended."""
    chance = random.Random(0)
    with _place() as place:
        calm = run(_sweep(POINTS), "calm", jobs=2)
        Path("tally").unlink()
        Path("trouble").mkdir()
        for n in chance.sample(range(POINTS), 3 * POINTS // 4):
            Path("trouble", str(n)).write_text(KINDS[n % 3])
        Path("points.yaml").write_text(
            f"notebook: point.ipynb\nproduct: {{n: {[*range(POINTS)]}}}\ntimeout: {TIMEOUT}\n"
        )
        again, stops = 0, Counter[str]()
        for number in (signal.SIGINT, signal.SIGKILL) * 3:
            doubled = _disturbed(number, chance)
            again += doubled
            stops[number.name] += 1
        first = run(_sweep(POINTS), "runs", jobs=2)
        say(f"{first.states}, after {dict(stops)}")
        expected = zip(first.table["n"], first.table["state"], strict=True)
        true = sum(state in ("done", KINDS[n % 3]) for n, state in expected)
        before = _begun()
        retried = run(_sweep(POINTS), "runs", jobs=2, retry_failed=True)
        done = {n for n, state in enumerate(first.table["state"]) if state == "done"}
        again += sum((_begun() - before)[n] for n in done)
        assert place.is_dir()
    states = ", ".join(f"{first.states.get(kind, 0)} {kind}" for kind in KINDS)
    what = f"{POINTS} points ({states}; 3 Ctrl-C, 3 `kill -9`)"
    yield judged(f"{what}: points without a true end", POINTS - true, bound="0")
    yield judged("… done points that were run again", again, bound="0")
    cells = "… failed ones run again: cells unlike an undisturbed sweep"
    yield judged(cells, _unlike(calm, retried), bound="0")


def _disturbed(number: signal.Signals, chance: random.Random) -> int:
    """Run the sweep in a separate process and disturb it; how many done points were run again."""
    done, before = {p.parent.name for p in Path("runs").glob("*/DONE")}, _begun()
    command = python(COMMAND, "sweep", "run", "points.yaml", "--out", "runs", "--jobs", 2)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while _begun() == before and process.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.uniform(0.5, 5))
        process.send_signal(number)
        process.wait(60)
    keys = {point.key: n for n, point in enumerate(_sweep(POINTS).points)}
    begun = _begun() - before
    return sum(begun[keys[key]] for key in done)


def _begun() -> Counter[int]:
    """How often each point has begun."""
    tally = Path("tally")
    return Counter(map(int, tally.read_text().split())) if tally.exists() else Counter()


def _unlike(one: Results, other: Results) -> int:
    names = ["key", "state", "n", "score", "score.low", "score.high", "score.n"]
    first, second = one.table[names], other.table[names]
    return int((first != second).to_numpy().sum()) if len(first) == len(second) else len(first)


def _overhead() -> Iterator[Measurement]:
    """A point's time beyond starting a kernel, running the same cells, and ending the kernel."""
    added = []
    with _place():
        for turn in range(3):
            bare = statistics.median(_bare(n) for n in range(FEW))
            start = time.perf_counter()
            run(_sweep(FEW), f"runs{turn}")
            added.append((time.perf_counter() - start) / FEW - bare)
            say(f"{added[-1]:.2f} s beyond {bare:.2f} s")
    yield median("a point beyond its kernel's start, work and end", added, " s", "< 1")


def _bare(n: int) -> float:
    manager: Any = import_module("jupyter_client.manager")
    start = time.perf_counter()
    os.environ["WORKBENCH_RUN_DIR"] = "bare"
    try:
        kernel, client = manager.start_new_kernel(kernel_name=KERNEL)
        for code in (PARAMETERS, f"n = {n}", WORK, KEEP):
            client.execute_interactive(code, output_hook=lambda _: None)
        client.stop_channels()
        kernel.shutdown_kernel()
    finally:
        del os.environ["WORKBENCH_RUN_DIR"]
    return time.perf_counter() - start


def _shared() -> Iterator[Measurement]:
    """The same short points with one server for all, and with the model loaded in each."""
    folder = project() / "notebooks" / "sweeps"
    grid = Grid(product={"shots": [0, 1, 2, 4]}, seeds=range(SHORT // 4))
    own = Sweep(notebook=folder / "accuracy.ipynb", name="own", grid=grid, fixed={"count": COUNT})
    shared = replace(own, name="shared", serve={})
    seconds, tables = [], []
    with TemporaryDirectory() as name:
        for sweep in (shared, own):
            start = time.perf_counter()
            tables.append(run(sweep, Path(name, sweep.name), say=say).table)
            seconds.append(time.perf_counter() - start)
    say(f"{seconds[0]:.0f} s with one server, {seconds[1]:.0f} s with the model loaded in each")
    what = f"{SHORT} short points: loading in each over one server"
    yield judged(what, seconds[1] / seconds[0], " ×", "≥ 3")
    apart = (tables[0]["accuracy"] - tables[1]["accuracy"]).abs()
    failed = int((tables[0]["state"] != "done").sum() + (tables[1]["state"] != "done").sum())
    yield judged("… failed points", failed, bound="0")
    yield judged("… accuracies that differ between the two", int((apart > 0).sum()), bound="0")


PARTS: dict[str, Callable[..., Iterator[Measurement]]] = {
    "chaos": _chaos,
    "overhead": _overhead,
    "shared": _shared,
}
