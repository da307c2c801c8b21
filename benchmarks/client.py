"""The remote engine against other ways to send the same prompts to the same vLLM server.

Embedded model, 16-token answers, server and client on one machine. Runs alternate, and each ratio
is within one round. Other clients run against a server with vLLM's own settings, as in practice.
The settings of `workbench serve` suit them better, so their results with it are reported too.
With `--peers`, the other client is lm-evaluation-harness.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from benchmarks.harness import (
    Measurement,
    Peers,
    Repeats,
    median,
    ratio,
    ratios,
    remote_engine,
    seconds,
    vllm_engine,
)
from benchmarks.lmeval import harness_speed
from workbench.cli.output import say
from workbench.engines.remote import RemoteEngine
from workbench.serving import Server, serve
from workbench.types import Sampling

SAMPLING = Sampling(max_tokens=16, ignore_eos=True)
SEQUENCES = 256  # per step of the model, on both sides
WORKERS, CHUNK = 64, 8
# Settings that `workbench serve` chooses on a CPU, removed.
PLAIN: dict[str, Any] = dict.fromkeys(
    (
        "block_size",
        "distributed_executor_backend",
        "dtype",
        "enable_chunked_prefill",
        "enforce_eager",
        "max_num_seqs",
    )
)
Client = Callable[[Sequence[str]], object]


def sums(count: int, seed: int = 0) -> list[str]:
    """Different short prompts, for which the model is fast and a client's overhead shows."""
    rng = random.Random(f"client-{seed}")
    pairs = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(count)]
    return [f"{number}+{a}+{b}=" for number, (a, b) in enumerate(pairs)]


def measure(
    repeats: Repeats = 5,
    prompts: Annotated[int, typer.Option(min=128, help="How many are sent in a round.")] = 1024,
    peers: Peers = None,
) -> list[Measurement]:
    """The remote engine against other clients of the same vLLM server."""
    say("a server with vLLM's own settings starts …")
    with serve(**PLAIN) as server:
        if peers is not None:
            return _against_harness(server, repeats, prompts, peers)
        rows = _against_clients(server, repeats, prompts)
    say("a server of `workbench serve` starts …")
    with serve(max_num_seqs=SEQUENCES) as server:
        return rows + _against_engine(server, repeats, prompts)


def _against_clients(server: Server, repeats: int, prompts: int) -> list[Measurement]:
    with remote_engine(server.url) as engine:
        rates, _ = _in_turns(_clients(server, engine), repeats, prompts)
    return [
        _over(f"over {WORKERS} workers × {CHUNK} prompts in sequence", rates, "sequence", 5),
        _over(f"over `AsyncOpenAI` with a semaphore of {WORKERS}", rates, "semaphore", 4),
    ]


def _against_engine(server: Server, repeats: int, prompts: int) -> list[Measurement]:
    with remote_engine(server.url) as engine, vllm_engine(max_num_seqs=SEQUENCES) as inside:
        clients = _clients(server, engine)
        clients["inside"] = lambda texts: inside.generate(texts, SAMPLING)
        rates, cpu = _in_turns(clients, repeats, prompts)
    return [
        _over("share of the engine in process", rates, "inside", 0.4),
        median("client CPU, milliseconds per prompt", cpu, " ms", "< 0.3"),
        _over("on `workbench serve`: over the workers in sequence", rates, "sequence", 0),
        _over("on `workbench serve`: over `AsyncOpenAI`", rates, "semaphore", 0),
    ]


def _clients(server: Server, engine: RemoteEngine) -> dict[str, Client]:
    return {
        "ours": lambda texts: engine.generate(texts, SAMPLING),
        "sequence": lambda texts: _in_sequence(server, texts),
        "semaphore": lambda texts: asyncio.run(_with_semaphore(server, texts)),
    }


