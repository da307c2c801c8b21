"""HTTP to one server: the SDK's clients, limited bodies, and keys that are never shown.

The SDK spends as much time per request as everything else together. So its headers are built once,
and requests go to its HTTP client directly. A notebook already runs an event loop, so all network
work runs in a separate loop in a daemon thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import re
import ssl
import threading
import time
import urllib.request
import weakref
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from workbench import progress
from workbench.engines.remote.retry import (
    FatalError,
    RequestError,
    RetryableError,
    UnreachableError,
)
from workbench.engines.remote.settings import RemoteOptions
from workbench.errors import InputError

# Its INFO lines, one per request, would show a URL's query and bury our one line per call.
logging.getLogger("httpx2").setLevel(logging.WARNING)

T = TypeVar("T")
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")  # OpenSSL's errors for plain HTTP
CONNECT = 20.0  # seconds to make a connection
LARGEST = 64 * 2**20  # maximum bytes of a body, decompressed
TOO_LARGE = f"its answer has more than {LARGEST >> 20} MB"
AGAIN = 60.0  # seconds until trusted certificates are read again
REDIRECTS = 5  # maximum, all on one server
OPENAI = "api.openai.com"
KEYS = ("WORKBENCH_API_KEY", "OPENAI_API_KEY")
SHORT = 8  # characters: a shorter key may be part of a word, such as "test" of "latest"
SEARCHED, SHOWN = 10_000, 300  # characters of a server's message: searched for secrets, shown
ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}  # of HTML
THREAD = "workbench-loop"
_lock = threading.RLock()  # re-entrant: a finalizer may run while the lock is held
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop, started at first use."""
    global _loop  # noqa: PLW0603  # one per process
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name=THREAD, daemon=True).start()
        return _loop


