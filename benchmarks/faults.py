"""The remote engine where things go wrong: faults, limits, a killed server, a long queue.

Faults come from a server that makes them; what is killed and started again is a real vLLM.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.client import sums
from benchmarks.injector import Faults, Injector
from benchmarks.table import Row
from workbench.engines.remote import RemoteEngine
from workbench.serving import serve
from workbench.store import Store
from workbench.types import Completion, Sampling

KINDS = ("rate_429", "rate_500", "rate_reset", "rate_half", "rate_malformed", "rate_hang")
RATE = 0.05  # of each kind
CAPACITY, LATENCY = 16, 0.5
REVISION = "0123456789ab"  # as our servers list one: no fingerprint is among the requests
SERVED = "vllm:request_success_total{"
Say = Callable[[str], None]

# In a process of its own, so that its memory is the client's alone.
QUEUE = """
import asyncio, json, resource, sys, threading, time
from workbench import Sampling
from workbench.engines.remote import RemoteEngine
from workbench.engines.remote.http import background_loop
url, count = sys.argv[1], int(sys.argv[2])
most, done = 0, False
def watch():
    global most
    while not done:
        most = max(most, len(asyncio.all_tasks(background_loop())))
        time.sleep(0.05)
with RemoteEngine(None, None, "benchmark", {"base_url": url}) as engine:
    threading.Thread(target=watch, daemon=True).start()
    rows = engine.generate([f"prompt {i}" for i in range(count)], Sampling(max_tokens=8))
    done = True
assert all(row.text == f"answer to prompt {i}" for i, row in enumerate(rows))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"peak": peak, "tasks": most}))
"""


def measure(requests: int, queued: int, say: Say) -> list[Row]:
    """Run all measurements; takes some minutes.

    Args:
        requests: how many meet faults.
        queued: how many prompts wait while the client's memory is measured.
    """
    say("faults …")
    rows = _faults(requests)
    say("a server of a capacity that it does not tell …")
    rows += _capacity(500)
    say("a long queue …")
    rows += _queue(queued)
    say("a real server is killed and started again …")
    return [*rows, _killed(1024)]


def _single(url: str, **options: Any) -> RemoteEngine:
    """An engine that sends one prompt a request."""
    given = {"base_url": url, "prompts_per_request": 1, **options}
    return RemoteEngine(None, None, "benchmark", given)


def _faults(count: int) -> list[Row]:
    prompts = [f"prompt {i}" for i in range(count)]
    faults = Faults(**dict.fromkeys(KINDS, RATE))  # type: ignore[arg-type]
    start = time.perf_counter()
    with Injector(faults, revision=REVISION) as server, _single(server.url, timeout=2.0) as engine:
        rows = engine.generate(prompts, Sampling(max_tokens=8), errors="return")
        retries = engine.usage.retries
    right = sum(row.text == f"answer to {p}" for row, p in zip(rows, prompts, strict=True))
    once = sum(times == 1 for times in server.answered.values())
    took = f"{time.perf_counter() - start:.0f} s, {retries:,} asked again"
    kinds = f"{RATE:.0%} each of 429, 500, reset, half a body, malformed JSON, hang"
    return [
        Row(f"{count:,} requests, {kinds}: answered, in order ({took})", right, "", f"{count}",
            right == count),
        Row("… of them answered once by the server", once, "", f"{count}", once == count),
    ]  # fmt: skip


def _capacity(count: int) -> list[Row]:
    prompts = [f"prompt {i}" for i in range(count)]
    full = Injector(capacity=CAPACITY, latency=LATENCY, vllm=False)
    with full as server, _single(server.url) as engine:
        start = time.perf_counter()
        engine.generate(prompts, Sampling(max_tokens=8))
        ratio = (time.perf_counter() - start) / (count * LATENCY / CAPACITY)
    refused = server.faults["capacity"]
    what = f"a server of capacity {CAPACITY} that answers 429 above it, {count} requests"
    return [
        Row(f"{what}: makespan over ideal", ratio, " ×", "≤ 1.25 ×", ratio <= 1.25),
        Row("… 429s", refused, "", "≤ 35", refused <= 35),
    ]


def _queue(count: int) -> list[Row]:
    with Injector(revision=REVISION) as server:
        command = [sys.executable, "-c", QUEUE, server.url, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    peak, tasks = found["peak"], found["tasks"]
    return [
        Row(f"peak memory of the client, {count:,} queued prompts", peak, " MB", "< 500 MB",
            peak < 500),
        Row("… tasks at once, at most", tasks, "", "< 1,000", tasks < 1000),
    ]  # fmt: skip


def _killed(count: int) -> Row:
    """SIGKILL halfway, a new start on the same port, the same call goes on.

    The new server's own counter tells how many it was asked: no more than had not arrived.
    """
    texts, sampling = sums(count), Sampling(max_tokens=32, ignore_eos=True)
    got: dict[int, Completion] = {}
    arrived: list[int] = []
    with tempfile.TemporaryDirectory() as folder, serve() as server:

        def crash() -> None:
            server.kill()
            time.sleep(2)  # what was on its way arrives
            arrived.append(len(got))
            server.restart()

        store = Store(Path(folder) / "store.sqlite")
        options = {"base_url": server.url, "prompts_per_request": 8, "max_concurrency": 16}
        with RemoteEngine(None, store, "benchmark", options) as engine:
            crashing = threading.Thread(target=crash)
            for index, row in engine.stream(texts, sampling):
                got[index] = row
                if len(got) == count // 2:
                    crashing.start()
            crashing.join()
            kept = len(store)
        asked = _served(server.url)
    lost = count - sum(row.error is None for row in got.values())
    again = asked - (count - arrived[0])
    what = (
        f"real server killed after {arrived[0]} of {count} answers and started again: {lost} lost, "
        f"{kept} kept, asked again though answered"
    )
    return Row(what, again, "", "0, none lost", lost == 0 and again == 0 and kept == count)


def _served(url: str) -> int:
    """Requests that the server has finished since it started."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as page:
        lines = page.read().decode().splitlines()
    return round(sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(SERVED)))
