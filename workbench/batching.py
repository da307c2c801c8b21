"""What batching gains for a masked-diffusion model: rows that join at any step, queued requests.

Continuous batches are compared with static ones, which end with their last row, as on most
servers, and with our server, to which each client sends one request after another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from workbench import values
from workbench.engines.diffusion import DiffusionEngine, Row
from workbench.engines.diffusion.denoiser import forward
from workbench.engines.diffusion.network import KVCache
from workbench.errors import InputError
from workbench.lazy import pd, torch
from workbench.progress import check, one_bar
from workbench.serving.diffusion_server import DiffusionServer, serve_diffusion
from workbench.types import Sampling


@dataclass(frozen=True, slots=True)
class Took:
    """The cost of some rows: seconds, runs of the model, and positions computed in them."""

    seconds: float
    forwards: int
    positions: int


def static(engine: DiffusionEngine, rows: Sequence[Row], size: int) -> Took:
    """Denoise rows in batches that end with their last row; rows must not have a cache."""
    network = engine.network
    assert network is not None
    start, forwards, positions = time.perf_counter(), 0, 0
    for at in range(0, len(rows), size):
        batch = rows[at : at + size]
        while not all(row.done for row in batch):
            check()
            opens = [[] if row.done else row.masked() for row in batch]
            with torch.inference_mode():
                slots = {row: [place] for place, row in enumerate(batch)}
                found, counts = forward(network, slots, KVCache(size), opens, whole=True)
                for row, places, logits in zip(batch, opens, found, strict=True):
                    if not row.done:
                        row.commit(places, row.propose(logits))
            forwards, positions = forwards + 1, positions + counts.tokens
    return Took(time.perf_counter() - start, forwards, positions)


def continuous(engine: DiffusionEngine, rows: Sequence[Row], size: int) -> Took:
    """Denoise rows; each finished row makes room for the next."""
    start, denoiser = time.perf_counter(), engine.denoiser(size)
    for row in rows:
        denoiser.add(row)
    while denoiser.live or denoiser.waiting:
        denoiser.step()
    return Took(time.perf_counter() - start, denoiser.counts.forwards, denoiser.counts.tokens)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The requests: prompts and answer lengths, each used in turn.

    Raises:
        InputError: no prompts or no lengths.
    """

    prompts: tuple[str, ...]
    requests: int = 64
    lengths: tuple[int, ...] = (32, 64, 96)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", values.texts("prompts", self.prompts))
        if not self.prompts:
            values.refuse("prompts", self.prompts, "at least one text")
        if not isinstance(self.lengths, Sequence) or not self.lengths:
            values.refuse("lengths", self.lengths, "at least one number")
        for length in self.lengths:
            values.whole("lengths", length, 1)
        values.whole("requests", self.requests, 1)

    def asked(self) -> list[tuple[str, int]]:
        """Each request's prompt and length in tokens."""
        both = zip(cycle(self.prompts), cycle(self.lengths), strict=False)
        return list(islice(both, self.requests))


@dataclass(frozen=True, slots=True)
class Way:
    """A way to serve: in batches of this process, or behind a server with so many clients.

    Attributes:
        how: "static", "continuous" or "server".
        batch_size: maximum number of rows denoised together.
        max_wait_time: seconds that a request waits for others if nothing runs (server only).
        clients: number of concurrent clients (server only).

    Raises:
        InputError: no such way.
    """

    how: str
    batch_size: int
    max_wait_time: float = 0.0
    clients: int = 1

    def __post_init__(self) -> None:
        if self.how not in ("static", "continuous", "server"):
            values.refuse("how", self.how, '"static", "continuous" or "server"')
        values.whole("batch_size", self.batch_size, 1)
        values.whole("clients", self.clients, 1)
        values.real("max_wait_time", self.max_wait_time, 0, 3600)


