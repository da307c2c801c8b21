"""What batching brings a masked-diffusion model: rows that join at any step, requests that wait.

Beside continuous batches stand static ones, which end with their last row, as most servers have
them, and the model behind its own server, asked by clients one request after another.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from workbench.engines.diffusion import DiffusionEngine, Row
from workbench.engines.diffusion.commit import propose
from workbench.engines.diffusion.forward import forward
from workbench.engines.diffusion.lanes import Lanes
from workbench.errors import InputError
from workbench.progress import check, one_bar
from workbench.serving.diffusion_server import DiffusionServer, serve_diffusion
from workbench.types import Sampling

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Took:
    """What some rows took, in seconds, runs of the model and positions computed in them."""

    seconds: float
    forwards: int
    positions: int


def static(engine: DiffusionEngine, rows: Sequence[Row], size: int) -> Took:
    """Denoise rows in batches that end with their last row; none may have a cache."""
    import torch

    network = engine.network
    assert network is not None
    start, forwards, positions = time.perf_counter(), 0, 0
    for at in range(0, len(rows), size):
        batch = rows[at : at + size]
        while not all(row.done for row in batch):
            check()
            opens = [[] if row.done else row.masked() for row in batch]
            with torch.inference_mode():
                lanes = {row: [place] for place, row in enumerate(batch)}
                run = forward(network, lanes, Lanes(size), opens, whole=True)
                for row, places, logits in zip(batch, opens, run.logits, strict=True):
                    if not row.done:
                        how = row.denoising.remasking
                        found = propose(logits, network.mask, row.sampling, how, row.generator())
                        row.commit(places, found)
            forwards, positions = forwards + 1, positions + run.tokens
    return Took(time.perf_counter() - start, forwards, positions)


def continuous(engine: DiffusionEngine, rows: Sequence[Row], size: int) -> Took:
    """Denoise rows of which each that is done makes room for the next."""
    start, denoiser = time.perf_counter(), engine.denoiser(size)
    for row in rows:
        denoiser.add(row)
    while denoiser.live or denoiser.waiting:
        denoiser.step()
    return Took(time.perf_counter() - start, denoiser.counts.forwards, denoiser.counts.tokens)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked: prompts in turn, for answers of these lengths in turn.

    Raises:
        InputError: nothing to ask.
    """

    prompts: tuple[str, ...]
    requests: int = 64
    lengths: tuple[int, ...] = (32, 64, 96)

    def __post_init__(self) -> None:
        if not _some(self.prompts):
            raise InputError(f"prompts={self.prompts!r:.80}: give some texts, one at least")
        if not _some(self.lengths) or not all(map(_whole, self.lengths)):
            raise InputError(f"lengths={self.lengths!r:.80}: give whole numbers from 1")
        if not _whole(self.requests):
            raise InputError(f"requests={self.requests!r}: must be a whole number from 1")

    def asked(self) -> list[tuple[str, int]]:
        """Each request's prompt and length."""
        both = zip(cycle(self.prompts), cycle(self.lengths), strict=False)
        return list(islice(both, self.requests))


@dataclass(frozen=True, slots=True)
class Way:
    """A way to serve: in batches of this process, or behind a server to so many clients.

    Attributes:
        how: "static", "continuous" or "server".
        batch_size: rows denoised at once.
        max_wait_time: seconds that a request waits for others where nothing runs (server only).
        clients: that ask at once (server only).

    Raises:
        InputError: no such way.
    """

    how: str
    batch_size: int
    max_wait_time: float = 0.0
    clients: int = 1

    def __post_init__(self) -> None:
        if self.how not in ("static", "continuous", "server"):
            raise InputError(f'how={self.how!r}: give "static", "continuous" or "server"')
        for name in ("batch_size", "clients"):
            if not _whole(getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)!r}: must be a whole number from 1")
        if not isinstance(self.max_wait_time, int | float) or not 0 <= self.max_wait_time < 3600:
            raise InputError(f"max_wait_time={self.max_wait_time!r}: must be seconds from 0")


class Batching:
    """A measurement: `run()` does it, and after an interrupt goes on with it.

    `rows` has one row for each way and repeat that is done: the fields of `Way`, `repeat`,
    `requests`, `failed` and the first `error` of these, `seconds`, `requests_per_s` (those that did
    not fail); of batches `forwards` and `positions` (computed in them), of a server `p50` and `p95`
    of the seconds that a request takes.

    Args:
        engine: the model, with its settings of denoising (static batches take no cache).
        ways: in turns; the first is warmed up.
        repeats: runs of each.

    Raises:
        InputError: no ways, one of them twice, or static batches with a cache.
    """

    def __init__(
        self, engine: DiffusionEngine, traffic: Traffic, ways: Sequence[Way], *, repeats: int = 3
    ) -> None:
        if not ways or len({*ways}) < len(ways):
            raise InputError(f"{len(ways)} ways: give one at least, and each once")
        if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
            raise InputError(f"repeats={repeats!r}: must be a whole number from 1")
        if engine.denoising.cache != "none" and any(way.how == "static" for way in ways):
            raise InputError(f"cache={engine.denoising.cache!r}: static batches take none")
        self._engine, self._traffic, self._ways = engine, traffic, tuple(ways)
        self._repeats = repeats
        self._done: dict[tuple[int, int], dict[str, Any]] = {}

    @property
    def rows(self) -> pd.DataFrame:
        """What has been measured so far."""
        import pandas as pd

        return pd.DataFrame([self._done[key] for key in sorted(self._done)])

    def run(self) -> pd.DataFrame:
        """Measure what is not measured yet; Ctrl-C keeps what is."""
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
        """The rows to be denoised, and why others cannot be."""
        rows, errors = [], []
        for prompt, length in self._traffic.asked():
            ids, sampling = self._engine.encode(prompt), Sampling(max_tokens=length)
            try:
                rows.append(self._engine.row(ids, sampling, seed=0))
            except InputError as error:
                errors.append(str(error))
        return rows, errors


def _some(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


class _Clients:
    """Clients in a thread of their own, for a notebook's thread may run an event loop already.

    Attributes:
        waited: seconds that each answered request took.
        errors: why others were not.
    """

    def __init__(
        self, server: DiffusionServer, asked: Sequence[tuple[str, int]], clients: int
    ) -> None:
        self._server, self._left, self._clients = server, iter(asked), clients
        self.waited: list[float] = []
        self.errors: list[str] = []
        self._broke: list[BaseException] = []
        self._stop = threading.Event()

    def run(self) -> None:
        """Ask everything; Ctrl-C stops the clients too."""
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
                check()
        finally:
            self._stop.set()
        if self._broke:
            raise self._broke[0]

    def _work(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            self._broke.append(error)

    async def _all(self) -> None:
        import aiohttp

        key = os.environ.get("WORKBENCH_API_KEY")
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Authorization": f"Bearer {key.strip()}"} if key else None,
        ) as session:
            await asyncio.gather(*(self._client(session) for _ in range(self._clients)))

    async def _client(self, session: Any) -> None:
        import aiohttp

        for prompt, length in self._left:
            if self._stop.is_set():
                return
            body = {"model": self._server.model, "prompt": prompt, "max_tokens": length}
            start = time.perf_counter()
            try:
                async with session.post(f"{self._server.url}/completions", json=body) as reply:
                    told = await reply.text()
            except aiohttp.ClientError as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                continue
            if reply.status == 200:
                self.waited.append(time.perf_counter() - start)
            else:
                self.errors.append(f"{reply.status}: {told:.300}")
