"""What a GGUF file holds: its header read with care, its tensors as plain numbers.

Counts, lengths and offsets of the header are checked against the file before they are used, so
that a broken file is refused in a moment and not when memory has run out.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.errors import InputError

VERSIONS = (2, 3)
PLAIN = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
TEXT, ARRAY = 8, 9
# Well above those of any model; a loop over as many takes seconds.
MOST_KEYS, MOST_TENSORS, MOST_ELEMENTS, MOST_LETTERS = 2**14, 2**17, 2**23, 2**24
PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies, and how it is stored.

    Attributes:
        kind: of gguf's `GGMLQuantizationType`.
        shape: as in torch.
        start: from the beginning of the tensors' part.
    """

    kind: Any
    shape: tuple[int, ...]
    row: int
    start: int
    size: int


class GGUFFile:
    """A GGUF file; `fields` is its metadata by name, `tensors` what it stores.

    Raises:
        InputError: there is no such file, it is none or a broken one, or `gguf` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if find_spec("gguf") is None:
            raise InputError(
                f'reading {path} needs the package gguf: pip install "workbench[gguf]"'
            )
        if path.is_dir():
            raise InputError(f"{path} is a folder: give a .gguf file")
        if PART.search(path.name):
            raise self.refused("is one part of several", "join them with llama-gguf-split --merge")
        try:
            with path.open("rb") as file:
                if file.read(4) != b"GGUF":
                    raise self.refused("is no GGUF file", "give one that llama.cpp loads")
                self._read(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        except InputError:
            raise
        except (struct.error, ValueError) as error:  # cut off, text that is no UTF-8, no such type
            raise self.refused(f"has a broken header ({error})") from error

    def refused(self, what: str, remedy: str = "download it again") -> InputError:
        """The error that says what is wrong with the file."""
        return InputError(f"{self.path} {what}: {remedy}")

    def _read(self, blob: mmap.mmap) -> None:
        (version,) = struct.unpack_from("<I", blob, 4)
        if version not in VERSIONS:
            raise self.refused(
                f"is GGUF of version {version:,}, and 2 and 3 are known here",
                "make it anew with llama.cpp, in little-endian order",
            )
        tensors, keys = struct.unpack_from("<QQ", blob, 8)
        if keys > MOST_KEYS or tensors > MOST_TENSORS:
            raise self.refused(f"claims {keys:,} settings and {tensors:,} tensors")
        at = 24
        self.fields: dict[str, Any] = {}
        for _ in range(keys):
            name, at = _text(blob, at)
            (kind,) = struct.unpack_from("<I", blob, at)
            self.fields[name], at = _value(blob, at + 4, kind)
        if self.fields.get("split.count", 0) not in (0, 1):
            raise self.refused("is one part of several", "join them with llama-gguf-split --merge")
        self.tensors: dict[str, Stored] = {}
        for _ in range(tensors):
            name, at = _text(blob, at)
            if name in self.tensors:
                raise self.refused(f"has two tensors of the name {name!r:.80}")
            (count,) = struct.unpack_from("<I", blob, at)
            if not 1 <= count <= 4:
                raise self.refused(f"has {name!r:.80} with {count:,} dimensions")
            *shape, kind, start = struct.unpack_from(f"<{count}QIQ", blob, at + 4)
            at += 16 + 8 * count
            self.tensors[name] = self._stored(name, tuple(reversed(shape)), kind, start)
        step = self.fields.get("general.alignment", 32)
        if not isinstance(step, int) or not 1 <= step <= 2**20:
            raise self.refused(f"has general.alignment={step!r:.40}")
        self._start = -(-at // step) * step
        end = max((self._start + t.start + t.size for t in self.tensors.values()), default=0)
        if end > len(blob):
            raise self.refused(f"is cut off: {len(blob):,} of {end:,} bytes are there")
        self._check_kinds()

    def _stored(self, name: str, shape: tuple[int, ...], number: int, start: int) -> Stored:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        kind = GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[kind]
        if not all(shape) or shape[-1] % block:
            raise self.refused(
                f"has {name!r:.80} with the shape {[*shape]}, which {kind.name} has not"
            )
        row = shape[-1] // block * size
        return Stored(kind, shape, row, start, math.prod(shape[:-1]) * row)

    def _check_kinds(self) -> None:
        """Refuse what gguf cannot make plain numbers of, before any work is done."""
        import numpy as np
        from gguf import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        for kind in {stored.kind for stored in self.tensors.values()}:
            try:
                dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            except NotImplementedError as error:
                names = [name for name, stored in self.tensors.items() if stored.kind is kind]
                raise self.refused(
                    f"stores {names[0]} as {kind.name}, which gguf cannot make plain numbers of",
                    "take one in another quantisation, such as Q8_0",
                ) from error

    def read(self, name: str) -> Any:
        """A tensor's numbers, as a new array of float32."""
        import numpy as np
        from gguf.quants import dequantize

        stored = self.tensors[name]
        at = self._start + stored.start
        raw = np.memmap(self.path, np.uint8, "r", at, (*stored.shape[:-1], stored.row))
        return np.array(dequantize(raw, stored.kind), np.float32).reshape(stored.shape)


def _text(blob: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", blob, at)
    at += 8
    if length > min(MOST_LETTERS, len(blob) - at):
        raise ValueError(f"a text of {length:,} bytes")
    return blob[at : at + length].decode(), at + length


def _value(blob: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    """A setting, and where the next one begins."""
    if kind == TEXT:
        return _text(blob, at)
    if kind != ARRAY:
        code = _code(kind)
        return struct.unpack_from(f"<{code}", blob, at)[0], at + struct.calcsize(f"<{code}")
    of, count = struct.unpack_from("<IQ", blob, at)
    at += 12
    if count > MOST_ELEMENTS:
        raise ValueError(f"a list of {count:,} elements")
    if of != TEXT:
        form = f"<{count}{_code(of)}"
        return list(struct.unpack_from(form, blob, at)), at + struct.calcsize(form)
    texts = []
    for _ in range(count):
        text, at = _text(blob, at)
        texts.append(text)
    return texts, at


def _code(kind: int) -> str:
    if kind not in PLAIN:
        raise ValueError(f"a setting of the kind {kind}")
    return PLAIN[kind]
