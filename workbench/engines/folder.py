"""Whether a folder can be loaded at all, and safely: asked before a library gets to see it.

A pickle runs whatever its maker wants as it is read, so weights are read from safetensors only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.engines.device import shape_only
from workbench.errors import InputError

Tensors = Mapping[str, tuple[int, ...]]  # shapes by name
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
PICKLE_FORMATS = ("pt", "npcache")  # of vLLM
SAFE_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor")
TEXTS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "model.safetensors.index.json",
)  # fmt: skip
VOCABULARIES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json", "*.gguf")
# Sizes by the names that they have in most models.
LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers"}
WIDTHS = {"hidden_size", "vocab_size", "n_embd", "d_model"}
POSITIONS = {"max_position_embeddings", "n_positions", "max_sequence_length"}
LAYER = re.compile(r"\.\d+\.")
WRONG = 8  # times the largest tensor's length, above which a size in config.json is none
MOST_POSITIONS = 2**27
CONVERT = (
    "convert it where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained("
    '"new folder") writes safetensors'
)
CODE = (
    "it needs Python code that lies in the folder; trust_remote_code=True would run that here, "
    "with all your rights (vllm, transformers): read it first"
)


def check_trust(given: object) -> bool:
    """The option `trust_remote_code`.

    Raises:
        InputError: neither True nor False.
    """
    if not isinstance(given, bool):
        raise InputError(f"trust_remote_code={given!r}: must be True or False")
    return given


def check_load_format(form: object) -> None:
    """Refuse formats that are pickles.

    Raises:
        InputError: names the remedy.
    """
    if form in PICKLE_FORMATS:
        raise InputError(
            f"load_format={form!r} reads pickles, which run what their maker wants: leave it out "
            f"for safetensors, or {CONVERT}"
        )


def safe_format(model: str, asked: str | None, revision: str | None) -> str:
    """vLLM's way to read weights: as asked for, but that its own choice may not be a pickle.

    Args:
        model: hub name or folder.
        asked: its option `load_format`.
        revision: of a model on the hub.
    """
    if asked not in (None, "auto", "hf"):
        return asked
    if asked == "hf" or not _of_mistral(model, revision):
        return "safetensors"
    return "mistral"


def _of_mistral(model: str, revision: str | None) -> bool:
    """Whether it has the form of Mistral's own, which vLLM takes where it finds it."""
    pattern = "consolidated*.safetensors"
    if Path(model).is_dir():
        return any(Path(model).glob(pattern))
    if "tral" not in model.lower():  # Mistral, Mixtral, Devstral …: asking takes long offline
        return False
    from vllm.transformers_utils.repo_utils import list_filtered_repo_files

    return bool(list_filtered_repo_files(model, [pattern], revision))


