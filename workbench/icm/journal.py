"""A search on disk: every answer of the model, as soon as it is there.

A search is decided by its settings and these answers alone. So a search that was killed is run
again from its beginning; it takes from the journal what it has asked before, and goes on where that
ends. Labels, energies and moves stand there too, for people.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from workbench.errors import InputError

__all__ = ["Journal"]


class Journal:
    """Lines of JSON: a header, then `asked` (what the model answered) and `move` lines.

    Args:
        path: the file, or None to keep nothing.
        header: what the search rests on; a file with another one is refused.

    Raises:
        InputError: the file is no journal, or belongs to another search.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, Any]) -> None:
        self._file: TextIO | None = None
        self._asked: dict[str, deque[dict[str, Any]]] = {}
        self._moves = 0
        if path is None:
            return
        target = Path(path).expanduser()
        head = json.loads(json.dumps({"workbench": "icm", **header}))  # as it comes back
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            size = self._read(target, head) if target.exists() else 0
            if size:
                os.truncate(target, size)  # half a line, left there by a kill
            self._file = target.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"checkpoint={str(path)!r} cannot be written: {error}") from error
        if not size:
            self._file.truncate(0)
            self._write(head)

    def _read(self, path: Path, head: Mapping[str, Any]) -> int:
        """Take what stands there; returns how many bytes of it are whole lines."""
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            if data and not json.dumps(head).encode().startswith(data):
                raise InputError(f"checkpoint {path} is no journal of a search: name another file")
            return 0
        try:
            first, *lines = map(json.loads, whole.splitlines())
        except ValueError as error:
            raise InputError(f"checkpoint {path} is broken: {error}; remove it") from error
        if not isinstance(first, dict) or first.get("workbench") != "icm":
            raise InputError(f"checkpoint {path} is no journal of a search: name another file")
        differ = [k for k in {**head, **first} if head.get(k) != first.get(k)]
        if differ:
            name = differ[0]
            raise InputError(
                f"checkpoint {path} is of another search: its {name} is {first.get(name)!r}, here "
                f"it is {head.get(name)!r}; name another file, or remove it to begin again"
            )
        for line in lines:
            if not isinstance(line, dict) or not (
                {"asked", "scores", "cost"} <= {*line} or "move" in line
            ):
                raise InputError(f"checkpoint {path} is broken: {line!r:.60}; remove it")
            if "asked" in line:
                self._asked.setdefault(line["asked"], deque()).append(line)
            self._moves += "move" in line
        return len(whole)

    def answer(self, asked: str) -> dict[str, Any] | None:
        """What the model answered when the search asked this before, if it did."""
        known = self._asked.get(asked)
        return known.popleft() if known else None

    def add(self, asked: str, answer: Mapping[str, Any]) -> None:
        """What the model has answered just now."""
        self._write({"asked": asked, **answer})

    def move(self, **facts: Any) -> None:
        """An accepted move, and all labels after it."""
        if self._moves:  # it stands there already
            self._moves -= 1
            return
        self._write({"move": facts})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file; the journal stays."""
        if self._file is not None:
            self._file.close()
