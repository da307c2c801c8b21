"""Where a task comes from: what opens it again, and the digests of its files.

A report has it in its provenance (`source`), so that `reproduction` can open the same task.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Source = dict[str, Any]
"""`name` (of a task, or the path of a file), `arguments` of its constructor, and `files`: the
SHA-256 of each file's content by its name."""


def sums(*paths: object) -> dict[str, str]:
    """The SHA-256 of each file by its name; without those that cannot be read."""
    files = [path for path in map(Path, map(str, paths)) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def file_source(path: object, *, examples: object = None, **arguments: Any) -> Source | None:
    """The source of a task in files; None if its rows, or its worked examples, are in memory."""
    named = [one for one in (path, examples) if one is not None]
    if not all(isinstance(one, str | Path) for one in named):
        return None
    whole = [str(Path(str(one)).expanduser().resolve()) for one in named]
    arguments["examples"] = whole[1] if examples is not None else None
    known = {name: value for name, value in arguments.items() if value not in (None, "", [])}
    return {"name": whole[0], "arguments": known, "files": sums(*whole)}


def source_of(task: object, named: Mapping[str, Callable[[], Any]]) -> Source | None:
    """What opens a task again; None if it was made in memory or by custom code.

    Args:
        named: the classes of tasks with a name; their arguments are read from the task.
    """
    if (known := getattr(task, "source", None)) is not None:
        return dict(known)
    name = next((name for name, kind in named.items() if kind is type(task)), None)
    if name is None:
        return None
    wanted = inspect.signature(named[name]).parameters
    arguments = {one: getattr(task, one, getattr(task, f"_{one}", None)) for one in wanted}
    files = task.files() if hasattr(task, "files") else []
    return {"name": name, "arguments": arguments, "files": sums(*files)}