def start_coroutine(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start `work` in the background; cancelling the future cancels it."""
    return asyncio.run_coroutine_threadsafe(work, background_loop())


def run_coroutine(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in the background and wait for it; an interrupt cancels it."""
    future = start_coroutine(work)
    try:
        while not wait([future], timeout=0.5).done:
            progress.check()
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _close_in_background(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Safe to call anywhere: the garbage collector may run in the loop itself."""
    future = start_coroutine(close())
    if threading.current_thread().name != THREAD:
        with contextlib.suppress(Exception):
            future.result(timeout=1.0)


def _forget_loop() -> None:
    """Start over in a forked process: it has the loop, but not its thread."""
    global _loop, _lock
    _loop, _lock = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_loop)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A complete response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Connections to the server at a base URL.

    Args:
        url: the base URL.
        options: timeouts and limits; "threads" uses the SDK's synchronous client in a pool.
        key: sent as a bearer token; None sends none.
        headers: additional headers.
    """

    def __init__(
        self, url: str, options: RemoteOptions, *, key: str | None, headers: Mapping[str, str]
    ) -> None:
        import httpx2
        import openai

        self.proxy = proxy_of(url)
        most = options.max_concurrency + 8
        settings: dict[str, Any] = {
            "limits": httpx2.Limits(max_connections=most, max_keepalive_connections=most),
            "timeout": httpx2.Timeout(options.timeout, connect=CONNECT),
            "follow_redirects": False,
            "verify": trusted(),
        }
        if self.proxy is None:  # even if the environment names one: httpx2 has no rule for loopback
            settings["mounts"] = {_origin(url): None}
        sent = httpx2.Headers(_headers(url, key, headers))
        close: Callable[[], Coroutine[Any, Any, None]]
        if options.transport == "aiohttp":
            client = openai.DefaultAioHttpClient(**settings)
            self._once, close = _by_aiohttp(client, sent), client.aclose
        else:
            pool = ThreadPoolExecutor(most, thread_name_prefix="workbench")
            threaded = openai.DefaultHttpxClient(**settings)
            self._once, close = _by_threads(threaded, sent, options.timeout, pool)
        self._finalizer = weakref.finalize(self, _close_in_background, close)

    def close(self) -> None:
        """Close the connections, as garbage collection does too."""
        self._finalizer()

    async def send(self, method: str, url: str, content: bytes | None) -> HttpReply:
        """The response to a request; redirects are followed only within the same server.

        Raises:
            RequestError: it redirects elsewhere, is too large, or is not compressed as it says.
            Exception: whatever the HTTP libraries raise.
        """
        for _ in range(REDIRECTS):
            reply = await self._once(method, url, content)
            target = reply.headers.get("location")
            if reply.status not in (301, 302, 303, 307, 308) or target is None:
                return reply
            target = urljoin(url, target)
            if _origin(target) != _origin(url):
                raise FatalError(
                    f"it redirects to {_origin(target).rpartition('@')[2]}, another server, which "
                    "was sent nothing: if you trust it, give its URL as base_url"
                )
            if method != "GET" and reply.status not in (307, 308):
                raise FatalError(f"HTTP {reply.status}: it redirects to {urlsplit(target).path!r}")
            url = target
        raise RetryableError(f"it redirects without end ({REDIRECTS} times)")


_Exchange = Callable[[str, str, bytes | None], Awaitable[HttpReply]]


def _by_aiohttp(client: Any, headers: Any) -> _Exchange:
    import httpx2

    parsed = lru_cache(64)(httpx2.URL)

    async def exchange(method: str, url: str, content: bytes | None) -> HttpReply:
        request = client.build_request(method, parsed(url), headers=headers, content=content)
        response = await client.send(request, stream=True)
        try:
            body = bytearray()
            async for chunk in response.aiter_raw():
                _extend(body, chunk)
            return _reply(response, body)
        finally:
            await response.aclose()

    return exchange


def _by_threads(
    client: Any, headers: Any, timeout: float, pool: ThreadPoolExecutor
) -> tuple[_Exchange, Callable[[], Coroutine[Any, Any, None]]]:
    def block(method: str, url: str, content: bytes | None) -> HttpReply:
        end = time.monotonic() + timeout  # the caller may have stopped waiting
        request = client.build_request(method, url, headers=headers, content=content)
        response = client.send(request, stream=True)
        try:
            body = bytearray()
            for chunk in response.iter_raw():
                _extend(body, chunk)
                if time.monotonic() > end:
                    raise TimeoutError
            return _reply(response, body)
        finally:
            response.close()

    async def exchange(method: str, url: str, content: bytes | None) -> HttpReply:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, block, method, url, content)

    async def close() -> None:
        pool.shutdown(wait=False, cancel_futures=True)
        client.close()

    return exchange, close


def _extend(body: bytearray, chunk: bytes) -> None:
    body += chunk
    if len(body) > LARGEST:
        raise RetryableError(TOO_LARGE)


def _reply(response: Any, body: bytearray) -> HttpReply:
    """The response, decompressed up to the maximum size."""
    headers = dict(response.headers)
    packed, encoding = bytes(body), headers.get("content-encoding", "").strip().lower()
    if not packed or encoding in ("", "identity"):
        return HttpReply(response.status_code, headers, packed)
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise RetryableError(f"its answer is compressed as {encoding!r:.40}, against the request")
    unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)  # gzip's header or zlib's
    try:
        unpacked = unpacker.decompress(packed, LARGEST + 1)
    except zlib.error as error:
        raise RetryableError(f"its answer is not valid {encoding}: {error}") from None
    if len(unpacked) > LARGEST:
        raise RetryableError(TOO_LARGE)
    if not unpacker.eof:
        raise RetryableError(f"its answer ends in the middle of the {encoding}")
    return HttpReply(response.status_code, headers, unpacked)


def _origin(url: str) -> str:
    return urlunsplit((*urlsplit(url)[:2], "", "", ""))


def _headers(url: str, key: str | None, more: Mapping[str, str]) -> dict[str, str]:
    """The SDK's headers with ours on top; no authorization without a key."""
    import httpx2
    import openai

    unused = httpx2.AsyncClient(verify=trusted())  # the SDK's reads all certificates again
    client = openai.AsyncOpenAI(
        base_url=url, api_key=key or "none", max_retries=0, http_client=unused
    )
    defaults = {**client.default_headers, **(client.auth_headers if key else {})}
    plain = {
        name: value
        for name, value in defaults.items()
        if isinstance(value, str) and (key or name.lower() != "authorization")
    }
    return plain | {"Accept-Encoding": "identity"} | dict(more)


