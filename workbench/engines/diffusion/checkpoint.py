"""A masked-diffusion checkpoint, read as a Llama of stock transformers.

LLaDA-8B (Base, Instruct, 1.5) is a Llama with other names: its tensors are renamed while they are
read. No code of the checkpoint is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import values
from workbench.engines.checkpoints.checks import (
    check_folder,
    check_tensors,
    explain_load_error,
    silent,
)
from workbench.engines.device import building, context_length, memory_ran_out
from workbench.engines.diffusion.network import Network
from workbench.engines.source import Source
from workbench.errors import EngineError, InputError, WorkbenchError
from workbench.lazy import torch

# LLaDA's names and Llama's.
NAMES = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
}

# What a LLaDA configuration must have to be the same function as a Llama.
LIKE_LLAMA = {
    "activation_type": "silu", "alibi": False, "attention_layer_norm": False,
    "block_group_size": 1, "clip_qkv": None, "block_type": "llama", "include_bias": False,
    "include_qkv_bias": False, "input_emb_norm": False, "layer_norm_type": "rms", "rope": True,
    "scale_logits": False,
}  # fmt: skip
PLAIN = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
FILES = [*PLAIN, "*.safetensors"]


def describe(model: str) -> tuple[Path, Any]:
    """A model's folder and configuration; of a hub model, without its weights.

    A LLaDA's configuration is returned as the Llama's that it equals.

    Raises:
        InputError: no such model, or transformers does not support it.
    """
    from transformers import AutoConfig

    source = Source.find(model)
    folder = source.folder or _download(source.name, None, PLAIN)
    try:
        raw = _json(folder / "config.json")
        if raw.get("model_type") != "llada":
            return folder, AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config = _config(raw)
        config.update({"architectures": ["LlamaForCausalLM"]})
    except WorkbenchError:
        raise
    except Exception as error:  # broken files raise many kinds of errors
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"base model {model!r} cannot be read: {text:.300}") from error
    return folder, config


def llama_name(name: str) -> str:
    """A LLaDA tensor's name in a Llama; any other name is returned unchanged."""
    for old, new in NAMES.items():
        name = re.sub(old, new, name)
    return name


def read(source: Source, device: Any, options: Mapping[str, Any]) -> Network:
    """Read a model from its folder, or from the hub.

    Raises:
        InputError: not a masked-diffusion model, missing or extra tensors, no mask token, an
            unreadable file, or a wrong option.
        EngineError: it does not fit into memory.
    """
    form = values.choice("load_format", options.get("load_format", "auto"), "auto", "dummy")
    try:
        network = _read(source, device, options, dummy=form == "dummy")
    except WorkbenchError:
        raise
    except Exception as error:  # broken files raise many kinds of errors
        kind = EngineError if memory_ran_out(error) else InputError
        raise kind(explain_load_error(source.name, error)) from error
    network.check_bidirectional()
    return network


def _read(source: Source, device: Any, options: Mapping[str, Any], *, dummy: bool) -> Network:
    from transformers import PreTrainedTokenizerFast

    folder = source.folder or _download(source.name, options.get("revision"), FILES)
    check_folder(folder, load_format=options.get("load_format", "auto"), tokenizer=False)
    raw = _json(folder / "config.json")
    config = _config(raw)
    if not (folder / "tokenizer.json").exists():
        raise InputError(f"model folder {folder.name!r} has no tokenizer.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}: they do "
            "not belong together"
        )
    mask = _mask(raw, tokenizer, options.get("mask_token_id"), config.vocab_size)
    context = context_length(config.max_position_embeddings, options.get("max_model_len"))
    dtype = options.get("dtype", "float32" if device.type == "cpu" else "auto")
    config._attn_implementation = "sdpa"
    if dummy:
        model = _random(config, device, dtype)
    else:
        model = _weights(folder, config, dtype, llada=raw.get("model_type") == "llada")
    return Network(
        model.to(device).eval(),
        tokenizer,
        mask,
        _ends(raw, folder, tokenizer),
        context,
        "" if source.folder else folder.name,
    )


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"model {name!r} could not be downloaded: {text:.300}. Check its name and the network, "
            "or use a local folder"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise InputError(f"{path.name} of the model is not a JSON object")
    return found


