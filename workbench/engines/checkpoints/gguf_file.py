"""A GGUF file's contents: a header that is read strictly, and tensors as plain numbers.

Counts, lengths and offsets of the header are checked against the file before they are used. So a
broken file is refused at once, not when memory has run out (gguf's reader does not check them).
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
from workbench.lazy import np
from workbench.machine import install_hint

VERSIONS = (2, 3)
PLAIN = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
TEXT, ARRAY = 8, 9
# Well above those of any model, yet a loop over as many takes only seconds.
MOST_KEYS, MOST_TENSORS, MOST_ELEMENTS, MOST_LETTERS = 2**14, 2**17, 2**23, 2**24
PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", re.IGNORECASE)
JOIN = "join them with llama-gguf-split --merge"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's location and format in the file.

    Attributes:
        kind: a member of gguf's `GGMLQuantizationType`.
        shape: as in torch.
        row: bytes of its last dimension.
        start: offset in bytes from the beginning of the tensor data.
    """

    kind: Any
    shape: tuple[int, ...]
    row: int
    start: int

    @property
    def end(self) -> int:
        """Offset of its end, from the beginning of the tensor data."""
        return self.start + math.prod(self.shape[:-1]) * self.row


class GGUFFile:
    """A GGUF file; `fields` has its metadata by name, `tensors` its tensors.

    Raises:
        InputError: no such file, not a valid GGUF file, or `gguf` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields: dict[str, Any] = {}
        self.tensors: dict[str, StoredTensor] = {}
        if find_spec("gguf") is None:
            raise InputError(f"reading {path} needs the package gguf: {install_hint('gguf')}")
        if path.is_dir():
            raise InputError(f"{path} is a folder: use a .gguf file")
        if PART.search(path.name):
            raise self.refused("is one part of several", JOIN)
        try:
            with path.open("rb") as file:
                if file.read(4) != b"GGUF":
                    raise self.refused("is not a GGUF file", "use one that llama.cpp loads")
                self._read(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        except InputError:
            raise
        except (struct.error, ValueError) as error:  # truncated, invalid UTF-8, unknown type
            raise self.refused(f"has a broken header ({error})") from error

    def refused(self, what: str, remedy: str = "download it again") -> InputError:
        """An error that names the file, the problem and the remedy."""
        return InputError(f"{self.path} {what}: {remedy}")

    def _read(self, blob: mmap.mmap) -> None:
        header = _Header(blob)
        (version,) = header.take("I")
        if version not in VERSIONS:
            raise self.refused(
                f"is GGUF version {version:,}, but 2 and 3 are supported",
                "convert it again with llama.cpp, in little-endian order",
            )
        tensors, keys = header.take("QQ")
        if keys > MOST_KEYS or tensors > MOST_TENSORS:
            raise self.refused(f"claims {keys:,} settings and {tensors:,} tensors")
        for _ in range(keys):
            name = header.text()
            self.fields[name] = header.value()
        if self.fields.get("split.count", 0) not in (0, 1):
            raise self.refused("is one part of several", JOIN)
        for _ in range(tensors):
            name = header.text()
            if name in self.tensors:
                raise self.refused(f"has two tensors named {name!r:.80}")
            self.tensors[name] = self._stored(name, header)
        step = self.fields.get("general.alignment", 32)
        if not isinstance(step, int) or not 1 <= step <= 2**20:
            raise self.refused(f"has general.alignment={step!r:.40}")
        self._start = -(-header.at // step) * step
        end = max((self._start + tensor.end for tensor in self.tensors.values()), default=0)
        if end > len(blob):
            raise self.refused(f"is cut off: {len(blob):,} of {end:,} bytes are there")
        self._check_kinds()

    def _stored(self, name: str, header: _Header) -> StoredTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        (dimensions,) = header.take("I")
        if not 1 <= dimensions <= 4:
            raise self.refused(f"has {name!r:.80} with {dimensions:,} dimensions")
        *sizes, number, start = header.take(f"{dimensions}QIQ")
        shape, kind = tuple(reversed(sizes)), GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[kind]
        if not all(shape) or shape[-1] % block:
            raise self.refused(
                f"has {name!r:.80} with the shape {[*shape]}, which {kind.name} cannot have"
            )
        return StoredTensor(kind, shape, shape[-1] // block * size, start)

    def _check_kinds(self) -> None:
        """Refuse quantisations that gguf cannot convert to plain numbers, before any work."""
        from gguf import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        examples = {tensor.kind: name for name, tensor in reversed(self.tensors.items())}
        for kind, name in examples.items():
            try:
                dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            except NotImplementedError as error:
                raise self.refused(
                    f"stores {name} as {kind.name}, which gguf cannot convert",
                    "use another quantisation, such as Q8_0",
                ) from error

    def read(self, name: str) -> Any:
        """A tensor's values, as a new float32 array."""
        from gguf.quants import dequantize

        stored = self.tensors[name]
        at = self._start + stored.start
        raw = np.memmap(self.path, np.uint8, "r", at, (*stored.shape[:-1], stored.row))
        return np.array(dequantize(raw, stored.kind), np.float32).reshape(stored.shape)


class _Header:
    """A header, read sequentially."""

    def __init__(self, blob: mmap.mmap) -> None:
        self._blob = blob
        self.at = 4

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values, in `struct`'s format."""
        values = struct.unpack_from(f"<{form}", self._blob, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def text(self) -> str:
        (length,) = self.take("Q")
        if length > min(MOST_LETTERS, len(self._blob) - self.at):
            raise ValueError(f"a text of {length:,} bytes")
        self.at += length
        return self._blob[self.at - length : self.at].decode()

    def value(self) -> Any:
        """A setting's value, read by its type."""
        (kind,) = self.take("I")
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.take(self._code(kind))[0]
        of, count = self.take("IQ")
        if count > MOST_ELEMENTS:
            raise ValueError(f"a list of {count:,} elements")
        if of == TEXT:
            return [self.text() for _ in range(count)]
        return list(self.take(f"{count}{self._code(of)}"))

    @staticmethod
    def _code(kind: int) -> str:
        if kind not in PLAIN:
            raise ValueError(f"a setting of type {kind}")
        return PLAIN[kind]
