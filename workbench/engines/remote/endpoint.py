"""One OpenAI-compatible server: how it is reached, what it has, what it said when it failed."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from workbench.engines.remote import loop
from workbench.engines.remote.faults import Broken, Down, Fatal, Fault, Refused, from_status
from workbench.engines.remote.gate import Gate
from workbench.errors import InputError

__all__ = ["Endpoint", "Transport", "check_url"]

Transport = Literal["aiohttp", "threads"]
OPENAI = "api.openai.com"
HERE = ("127.0.0.1", "localhost", "::1")
KEYS = ("WORKBENCH_API_KEY", "OPENAI_API_KEY")
PLAIN = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")  # of one that speaks HTTP
REST = 5.0  # seconds after which a server that failed is tried again
CONNECT = 20.0  # seconds to make a connection
SAID = 300  # characters of a server's words that an error repeats


class Endpoint:
    """A base URL with its connections, its gate, and what is known of it.

    Args:
        url: such as `http://127.0.0.1:8000/v1`.
        transport: "aiohttp", or "threads" for the SDK's synchronous client in a pool.
        most: requests at once, at the most.
        timeout: seconds for one attempt.
    """

    def __init__(self, url: str, transport: Transport, most: int, timeout: float) -> None:
        self.url = check_url(url)
        self.shown = _shown(self.url)
        self.gate = Gate(most)
        self.prompts = 0  # in flight
        self.multi: bool | None = None  # several prompts in one request; None: not tried yet
        self.batch: bool | None = None  # the same for chats
        self.vllm = False
        self.out: str | None = None  # why it is used no more in this call
        self.answered = 0.0  # when it answered last, on the monotonic clock
        self._failures = 0  # since then
        self._failing_since = self._failed_at = self._begun = 0.0
        self._in_flight: list[float] = []  # when they were sent
        self._timeout = timeout
        self._key = _key(self.url)
        self._ask = self._threads(most) if transport == "threads" else self._aiohttp(most)

    @property
    def paid(self) -> bool:
        """It wants a key and is not on this machine."""
        return self._key is not None and urlsplit(self.url).hostname not in HERE

    @property
    def has_key(self) -> bool:
        """A key is sent to it."""
        return self._key is not None

    @property
    def openai(self) -> bool:
        """It is OpenAI's own."""
        return urlsplit(self.url).hostname == OPENAI

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request; `path` is below the URL, or "//…" below the server's root.

        Raises:
            Fault: there is none.
        """
        reply = await self._send("POST", path, body)
        if not isinstance(reply, dict):
            raise Broken(f"the reply is no JSON object: {reply!r:.{SAID}}")
        if isinstance(reply.get("error"), dict):  # some proxies say so under HTTP 200
            raise Broken(self.clean(str(reply["error"].get("message"))))
        self._works()
        return reply

    async def get(self, path: str) -> Any:
        """The JSON at `path`.

        Raises:
            Fault: there is none.
        """
        return await self._send("GET", path, None)

    async def text(self, path: str) -> str:
        """The text at `path`.

        Raises:
            Fault: there is none.
        """
        return (await self._raw("GET", path, None)).decode(errors="replace")

    async def lives(self, since: float) -> bool:
        """Whether it has answered since then, or at least says what it serves."""
        if self.answered > since:
            return True
        try:
            return "data" in await self.get("/models")
        except (Fault, TypeError):
            return False

    def close(self) -> None:
        """Close the connections; what is collected unclosed does so too."""
        self._finalizer()

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        data = await self._raw(method, path, body)
        try:
            return json.loads(data)
        except ValueError:
            text = data.decode(errors="replace")
            kind = "a web page" if "<html" in text[:500].lower() else "no JSON"
            raise Broken(f"the reply is {kind}: {self.clean(text)!r}") from None

    async def _raw(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        import aiohttp
        import httpx2
        import openai

        root = urlunsplit((*urlsplit(self.url)[:2], "", "", ""))
        url = root + path[1:] if path.startswith("//") else self.url + path
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._ask(method, url, body)
        except TimeoutError:
            raise Broken(f"no answer within {self._timeout:g} s") from None
        except (openai.APIConnectionError, httpx2.TransportError) as error:
            raise self._unreached(error) from None
        except UnicodeEncodeError as error:
            raise Refused(f"the prompt is no valid text: {error.reason}") from None
        except (OSError, ValueError, RuntimeError, aiohttp.ClientError) as error:
            raise Broken(self.clean(f"{type(error).__name__}: {error}")) from None
        if reply.is_success:
            data: bytes = reply.content
            # Whatever a server echoes ends up in rows, errors or the store.
            return data.replace(self._key.encode(), b"***") if self._key else data
        working = self.answered > 0
        if reply.status_code < 500:  # it lives, though it does not do this
            self._works()
        raise from_status(
            reply.status_code, self.clean(_said(reply)), reply.headers, working=working
        )

    def _unreached(self, error: Exception) -> Fault:
        """A connection that could not be made, or broke: told by what lies underneath."""
        import aiohttp
        import httpx2

        causes = _causes(error)
        text = self.clean(str(causes[-1]) or type(causes[-1]).__name__)
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            return Fatal(
                f"its TLS certificate is not trusted here ({text}). Set SSL_CERT_FILE to a file "
                "with the certificate of the server, or of who signed it"
            )
        if any(word in text for word in PLAIN):
            return Fatal(f"it does not speak TLS ({text}): give its URL with http://")
        if any(isinstance(c, aiohttp.ClientConnectorError | httpx2.ConnectError) for c in causes):
            return Down(text)
        return Broken(text)

    def clean(self, text: str) -> str:
        """A server's words without our key, on one line, not too many."""
        if self._key:
            text = text.replace(self._key, "…")
        return " ".join(text.split())[:SAID]

    def _aiohttp(self, most: int) -> Callable[..., Any]:
        """Through the SDK's client for HTTP, with the SDK's headers, which are made only once.

        What the SDK itself does for each request takes as long as all the rest.
        """
        import httpx2
        import openai

        limits = httpx2.Limits(max_connections=most + 8, max_keepalive_connections=most + 8)
        http = openai.DefaultAioHttpClient(limits=limits, timeout=self._common()["timeout"])
        client = openai.AsyncOpenAI(**self._common(), http_client=http)
        given = {**client.default_headers, **client.auth_headers}
        headers = httpx2.Headers({k: v for k, v in given.items() if isinstance(v, str)})
        urls: dict[str, httpx2.URL] = {}

        async def ask(method: str, url: str, body: Mapping[str, Any] | None) -> Any:
            place = urls.get(url) or urls.setdefault(url, httpx2.URL(url))
            content = None if body is None else _dumped(body)
            request = http.build_request(method, place, headers=headers, content=content)
            return await http.send(request)

        self._finalizer = weakref.finalize(self, loop.finish, client.close)
        return ask

    def _threads(self, most: int) -> Callable[..., Any]:
        import httpx2
        import openai

        limits = httpx2.Limits(max_connections=most + 8, max_keepalive_connections=most + 8)
        client = openai.OpenAI(
            **self._common(), http_client=openai.DefaultHttpxClient(limits=limits)
        )
        pool = ThreadPoolExecutor(most + 8, thread_name_prefix="workbench")

        async def ask(method: str, url: str, body: Mapping[str, Any] | None) -> Any:
            request = partial(client.post, body=body) if method == "POST" else client.get
            call = partial(request, url, cast_to=httpx2.Response)
            try:
                return await asyncio.get_running_loop().run_in_executor(pool, call)
            except openai.APIStatusError as error:
                return error.response

        async def close() -> None:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()

        self._finalizer = weakref.finalize(self, loop.finish, close)
        return ask

    def _common(self) -> dict[str, Any]:
        import httpx2

        return {
            "base_url": self.url,
            "api_key": self._key or "none",
            "max_retries": 0,  # retries are ours
            "timeout": httpx2.Timeout(self._timeout, connect=CONNECT),
        }

    def begin(self) -> None:
        """A call begins: what failed before it does not count."""
        self.out, self._failures, self._begun = None, 0, time.monotonic()

    def _works(self) -> None:
        self._failures, self.answered = 0, time.monotonic()

    def failed(self) -> None:
        """Note a failure."""
        self._failed_at = time.monotonic()
        if not self._failures:
            self._failing_since = self._failed_at
        self._failures += 1

    def hopeful(self) -> bool:
        """It works as far as is known, or it is time that one request finds out."""
        now = time.monotonic()
        if self._failures and now - self._failed_at < REST:
            return False
        if self._failures:
            self._failed_at = now
        return True

    @property
    def silent_for(self) -> float:
        """Seconds of the call in which it has answered nothing."""
        return time.monotonic() - max(self.answered, self._begun)

    def dead(self, patience: float, least: int) -> bool:
        """Nothing but failures for so long, so many, and nothing older is under way."""
        if self._failures < least or time.monotonic() - self._failing_since <= patience:
            return False
        return all(sent > self._failing_since for sent in self._in_flight)

    @contextmanager
    def sending(self, started: float) -> Iterator[None]:
        """Around a request, from when it was sent."""
        self.gate.sent += 1
        self._in_flight.append(started)
        try:
            yield
        finally:
            self.gate.sent -= 1
            self._in_flight.remove(started)

    def __repr__(self) -> str:
        return f"<endpoint {self.shown}>"