def _in_turns(
    clients: Mapping[str, Client], repeats: int, prompts: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Each client's prompts per second, one value per round, and our own CPU, ms per prompt."""
    for client in clients.values():
        client(sums(128, seed=-1))
    rates: dict[str, list[float]] = {name: [] for name in clients}
    cpu = []
    for number in range(repeats):
        for name, client in clients.items():
            before = time.process_time()
            rates[name].append(_rate(client, sums(prompts, number)))
            if name == "ours":
                cpu.append(1000 * (time.process_time() - before) / prompts)
        say(", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items()))
    return rates, cpu


def _rate(client: Client, texts: Sequence[str]) -> float:
    return len(texts) / seconds(lambda: client(texts))


def _over(what: str, rates: Mapping[str, list[float]], other: str, least: float) -> Measurement:
    return ratio(f"remote engine {what}", ratios(rates["ours"], rates[other]), least)


_SETTINGS: dict[str, Any] = {"max_tokens": 16, "temperature": 0, "ignore_eos": True}


def _body() -> dict[str, Any]:
    return {"max_tokens": 16, "temperature": 0, "extra_body": {"ignore_eos": True}}


def _in_sequence(server: Server, texts: Sequence[str]) -> list[str]:
    """A common layout: each worker takes a chunk and sends its prompts one by one."""
    import openai

    chunks = [texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)]
    with openai.OpenAI(base_url=server.url, api_key="none") as client:

        def work(chunk: Sequence[str]) -> list[str]:
            create = client.completions.create
            return [
                create(model=server.model, prompt=text, **_body()).choices[0].text for text in chunk
            ]

        with ThreadPoolExecutor(WORKERS) as pool:
            return [text for part in pool.map(work, chunks) for text in part]


async def _with_semaphore(server: Server, texts: Sequence[str]) -> list[str]:
    """The usual code: one prompt per request, with a limit on concurrent requests."""
    import openai

    semaphore = asyncio.Semaphore(WORKERS)
    async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:

        async def one(text: str) -> str:
            async with semaphore:
                reply = await client.completions.create(model=server.model, prompt=text, **_body())
                return str(reply.choices[0].text)

        return await asyncio.gather(*map(one, texts))


async def _bare(server: Server, texts: Sequence[str]) -> None:
    """One prompt per request over bare connections, replies read and not parsed.

    This is the server's limit for any client with as many connections.
    """
    url, waiting = urlsplit(server.url), deque(texts)

    async def work() -> None:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        while waiting:
            body = {"model": server.model, "prompt": waiting.popleft(), **_SETTINGS}
            data = json.dumps(body).encode()
            head = f"POST {url.path}/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            writer.write(head.encode() + data)
            reply = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert reply.startswith(b"http/1.1 200"), reply
            await reader.readexactly(int(reply.partition(b"content-length: ")[2].split()[0]))
        writer.close()

    await asyncio.gather(*(work() for _ in range(WORKERS)))


def _against_harness(server: Server, repeats: int, prompts: int, peers: Path) -> list[Measurement]:
    """The harness with one prompt per request, and at its best; slow settings are tried once."""
    single, settings = (1, WORKERS), [(8, 16), (8, 64), (64, 4), (64, 16), (256, 4)]
    with remote_engine(server.url) as engine:
        engine.generate(sums(128, seed=-1), SAMPLING)
        first = {pair: harness_speed(server, sums(prompts, 99), *pair, peers) for pair in settings}
        for (batch, concurrent), rate in first.items():
            say(f"lm-eval, batch {batch}, num_concurrent {concurrent}: {rate:.0f}")
        best = max(settings, key=lambda pair: first[pair])
        rates: dict[str, list[float]] = {"ours": [], "bare": [], "single": [], "best": []}
        for number in range(repeats):
            texts = sums(prompts, number)
            rates["ours"].append(_rate(lambda some: engine.generate(some, SAMPLING), texts))
            rates["bare"].append(_rate(lambda some: asyncio.run(_bare(server, some)), texts))
            rates["single"].append(harness_speed(server, texts, *single, peers))
            rates["best"].append(harness_speed(server, texts, *best, peers))
            say(", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items()))
    harness, gives = "lm-eval `local-completions`", f"share of what {WORKERS} bare connections get"
    named = f"batch {best[0]}, num_concurrent {best[1]}"
    return [
        ratio(
            f"{harness}, one prompt per request: {gives}", ratios(rates["single"], rates["bare"])
        ),
        ratio(f"remote engine: {gives}", ratios(rates["ours"], rates["bare"])),
        ratio(
            f"remote engine over {harness} at its best ({named})",
            ratios(rates["ours"], rates["best"]),
            1,
        ),
    ]
