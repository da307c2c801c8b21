"""Options for servers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import idna

from workbench.engines.source import check_options
from workbench.errors import InputError
from workbench.values import optional, real, refuse, text, whole

Transport = Literal["aiohttp", "threads"]
MOST = 1e9  # maximum of seconds and of rate limits


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """How to use a server; the defaults suit a vLLM server and a paid API.

    Attributes:
        max_concurrency: maximum number of requests in flight, per server.
        prompts_per_request: prompts per request, where the server accepts several.
        requests_per_minute, tokens_per_minute: limits of a paid API.
        timeout: seconds per attempt.
        attempts: maximum attempts for a failing request. "Too many requests" and an unreachable
            server do not count.
        total_timeout: seconds for a request with all its attempts.
        outage_timeout: seconds for which servers may be down, or answer only "too many
            requests" (plus the wait that they ask for), before the call ends or continues
            without them.
        transport: "aiohttp"; "threads" where that does not work.
        chat_template, chat_template_kwargs, fold_system: see `ChatOptions`. A custom template
            needs a vLLM server that accepts one (`--trust-request-chat-template`).
        headers: additional headers, as `{"api-key": "AZURE_OPENAI_API_KEY"}`: each value is the
            name of the environment variable (or line of `.env`) that holds the header's value.
        revision: your name for the weights, for a server that reports none: answers are stored
            under it, and no fingerprint is taken.
    """

    max_concurrency: int = 128
    prompts_per_request: int | str = "auto"
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 600.0
    attempts: int = 10
    total_timeout: float = 3600.0
    outage_timeout: float = 120.0
    transport: Transport = "aiohttp"
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    fold_system: bool = False
    headers: Mapping[str, str] | None = None
    revision: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> RemoteOptions:
        """Options by name, checked.

        Raises:
            InputError: an option is unknown, out of its range, or a secret.
        """
        if "api_key" in options:
            raise InputError(
                "api_key is not accepted here, as it would end up in a notebook: put it in the "
                "environment or in a .env file, as WORKBENCH_API_KEY"
            )
        check_options(options, [field.name for field in fields(cls)], "remote")
        return cls(**{name: _checked(name, value) for name, value in options.items()})

    @property
    def size(self) -> int | None:
        """Prompts per request; None adapts it."""
        return self.prompts_per_request if isinstance(self.prompts_per_request, int) else None


ANSWERS = {"chat_template", "chat_template_kwargs", "fold_system", "revision"}
WAYS = frozenset(field.name for field in fields(RemoteOptions)) - ANSWERS
"""The options that do not affect answers."""


def _checked(name: str, value: Any) -> Any:
    positive = partial(real, above=True)
    match name:
        case "max_concurrency" | "attempts":
            return whole(name, value, 1)
        case "prompts_per_request" if value != "auto":
            return whole(name, value, 1)
        case "timeout" | "total_timeout" | "outage_timeout":
            return positive(name, value, 0, MOST)
        case "requests_per_minute" | "tokens_per_minute":
            return optional(name, value, positive, 0, MOST)
        case "revision":
            return optional(name, value, text)
        case "transport" if value not in ("aiohttp", "threads"):
            refuse(name, value, '"aiohttp" or "threads"')
        case "headers" if value is not None and not _is_header_map(value):
            raise InputError('headers must be a dictionary such as {"api-key": "NAME_OF_VARIABLE"}')
    return value


def _is_header_map(value: object) -> bool:
    """Whether it maps header names to variables; errors do not show it: it may hold a secret."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9-]+", name) and isinstance(at, str)
        for name, at in value.items()
    )


def check_url(url: object) -> str:
    """A base URL in normal form; a server's bare address gets `/v1`.

    Raises:
        InputError: it is not the URL of a server.
    """
    need = "a server's URL such as http://127.0.0.1:8000/v1"
    if not isinstance(url, str) or not url.strip():
        raise InputError(f"base_url={url!r} must be {need}")
    try:
        parts = urlsplit(url.strip())
        parts.port  # noqa: B018  # raises if it is not a number
        if not (parts.hostname or "").isascii():
            idna.encode(str(parts.hostname))
    except ValueError as error:
        why = f"base_url={shown_url(url)!r} has no valid {_part(error)}"
        raise InputError(f"{why}: give {need}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"base_url={shown_url(url)!r} must begin with http:// or https://: {need}")
    if parts.username or parts.password:
        raise InputError(
            f"base_url={shown_url(url)!r} holds a password: put it in WORKBENCH_API_KEY instead"
        )
    path = parts.path.rstrip("/") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _part(error: ValueError) -> str:
    return "host" if isinstance(error, UnicodeError) or "IPv6" in str(error) else "port"


def shown_url(url: str) -> str:
    """A URL without its secret parts."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    place, _, query = rest.partition("?")
    if "@" in query:  # it may end a password, or be in a key
        return f"{scheme}{mark}…"
    secret, at, host = place.rpartition("@")
    return scheme + mark + ("…@" if secret else at) + host