def check_url(url: object) -> str:
    """A base URL in one form; a server's bare address means its `/v1`.

    Raises:
        InputError: it is no URL of a server.
    """
    need = "a server's URL such as http://127.0.0.1:8000/v1"
    if not isinstance(url, str) or not url.strip():
        raise InputError(f"base_url={url!r} must be {need}")
    try:
        parts = urlsplit(url.strip())
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError:
        raise InputError(f"base_url={_shown(url)!r} has no valid port: give {need}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"base_url={_shown(url)!r} must begin with http:// or https://: {need}")
    if parts.username or parts.password:
        raise InputError(
            f"base_url={_shown(url)!r} holds a password: put the key in WORKBENCH_API_KEY instead"
        )
    path = parts.path.rstrip("/") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _shown(url: str) -> str:
    """A URL without what may be secret in it."""
    scheme, mark, rest = url.partition("://")
    secret, at, rest = rest.rpartition("@")
    return scheme + mark + ("…@" if secret else at) + rest.split("?")[0]


def _key(url: str) -> str | None:
    """The key for a server: never OpenAI's for another one."""
    from dotenv import dotenv_values, find_dotenv

    known = {**dotenv_values(find_dotenv(usecwd=True)), **os.environ}
    names = KEYS if urlsplit(url).hostname == OPENAI else KEYS[:1]
    key = next((known[name] for name in names if known.get(name)), None)
    key = key and key.strip()
    if key and not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {' or '.join(names)} has characters that no key has")
    return key


def _dumped(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while following := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(following)
    return causes


def _said(response: Any) -> str:
    """What a server says of an error: the message within, else the text."""
    try:
        reply = response.json()
        error = reply.get("error", reply)
        said = error if isinstance(error, str) else error.get("message") or error.get("detail")
        code = error.get("code") if isinstance(error, dict) else None
    except (ValueError, AttributeError):
        return str(response.text)
    return f"{said or reply} ({code})" if isinstance(code, str) else f"{said or reply}"
