"""GGUF files made into model folders: the same model, the same tokens, and everything wrong."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from workbench import Sampling, open_engine
from workbench.cli import app
from workbench.engines.agreement import compare
from workbench.engines.checkpoints.gguf import convert_gguf, converted
from workbench.engines.vllm import unavailable
from workbench.errors import InputError, WorkbenchError
from workbench.tiny import MODEL

Fields = dict[str, Any]
Lacks = Callable[[str, str], None]
TEXTS = [
    "2+3=",
    "Once upon a time",
    "  two  spaces\n\n",
    "naïve 🤗 12345",
    "<|user|>Hi<|assistant|>",
]
PROMPTS = ["2+3=", "12+30=", "Once upon a time", "<|user|>What is 7+5?<|assistant|>"]


@pytest.fixture
def alone(lacks: Lacks) -> None:
    """Only transformers is here: vLLM takes seconds to load."""
    lacks("vllm", "it is not installed")


def embedded() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def bpe(rows: int = 640) -> Fields:
    """The embedded model's tokenizer, as llama.cpp's converter writes one."""
    source = json.loads((MODEL / "tokenizer.json").read_text())
    tokens = {number: (token, 1) for token, number in source["model"]["vocab"].items()}
    tokens |= {token["id"]: (token["content"], 3) for token in source["added_tokens"]}
    whole = [tokens.get(number, (f"[PAD{number}]", 5)) for number in range(rows)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [token for token, _ in whole],
        "tokenizer.ggml.token_type": [kind for _, kind in whole],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in source["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
    }


def settings(config: Any, name: str) -> Fields:
    """A configuration in the file's terms."""
    near = config.rope_parameters.get("sliding_attention", {})
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if "rope_theta" in near and near["rope_theta"] != 10_000:
        found["rope.freq_base_swa"] = near["rope_theta"]
    if name.startswith("gemma"):
        found["attention.sliding_window"] = config.sliding_window
    return {f"{name}.{key}": value for key, value in found.items()}


def stored(model: Any, name: str) -> dict[str, Any]:
    """A model's tensors under llama.cpp's names, and as its converter turns them."""
    config = model.config
    kinds = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[name], config.num_hidden_layers)
    found: dict[str, Any] = {}
    for key, tensor in model.state_dict().items():
        stem, _, end = key.rpartition(".")
        value = tensor.float().numpy()
        if name.startswith("gemma") and key.endswith("norm.weight"):
            value = value + 1
        if name == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads
            heads = heads if stem.endswith("q_proj") else config.num_key_value_heads
            halves = value.reshape(heads, 2, len(value) // heads // 2, -1)
            value = halves.swapaxes(1, 2).reshape(value.shape)
        if not (key == "lm_head.weight" and config.tie_word_embeddings):
            found[f"{table.get_name(stem)}.{end}"] = np.ascontiguousarray(value)
    return found


def write(path: Path, fields: Fields, tensors: dict[str, Any], kind: str = "F32") -> Path:
    """A GGUF file; a field that is None is left out."""
    named = fields.get("general.architecture", "llama")
    writer = GGUFWriter(path, named if isinstance(named, str) else "")
    for key, value in fields.items():
        if value is None or (key == "general.architecture" and isinstance(value, str)):
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, value in tensors.items():
        wanted = GGMLQuantizationType[kind if value.ndim > 1 else "F32"]
        data = gguf.quants.quantize(value, wanted)
        writer.add_tensor(name, data, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny(
    path: Path, kind: str = "F32", *, without: Sequence[str] = (), more: Any = None, **fields: Any
) -> Path:
    """The embedded model as a GGUF file; `fields` are its tokenizer's that differ."""
    model = embedded()
    tensors = {n: v for n, v in stored(model, "llama").items() if n not in without}
    changed = {
        f"tokenizer.{'' if k == 'chat_template' else 'ggml.'}{k}": v for k, v in fields.items()
    }
    return write(
        path, settings(model.config, "llama") | bpe() | changed, tensors | (more or {}), kind
    )


def logits(model: Any, tokenizer: Any) -> Any:
    with torch.no_grad():
        return [model(tokenizer(text, return_tensors="pt").input_ids).logits[0] for text in TEXTS]


# --- the same model


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_the_embedded_model_is_the_same(tmp_path: Path, alone: None, kind: str) -> None:
    made = convert_gguf(tiny(tmp_path / "tiny.gguf", kind), tmp_path / "out")
    assert made.checked == "transformers only: it is not installed"
    found, original = (load_file(f / "model.safetensors") for f in (made.folder, MODEL))
    assert found.keys() == original.keys()
    assert made.tensors == len(original)
    assert made.size == sum(value.nbytes for value in found.values())
    for name, value in original.items():
        assert found[name].dtype == torch.bfloat16
        worst = (found[name].float() - value.float()).abs().max() / value.float().abs().max()
        assert worst < {"F32": 1e-12, "BF16": 1e-12, "F16": 1e-6, "Q8_0": 0.01}[kind], name
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (MODEL, made.folder))
    assert old(TEXTS).input_ids == new(TEXTS).input_ids
    assert [*map(old.decode, old(TEXTS).input_ids)] == [*map(new.decode, new(TEXTS).input_ids)]
    again = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32)
    near = {"atol": 1.0} if kind == "Q8_0" else {"atol": 1e-4, "rtol": 1e-4}
    for one, other in zip(logits(embedded(), old), logits(again, new), strict=True):
        torch.testing.assert_close(one, other, **{"rtol": 0.0, **near})
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.skipif(unavailable() is not None, reason="needs vLLM")
def test_vllm_answers_with_a_file_as_transformers_with_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "workbench")
    path = tiny(tmp_path / "tiny.gguf")
    texts = []
    for model, name in ((str(MODEL), "transformers"), (str(path), "vllm")):
        with open_engine(model, name, store=None) as engine:
            texts.append([one.text for one in engine.generate(PROMPTS, Sampling(max_tokens=24))])
            info = engine.info
    assert texts[0] == texts[1]
    assert (info.engine, info.model) == ("vllm", str(path))
    assert "the same first tokens in: vLLM and transformers" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(unavailable() is not None, reason="needs vLLM")
