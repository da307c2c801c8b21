"""The configuration that a GGUF file's settings amount to, in transformers' terms.

A setting that is not known here is refused: left out in silence, it would make another model.
"""

from __future__ import annotations

from typing import Any

from workbench.engines.gguf_file import GGUFFile
from workbench.engines.gguf_tokenizer import special

# By architecture in the file: model type, and class, in transformers.
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
# What else is read, or says nothing that the tensors do not.
MORE = (
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.freq_base",
    "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "vocab_size",
    "rope.scaling.finetuned", "rope.scaling.original_context_length",
)  # fmt: skip

ROPE = "rope_freqs.weight"
SOFT = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # of Gemma 2, if unsaid
ORIGINAL = "take the original weights"
LARGEST = (("gemma2", 46), ("gemma3", 62))  # of 27B: they scale attention by another size
TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def _number(file: GGUFFile, name: str, default: float | None = None) -> Any:
    """A setting of the architecture that has to be a number above 0."""
    key = f"{file.fields['general.architecture']}.{name}"
    value = file.fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        raise file.refused(f"has {key}={value!r:.40}, which must be a number above 0")
    return float(f"{value:.7g}") if isinstance(value, float) else value  # float32 in the file


def configuration(file: GGUFFile) -> Any:
    """The configuration that a file's settings amount to.

    Raises:
        InputError: an architecture or a setting that is not known here.
    """
    from transformers import AutoConfig

    known = file.fields.get("general.architecture")
    if not isinstance(known, str) or known not in MODELS:
        raise file.refused(
            f"has the architecture {known!r:.40}",
            f"known here are {', '.join(MODELS)}; take the original weights, or serve the file "
            "with llama.cpp and give its base_url",
        )
    windowed: tuple[str, ...] = (
        ("attention.sliding_window",) if known in ("gemma2", "gemma3") else ()
    )
    windowed += (*SOFT,) if known == "gemma2" else ("rope.freq_base_swa",) if windowed else ()
    for key in file.fields:
        if key.startswith(f"{known}.") and key.removeprefix(f"{known}.") not in {
            *NUMBERS, *MORE, *windowed,
        }:  # fmt: skip
            raise file.refused(
                f"has the setting {key}={file.fields[key]!r:.40}, not known here",
                "take the original weights",
            )
    if "token_embd.weight" not in file.tensors:
        raise file.refused("lacks token_embd.weight", "it holds no language model")
    values: dict[str, Any] = {name: _number(file, key) for key, name in NUMBERS.items()}
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    size = _number(file, "attention.key_length", hidden // heads)
    _agree(file, size)
    if known != "qwen2" or size * heads != hidden:
        values["head_dim"] = size
    values |= {
        "architectures": [MODELS[known][1]],
        "dtype": "bfloat16",
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "num_key_value_heads": _number(file, "attention.head_count_kv", heads),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file, size),
        **{f"{k}_token_id": special(file, n) for k, n in TOKENS.items()},
    }
    if windowed:
        whole = (known, values["num_hidden_layers"]) in LARGEST
        values["query_pre_attn_scalar"] = hidden // heads if whole else size
        values["sliding_window"] = _number(file, "attention.sliding_window")
        for key in SOFT if known == "gemma2" else ():
            values[key] = _number(file, key, SOFT[key])
    blocks = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if len(blocks) != values["num_hidden_layers"]:
        raise file.refused(f"says {values['num_hidden_layers']} layers and has {len(blocks)}")
    try:
        return AutoConfig.for_model(MODELS[known][0], **values)
    except Exception as error:  # sizes that do not go together fail in many ways
        raise file.refused(f"describes no {known} ({' '.join(str(error).split()):.200})") from error


def _agree(file: GGUFFile, size: int) -> None:
    """Refuse heads that are not of one size, or turned in part.

    Raises:
        InputError: names the setting.
    """
    for name in ("attention.value_length", "rope.dimension_count"):
        if (other := _number(file, name, size)) != size:
            raise file.refused(f"has heads of size {size} and {name}={other}", ORIGINAL)


def _rope(file: GGUFFile, size: int) -> dict[str, Any]:
    """How positions turn a head.

    Raises:
        InputError: a way that is not known here.
    """
    known = file.fields["general.architecture"]
    usual = None if known == "gemma3" else 10_000.0
    theta = float(_number(file, "rope.freq_base", usual))
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    kind = file.fields.get(f"{known}.rope.scaling.type", "linear")
    factor = float(_number(file, "rope.scaling.factor", 1.0)) if kind == "linear" else 1.0
    if kind not in ("none", "linear") or (ROPE in file.tensors and factor != 1):
        raise file.refused(f"scales positions in the way {kind!r:.40}, not known here", ORIGINAL)
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
    """The settings of Llama 3.1 that gave the file's table of factors.

    Raises:
        InputError: no such settings give it.
    """
    import numpy as np

    found = file.read(ROPE)
    waves = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
    factor = float(f"{found.max():.6g}")
    for length in (8192, 4096, 16384, 32768):
        smooth = np.clip((length / waves - 1) / 3, 0, 1)
        if found.shape == waves.shape and np.allclose(
            1 / ((1 - smooth) / factor + smooth), found, rtol=1e-3
        ):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": length,
            }
    raise file.refused(f"has a table {ROPE} that is not known here", ORIGINAL)
