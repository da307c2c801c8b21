"""Many servers behind one engine: even work, servers that die, come late, or have other weights.

A replica here has no model: it works on a few prompts at once, for a fixed time each, and others
wait, as vLLM's do. All replicas are in one separate process.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from benchmarks.bodies import Query
from benchmarks.faults import REVISION
from benchmarks.harness import (
    Measurement,
    Repeats,
    differing,
    judged,
    median,
    python,
    remote_engine,
    seconds,
)  # fmt: skip
from benchmarks.injector import Injector
from workbench.cli.output import say
from workbench.engines.remote import RemoteEngine
from workbench.types import Completion, Sampling

REPLICAS, SLOTS = 16, 8  # servers; prompts at once in each
DELAYS = (0.2, 1.0)  # seconds per prompt
COUNTS = (64, 512, 10_000)
DYING = 0.2  # seconds per prompt of servers that die
DEATH, REST = 5.0, 2.0  # seconds between two servers that die, and until each is back
LATE = 10.0  # seconds after which servers come up
GROUPS, EACH, SHARED = 64, 40, 600  # prompts that begin alike: groups, prompts, letters
SHORT = Sampling(max_tokens=8)
PROCESS = """
import asyncio, sys
from benchmarks.fleet import listen
asyncio.run(listen(int(sys.argv[1]), float(sys.argv[2])))
"""


class Replica(Injector):
    """A server that works on `SLOTS` prompts at once, `delay` seconds each."""

    def __init__(self, delay: float) -> None:
        super().__init__(revision=REVISION)
        self._delay = delay
        self._slots = asyncio.Semaphore(SLOTS)

    async def _answer(self, request: web.BaseRequest, query: Query) -> web.StreamResponse:
        await asyncio.gather(*(self._work() for _ in query.keys))
        return await super()._answer(request, query)

    async def _work(self) -> None:
        async with self._slots:
            await asyncio.sleep(self._delay)


async def listen(count: int, delay: float) -> None:
    """Serve replicas and print their ports; then print what each has answered, on request."""
    replicas = [Replica(delay) for _ in range(count)]
    for one in replicas:
        await one._open()
    print(json.dumps([one._port for one in replicas]), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, input):
        word, which = line.split()
        one = replicas[int(which)]
        if word == "stop":
            await one._down()
        elif word == "start":
            await one._open()
        print(json.dumps(dict(one.answered)), flush=True)


class Replicas:
    """Replicas in a separate process."""

    def __init__(self, count: int, delay: float) -> None:
        command = python(PROCESS, count, delay)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.urls = [f"http://127.0.0.1:{port}/v1" for port in self._read()]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def order(self, word: str, which: int) -> Counter[str]:
        """Have one "stop", "start" or "show"; returns how often it answered each prompt."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word} {which}\n")
        self._process.stdin.flush()
        return Counter(self._read())

    def answered(self) -> Counter[str]:
        """How often each prompt was answered, by any of them."""
        return sum((self.order("show", i) for i in range(len(self.urls))), Counter[str]())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def replicas(delay: float, count: int = REPLICAS) -> Iterator[Replicas]:
    """So many replicas, while the block runs."""
    started = Replicas(count, delay)
    try:
        yield started
    finally:
        started.close()


def measure(repeats: Repeats = 3) -> list[Measurement]:
    """Sixteen servers behind one engine: even work, servers that die or come late, prefixes."""
    rows: list[Measurement] = []
    for delay in DELAYS:
        say(f"{REPLICAS} servers, {delay:g} s per prompt …")
        rows += _shares(delay, repeats)
    say("prompts that begin alike …")
    rows += _prefixes()
    say("a server dies every few seconds …")
    rows += _dying(COUNTS[-1])
    say("servers that come up later …")
    return [*rows, _late(COUNTS[-1])]


def _shares(delay: float, repeats: int) -> Iterator[Measurement]:
    with replicas(delay) as servers:
        for count in COUNTS:
            best = -(-count // (REPLICAS * SLOTS)) * delay
            if best > 60:
                continue
            shares = []
            for run in range(repeats):
                prompts = [f"{run}: prompt {i} of {count}" for i in range(count)]
                with remote_engine(servers.urls) as engine:
                    rows: list[Completion] = []
                    taken = seconds(lambda: rows.extend(engine.generate(prompts, SHORT)))  # noqa: B023
                assert not differing(
                    [row.text for row in rows], [f"answer to {p}" for p in prompts]
                )
                shares.append(best / taken)
            what = f"{count:,} prompts of {delay:g} s on {REPLICAS} servers: speed over even shares"
            yield median(what, shares, " ×", "≥ 0.9")


def _prefixes() -> Iterator[Measurement]:
    beginnings = [f"{group:03} " * (SHARED // 4) for group in range(GROUPS)]
    prompts = [f"{start}question {i}" for i in range(EACH) for start in beginnings]
    with replicas(DELAYS[0]) as servers:
        with remote_engine(servers.urls) as engine:
            engine.generate(prompts, SHORT)
        by_server = [Counter(key[:4] for key in servers.order("show", i)) for i in range(REPLICAS)]
    met = [max(one[start[:4]] for one in by_server) / EACH for start in beginnings]
    what = f"{GROUPS} groups of {EACH} prompts that begin alike: share of a group on one server"
    yield judged(what, 100 * sum(met) / len(met), " %")
    loads = [one.total() for one in by_server]
    yield judged(
        "… work of the busiest server over the mean", max(loads) * REPLICAS / len(prompts), " ×"
    )


def _dying(count: int) -> Iterator[Measurement]:
    prompts, ended = [f"prompt {i}" for i in range(count)], threading.Event()
    deaths = [0]

    def kill() -> None:
        while not ended.wait(DEATH):
            which = deaths[0] % REPLICAS
            servers.order("stop", which)
            deaths[0] += 1
            ended.wait(REST)
            servers.order("start", which)

    with replicas(DYING) as servers, remote_engine(servers.urls) as engine:
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            rows = engine.generate(prompts, SHORT, errors="return")
        finally:
            ended.set()
            killer.join()
        answered = servers.answered()
    right = count - differing([row.text for row in rows], [f"answer to {p}" for p in prompts])
    what = f"{count:,} prompts, a server of {REPLICAS} dies every {DEATH:g} s ({deaths[0]} deaths)"
    yield judged(f"{what}: answered, in order", right, bound=f"{count}")
    twice = sum(times > 1 for times in answered.values())
    yield judged("… of them answered twice by servers", twice, bound="0")


def _late(count: int) -> Measurement:
    """Half of the servers are listed from the beginning, the others once they are up."""
    with replicas(DYING) as servers, tempfile.TemporaryDirectory() as folder:
        listed, half = Path(folder, "servers.txt"), REPLICAS // 2
        listed.write_text("\n".join(servers.urls[:half]))
        timer = threading.Timer(LATE, listed.write_text, ["\n".join(servers.urls)])
        timer.start()
        options: dict[str, Any] = {"base_url": str(listed)}
        with RemoteEngine(None, None, "benchmark", options) as engine:
            engine.generate([f"prompt {i}" for i in range(count)], SHORT)
        timer.join()
        late = sum(servers.order("show", i).total() for i in range(half, REPLICAS))
    what = (
        f"{half} of {REPLICAS} servers are listed {LATE:g} s later: share of the work that they do"
    )
    return judged(what, 100 * late / count, " %", "> 0")