class Batching:
    """A measurement: `run()` performs it, and resumes it after an interrupt.

    `rows` has one row for each finished way and repeat: the fields of `Way`, `repeat`, `requests`,
    `failed` and the first `error`, `seconds`, `requests_per_s` (without failed ones). Batches also
    have `forwards` and `positions` (computed in them). Servers have `p50` and `p95`, quantiles of
    the seconds per request.

    Args:
        engine: the model, with its denoising settings (no cache with static batches).
        ways: measured in turn; the first is warmed up.
        repeats: runs of each way.

    Raises:
        InputError: no ways, a repeated one, or static batches with a cache.
    """

    def __init__(
        self, engine: DiffusionEngine, traffic: Traffic, ways: Sequence[Way], *, repeats: int = 3
    ) -> None:
        if not ways or len({*ways}) < len(ways):
            raise InputError(f"{len(ways)} ways: at least one is needed, and none twice")
        if engine.denoising.cache != "none" and any(way.how == "static" for way in ways):
            raise InputError(f"cache={engine.denoising.cache!r}: static batches need none")
        self._engine, self._traffic, self._ways = engine, traffic, tuple(ways)
        self._repeats = values.whole("repeats", repeats, 1)
        self._done: dict[tuple[int, int], dict[str, Any]] = {}

    @property
    def rows(self) -> pd.DataFrame:
        """The results so far."""
        return pd.DataFrame([self._done[key] for key in sorted(self._done)])

    def run(self) -> pd.DataFrame:
        """Measure what is missing; Ctrl-C keeps finished measurements."""
        plan = [(turn, way) for turn in range(self._repeats) for way in range(len(self._ways))]
        left = [key for key in plan if key not in self._done]
        with one_bar(len(left), "batching", "run") as bar:
            for number, (turn, which) in enumerate(left):
                way = self._ways[which]
                bar.set_postfix_str(f"{way.how} {way.batch_size}")
                if not number:
                    self._measured(way)
                self._done[turn, which] = {"repeat": turn} | self._measured(way)
                bar.update()
        return self.rows

    def _measured(self, way: Way) -> dict[str, Any]:
        if way.how == "server":
            size, wait = way.batch_size, way.max_wait_time
            with serve_diffusion(self._engine, batch_size=size, max_wait_time=wait) as server:
                clients = _Clients(server, self._traffic.asked(), way.clients)
                start = time.perf_counter()
                clients.run()
                seconds = time.perf_counter() - start
            done, errors = sorted(clients.waited), clients.errors
            about: dict[str, Any] = {"max_wait_time": wait, "clients": way.clients}
            about |= {"p50": _quantile(done, 0.5), "p95": _quantile(done, 0.95)}
        else:
            rows, errors = self._rows()
            took = (static if way.how == "static" else continuous)(
                self._engine, rows, way.batch_size
            )
            seconds, errors = took.seconds, errors + [row.error for row in rows if row.error]
            about = {"forwards": took.forwards, "positions": took.positions}
        many = self._traffic.requests
        return about | {
            "how": way.how, "batch_size": way.batch_size, "requests": many, "failed": len(errors),
            "error": errors[0] if errors else None, "seconds": seconds,
            "requests_per_s": (many - len(errors)) / seconds,
        }  # fmt: skip

    def _rows(self) -> tuple[list[Row], list[str]]:
        """The rows to denoise, and the reasons why others failed."""
        rows, errors = [], []
        for prompt, length in self._traffic.asked():
            ids, sampling = self._engine.encode(prompt), Sampling(max_tokens=length)
            try:
                rows.append(self._engine.row(ids, sampling, seed=0))
            except InputError as error:
                errors.append(str(error))
        return rows, errors


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


class _Clients:
    """Clients in threads, each of which sends one request after another.

    Attributes:
        waited: seconds of each answered request.
        errors: errors of the other requests.
    """

    def __init__(
        self, server: DiffusionServer, requests: Sequence[tuple[str, int]], clients: int
    ) -> None:
        import openai

        self._server, self._requests, self._clients = server, requests, clients
        key = os.environ.get("WORKBENCH_API_KEY", "none").strip()
        self._client = openai.OpenAI(base_url=server.url, api_key=key, max_retries=0, timeout=None)
        self.waited: list[float] = []
        self.errors: list[str] = []

    def run(self) -> None:
        """Send everything; Ctrl-C stops the clients too."""
        with self._client, ThreadPoolExecutor(self._clients) as pool:
            left = [pool.submit(self._ask, *one) for one in self._requests]
            try:
                while left:
                    left = [*wait(left, timeout=0.2).not_done]
                    check()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, prompt: str, length: int) -> None:
        import openai

        start = time.perf_counter()
        try:
            self._client.completions.create(
                model=self._server.model, prompt=prompt, max_tokens=length
            )
        except openai.OpenAIError as error:
            self.errors.append(f"{type(error).__name__}: {error!s:.300}")
        else:
            self.waited.append(time.perf_counter() - start)
