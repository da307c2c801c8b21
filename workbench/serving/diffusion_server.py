"""A masked-diffusion engine behind OpenAI's interface, in this process: requests share forwards.

It has two threads. One runs the event loop and only forwards data, the other runs the model
(`batcher`). The port is bound once the model is loaded, so that any accepted request is served.
"""

from __future__ import annotations

import signal
import threading
import time
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from workbench.errors import log
from workbench.machine import require
from workbench.serving.access import KeyGuard, base_url, bound_socket, required_key
from workbench.serving.batcher import Batcher

if TYPE_CHECKING:
    import socket

    import uvicorn

    from workbench.engines.diffusion import DiffusionEngine
    from workbench.serving.routes import DiffusionApp


BATCH_SIZE = 8
MAX_WAIT_TIME = 0.1
QUEUE_SIZE = 1024
BACKLOG = 2048  # connections in the queue of the socket
DRAIN = 30.0  # seconds to finish running requests
POLL = 0.1  # seconds between checks of signals and the model's health
GRACE = 3  # seconds to send finished answers
IDLE = 300  # seconds that an idle client's connection is kept


class DiffusionServer:
    """A running server, until `close()`; created by `serve_diffusion`.

    Attributes:
        url: the base URL of its OpenAI interface, for `open_engine(base_url=…)`.
        names: the model's names: the plain one, and one with its revision if known.
    """

    def __init__(
        self, app: DiffusionApp, batcher: Batcher, listener: socket.socket, host: str
    ) -> None:
        import uvicorn

        self.url, self.names = base_url(host, listener.getsockname()[1]), tuple(app.names)
        self._app, self._batcher = app, batcher
        config = uvicorn.Config(
            KeyGuard(app, partial(app.stats.add_error, "authentication_error")),
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
        self._end = weakref.finalize(self, _finish, web, thread, batcher, app)
        log.info("%r answers", self)

    @property
    def model(self) -> str:
        """The name that it serves."""
        return self.names[0]

    def run(self) -> int:
        """Serve in the main thread until SIGTERM or Ctrl-C; then finish running requests and close.

        While it finishes, new requests and `/health` get 503. A second Ctrl-C, or 30 s, ends it at
        once. A second SIGTERM does not: a cluster and a script may each send one. It also ends if
        the model fails repeatedly.

        Returns:
            0 if every accepted request was answered, else 1.
        """
        received: list[int] = []

        def note(number: int, _: object) -> None:
            received.append(number)

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not received:
                if self._batcher.broken:
                    log.error("%r ends: the model failed", self)
                    return 1
                time.sleep(POLL)
            log.info("%r finishes running requests", self)
            self._app.drain()
            deadline = time.monotonic() + DRAIN
            while self._app.inside and signal.SIGINT not in received[1:]:
                if time.monotonic() > deadline:
                    break
                time.sleep(POLL)
            return int(self._app.inside > 0)
        finally:
            self.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Stop at once; unanswered requests get an error. A second call does nothing."""
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
    """Serve an engine over HTTP from threads of this process; returns at once.

    If the environment variable `WORKBENCH_API_KEY` is set, clients must send that key. The engine
    remains usable, and the caller closes it.

    Args:
        host: the address to listen at; the default is reachable from this machine only.
        port: None chooses a free one.
        batch_size: maximum number of rows denoised together.
        max_wait_time: seconds that a request waits for others if nothing runs. A full batch
            starts at once, and later rows join at the next step.
        queue_size: maximum number of waiting rows; above it, clients get HTTP 429.
        name: the served name; None is the model's name.
        aliases: additional names for requests; they are not listed.

    Raises:
        InputError: a port that is taken, or a value out of its range.
        EngineUnavailableError: FastAPI or uvicorn is not installed.
    """
    require("transformers", "fastapi", "uvicorn")
    from workbench.serving.routes import DiffusionApp

    listener = bound_socket(host, port)
    try:
        listener.listen(BACKLOG)  # early connections wait there
        required_key(host)
        batcher = Batcher(
            engine, batch_size=batch_size, max_wait_time=max_wait_time, queue_size=queue_size
        )
    except BaseException:
        listener.close()
        raise
    # In the remote engine's format: the plain name, and one with the revision if it is known.
    model = engine.info.model
    shown = name or (Path(model).name if Path(model).is_dir() else model)
    names = (shown, f"{shown}@{engine.variant}") if engine.variant else (shown,)
    app = DiffusionApp(engine, batcher, names, [model, *aliases])
    return DiffusionServer(app, batcher, listener, host)


def _finish(
    web: uvicorn.Server, thread: threading.Thread, batcher: Batcher, app: DiffusionApp
) -> None:
    batcher.close()
    web.should_exit = True
    thread.join(2 * GRACE)
    app.close()
