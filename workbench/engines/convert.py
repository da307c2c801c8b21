"""A training checkpoint made into a model folder that transformers and the engines load."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.engines.dcp import Checkpoint
from workbench.engines.device import shape_only
from workbench.engines.diffusion.checkpoint import PLAIN, describe, llama_name
from workbench.errors import InputError, WorkbenchError
from workbench.files import whole_folder
from workbench.progress import one_bar

SHARD = 4 * 2**30  # bytes of a file, and about what is in memory at once
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
BUFFERS = "rotary_emb.inv_freq"  # of older models: computed, and not learned
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")


@dataclass(frozen=True, slots=True)
class Converted:
    """What came of a conversion.

    Attributes:
        tensors: how many were written.
        size: of them, in bytes.
        left_out: names of the checkpoint's other tensors (an optimizer's, …).
        checked: which libraries continued a text alike with it; "" where none was asked.
    """

    folder: Path
    tensors: int
    size: int
    left_out: tuple[str, ...]
    checked: str = ""


def convert_dcp(
    path: str | Path, base_model: str, out: str | Path, *, prefix: str | None = None
) -> Converted:
    """Turn a folder of `torch.distributed.checkpoint` into a Hugging Face model folder.

    No process group, nothing of the trainer, no pickle but of plain records (see `dcp`). Tensors
    keep the precision in which they were saved and are read file by file; names of LLaDA become
    those of the Llama that it is.

    Args:
        path: the folder with `.metadata` and the shards.
        base_model: hub name or local folder whose configuration and tokenizer it has.
        out: a new folder.
        prefix: what comes before the model's own names, where a checkpoint holds several models.

    Raises:
        InputError: `out` exists, the checkpoint is broken or not whole, its tensors are not those
            of the base model, or several sets of them are.
        WorkbenchError: the folder cannot be written.
    """
    from safetensors import SafetensorError

    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists already: choose another folder for the model")
    checkpoint = Checkpoint(Path(path))
    base, config = describe(base_model)
    beside = _beside(base)
    expected, twins = shapes_of(config)
    found = _found(checkpoint, expected, prefix)
    _check(checkpoint, found, expected, twins)
    names = {name: found[name] for name in expected}
    entries = {name: checkpoint.entries[stored] for name, stored in names.items()}
    # Of the largest tensor: in it the model is loaded where no other precision is asked for.
    config.dtype = max(entries.values(), key=lambda entry: entry.size).dtype
    vars(config).pop("quantization_config", None)  # these tensors are plain
    try:
        with whole_folder(out) as part:
            for file in beside:
                shutil.copyfile(file, part / file.name)
            config.save_pretrained(part)
            sizes = {name: entry.size for name, entry in entries.items()}
            write(part, sizes, lambda wanted: _read(checkpoint, names, wanted))
    except (OSError, SafetensorError) as error:
        size = sum(entry.size for entry in entries.values())
        raise WorkbenchError(
            f"the model ({size / 1e9:.1f} GB) could not be written to {out}: {error}; choose "
            "another folder, or make room"
        ) from error
    own = {*names.values(), *(found[name] for name in twins if name in found)}
    left = tuple(sorted({*checkpoint.entries} - own))
    return Converted(out, len(names), sum(entry.size for entry in entries.values()), left)


def _beside(base: Path) -> list[Path]:
    """What a base model has besides its weights.

    Raises:
        InputError: no tokenizer.
    """
    if not any((base / name).is_file() for name in TOKENIZERS):
        raise InputError(f"base model {base.name!r} has no tokenizer: give one that has")
    files = (file for pattern in PLAIN for file in base.glob(pattern) if file.is_file())
    return [f for f in files if f.name != "config.json" and not f.name.endswith(".index.json")]


def shapes_of(config: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shapes of a model's tensors by name, and other names that some of them have too."""
    try:
        model = shape_only(config)
    except Exception as error:  # wrong sizes fail in as many ways as there are models
        text = " ".join(str(error).split())
        raise InputError(f"the base model is no language model: {text:.300}") from error
    first: dict[int, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    twins: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), name)
        if known == name:
            shapes[name] = tuple(tensor.shape)
        else:
            twins[name] = known
    return shapes, twins


