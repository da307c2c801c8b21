"""A server that answers like vLLM's or OpenAI's, and fails on demand.

It has no model: it tests clients with a server that is slow, busy, broken or wrong. It runs in a
separate thread. All draws come from one seed, in the order in which requests arrive.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, NoReturn, Self

from aiohttp import web

from benchmarks.bodies import (
    METRICS,
    Faults,
    Query,
    Tops,
    answer,
    parse,
    rates,
    spoil,
    tokenized,
)

__all__ = ["Faults", "Injector"]

PATHS = {"/v1/completions", "/v1/chat/completions"}
BATCH = "/v1/chat/completions/batch"
BLOCK = 16  # of vLLM's prefix cache
AT_ONCE = {"dead", "capacity", "multi", "poison", "429"}
ERRORS = {
    "429": (429, "Rate limit reached, slow down."),
    "capacity": (429, "Too many requests at once."),
    "500": (500, "The server had an error."),
    "dead": (500, "The engine is dead."),
    "multi": (400, "One prompt per request."),
    "poison": (0, "This prompt is not understood."),
}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
HTML = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
INCORRECT = "Incorrect API key provided: {}. You can find your API key in your settings."


class Injector:
    """The server; a context manager, or `start` and `stop` (repeatedly, on the same port).

    Args:
        faults: the faults; can be replaced at any time as `plan`.
        latency: seconds per request (except immediate refusals).
        capacity: maximum concurrent requests; more get 429.
        key: the bearer key; requests without it get 401.
        vllm: answer like vLLM's server, else like OpenAI's.
        batch: have vLLM's path for several chats in one request.
        revision: reported in a second name, `model@revision`, as our servers do; None: no name.
        weights: another number gives other log-probabilities.
        tops: the likeliest next tokens reported for a prompt.

    Attributes:
        answered: how often a good answer to a prompt was sent. Other choices of a spoilt answer
            are good ones. A token prompt is named by its ids, a chat by its texts in lines.
        faults: how often each fault occurred; "gone" is a client that left before its answer.
        log: the prompts and the outcome ("ok" or its faults) of each generating request.
        times: start and end of each whole answer, by `time.monotonic`.
        bodies: the latest requests. Headers are never stored, because they hold keys.
        requests, peak: generating requests, and the maximum served at once.
    """

    def __init__(
        self,
        faults: Faults | None = None,
        *,
        latency: float = 0.0,
        capacity: int | None = None,
        key: str | None = None,
        model: str = "fake",
        root: str | None = None,
        revision: str | None = None,
        weights: int = 0,
        max_model_len: int = 2048,
        vllm: bool = True,
        batch: bool = True,
        ssl_context: ssl.SSLContext | None = None,
        seed: int = 0,
        tops: Tops | None = None,
    ) -> None:
        self.latency, self.capacity, self.model, self.vllm = latency, capacity, model, vllm
        self._key, self._ssl, self.tops = key, ssl_context, tops
        self._root, self._max_model_len = root or model, max_model_len
        self._revision, self._weights = revision, weights
        own = {"/tokenize": vllm, BATCH: vllm and batch}
        self._paths = PATHS | {path for path, there in own.items() if there}
        self._rng = random.Random(seed)
        self.plan = faults or Faults()
        self.answered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.log: list[tuple[tuple[str, ...], str]] = []
        self.times: list[tuple[float, float]] = []
        self.bodies: deque[dict[str, Any]] = deque(maxlen=1000)
        self.requests = self.peak = 0
        self._active = self._queries = self._hits = self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"{'https' if self._ssl else 'http'}://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Listen, on the previous port if there was one."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        self._call(self._open())

    def stop(self) -> None:
        """Go down: stop listening and drop all connections."""
        if self._loop is not None:
            self._call(self._down())

    def close(self) -> None:
        """Stop, and end the thread."""
        self.stop()
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _open(self) -> None:
        if self._listener is not None:
            return
        # A client that disconnects cancels its handler, so no hung handler remains.
        self._web = web.Server(self._serve, handler_cancellation=True, access_log=None)
        self._listener = await asyncio.get_running_loop().create_server(
            self._web, "127.0.0.1", self._port, ssl=self._ssl, backlog=4096
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._listener is None:
            return
        self._listener.close()
        for connection in self._web.connections:
            if connection.transport is not None:
                _abort(connection.transport)
        await asyncio.sleep(0)  # lets the loop notify the handlers
        await self._web.shutdown(timeout=1.0)
        self._listener = None

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.content.read()
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._key not in {None, sent} and request.path.startswith("/v1"):
            self.faults["key"] += 1
            return _error(401, INCORRECT.format(sent))
        if request.method != "POST" or request.path not in self._paths:
            return self._describe(request.path)
        try:
            body = json.loads(raw)
            if (body.get("model") or self.model) not in self._names():
                return _error(404, f"The model `{body['model']}` does not exist.")
            if request.path == "/tokenize":
                return web.json_response(tokenized(body, self._max_model_len))
            query = replace(parse(request.path, body), tops=self.tops, weights=self._weights)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            self.faults["bad_request"] += 1
            return _error(400, f"{type(error).__name__}: {error}")
        return await self._generate(request, query)

    async def _generate(self, request: web.BaseRequest, query: Query) -> web.StreamResponse:
        self.requests += 1
        self.bodies.append(query.body)
        fault = self._fault(query)
        if fault is not None:
            self.faults[fault] += 1
            self.log.append((query.keys, fault))
            if fault in AT_ONCE:
                return await self._fail(request, fault, query)
        self._active += 1
        self.peak = max(self.peak, self._active)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            if fault is not None:
                return await self._fail(request, fault, query)
            return await self._answer(request, query)
        except (asyncio.CancelledError, ConnectionError):
            if fault is None:
                self.faults["gone"] += 1
                self.log.append((query.keys, "gone"))
            raise
        finally:
            self._active -= 1

    def _fault(self, query: Query) -> str | None:
        plan = self.plan
        if plan.dead_after is not None and self.requests > plan.dead_after:
            return "dead"
        if self.capacity is not None and self._active >= self.capacity:
            return "capacity"
        if not plan.multi and len(query.keys) > 1:
            return "multi"
        if plan.poison is not None and any(plan.poison in key for key in query.keys):
            return "poison"
        return next(iter(self._draw(content=False)), None)

    def _draw(self, *, content: bool) -> list[str]:
        return [name for name, rate in rates(self.plan)[content] if self._rng.random() < rate]

    async def _fail(self, request: web.BaseRequest, fault: str, query: Query) -> web.Response:
        plan, transport = self.plan, request.transport
        if transport is None or fault == "hang":
            return await _for_ever()
        if fault == "reset" or (fault == "dead" and plan.dead_closes):
            _abort(transport)
            return await _for_ever()
        if fault in ERRORS:
            wait = plan.retry_after if fault in {"429", "capacity"} else None
            status = plan.poison_status if fault == "poison" else ERRORS[fault][0]
            headers = None if wait is None else {"Retry-After": str(wait)}
            return _error(status, ERRORS[fault][1], headers)
        if fault == "502":
            return web.Response(status=502, text=HTML, content_type="text/html")
        body = json.dumps(answer(query, self.model, self.requests, vllm=self.vllm)).encode()
        if fault == "half":
            transport.write(HEAD % len(body) + body[: len(body) // 2])
            transport.close()
            return await _for_ever()
        garbled = body[:7] + b"\xff\xfe{{" + body[7:]
        cut = self._rng.choice([body[: len(body) // 2], garbled])
        return web.Response(body=cut, content_type="application/json")

    async def _answer(self, request: web.BaseRequest, query: Query) -> web.StreamResponse:
        body = answer(query, self.model, self.requests, vllm=self.vllm)
        done, bad = spoil(body["choices"], self._draw(content=True), self._rng)
        response = web.Response(text=json.dumps(body), content_type="application/json")
        good = [key for at, key in enumerate(query.keys) if at not in {b // query.n for b in bad}]
        entry, times = (query.keys, "+".join(done) or "ok"), (query.arrived, time.monotonic())
        self._cache(query)
        # Counted before it is sent, so that a client with the answer sees the count.
        self.answered.update(good)
        self.faults.update(done)
        self.log.append(entry)
        self.times.append(times)
        try:
            await response.prepare(request)
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.answered -= Counter(good)
            self.faults -= Counter(done)
            self.log.remove(entry)
            self.times.remove(times)
            raise
        return response

    def _cache(self, query: Query) -> None:
        """Update the prefix cache as vLLM would: prompts that were answered before."""
        for key, ids in zip(query.keys, query.ids, strict=True):
            self._queries += len(ids)
            self._hits += len(ids) // BLOCK * BLOCK if key in self.answered else 0

    def _names(self) -> list[str]:
        more = [] if self._revision is None else [f"{self.model}@{self._revision}"]
        return [self.model, *more]

    def _describe(self, path: str) -> web.Response:
        if path == "/health":
            return web.Response()
        if path == "/v1/models":
            card = {"object": "model", "created": 0, "owned_by": "vllm" if self.vllm else "test"}
            if self.vllm:
                card |= {"root": self._root, "parent": None, "max_model_len": self._max_model_len}
            cards = [{"id": name, **card} for name in self._names()]
            return web.json_response({"object": "list", "data": cards})
        if path == "/version" and self.vllm:
            return web.json_response({"version": "0.32.0"})
        if path == "/metrics" and self.vllm:
            return web.Response(text=METRICS.format(self.model, self._queries, self._hits))
        return _error(404, "Not Found")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"message": message, "type": "error", "param": None, "code": status}
    return web.json_response({"error": body}, status=status, headers=headers)


def _abort(transport: asyncio.Transport) -> None:
    """Reset the connection: without lingering, the socket sends RST instead of FIN."""
    if (end := transport.get_extra_info("socket")) is not None:  # TLS that is closing has none
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _for_ever() -> NoReturn:
    """Wait until the connection is lost, which cancels the handler."""
    await asyncio.Event().wait()
    raise AssertionError