def _config(raw: Mapping[str, Any]) -> Any:
    """The Llama configuration that a model's configuration amounts to."""
    from transformers import LlamaConfig

    if raw.get("model_type") == "llada":
        return LlamaConfig(**_renamed(raw))
    if raw.get("model_type") != "llama" or raw.get("is_causal", True):
        raise InputError(
            f"model_type {raw.get('model_type')!r}, is_causal {raw.get('is_causal', True)}: not a "
            "supported masked-diffusion model. Use one of the LLaDA-8B family or a Llama with "
            '"is_causal": false, or another engine'
        )
    return LlamaConfig(**raw)


def _renamed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A LLaDA configuration with Llama's names."""
    for name, need in LIKE_LLAMA.items():
        if raw.get(name, need) != need:
            raise InputError(f"{name}={raw[name]!r}: only {need!r} is supported")
    return {
        "vocab_size": raw.get("embedding_size") or raw["vocab_size"],
        "hidden_size": raw["d_model"],
        "intermediate_size": raw["mlp_hidden_size"],
        "num_hidden_layers": raw["n_layers"],
        "num_attention_heads": raw["n_heads"],
        "num_key_value_heads": raw.get("n_kv_heads") or raw["n_heads"],
        "max_position_embeddings": raw["max_sequence_length"],
        "rms_norm_eps": raw.get("rms_norm_eps", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": raw["rope_theta"]},
        "tie_word_embeddings": raw.get("weight_tying", False),
        "bos_token_id": raw.get("bos_token_id"),
        "eos_token_id": raw.get("eos_token_id"),
        "pad_token_id": raw.get("pad_token_id"),
        "dtype": raw.get("dtype") or raw.get("torch_dtype"),
        "is_causal": False,
        "mask_token_id": raw.get("mask_token_id"),
    }


def _mask(raw: Mapping[str, Any], tokenizer: Any, given: object, size: int) -> int:
    """The mask token's id: the given one, the configuration's, or the tokenizer's."""
    for token in (given, raw.get("mask_token_id"), tokenizer.mask_token_id):
        if token is not None:
            return values.whole("mask_token_id", token, 0, size - 1)
    raise InputError(
        "neither config.json nor the tokenizer names a mask token: set mask_token_id=… "
        "(126336 for LLaDA-8B)"
    )


def _ends(raw: Mapping[str, Any], folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer: the model's, the tokenizer's, and the end of a turn."""
    found = [raw.get("eos_token_id"), tokenizer.eos_token_id]
    if (folder / "generation_config.json").exists():
        found.append(_json(folder / "generation_config.json").get("eos_token_id"))
    found += [tokenizer.get_added_vocab().get(turn) for turn in ("<|eot_id|>", "<|im_end|>")]
    flat = [x for one in found for x in (one if isinstance(one, Sequence) else [one])]
    return tuple(dict.fromkeys(x for x in flat if x is not None))


def _random(config: Any, device: Any, dtype: str) -> Any:
    """A model with the same random weights each time."""
    from transformers import LlamaForCausalLM

    kind = (config.dtype or torch.bfloat16) if dtype == "auto" else getattr(torch, dtype)
    with building(), device, torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM._from_config(config, dtype=kind)


def _weights(folder: Path, config: Any, dtype: str, *, llada: bool) -> Any:
    """A model with the checkpoint's weights."""
    from transformers import LlamaForCausalLM

    with building(), silent():
        model, found = LlamaForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            key_mapping=dict(NAMES) if llada else None,
            use_safetensors=True,  # a pickle could run anything
            ignore_mismatched_sizes=True,  # checked, and refused, below
            output_loading_info=True,
        )
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    check_tensors(str(folder), found, but=tied)
    return model
