"""Where a server listens: ports that are free, URLs that reach it, a word if anybody could."""

from __future__ import annotations

import logging
import socket

from workbench.errors import InputError

logger = logging.getLogger("workbench")


def base_url(host: str, port: int) -> str:
    """The base URL, for this machine, of the OpenAI interface of a server that listens there."""
    here = reachable(host)
    return f"http://{f'[{here}]' if ':' in here else here}:{port}/v1"


def reachable(host: str) -> str:
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


def warn_if_open(host: str, key: str | None) -> None:
    """Say so where a server listens to other machines and asks for no key."""
    if not key and host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning(
            "host=%r without a key: anybody who reaches it can use the model; set "
            "WORKBENCH_API_KEY to ask for one",
            host,
        )
