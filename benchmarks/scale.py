"""One client with 1 to 1,000 replicas: its CPU per prompt, its memory, and what its store takes.

Replicas are ports of one process that answer after a delay; the client is a separate process with a
store. Both share the cores of this machine, so the client's CPU time is measured, not how long a
run takes. As a client uses one core, the replicas that it keeps busy follow from that.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import resource
import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web

from benchmarks.faults import REVISION
from benchmarks.harness import Measurement, Parts, Repeats, judged, median, output_of, run_parts
from benchmarks.harness import python as command
from benchmarks.injector import Injector
from workbench.cli.output import say
from workbench.merging import merge
from workbench.store import Store, digest, dump
from workbench.types import Completion, LabelRow

ROOT = Path(__file__).parent.parent
REPLICAS = (1, 10, 100, 1000)
SPEEDS, MIDDLE = (10, 100, 1000), 100  # prompts per second of a replica: what is assumed
KINDS = ("generate", "label_logprobs")
DELAY = 0.2  # seconds per request
TOGETHER = 64  # prompts in a request, as in a call with many prompts per replica
LEAST = 20_000  # prompts of a run
QUEUES = (10_000, 100_000)  # prompts of one call, for the memory
ROWS, KEPT = 100_000_000, 30_000  # of a large store, and of each run here
VOCABULARY = 128_000
CPU = "`{}`, {:,} replicas: client CPU per prompt"
MEMORY = "`generate`, {:,} prompts in a call to {:,} replicas: peak memory"
BYTES = "bytes per row in the store, {}"

CLIENT = """
import json, resource, sys
from pathlib import Path
from workbench import Sampling
from workbench.engines.remote import RemoteEngine
from workbench.store import Store
from benchmarks.scale import TOGETHER, many_files

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

many_files()
(ports, kind, counts, path), runs, start = json.loads(sys.argv[1]), [], cpu()
options = {"base_url": [f"http://127.0.0.1:{port}/v1" for port in ports]}
options |= {"prompts_per_request": TOGETHER}
with RemoteEngine(None, Store(Path(path)), "benchmark", options) as engine:
    opened = cpu() - start
    for run, count in enumerate(counts):
        prompts = [f"prompt {run}/{number}" for number in range(count)]
        start = cpu()
        if kind == "generate":
            rows = engine.generate(prompts, Sampling(max_tokens=8))
            assert all(row.text == f"answer to {p}" for p, row in zip(prompts, rows))
        else:
            assert not engine.label_logprobs(prompts, ["a", "b"]).missing.any()
        runs.append((cpu() - start) / count)
    assert engine.usage.from_store == 0
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"opened": opened, "runs": runs, "peak": peak}))
"""
FLEET = """
import asyncio, sys
from benchmarks.scale import listen
asyncio.run(listen(int(sys.argv[1])))
"""


def measure(part: Parts = None, repeats: Repeats = 3) -> list[Measurement]:
    """One client of 1 to 1,000 replicas, its memory, and the size and speed of its store."""
    return run_parts(PARTS, part, repeats=repeats)


def many_files() -> None:
    """Allow this process as many connections as it may have."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def listen(count: int) -> None:
    """Serve on so many ports, print them, and do not end."""
    many_files()
    server = web.Server(Injector(latency=DELAY, revision=REVISION)._serve, access_log=None)
    loop, ports = asyncio.get_running_loop(), []
    for _ in range(count):
        listener = await loop.create_server(server, "127.0.0.1", 0, backlog=512)
        ports.append(listener.sockets[0].getsockname()[1])
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


