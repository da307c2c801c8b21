"""HTTP to one server: the SDK's clients underneath, bodies of a bounded size, nothing followed.

What the SDK itself does for each request takes as long as all the rest, so that its headers are
made once and requests go to its HTTP client directly.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
import urllib.request
import weakref
import zlib
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit, urlunsplit

from workbench.engines.remote import loop
from workbench.engines.remote.faults import Broken, Fatal

# Its INFO lines, one a request, would show a URL's query and bury our one line a call.
logging.getLogger("httpx2").setLevel(logging.WARNING)

Transport = Literal["aiohttp", "threads"]
CONNECT = 20.0  # seconds to make a connection
LARGEST = 64 * 2**20  # bytes of a body, decompressed
REDIRECTS = 5  # on one server, that keep the method
WRAPPED = 32 + zlib.MAX_WBITS  # a header of gzip or zlib, whichever is there


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Http:
    """Connections to the server of a base URL.

    Args:
        url: the base URL.
        transport: "aiohttp", or "threads" for the SDK's synchronous client in a pool.
        most: maximum of concurrent requests.
        timeout: seconds for a request.
        key: sent as a bearer token; None sends none.
        headers: sent too.
    """

    def __init__(
        self,
        url: str,
        transport: Transport,
        most: int,
        timeout: float,
        *,
        key: str | None,
        headers: Mapping[str, str],
    ) -> None:
        import httpx2

        self._timeout = timeout
        self.proxy = proxy_of(url)
        limits = httpx2.Limits(max_connections=most + 8, max_keepalive_connections=most + 8)
        common: dict[str, Any] = {
            "limits": limits,
            "timeout": httpx2.Timeout(timeout, connect=CONNECT),
            "follow_redirects": False,
        }
        if self.proxy is None:  # also where the environment names one: httpx2 knows no loopback
            common["mounts"] = {urlunsplit((*urlsplit(url)[:2], "", "", "")): None}
        sent = _headers(url, key, headers)
        if transport == "aiohttp":
            self._once = self._aiohttp(common, sent)
        else:
            self._once = self._threads(common, sent, most + 8)

    def close(self) -> None:
        """Close the connections; what is collected unclosed does so too."""
        self._finalizer()

    async def send(self, method: str, url: str, content: bytes | None) -> Reply:
        """The response to a request; a redirect is followed only on the same server.

        Raises:
            Fatal: it redirects to another server.
            Broken: the body is too large, or not compressed as it says.
            Exception: whatever the libraries underneath raise.
        """
        for _ in range(REDIRECTS):
            reply = await self._once(method, url, content)
            target = reply.headers.get("location")
            if reply.status not in (301, 302, 303, 307, 308) or target is None:
                return reply
            target = urljoin(url, target)
            if urlsplit(target)[:2] != urlsplit(url)[:2]:
                place = urlunsplit((*urlsplit(target)[:2], "", "", "")).rpartition("@")[2]
                raise Fatal(
                    f"it redirects to {place}, another server, which was not sent anything: if you "
                    "trust it, give its URL as base_url"
                )
            if method != "GET" and reply.status not in (307, 308):
                raise Fatal(f"HTTP {reply.status}: it redirects to {urlsplit(target).path!r}")
            url = target
        raise Broken(f"it redirects without end ({REDIRECTS} times)")

    def _aiohttp(
        self, common: dict[str, Any], headers: Mapping[str, str]
    ) -> Callable[[str, str, bytes | None], Awaitable[Reply]]:
        import httpx2
        import openai

        http = openai.DefaultAioHttpClient(**common)
        sent = httpx2.Headers(headers)
        urls: dict[str, httpx2.URL] = {}

        async def once(method: str, url: str, content: bytes | None) -> Reply:
            place = urls.get(url) or urls.setdefault(url, httpx2.URL(url))
            request = http.build_request(method, place, headers=sent, content=content)
            response = await http.send(request, stream=True)
            try:
                body = _Body(response.headers)
                async for chunk in response.aiter_raw():
                    body.add(chunk)
                return Reply(response.status_code, dict(response.headers), body.whole())
            finally:
                await response.aclose()

        self._finalizer = weakref.finalize(self, loop.finish, http.aclose)
        return once

    def _threads(
        self, common: dict[str, Any], headers: Mapping[str, str], threads: int
    ) -> Callable[[str, str, bytes | None], Awaitable[Reply]]:
        import openai

        http = openai.DefaultHttpxClient(**common)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="workbench")
        timeout = self._timeout

        def wait(method: str, url: str, content: bytes | None) -> Reply:
            end = time.monotonic() + timeout  # of a thread that nobody waits for any more
            request = http.build_request(method, url, headers=dict(headers), content=content)
            response = http.send(request, stream=True)
            try:
                body = _Body(response.headers)
                for chunk in response.iter_raw():
                    body.add(chunk)
                    if time.monotonic() > end:
                        raise TimeoutError
                return Reply(response.status_code, dict(response.headers), body.whole())
            finally:
                response.close()

        async def once(method: str, url: str, content: bytes | None) -> Reply:
            return await asyncio.get_running_loop().run_in_executor(
                pool, wait, method, url, content
            )

        async def close() -> None:
            pool.shutdown(wait=False, cancel_futures=True)
            http.close()

        self._finalizer = weakref.finalize(self, loop.finish, close)
        return once


class _Body:
    """A body as it arrives: decompressed, and never more than the largest."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._kind = headers.get("content-encoding", "identity").strip().lower()
        if self._kind not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise Broken(f"its answer is compressed as {self._kind!r:.40}, which was not asked for")
        wrapped = self._kind not in ("", "identity")
        self._unpack = zlib.decompressobj(WRAPPED) if wrapped else None
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> None:
        if self._unpack is not None:
            try:
                chunk = self._unpack.decompress(chunk, LARGEST - self._size + 1)
            except zlib.error as error:
                raise Broken(f"its answer is not the {self._kind} that it says: {error}") from None
        self._parts.append(chunk)
        self._size += len(chunk)
        if self._size > LARGEST:
            raise Broken(f"its answer has more than {LARGEST >> 20} MB")

    def whole(self) -> bytes:
        if self._unpack is not None and self._size and not self._unpack.eof:
            raise Broken(f"its answer ends in the middle of the {self._kind}")
        return b"".join(self._parts)


def _headers(url: str, key: str | None, more: Mapping[str, str]) -> dict[str, str]:
    """The SDK's own headers, ours over them; no authorization where there is no key."""
    import openai

    client = openai.AsyncOpenAI(base_url=url, api_key=key or "none", max_retries=0)
    given = {**client.default_headers, **(client.auth_headers if key else {})}
    plain = {k: v for k, v in given.items() if isinstance(v, str)}
    if key is None:
        plain = {k: v for k, v in plain.items() if k.lower() != "authorization"}
    return plain | {"Accept-Encoding": "identity"} | dict(more)


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine itself, as far as its name tells."""
    name = (host or "").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a URL, without its password; never for loopback."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    named = urllib.request.getproxies()
    proxy = named.get(parts.scheme) or named.get("all")
    return proxy and proxy.rpartition("@")[2].rpartition("://")[2]
