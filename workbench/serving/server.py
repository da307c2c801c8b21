"""A vLLM server in a separate process: start, wait, restart, and stop with all its children."""

from __future__ import annotations

import http.client
import os
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from workbench import values
from workbench.engines.checkpoints.checks import check_adapters
from workbench.engines.device import OUT_OF_MEMORY
from workbench.engines.source import Source
from workbench.engines.vllm import unavailable
from workbench.errors import EngineError, EngineUnavailableError, InputError, WorkbenchError, log
from workbench.lazy import psutil
from workbench.machine import install_hint
from workbench.progress import check
from workbench.runs import run_dir
from workbench.serving import presets
from workbench.serving.access import base_url, free_port, reachable, required_key
from workbench.serving.presets import command
from workbench.serving.process import ServerProcess, last_lines, open_log

TIMEOUT = 600.0
TIMEOUT_PRESET = 1800.0  # seconds: hundreds of gigabytes are read first
REPORT = 10.0  # seconds between log lines while it loads

# Serialises starts in threads, as two threads cannot import transformers for the first time.
_checking = threading.Lock()

MISSING = (
    "is not a valid model identifier", "repositorynotfound", "couldn't connect to",
    "can't load the configuration", "localentrynotfound", "invalid repository id", "gated repo",
)  # fmt: skip


class PortTakenError(EngineError):
    """Another program took the port first."""


