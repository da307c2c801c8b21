"""A folder of `torch.distributed.checkpoint`, read in one process.

Its index is a pickle, which could run anything: here it may build the few plain records that torch
writes into it, and nothing else. The shards are read as weights only; other objects not at all.
"""

from __future__ import annotations

import pickle  # see `_Index`
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "Entry"]

INDEX = ".metadata"
RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
}  # fmt: skip
PATHS = {"PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a checkpoint: its shape and precision as they were saved."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """In bytes."""
        return prod(self.shape) * int(self.dtype.itemsize)


class Checkpoint:
    """A checkpoint's tensors by name, nested names joined by dots; `read` gives their values.

    Attributes:
        entries: what its tensors are; whatever else it holds is left alone.

    Raises:
        InputError: no such folder, an index that is broken or holds more than plain records.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metadata = _metadata(folder)
        try:
            self.entries: Mapping[str, Entry] = {
                name: Entry(tuple(one.size), one.properties.dtype)
                for name, one in self._metadata.state_dict_metadata.items()
                if hasattr(one, "properties")
            }
        except (AttributeError, TypeError) as error:
            raise InputError(f"{folder / INDEX} is no index of a checkpoint: {error}") from error

    def check(self, names: Iterable[str]) -> None:
        """See that everything of these tensors is there.

        Raises:
            InputError: a shard is missing or cut off, or a part of a tensor was never saved.
        """
        try:
            ends = self._ends(names)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder / INDEX} contradicts itself: {error}") from error
        for file, end in ends.items():
            self._check_file(file, end)

    def _ends(self, names: Iterable[str]) -> dict[str, int]:
        """Up to which byte each shard is needed."""
        places: dict[str, list[Any]] = {}
        for at, place in self._metadata.storage_data.items():
            places.setdefault(at.fqn, []).append(place)
        ends: dict[str, int] = {}
        for name in names:
            chunks = self._metadata.state_dict_metadata[name].chunks
            saved = sum(prod(chunk.sizes) for chunk in chunks)
            if saved != prod(self.entries[name].shape) or len(places.get(name, ())) != len(chunks):
                raise InputError(f"{self.folder}: parts of {name} were never saved")
            for place in places[name]:
                end = place.offset + place.length
                ends[place.relative_path] = max(end, ends.get(place.relative_path, 0))
        return ends

    def _check_file(self, name: str, size: int) -> None:
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{self.folder}: its index names the file {name!r}, outside of it")
        if not path.is_file():
            raise InputError(f"{self.folder}: the shard {name} is missing; copy the whole folder")
        if path.stat().st_size < size:
            raise InputError(f"{path} is cut off: {path.stat().st_size:,} of {size:,} bytes")

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The tensors of these names, whole.

        Raises:
            InputError: a shard holds something else than its tensors.
        """
        import torch
        from torch.distributed.checkpoint import FileSystemReader, load
        from torch.distributed.checkpoint.api import CheckpointException

        metadata = self._metadata

        class Reader(FileSystemReader):
            def read_metadata(self, *_: Any, **__: Any) -> Any:
                return metadata

        found = {
            name: torch.empty(self.entries[name].shape, dtype=self.entries[name].dtype)
            for name in names
        }
        try:
            load(found, storage_reader=Reader(self.folder), no_dist=True)
        except (CheckpointException, Exception) as error:  # torch's is no Exception
            raise InputError(
                f"{self.folder}: a shard could not be read: it is broken, or holds something else "
                "than tensors; copy the whole folder again"
            ) from error
        return found


class _Index(pickle.Unpickler):
    """Builds the records of an index; any other name in it ends the reading."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module.partition(".")[0] == "pathlib" and name in PATHS:
            return PurePosixPath
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if name in RECORDS.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")


def _metadata(folder: Path) -> Any:
    from torch.distributed.checkpoint.metadata import Metadata

    path = folder / INDEX
    if not path.is_file():
        inner = sorted(found.parent for found in folder.glob(f"*/{INDEX}"))
        hint = f"; give {inner[0]}" if inner else ""
        raise InputError(
            f"{folder} is no folder of torch.distributed.checkpoint: it has no {INDEX}{hint}"
        )
    try:
        with path.open("rb") as file:
            found = _Index(file).load()
    except Exception as error:  # broken pickles fail in as many ways as there are bytes
        raise InputError(
            f"{path} is broken, or not what torch writes ({error}); nothing of it was run"
        ) from error
    if not isinstance(found, Metadata):
        raise InputError(f"{path} holds no index of a checkpoint")
    return found
