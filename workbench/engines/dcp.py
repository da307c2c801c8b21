"""A folder of `torch.distributed.checkpoint`, read in one process.

Its index is a pickle, which could run anything. Here it becomes records without any behaviour,
which are checked, and nothing of torch's own reader sees it; of shards the plain bytes are read.
"""

from __future__ import annotations

import io
import pickle  # see `_Index` and `_Shard`
import pickletools
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines.device import memory_ran_out
from workbench.errors import InputError, WorkbenchError

if TYPE_CHECKING:
    import torch

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
LONGEST = 1000  # characters of a name


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a tensor: where it begins in it, its shape, and its bytes in a file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a checkpoint: its shape and precision as they were saved, and its pieces."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return prod(self.shape) * int(self.dtype.itemsize)

    def is_whole(self) -> bool:
        """Whether each element is in just one piece."""
        import numpy as np

        parts = [part for part in self.parts if prod(part.sizes)]
        if sum(prod(part.sizes) for part in parts) != prod(self.shape):
            return False  # and there are not more pieces than elements
        ends = [{0, n, *(x for p in parts for x in (p.offsets[d], p.offsets[d] + p.sizes[d]))}
                for d, n in enumerate(self.shape)]  # fmt: skip
        cuts = [{cut: place for place, cut in enumerate(sorted(along))} for along in ends]
        if any(max(along) > n for along, n in zip(cuts, self.shape, strict=True)):
            return False
        painted = np.zeros([len(along) - 1 for along in cuts], np.int8)
        for part in parts:
            box = zip(cuts, part.offsets, part.sizes, strict=True)
            here = tuple(slice(places[at], places[at + size]) for places, at, size in box)
            if painted[here].any():
                return False
            painted[here] = 1
        return bool(painted.all())


class Checkpoint:
    """A checkpoint's tensors by name, nested names joined by dots; `read` gives their values.

    Attributes:
        entries: what its tensors are; whatever else it holds is left alone.

    Raises:
        InputError: no such folder, an index that is broken or holds more than plain records.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: Mapping[str, Entry] = _entries(folder)

    def check(self, names: Iterable[str]) -> None:
        """See that everything of these tensors is there.

        Raises:
            InputError: a shard is missing or cut off, or a part of a tensor was never saved.
        """
        ends: dict[str, int] = {}
        for name in names:
            if not self.entries[name].is_whole():
                raise InputError(f"{self.folder}: parts of {name} were never saved, or saved twice")
            for part in self.entries[name].parts:
                ends[part.file] = max(part.start + part.length, ends.get(part.file, 0))
        for file, end in ends.items():
            path = self.folder / file
            if not path.is_file():
                raise InputError(
                    f"{self.folder}: the shard {file} is missing; copy the whole folder"
                )
            if (size := path.stat().st_size) < end:
                raise InputError(f"{path} is cut off: {size:,} of {end:,} bytes")

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The tensors of these names, whole.

        Raises:
            InputError: a shard holds something else than its tensors.
            WorkbenchError: they do not fit into memory.
        """
        return {name: self._tensor(name, self.entries[name]) for name in names}

    def _tensor(self, name: str, entry: Entry) -> torch.Tensor:
        import torch

        try:
            found = torch.empty(entry.shape, dtype=entry.dtype)
            for part in entry.parts:
                box = zip(part.offsets, part.sizes, strict=True)
                here = found[tuple(slice(at, at + size) for at, size in box)]
                here.copy_(self._value(part, entry.dtype))
        except Exception as error:  # broken files fail in as many ways as there are bytes
            if memory_ran_out(error):
                raise WorkbenchError(
                    f"{self.folder}: {name} has {entry.size:,} bytes, which are not free here"
                ) from error
            raise InputError(
                f"{self.folder}: a shard of {name} could not be read: it is broken, or holds "
                "something else than tensors as torch.save writes them; copy the whole folder again"
            ) from error
        return found

    def _value(self, part: Part, dtype: torch.dtype) -> torch.Tensor:
        """One piece, from its bytes as they lie there (`torch.load` would build more than that)."""
        import torch

        with (self.folder / part.file).open("rb") as file:
            file.seek(part.start)
            data = zipfile.ZipFile(io.BytesIO(file.read(part.length)))
        members = {info.filename.partition("/")[2]: info for info in data.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise TypeError("it is compressed")
        if data.read(members["byteorder"]).decode() != sys.byteorder:
            raise TypeError("it was saved with another byte order")
        saved = _Shard(data.read(members["data.pkl"])).load()
        (_, storage, key, *_), offset, size, stride, *more = saved
        kinds = {"UntypedStorage": f"torch.{more[-1]}"}  # float8 and the like, told beside
        for known, kind in torch.storage._dtype_to_storage_type_map().items():
            kinds[kind] = str(known)
        if _numbers(size) != part.sizes or kinds.get(storage) != str(dtype):
            raise TypeError("it holds another tensor")
        if not prod(part.sizes):
            return torch.empty(part.sizes, dtype=dtype)
        values = torch.frombuffer(bytearray(data.read(members[f"data/{key}"])), dtype=dtype)
        return torch.as_strided(values, part.sizes, _numbers(stride), *_numbers((offset,)))


class _Shard(pickle.Unpickler):
    """Gives what a saved tensor is made of: its storage's description, offset, size, stride."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(_harmless(data)))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in REBUILT:
            return _made_of
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        if module in {"torch", "torch.storage"} and (name.endswith("Storage") or "float" in name):
            return name
        raise pickle.UnpicklingError(f"it asks for {_told(f'{module}.{name}')}")

    def persistent_load(self, told: Any) -> Any:
        return told


def _made_of(*parts: Any) -> tuple[Any, ...]:
    return parts


# --- the index


class _Record:
    """An object of an index: what it was made of, and no behaviour."""

    def __init__(self, *made_of: object) -> None:
        self.state: Any = made_of

    def __setstate__(self, state: object) -> None:
        self.state = state

    def get(self, kind: str, name: str) -> Any:
        if type(self).__name__ != kind:
            raise TypeError(f"{type(self).__name__} stands where {kind} should")
        return self.state.get(name)


class _Index(pickle.Unpickler):
    """Gives records for the names that torch writes; any other name ends the reading.

    The classes of the records are made anew for each index: a pickle can change a class too.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._made: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in PLAIN:
            return PLAIN[module, name]
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype):
            return found
        path = module.partition(".")[0] == "pathlib" and name.endswith("Path")
        if path or (module, name) in RECORDS:
            return self._made.setdefault(name, type(name, (_Record,), {}))
        asked = _told(f"{module}.{name}")
        raise pickle.UnpicklingError(f"it asks for {asked}, which no checkpoint needs")


