"""A vLLM server as a child process: started, awaited, restarted, and ended with all its own."""

from __future__ import annotations

import http.client
import logging
import signal
import subprocess
import time
import weakref
from collections.abc import Mapping
from contextlib import closing, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from workbench.engines.device import OUT_OF_MEMORY
from workbench.engines.source import Source
from workbench.errors import EngineError, InputError, WorkbenchError
from workbench.progress import check
from workbench.serving.address import base_url, check_port, reachable
from workbench.serving.presets import command, environment, refused_option
from workbench.serving.process import finish, last_lines, signal_group, spawn

logger = logging.getLogger("workbench")

NEWS = 10.0  # seconds between lines of our log while it loads

MISSING = (
    "is not a valid model identifier", "repositorynotfound", "couldn't connect to",
    "can't load the configuration", "localentrynotfound", "invalid repository id", "gated repo",
)  # fmt: skip


class PortTakenError(EngineError):
    """Somebody else was quicker."""


class Server:
    """A server that answers, until `close()` or the end of this process; made by `serve`.

    Attributes:
        url: the base URL of its OpenAI interface, for `open_engine(base_url=…)`.
        model: the name it serves.
            It is listed as `<model>@<revision>` too, where the revision is known.
        log: the file with what vLLM says.
    """

    def __init__(
        self,
        source: Source,
        options: Mapping[str, Any],
        told: Mapping[str, Any],
        path: Path,
        *,
        host: str,
        port: int,
        timeout: float,
    ) -> None:
        self.url = base_url(host, port)
        self.model, self.log = str(told["name"]), path
        self._line = command(source, host, port, options)
        self._options, self._told = options, told
        self._host, self._port, self._timeout = host, port, timeout
        self._start()

    @property
    def pid(self) -> int:
        """Its process id, which is that of its process group too."""
        return self._child.process.pid

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._child.process.poll() is None

    def kill(self) -> None:
        """End all its processes at once and unasked (SIGKILL), to test what follows."""
        if self._end.alive:
            signal_group(self.pid, signal.SIGKILL)
            self._end()

    def close(self) -> None:
        """End it in order, and by force what is left after 10 s; again does nothing."""
        self._end()

    def restart(self) -> None:
        """End what is left of it, start the same on the same port, and wait until it answers.

        Raises:
            InputError: another program has taken the port.
            EngineError: it did not come up again.
        """
        self.close()
        check_port(self._host, self._port)
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server(url={self.url!r}, model={self.model!r})"

    def _start(self) -> None:
        said = self.log.stat().st_size if self.log.exists() else 0  # a restart adds to the log
        self._child = spawn(self._line, environment(self._options, self._told), self.log)
        self._end = weakref.finalize(self, finish, self._child)
        try:
            self._wait(said)
        except BaseException:
            self.close()
            raise

    def _wait(self, said: int) -> None:
        begun, news = time.monotonic(), NEWS
        while (waited := time.monotonic() - begun) < self._timeout:
            check()
            with suppress(subprocess.TimeoutExpired):
                code = self._child.process.wait(0.2)
                raise _explain(self.log, said, code)
            if _answers(self._host, self._port) and _listens(self.pid, self._port):
                logger.info("%r answers after %.0f s", self, waited)
                return
            if waited > news:
                logger.info("%s is loading for %.0f s (%s)", self.model, waited, self.log)
                news += NEWS
        raise EngineError(
            f"the server did not answer within timeout={self._timeout:g} s; give it longer, or "
            f"see {self.log} for what it is doing"
        )


def _answers(host: str, port: int) -> bool:
    # Not urllib: it would go through the proxy that the environment names.
    with closing(http.client.HTTPConnection(reachable(host), port, timeout=5)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _listens(pid: int, port: int) -> bool:
    """Whether it is ours that answers, and not another server that took the port."""
    psutil: Any = import_module("psutil")
    try:
        here = psutil.Process(pid)
        family = [here, *here.children(recursive=True)]
        found = [at for one in family for at in one.net_connections("tcp")]
    except psutil.Error:  # a system that does not tell
        return True
    return any(at.status == "LISTEN" and at.laddr.port == port for at in found)


def _explain(path: Path, said: int, code: int) -> Exception:
    """Why a server ended before it answered, from what its log has since byte `said`."""
    text = path.read_bytes()[said:].decode(errors="replace")
    if wrong := refused_option(text):
        return wrong
    low, remedy = text.lower(), "see the whole log"
    kind: type[WorkbenchError] = EngineError
    if "address already in use" in low:
        kind, remedy = PortTakenError, "the port is taken: give another port=…, or none"
    elif code == -signal.SIGKILL or any(words in low for words in OUT_OF_MEMORY):
        remedy = "memory ran out: give a smaller max_model_len or max_num_seqs, or use more GPUs"
    elif "validation error" in low:
        kind, remedy = InputError, "an option has a wrong value, or does not fit the model"
    elif any(words in low for words in MISSING):
        remedy = "the model was not found: check its name, the network, and HF_TOKEN if it is gated"
    return kind(f"the server ended with code {code}; {remedy} ({path})\n{last_lines(text)}")
