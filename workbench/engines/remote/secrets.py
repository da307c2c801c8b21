"""Keys for servers: where they come from, and how error messages and logs are kept free of them.

Only a server's words are cleaned, on their way into an error or a log. An answer is never changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from workbench.errors import InputError

OPENAI = "api.openai.com"
KEYS = ("WORKBENCH_API_KEY", "OPENAI_API_KEY")
SHORT = 8  # characters below which a key may be part of a word, such as "test" of "latest"
MOST = 10_000  # characters that are looked through
SAID = 300  # characters of a server's words that an error repeats
NAMED = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}  # entities of HTML


def _known() -> Mapping[str, str | None]:
    """The environment, over a `.env` file."""
    from dotenv import dotenv_values, find_dotenv

    return {**dotenv_values(find_dotenv(usecwd=True)), **os.environ}


def api_key(url: str) -> str | None:
    """The key for a server: never OpenAI's for another one.

    Raises:
        InputError: it has characters that no key has.
    """
    known = _known()
    names = KEYS if urlsplit(url).hostname == OPENAI else KEYS[:1]
    key = next((known[name] for name in names if known.get(name)), None)
    key = key and key.strip()
    if key and not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {' or '.join(names)} has characters that no key has")
    return key or None


def header_values(headers: Mapping[str, str]) -> dict[str, str]:
    """HTTP headers with the values of the environment variables that are named for them.

    Raises:
        InputError: a variable is not set. What was given is not repeated: it may be the secret.
    """
    known, found = _known(), {}
    for name, variable in headers.items():
        value = (known.get(variable) or "").strip()
        if not value:
            raise InputError(
                f"headers: {name!r} is not the name of an environment variable that is set. Give "
                "the NAME of a variable (or of a line in .env) that holds the value, such as "
                '{"api-key": "AZURE_OPENAI_API_KEY"}; the value itself would end up in a notebook'
            )
        if not (value.isascii() and value.isprintable()):
            raise InputError(f"headers: the value for {name!r} has characters that no header has")
        found[name] = value
    return found


class Redactor:
    """Takes secrets out of a server's words, escaped for JSON, HTML or URLs or not."""

    def __init__(self, secrets: Iterable[str]) -> None:
        longest_first = sorted(set(secrets), key=len, reverse=True)
        patterns = [_pattern(secret) for secret in longest_first]
        self._pattern = re.compile("|".join(patterns), re.IGNORECASE) if patterns else None

    def clean(self, text: str) -> str:
        """The words without secrets, on one line, not too many."""
        text = " ".join(text[:MOST].split())
        if self._pattern is not None:
            text = self._pattern.sub("…", text)
        return text[:SAID]


def _pattern(secret: str) -> str:
    pattern = "".join(map(_character, secret))
    if len(secret) < SHORT:
        return rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"
    return pattern


def _character(one: str) -> str:
    """A character as it is, or escaped in one of the usual ways."""
    code = ord(one)
    forms = [
        re.escape(one),
        f"%{code:02x}",
        rf"\\{{1,8}}u{code:04x}",
        f"&#0*{code};",
        f"&#x0*{code:x};",
    ]
    if not one.isalnum():
        forms.append(r"\\{1,8}" + re.escape(one))
    if one in NAMED:
        forms.append(f"&{NAMED[one]};")
    if one == " ":
        forms.append(r"\+")
    return f"(?:{'|'.join(forms)})"