class Server:
    """A running server, until `close()` or the end of this process; created by `serve`.

    Attributes:
        url: the base URL of its OpenAI interface, for `open_engine(base_url=…)`.
        model: the name that it serves.
            It is listed as `<model>@<revision>` too, if the revision is known.
        log: the file with vLLM's output.
    """

    def __init__(
        self,
        source: Source,
        options: Mapping[str, Any],
        identity: Mapping[str, Any],
        path: Path,
        *,
        host: str,
        port: int,
        timeout: float,
    ) -> None:
        self.url = base_url(host, port)
        self.model, self.log = str(identity["name"]), path
        self._line = command(source, host, port, options)
        self._options, self._identity = options, identity
        self._host, self._port, self._timeout = host, port, timeout
        self._start()

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its process is running."""
        return self._process.alive

    def kill(self) -> None:
        """Stop all its processes at once (SIGKILL), to test failures."""
        if self._end.alive:
            self._process.kill()
            self._end()

    def close(self) -> None:
        """Stop it, with SIGKILL after 10 s; a second call does nothing."""
        self._end()

    def restart(self) -> None:
        """Stop what is left of it, start it again on the same port, and wait until it answers.

        Raises:
            InputError: another program has taken the port.
            EngineError: it did not start again.
        """
        self.close()
        free_port(self._host, self._port)
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server(url={self.url!r}, model={self.model!r})"

    def _start(self) -> None:
        variables = presets.environment(self._options, self._identity)
        self._process = ServerProcess(self._line, variables, self.log)
        self._end = weakref.finalize(self, self._process.finish)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        begun, report = time.monotonic(), REPORT
        while (waited := time.monotonic() - begun) < self._timeout:
            check()
            if (code := self._process.exit_code(0.2)) is not None:
                raise _explain(self._process.output(), code, self.log)
            if _answers(self._host, self._port) and _listens(self.pid, self._port):
                log.info("%r answers after %.0f s", self, waited)
                return
            if waited > report:
                log.info("%s is loading for %.0f s (%s)", self.model, waited, self.log)
                report += REPORT
        raise EngineError(
            f"the server did not answer within timeout={self._timeout:g} s; increase it, or see "
            f"{self.log} for its progress"
        )


def serve(
    model: str | None = None,
    preset: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    log: str | Path | None = None,
    timeout: float | None = None,
    **options: Any,
) -> Server:
    """Start a vLLM server and wait until it answers.

    If the environment variable `WORKBENCH_API_KEY` is set, clients must send that key at every path
    but `/health`.

    Args:
        model: hub name or local folder; None is the embedded model.
        preset: settings for models of a size: "8b", "70b", "405b" (see `PRESETS`).
        host: the address to listen at; the default is reachable from this machine only.
        port: None chooses a free one.
        log: the file for its output, which is appended to; None is a new one in `runs/serve/`.
        timeout: seconds to wait until it answers; None is 600, or 1800 with a preset.
        options: flags of vLLM's server in snake case, which take precedence over the preset: True
            is `--flag`, False `--no-flag`, None removes one of our defaults.

    Raises:
        InputError: an unknown preset or option, a port that is taken, too few GPUs, or a folder
            that is broken or has pickles as weights.
        EngineUnavailableError: vLLM is not installed here.
        EngineError: it ended, or did not answer in time; quotes vLLM's output.
    """
    if reason := unavailable():
        raise EngineUnavailableError(
            f"no server can run here: {reason}; install it with {install_hint()}"
        )
    settings_of_size = presets.find_preset(preset, options)
    source = Source.find(model)
    source.check_causal()
    settings = presets.arguments(source, settings_of_size, options)
    own_tokenizer = {"tokenizer", "skip_tokenizer_init", "config"} & settings.keys()
    with _checking:
        source.check(settings, tokenizer=not own_tokenizer, whole=True)
    check_adapters(settings.get("lora_modules"))
    if timeout is None:
        timeout = TIMEOUT_PRESET if settings_of_size else TIMEOUT
    timeout = values.real("timeout", timeout, 0, float("inf"), above=True)
    if port is not None:
        free_port(host, port)
    required_key(host)
    identity, path = presets.served(source, settings), _log_file(log)

    def start() -> Server:
        at = free_port(host) if port is None else port
        return Server(source, settings, identity, path, host=host, port=at, timeout=timeout)

    try:
        return start()
    except PortTakenError:  # between the check and the start
        if port is not None:
            raise
        return start()


def _log_file(path: str | Path | None) -> Path:
    """A new file, or the caller's, ready to append to."""
    if path is not None:
        file = Path(path).expanduser()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            open_log(file).close()
        except OSError as error:
            raise InputError(f"log={str(path)!r} cannot be written: {error}") from error
        return file
    folder, name = run_dir() / "serve", time.strftime("%Y%m%d-%H%M%S-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, unique = tempfile.mkstemp(".log", name, folder)
    except OSError:  # the project folder is read-only
        handle, unique = tempfile.mkstemp(".log", "workbench-serve-")
    os.close(handle)
    return Path(unique)


def _answers(host: str, port: int) -> bool:
    # Not urllib: it would use the environment's proxy.
    with closing(http.client.HTTPConnection(reachable(host), port, timeout=5)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _listens(pid: int, port: int) -> bool:
    """Whether our process listens at the port, not another server that took it."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
        sockets = [at for process in family for at in process.net_connections("tcp")]
    except psutil.Error:  # not all systems show sockets
        return True
    return any(at.status == "LISTEN" and at.laddr.port == port for at in sockets)


def _explain(output: str, code: int, path: Path) -> Exception:
    """The error for a server that ended before it answered, from the log at `path`."""
    if wrong := presets.refused_option(output):
        return wrong
    low, remedy = output.lower(), "see the whole log"
    kind: type[WorkbenchError] = EngineError
    if "address already in use" in low:
        kind, remedy = PortTakenError, "the port is taken: choose another port=…, or none"
    elif code == -signal.SIGKILL or any(words in low for words in OUT_OF_MEMORY):
        remedy = "memory ran out: use a smaller max_model_len or max_num_seqs, or use more GPUs"
    elif "validation error" in low:
        kind, remedy = InputError, "an option has a wrong value, or does not fit the model"
    elif any(words in low for words in MISSING):
        remedy = "the model was not found: check its name, the network, and HF_TOKEN if it is gated"
    return kind(f"the server ended with code {code}; {remedy} ({path})\n{last_lines(output)}")
