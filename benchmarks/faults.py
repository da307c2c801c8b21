"""The remote engine under faults: errors, limits, a killed server, a long queue.

Faults come from a server that injects them; the server that is killed and restarted is a real vLLM.
"""

from __future__ import annotations

import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.client import sums
from benchmarks.harness import (
    Measurement,
    differing,
    judged,
    output_of,
    remote_engine,
    seconds,
    stored,
)
from benchmarks.injector import Faults, Injector
from workbench.cli.output import say
from workbench.serving import serve
from workbench.types import Completion, Sampling

KINDS = ("rate_429", "rate_500", "rate_reset", "rate_half", "rate_malformed", "rate_hang")
RATE = 0.05  # of each kind
CAPACITY, LATENCY = 16, 0.5
REVISION = "0123456789ab"  # listed like that of our servers, so no fingerprint is requested
SHORT = Sampling(max_tokens=8)
SERVED = "vllm:request_success_total{"

# In a separate process, so that only the client's memory is measured.
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


def measure(
    requests: Annotated[int, typer.Option(min=100, help="Requests with faults.")] = 10_000,
    queued: Annotated[int, typer.Option(min=1000, help="Prompts in the queue.")] = 100_000,
) -> list[Measurement]:
    """The remote engine with servers that fail, are full or are killed; and with a long queue."""
    say("faults …")
    rows = _faults(requests)
    say("a server with an unreported capacity …")
    rows += _capacity(500)
    say("a long queue …")
    rows += _queue(queued)
    say("a real server is killed and started again …")
    return [*rows, _killed(1024)]


def _faults(count: int) -> list[Measurement]:
    prompts = [f"prompt {i}" for i in range(count)]
    rates: dict[str, Any] = dict.fromkeys(KINDS, RATE)
    start = time.perf_counter()
    with (
        Injector(Faults(**rates), revision=REVISION) as server,
        remote_engine(server.url, prompts_per_request=1, timeout=2.0) as engine,
    ):
        rows = engine.generate(prompts, SHORT, errors="return")
        retries = engine.usage.retries
    right = count - differing([row.text for row in rows], [f"answer to {p}" for p in prompts])
    once = sum(times == 1 for times in server.answered.values())
    taken = f"{time.perf_counter() - start:.0f} s, {retries:,} retries"
    kinds = f"{RATE:.0%} each of 429, 500, reset, half a body, malformed JSON, hang"
    what = f"{count:,} requests, {kinds}: answered, in order ({taken})"
    return [
        judged(what, right, bound=f"{count}"),
        judged("… of them answered once by the server", once, bound=f"{count}"),
    ]


def _capacity(count: int) -> list[Measurement]:
    prompts = [f"prompt {i}" for i in range(count)]
    full = Injector(capacity=CAPACITY, latency=LATENCY, vllm=False)
    with full as server, remote_engine(server.url, prompts_per_request=1) as engine:
        taken = seconds(lambda: engine.generate(prompts, SHORT))
    what = f"a server of capacity {CAPACITY} that answers 429 above it, {count} requests"
    ideal = count * LATENCY / CAPACITY
    return [
        judged(f"{what}: makespan over ideal", taken / ideal, " ×", "≤ 1.25"),
        judged("… 429s", server.faults["capacity"], bound="≤ 35"),
    ]


def _queue(count: int) -> list[Measurement]:
    with Injector(revision=REVISION) as server:
        reply = output_of(QUEUE, server.url, count)
    what = f"peak memory of the client, {count:,} queued prompts"
    return [
        judged(what, reply["peak"], " MB", "< 500"),
        judged("… tasks at once, at most", reply["tasks"], bound="< 1,000"),
    ]


def _killed(count: int) -> Measurement:
    """SIGKILL halfway, a restart on the same port, the same call resumes.

    The new server's own counter has its number of requests: at most those without an answer yet.
    """
    texts, sampling = sums(count), Sampling(max_tokens=32, ignore_eos=True)
    got: dict[int, Completion] = {}
    arrived: list[int] = []
    with tempfile.TemporaryDirectory() as folder, serve() as server:

        def crash() -> None:
            server.kill()
            time.sleep(2)  # answers in flight arrive
            arrived.append(len(got))
            server.restart()

        store = Path(folder) / "store.sqlite"
        options = {"prompts_per_request": 8, "max_concurrency": 16}
        with remote_engine(server.url, store, **options) as engine:
            crashing = threading.Thread(target=crash)
            for index, row in engine.stream(texts, sampling):
                got[index] = row
                if len(got) == count // 2:
                    crashing.start()
            crashing.join()
            in_store = stored(store)
        requests = _served(server.url)
    lost = count - sum(row.error is None for row in got.values())
    again = requests - (count - arrived[0])
    what = (
        f"real server killed after {arrived[0]} of {count} answers and started again: {lost} lost, "
        f"{in_store} kept, asked again though answered"
    )
    return judged(what, again, bound="0, none lost", also=lost == 0 and in_store == count)


def _served(url: str) -> int:
    """Requests that the server has finished since it started."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as page:
        lines = page.read().decode().splitlines()
    return round(sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(SERVED)))
