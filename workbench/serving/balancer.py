"""Several workers behind one port: each request goes to the one with the fewest in flight.

A worker is a process (one per GPU) that serves HTTP and prints its base URL on a separate line once
it answers. Streams are forwarded as they arrive. If a client disconnects, its request ends at the
worker too. A worker that dies loses only its requests, and is restarted.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict
from yarl import URL

from workbench.errors import EngineError, InputError, log
from workbench.serving import access
from workbench.serving.process import ServerProcess, last_lines

TIMEOUT = 1800.0  # seconds until all workers answer: they may read many gigabytes
RESTART = 60.0  # seconds between two starts of a worker
DRAIN = 30.0  # seconds for running requests to finish
OWN_ANSWER = 5.0  # seconds for a worker's health or statistics
LARGEST = 2**22  # maximum bytes of a request, as at a worker

# Headers about one connection, not about the message (RFC 9110, 7.6.1).
HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"}
HOP |= {"proxy-connection", "transfer-encoding", "upgrade"}
OURS = {"host", "content-length", "expect"}  # of a request: replaced or handled here
UNASKED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # aiohttp would add them

DIED = access.error_body("the worker died before it answered", "server_error", "worker_died")
NONE_UP = access.error_body(
    "no worker is running; they are being restarted", "server_error", "no_worker"
)


@dataclass(eq=False, slots=True)
class Worker:
    """A server process, its URL (without `/v1`) once it answers, and its requests in flight."""

    line: Sequence[str]
    variables: Mapping[str, str]
    log: Path
    timeout: float
    url: str | None = None
    in_flight: int = 0
    started: float = 0.0
    process: ServerProcess | None = None

    @property
    def up(self) -> bool:
        """Whether it has answered, and its process is running."""
        return self.url is not None and self.process is not None and self.process.alive

    def end(self) -> None:
        """Stop its whole process group; blocks for some seconds at most."""
        process, self.process, self.url = self.process, None, None
        if process is not None:
            process.finish()

    async def start(self) -> None:
        """Start it, and wait until it has printed its URL.

        Raises:
            EngineError: it could not start, ended early, or took too long.
        """
        self.started = time.monotonic()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            process = ServerProcess(self.line, {**os.environ, **self.variables}, self.log)
        except OSError as error:
            raise EngineError(f"a worker could not be started: {error}") from error
        self.process = process
        while time.monotonic() - self.started < self.timeout:
            code = process.exit_code()  # before reading: the log of an ended process is complete
            output = process.output()
            if code is not None:
                raise EngineError(
                    f"a worker ended with code {code} before it answered ({self.log})\n"
                    f"{last_lines(output)}"
                )
            if printed := re.search(r"^(https?://\S+)/v1\s*\n", output, re.MULTILINE):
                self.url = printed[1]
                log.info("%s answers at %s", self.log.stem, self.url)
                return
            await asyncio.sleep(0.1)
        late = f"a worker did not answer within timeout={self.timeout:g} s"
        raise EngineError(f"{late}; see {self.log}")


class LoadBalancer:
    """One port for several workers of the same kind."""

    def __init__(
        self,
        line: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        *,
        folder: Path,
        host: str = "127.0.0.1",
        port: int | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """Set up; nothing starts yet.

        Args:
            line: the command line of a worker, which chooses its port itself.
            environments: each worker's variables in addition to ours, such as CUDA_VISIBLE_DEVICES.
            folder: for the workers' logs (`worker-0.log` and so on), which are appended to.
            host: the address to listen at; the default is reachable from this machine only.
            port: None chooses a free one.
            timeout: seconds until a worker must answer.

        Raises:
            InputError: no workers, or a port that is taken.
        """
        if not environments:
            raise InputError("environments=(): pass one per worker; {} adds no variables")
        if port is not None:
            access.free_port(host, port)
        self._key = access.required_key(host)
        self._host, self._port = host, port or 0
        self._workers = [
            Worker(line, variables, folder / f"worker-{i}.log", timeout)
            for i, variables in enumerate(environments)
        ]
        self._turn = 0

    @property
    def url(self) -> str:
        """The base URL of its OpenAI interface, once it listens."""
        return access.base_url(self._host, self._port)

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C; prints the base URL once it answers.

        Running requests then have 30 s to finish; a second Ctrl-C does not wait for them.

        Raises:
            EngineError: a worker did not start; quotes its log.
            InputError: the port was taken in the meantime.
        """
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(at_once: bool) -> None:
            if at_once or not task.cancelling():
                task.cancel()

        loop.add_signal_handler(signal.SIGTERM, stop, False)  # two may arrive, as from Slurm
        loop.add_signal_handler(signal.SIGINT, stop, True)
        with suppress(asyncio.CancelledError):
            async with self.serving():
                print(self.url, flush=True)
                await loop.create_future()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """In this context, the workers and this port answer.

        Raises:
            EngineError, InputError: as for `run`.
        """
        async with AsyncExitStack() as stack:  # cleans up after a failure at any point
            stack.push_async_callback(self._end_workers)
            await asyncio.gather(*(worker.start() for worker in self._workers))
            session = aiohttp.ClientSession(
                # The worker may close a kept connection just when a request is sent on it.
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._session = await stack.enter_async_context(session)
            await self._listen(stack)
            for worker in self._workers:
                stack.callback(asyncio.create_task(self._restart_when_dead(worker)).cancel)
            yield

    async def _end_workers(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(worker.end) for worker in self._workers))

    async def _restart_when_dead(self, worker: Worker) -> None:
        while True:
            await asyncio.sleep(0.2)
            if worker.up:
                continue
            log.warning("%s has ended and will be restarted", worker.log.stem)
            await asyncio.to_thread(worker.end)  # stop what is left of it
            await asyncio.sleep(worker.started + RESTART - time.monotonic())
            try:
                await worker.start()
            except (EngineError, OSError) as error:
                log.warning("%s", error)

    async def _listen(self, stack: AsyncExitStack) -> None:
        app = web.Application(client_max_size=LARGEST, middlewares=[_openai_errors, self._guard])
        app.router.add_get("/health", self._health)
        app.router.add_get("/batch/stats", self._stats)
        app.router.add_route("*", "/{path:.*}", self._forward)
        runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            handler_cancellation=True,
            shutdown_timeout=DRAIN / 2,  # the library waits twice as long
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            raise InputError(
                f"port={self._port} of host={self._host!r} cannot be used: {error}"
            ) from error
        self._port = runner.addresses[0][1]

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Require the key here, too: no request without it reaches a worker."""
        if access.accepts(self._key, request.path, request.raw_headers):
            return await handler(request)
        return web.json_response(access.REFUSAL, status=401, headers=access.CHALLENGE)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        tried: set[Worker] = set()
        while worker := self._pick(tried):
            tried.add(worker)
            worker.in_flight += 1
            try:
                return await self._pass_on(request, body, worker)
            except aiohttp.ClientConnectorError:  # nothing was sent: another worker can answer
                continue
            except aiohttp.ClientError as error:
                log.warning("%s failed a request: %r", worker.log.stem, error)
                return web.json_response(DIED, status=502)
            finally:
                worker.in_flight -= 1
        wait = {"Retry-After": f"{RESTART:.0f}"}
        return web.json_response(NONE_UP, status=503, headers=wait)

    def _pick(self, tried: set[Worker]) -> Worker | None:
        """The least loaded worker; among equal ones, in turn."""
        turned = self._workers[self._turn :] + self._workers[: self._turn]
        if not (up := [worker for worker in turned if worker.up and worker not in tried]):
            return None
        chosen = min(up, key=lambda worker: worker.in_flight)
        self._turn = (self._workers.index(chosen) + 1) % len(self._workers)
        return chosen

    async def _pass_on(
        self, request: web.Request, body: bytes, worker: Worker
    ) -> web.StreamResponse:
        async with self._session.request(
            request.method,
            URL(f"{worker.url}{request.rel_url.raw_path_qs}", encoded=True),
            data=body or None,
            headers=_end_to_end(request.headers, HOP | OURS),
            skip_auto_headers=UNASKED,
            allow_redirects=False,
        ) as answer:
            reply = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers, HOP)
            )
            piece = b""
            try:
                await reply.prepare(request)
                async for piece in answer.content.iter_any():
                    await reply.write(piece)
            except aiohttp.ClientError:
                await _break_off(request, reply, piece)
        return reply

    async def _health(self, request: web.Request) -> web.Response:
        answers = await self._ask_all(request)
        workers = [
            {"url": worker.url, "healthy": status == 200, "in_flight": worker.in_flight, "own": own}
            for worker, (status, own) in zip(self._workers, answers, strict=True)
        ]
        ok = any(worker["healthy"] for worker in workers)
        body = {"status": "ok" if ok else "unavailable", "workers": workers}
        return web.json_response(body, status=200 if ok else 503)

    async def _stats(self, request: web.Request) -> web.Response:
        answers = await self._ask_all(request)
        status, own = min(answers, key=lambda answer: answer[0])
        if status >= 400 and own is not None:  # every worker refuses: forward the refusal
            return web.json_response(own, status=status)
        loads = [worker.in_flight for worker in self._workers]
        body = {"workers": [own for _, own in answers], "in_flight": loads}
        return web.json_response(body, status=status)

    async def _ask_all(self, request: web.Request) -> list[tuple[int, Any]]:
        return await asyncio.gather(*(self._ask(worker, request) for worker in self._workers))

    async def _ask(self, worker: Worker, request: web.Request) -> tuple[int, Any]:
        """(status, JSON) of one worker's answer; (503, None) if it has none."""
        try:
            async with self._session.get(
                f"{worker.url}{request.path}",
                headers={k: v for k, v in request.headers.items() if k == "Authorization"},
                skip_auto_headers=UNASKED,
                timeout=aiohttp.ClientTimeout(total=OWN_ANSWER),
            ) as answer:
                return answer.status, await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return 503, None


@web.middleware
async def _openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn aiohttp's errors into OpenAI's format."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        message = f"{request.method} {request.path}: {error.text}"
        body = access.error_body(message, "invalid_request_error")
        return web.json_response(body, status=error.status)


def _end_to_end(headers: Mapping[str, str], dropped: set[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    gone = dropped | named
    return CIMultiDict((name, text) for name, text in headers.items() if name.lower() not in gone)


async def _break_off(request: web.Request, reply: web.StreamResponse, piece: bytes) -> None:
    """End an answer after `piece` as an error: it is too late for another status."""
    if request.transport is None or request.transport.is_closing():  # the client disconnected
        return
    events = reply.content_type == "text/event-stream"
    if events and (not piece or piece.endswith((b"\n\n", b"\r\n\r\n"))):
        await reply.write(f"data: {json.dumps(DIED)}\n\n".encode())
    else:
        request.transport.close()
