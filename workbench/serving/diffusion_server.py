"""A masked-diffusion engine behind OpenAI's interface, in this process: requests share forwards.

Two threads: one runs the event loop, which only passes things on, the other runs the model
(`batcher`). The port is bound once the model is there, so that whoever is answered is served.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from workbench.machine import require
from workbench.serving.access import KeyGuard, base_url, bound_socket, required_key
from workbench.serving.batcher import Batcher

if TYPE_CHECKING:
    import socket

    import uvicorn

    from workbench.engines.diffusion import DiffusionEngine
    from workbench.serving.routes import DiffusionApp

logger = logging.getLogger("workbench")

BATCH_SIZE = 8
MAX_WAIT_TIME = 0.1
QUEUE_SIZE = 1024
BACKLOG = 2048  # connections that are not accepted yet
DRAIN = 30.0  # seconds to finish what is in
POLL = 0.1  # seconds from one look at signals and the model's health to the next
GRACE = 3  # seconds to send what is done
IDLE = 300  # seconds that a connection is kept for a client's next request


class DiffusionServer:
    """A server that answers, until `close()`; made by `serve_diffusion`.

    Attributes:
        url: the base URL of its OpenAI interface, for `open_engine(base_url=…)`.
        names: of the model: the plain one, and one with its revision where that is known.
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
        logger.info("%r answers", self)

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
        received: list[int] = []

        def note(number: int, _: object) -> None:
            received.append(number)

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not received:
                if self._batcher.broken:
                    logger.error("%r ends: its model fails", self)
                    return 1
                time.sleep(POLL)
            logger.info("%r finishes what is in", self)
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
        EngineUnavailableError: FastAPI or uvicorn is not installed.
    """
    require("transformers", "fastapi", "uvicorn")
    from workbench.serving.routes import DiffusionApp

    listener = bound_socket(host, port)
    try:
        listener.listen(BACKLOG)  # what comes before the event loop runs waits there
        required_key(host)
        batcher = Batcher(
            engine, batch_size=batch_size, max_wait_time=max_wait_time, queue_size=queue_size
        )
    except BaseException:
        listener.close()
        raise
    # As a remote engine reads them: the plain name, and one with the revision if it is known.
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
