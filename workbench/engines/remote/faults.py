"""What can go wrong between here and a server, told apart by what to do about it."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "Broken",
    "Busy",
    "Down",
    "Failed",
    "Fatal",
    "Fault",
    "Refused",
    "from_status",
    "retry_after",
]

TOO_MANY = 429
CONFIGURATION = {401, 402, 403, 404, 405}  # as wrong for the next request as for this one
PASSING = {408, 409, 425}
AWAY = {502, 503, 504}


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a job has no result: a fault that ends there, as data."""

    reason: str


class Fault(Exception):  # noqa: N818  # they are kinds of fault, and caught as such
    """A request was not answered."""


class Refused(Fault):
    """The server will not do this request, however often it is asked."""


class Busy(Fault):
    """Too many requests; `wait` is how many seconds the server asks for, if it says."""

    def __init__(self, message: str, wait: float | None) -> None:
        super().__init__(message)
        self.wait = wait


class Broken(Fault):
    """This answer is unusable (an error inside, half a body, no JSON, too late): ask again."""


class Down(Fault):
    """The server cannot be reached, or is starting: ask again, for as long as patience lasts."""


class Fatal(Fault):
    """No request can succeed (a wrong key, an unknown model): end the call."""


def from_status(status: int, text: str, headers: Mapping[str, str]) -> Fault:
    """The fault that an HTTP status stands for; `text` is what the server said."""
    message = f"HTTP {status}: {text}" if text else f"HTTP {status}"
    if status == TOO_MANY and "insufficient_quota" not in text:
        return Busy(message, retry_after(headers))
    if status in CONFIGURATION or status == TOO_MANY:
        return Fatal(message)
    if status in AWAY:
        return Down(message)
    if status in PASSING or status >= 500:
        return Broken(message)
    return Refused(message)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, given in seconds, in milliseconds or as a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        text = headers.get("retry-after", "")
        if text.replace(".", "", 1).isdigit():
            return float(text)
        date = email.utils.parsedate_to_datetime(text) if text else None
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time()) if date else None
