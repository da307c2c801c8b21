"""Checks whether a model folder can be loaded, and safely, before a library reads it.

Reading a pickle can run any code, so weights are read from safetensors only.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from workbench.engines.device import shape_only
from workbench.errors import InputError
from workbench.files import file_error

Shapes = Mapping[str, tuple[int, ...]]  # name: shape
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
PICKLE_FORMATS = ("pt", "npcache")  # vLLM's load formats
SAFE_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor")
INDEX = "model.safetensors.index.json"
TEXTS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    INDEX,
)  # fmt: skip
VOCABULARIES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "tekken.json", "*.gguf")
# Sizes by their usual names in config.json.
LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers"}
WIDTHS = {"hidden_size", "vocab_size", "n_embd", "d_model"}
POSITIONS = {"max_position_embeddings", "n_positions", "max_sequence_length"}
LAYER = re.compile(r"\.\d+\.")
WRONG = 8  # times the largest tensor's length: a larger size in config.json is wrong
MOST_POSITIONS = 2**27
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOATS = ("F64", "F32", "F16", "BF16")  # of safetensors
# What transformers reports of a checkpoint: it only warns, and uses random numbers.
PROBLEMS = {
    "missing_keys": "lacks",
    "unexpected_keys": "has, beyond the model,",
    "mismatched_keys": "has in another shape",
}
CONVERT = (
    "convert it where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained("
    '"new folder") writes safetensors'
)
CODE = (
    "it needs Python code from the folder; trust_remote_code=True would run that here, with all "
    "your rights (vllm, transformers): read it first"
)


def check_load_format(load_format: object) -> None:
    """Refuse formats that are pickles.

    Raises:
        InputError: names the remedy.
    """
    if load_format in PICKLE_FORMATS:
        raise InputError(
            f"load_format={load_format!r} reads pickles, which can run any code: leave it out for "
            f"safetensors, or {CONVERT}"
        )


def safe_format(model: str, load_format: str | None, revision: str | None) -> str:
    """vLLM's format for reading weights: the given one, but an automatic choice is never a pickle.

    Args:
        model: hub name or folder.
        load_format: vLLM's option.
        revision: of a hub model.
    """
    if load_format not in (None, "auto", "hf"):
        return load_format
    if load_format == "hf" or not _of_mistral(model, revision):
        return "safetensors"
    return "mistral"


def _of_mistral(model: str, revision: str | None) -> bool:
    """Whether it is in Mistral's format, which vLLM prefers if present."""
    pattern = "consolidated*.safetensors"
    if Path(model).is_dir():
        return any(Path(model).glob(pattern))
    if "tral" not in model.lower():  # Mistral, Mixtral, Devstral …; the request is slow offline
        return False
    from vllm.transformers_utils.repo_utils import list_filtered_repo_files

    return bool(list_filtered_repo_files(model, [pattern], revision))


