"""A server that says whatever a test has it say, byte by byte; real answers: test_server.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

__all__ = ["Asked", "Said", "Stranger", "choice", "listing", "plain", "prompts_of", "reply"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Json


@dataclass(frozen=True)
class Said:
    """An answer: a body (JSON unless it is bytes), or pieces of one that are sent as they come."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def choice(text: object, index: int = 0, **more: Any) -> Json:
    return {"index": index, "text": text, "finish_reason": "stop", "logprobs": None} | more


def reply(*choices: Json, **more: Any) -> Json:
    return {"object": "text_completion", "model": "m", "choices": list(choices)} | more


def listing(**card: Any) -> Json:
    return {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "me"} | card]}


def prompts_of(body: Json) -> list[str]:
    if "messages" in body:
        return [str(body["messages"][-1]["content"])]
    prompt = body.get("prompt", "")
    return [prompt] if isinstance(prompt, str) else [str(one) for one in prompt]


def plain(asked: Asked) -> Said:
    """A good answer, with no log-probabilities: each prompt twice."""
    if asked.method == "GET":
        return Said(listing()) if asked.path.endswith("/models") else Said(status=404)
    chat = "/chat/" in asked.path
    found = []
    for index, text in enumerate(prompts_of(asked.body)):
        one = choice(text * 2, index)
        if chat:
            one = {"index": 0, "finish_reason": "stop",
                   "message": {"role": "assistant", "content": one["text"]}}  # fmt: skip
        found.append(one)
    return Said(reply(*found))


class Stranger:
    """The server; `say` makes an answer of each request, and None is `plain`'s."""

    def __init__(self, say: Callable[[Asked], Said | None] = lambda _: None) -> None:
        self.say = say
        self.asked: list[Asked] = []
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(
                    self.command,
                    self.path,
                    {name.lower(): value for name, value in self.headers.items()},
                    json.loads(raw) if raw else {},
                )
                outer.asked.append(asked)
                said = outer.say(asked) or plain(asked)
                pieces = said.body
                if not hasattr(pieces, "__next__"):
                    data = pieces if isinstance(pieces, bytes) else json.dumps(pieces).encode()
                    pieces = iter([data])
                    said.headers.setdefault("Content-Length", str(len(data)))
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in said.headers:
                    self.send_header("Connection", "close")
                self.end_headers()
                try:
                    for piece in pieces:
                        self.wfile.write(piece)
                except OSError:  # the client has had enough
                    self.close_connection = True
                if "Content-Length" not in said.headers:
                    self.close_connection = True

            do_GET = do_POST = _any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
