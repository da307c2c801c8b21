"""Absolute machine paths in text: what gives away a user's folders and breaks elsewhere."""

from __future__ import annotations

import re
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOTS = (
    "Users|Volumes|app|builds|content|data|etc|home|kaggle|media|mnt|opt|private|root|scratch|"
    "srv|tmp|usr|var|workspace|workspaces"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@cache
def _pattern() -> re.Pattern[str]:
    # The machine's own folders as well: their first part may be one that no list foresees.
    own = (Path.cwd(), Path.home(), Path(sys.prefix), Path(tempfile.gettempdir()))
    own_roots = {re.escape(path.parts[1]) for path in own if len(path.parts) > 1}
    names = "|".join([_ROOTS, *sorted(own_roots)])
    # What may not stand before: a URL's host, a relative path, `</data>`, `{folder}/tmp`.
    posix = rf"(?<![\w.)\]}}/~<-])/(?:{names})(?:/[^\s'\"<>|,;:)\]}}]*|(?![\w.-]))"
    return re.compile(rf"{posix}|file://[^\s'\"]+|\b[A-Z]:\\\w[^\s'\"]*")


def absolute_paths(text: str) -> list[str]:
    """The absolute paths in a text, in order; API routes and URLs are none."""
    return _pattern().findall(_ANSI.sub("", text))


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)
