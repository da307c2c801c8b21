"""A search on disk: every answer of the model, as soon as it is there.

A search is decided by its settings and these answers alone. So a search that was killed is run
again from its beginning; it takes from the journal what it has asked before, and goes on where that
ends. Labels, energies and moves stand there too, for people.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from workbench.errors import InputError
from workbench.files import write_whole

# Digests in a header, and what a reader knows them as.
UNSEEN = {
    "claims": "claims, groups or words (another file, --limit or --batch-size)",
    "after": "labels of the batches before it (another --k or --batch-size)",
}

log = logging.getLogger("workbench")

MOST = 1e18  # above which a number is no score and no cost


class Journal:
    """Lines of JSON: a header, then `asked` (what the model answered) and `move` lines.

    A line that is broken costs its answer alone, which is asked for again: such lines are moved to
    `<file>.broken`, all but the last one, which a kill has cut short.

    Args:
        path: the file, or None to keep nothing.
        header: what the search rests on; a file with another one is refused.

    Raises:
        InputError: the file is no journal, belongs to another search, or is in use.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, Any]) -> None:
        self._file: TextIO | None = None
        self._lock: FileLock | None = None
        self._asked: dict[str, deque[dict[str, Any]]] = {}
        self._moves = 0
        if path is None:
            return
        target = Path(path).expanduser()
        head = json.loads(json.dumps({"workbench": "icm", **header}))  # as it comes back
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(target.resolve())
            kept = self._read(target, head) if target.exists() else b""
            self._file = target.open("a", encoding="utf-8")
            self._file.truncate(len(kept))
        except OSError as error:
            self.close()
            raise InputError(f"checkpoint={str(path)!r} cannot be written: {error}") from error
        except InputError:
            self.close()
            raise
        if not kept:
            self._write(head)

    def _read(self, path: Path, head: Mapping[str, Any]) -> bytes:
        """Take what stands there; returns its whole lines, which are what the file begins with."""
        data = path.read_bytes()
        first, *lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True) or [b""]
        if not first:
            if data and not json.dumps(head).encode().startswith(data):
                raise InputError(f"checkpoint {path} is no journal of a search: name another file")
            return b""
        _check_header(path, _parsed(first), head)
        good, bad = [first], dict[int, bytes]()
        for number, line in enumerate(lines, 2):
            if self._take(_parsed(line)):
                good.append(line)
            else:
                bad[number] = line
        if bad:
            aside = path.with_name(f"{path.name}.broken")
            with aside.open("ab") as file:
                file.writelines(bad.values())
            write_whole(path, b"".join(good))
            log.warning(
                "checkpoint %s: moved broken lines to %s: %s; what was asked there is asked again",
                path, aside.name, ", ".join(map(str, bad)),
            )  # fmt: skip
        return b"".join(good)

    def _take(self, line: object) -> bool:
        """Keep what a line says, if it says something."""
        if not isinstance(line, dict):
            return False
        if isinstance(line.get("move"), dict):
            self._moves += 1
            return True
        rows, cost = line.get("scores"), line.get("cost")
        good = isinstance(line.get("asked"), str) and isinstance(rows, list) and _numbers(cost, 4)
        if not good or not all(_numbers(row, 2) for row in rows or ()):
            return False
        self._asked.setdefault(line["asked"], deque()).append(line)
        return True

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
        if self._lock is not None:
            with suppress(OSError):  # Windows removes nothing that is open
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None


def _locked(path: Path) -> FileLock:
    lock = FileLock(path.with_name(f"{path.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"checkpoint {path}: another search is at work on it; wait for it, or name another file"
        ) from None
    return lock


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _numbers(value: object, count: int) -> bool:
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(type(one) in (int, float) and abs(one) < MOST for one in value)  # NaN is not


def _check_header(path: Path, first: object, head: Mapping[str, Any]) -> None:
    if not isinstance(first, dict) or first.get("workbench") != "icm":
        raise InputError(f"checkpoint {path} is no journal of a search: name another file")
    differ = [k for k in {**head, **first} if head.get(k) != first.get(k)]
    if differ:
        name = differ[0]
        how = f"its {name} is {first.get(name)!r}, here it is {head.get(name)!r}"
        if name in UNSEEN:
            how = f"its {UNSEEN[name]} are others than here"
        raise InputError(
            f"checkpoint {path} is of another search: {how}; name another file or folder, or "
            "remove it to begin again"
        )