def trusted() -> Any:
    """The trusted certificates: servers opened together share them, as reading takes 0.07 s."""
    named = (os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    return _read_trusted(*named, time.monotonic() // AGAIN)


@lru_cache(1)
def _read_trusted(*_: object) -> Any:
    import httpx2

    return httpx2.create_ssl_context()


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address is this machine."""
    name = (host or "").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def proxy_of(url: str) -> str | None:
    """The environment's proxy for a URL, without its password; None for loopback."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    named = urllib.request.getproxies()
    proxy = named.get(parts.scheme) or named.get("all")
    return proxy and proxy.rpartition("@")[2].rpartition("://")[2]


def _environment() -> Mapping[str, str | None]:
    """The environment, which takes precedence over a `.env` file."""
    from dotenv import dotenv_values, find_dotenv

    return {**dotenv_values(find_dotenv(usecwd=True)), **os.environ}


def api_key(url: str) -> tuple[str, str | None]:
    """(variable, key) for a server; OpenAI's variable is for OpenAI's server only.

    Raises:
        InputError: the key has characters that no key has.
    """
    environment = _environment()
    names = KEYS if urlsplit(url).hostname == OPENAI else KEYS[:1]
    found = ((name, value.strip()) for name in names if (value := environment.get(name)))
    name, key = next(found, (names[0], ""))
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {name} has characters that no key has")
    return name, key or None


def header_values(headers: Mapping[str, str]) -> dict[str, str]:
    """HTTP headers, with the values of the environment variables that they name.

    Raises:
        InputError: a variable is not set. The message does not repeat it: it may be the secret.
    """
    environment = _environment()
    values = {name: (environment.get(at) or "").strip() for name, at in headers.items()}
    for name, value in values.items():
        if not value:
            raise InputError(
                f"headers: {name!r} is not the name of an environment variable that is set. Give "
                "the NAME of a variable (or of a line in .env) that holds the value, such as "
                '{"api-key": "AZURE_OPENAI_API_KEY"}; the value itself would end up in a notebook'
            )
        if not (value.isascii() and value.isprintable()):
            raise InputError(f"headers: the value for {name!r} has characters that no header has")
    return values


def redactor(secrets: Iterable[str]) -> Callable[[str], str]:
    """A function that removes secrets from a server's message, and shortens it to one line.

    It finds escaped forms too. It is for errors and logs only: an answer is never changed.
    """
    longest_first = sorted(set(secrets) - {""}, key=len, reverse=True)
    patterns = re.compile("|".join(map(_pattern, longest_first)) or "(?!)", re.IGNORECASE)
    return lambda text: patterns.sub("…", " ".join(text[:SEARCHED].split()))[:SHOWN]


def _pattern(secret: str) -> str:
    pattern = "".join(map(_escaped, secret))
    return rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])" if len(secret) < SHORT else pattern


def _escaped(one: str) -> str:
    """A pattern for a character, plain or escaped for URLs, JSON or HTML."""
    code, plain = ord(one), re.escape(one)
    forms = [plain, f"%{code:02x}", rf"\\{{1,8}}u{code:04x}", f"&#0*{code};", f"&#x0*{code:x};"]
    if not one.isalnum():
        forms.append(r"\\{1,8}" + plain)
    if one in ENTITIES:
        forms.append(f"&{ENTITIES[one]};")
    if one == " ":
        forms.append(r"\+")
    return f"(?:{'|'.join(forms)})"


def connection_error(error: Exception, clean: Callable[[str], str]) -> RequestError:
    """The error for a connection that failed or broke, by its root cause."""
    import aiohttp
    import httpx2

    causes: list[BaseException] = [error]
    while (following := causes[-1].__cause__ or causes[-1].__context__) and len(causes) < 20:
        causes.append(following)
    text = clean(str(causes[-1]) or type(causes[-1]).__name__)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return FatalError(
            f"its TLS certificate is not trusted here ({text}). Set SSL_CERT_FILE to a file "
            "with the certificate of the server, or of its issuer"
        )
    if any(word in text for word in NO_TLS):
        return FatalError(f"it does not use TLS ({text}): give its URL with http://")
    if any(isinstance(c, aiohttp.ClientConnectorError | httpx2.ConnectError) for c in causes):
        return UnreachableError(text)
    return RetryableError(f"{type(causes[-1]).__name__}: {text}")
