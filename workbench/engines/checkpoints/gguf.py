"""Converts a GGUF file into a model folder for vLLM, transformers and the engines.

Only architectures whose numbers were compared with the original's are supported. A file must have
no unknown setting or tensor: a silently ignored one would give a model that produces nonsense.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from workbench.engines.agreement import agreement
from workbench.engines.checkpoints import gguf_tokenizer
from workbench.engines.checkpoints.checks import Shapes, first_names, shapes_of
from workbench.engines.checkpoints.convert import Converted, model_folder, new_path, write_weights
from workbench.engines.checkpoints.gguf_file import GGUFFile
from workbench.engines.device import prepare
from workbench.engines.transformers import unavailable
from workbench.errors import InputError, WorkbenchError, log
from workbench.files import write_whole
from workbench.lazy import np, torch
from workbench.machine import install_hint
from workbench.store import default_path, digest

ONE = Lock()  # transformers builds one model at a time in a process
# Architecture in the file: model type and class in transformers.
MODELS = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
NUMBERS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# Other settings that are used, or repeat what the tensors show.
MORE = (
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.freq_base",
    "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "vocab_size",
    "rope.scaling.finetuned", "rope.scaling.original_context_length",
)  # fmt: skip

ROPE = "rope_freqs.weight"
SOFT = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # Gemma 2's defaults
WINDOWED: dict[str, tuple[str, ...]] = {
    "gemma2": ("attention.sliding_window", *SOFT),
    "gemma3": ("attention.sliding_window", "rope.freq_base_swa"),
}
ORIGINAL = "use the original weights"
LARGEST = (("gemma2", 46), ("gemma3", 62))  # layers of 27B models, with another attention scale
TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def convert_gguf(path: str | Path, out: str | Path, *, tokenizer: str | None = None) -> Converted:
    """Convert a GGUF file into a Hugging Face model folder, in bfloat16.

    At the end, vLLM and transformers must agree on the first tokens after some texts, in float32.
    If vLLM cannot run the model, only transformers is checked; `checked` says so.

    Args:
        path: the file.
        out: a new folder; it appears only when it is complete.
        tokenizer: hub name or folder of a tokenizer to use instead of the file's.

    Raises:
        InputError: `out` exists, the file is broken or not supported, its tensors do not match the
            model, or `gguf` is not installed.
        WorkbenchError: the folder cannot be written, or the libraries disagree on it.
    """
    out = new_path(out)
    if reason := unavailable():
        hint = install_hint("transformers")
        raise InputError(f"converting {path} needs more: {reason}; install it with {hint}")
    prepare()
    file = GGUFFile(Path(path))
    config = configuration(file)
    names, shapes = _names(file, config)
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}

    def read(wanted: Sequence[str]) -> dict[str, Any]:
        return {name: _tensor(file, name, names[name], config) for name in wanted}

    with model_folder(out, sum(sizes.values())) as folder:
        _write_settings(file, config, folder, tokenizer)
        write_weights(folder, sizes, read)
        checked = agreement(folder, config.max_position_embeddings)
    left_out = tuple(name for name in file.tensors if name == ROPE)
    return Converted(out, len(sizes), sum(sizes.values()), left_out, checked)


def converted(path: Path) -> Path:
    """The model folder of a GGUF file, in the user's cache folder; converted once per content.

    Raises:
        InputError: as for `convert_gguf`.
        WorkbenchError: as for `convert_gguf`.
    """
    cache = default_path().parent / "gguf"
    try:
        stat = path.stat()
        note = cache / ".known" / digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns).hex()
        with suppress(OSError):  # this file was not seen before
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
                _convert_into_cache(path, target)
            write_whole(note, target.name)
    except OSError as error:
        raise WorkbenchError(
            f"the model of {path} could not be written to {cache}: {error}; make room, or set "
            "WORKBENCH_CACHE to another folder"
        ) from error
    return target


def _convert_into_cache(path: Path, target: Path) -> None:
    """Convert into the cache folder; if another process was quicker, its folder stays."""
    log.info("converting %s, once: the model folder will be %s", path, target)
    with TemporaryDirectory(dir=target.parent, prefix=".part-") as scratch:
        conversion = convert_gguf(path, Path(scratch) / "model")
        log.info("the same first tokens in: %s", conversion.checked)
        try:
            conversion.folder.rename(target)
        except OSError:
            if not (target / "config.json").is_file():
                raise


def _names(file: GGUFFile, config: Any) -> tuple[dict[str, str], Shapes]:
    """The file's names of the model's tensors, and the tensors' shapes."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    try:
        shapes, _ = shapes_of(config)
    except InputError as error:
        raise file.refused(f"describes an invalid model ({error})") from error
    architecture = file.fields["general.architecture"]
    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    table = get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    stems = ((name, *name.rpartition(".")[::2]) for name in shapes)
    names = {name: f"{table.get_name(stem)}.{end}" for name, stem, end in stems}
    if missing := {*names.values()} - {*file.tensors}:
        raise file.refused(f"lacks {first_names(missing)}")
    if more := {*file.tensors} - {*names.values()} - {ROPE}:
        raise file.refused(
            f"has tensors that a {architecture} does not have: {first_names(more)}", ORIGINAL
        )
    for name, shape in shapes.items():
        if (stored := file.tensors[names[name]].shape) != shape:
            raise file.refused(
                f"has {names[name]} with the shape {[*stored]}; its settings say {[*shape]}"
            )
    return names, shapes