def check_folder(folder: Path, *, load_format: object = "auto", tokenizer: bool = True) -> None:
    """Refuse a folder that is broken, or whose weights are pickles.

    Args:
        folder: of a model in the form of Hugging Face.
        load_format: how its weights are read; those of other forms than safetensors are not looked
            at, nor is "dummy", which has none.
        tokenizer: whether it must have one.

    Raises:
        InputError: names the folder and what is wrong with it, in one line.
    """
    check_load_format(load_format)
    config = _object(folder, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise _wrong(folder, f"config.json has no model_type ({config.get('model_type')!r:.40})")
    for name in TEXTS:
        if (folder / name).is_file():
            _object(folder, name)
    if tokenizer and not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        raise _wrong(folder, "it has no tokenizer (tokenizer.json): copy that of the model here")
    if load_format in SAFE_FORMATS and not any(folder.glob("*.gguf")):
        _check_sizes(folder, config, _check_weights(folder))


def check_whole(folder: Path, load_format: object = "auto") -> None:
    """Refuse weights that lack a tensor which other layers have, or have it in another shape.

    vLLM says nothing where a part of a tensor is missing that it puts together of several: what
    was in memory is computed with. Models that transformers does not know are let through.

    Raises:
        InputError: names the tensor.
    """
    config = _object(folder, "config.json")
    if load_format not in SAFE_FORMATS or {"quantization_config", "auto_map"} & config.keys():
        return
    tensors = _check_weights(folder)
    known = {LAYER.sub(".*.", name) for name in tensors}
    expected, twins = _expected(folder)
    for name, shape in expected.items():
        alone = not {*tensors} & {*twins[name]}
        if alone and LAYER.sub(".*.", name) in known:
            raise _wrong(folder, f"its weights lack {name}: fetch it again")
        if tensors.get(name, shape) != shape:
            what = f"{name} has the shape {tensors[name]}, where config.json says {shape}"
            raise _wrong(folder, f"{what}: they do not belong together")


def _expected(folder: Path) -> tuple[Tensors, Mapping[str, list[str]]]:
    """The tensors of the model that config.json describes, as far as transformers knows it.

    Also all names of each: one that is tied is stored once.
    """
    from transformers import AutoConfig

    try:
        model = shape_only(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception:  # noqa: BLE001  # what is wrong with it is said by who loads it
        return {}, {}
    found = model.state_dict(keep_vars=True)
    same: dict[int, list[str]] = {}
    for name, tensor in found.items():
        same.setdefault(id(tensor), []).append(name)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    return shapes, {name: same[id(tensor)] for name, tensor in found.items()}


def check_adapter(folder: Path) -> None:
    """Refuse an adapter whose weights are pickles, are broken, or are not there.

    Raises:
        InputError: names the folder and what is wrong.
    """
    config = _object(folder, "adapter_config.json")
    if not isinstance(config.get("peft_type"), str):
        raise _wrong(folder, "adapter_config.json has no peft_type")
    if not (folder / "adapter_model.safetensors").is_file():
        if any(any(folder.glob(pattern)) for pattern in PICKLES):
            raise _wrong(
                folder,
                "its weights are pickles, which run what their maker wants: save it again with "
                "save_pretrained(…, safe_serialization=True) where you trust it",
            )
        raise _wrong(folder, "it has no adapter_model.safetensors")
    _tensors(folder / "adapter_model.safetensors")


def check_adapters(given: object) -> None:
    """`check_adapter` for those folders that a server's option names, such as "name=folder".

    Raises:
        InputError: as there.
    """
    for one in given if isinstance(given, list | tuple) else [given]:
        path = one.get("path") if isinstance(one, Mapping) else str(one).partition("=")[2]
        if path and Path(str(path)).is_dir():
            check_adapter(Path(str(path)))


def explained(name: str, error: BaseException) -> str:
    """What a library says of a model that it cannot load, in one line, with our remedy."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LookupError | ArithmeticError | AssertionError):
        said = f"{type(error).__name__} {said}"
    if "trust_remote_code" in said:
        said = CODE
    elif "ignore_mismatched_sizes" in said:
        said = "its weights have other shapes than config.json says: they do not belong together"
    elif "weights_only" in said or "torch.load" in said:
        said = f"its weights are pickles, which run what their maker wants: {CONVERT}"
    return f"model {name!r} could not be loaded: {said:.500}"


def _wrong(folder: Path, what: str) -> InputError:
    return InputError(f"model folder {str(folder)!r}: {what}")


def _object(folder: Path, name: str) -> dict[str, Any]:
    """A file's JSON object."""
    try:
        found = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(folder, f"{name} cannot be read ({error}): fetch it again") from error
    if not isinstance(found, dict):
        raise _wrong(folder, f"{name} holds a {type(found).__name__}, no JSON object")
    return found


def _check_weights(folder: Path) -> Tensors:
    """All tensors of a folder, whose files are all there and whole."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        placed = _object(folder, index.name).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise _wrong(folder, f"{index.name} has no weight_map")
        missing = sorted({str(name) for name in placed.values()} - {file.name for file in files})
        if missing and not (folder / "model.safetensors").is_file():
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise _wrong(folder, f"{missing[0]}{more} of {index.name} is missing: fetch it again")
    if not files:
        pickles = sorted(name.name for pattern in PICKLES for name in folder.glob(pattern))
        if pickles:
            what = f"its weights are pickles ({pickles[0]}), which run what their maker wants"
            raise _wrong(folder, f"{what}: {CONVERT}")
        raise _wrong(folder, 'it has no weights (*.safetensors); load_format="dummy" needs none')
    return {name: shape for file in files for name, shape in _tensors(file).items()}


def _tensors(file: Path) -> Tensors:
    """The tensors of a file, of which nothing but the header is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            shapes = {x: tuple(opened.get_slice(x).get_shape()) for x in list(opened.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        what = f"{file.name} ({file.stat().st_size:,} bytes) is broken or cut off: {error}"
        raise _wrong(file.parent, f"{what}; fetch it again") from error
    if not shapes:
        raise _wrong(file.parent, f"{file.name} holds no tensors: fetch it again")
    return shapes


def _check_sizes(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> None:
    """Refuse sizes that the weights cannot have: building the model would take forever."""
    longest = max(size for shape in tensors.values() for size in (*shape, 1))
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for names, most in (
            (LAYERS, len(tensors)),
            (WIDTHS, WRONG * longest),
            (POSITIONS, MOST_POSITIONS),
        ):
            for name in names & part.keys():
                value = part[name]
                if isinstance(value, int) and not 0 < value <= most:
                    what = f"config.json says {name}={value!r:.40}, no size that these weights have"
                    raise _wrong(folder, f"{what}: they do not belong together")
