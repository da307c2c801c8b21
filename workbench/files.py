"""Files and folders at a user's path: whole or not there, and a symbolic link stays one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory


def write_whole(path: str | Path, data: bytes | str) -> None:
    """Write a file, in a folder that is made if need be; links are followed.

    It is the old one or the new one, whenever the machine stops, and keeps its mode.

    Raises:
        OSError: it cannot be written; the old one is as it was.
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
    """A folder to fill, which is `path` afterwards; links are followed.

    Raises:
        OSError: it cannot be made, or something is there already.
    """
    target = _real(path)
    with TemporaryDirectory(dir=target.parent, prefix=".part-") as scratch:
        part = Path(scratch) / "whole"  # not the scratch folder itself, which only its owner reads
        part.mkdir()
        yield part
        part.rename(target)


def _real(path: str | Path) -> Path:
    """Where the links end, in a folder that is there."""
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