def _tensor(file: GGUFFile, name: str, stored: str, config: Any) -> Any:
    """A tensor in transformers' form: llama.cpp permutes some tensors, and adds 1 to others."""
    value = torch.from_numpy(file.read(stored))
    if not torch.isfinite(value).all():
        raise file.refused(f"has values in {stored} that are not finite")
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        value -= 1
    if config.model_type == "llama" and stored.split(".")[-2] in ("attn_q", "attn_k"):
        query = stored.split(".")[-2] == "attn_q"
        heads = config.num_attention_heads if query else config.num_key_value_heads
        pairs = value.reshape(heads, len(value) // heads // 2, 2, *value.shape[1:])
        value = pairs.transpose(1, 2).reshape(value.shape)
    return value.to(torch.bfloat16)


def _write_settings(file: GGUFFile, config: Any, folder: Path, tokenizer: str | None) -> None:
    """Write the files of a model folder other than its weights."""
    from transformers import AutoTokenizer, GenerationConfig

    config.save_pretrained(folder)
    if tokenizer is None:
        count = gguf_tokenizer.write_tokenizer(file, folder, config.max_position_embeddings)
        gguf_tokenizer.check_tokenizer(file, folder)
    else:
        try:
            other = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
            other.save_pretrained(folder)
        except Exception as error:  # no such name, no network, a broken file
            text = " ".join(str(error).split())
            raise InputError(f"tokenizer {tokenizer!r} cannot be loaded: {text:.300}") from error
        count = len(other)
    if count > config.vocab_size:
        raise file.refused(
            f"has weights for {config.vocab_size} tokens, but the tokenizer has {count}",
            "set the model's tokenizer with --tokenizer (tokenizer=…)",
        )
    ends = gguf_tokenizer.end_tokens(file)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)


# --- the configuration


