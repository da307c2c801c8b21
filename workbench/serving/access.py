"""Access to a server: the address where it listens, and the key that clients must send."""

from __future__ import annotations

import hmac
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from workbench import values
from workbench.errors import InputError, log

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


OPEN = ("/health",)  # paths without a key
CHALLENGE = {"WWW-Authenticate": "Bearer"}  # the header of a refusal


def reachable(host: str) -> str:
    """The address by which this machine reaches a server that listens at `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def base_url(host: str, port: int) -> str:
    """The base URL, on this machine, of the OpenAI interface of a server that listens there."""
    here = reachable(host)
    return f"http://{f'[{here}]' if ':' in here else here}:{port}/v1"


def bound_socket(host: str, port: int | None = None) -> socket.socket:
    """A socket for a server; `port=None` chooses a free port.

    Raises:
        InputError: `port` is invalid or taken, or `host` is not an address of this machine.
    """
    number = values.optional("port", port, values.whole, 1, 2**16 - 1) or 0
    try:
        family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with ExitStack() as stack:
            bound = stack.enter_context(socket.socket(family))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            stack.pop_all()
            return bound
    except OSError as error:
        if port is None:
            raise InputError(f"host={host!r} is not an address of this machine: {error}") from error
        raise InputError(
            f"port={port} of host={host!r} cannot be used: {error}; choose another, or leave it "
            "out for a free one"
        ) from error


def free_port(host: str, port: int | None = None) -> int:
    """`port`, or one that is free at this moment.

    Raises:
        InputError: as for `bound_socket`.
    """
    with bound_socket(host, port) as probe:
        return int(probe.getsockname()[1])


def required_key(host: str = "127.0.0.1") -> str | None:
    """The key from the environment, or None; then it warns if `host` is reachable by others."""
    names = ("WORKBENCH_API_KEY", "VLLM_API_KEY")
    key = next((key for name in names if (key := os.environ.get(name, "").strip())), None)
    if key is None and host not in {"127.0.0.1", "localhost", "::1"}:
        log.warning(
            "host=%r without a key: anyone who can reach it can use the model; set "
            "WORKBENCH_API_KEY to require one",
            host,
        )
    return key


def accepts(key: str | None, path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request may pass; keys are compared in constant time."""
    if key is None or path in OPEN:
        return True
    sent = next((value for name, value in headers if name.lower() == b"authorization"), b"")
    scheme, _, token = sent.partition(b" ")
    same = hmac.compare_digest(token.strip(), key.encode())
    return same and scheme.lower() == b"bearer"


def error_body(
    message: str, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """An error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


REFUSAL = error_body(
    "a key is needed: send the header Authorization: Bearer KEY",
    "authentication_error",
    "invalid_api_key",
)


class KeyGuard:
    """An ASGI application around another one; it requires the environment's key.

    vLLM itself requires its key only below `/v1` and at few other paths.

    Args:
        refused: called for each request without a valid key.
    """

    def __init__(self, app: ASGIApp, refused: Callable[[], None] | None = None) -> None:
        self._app, self._key, self._refused = app, required_key(), refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        from starlette.responses import JSONResponse

        kind = scope["type"]
        if kind == "lifespan" or accepts(self._key, scope["path"], scope["headers"]):
            await self._app(scope, receive, send)
            return
        if self._refused:
            self._refused()
        if kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await JSONResponse(REFUSAL, 401, CHALLENGE)(scope, receive, send)
