"""What servers say when they refuse, and what to do about it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

UNKNOWN = (
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|not (support(ed)?|permitted|allowed)|extra"
)
REMEDIES = {
    "temperature": "give Sampling(temperature=1.0), which such models want",
    "stop": "leave `stop` out of Sampling, and cut the text yourself",
    "seed": "leave `seed` out of Sampling",
    "logprobs": "leave `logprobs` out of Sampling",
    "top_p": "leave `top_p` out of Sampling",
}
NO_TEXTS = (
    "texts cannot be continued there, as it has no completions: give chats (lists of messages in "
    'generate, style="chat" in evaluate, --chat in generate and eval); ICM needs completions'
)
NO_LONGER = 'open it again, with style="chat" or --chat in the command'


def key_remedy(variable: str, *, given: bool) -> str:
    """What to do where a server wants a key, or another one than `variable` holds."""
    if given:
        return f"it refuses the key in {variable} (environment or .env file)"
    return f"it wants a key: put it in {variable} (environment or .env file)"


def names(message: str, name: str) -> bool:
    """Whether a message is about a setting of that name."""
    return re.search(rf"(?<!\w){name}(?!\w)", message) is not None


def refuses(message: str, name: str, how: str = UNKNOWN) -> bool:
    """Whether it says that there is no such setting, or not with this value."""
    return names(message, name) and re.search(how, message, re.IGNORECASE) is not None


def with_remedy(message: str, body: Mapping[str, Any]) -> str:
    """What to do where a server refuses a setting."""
    for name, remedy in REMEDIES.items():
        if name in body and refuses(message, name):
            return f"{message}. This server does not take it: {remedy}"
    return message


def message_of(body: bytes) -> str:
    """What a server says of an error: the message within, else the text."""
    text = body[:10_000].decode(errors="replace")
    if "<html" in text[:500].lower():
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        return f"a web page, {title[1].strip()!r}" if title else "a web page"
    try:
        reply = json.loads(text)
        error = reply.get("error", reply)
        message = error if isinstance(error, str) else error.get("message") or error.get("detail")
        code = error.get("code") if isinstance(error, dict) else None
    except (ValueError, AttributeError, RecursionError):
        return text
    return f"{message or reply} ({code})" if isinstance(code, str) else f"{message or reply}"