def configuration(file: GGUFFile) -> Any:
    """The configuration of a file's settings, for transformers.

    Raises:
        InputError: an architecture or a setting that is not supported.
    """
    from transformers import AutoConfig

    known = _architecture(file)
    values: dict[str, Any] = {name: _number(file, key) for key, name in NUMBERS.items()}
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    size = _number(file, "attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (other := _number(file, name, size)) != size:  # partial rotation, or two sizes
            raise file.refused(f"has heads of size {size} and {name}={other}", ORIGINAL)
    if known != "qwen2" or size * heads != hidden:
        values["head_dim"] = size
    values |= {
        "architectures": [MODELS[known][1]],
        "dtype": "bfloat16",
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "num_key_value_heads": _number(file, "attention.head_count_kv", heads),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file, size),
        **{f"{key}_token_id": gguf_tokenizer.special(file, name) for key, name in TOKENS.items()},
    }
    if known in WINDOWED:
        whole = (known, values["num_hidden_layers"]) in LARGEST
        values["query_pre_attn_scalar"] = hidden // heads if whole else size
        values["sliding_window"] = _number(file, "attention.sliding_window")
    if known == "gemma2":
        values |= {key: _number(file, key, usual) for key, usual in SOFT.items()}
    blocks = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if len(blocks) != values["num_hidden_layers"]:
        raise file.refused(f"says {values['num_hidden_layers']} layers, but has {len(blocks)}")
    try:
        return AutoConfig.for_model(MODELS[known][0], **values)
    except Exception as error:  # sizes that do not match raise many kinds of errors
        reason = " ".join(str(error).split())
        raise file.refused(f"does not describe a valid {known} ({reason:.200})") from error


def _architecture(file: GGUFFile) -> str:
    """The architecture's name; refuses unsupported architectures and settings.

    An unknown setting is refused: ignoring it would give another model.
    """
    known = file.fields.get("general.architecture")
    if not isinstance(known, str) or known not in MODELS:
        raise file.refused(
            f"has the architecture {known!r:.40}",
            f"supported are {', '.join(MODELS)}; use the original weights, or serve the file with "
            "llama.cpp and set its base_url",
        )
    for key, value in file.fields.items():
        name = key.removeprefix(f"{known}.")
        if name != key and name not in {*NUMBERS, *MORE, *WINDOWED.get(known, ())}:
            raise file.refused(f"has the setting {key}={value!r:.40}, not supported", ORIGINAL)
    if "token_embd.weight" not in file.tensors:
        raise file.refused("lacks token_embd.weight", "it is not a language model")
    return known


def _number(file: GGUFFile, name: str, default: float | None = None) -> Any:
    """A setting of the architecture that must be a number above 0."""
    key = f"{file.fields['general.architecture']}.{name}"
    value = file.fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        raise file.refused(f"has {key}={value!r:.40}, which must be a number above 0")
    return float(f"{value:.7g}") if isinstance(value, float) else value  # float32 in the file


def _rope(file: GGUFFile, size: int) -> dict[str, Any]:
    """The settings of rotary position embeddings."""
    known = file.fields["general.architecture"]
    usual = None if known == "gemma3" else 10_000.0
    theta = float(_number(file, "rope.freq_base", usual))
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    kind = file.fields.get(f"{known}.rope.scaling.type", "linear")
    factor = float(_number(file, "rope.scaling.factor", 1.0)) if kind == "linear" else 1.0
    if kind not in ("none", "linear") or (ROPE in file.tensors and factor != 1):
        raise file.refused(f"scales positions with {kind!r:.40}, which is not supported", ORIGINAL)
    if ROPE in file.tensors:
        plain |= _long(file, size, theta)
    elif factor != 1:
        plain |= {"rope_type": "linear", "factor": factor}
    if known != "gemma3":
        return plain
    near = float(_number(file, "rope.freq_base_swa", 10_000.0))
    return {
        "full_attention": plain,
        "sliding_attention": {"rope_type": "default", "rope_theta": near},
    }


def _long(file: GGUFFile, size: int, theta: float) -> dict[str, Any]:
    """The settings of Llama 3.1 that produce the file's table of factors."""
    table = file.read(ROPE)
    waves = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
    factor = float(f"{table.max():.6g}")
    for length in (8192, 4096, 16384, 32768):
        smooth = np.clip((length / waves - 1) / 3, 0, 1)
        if table.shape == waves.shape and np.allclose(
            1 / ((1 - smooth) / factor + smooth), table, rtol=1e-3
        ):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": length,
            }
    raise file.refused(f"has a table {ROPE} that is not supported", ORIGINAL)
