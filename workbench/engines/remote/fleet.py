"""The servers of an engine: URLs, or a folder or file that lists them and may change.

A folder has the readiness files of `workbench slurm serve`, or any JSON files with a "url". A text
file has a URL per line; `#` begins a comment. Both are read again during a call.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.http import is_loopback
from workbench.engines.remote.retry import FatalError, RequestError, UnreachableError
from workbench.engines.remote.settings import RemoteOptions, check_url, shown_url
from workbench.errors import EngineUnavailableError, InputError

log = logging.getLogger("workbench")
Look = Callable[[Endpoint], Awaitable[None]]
INTERVAL = 15.0  # seconds after which the folder or file is read again
LOOK = 60.0  # seconds for a check of what a server serves
JOIN = 3.0  # seconds between checks of servers that were not up
REFUSED = 10  # times as long after a check that found another model
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
        self._place = None if self._path is None else self._path.absolute()  # wherever we go later
        self._known: dict[str, Endpoint] = {}
        self._warned = ""
        self._checked = set[Endpoint]()
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

        A server that is no longer listed gets no further requests, unless no listed one is used
        yet: it may be about to stop, or the file system may be slow. A listed one is checked first.
        """
        if self._place is None or time.monotonic() - self._read_at < INTERVAL:
            return
        self._read_at = time.monotonic()
        try:
            listed = [self._endpoint(url) for url in urls_of(self._place)]
        except (InputError, EngineUnavailableError) as error:
            if str(error) != self._warned:
                log.warning("the servers stay as they are: %s", error)
            self._warned = str(error)
            return
        for endpoint in listed:
            if endpoint not in self.endpoints:
                endpoint.absent = NEW
        gone = [endpoint for endpoint in self.endpoints if endpoint not in listed]
        if all(endpoint.absent is not None for endpoint in listed):
            listed, gone = [*listed, *gone], []
        if gone:
            log.info("no longer in %s: %s", self._path, self.shown(gone))
        self.endpoints[:] = listed

    async def watch(self, look: Look, joined: Callable[[Endpoint], None]) -> None:
        """Add servers that were not up, or not listed, as soon as they answer; never ends.

        Args:
            look: raises a `RequestError` if a server is not what the call needs.
            joined: called with each server that has joined.
        """
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.to_thread(self.refresh)
                for endpoint in self.endpoints:  # a silent one does not delay the others
                    if endpoint.absent is not None and endpoint not in self._checked:
                        self._checked.add(endpoint)
                        group.create_task(self._take_in(endpoint, look, joined))
                await asyncio.sleep(JOIN)

    async def _take_in(
        self, endpoint: Endpoint, look: Look, joined: Callable[[Endpoint], None]
    ) -> None:
        try:
            await endpoint.check(look, LOOK)
        except RequestError as error:
            if str(error) != endpoint.absent and not isinstance(error, UnreachableError):
                log.warning("%s cannot join: %s", endpoint.shown, error)
            endpoint.absent = str(error)
            if isinstance(error, FatalError):  # a check costs a server with another model requests
                await asyncio.sleep(REFUSED * JOIN)
        else:
            endpoint.absent = None
            joined(endpoint)
            log.info("%s has joined", endpoint.shown)
        finally:
            self._checked.discard(endpoint)

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
        kind = type(given).__name__ if urls else "empty"
        raise InputError(
            f"base_url is {kind}: give a server's URL such as http://127.0.0.1:8000/v1, several "
            "in a list, a folder or file with URLs, or one in WORKBENCH_BASE_URL; `workbench serve "
            "vllm` starts a server"
        )
    return list(dict.fromkeys(map(check_url, urls)))


def _listed(path: Path) -> list[str]:
    try:
        found = _of_folder(path) if path.is_dir() else _of_file(path)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise InputError(
            f"base_url={shown_url(str(path))!r} must begin with http:// or https://, or be a "
            f"folder or file that lists servers ({why})"
        ) from None
    if not found:
        raise EngineUnavailableError(
            f"{path} lists no server yet: wait until one is ready, or start some with `workbench "
            "slurm serve --submit`"
        )
    return list(dict.fromkeys(map(check_url, found)))


def _of_file(path: Path) -> list[str]:
    lines = (line.partition(" #")[0].strip() for line in path.read_text("utf-8-sig").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _of_folder(path: Path) -> list[str]:
    found = []
    for file in sorted(path.glob("*.json")):
        try:
            entry = json.loads(file.read_text("utf-8-sig"))
            url, host = check_url(entry["url"]), str(entry.get("host", ""))
        except InputError as error:
            _warn(f"{file} is ignored: {error}")
            continue
        except (OSError, ValueError, LookupError, TypeError):
            continue  # it is removed or written at this moment, or is something else
        if is_loopback(urlsplit(url).hostname) and host not in ("", socket.gethostname()):
            _warn(f"{file}: it answers on {host} only, as it was started without a key")
            continue
        found.append(url)
    return found


@cache
def _warn(text: str) -> None:
    """Log it once: the files are read again and again."""
    log.warning("%s", text)
