"""One OpenAI-compatible server: its connections and its features."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit
from zlib import crc32

from workbench.engines.remote import words
from workbench.engines.remote.availability import Availability
from workbench.engines.remote.http import (
    HttpClient,
    HttpReply,
    api_key,
    connection_error,
    header_values,
    is_loopback,
    redactor,
)
from workbench.engines.remote.retry import (
    TOO_MANY,
    FatalError,
    RejectedError,
    RequestError,
    RetryableError,
    UnreachableError,
    error_of_status,
)
from workbench.engines.remote.settings import RemoteOptions, check_url, shown_url

log = logging.getLogger("workbench")
TOP, FEWER = 20, 5  # the usual maximum of log-probabilities per token; some servers allow fewer
MOST_SEED = 2**31 - 1  # the largest seed where seeds are signed 32-bit integers
NARROW = re.compile(r"int(eger)?_?32|i32|2147483647|integer.*(large|range|overflow)", re.IGNORECASE)
ONE_PROMPT = "one prompt per request"
NAMES = 4  # of a server that answers under several; with more, a name says nothing
CHECKING = contextvars.ContextVar("CHECKING", default=False)  # whether a request is of a check
SPARE = {"seed": words.UNKNOWN, "stop": ""}  # optional settings, and how a server refuses them


class Endpoint(Availability):
    """A base URL with its connections, its concurrency limit, and what is known of the server.

    Paths are relative to the URL, with "//…" to the server's root. Requests raise `RequestError`.

    Args:
        url: such as `http://127.0.0.1:8000/v1`; its query is sent with every request.
        options: timeouts, limits and headers.

    Attributes:
        multi: whether it accepts several prompts per request; None is unknown.
        assumed: whether `multi` is assumed, as the server is vLLM; a gateway may be before it.
        batch: the same for chats.
        exact: whether it returns log-probabilities for requested token ids.
        completes, chats, logprobs: whether it continues texts, answers chats, returns
            log-probabilities; None is unknown.
        samples: whether it returns several samples per request, as far as is known.
        without: the settings of `SPARE` that it refuses; they are no longer sent.
        short_seeds: whether it refuses seeds above `MOST_SEED`.
        top: how many of the likeliest tokens it returns, as far as is known.
        tokenizes: whether it has /tokenize, as far as is known.
        absent: why it is not used yet; it is checked again later.
    """

    def __init__(self, url: str, options: RemoteOptions) -> None:
        super().__init__(options.max_concurrency)
        self.url = check_url(url)
        self.shown = shown_url(self.url)
        self.number = crc32(self.url.encode())  # for hashing
        self.multi: bool | None = None
        self.batch: bool | None = None
        self.assumed = False
        self.exact: bool | None = None
        self.completes: bool | None = None
        self.chats: bool | None = None
        self.logprobs: bool | None = None
        self.samples = True
        self.without: frozenset[str] = frozenset()
        self.short_seeds = False
        self._names: set[str] = set()  # of the model in its replies
        self._new_names: set[str] = set()  # until it has been checked
        self.top = TOP
        self.tokenizes = True
        self.vllm = False
        self.absent: str | None = None
        self._looking, self._testing = asyncio.Lock(), asyncio.Lock()
        self._failed_look: tuple[float, RequestError] | None = None  # time and error
        self._timeout = options.timeout
        self._limit_names = ("max_tokens", "max_completion_tokens")  # the name that works is first
        (self.key_name, key), values = api_key(self.url), header_values(options.headers or {})
        self.has_key = key is not None
        query = [value for _, value in parse_qsl(urlsplit(self.url).query)]
        self.clean = redactor([key or "", *values.values(), *query])
        self.paid = bool(key or values) and not is_loopback(urlsplit(self.url).hostname)
        self._http = HttpClient(self.url, options, key=key, headers=values)

    async def generate(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """`post` a body with `max_tokens`, without the settings of `SPARE` that the server refuses.

        If it accepts no `stop`, the caller cuts the text.
        """
        sent = {name: value for name, value in body.items() if name not in self.without}
        if self.short_seeds and "seed" in sent:
            sent["seed"] &= MOST_SEED
        try:
            return await self._limited(path, sent)
        except RejectedError as error:
            said, seed = str(error), sent.get("seed", 0)
            if seed > MOST_SEED and (words.names(said, "seed") or NARROW.search(said)):
                reply = await self.generate(path, sent | {"seed": seed & MOST_SEED})
                self.short_seeds = "seed" not in self.without
                return reply
            refused = {x for x in SPARE if x in sent and words.refuses(said, x, SPARE[x])}
            if not refused:
                raise
            first = error
        try:
            reply = await self.generate(path, {x: v for x, v in sent.items() if x not in refused})
        except RejectedError as error:
            raise first if any(words.names(str(error), one) for one in refused) else error from None
        self.without |= refused
        log.info("%s does not accept %s", self.shown, " or ".join(sorted(refused)))
        return reply

    async def _limited(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """`post`, with the token limit under the name that this server accepts."""
        if "/chat" not in path:  # there it has one name only
            return await self.post(path, body)
        rest = {key: value for key, value in body.items() if key != "max_tokens"}
        name, other = self._limit_names
        try:
            return await self.post(path, {**rest, name: body["max_tokens"]})
        except RejectedError as error:
            if not (words.names(str(error), other) or words.refuses(str(error), name)):
                raise
        reply = await self.post(path, {**rest, other: body["max_tokens"]})
        self._limit_names = (other, name)
        return reply

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST `body` as JSON and return the reply."""
        sent, several = time.monotonic(), _several(body)
        assumed = self.assumed and several > 0
        try:
            reply = self._json(await self._fetch("POST", path, body))
        except (RejectedError, RetryableError, FatalError) as refusal:
            if assumed and refusal.status and not await self._test_several(body):
                raise RejectedError(ONE_PROMPT) from None
            raise
        if not isinstance(reply, dict):
            said = f"the reply is not a JSON object: {self.clean(repr(reply))}"
            raise RetryableError(said, status=200)
        error = reply.get("error")  # some proxies send errors under HTTP 200
        if error and isinstance(error, dict | str):
            text = error if isinstance(error, str) else str(error.get("message"))
            raise RetryableError(self.clean(text), status=200)
        if path.endswith("/completions") and not reply.get("choices"):
            raise RetryableError(f"the reply has no choices: {self.clean(str(reply))}", status=200)
        if path == "/completions":
            self.completes = True
        self._works(sent)
        self._check_name(reply.get("model"))
        if several and "choices" in reply:
            if (found := len(reply["choices"])) == several:
                self.assumed = False
            elif assumed and not await self._test_several(body):
                raise RejectedError(ONE_PROMPT)
            else:  # a gateway may have joined the prompts: the first is an answer to all of them
                raise RejectedError(f"the reply has {found} answers to {several} prompts")
        return reply

    def _check_name(self, name: object) -> None:
        """Refuse a reply that names another model than earlier ones, until a check has passed."""
        known = name in self._names or len(self._names) >= NAMES
        if not isinstance(name, str) or CHECKING.get() or known:
            return
        if not self._names:
            self._names.add(name)
            return
        self._new_names.add(name)
        self.suspect(gone=True)
        raise RetryableError(f"it answers as {self.clean(name)!r} now", status=200)

    async def _test_several(self, body: Mapping[str, Any]) -> bool:
        """Whether it accepts several prompts, which was assumed when `body` was sent."""
        async with self._testing:
            if self.assumed:  # until it is known, no reply to several is used unchecked
                test = {"model": body["model"], "prompt": ["1", "2"], "max_tokens": 1}
                try:
                    reply = self._json(await self._fetch("POST", "/completions", test))
                    self.multi = len(reply["choices"]) == 2
                except (TypeError, LookupError):
                    self.multi = False
                except (RejectedError, RetryableError, FatalError) as error:
                    if error.status in (None, 401):
                        raise
                    self.multi = False
                self.assumed = False
                log.info("%s accepts %s", self.shown, "several prompts" * self.multi or ONE_PROMPT)
        return bool(self.multi)

    async def get(self, path: str) -> Any:
        """GET the JSON at `path`."""
        return self._json(await self._fetch("GET", path))

    async def text(self, path: str) -> str:
        """GET the text at `path`."""
        return (await self._fetch("GET", path)).decode(errors="replace")

    async def lives(self, since: float) -> bool:
        """Whether it has answered since then, or lists its models now."""
        if self.answered <= since:
            try:
                await self.get("/models")
            except RequestError:
                return self.answered > since
        return True

    def close(self) -> None:
        """Close the connections, as garbage collection does too."""
        self._http.close()

    def _json(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            text = data[:10_000].decode(errors="replace")
            kind = "a web page" if "<html" in text[:500].lower() else "not JSON"
            said = f"the reply is {kind}: {self.clean(text)!r}"
            raise RetryableError(said, status=200) from None

    async def _fetch(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """The body of a successful reply; records what a failure says about the server."""
        sent = time.monotonic()
        try:
            reply = await self._exchange(method, path, body)
            if 200 <= reply.status < 300:
                return reply.body
            had_answered = self.answered > 0
            if reply.status < 500 and reply.status not in TOO_MANY:  # it works, but refuses this
                self._works(sent)
            text = words.with_remedy(self.clean(words.message_of(reply.body)), body or {})
            if reply.status in (401, 403):
                remedy = words.key_remedy(self.key_name, given=self.has_key)
                text = f"{remedy}. It says: {text}" if text else remedy
            raise error_of_status(reply.status, text, reply.headers, has_answered=had_answered)
        except RequestError as error:
            if isinstance(error, UnreachableError) or error.status == 504:
                self.suspect(gone=True)
            if self._http.proxy is not None:
                error.args = (f"{error} (through the proxy {self._http.proxy})",)
            raise

    async def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> HttpReply:
        scheme, place, base, query, _ = urlsplit(self.url)
        whole = path[1:] if path.startswith("//") else base + path
        url = urlunsplit((scheme, place, whole, query, ""))
        try:
            content = None
            if body is not None:
                content = json.dumps(
                    body, ensure_ascii=False, separators=(",", ":"), allow_nan=False
                ).encode()
        except UnicodeEncodeError as error:
            raise RejectedError(f"the prompt is not valid text: {error.reason}") from None
        except ValueError as error:
            raise RejectedError(f"the request cannot be written as JSON: {error}") from None
        try:
            async with asyncio.timeout(self._timeout):
                return await self._http.send(method, url, content)
        except TimeoutError:
            self.suspect()
            raise RetryableError(f"no answer within {self._timeout:g} s") from None
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001  # of three libraries, on whatever a server sends
            found = connection_error(error, self.clean)
            if not isinstance(found, FatalError):
                self.suspect()
            raise found from None

    async def check(self, look: Callable[[Endpoint], Awaitable[None]], seconds: float) -> None:
        """Check that the server is what a call needs; concurrent callers share one check.

        Raises:
            RequestError: it is not, or it does not answer.
        """
        began = time.monotonic()
        async with self._looking:
            if self._failed_look is not None and self._failed_look[0] > began:
                raise self._failed_look[1]
            if self.absent is None and not self.doubtful:
                return
            checking = CHECKING.set(True)
            try:
                async with asyncio.timeout(max(0.0, seconds)):
                    await look(self)
            except TimeoutError:
                error: RequestError = RetryableError(f"no answer to a check within {seconds:.0f} s")
            except Exception as raised:  # noqa: BLE001  # whatever a server sends
                error = self.as_request_error(raised)
            else:
                self._names |= self._new_names
                return
            finally:
                CHECKING.reset(checking)
            self._failed_look = (time.monotonic(), error)
            raise error

    def as_request_error(self, error: Exception) -> RequestError:
        """Turn any error about a reply into a `RequestError` without secrets."""
        if not isinstance(error, RequestError):
            error = RetryableError(f"its answer cannot be read ({type(error).__name__}: {error})")
        error.args = (self.clean(str(error)),)
        return error

    def several(self, *, chats: bool) -> bool | None:
        """Whether it accepts several texts, or chats, per request; None is unknown."""
        return self.batch if chats else self.multi


def _several(body: Mapping[str, Any]) -> int:
    """How many answers a request for several texts or chats must have; 0 if it is for one."""
    for asked in (body.get("prompt"), body.get("messages")):
        if isinstance(asked, list) and len(asked) > 1 and not isinstance(asked[0], int | Mapping):
            return len(asked) * int(body.get("n", 1))
    return 0
