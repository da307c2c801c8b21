"""The diffusion server under load: many clients against one, bursts, cancellations, its memory.

The server is a separate process with the model that has memorised 64 answers; clients run here.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from itertools import cycle, islice
from typing import Any

import aiohttp
import numpy as np
import psutil

from benchmarks.harness import Measurement, judged, ratio
from tools.training.memoriser import MEMORISER, pairs
from workbench.cli.output import say
from workbench.errors import EngineError

CLIENTS = 32
REQUESTS = 256
SLOTS = 8
BURSTS = 20
ROUNDS = 10
AT_ONCE = 512
SPOILT = 20
"""One in so many is cancelled early, and one is malformed."""
LENGTHS = (16, 24, 32, 48, 64, 96, 128)

Body = dict[str, Any]


@contextlib.contextmanager
def served(max_wait_time: float) -> Iterator[tuple[str, int]]:
    """Run a server; yields its root URL and its process id."""
    line = [sys.executable, "-m", "workbench", "serve", "diffusion"]
    line += ["--batch-size", str(SLOTS), "--max-wait-time", str(max_wait_time)]
    line += ["--model", str(MEMORISER)]
    line += ["--option", "device=cpu", "--option", "threshold=0.9"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise EngineError(f"the server ended with code {process.wait()}")
            yield url.removesuffix("/v1"), process.pid
        finally:
            process.terminate()


def _bodies(count: int) -> list[Body]:
    prompts = islice(cycle(pairs()), count)
    return [
        {"prompt": prompt, "max_tokens": LENGTHS[index % len(LENGTHS)], "temperature": 0}
        for index, (prompt, _) in enumerate(prompts)
    ]


async def _ask(session: Any, root: str, body: Body) -> str:
    async with session.post(f"{root}/v1/completions", json=body) as reply:
        answer = await reply.json()
        if reply.status != 200:
            raise EngineError(f"{reply.status}: {answer}")
        return str(answer["choices"][0]["text"])


async def _all(session: Any, root: str, bodies: list[Body], clients: int) -> list[str]:
    """All answers in order, from a number of clients that each ask one request after another."""
    answers = [""] * len(bodies)
    waiting = iter(enumerate(bodies))

    async def client() -> None:
        for index, body in waiting:
            answers[index] = await _ask(session, root, body)

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


def _within(work: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine with a new session."""

    async def run() -> Any:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await work(session)

    return asyncio.run(run())


def speed(repeats: int) -> list[Measurement]:
    """Many clients against one; how long a full batch waits, and `/health` meanwhile."""
    bodies = _bodies(REQUESTS)
    faster: list[float] = []
    delays: list[float] = []
    share = 0.0
    with served(0.0) as (root, pid):
        process = psutil.Process(pid)
        _within(lambda session: _all(session, root, bodies[:32], 8))  # warm
        for number in range(repeats):
            say(f"round {number + 1} of {repeats}")
            start = time.perf_counter()
            alone = _within(lambda session: _all(session, root, bodies, 1))
            between = time.perf_counter()
            used = sum(process.cpu_times()[:2])
            together = _within(lambda session: _probed(session, root, bodies, delays))
            taken = time.perf_counter() - between
            share = (sum(process.cpu_times()[:2]) - used) / taken
            if alone != together:
                raise EngineError("answers differ between one client and many")
            faster.append((between - start) / taken)
    with served(30.0) as (root, _):
        waited = _within(lambda session: _bursts(session, root))
    late = 1000 * float(np.quantile(delays, 0.99))
    what = f"the server with {CLIENTS} clients over one ({share:.1f} of its cores busy)"
    probed = f"/health while {CLIENTS} clients are served, p99 of {len(delays)}"
    return [
        ratio(what, faster),
        judged(f"a burst of {SLOTS}: added wait, p95", waited, " ms", "≤ 5"),
        judged(probed, late, " ms", "≤ 50"),
    ]


async def _probed(session: Any, root: str, bodies: list[Body], delays: list[float]) -> list[str]:
    """As `_all`, with regular requests to `/health`."""

    async def probe() -> None:
        while True:
            start = time.perf_counter()
            async with session.get(f"{root}/health") as reply:
                await reply.read()
            delays.append(time.perf_counter() - start)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(probe())
    try:
        return await _all(session, root, bodies, CLIENTS)
    finally:
        task.cancel()


async def _bursts(session: Any, root: str) -> float:
    """Milliseconds from arrival to first forward (p95), for batches that arrive full."""
    prompts = [prompt for prompt, _ in pairs()[:SLOTS]]
    for _ in range(BURSTS):
        await _ask(session, root, {"prompt": prompts, "max_tokens": 16})
    async with session.get(f"{root}/batch/stats") as reply:
        stats = await reply.json()
    return 1000 * float(stats["wait_seconds"]["p95"])


def load() -> list[Measurement]:
    """Rounds of many requests at once, some malformed, some cancelled; all others are answered."""
    lost = good = other = 0
    texts: dict[str, str] = {}
    sizes: list[int] = []
    with served(0.1) as (root, pid):
        for number in range(ROUNDS):
            say(f"round {number + 1} of {ROUNDS}")
            answers = _within(lambda session: _round(session, root))
            good += len(answers)
            for body, text in answers:
                lost += text is None
                other += text is not None and texts.setdefault(str(body), text) != text
            sizes.append(psutil.Process(pid).memory_info().rss)
    grown = 100 * (sizes[-1] / sizes[1] - 1)
    what = f"{AT_ONCE} at once, 5 % cancelled, 5 % malformed, {ROUNDS} rounds: "
    answered = 100 * (1 - lost / good)
    return [
        judged(f"{what}good ones answered of {good:,}", answered, " %", "100"),
        judged("… differently from the same request before", other, bound="0"),
        judged("… growth of memory from the 2nd round on", grown, " %", "≤ 5"),
    ]


async def _round(session: Any, root: str) -> list[tuple[Body, str | None]]:
    """The good requests of a round with their answers, None for one that failed."""
    bodies = _bodies(AT_ONCE)
    tasks: list[tuple[Body, asyncio.Task[str]]] = []
    others: list[asyncio.Task[str]] = []
    for index, body in enumerate(bodies):
        kind = index % SPOILT
        sent = body | {"temperature": "hot"} if kind == 0 else body
        task = asyncio.create_task(_ask(session, root, sent))
        if kind > 1:
            tasks.append((body, task))
            continue
        others.append(task)
        if kind == 1:
            asyncio.get_running_loop().call_later(0.2 + index / 1000, task.cancel)
    await asyncio.gather(*others, *(task for _, task in tasks), return_exceptions=True)
    return [(body, None if task.exception() else task.result()) for body, task in tasks]
