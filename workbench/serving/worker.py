"""One of several servers behind a front: a process that prints its base URL when it answers."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.errors import EngineError
from workbench.serving.process import Child, finish, last_lines, spawn

logger = logging.getLogger("workbench")


class Worker:
    """A process that serves, and how many requests it has from us."""

    def __init__(
        self, line: Sequence[str], variables: Mapping[str, str], log: Path, timeout: float
    ) -> None:
        self.url: str | None = None  # without the /v1, once it answers
        self.in_flight = 0
        self.started = 0.0
        self.log, self._timeout = log, timeout
        self._line, self._variables = list(line), dict(variables)
        self._child: Child | None = None

    @property
    def up(self) -> bool:
        """Whether it has answered, and its process runs at this moment."""
        child = self._child
        return self.url is not None and child is not None and child.process.poll() is None

    def end(self) -> None:
        """End it with all its processes; blocks for some seconds at most."""
        child, self._child, self.url = self._child, None, None
        if child is not None:
            finish(child)

    async def start(self) -> None:
        """Start it, and wait until it has printed its URL.

        Raises:
            EngineError: it could not be started, ended, or took too long.
        """
        self.started = time.monotonic()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            said = self.log.stat().st_size if self.log.exists() else 0  # a restart adds to it
            child = self._child = spawn(self._line, os.environ | self._variables, self.log)
        except OSError as error:
            raise EngineError(f"a worker could not be started: {error}") from error
        while time.monotonic() - self.started < self._timeout:
            code = child.process.poll()  # before reading: an ended one has said all
            with self.log.open("rb") as log:
                log.seek(said)
                text = log.read().decode(errors="replace")
            if code is not None:
                raise EngineError(
                    f"a worker ended with code {code} before it answered ({self.log})\n"
                    f"{last_lines(text)}"
                )
            if found := re.search(r"^(https?://\S+)/v1\s*\n", text, re.MULTILINE):
                self.url = found[1]
                logger.info("%s answers at %s", self.log.stem, self.url)
                return
            await asyncio.sleep(0.1)
        late = f"a worker did not answer within timeout={self._timeout:g} s"
        raise EngineError(f"{late}; see {self.log}")
