"""The key that clients must send: to every path of our servers but `/health`.

vLLM itself asks for its key below `/v1` and a few other paths only. `Guard` goes around all of
its application (`--middleware`).
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

OPEN = ("/health",)  # asked for no key
REFUSAL = {
    "error": {
        "message": "a key is needed: send the header Authorization: Bearer KEY",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def from_environment() -> str | None:
    """The key that servers of this environment ask for, None where they ask for none."""
    for name in ("WORKBENCH_API_KEY", "VLLM_API_KEY"):
        if key := os.environ.get(name, "").strip():
            return key
    return None


def accepts(key: str | None, path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request may pass; keys are compared in a time that does not depend on them."""
    if key is None or path in OPEN:
        return True
    sent = next((value for name, value in headers if name.lower() == b"authorization"), b"")
    scheme, _, given = sent.partition(b" ")
    same = hmac.compare_digest(given.strip(), key.encode())
    return same and scheme.lower() == b"bearer"


class Guard:
    """An ASGI application that lets in whoever has the key of the environment."""

    def __init__(self, app: Application) -> None:
        self._app, self._key = app, from_environment()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        kind = scope["type"]
        if kind == "lifespan" or accepts(self._key, scope["path"], scope["headers"]):
            await self._app(scope, receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            from starlette.responses import JSONResponse

            asks = {"WWW-Authenticate": "Bearer"}
            await JSONResponse(REFUSAL, status_code=401, headers=asks)(scope, receive, send)
