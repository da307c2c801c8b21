"""A vLLM server as a child process: started, awaited, restarted, and ended with all its own."""

from __future__ import annotations

import http.client
import logging
import os
import re
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from workbench.engines.local import OUT_OF_MEMORY
from workbench.engines.source import Source
from workbench.errors import EngineError, InputError, WorkbenchError
from workbench.serving.presets import command, environment, refused_option

__all__ = ["PortTakenError", "Server", "check_port", "free_port"]

logger = logging.getLogger("workbench")

GRACE = 10.0  # seconds to end in order
NEWS = 10.0  # seconds between lines of our log while it loads
LAST = 15  # lines of its log that an error quotes
NOISE = r"    |  File |usage:|Traceback|The above exc|During handling|.*Warning:|W\d{4} |Loading "

# Outlives us and sees us die by the end of its input: then the server has to go too. A line of
# input means that all is done. The signal that Linux can send on a parent's death would not do:
# it comes when the *thread* that started the child ends.
GUARD = 'read -r line && exit; kill -s TERM -- "-$1"; sleep 10; kill -s KILL -- "-$1"'

MISSING = (
    "is not a valid model identifier", "repositorynotfound", "couldn't connect to",
    "can't load the configuration", "localentrynotfound", "invalid repository id", "gated repo",
)  # fmt: skip


class PortTakenError(EngineError):
    """Somebody else was quicker."""


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]  # the server's, first of its group
    guard: subprocess.Popen[bytes]
    owner: int  # our own process id: a fork of us must not end what is ours


class Server:
    """A server that answers, until `close()` or the end of this process; made by `serve`.

    Attributes:
        url: the base URL of its OpenAI interface, for `open_engine(base_url=…)`.
        model: the name it serves.
        names: all its names; with a second one, `<model>@<revision>`, it tells its revision.
        log: the file with what vLLM says.
    """

    def __init__(
        self,
        source: Source,
        options: Mapping[str, Any],
        names: list[str],
        path: Path,
        *,
        host: str,
        port: int,
        timeout: float,
    ) -> None:
        here = _reachable(host)
        self.url = f"http://{f'[{here}]' if ':' in here else here}:{port}/v1"
        self.model, self.names, self.log = names[0], tuple(names), path
        self._line = command(source, names, host, port, options)
        self._options, self._host, self._port, self._timeout = options, host, port, timeout
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
            _signal_group(self.pid, signal.SIGKILL)
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
        self._child = _spawn(self._line, environment(self._options), self.log)
        self._end = weakref.finalize(self, _finish, self._child)
        try:
            self._wait(said)
        except BaseException:
            self.close()
            raise

    def _wait(self, said: int) -> None:
        begun, news = time.monotonic(), NEWS
        while (waited := time.monotonic() - begun) < self._timeout:
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


def _reachable(host: str) -> str:
    """The address at which this machine finds a server that listens at `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def _bind(host: str, port: int) -> int:
    family, _, _, _, address = socket.getaddrinfo(host, port)[0]
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        probe.bind(address)
        return int(probe.getsockname()[1])


def free_port(host: str) -> int:
    """A port that nobody has at this moment.

    Raises:
        InputError: `host` is not an address of this machine.
    """
    try:
        return _bind(host, 0)
    except OSError as error:
        raise InputError(f"host={host!r} is no address of this machine: {error}") from error


def check_port(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on.

    Raises:
        InputError: it is no port number, or taken.
    """
    if not isinstance(port, int) or not 0 < port < 2**16:
        raise InputError(f"port={port!r} must be a whole number from 1 to 65535, or None")
    try:
        _bind(host, port)
    except OSError as error:
        raise InputError(
            f"port={port} of host={host!r} cannot be used: {error}; give another, or leave it out "
            "for a free one"
        ) from error


def _spawn(line: list[str], variables: dict[str, str], path: Path) -> _Child:
    with path.open("ab") as output:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
    try:
        guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "workbench-guard", str(process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except BaseException:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return _Child(process, guard, os.getpid())


def _finish(child: _Child) -> None:
    """End the whole group, and then its guard."""
    if os.getpid() != child.owner:
        return
    pid = child.process.pid
    try:
        _signal_group(pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(GRACE)
    finally:
        _signal_group(pid, signal.SIGKILL)
        child.process.wait()
        patience = time.monotonic() + GRACE
        while _lives(pid) and time.monotonic() < patience:
            time.sleep(0.02)
        with suppress(OSError):
            child.guard.communicate(b"\n")


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _lives(group: int) -> bool:
    """Whether any process of it is left, other than ended ones that nobody has collected."""
    psutil: Any = import_module("psutil")
    for process in psutil.process_iter(["status"]):
        with suppress(OSError):
            if os.getpgid(process.pid) == group and process.info["status"] != "zombie":
                return True
    return False


def _answers(host: str, port: int) -> bool:
    # Not urllib: it would go through the proxy that the environment names.
    with closing(http.client.HTTPConnection(_reachable(host), port, timeout=5)) as connection:
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
    return kind(f"the server ended with code {code}; {remedy} ({path})\n{_last_lines(text)}")


def _last_lines(text: str) -> str:
    """What is said, without the frames of tracebacks, times, process names and repetitions."""
    form = r"^(\(.*?\) ?)?([A-Z]+ [\d-]+ [\d:]+ \[.*?\] ?)?"
    plain = [re.sub(form, "", line) for line in text.split("\n") if " WARNING " not in line]
    said = [line for line in plain if line.strip() and not re.match(NOISE, line)]
    return "\n".join(list(dict.fromkeys(reversed(said)))[:LAST][::-1])
