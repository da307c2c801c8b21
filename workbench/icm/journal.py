"""A search on disk: every answer of the model, written as soon as it arrives.

A search depends only on its settings and these answers. So a killed search runs again from its
start, takes the answers it has from the journal, and resumes where they end. The journal also
has labels, energies and moves, for people to read.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from workbench.errors import InputError, log
from workbench.files import write_whole

LARGEST = 1e18  # numbers above this are neither scores nor costs
DIGESTS = {
    "claims": "claims, groups or words (another file, --limit or --batch-size)",
    "after": "labels of the batches before it (another --k or --batch-size)",
}
"""Digests in a header, and their names in messages."""


class Journal:
    """Lines of JSON: a header, then `asked` lines (the model's answers) and `move` lines.

    A broken line loses only its own answer, which is requested again. Broken lines are moved to
    `<file>.broken`, except the last one, which a kill has cut short.

    Args:
        path: the file, or None for no file.
        header: identifies the search; a file with another header is refused.

    Raises:
        InputError: the file is not a journal, belongs to another search, or is in use.
    """

    def __init__(
        self, path: str | Path | None = None, header: Mapping[str, Any] | None = None
    ) -> None:
        self._file: TextIO | None = None
        self._answers: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
        self._moves = 0
        if path is None:
            return
        target = Path(path).expanduser()
        head = json.loads(json.dumps({"workbench": "icm", **(header or {})}))  # as JSON returns it
        with ExitStack() as opened:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                opened.enter_context(_locked(target.resolve()))
                known = self._read(target, head) if target.exists() else b""
                self._file = opened.enter_context(target.open("a", encoding="utf-8"))
                self._file.truncate(len(known))
            except OSError as error:
                raise InputError(f"checkpoint={str(path)!r} cannot be written: {error}") from error
            if not known:
                self._write(head)
            self._opened = opened.pop_all()

    def _read(self, path: Path, head: Mapping[str, Any]) -> bytes:
        """Read the journal; returns its complete lines, which the file is rewritten from."""
        data = path.read_bytes()
        first, *lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True) or [b""]
        if first:
            _check_header(path, _parsed(first), head)
        elif not json.dumps(head).encode().startswith(data):
            raise InputError(f"checkpoint {path} is not a search's journal: name another file")
        good = [self._take(_parsed(line)) for line in lines]
        if not all(good):
            broken = [number for number, usable in enumerate(good) if not usable]
            aside = path.with_name(f"{path.name}.broken")
            with aside.open("ab") as file:
                file.writelines(lines[number] for number in broken)
            lines = [line for line, usable in zip(lines, good, strict=True) if usable]
            write_whole(path, b"".join([first, *lines]))
            log.warning(
                "checkpoint %s: moved broken lines to %s: %s; their prompts are sent again",
                path, aside.name, ", ".join(str(number + 2) for number in broken),
            )  # fmt: skip
        return b"".join([first, *lines])

    def _take(self, line: object) -> bool:
        """Store a line's content; returns whether the line is valid."""
        match line:
            case {"move": dict()}:
                self._moves += 1
            case {"asked": str(asked), "scores": list(rows), "cost": cost} if _numbers(
                cost, 4
            ) and all(_numbers(row, 2) for row in rows):
                self._answers[asked].append({"scores": rows, "cost": cost})
            case _:
                return False
        return True

    def answer(self, asked: str) -> dict[str, Any] | None:
        """The model's earlier answer to this prompt, None if there is none."""
        known = self._answers.get(asked)
        return known.popleft() if known else None

    def add(self, asked: str, answer: Mapping[str, Any]) -> None:
        """Store an answer of the model."""
        self._write({"asked": asked, **answer})

    def move(self, **facts: Any) -> None:
        """Store an accepted move, and all labels after it."""
        if self._moves:  # the file has it already
            self._moves -= 1
        else:
            self._write({"move": facts})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file; the journal stays."""
        if self._file is not None:
            self._opened.close()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_name(f"{path.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"checkpoint {path}: another search is using it; wait for it, or name another file"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows cannot remove an open file
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _parsed(line: bytes) -> object:
    with suppress(ValueError):
        return json.loads(line)
    return None


def _numbers(value: object, count: int) -> bool:
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(type(one) in (int, float) and abs(one) < LARGEST for one in value)  # NaN is not


def _check_header(path: Path, first: object, head: Mapping[str, Any]) -> None:
    if not isinstance(first, dict) or first.get("workbench") != "icm":
        raise InputError(f"checkpoint {path} is not a search's journal: name another file")
    for name in {**head, **first}:
        if head.get(name) != first.get(name):
            how = f"its {name} is {first.get(name)!r}, here it is {head.get(name)!r}"
            if name in DIGESTS:
                how = f"its {DIGESTS[name]} differ from those here"
            raise InputError(
                f"checkpoint {path} is of another search: {how}; name another file or folder, or "
                "remove it to start over"
            )
