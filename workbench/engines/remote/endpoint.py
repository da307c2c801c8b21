"""One OpenAI-compatible server: how it is reached, what it has, what it said when it failed."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from workbench.engines.remote.faults import (
    AWAY,
    TOO_MANY,
    Broken,
    Down,
    Fatal,
    Fault,
    Refused,
    from_status,
)
from workbench.engines.remote.gate import Gate
from workbench.engines.remote.http import Http, Transport, is_loopback
from workbench.engines.remote.secrets import Redactor, api_key, header_values
from workbench.errors import InputError

PLAIN = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")  # of one that speaks HTTP
REST = 5.0  # seconds after which a server that failed is tried again
# Seconds without an answer after which a server may be another: before a call, and within one.
IDLE, LULL = 0.2, 30.0
OTHER_NAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
UNKNOWN = (
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|not (support(ed)?|permitted|allowed)|extra"
)
REMEDIES = {
    "temperature": "give Sampling(temperature=1.0), which such models want",
    "stop": "leave `stop` out of Sampling, and cut the text yourself",
    "logprobs": "leave `logprobs` out of Sampling",
    "top_p": "leave `top_p` out of Sampling",
    "seed": "leave `seed` out of Sampling",
}


class Endpoint:
    """A base URL with its connections, its gate, and what is known of it.

    Args:
        url: such as `http://127.0.0.1:8000/v1`; a query is sent with every request.
        transport: "aiohttp", or "threads" for the SDK's synchronous client in a pool.
        most: maximum of concurrent requests.
        timeout: seconds for one attempt.
        headers: names of headers, with the environment variables that hold their values.
    """

    def __init__(
        self,
        url: str,
        transport: Transport,
        most: int,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url = check_url(url)
        self.shown = _shown(self.url)
        self.gate = Gate(most)
        self.prompts = 0  # in flight
        self.multi: bool | None = None  # several prompts in one request; None: not tried yet
        self.batch: bool | None = None  # the same for chats
        self.tokenizes = True  # it has /tokenize, as far as is known
        self.vllm = False
        self.exact: bool | None = None  # it gives log-probabilities of token ids named to it
        self.absent: str | None = None  # why it has no part yet; it is asked again
        self.failed_look: tuple[float, Fault] | None = None  # when, and what came of it
        self.answered = 0.0  # when it answered last, on the monotonic clock
        self.looking = asyncio.Lock()  # one look at what it serves is enough
        self._suspect: float | None = None  # since when it may have been started anew
        self._gone = False
        self._failures = 0  # since it answered
        self._failing_since = self._failed_at = self._begun = 0.0
        self._rest_until = 0.0  # until when it wants no request
        self._busy_since: float | None = None  # nothing but "too many requests" since then
        self._in_flight: list[float] = []  # when they were sent
        self._timeout = timeout
        self._limit_name = "max_tokens"
        key, values = api_key(self.url), header_values(headers or {})
        self.has_key = key is not None
        query = [value for _, value in parse_qsl(urlsplit(self.url).query)]
        self._secret = Redactor([*([key] if key else []), *values.values(), *query])
        self.paid = bool(key or values) and not is_loopback(urlsplit(self.url).hostname)
        self._http = Http(self.url, transport, most, timeout, key=key, headers=values)

    async def generate(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """`post` of a body with `max_tokens`, by the name that this server has for it.

        Raises:
            Fault: there is no reply.
        """
        if "/chat" not in path:  # has one name only
            return await self._advised(path, body)
        name = self._limit_name
        try:
            return await self._advised(path, _renamed(body, name))
        except Refused as fault:
            other = OTHER_NAME[name]
            if not _wants(other, instead_of=name, said=str(fault)):
                raise
        reply = await self._advised(path, _renamed(body, other))
        self._limit_name = other
        return reply

    async def _advised(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """`post`, with what to do where a setting is refused."""
        try:
            return await self.post(path, body)
        except Refused as fault:
            said = str(fault)
            for name, remedy in REMEDIES.items():
                named = re.search(rf"(?<!\w){name}(?!\w)", said)
                if name in body and named and re.search(UNKNOWN, said, re.IGNORECASE):
                    fault.args = (f"{said}. This server does not take it: {remedy}",)
                    break
            raise

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request; `path` is below the URL, or "//…" below the server's root.

        Raises:
            Fault: there is none.
        """
        sent = time.monotonic()
        reply = await self._send("POST", path, body)
        if not isinstance(reply, dict):
            raise Broken(f"the reply is no JSON object: {self.clean(repr(reply))}")
        if isinstance(reply.get("error"), dict):  # some proxies say so under HTTP 200
            raise Broken(self.clean(str(reply["error"].get("message"))))
        self._works(sent)
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
        """Whether it has answered since then, or does so when it is asked what it serves."""
        if self.answered <= since:
            try:
                await self.get("/models")
            except Fault:
                return self.answered > since
        return True

    def close(self) -> None:
        """Close the connections; what is collected unclosed does so too."""
        self._http.close()

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        data = await self._raw(method, path, body)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            text = data[:10_000].decode(errors="replace")
            kind = "a web page" if "<html" in text[:500].lower() else "no JSON"
            raise Broken(f"the reply is {kind}: {self.clean(text)!r}") from None

    async def _raw(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        try:
            return await self._exchange(method, self._address(path), body)
        except Fault as fault:
            if isinstance(fault, Down):
                self.suspect(gone=True)
            if self._http.proxy is not None:
                fault.args = (f"{fault} (through the proxy {self._http.proxy})",)
            raise

    def _address(self, path: str) -> str:
        scheme, place, base, query, _ = urlsplit(self.url)
        whole = path[1:] if path.startswith("//") else base + path
        return urlunsplit((scheme, place, whole, query, ""))

    async def _exchange(self, method: str, url: str, body: Mapping[str, Any] | None) -> bytes:
        sent = time.monotonic()
        try:
            content = None if body is None else _dumped(body)
        except UnicodeEncodeError as error:
            raise Refused(f"the prompt is no valid text: {error.reason}") from None
        except ValueError as error:
            raise Refused(f"the request cannot be written as JSON: {error}") from None
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._http.send(method, url, content)
        except TimeoutError:
            self.suspect()
            raise Broken(f"no answer within {self._timeout:g} s") from None
        except Fault:
            raise
        except Exception as error:  # noqa: BLE001  # of three libraries, on whatever a server sends
            raise self._unreached(error) from None
        if 200 <= reply.status < 300:
            return reply.body
        working = self.answered > 0
        if reply.status < 500 and reply.status not in TOO_MANY:  # it lives, but does not do this
            self._works(sent)
        elif reply.status in (*AWAY, 504):
            self.suspect(gone=True)
        said = self.clean(_said(reply.body))
        raise from_status(reply.status, said, reply.headers, working=working)

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
        self.suspect()
        if any(isinstance(c, aiohttp.ClientConnectorError | httpx2.ConnectError) for c in causes):
            return Down(text)
        return Broken(f"{type(causes[-1]).__name__}: {text}")

    def clean(self, text: str) -> str:
        """A server's words without our secrets, on one line, not too many."""
        return self._secret.clean(text)

    def begin(self) -> None:
        """A call begins: what failed before it does not count."""
        self._failures, self._begun = 0, time.monotonic()
        self._busy_since, self._rest_until = None, 0.0
        if self._begun - self.answered > IDLE:
            self.suspect(gone=True)

    def suspect(self, *, gone: bool = False) -> None:
        """It may have been started anew, with another model; `gone`: its process was not there."""
        self._suspect = time.monotonic()
        self._gone = self._gone or gone

    def seen(self) -> None:
        """It has been looked at, and is the same."""
        self._suspect, self._gone = None, False

    @property
    def doubtful(self) -> bool:
        """Whether to look first if it still serves what it did: after it was away, or idle."""
        idle = not self._in_flight and time.monotonic() - self.answered > LULL
        return self._suspect is not None or idle

    def _works(self, sent: float) -> None:
        self._failures, self.answered, self._busy_since = 0, time.monotonic(), None
        if self._suspect is not None and not self._gone and sent < self._suspect:
            self._suspect = None  # what was sent before has been answered: it was never away

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

    def rest(self, seconds: float) -> None:
        """It asks to be left alone for so long."""
        self._rest_until = time.monotonic() + seconds

    @property
    def resting(self) -> bool:
        """It is to be left alone."""
        return time.monotonic() < self._rest_until

    def busy_for(self) -> float:
        """Seconds in which nothing came but "too many requests", with this one."""
        now = time.monotonic()
        if self._busy_since is None:
            self._busy_since = now
        return now - self._busy_since

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
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _shown(url: str) -> str:
    """A URL without what may be secret in it."""
    scheme, mark, rest = url.partition("://")
    secret, at, rest = rest.rpartition("@")
    return scheme + mark + ("…@" if secret else at) + rest.split("?")[0]


def _renamed(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name if key == "max_tokens" else key: value for key, value in body.items()}


def _wants(name: str, *, instead_of: str, said: str) -> bool:
    """Whether a refusal is about what the limit on tokens is called."""
    if re.search(rf"(?<!\w){name}(?!\w)", said):
        return True
    refused = re.search(rf"(?<!\w){instead_of}(?!\w)", said)
    return bool(refused and re.search(UNKNOWN, said, re.IGNORECASE))


def _dumped(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (following := causes[-1].__cause__ or causes[-1].__context__) and len(causes) < 20:
        causes.append(following)
    return causes


def _said(body: bytes) -> str:
    """What a server says of an error: the message within, else the text."""
    text = body[:10_000].decode(errors="replace")
    try:
        reply = json.loads(text)
        error = reply.get("error", reply)
        said = error if isinstance(error, str) else error.get("message") or error.get("detail")
        code = error.get("code") if isinstance(error, dict) else None
    except (ValueError, AttributeError, RecursionError):
        return text
    return f"{said or reply} ({code})" if isinstance(code, str) else f"{said or reply}"
