"""The servers of an engine: URLs, or a folder or file that lists them and may change.

A folder has the readiness files of `workbench slurm serve`, or any JSON files with a "url". A text
file has a URL per line; `#` begins a comment. Both are read again during a call.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.http import is_loopback
from workbench.engines.remote.settings import RemoteOptions
from workbench.errors import EngineUnavailableError, InputError

log = logging.getLogger("workbench")
INTERVAL = 15.0  # seconds after which the folder or file is read again
NEW = "it has just been listed"
FEW = 3  # servers that are named one by one


class Fleet:
    """The servers that a call may use.

    Args:
        given: `base_url`: a URL, several with commas or in a list, or a path.
        options: for each server.

    Attributes:
        endpoints: the servers that are listed now, absent ones included.

    Raises:
        InputError: an invalid URL, or a path that does not exist.
        EngineUnavailableError: nothing is listed there yet.
    """

    def __init__(self, given: object, options: RemoteOptions) -> None:
        self._options, self._path = options, _path(given)
        self._known: dict[str, Endpoint] = {}
        self._warned = ""
        self._read_at = time.monotonic()
        self.endpoints = [self._endpoint(url) for url in urls_of(given)]

    def _endpoint(self, url: str) -> Endpoint:
        if url not in self._known:
            self._known[url] = Endpoint(url, self._options)
        return self._known[url]

    @property
    def changes(self) -> bool:
        """Whether servers are listed in a folder or file."""
        return self._path is not None

    @property
    def name(self) -> str:
        """What identifies it if its servers do not: the path, or the first URL."""
        return str(self._path.resolve()) if self._path else self.endpoints[0].url

    def shown(self, servers: Sequence[Endpoint]) -> str:
        """Servers of this fleet for people: by name if they are few."""
        if self._path is None and len(servers) <= FEW:
            return ", ".join(endpoint.shown for endpoint in servers)
        where = f" of {self._path}" if self._path else ""
        return f"{len(servers)} server{'s' * (len(servers) != 1)}{where}"

    def refresh(self) -> None:
        """Read the folder or file again, if it is time.

        A server that is no longer listed gets no further requests, unless no other is listed: it
        may be about to stop, or the file system may be slow. A listed one is checked first.
        """
        if self._path is None or time.monotonic() - self._read_at < INTERVAL:
            return
        self._read_at = time.monotonic()
        try:
            listed = [self._endpoint(url) for url in urls_of(str(self._path))]
        except (InputError, EngineUnavailableError) as error:
            if str(error) != self._warned:
                log.warning("the servers stay as they are: %s", error)
            self._warned = str(error)
            return
        for endpoint in listed:
            if endpoint not in self.endpoints:
                endpoint.absent = NEW
        if gone := [endpoint for endpoint in self.endpoints if endpoint not in listed]:
            log.info("no longer in %s: %s", self._path, self.shown(gone))
        self.endpoints[:] = listed

    def close(self) -> None:
        """Close all connections."""
        for endpoint in self._known.values():
            endpoint.close()


def _path(given: object) -> Path | None:
    if isinstance(given, os.PathLike) or (isinstance(given, str) and given and "://" not in given):
        return Path(given).expanduser()
    return None


def urls_of(given: object) -> list[str]:
    """The URLs of `base_url`.

    Raises:
        InputError: it is none, or a path that cannot be read.
        EngineUnavailableError: nothing is listed there yet.
    """
    if path := _path(given):
        return _listed(path)
    urls = given.split(",") if isinstance(given, str) else given
    if not isinstance(urls, Sequence) or not urls:
        raise InputError(
            f"base_url={given!r}: give a server's URL such as http://127.0.0.1:8000/v1, several "
            "in a list, a folder or file with URLs, or one in WORKBENCH_BASE_URL; `workbench serve "
            "vllm` starts a server"
        )
    return list(dict.fromkeys(urls))


def _listed(path: Path) -> list[str]:
    try:
        found = _of_folder(path) if path.is_dir() else _of_file(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"base_url={str(path)!r} must begin with http:// or https://, or be a folder or file "
            f"that lists servers ({error})"
        ) from None
    if not found:
        raise EngineUnavailableError(
            f"{path} lists no server yet: wait until one is ready, or start some with `workbench "
            "slurm serve --submit`"
        )
    return list(dict.fromkeys(found))


def _of_file(path: Path) -> list[str]:
    lines = (line.partition(" #")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _of_folder(path: Path) -> list[str]:
    found = []
    for file in sorted(path.glob("*.json")):
        try:
            entry = json.loads(file.read_text("utf-8"))
            url, host = str(entry["url"]), str(entry.get("host", ""))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # it is removed or written at this moment, or is something else
        if is_loopback(urlsplit(url).hostname) and host not in ("", socket.gethostname()):
            log.warning("%s: it answers on %s only, as it was started without a key", file, host)
            continue
        found.append(url)
    return found
