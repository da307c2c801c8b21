"""Files and folders at a user's path: written completely or not at all; links are kept."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory


class LineError(ValueError):
    """An error in one line of a text file."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def file_error(path: str | Path, error: Exception) -> str:
    """An error of reading a file as "path:line: message", a format that editors recognise."""
    match error:
        case LineError():
            return f"{path}:{error.line}: {error}"
        case json.JSONDecodeError():
            return f"{path}:{error.lineno}: {error.msg} at column {error.colno}"
        case OSError():
            return f"{error.filename or path}: {error.strerror or error}"
        case UnicodeDecodeError():
            line = error.object.count(b"\n", 0, error.start) + 1
            return f"{path}:{line}: the byte {error.object[error.start]:#04x} is not UTF-8"
        case RecursionError():
            return f"{path}: nested too deeply to be read"
    return f"{path}: {error}"


def at_key(path: str | Path, text: str, message: str) -> str:
    """ "path:line" of the YAML or JSON key that a message begins with.

    It is "path" if the message begins with no key.
    """
    found: list[tuple[int, str]] = []
    for key in re.finditer(r"""(?m)(?:^|[{,])\s*["']?([\w.-]+)["']?\s*:""", text):
        if named := re.search(rf"(?<![\w.]){re.escape(key[1])}(?![\w])", message):
            line = text.count("\n", 0, key.start(1)) + 1
            found.append((named.start(), f"{path}:{line}"))
    return min(found, key=lambda one: one[0])[1] if found else str(path)


def write_whole(path: str | Path, data: bytes | str) -> None:
    """Write a file, and create its folder if needed; links are followed.

    After a crash, the file is either the old or the new one. It keeps its mode.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    target = _real(path)
    part = target.with_name(f".part-{secrets.token_hex(8)}")
    try:
        with part.open("xb") as file:
            with suppress(FileNotFoundError):
                part.chmod(target.stat().st_mode)
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` once it is complete; links are followed.

    Raises:
        OSError: it cannot be created, or `path` exists.
    """
    target = _real(path)
    with TemporaryDirectory(dir=target.parent, prefix=".part-") as scratch:
        part = Path(scratch) / "whole"  # the scratch folder itself is readable by its owner only
        part.mkdir()
        yield part
        part.rename(target)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """As `whole_folder`, for one writer: filled as `path` with `.part`, which replaces one that a
    kill left."""
    target = _real(path)
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _real(path: str | Path) -> Path:
    """The target of links, with its folder created."""
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
