"""A masked-diffusion engine behind OpenAI's interface, in this process: requests share forwards.

Two threads: one runs the event loop, which only passes things on, the other runs the model
(`batcher`). The port is bound once the model is there, so that whoever is answered is served.
"""

from __future__ import annotations

import logging
import queue
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from workbench.errors import InputError
from workbench.serving.address import base_url, check_port, warn_if_open
from workbench.serving.batcher import Batcher, Ticket
from workbench.serving.counts import Tally
from workbench.serving.key import OPEN, REFUSAL, accepts, from_environment
from workbench.serving.protocol import Refusal

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import Receive, Scope, Send

    from workbench.engines.diffusion import DiffusionEngine
    from workbench.serving.routes import Routes

log = logging.getLogger("workbench")

BATCH_SIZE = 8
MAX_WAIT_TIME = 0.1
QUEUE_SIZE = 1024
BACKLOG = 2048  # connections that are not accepted yet
DRAIN = 30.0  # seconds to finish what is in
WATCH = 1.0  # seconds from one look at the model's health to the next
GRACE = 3  # seconds to send what is done
IDLE = 300  # seconds that a connection is kept for a client's next request


class DiffusionServer:
    """A server that answers, until `close()`; made by `serve_diffusion`.

    Attributes:
        url: the base URL of its OpenAI interface, for `open_engine(base_url=…)`.
        names: of the model: the plain one, and one with its revision where that is known.
    """

    def __init__(
        self, gate: Gate, batcher: Batcher, listener: socket.socket, url: str, names: Sequence[str]
    ) -> None:
        import uvicorn

        self.url, self.names = url, tuple(names)
        self._gate = gate
        config = uvicorn.Config(
            gate,
            access_log=False,
            lifespan="off",
            log_config=None,
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
            timeout_keep_alive=IDLE,
            ws="none",
        )
        web = uvicorn.Server(config)
        thread = threading.Thread(
            target=web.run, args=([listener],), name="workbench-web", daemon=True
        )
        thread.start()
        self._batcher = batcher
        self._end = weakref.finalize(self, _finish, web, thread, batcher, gate.close)
        log.info("%r answers", self)

    @property
    def model(self) -> str:
        """The name it serves."""
        return self.names[0]

    def run(self) -> int:
        """Serve in the main thread until SIGTERM or Ctrl-C, then finish what is in and close.

        While it finishes, new requests and `/health` get 503. A second Ctrl-C, or 30 s, ends it
        at once; a second SIGTERM does not, since a cluster and a script may send one each. It ends
        too where the model fails for good.

        Returns:
            0 if every request that was in has had its answer, else 1.
        """
        calls: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: all is finished
        told: list[int] = []

        def stop(number: int, _: object) -> None:
            if number == signal.SIGINT or not told:
                told.append(number)
                calls.put(False)  # safe in a signal's handler

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while calls.empty():
                if self._batcher.broken:
                    log.error("%r ends: its model fails", self)
                    return 1
                with suppress(queue.Empty):
                    calls.put(calls.get(timeout=WATCH))
            calls.get()
            log.info("%r finishes what is in", self)
            self._gate.drain(lambda: calls.put(True))
            finished = calls.get(timeout=DRAIN)
        except queue.Empty:
            finished = False
        finally:
            self.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        return 0 if finished else 1

    def close(self) -> None:
        """End it at once; requests that are not answered get an error. Again does nothing."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DiffusionServer(url={self.url!r}, model={self.model!r})"


def serve_diffusion(
    engine: DiffusionEngine,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    batch_size: int = BATCH_SIZE,
    max_wait_time: float = MAX_WAIT_TIME,
    queue_size: int = QUEUE_SIZE,
    name: str | None = None,
    aliases: Sequence[str] = (),
) -> DiffusionServer:
    """Serve an engine over HTTP from threads of this process, and return at once.

    A key in the environment variable `WORKBENCH_API_KEY` is asked of every client. The engine
    stays yours, to use at the same time and to close.

    Args:
        host: where it listens; the default is reached from this machine only.
        port: None is a free one.
        batch_size: rows denoised at once.
        max_wait_time: seconds that a request waits for others where nothing runs; a full batch
            starts at once, and what comes later joins at the next step.
        queue_size: most rows that wait; above, clients are told to come again.
        name: what the model is called; None is its own name.
        aliases: names that clients may use too; they are not listed.

    Raises:
        InputError: a port that is taken, or a value out of its range.
    """
    from workbench.serving.routes import Routes

    key = from_environment()
    warn_if_open(host, key)
    listener, tally = _listen(host, port), Tally()
    try:
        batcher = Batcher(
            engine,
            batch_size=batch_size,
            max_wait_time=max_wait_time,
            queue_size=queue_size,
            tally=tally,
        )
    except BaseException:
        listener.close()
        raise
    url = base_url(host, listener.getsockname()[1])
    names = _names(engine, name)
    routes = Routes(engine, batcher, tally, names, [engine.info.model, *aliases])
    gate = Gate(routes, batcher, key)
    return DiffusionServer(gate, batcher, listener, url, names)


class Gate:
    """Lets requests in: those with the key, while the server takes any; takes rows of leavers out.

    Args:
        key: bearer key without which there is 401; None asks for none.
    """

    def __init__(self, routes: Routes, batcher: Batcher, key: str | None) -> None:
        self._routes, self._app, self._batcher = routes, routes.app(), batcher
        self._key = key.strip() if key else None
        self._lock = threading.Lock()
        self._inside = 0
        self._emptied: Callable[[], None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        from fastapi import Request

        with self._lock:
            refusal = self._refusal(scope)
            self._inside += refusal is None
        if refusal:
            response = await self._routes.refuse(Request(scope), refusal)
            await response(scope, receive, send)
            return
        tickets: list[Ticket] = []
        scope.setdefault("state", {})["tickets"] = tickets
        try:
            await self._app(scope, receive, send)
        finally:
            self._batcher.cancel(tickets)
            with self._lock:
                self._inside -= 1
                self._tell_if_empty()

    def close(self) -> None:
        """End what the paths hold."""
        self._routes.close()

    def drain(self, emptied: Callable[[], None]) -> None:
        """Take no more requests, and call when those inside have their answers."""
        self._batcher.hurry()
        with self._lock:
            self._routes.draining, self._emptied = True, emptied
            self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        if self._emptied and not self._inside:
            self._emptied()
            self._emptied = None

    def _refusal(self, scope: Scope) -> Refusal | None:
        path = scope["path"]
        if path in OPEN:
            return None
        if not accepts(self._key, path, scope["headers"]):
            error = REFUSAL["error"]
            headers = {"WWW-Authenticate": "Bearer"}
            return Refusal(401, str(error["message"]), code=error["code"], headers=headers)
        if self._routes.draining and scope["method"] == "POST":
            return Refusal(503, "the server is being ended; it takes no more requests")
        return None


def _finish(
    web: uvicorn.Server, thread: threading.Thread, batcher: Batcher, close: Callable[[], None]
) -> None:
    batcher.close()
    web.should_exit = True
    thread.join(2 * GRACE)
    close()


def _listen(host: str, port: int | None) -> socket.socket:
    """A listening socket: what comes before the event loop runs waits there.

    Raises:
        InputError: the port is taken, or the host is no address of this machine.
    """
    if port is not None:
        check_port(host, port)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise InputError(f"host={host!r}, port={port!r} cannot be used: {error}") from error


def _names(engine: DiffusionEngine, name: str | None) -> tuple[str, ...]:
    """As a remote engine reads them: the plain name, and one with the revision if it is known."""
    info = engine.info
    shown = name or (Path(info.model).name if Path(info.model).is_dir() else info.model)
    return (shown, f"{shown}@{engine.variant}") if engine.variant else (shown,)
