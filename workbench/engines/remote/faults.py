"""What can go wrong between here and a server, told apart by what to do about it."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

TOO_MANY = (429, 529)
CONFIGURATION = (401, 402, 403, 404, 405)  # as wrong for the next request as for this one
PASSING = (408, 409, 425)
AWAY = (502, 503)


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a job has no result: a fault that ends there, as data."""

    reason: str


class Fault(Exception):  # noqa: N818  # they are kinds of fault, and caught as such
    """A request was not answered; `status` is HTTP's, where it came with one."""

    status: int | None = None


class Refused(Fault):
    """The server will not do this request, however often it is asked."""


class Broken(Fault):
    """This answer is unusable (an error inside, half a body, no JSON, too late): ask again."""


class Busy(Fault):
    """Too many requests; `wait` is how many seconds the server asks for, if it says."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Down(Fault):
    """The server cannot be reached, or is starting: ask again, for as long as patience lasts."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Fatal(Fault):
    """No request can succeed there (a wrong key, an unknown model)."""


def from_status(status: int, text: str, headers: Mapping[str, str], *, working: bool) -> Fault:
    """The fault that an HTTP status stands for.

    Args:
        status: of the response.
        text: what the server said.
        headers: of the response, for how long to wait.
        working: it has answered before, so that 403 is about the request.
    """
    fault = _kind(status, text, headers, working=working)
    fault.status = status
    return fault


def _kind(status: int, text: str, headers: Mapping[str, str], *, working: bool) -> Fault:
    message = f"HTTP {status}: {text}" if text else f"HTTP {status}"
    if status in TOO_MANY and "insufficient_quota" not in text:
        return Busy(message, _retry_after(headers))
    if status == 403 and working:
        return Refused(message)
    if status in CONFIGURATION or status in TOO_MANY:
        return Fatal(message)
    if status in AWAY:
        return Down(message, _retry_after(headers))
    if status in PASSING or status >= 500:
        return Broken(message)
    return Refused(message)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, given in seconds, in milliseconds or as a date."""
    text = headers.get("retry-after", "").strip()
    try:
        if "retry-after-ms" in headers:
            return _seconds(float(headers["retry-after-ms"]) / 1000)
        if text[:1].isdigit():
            return _seconds(float(text))
        date = email.utils.parsedate_to_datetime(text) if text else None
        return _seconds(date.timestamp() - time.time()) if date else None
    except (ValueError, TypeError, ArithmeticError, OSError):
        return None


def _seconds(value: float) -> float | None:
    return max(0.0, value) if math.isfinite(value) else None
