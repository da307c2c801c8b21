"""A training checkpoint made into a model folder that transformers and the engines load."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.engines.checkpoints.dcp import Checkpoint
from workbench.engines.checkpoints.folder import INDEX, Shapes, first_names, shapes_of
from workbench.engines.diffusion.checkpoint import PLAIN, describe, llama_name
from workbench.errors import InputError, WorkbenchError
from workbench.files import whole_folder
from workbench.machine import require
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
        EngineUnavailableError: PyTorch or transformers is not installed.
        WorkbenchError: the folder cannot be written.
    """
    out = new_path(out)
    require("transformers", "torch", "transformers")
    checkpoint = Checkpoint(Path(path))
    base, config = describe(base_model)
    if not any((base / name).is_file() for name in TOKENIZERS):
        raise InputError(f"base model {base.name!r} has no tokenizer: give one that has")
    expected, twins = shapes_of(config)
    names = _names(checkpoint, expected, prefix)
    _check(checkpoint, names, expected, twins)
    entries = {name: checkpoint.tensors[names[name]] for name in expected}
    # Of the largest tensor: in it the model is loaded where no other precision is asked for.
    config.dtype = max(entries.values(), key=lambda entry: entry.size).dtype
    vars(config).pop("quantization_config", None)  # these tensors are plain

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
    """The names under which a checkpoint has a model's tensors, by the names that they get.

    Raises:
        InputError: it does not have them all, or has several sets of them.
    """
    plain: dict[str, str] = {}
    for stored in checkpoint.tensors:
        if (other := plain.setdefault(WRAPPERS.sub("", stored), stored)) != stored:
            raise InputError(
                f"{checkpoint.folder} holds {stored} and {other}, which are the same but for a "
                "wrapper: save one of them"
            )
    if prefix is None:
        anchor = next(iter(expected))
        dots = ((name, at) for name in plain for at in (0, *_after_dots(name)))
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
            f"{checkpoint.folder} lacks {first_names(missing)}: it is no checkpoint of the base "
            f"model; it has {first_names(checkpoint.tensors)}"
        )
    if len(whole) > 1:
        raise InputError(
            f"{checkpoint.folder} holds {len(whole)} models of that shape: give the prefix of one, "
            f"of {', '.join(map(repr, whole))}"
        )
    return whole.popitem()[1]


def _after_dots(name: str) -> list[int]:
    return [dot.end() for dot in re.finditer(r"\.", name)]


def _check(
    checkpoint: Checkpoint, names: Mapping[str, str], expected: Shapes, twins: Mapping[str, str]
) -> None:
    """Refuse shapes and tensors that the base model does not have, and missing bytes.

    Raises:
        InputError: names them.
    """
    import torch

    twins_here = {name: twin for name, twin in twins.items() if name in names}
    shapes = {**expected, **{name: expected[twin] for name, twin in twins_here.items()}}
    for name, shape in shapes.items():
        saved = checkpoint.tensors[names[name]]
        if saved.shape != shape:
            raise InputError(
                f"{checkpoint.folder}: {name} has the shape {[*saved.shape]}, that of the base "
                f"model {[*shape]}: give the base model that was trained"
            )
        if not saved.dtype.is_floating_point:
            raise InputError(
                f"{checkpoint.folder}: {name} is {saved.dtype}, no floating-point tensor: save the "
                "weights as they are trained"
            )
    modules = {name.partition(".")[0] for name in expected}
    own = {name for name in names if name.partition(".")[0] in modules}
    if more := [name for name in own - {*expected, *twins} if not name.endswith(BUFFERS)]:
        raise InputError(
            f"{checkpoint.folder} has, beyond the base model, {first_names(more)}: give the base "
            "model that was trained"
        )
    checkpoint.check(names[name] for name in shapes)
    for name, twin in twins_here.items():
        one, other = (checkpoint.read(names[each]).double().nan_to_num() for each in (name, twin))
        if not torch.equal(one, other):
            raise InputError(
                f"{checkpoint.folder}: {name} is not {twin}, which the base model takes them for"
            )


# --- what every conversion writes


def new_path(out: str | Path) -> Path:
    """The path of a folder to come.

    Raises:
        InputError: something is there.
    """
    if Path(out).exists():
        raise InputError(f"{out} exists already: choose another folder for the model")
    return Path(out)


@contextmanager
def model_folder(out: Path, size: int) -> Iterator[Path]:
    """A folder to fill with a model of so many bytes; it is `out` afterwards.

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
    """Read and write file by file, and say in an index which holds what, if there are several.

    Args:
        sizes: of the tensors in bytes, by name, in the order in which they are written.
        read: gives the tensors of some names.
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