def _harmless(data: bytes) -> bytes:
    """Refuse a pickle that numbers more objects than it has bytes: room is made for all of them.

    Raises:
        UnpicklingError: it does.
    """
    for code, number, _ in pickletools.genops(data):
        if code.name.endswith("PUT") and int(number or 0) > len(data):
            raise pickle.UnpicklingError("it numbers more objects than it has bytes")
    return data


def _told(value: object) -> str:
    """A value for a message; of what may be huge, only its kind."""
    if isinstance(value, str):
        return repr(value[:80])
    return f"{value}" if type(value) is int and abs(value) < 2**64 else type(value).__name__


def _entries(folder: Path) -> dict[str, Entry]:
    path = folder / INDEX
    if not path.is_file():
        inner = sorted(found.parent for found in folder.glob(f"*/{INDEX}"))
        hint = f"; give {inner[0]}" if inner else ""
        raise InputError(f"{folder} is no folder of {TORCH}: it has no {INDEX}{hint}")
    try:
        return _checked(_Index(_harmless(path.read_bytes())).load())
    except Exception as error:  # broken pickles fail in as many ways as there are bytes
        raise InputError(
            f"{path} is broken, or not what torch writes ({error}); nothing of it was run"
        ) from error


def _checked(index: Any) -> dict[str, Entry]:
    """The tensors that an index tells of.

    Raises:
        Exception: of any kind, where it is not as torch writes it.
    """
    import torch

    places: dict[tuple[str, tuple[int, ...]], Any] = {}
    for at, place in index.get("Metadata", "storage_data").items():
        offset = at.get("MetadataIndex", "offset")
        if offset is not None:
            places[at.get("MetadataIndex", "fqn"), _numbers(offset)] = place
    found = {}
    for name, one in index.get("Metadata", "state_dict_metadata").items():
        if type(one).__name__ == "BytesStorageMetadata":
            continue
        shape = _numbers(one.get("TensorStorageMetadata", "size"))
        dtype = one.get("TensorStorageMetadata", "properties").state[0]
        if not isinstance(name, str) or len(name) > LONGEST or not isinstance(dtype, torch.dtype):
            raise TypeError(f"{_told(name)} of {_told(dtype)} is no tensor")
        parts = []
        for chunk in one.get("TensorStorageMetadata", "chunks"):
            offsets = _numbers(chunk.get("ChunkStorageMetadata", "offsets"))
            sizes = _numbers(chunk.get("ChunkStorageMetadata", "sizes"))
            if not len(offsets) == len(sizes) == len(shape):
                raise TypeError(f"a part of {_told(name)} has other dimensions")
            if (name, offsets) in places:
                parts.append(_part(offsets, sizes, places[name, offsets]))
        found[name] = Entry(shape, dtype, tuple(parts))
    return found


def _part(offsets: tuple[int, ...], sizes: tuple[int, ...], place: Any) -> Part:
    names = ("relative_path", "offset", "length", "transform_descriptors")
    file, start, length, changed = (place.get("_StorageInfo", name) for name in names)
    plain = isinstance(file, str) and file not in {"", ".", ".."} and len(file.encode()) < 256
    if not plain or {*file} & {*"/\\\0"}:
        raise TypeError(f"it names the file {_told(file)}, which is not one of its folder")
    if changed:
        raise TypeError(f"{_told(file)} is compressed: save it without")
    start, length = _numbers((start, length))
    return Part(offsets, sizes, file, start, length)


def _numbers(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(type(x) is int and 0 <= x < 2**63 for x in numbers):
        raise TypeError(f"{', '.join(map(_told, numbers[:8]))} are no sizes")
    return numbers