def _found(
    checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]], prefix: str | None
) -> dict[str, str]:
    """The names under which a checkpoint has a model's tensors, by the names that they get.

    Raises:
        InputError: it does not have them all, or has several sets of them.
    """
    plain: dict[str, str] = {}
    for stored in checkpoint.entries:
        if (known := plain.setdefault(WRAPPERS.sub("", stored), stored)) != stored:
            raise InputError(
                f"{checkpoint.folder} holds {stored} and {known}, which are the same but for a "
                "wrapper: save one of them"
            )
    anchor = next(iter(expected))
    starts = {
        name[: len(name) - len(rest)]
        for name in plain
        for rest in _rests(name)
        if llama_name(rest) == anchor
    }
    if prefix is not None:
        starts = {WRAPPERS.sub("", f"{prefix.removesuffix('.')}." if prefix else "")}
    sets = {
        start: {
            llama_name(name.removeprefix(start)): stored
            for name, stored in plain.items()
            if name.startswith(start)
        }
        for start in sorted(starts or {""})
    }
    whole = {start: names for start, names in sets.items() if not {*expected} - {*names}}
    if not whole:
        best = min(sets.values(), key=lambda names: len({*expected} - {*names}))
        raise InputError(
            f"{checkpoint.folder} lacks {some({*expected} - {*best})}: it is no checkpoint of "
            f"the base model; it has {some(checkpoint.entries)}"
        )
    if len(whole) > 1:
        raise InputError(
            f"{checkpoint.folder} holds {len(whole)} models of that shape: give the prefix of one, "
            f"of {', '.join(map(repr, whole))}"
        )
    return whole.popitem()[1]


def _rests(name: str) -> Iterator[str]:
    """A name, and what is left of it after each dot."""
    parts = name.split(".")
    yield from (".".join(parts[at:]) for at in range(len(parts)))


def _check(
    checkpoint: Checkpoint,
    found: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
    twins: Mapping[str, str],
) -> None:
    """Refuse shapes and tensors that the base model does not have, and missing bytes.

    Raises:
        InputError: names them.
    """
    import torch

    shown = {name: twin for name, twin in twins.items() if name in found}
    shapes = {**expected, **{name: expected[twin] for name, twin in shown.items()}}
    for name, shape in shapes.items():
        if (saved := checkpoint.entries[found[name]].shape) != shape:
            raise InputError(
                f"{checkpoint.folder}: {name} has the shape {[*saved]}, that of the base model "
                f"{[*shape]}: give the base model that was trained"
            )
        if not checkpoint.entries[found[name]].dtype.is_floating_point:
            raise InputError(
                f"{checkpoint.folder}: {name} is {checkpoint.entries[found[name]].dtype}, no "
                "floating-point tensor: save the weights as they are trained"
            )
    rooms = {name.partition(".")[0] for name in expected}
    own = {name for name in found if name.partition(".")[0] in rooms}
    own -= {name for name in own if name.endswith(BUFFERS)}
    if more := own - {*expected} - {*twins}:
        raise InputError(
            f"{checkpoint.folder} has, beyond the base model, {some(more)}: give the base model "
            "that was trained"
        )
    checkpoint.check(found[name] for name in shapes)
    for name, twin in shown.items():
        one, other = checkpoint.read((found[name], found[twin])).values()
        if not torch.equal(one.double().nan_to_num(), other.double().nan_to_num()):
            raise InputError(
                f"{checkpoint.folder}: {name} is not {twin}, which the base model takes them for"
            )


def some(names: Iterable[str]) -> str:
    """The first names, for a message, and how many more there are."""
    first = sorted(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")


def _read(
    checkpoint: Checkpoint, names: Mapping[str, str], wanted: Sequence[str]
) -> dict[str, Any]:
    values = checkpoint.read(names[name] for name in wanted)
    return {name: values[names[name]] for name in wanted}


def write(
    folder: Path, sizes: Mapping[str, int], read: Callable[[Sequence[str]], dict[str, Any]]
) -> None:
    """Read and write file by file, and say in an index which holds what, if there are several.

    Args:
        sizes: of the tensors in bytes, by name, in the order in which they are written.
        read: gives the tensors of some names.
    """
    from safetensors.torch import save_file

    files = [*_files(sizes)]
    weight_map: dict[str, str] = {}
    with one_bar(len(sizes), "converting", "tensor") as bar:
        for number, names in enumerate(files, 1):
            file = f"model-{number:05}-of-{len(files):05}.safetensors"
            file = "model.safetensors" if len(files) == 1 else file
            save_file(read(names), folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
            bar.update(len(names))
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _files(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names of tensors that go into one file, in order."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > SHARD:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names
