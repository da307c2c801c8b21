"""Converts a training checkpoint into a model folder for transformers and the engines."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.engines.checkpoints.checks import INDEX, Shapes, first_names, shapes_of
from workbench.engines.checkpoints.dcp import Checkpoint
from workbench.engines.diffusion.checkpoint import PLAIN, describe, llama_name
from workbench.errors import InputError, WorkbenchError
from workbench.files import whole_folder
from workbench.lazy import torch
from workbench.machine import require
from workbench.progress import one_bar

SHARD = 4 * 2**30  # bytes per file: roughly what is in memory at once
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
BUFFERS = "rotary_emb.inv_freq"  # of older models: computed, not learned
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")


@dataclass(frozen=True, slots=True)
class Converted:
    """The result of a conversion.

    Attributes:
        tensors: number of tensors written.
        size: their size in bytes.
        left_out: names of the checkpoint's other tensors (an optimizer's, …).
        checked: which libraries were checked and agree on the first tokens; "" if none.
    """

    folder: Path
    tensors: int
    size: int
    left_out: tuple[str, ...]
    checked: str = ""


def convert_dcp(
    path: str | Path, base_model: str, out: str | Path, *, prefix: str | None = None
) -> Converted:
    """Convert a folder of `torch.distributed.checkpoint` into a Hugging Face model folder.

    It needs no process group and no code of the trainer, and unpickles plain records only (see
    `dcp`). Tensors keep their saved precision and are read file by file. Names of LLaDA become
    those of the equivalent Llama.

    Args:
        path: the folder with `.metadata` and the shards.
        base_model: hub name or local folder with the configuration and tokenizer.
        out: a new folder.
        prefix: what precedes the model's names if a checkpoint holds several models.

    Raises:
        InputError: `out` exists, the checkpoint is broken or incomplete, or its tensors do not
            match the base model or match it more than once.
        EngineUnavailableError: PyTorch or transformers is not installed.
        WorkbenchError: the folder cannot be written.
    """
    out = new_path(out)
    require("transformers", "torch", "transformers")
    checkpoint = Checkpoint(Path(path))
    base, config = describe(base_model)
    if not any((base / name).is_file() for name in TOKENIZERS):
        raise InputError(f"base model {base.name!r} has no tokenizer: use one that has")
    expected, twins = shapes_of(config)
    names = _names(checkpoint, expected, prefix)
    _check(checkpoint, names, expected, twins)
    entries = {name: checkpoint.tensors[names[name]] for name in expected}
    # Of the largest tensor: the model is loaded in it unless another precision is requested.
    config.dtype = max(entries.values(), key=lambda entry: entry.size).dtype
    vars(config).pop("quantization_config", None)  # these tensors are not quantised

    def read(wanted: Sequence[str]) -> dict[str, Any]:
        return {name: checkpoint.read(names[name]) for name in wanted}

    sizes = {name: entry.size for name, entry in entries.items()}
    with model_folder(out, sum(sizes.values())) as folder:
        for file in (file for pattern in PLAIN for file in base.glob(pattern) if file.is_file()):
            if file.name != "config.json" and not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
        config.save_pretrained(folder)
        write_weights(folder, sizes, read)
    own = {names[name] for name in (*expected, *twins) if name in names}
    left_out = tuple(sorted({*checkpoint.tensors} - own))
    return Converted(out, len(sizes), sum(sizes.values()), left_out)


def _names(checkpoint: Checkpoint, expected: Shapes, prefix: str | None) -> dict[str, str]:
    """A model's tensor names: {name in the model: name in the checkpoint}."""
    plain: dict[str, str] = {}
    for stored in checkpoint.tensors:
        if (other := plain.setdefault(WRAPPERS.sub("", stored), stored)) != stored:
            raise InputError(
                f"{checkpoint.folder} holds {stored} and {other}, which differ only in a "
                "wrapper: save one of them"
            )
    if prefix is None:
        anchor = next(iter(expected))
        dots = ((name, dot.end()) for name in plain for dot in re.finditer(r"^|\.", name))
        starts = {name[:at] for name, at in dots if llama_name(name[at:]) == anchor}
    else:
        starts = {WRAPPERS.sub("", f"{prefix.removesuffix('.')}." if prefix else "")}
    models = {
        start: {
            llama_name(name.removeprefix(start)): stored
            for name, stored in plain.items()
            if name.startswith(start)
        }
        for start in sorted(starts or {""})
    }
    whole = {start: names for start, names in models.items() if not expected.keys() - names.keys()}
    if not whole:
        missing = min((expected.keys() - names.keys() for names in models.values()), key=len)
        raise InputError(
            f"{checkpoint.folder} lacks {first_names(missing)}: it is not a checkpoint of the base "
            f"model; it has {first_names(checkpoint.tensors)}"
        )
    if len(whole) > 1:
        raise InputError(
            f"{checkpoint.folder} holds {len(whole)} models of that shape: set the prefix of one "
            f"of them, {', '.join(map(repr, whole))}"
        )
    return whole.popitem()[1]


