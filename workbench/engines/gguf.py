"""A GGUF file made into a model folder that vLLM, transformers and the engines load.

Only architectures whose numbers were compared with the original's are taken, and of those only
files of which every setting and every tensor is accounted for: what is skipped in silence makes a
model that talks nonsense.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from workbench.engines.agreement import agreement
from workbench.engines.convert import Converted, shapes_of, some, write
from workbench.engines.device import prepare
from workbench.engines.gguf_config import ROPE, configuration
from workbench.engines.gguf_file import GGUFFile
from workbench.engines.gguf_tokenizer import check_tokenizer, end_tokens, write_tokenizer
from workbench.engines.transformers import unavailable
from workbench.errors import InputError, WorkbenchError
from workbench.files import whole_folder, write_whole
from workbench.store import default_path, digest

log = logging.getLogger("workbench")
ONE = Lock()  # transformers builds one model at a time in a process


def convert_gguf(path: str | Path, out: str | Path, *, tokenizer: str | None = None) -> Converted:
    """Turn a GGUF file into a Hugging Face model folder, in bfloat16.

    At the end the first tokens of some texts are compared between vLLM and transformers, in
    float32; where vLLM cannot run it, transformers alone has to answer, and `checked` says so.

    Args:
        path: the file.
        out: a new folder; it appears whole or not at all.
        tokenizer: hub name or folder of a tokenizer to take instead of the file's.

    Raises:
        InputError: `out` exists, the file is broken or of a kind not known here, its tensors are
            not those of the model, or `gguf` is not installed.
        WorkbenchError: the folder cannot be written, or the libraries disagree on it.
    """
    from safetensors import SafetensorError

    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists already: choose another folder for the model")
    if reason := unavailable():
        raise InputError(f"converting {path} needs transformers and torch: {reason}; install both")
    prepare()
    file = GGUFFile(Path(path))
    config = configuration(file)
    names, shapes, left = _names(file, config)
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}

    def read(wanted: Sequence[str]) -> dict[str, Any]:
        return {name: _tensor(file, name, names[name], config) for name in wanted}

    try:
        with whole_folder(out) as part:
            _beside(file, config, part, tokenizer)
            write(part, sizes, read)
            checked = agreement(part, config.max_position_embeddings)
    except (OSError, SafetensorError) as error:
        raise WorkbenchError(
            f"the model ({sum(sizes.values()) / 1e9:.1f} GB) could not be written to {out}: "
            f"{error}; choose another folder, or make room"
        ) from error
    return Converted(out, len(sizes), sum(sizes.values()), left, checked)


def converted(path: Path) -> Path:
    """The model folder of a GGUF file, in the user's cache folder; made once for its content.

    Raises:
        InputError: as for `convert_gguf`.
        WorkbenchError: as for `convert_gguf`.
    """
    cache = default_path().parent / "gguf"
    try:
        stat = path.stat()
        note = cache / ".known" / digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns).hex()
        with suppress(OSError):  # nothing is known of this file yet
            if ((target := cache / note.read_text()) / "config.json").is_file():
                return target
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    target = cache / f"{path.stem[:40]}-{content[:12]}"
    try:
        with ONE:
            note.parent.mkdir(parents=True, exist_ok=True)
            if not (target / "config.json").is_file():
                _keep(path, target)
            write_whole(note, target.name)
    except OSError as error:
        raise WorkbenchError(
            f"the model of {path} could not be kept in {cache}: {error}; make room, or set "
            "WORKBENCH_CACHE to another folder"
        ) from error
    return target


def _keep(path: Path, target: Path) -> None:
    """Convert into the cache folder; of two processes the quicker one's folder stays."""
    log.info("converting %s, once: the model folder will be %s", path, target)
    with TemporaryDirectory(dir=target.parent, prefix=".part-") as scratch:
        made = convert_gguf(path, Path(scratch) / "model")
        log.info("the same first tokens in: %s", made.checked)
        try:
            made.folder.rename(target)
        except OSError:
            if not (target / "config.json").is_file():
                raise


def _names(
    file: GGUFFile, config: Any
) -> tuple[dict[str, str], dict[str, tuple[int, ...]], tuple[str, ...]]:
    """The file's names and the shapes of the model's tensors; which of the file's are left out.

    Raises:
        InputError: the file lacks some, has more, or has them in other shapes.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    try:
        shapes, _ = shapes_of(config)
    except InputError as error:
        raise file.refused(f"describes a model that cannot be made ({error})") from error
    known = file.fields["general.architecture"]
    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    table = get_tensor_name_map(kinds[known], config.num_hidden_layers)
    names: dict[str, str] = {}
    for name in shapes:
        stem, _, end = name.rpartition(".")
        names[name] = f"{table.get_name(stem)}.{end}"
    if missing := {*names.values()} - {*file.tensors}:
        raise file.refused(f"lacks {some(missing)}")
    if more := {*file.tensors} - {*names.values()} - {ROPE}:
        raise file.refused(
            f"has tensors that a {known} does not take: {some(more)}", "take the original weights"
        )
    for name, shape in shapes.items():
        if (stored := file.tensors[names[name]].shape) != shape:
            raise file.refused(
                f"has {names[name]} with the shape {[*stored]}; its settings say {[*shape]}"
            )
    return names, shapes, tuple(name for name in file.tensors if name == ROPE)


def _tensor(file: GGUFFile, name: str, stored: str, config: Any) -> Any:
    """A tensor as transformers has it: llama.cpp turns some of them round, or adds 1.

    Raises:
        InputError: it holds infinities, or what is no number.
    """
    import torch

    value = torch.from_numpy(file.read(stored))
    if not torch.isfinite(value).all():
        raise file.refused(f"has values in {stored} that are no numbers")
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        value -= 1
    if config.model_type == "llama" and stored.split(".")[-2] in ("attn_q", "attn_k"):
        query = stored.split(".")[-2] == "attn_q"
        heads = config.num_attention_heads if query else config.num_key_value_heads
        pairs = value.reshape(heads, len(value) // heads // 2, 2, *value.shape[1:])
        value = pairs.transpose(1, 2).reshape(value.shape)
    return value.to(torch.bfloat16)


def _beside(file: GGUFFile, config: Any, folder: Path, tokenizer: str | None) -> None:
    """Write what a model folder has besides its weights.

    Raises:
        InputError: no tokenizer, or one that has tokens without weights.
    """
    from transformers import AutoTokenizer, GenerationConfig

    config.save_pretrained(folder)
    if tokenizer is None:
        count = write_tokenizer(file, folder, config.max_position_embeddings)
        check_tokenizer(file, folder)
    else:
        try:
            taken = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
            taken.save_pretrained(folder)
        except Exception as error:  # no such name, no network, a broken file
            text = " ".join(str(error).split())
            raise InputError(f"tokenizer {tokenizer!r} cannot be loaded: {text:.300}") from error
        count = len(taken)
    if count > config.vocab_size:
        raise file.refused(
            f"has weights for {config.vocab_size} tokens, and the tokenizer has {count}",
            "give the model's own with --tokenizer (tokenizer=…)",
        )
    ends = end_tokens(file)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