def test_what_vllm_refuses_is_kept_and_said(tmp_path: Path) -> None:
    config = AutoConfig.for_model("qwen3", **SHAPE | {"head_dim": 24})  # of no kernel
    model = AutoModelForCausalLM.from_config(config)
    fields = {"general.architecture": "qwen3"} | settings(config, "qwen3") | bpe()
    path = write(tmp_path / "x.gguf", fields, stored(model, "qwen3"))
    made = convert_gguf(path, tmp_path / "out")
    assert made.checked.startswith("transformers only: vLLM: ")
    assert (made.folder / "model.safetensors").is_file()


def test_a_disagreement_names_both_tokens() -> None:
    sure, near, other = {5: -0.1, 7: -3.0}, {5: -0.70, 7: -0.69}, {5: -4.0, 7: -0.1}
    compare([sure, near, {5: -0.69, 7: -0.70}], [sure, other, near])
    with pytest.raises(WorkbenchError, match=r"Question.*with token 7, transformers with 5"):
        compare([sure, sure, sure], [sure, other, sure])


SHAPE: Fields = {
    "vocab_size": 640, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": None,
}  # fmt: skip
LONG = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
FAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
NEAR_AND_FAR = {
    "full_attention": FAR,
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
}


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("llama", "llama", {"tie_word_embeddings": False}),
        ("llama", "llama", {"tie_word_embeddings": True, "rope_parameters": LONG}),
        ("qwen2", "qwen2", {"tie_word_embeddings": True, "hidden_size": 128}),
        ("qwen3", "qwen3", {"tie_word_embeddings": False}),
        ("gemma2", "gemma2", {"query_pre_attn_scalar": 32, "sliding_window": 8}),
        ("gemma3", "gemma3_text", {"query_pre_attn_scalar": 32, "sliding_window": 8}),
        ("gemma3", "gemma3_text", {"query_pre_attn_scalar": 32, "rope_parameters": NEAR_AND_FAR}),
        ("llama", "llama", {"rope_parameters": FAR}),
    ],
)
def test_every_architecture_gives_the_same_numbers(
    tmp_path: Path, alone: None, name: str, kind: str, more: Fields
) -> None:
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **SHAPE | more)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            more_or_less = torch.randn_like(value) * (value.ndim == 1) * 0.1  # else all 1 and 0
            value.copy_((value + more_or_less).bfloat16())
    tensors = stored(model, name)
    long = more.get("rope_parameters") == LONG
    if long:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        turned, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = 5e5 ** -(torch.arange(0, 32, 2) / 32)
        tensors["rope_freqs.weight"] = (plain / turned).float().numpy()
    fields = {"general.architecture": name} | settings(config, name) | bpe()
    if name == "qwen2":  # transformers knows no other way of splitting for it
        fields["tokenizer.ggml.pre"] = "qwen2"
    made = convert_gguf(write(tmp_path / "x.gguf", fields, tensors), tmp_path / "out")
    assert made.left_out == (("rope_freqs.weight",) if long else ())
    again = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32)
    ids = torch.arange(60).reshape(2, 30) * 7 % 640
    with torch.no_grad():
        one, other = (net(ids).logits for net in (model, again))
    assert one.std() > 0.05
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


