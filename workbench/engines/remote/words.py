"""How servers word refusals, and the remedies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

UNKNOWN = (
    r"unsupported|unrecogni[sz]ed|unknown|unexpected|not (support(ed)?|permitted|allowed)|extra"
)
REMEDIES = {
    "temperature": "give Sampling(temperature=1.0), which such models require",
    "stop": "leave `stop` out of Sampling, and cut the text yourself",
    "seed": "leave `seed` out of Sampling",
    "logprobs": "leave `logprobs` out of Sampling",
    "top_p": "leave `top_p` out of Sampling",
}
NO_TEXTS = (
    "it has no completions, so that it cannot continue texts: give chats (lists of messages in "
    'generate, style="chat" in evaluate, --chat in generate and eval); ICM needs completions'
)
NO_LONGER = 'open it again, with style="chat" or --chat in the command'


def key_remedy(variable: str, *, given: bool) -> str:
    """The remedy if a server asks for a key, or refuses the one that `variable` holds."""
    if given:
        return f"it refuses the key in {variable} (environment or .env file)"
    return f"it asks for a key: put it in {variable} (environment or .env file)"


def names(message: str, name: str) -> bool:
    """Whether a message mentions a setting of that name."""
    return re.search(rf"(?<!\w){name}(?!\w)", message) is not None


def refuses(message: str, name: str, how: str = UNKNOWN) -> bool:
    """Whether a message says that the setting, or its value, is not supported."""
    return names(message, name) and re.search(how, message, re.IGNORECASE) is not None


def with_remedy(message: str, body: Mapping[str, Any]) -> str:
    """The message with a remedy, if a setting of the request was refused."""
    for name, remedy in REMEDIES.items():
        if name in body and refuses(message, name):
            return f"{message}. This server does not accept it: {remedy}"
    return message


def message_of(body: bytes) -> str:
    """The text of an error reply: the message inside its JSON, else the body."""
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