def check_folder(folder: Path, *, load_format: object = "auto", tokenizer: bool = True) -> None:
    """Refuse a folder that is broken, or whose weights are pickles.

    Args:
        folder: a model folder in Hugging Face's format.
        load_format: the format of the weights; only safetensors are checked ("dummy" has none).
        tokenizer: whether the folder must have a tokenizer.

    Raises:
        InputError: names the folder and the problem, in one line.
    """
    check_load_format(load_format)
    config = _object(folder, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise _wrong(folder, f"config.json has no model_type ({config.get('model_type')!r:.40})")
    for name in TEXTS:
        if (folder / name).is_file():
            _object(folder, name)
    if tokenizer and not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        raise _wrong(folder, "it has no tokenizer (tokenizer.json): copy the model's into it")
    if load_format in SAFE_FORMATS and not any(folder.glob("*.gguf")):
        _check_sizes(folder, config, _shapes(folder))


def check_whole(folder: Path, load_format: object = "auto") -> None:
    """Refuse weights that lack a tensor which other layers have, or have it in another shape.

    vLLM combines some tensors from several parts. If a part is missing, it reports nothing and
    computes with uninitialised memory. Models that transformers does not support are not checked.

    Raises:
        InputError: names the tensor.
    """
    config = _object(folder, "config.json")
    if load_format not in SAFE_FORMATS or {"quantization_config", "auto_map"} & config.keys():
        return
    from transformers import AutoConfig

    stored = _shapes(folder)
    layers = {LAYER.sub(".*.", name) for name in stored}
    try:
        expected, twins = shapes_of(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception:  # noqa: BLE001  # the loader reports what is wrong with it
        return
    for name, shape in expected.items():
        names = [name, *(twin for twin, first in twins.items() if first == name)]
        if not stored.keys() & names and layers & {LAYER.sub(".*.", one) for one in names}:
            raise _wrong(folder, f"its weights lack {name}: download it again")
        for one in stored.keys() & names:
            if stored[one] != shape:
                what = f"{one} has the shape {stored[one]}, but config.json says {shape}"
                raise _wrong(folder, f"{what}: they do not match")


def shapes_of(config: Any) -> tuple[Shapes, Mapping[str, str]]:
    """The shapes of a model's tensors by name, and aliases: {alias: name}.

    Raises:
        InputError: transformers cannot make a language model of the configuration.
    """
    try:
        model = shape_only(config)
    except Exception as error:  # wrong sizes raise many kinds of errors
        text = " ".join(str(error).split())
        raise InputError(f"the base model is not a language model: {text:.300}") from error
    first: dict[int, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    twins: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if (same := first.setdefault(id(tensor), name)) == name:
            shapes[name] = tuple(tensor.shape)
        else:
            twins[name] = same
    return shapes, twins


def weights_size(folder: Path, dtype: str) -> int:
    """Bytes of a folder's safetensors if floating-point tensors are converted to `dtype`.

    Raises:
        InputError, OSError, KeyError: a file is broken or missing.
    """
    files = {*folder.glob("*.safetensors")}
    if (folder / INDEX).is_file():
        files = {folder / name for name in _object(folder, INDEX)["weight_map"].values()}
    elif len(files) > 1:  # Mistral's file next to the usual one
        files -= {*folder.glob("consolidated*.safetensors")}
    bits = 0
    for shape, kind in (tensor for file in files for tensor in _tensors(file).values()):
        width = re.search(r"\d+", kind)  # such as "I64", "F8_E4M3", "BOOL"
        each = 8 * SIZES[dtype] if kind in FLOATS else int(width[0]) if width else 8
        bits += prod(shape) * each
    return bits // 8


def check_adapter(folder: Path) -> None:
    """Refuse an adapter whose weights are pickles, broken or missing.

    Raises:
        InputError: names the folder and the problem.
    """
    config = _object(folder, "adapter_config.json")
    if not isinstance(config.get("peft_type"), str):
        raise _wrong(folder, "adapter_config.json has no peft_type")
    if not (folder / "adapter_model.safetensors").is_file():
        if any(any(folder.glob(pattern)) for pattern in PICKLES):
            raise _wrong(
                folder,
                "its weights are pickles, which can run any code: save it again with "
                "save_pretrained(…, safe_serialization=True) where you trust it",
            )
        raise _wrong(folder, "it has no adapter_model.safetensors")
    _tensors(folder / "adapter_model.safetensors")


def check_adapters(option: object) -> None:
    """`check_adapter` for the folders in a server's option, such as "name=folder".

    Raises:
        InputError: as for `check_adapter`.
    """
    for one in option if isinstance(option, list | tuple) else [option]:
        path = one.get("path") if isinstance(one, Mapping) else str(one).partition("=")[2]
        if path and Path(str(path)).is_dir():
            check_adapter(Path(str(path)))


def explain_load_error(name: str, error: BaseException) -> str:
    """A library's loading error in one line, with our remedy."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LookupError | ArithmeticError | AssertionError):
        text = f"{type(error).__name__} {text}"
    if "trust_remote_code" in text:
        text = CODE
    elif "ignore_mismatched_sizes" in text:
        text = "its weights have other shapes than config.json says: they do not match"
    elif "weights_only" in text or "torch.load" in text:
        text = f"its weights are pickles, which can run any code: {CONVERT}"
    return f"model {name!r} could not be loaded: {text:.500}"


@contextmanager
def silent() -> Iterator[None]:
    """Suppress the table of tensors that transformers prints: `check_tensors` raises instead."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def check_tensors(
    model: str, report: Mapping[str, Any], *problems: str, but: Collection[str] = ()
) -> None:
    """Refuse a checkpoint that does not match the model.

    Args:
        model: its name, for the message.
        report: transformers' loading info.
        problems: the kinds of `PROBLEMS` to refuse; none means all.
        but: names that may be missing.

    Raises:
        InputError: names the tensors.
    """
    for problem in problems or PROBLEMS:
        if names := [str(name) for name in report.get(problem) or () if name not in but]:
            raise InputError(
                f"model {model!r}: the checkpoint {PROBLEMS[problem]} {first_names(names)}: it "
                "does not match its config.json, or is incomplete; download it again"
            )


def first_names(names: Iterable[str]) -> str:
    """The first three names, for a message, and the number of others."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more


def _wrong(folder: Path, what: str) -> InputError:
    return InputError(f"model folder {str(folder)!r}: {what}")


def _object(folder: Path, name: str) -> dict[str, Any]:
    """A file's JSON object."""
    try:
        content = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file_error(folder / name, error)}; download the model again") from error
    if not isinstance(content, dict):
        raise _wrong(folder, f"{name} holds a {type(content).__name__}, not a JSON object")
    return content


def _shapes(folder: Path) -> Shapes:
    """Shapes of all tensors of a folder; refuses missing or truncated files."""
    files = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        placed = _object(folder, INDEX).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise _wrong(folder, f"{INDEX} has no weight_map")
        missing = {str(name) for name in placed.values()} - {file.name for file in files}
        if missing and not (folder / "model.safetensors").is_file():
            raise _wrong(folder, f"{first_names(missing)} of {INDEX} is missing: download it again")
    if not files:
        if pickles := sorted(name.name for pattern in PICKLES for name in folder.glob(pattern)):
            what = f"its weights are pickles ({pickles[0]}), which can run any code"
            raise _wrong(folder, f"{what}: {CONVERT}")
        raise _wrong(folder, 'it has no weights (*.safetensors); load_format="dummy" needs none')
    return {name: shape for file in files for name, (shape, _) in _tensors(file).items()}


def _tensors(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and number formats of a file's tensors; only its header is read."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(file, framework="numpy") as opened:
            for name in list(opened.keys()):
                tensor = opened.get_slice(name)
                tensors[name] = (tuple(tensor.get_shape()), tensor.get_dtype())
    except (SafetensorError, OSError, ValueError) as error:
        what = f"{file.name} ({file.stat().st_size:,} bytes) is broken or cut off: {error}"
        raise _wrong(file.parent, f"{what}; download it again") from error
    if not tensors:
        raise _wrong(file.parent, f"{file.name} holds no tensors: download it again")
    return tensors


def _check_sizes(folder: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse sizes that do not match the weights: building the model would take forever."""
    longest = max(size for shape in shapes.values() for size in (*shape, 1))
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for names, most in (
            (LAYERS, len(shapes)),
            (WIDTHS, WRONG * longest),
            (POSITIONS, MOST_POSITIONS),
        ):
            for name in names & part.keys():
                value = part[name]
                if isinstance(value, int) and not 0 < value <= most:
                    what = f"config.json says {name}={value!r:.40}, but the weights do not match"
                    raise _wrong(folder, what)
