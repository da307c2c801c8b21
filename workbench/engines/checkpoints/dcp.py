"""Reads a folder of `torch.distributed.checkpoint` in one process.

Its index is a pickle, which could run any code. Here the index becomes records without behaviour,
which are checked; torch's reader is not used. Only plain bytes are read from shards.
"""

from __future__ import annotations

import io
import pickle  # see `_Unpickler`
import pickletools
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from workbench.engines.device import memory_ran_out
from workbench.errors import InputError, WorkbenchError
from workbench.lazy import np, torch

INDEX = ".metadata"
TORCH = "torch.distributed.checkpoint"
OLDER = "torch.distributed._shard.sharded_tensor.metadata"
RECORDS = {
    *((f"{TORCH}.metadata", name) for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
    (f"{TORCH}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    (OLDER, "TensorProperties"),
    (OLDER, "MEM_FORMAT_ENCODING"),
}  # fmt: skip
PLAIN: Mapping[tuple[str, str], type] = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
}
REBUILT = {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3")}
LONGEST = 1000  # maximum characters of a name


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a tensor: its offset in the tensor, its shape, and its bytes in a file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor of a checkpoint: shape and precision as saved, and its pieces."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * int(self.dtype.itemsize)

    def is_whole(self) -> bool:
        """Whether each element is in exactly one piece."""
        chunks = [chunk for chunk in self.chunks if prod(chunk.sizes)]
        boxes = [[*zip(chunk.offsets, chunk.sizes, self.shape, strict=True)] for chunk in chunks]
        if any(start + size > length for box in boxes for start, size, length in box):
            return False
        if sum(prod(chunk.sizes) for chunk in chunks) != prod(self.shape):
            return False
        starts = np.array([chunk.offsets for chunk in chunks], np.int64)
        ends = starts + np.array([chunk.sizes for chunk in chunks], np.int64)
        # The pieces have as many elements as the tensor: it is whole if no two pieces overlap.
        return all(
            np.all((starts < end) & (start < ends), axis=1).sum() == 1
            for start, end in zip(starts, ends, strict=True)
        )


class Checkpoint:
    """A checkpoint's tensors by name, nested names joined by dots; `read` returns their values.

    Attributes:
        tensors: the tensors of the checkpoint; its other contents are ignored.

    Raises:
        InputError: no such folder, or an index that is broken or has more than plain records.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / INDEX
        if not path.is_file():
            inner = sorted(index.parent for index in folder.glob(f"*/{INDEX}"))
            hint = f"; use {inner[0]}" if inner else ""
            raise InputError(f"{folder} is not a folder of {TORCH}: it has no {INDEX}{hint}")
        try:
            self.tensors: Mapping[str, SavedTensor] = _saved_tensors(_load(path.read_bytes()))
        except Exception as error:  # broken pickles raise many kinds of errors
            raise InputError(
                f"{path} is broken, or not what torch writes ({error}); no code of it was run"
            ) from error

    def check(self, names: Iterable[str]) -> None:
        """Check that these tensors are complete on disk.

        Raises:
            InputError: a shard is missing or truncated, or a part of a tensor was never saved.
        """
        ends: dict[str, int] = {}
        for name in names:
            if not self.tensors[name].is_whole():
                raise InputError(f"{self.folder}: parts of {name} were never saved, or saved twice")
            for chunk in self.tensors[name].chunks:
                ends[chunk.file] = max(chunk.start + chunk.length, ends.get(chunk.file, 0))
        for file, end in ends.items():
            path = self.folder / file
            if not path.is_file():
                raise InputError(
                    f"{self.folder}: the shard {file} is missing; copy the whole folder"
                )
            if (size := path.stat().st_size) < end:
                raise InputError(f"{path} is cut off: {size:,} of {end:,} bytes")

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor.

        Raises:
            InputError: a shard is broken, or its contents are not those of the index.
            WorkbenchError: it does not fit into memory.
        """
        saved = self.tensors[name]
        try:
            whole = torch.empty(saved.shape, dtype=saved.dtype)
            for chunk in saved.chunks:
                box = zip(chunk.offsets, chunk.sizes, strict=True)
                here = whole[tuple(slice(start, start + size) for start, size in box)]
                here.copy_(self._values(chunk, saved.dtype))
        except Exception as error:  # broken files raise many kinds of errors
            if memory_ran_out(error):
                raise WorkbenchError(
                    f"{self.folder}: {name} has {saved.size:,} bytes, more than the free memory"
                ) from error
            raise InputError(
                f"{self.folder}: a shard of {name} could not be read: it is broken, or holds "
                "something other than tensors of torch.save; copy the whole folder again"
            ) from error
        return whole

    def _values(self, chunk: Chunk, dtype: torch.dtype) -> torch.Tensor:
        """One piece, from its raw bytes (`torch.load` would build more than that)."""
        with (self.folder / chunk.file).open("rb") as file:
            file.seek(chunk.start)
            data = zipfile.ZipFile(io.BytesIO(file.read(chunk.length)))
        members = {info.filename.partition("/")[2]: info for info in data.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise TypeError("it is compressed")
        if data.read(members["byteorder"]).decode() != sys.byteorder:
            raise TypeError("it was saved with another byte order")
        pickled = _load(data.read(members["data.pkl"]))
        (_, storage, key, *_), offset, size, stride, *more = pickled
        kinds = {"UntypedStorage": f"{more[-1]}"}  # for float8 and similar types
        for known, kind in torch.storage._dtype_to_storage_type_map().items():
            kinds[kind] = str(known)
        if _numbers(size) != chunk.sizes or kinds.get(storage) != str(dtype):
            raise TypeError("it holds another tensor")
        if not prod(chunk.sizes):
            return torch.empty(chunk.sizes, dtype=dtype)
        values = torch.frombuffer(bytearray(data.read(members[f"data/{key}"])), dtype=dtype)
        return torch.as_strided(values, chunk.sizes, _numbers(stride), *_numbers((offset,)))


# --- pickles


def _load(data: bytes) -> Any:
    """A pickle's contents as records, tuples and names."""
    for code, number, _ in pickletools.genops(data):
        if code.name.endswith("PUT") and int(number or 0) > len(data):  # memory would be allocated
            raise pickle.UnpicklingError("it numbers more objects than it has bytes")
    return _Unpickler(io.BytesIO(data)).load()


class _Record:
    """An object of an index: arguments or fields, without behaviour."""

    def __init__(self, *arguments: object) -> None:
        self.state: Any = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state

    def get(self, kind: str, name: str) -> Any:
        if type(self).__name__ != kind:
            raise TypeError(f"{type(self).__name__} found in place of {kind}")
        return self.state.get(name)


class _Unpickler(pickle.Unpickler):
    """Returns records for the names that torch writes; any other name raises an error.

    A saved tensor becomes its storage's description, offset, size and stride. Each pickle gets new
    record classes, since a pickle could change them.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._classes: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        import torch  # itself, for its own names

        if (module, name) in PLAIN:
            return PLAIN[module, name]
        if (module, name) in REBUILT:
            return lambda *parts: parts
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if module in {"torch", "torch.storage"} and name.endswith("Storage"):
            return name
        path = module.partition(".")[0] == "pathlib" and name.endswith("Path")
        if path or (module, name) in RECORDS:
            return self._classes.setdefault(name, type(name, (_Record,), {}))
        asked_for = _shown(f"{module}.{name}")
        raise pickle.UnpicklingError(f"it refers to {asked_for}, which no checkpoint needs")

    def persistent_load(self, description: Any) -> Any:
        return description


def _shown(value: object) -> str:
    """A value for a message; for a possibly huge one, only its type."""
    if isinstance(value, str):
        return repr(value[:80])
    return f"{value}" if type(value) is int and abs(value) < 2**64 else type(value).__name__


def _saved_tensors(index: Any) -> dict[str, SavedTensor]:
    """The tensors of an index."""
    places: dict[tuple[str, tuple[int, ...]], Any] = {}
    for key, place in index.get("Metadata", "storage_data").items():
        if (offset := key.get("MetadataIndex", "offset")) is not None:
            places[key.get("MetadataIndex", "fqn"), _numbers(offset)] = place
    tensors = {}
    for name, one in index.get("Metadata", "state_dict_metadata").items():
        if type(one).__name__ == "BytesStorageMetadata":
            continue
        shape = _numbers(one.get("TensorStorageMetadata", "size"))
        dtype = one.get("TensorStorageMetadata", "properties").state[0]
        if not isinstance(name, str) or len(name) > LONGEST or not isinstance(dtype, torch.dtype):
            raise TypeError(f"{_shown(name)} of {_shown(dtype)} is not a tensor")
        chunks = []
        for record in one.get("TensorStorageMetadata", "chunks"):
            offsets = _numbers(record.get("ChunkStorageMetadata", "offsets"))
            sizes = _numbers(record.get("ChunkStorageMetadata", "sizes"))
            if not len(offsets) == len(sizes) == len(shape):
                raise TypeError(f"a part of {_shown(name)} has other dimensions")
            if (name, offsets) in places:
                chunks.append(_chunk(offsets, sizes, places[name, offsets]))
        tensors[name] = SavedTensor(shape, dtype, tuple(chunks))
    return tensors


def _chunk(offsets: tuple[int, ...], sizes: tuple[int, ...], place: Any) -> Chunk:
    names = ("relative_path", "offset", "length", "transform_descriptors")
    file, start, length, changed = (place.get("_StorageInfo", name) for name in names)
    plain = isinstance(file, str) and file not in {"", ".", ".."} and len(file.encode()) < 256
    if not plain or {*file} & {*"/\\\0"}:
        raise TypeError(f"it names the file {_shown(file)}, which is not in its folder")
    if changed:
        raise TypeError(f"{_shown(file)} is compressed: save it uncompressed")
    start, length = _numbers((start, length))
    return Chunk(offsets, sizes, file, start, length)


def _numbers(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(type(x) is int and 0 <= x < 2**63 for x in numbers):
        raise TypeError(f"{', '.join(map(_shown, numbers[:8]))} are not sizes")
    return numbers