# --- the same tokens


@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("eos", [True, False, None])
def test_tokens_around_a_text_are_those_the_file_asks_for(
    tmp_path: Path, alone: None, bos: bool | None, eos: bool | None
) -> None:
    fields: Fields = {"add_bos_token": bos, "add_eos_token": eos, "bos_token_id": 1}
    made = convert_gguf(tiny(tmp_path / "x.gguf", **fields), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    plain = AutoTokenizer.from_pretrained(MODEL)("2+3=").input_ids
    before, after = [1] * bool(bos), [0] * bool(eos)
    assert tokenizer("2+3=").input_ids == [*before, *plain, *after]
    assert tokenizer("2+3=", add_special_tokens=False).input_ids == plain
    assert tokenizer("2+3=", "2+3=").input_ids == [*before, *plain, *after] * 2
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|user|>", "<|end|>")


@pytest.mark.parametrize("bos", [True, False])
def test_a_class_that_transformers_insists_on_is_not_trusted(
    tmp_path: Path, alone: None, bos: bool
) -> None:
    config = AutoConfig.for_model("qwen2", **SHAPE | {"hidden_size": 128})
    tensors = stored(AutoModelForCausalLM.from_config(config), "qwen2")
    fields: Fields = {"general.architecture": "qwen2"} | settings(config, "qwen2") | bpe()
    fields["tokenizer.ggml.add_bos_token"] = bos
    fields["tokenizer.ggml.bos_token_id"] = 2
    path = write(tmp_path / "x.gguf", fields, tensors)
    with pytest.raises(InputError, match="transformers loads as a Qwen2Tokenizer, which splits"):
        convert_gguf(path, tmp_path / "out")
    fields["tokenizer.ggml.pre"] = "qwen2"
    path = write(tmp_path / "y.gguf", fields, tensors)
    made = convert_gguf(path, tmp_path / "out")
    ids = AutoTokenizer.from_pretrained(made.folder)("2+3=").input_ids
    assert ids.count(2) == int(bos)
    assert (ids[0] == 2) == bos


def test_chat_template_and_further_end_tokens_are_kept(tmp_path: Path, alone: None) -> None:
    template = json.loads((MODEL / "tokenizer_config.json").read_text())["chat_template"]
    path = tiny(tmp_path / "x.gguf", chat_template=template, eot_token_id=1, eom_token_id=2)
    made = convert_gguf(path, tmp_path / "out")
    chat = [{"role": "user", "content": "2+3="}]
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>2+3=<|assistant|>"
    ends = json.loads((made.folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [0, 1, 2]


WORDS = "a b c d e l o r w h ▁ ab abc he hel ll llo hello ▁w or ▁wor ▁world ld ▁▁ ▁a aa aaa".split()
PIECES = [
    ("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{b:02X}>", 6) for b in range(256)),
    ("  ", 4), ("\n", 4), *((word, 1) for word in WORDS),
]  # fmt: skip


def pieces(text: str, prefix: bool) -> list[int]:
    """SentencePiece by its definition: merge the best-scored neighbours until none are left."""
    ids = {token: number for number, (token, _) in enumerate(PIECES)}
    found: list[int] = []
    rest = text
    for whole in ("  ", "\n", "<s>"):  # by length, as far as these tests go
        rest = rest.replace(whole, f"\0{ids[whole]}\0")
    for at, part in enumerate(rest.split("\0")):
        if at % 2:
            found.append(int(part))
            continue
        symbols = list(("▁" * prefix + part).replace(" ", "▁") if part else "")
        while True:
            pairs = [(ids.get(a + b, math.inf), i) for i, (a, b) in enumerate(pairwise(symbols))]
            best, i = min(pairs, default=(math.inf, 0))
            if best == math.inf:
                break
            symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
        for symbol in symbols:
            found += [ids[symbol]] if symbol in ids else [b + 3 for b in symbol.encode()]
    return found


@pytest.mark.parametrize("prefix", [True, False, None])
@pytest.mark.parametrize("bos", [True, False, None])
def test_sentencepiece_merges_by_score(
    tmp_path: Path, alone: None, bos: bool | None, prefix: bool | None
) -> None:
    fields: Fields = {
        "model": "llama", "pre": "default", "merges": None, "eos_token_id": None,
        "padding_token_id": None, "tokens": [token for token, _ in PIECES],
        "token_type": [kind for _, kind in PIECES],
        "scores": [-float(number) for number in range(len(PIECES))],
        "add_bos_token": bos, "add_space_prefix": prefix,
    }  # fmt: skip
    made = convert_gguf(tiny(tmp_path / "x.gguf", **fields), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    draw = random.Random(5)
    texts = ["hello world", " hello", "aaaaaaa", "a  b\n\nc", "é日🤗", "x<s>hello", "", "a\n"]
    texts += ["".join(draw.choices("aabcdelorwh  \né", k=draw.randint(1, 30))) for _ in range(60)]
    first = [] if bos is False else [1]  # llama.cpp's rule where the file is silent
    with_space = prefix is not False
    for text in texts:
        assert tokenizer(text).input_ids == [*first, *pieces(text, with_space)], text
    for text in ("hello world", " two", "é日🤗 a", *(["é a  b\n"] * (not with_space))):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )


def test_another_tokenizer_takes_the_place_of_one_not_known(tmp_path: Path, alone: None) -> None:
    path = tiny(tmp_path / "x.gguf", pre="of-our-own")
    with pytest.raises(InputError, match=r"x\.gguf splits texts with 'of-our-own'.*--tokenizer"):
        convert_gguf(path, tmp_path / "out")
    made = convert_gguf(path, tmp_path / "out", tokenizer=str(MODEL))
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (MODEL, made.folder))
    assert old(TEXTS).input_ids == new(TEXTS).input_ids
    with pytest.raises(InputError, match=r"tokenizer '\./nowhere' cannot be loaded"):
        convert_gguf(path, tmp_path / "more", tokenizer="./nowhere")


# --- opening a file


def test_a_file_is_opened_like_a_folder_and_converted_once(
    tmp_path: Path, alone: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "workbench")
    path = tiny(tmp_path / "tiny.gguf")
    texts, lines = [], []
    for model in (str(MODEL), str(path), str(path)):
        caplog.clear()
        with open_engine(model, "transformers", store=None) as engine:
            texts.append([one.text for one in engine.generate(PROMPTS, Sampling(max_tokens=24))])
            info = engine.info
        lines.append([line for line in caplog.messages if line.startswith("converting")])
    assert texts[0] == texts[1] == texts[2]
    (folder,) = (f for f in (tmp_path / "cache" / "gguf").iterdir() if f.name[0] != ".")
    assert [len(found) for found in lines] == [0, 1, 0]
    assert str(folder) in lines[1][0]
    assert info.model == str(path)
    assert len(info.revision) == 12
    copy = tmp_path / "tiny-copy.gguf"
    copy.write_bytes(path.read_bytes())
    assert converted(copy) != folder
    path.write_bytes(copy.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"tiny\.gguf is cut off"):
        open_engine(str(path), "transformers", store=None)


OPEN = """
import sys
sys.modules["vllm"] = None  # not here: it takes seconds to load
from workbench import open_engine
print(open_engine(sys.argv[1], "transformers", store=None).info.revision)
"""


@pytest.mark.slow
def test_two_processes_at_once_share_one_folder(tmp_path: Path) -> None:
    path = tiny(tmp_path / "tiny.gguf")
    line = [sys.executable, "-c", OPEN, str(path)]
    environment = os.environ | {"WORKBENCH_CACHE": str(tmp_path / "cache")}
    both = [
        subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    revisions = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert revisions[0] == revisions[1]
    found = sorted(f.name for f in (tmp_path / "cache" / "gguf").iterdir())
    assert len(found) == 2
    assert found[0] == ".known"
    assert found[1].startswith("tiny-")


def test_threads_convert_a_file_once(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "workbench")
    path = tiny(tmp_path / "tiny.gguf")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(converted, [path, path]))
    assert found[0] == found[1]
    assert sum(line.startswith("converting") for line in caplog.messages) == 1


@pytest.mark.parametrize("name", ["gone.gguf", "./gone.GGUF"])
def test_a_missing_file_is_said(name: str) -> None:
    with pytest.raises(InputError, match=r"gone\.(gguf|GGUF) cannot be read: No such file"):
        open_engine(name, "transformers", store=None)


# --- bad input


def header(
    tensors: int = 0, keys: int = 0, rest: bytes = b"", version: int = 3, magic: bytes = b"GGUF"
) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(size: int, kind: int, start: int = 0, data: bytes = b"") -> bytes:
    return header(1, 0, text(b"t") + struct.pack("<IQIQ", 1, size, kind, start) + data)


HUGE = 2**60
BROKEN = {
    "empty": (b"", "is not a GGUF file"),
    "other": (b"PK\x03\x04" + bytes(500), "is not a GGUF file"),
    "short": (b"GGUF\x03\0", "has a broken header"),
    "old": (header(version=1), "is GGUF version 1"),
    "big-endian": (header(version=3 << 24), "version 50,331,648"),
    "many settings": (header(keys=HUGE), "claims 1,152,921,504,606,846,976 settings"),
    "many tensors": (header(tensors=HUGE), "and 1,152,921,504,606,846,976 tensors"),
    "long name": (header(keys=1, rest=struct.pack("<Q", HUGE)), "a text of 1,152,"),
    "long list": (
        header(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, HUGE)), "a list of 1,152,",
    ),
    "missing list": (
        header(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 10**6)), "has a broken header",
    ),
    "kind": (header(keys=1, rest=text(b"k") + struct.pack("<I", 77)), "a setting of type 77"),
    "letters": (header(keys=1, rest=text(b"\xff\xfe") + bytes(9)), "has a broken header"),
    "dimensions": (header(1, 0, text(b"t") + struct.pack("<I", 2**30)), "dimensions"),
    "type": (tensor(4, 4242), "4242"),
    "size": (tensor(HUGE, 0), "is cut off"),
    "place": (tensor(4, 0, HUGE), "is cut off"),
    "block": (tensor(33, 8), r"the shape \[33\], which Q8_0 cannot have"),
    "integers": (tensor(4, 26, 0, bytes(99)), "stores t as I32, which gguf cannot convert"),
    "nothing": (header(), "has the architecture None"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_at_once(tmp_path: Path, name: str) -> None:
    content, said = BROKEN[name]
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(InputError, match=said) as caught:
        convert_gguf(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10
    assert [*tmp_path.iterdir()] == [path]


def test_wherever_a_file_is_cut_it_is_refused(tmp_path: Path, alone: None) -> None:
    whole = tiny(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    ends = [*range(30), *range(30, 12_000, 331), 20_000, len(whole) // 2, len(whole) - 33]
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"cut\.gguf (is no|has a broken|is cut off)"):
            convert_gguf(path, tmp_path / "out")
    draw = random.Random(2)
    for _ in range(60):  # one wrong byte in the header: refused by name, or harmless
        at = draw.randrange(4, 3000)
        path.write_bytes(whole[:at] + bytes([draw.randrange(256)]) + whole[at + 1 :])
        try:
            convert_gguf(path, tmp_path / "out", tokenizer="./nowhere")
        except InputError as error:
            assert "cut.gguf" in str(error) or "nowhere" in str(error)  # noqa: PT017
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"without": ["blk.3.ffn_up.weight"]}, r"lacks blk\.3\.ffn_up\.weight"),
        ({"without": ["token_embd.weight"]}, r"lacks token_embd\.weight"),
        ({"more": {"blk.0.attn_q.bias": np.ones(192, np.float32)}}, r"have: blk\.0\.attn_q\.bias"),
        (
            {"more": {"blk.6.attn_norm.weight": np.ones(192, np.float32)}},
            "says 6 layers, but has 7",
        ),
        (
            {"more": {"output_norm.weight": np.ones(99, np.float32)}},
            r"output_norm\.weight with the shape \[99\]; its settings say \[192\]",
        ),
        (
            {"more": {"rope_freqs.weight": np.ones(7, np.float32)}},
            "rope_freqs.weight that is not supported",
        ),
        ({"general.architecture": "mamba"}, "has the architecture 'mamba'.*base_url"),
        ({"llama.expert_count": 8}, r"has the setting llama\.expert_count=8, not supported"),
        (
            {"llama.attention.head_count": 0},
            r"llama\.attention\.head_count=0, which must be a number",
        ),
        ({"llama.attention.head_count": "3"}, "which must be a number"),
        ({"llama.block_count": 10**9}, "says 1000000000 layers, but has 6"),
        ({"llama.embedding_length": 3 * 2**28}, "with the shape"),
        ({"llama.rope.dimension_count": 16}, "heads of size 64 and rope.dimension_count=16"),
        ({"llama.rope.scaling.type": "yarn"}, "scales positions with 'yarn'"),
        ({"split.count": 3}, "is one part of several: join them with llama-gguf-split --merge"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer of kind 'bert'.*--tokenizer"),
        ({"tokenizer.ggml.tokens": None}, r"has no tokenizer\.ggml\.tokens"),
        ({"tokenizer.ggml.merges": ["no such", "pair"]}, "has a broken tokenizer"),
        ({"tokenizer.ggml.eos_token_id": 640}, "eos_token_id=640 of 640 tokens"),
        ({"tokenizer.ggml.add_bos_token": True}, "requires a bos token but has none"),
        ({"tokenizer.ggml.tokens": ["x"] * 640}, "has the token 'x' twice"),
    ],
)
def test_other_models_are_refused_by_name(
    tmp_path: Path, alone: None, change: Fields, said: str
) -> None:
    model = embedded()
    tensors = stored(model, "llama") | change.get("more", {})
    for name in change.get("without", ()):
        del tensors[name]
    fields = settings(model.config, "llama") | bpe()
    fields |= {key: value for key, value in change.items() if "." in key}
    path = write(tmp_path / "x.gguf", fields, tensors)
    with pytest.raises(InputError, match=said) as caught:
        convert_gguf(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert [*tmp_path.iterdir()] == [path]


def test_more_tokens_than_weights_are_refused(tmp_path: Path, alone: None) -> None:
    model = embedded()
    fields = settings(model.config, "llama") | bpe(641)
    path = write(tmp_path / "x.gguf", fields, stored(model, "llama"))
    with pytest.raises(InputError, match="weights for 640 tokens, but the tokenizer has 641"):
        convert_gguf(path, tmp_path / "out")


def test_wrong_places_are_said(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny(tmp_path / "x-00001-of-00003.gguf")
    with pytest.raises(InputError, match="is one part of several: join them"):
        convert_gguf(path, tmp_path / "out")
    with pytest.raises(InputError, match=r"is a folder: use a \.gguf file"):
        convert_gguf(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        convert_gguf(path, path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r'pip install "workbench-lm\[gguf\]"'):
        convert_gguf(tmp_path / "y.gguf", tmp_path / "out")


# --- the command


def test_the_command_says_what_it_made(tmp_path: Path, alone: None) -> None:
    path, out = tiny(tmp_path / "tiny.gguf"), tmp_path / "out"
    line = ["convert", "gguf", str(path), "--out", str(out)]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert f"{out}: 56 tensors, 5.6 MB\n" in done.output
    assert "the same first tokens in: transformers only: it is not installed" in done.output
    again = CliRunner().invoke(app, line)
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr.startswith(f"error: {out} exists already")
    path.write_bytes(path.read_bytes()[:1000])
    cut = CliRunner().invoke(app, [*line[:-1], str(tmp_path / "new")])
    assert cut.exit_code == 2
    assert cut.stderr.count("\n") == 1
    assert "Traceback" not in cut.output