def _check(
    checkpoint: Checkpoint, names: Mapping[str, str], expected: Shapes, twins: Mapping[str, str]
) -> None:
    """Refuse shapes and tensors that do not match the base model, and missing bytes."""
    twins_here = {name: twin for name, twin in twins.items() if name in names}
    shapes = {**expected, **{name: expected[twin] for name, twin in twins_here.items()}}
    for name, shape in shapes.items():
        saved = checkpoint.tensors[names[name]]
        if saved.shape != shape:
            raise InputError(
                f"{checkpoint.folder}: {name} has the shape {[*saved.shape]}, that of the base "
                f"model {[*shape]}: use the base model of the training"
            )
        if not saved.dtype.is_floating_point:
            raise InputError(
                f"{checkpoint.folder}: {name} is {saved.dtype}, not floating-point: save the "
                "weights in the precision of the training"
            )
    modules = {name.partition(".")[0] for name in expected}
    own = {name for name in names if name.partition(".")[0] in modules}
    if more := [name for name in own - {*expected, *twins} if not name.endswith(BUFFERS)]:
        raise InputError(
            f"{checkpoint.folder} has, beyond the base model, {first_names(more)}: use the base "
            "model of the training"
        )
    checkpoint.check(names[name] for name in shapes)
    for name, twin in twins_here.items():
        one, other = (checkpoint.read(names[each]).double().nan_to_num() for each in (name, twin))
        if not torch.equal(one, other):
            raise InputError(
                f"{checkpoint.folder}: {name} differs from {twin}, but the base model ties them"
            )


# --- shared by all conversions


def new_path(out: str | Path) -> Path:
    """The path for a new folder.

    Raises:
        InputError: it exists.
    """
    if Path(out).exists():
        raise InputError(f"{out} exists already: choose another folder for the model")
    return Path(out)


@contextmanager
def model_folder(out: Path, size: int) -> Iterator[Path]:
    """A folder to fill with a model of so many bytes; it becomes `out` once it is complete.

    Raises:
        WorkbenchError: it cannot be written.
    """
    from safetensors import SafetensorError

    try:
        with whole_folder(out) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise WorkbenchError(
            f"the model ({size / 1e9:.1f} GB) could not be written to {out}: {error}; choose "
            "another folder, or make room"
        ) from error


def write_weights(
    folder: Path, sizes: Mapping[str, int], read: Callable[[Sequence[str]], dict[str, Any]]
) -> None:
    """Read and write file by file; if there are several files, write an index too.

    Args:
        sizes: bytes of each tensor, by name, in the order of writing.
        read: returns the tensors of some names.
    """
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = SHARD
        shards[-1].append(name)
        room -= size
    weight_map: dict[str, str] = {}
    with one_bar(len(sizes), "converting", "tensor") as bar:
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            file = "model.safetensors" if len(shards) == 1 else file
            save_file(read(names), folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
            bar.update(len(names))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