@contextmanager
def fleet(count: int) -> Iterator[list[int]]:
    """The ports of so many replicas."""
    with subprocess.Popen(command(FLEET, count), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


def _client(count: int, kind: str, counts: Sequence[int]) -> Any:
    """Calls with so many prompts each, by a client in a separate process."""
    with fleet(count) as ports, tempfile.TemporaryDirectory() as folder:
        given = [ports, kind, counts, str(Path(folder, "store.sqlite"))]
        return output_of(CLIENT, json.dumps(given))


def _cpu(repeats: int) -> Iterator[Measurement]:
    opened: dict[int, float] = {}
    for kind in KINDS:
        per_prompt: dict[int, float] = {}
        for count in REPLICAS:
            prompts = max(LEAST, TOGETHER * count)
            done = _client(count, kind, [TOGETHER * count, *[prompts] * repeats])
            runs = [1000 * one for one in done["runs"][1:]]  # the first one connects
            say(f"{kind}, {count:,} replicas: {runs} ms")
            opened.setdefault(count, done["opened"])
            per_prompt[count] = statistics.median(runs)
            yield median(CPU.format(kind, count), runs, " ms")
        for speed in SPEEDS:
            what = f"… replicas of {speed:,} prompts per second that one client keeps busy"
            yield judged(what, float(f"{kept_busy(per_prompt, speed):.2g}"))
    least, most = min(REPLICAS), max(REPLICAS)
    each = 1000 * (opened[most] - opened[least]) / (most - least)
    yield judged("opening an engine: client CPU per replica", each, " ms", "≤ 10")


def kept_busy(per_prompt: dict[int, float], speed: float) -> float:
    """Replicas of this speed at which the client's core is full.

    Args:
        per_prompt: milliseconds of CPU per prompt, by replicas; between them the logarithm of
            one is linear in that of the other, and beyond them it is constant.
        speed: prompts per second of a replica.
    """
    import numpy as np

    measured = np.log([[count, cost] for count, cost in sorted(per_prompt.items())]).T
    low, high = math.log(1e-3), math.log(1e9)
    for _ in range(100):  # the load of a client grows with the replicas
        middle = (low + high) / 2
        load = math.exp(middle + np.interp(middle, *measured)) * speed / 1000
        low, high = (middle, high) if load < 1 else (low, middle)
    return math.exp(low)


def _memory() -> Iterator[Measurement]:
    peaks = {}
    for count, replicas in [*((count, 100) for count in QUEUES), (QUEUES[0], max(REPLICAS))]:
        peaks[count, replicas] = _client(replicas, "generate", [count])["peak"]
        yield judged(MEMORY.format(count, replicas), peaks[count, replicas], " MB")
    few, many = (peaks[count, 100] for count in QUEUES)
    each = (many - few) / (QUEUES[1] - QUEUES[0])
    yield judged("… per further prompt", 1000 * each, " kB")
    yield judged("… extrapolated to 1,000,000 prompts", few + each * (10**6 - QUEUES[0]), " MB")


@cache
def _english() -> str:
    pages = sorted((ROOT / "docs").glob("*.md"))
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def completion(number: int, tokens: int) -> Completion:
    """English text with a token for each four characters, of a large vocabulary."""
    start = random.Random(number).randrange(len(_english()) - 4 * tokens)
    text = _english()[start : start + 4 * tokens]
    pieces = (text[at : at + 4] for at in range(0, 4 * tokens, 4))
    ids = tuple(zlib.crc32(piece.encode()) % VOCABULARY for piece in pieces)
    return Completion(
        text=text, finish_reason="stop", token_ids=ids, prompt_tokens=90, completion_tokens=tokens
    )


def label_row(number: int) -> LabelRow:
    """The scores of two labels, as vLLM gives them."""
    draw = random.Random(number)
    scores = (-draw.expovariate(1), -draw.expovariate(0.2))
    return LabelRow(0, scores, upper=scores, lengths=(1, 1))


ANSWERS: dict[str, Callable[[int], Completion | LabelRow]] = {
    "completions of 64 tokens": lambda number: completion(number, 64),
    "completions of 512 tokens": lambda number: completion(number, 512),
    "scores of two labels": label_row,
}


def _store(repeats: int) -> Iterator[Measurement]:
    with tempfile.TemporaryDirectory() as folder:
        for name, make in ANSWERS.items():
            path, rates = Path(folder, name), []
            with closing(Store(path)) as store:
                for run in range(repeats):
                    numbers = range(run * KEPT, (run + 1) * KEPT)
                    rows = [(digest(name, number), dump(make(number))) for number in numbers]
                    start = time.process_time()
                    for at in range(0, KEPT, TOGETHER):
                        store.put(rows[at : at + TOGETHER])
                    rates.append(KEPT / (time.process_time() - start))
            size = path.stat().st_size / (repeats * KEPT)
            yield judged(BYTES.format(name), size)
            yield judged(f"… {ROWS:,} rows", size * ROWS / 1e9, " GB")
            yield median(f"… `Store.put`, {TOGETHER} rows each: rows per second of CPU", rates)
        yield _merged(folder, repeats)


def _merged(folder: str, repeats: int) -> Measurement:
    """Rows per second of merging completions into stores that have as many other rows."""
    source, _, other = (Path(folder, name) for name in ANSWERS)
    rates = []
    for run in range(repeats):
        into = Path(folder, f"all-{run}")
        merge(into, [other])
        start = time.process_time()
        done = merge(into, [source])
        rates.append(sum(one.new for one in done) / (time.process_time() - start))
        into.unlink()
    what = f"`workbench store merge`, {repeats * KEPT:,} rows into as many: rows per second of CPU"
    return median(what, rates)


PARTS: dict[str, Callable[..., Iterator[Measurement]]] = {
    "cpu": _cpu,
    "memory": _memory,
    "store": _store,
}


def draw(rows: Sequence[Measurement], file: Path) -> None:
    """What a client can ask and what replicas answer; what the store takes."""
    from workbench.plots.theme import new_figure, save

    value = {row.what: row.value for row in rows}
    figure, (left, right) = new_figure(2, height=3.2)
    _draw_load(left, value)
    _draw_sizes(right, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    save(figure, file)


def _draw_load(ax: Any, value: Mapping[str, float]) -> None:
    from workbench.plots.theme import COLOURS, SOFT, TEXT, finding, label_ends, line_style

    ends, busy = [], {}
    for number, kind in enumerate(KINDS):
        costs = {count: value[CPU.format(kind, count)] for count in REPLICAS}
        rates = [1000 / cost for cost in costs.values()]
        ax.plot(REPLICAS, rates, **line_style(number))
        ends.append((kind, COLOURS[number], rates[-1]))
        busy[kind] = kept_busy(costs, MIDDLE)
    for speed in SPEEDS:
        ax.plot(REPLICAS, [speed * count for count in REPLICAS], color=SOFT, linewidth=1,
                linestyle="--", zorder=1)  # fmt: skip
        ax.annotate(f"{speed:,} each", (1.4, 1.25 * speed), color=SOFT, fontsize=TEXT, va="center")
    dashed = ", ".join(f"{speed:,}" for speed in SPEEDS)
    ax.set(xscale="log", yscale="log", ylim=(5, 40_000), ylabel="prompts per second")
    ax.set_xlabel(f"replicas (dashed: of {dashed} prompts per second)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    label_ends(ax, ends, "one client")
    numbers = " to ".join(f"{float(f'{one:.2g}'):,.0f}" for one in sorted(busy.values()))
    finding(ax, f"One client keeps {numbers} replicas of {MIDDLE} prompts per second busy")


def _draw_sizes(ax: Any, value: Mapping[str, float]) -> None:
    from workbench.plots.theme import finding, label_ends, line_style

    ends, sizes = [], {}
    for number, name in enumerate(ANSWERS):
        each = value[BYTES.format(name)] / 1e9
        style, rows = line_style(number), [10**power for power in range(4, 9)]
        ax.plot(rows, [count * each for count in rows], **style)
        sizes[name] = ROWS * each
        ends.append((name.rpartition(" of ")[2], style["color"], sizes[name]))
    ax.set(xscale="log", yscale="log", xlabel="rows in the store", ylabel="GB")
    ax.yaxis.set_major_formatter("{x:g}")
    label_ends(ax, ends)
    first, longer, _ = ANSWERS
    finding(ax, f"10⁸ {first} take {sizes[first]:,.0f} GB, {longer} {sizes[longer]:,.0f}")
