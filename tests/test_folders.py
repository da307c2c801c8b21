"""Folders that would run code, hold pickles or are broken: named, never run, never a hang."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_engine import _adapter

from workbench import Sampling
from workbench.engines import chat
from workbench.engines.checkpoints.checks import check_folder, safe_format
from workbench.engines.diffusion import DiffusionEngine
from workbench.engines.transformers import TransformersEngine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.serving import serve
from workbench.store import Store
from workbench.tiny import DIFFUSION, MODEL

SHORT = Sampling(max_tokens=3)
CHAT = [{"role": "user", "content": "a"}]
WEIGHTS = "model.safetensors"
ENGINES: dict[str, Any] = {
    "transformers": TransformersEngine, "vllm": VLLMEngine, "diffusion": DiffusionEngine
}  # fmt: skip


def open_folder(kind: str, folder: Path, **options: Any) -> Any:
    return ENGINES[kind](str(folder), None, "test", options)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the embedded model's folder, of which a test makes what it wants."""

    def make(source: Path = MODEL, name: str = "m") -> Path:
        return Path(shutil.copytree(source, tmp_path / name))

    return make


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; ... takes one away."""
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))


class Evil:
    """Writes a mark when a pickle of it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.write_text, (self.mark, "ran")


CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "mine"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(folder: Path, **config: Any) -> Path:
    """Make it need custom Python code; returns what is there once that has run."""
    mark = folder.parent / f"{folder.name}-ran"
    (folder / "mine.py").write_text(CODE.format(mark=str(mark)))
    known = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    edit(folder / "config.json", auto_map=known, **config)
    tokenizer = {"AutoTokenizer": ["mine.Tokenizer", "mine.Tokenizer"]}
    edit(folder / "tokenizer_config.json", auto_map=tokenizer, tokenizer_class="Tokenizer")
    return mark


ATTEMPTS = """
import sys
from workbench.engines import open_engine
from workbench.engines.checkpoints.convert import convert_dcp
from workbench.errors import InputError

folder, masked, dcp, out = sys.argv[1:]
for make in (
    lambda: open_engine(folder, engine="transformers", store=None),
    lambda: open_engine(folder, engine="transformers", store=None, load_format="dummy"),
    lambda: open_engine(masked, engine="diffusion", store=None),
    lambda: convert_dcp(dcp, folder, out),
    lambda: open_engine(folder, engine="vllm", store=None),
):
    try:
        print("loads", make())
    except InputError as error:
        print("refused", error)
"""


def test_code_of_a_folder_is_never_run_unasked(copied: Callable[..., Path], tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    causal, masked = copied(name="causal"), copied(DIFFUSION, "masked")
    marks = [with_code(causal, model_type="mine"), with_code(masked)]
    dcp.save(load_file(MODEL / WEIGHTS), checkpoint_id=tmp_path / "dcp", no_dist=True)
    line = [sys.executable, "-c", ATTEMPTS, *map(str, (causal, masked, tmp_path / "dcp"))]
    done = subprocess.run(
        [*line, str(tmp_path / "out")],
        input="yes\n" * 20, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    said = [text for text in done.stdout.splitlines() if text.startswith(("loads", "refused"))]
    assert [text.split()[0] for text in said] == [
        "refused", "refused", "loads", "refused", "refused"
    ], done.stdout + done.stderr  # fmt: skip
    assert all("trust_remote_code=True" in said[i] for i in (0, 1, 4))
    assert "[y/N]" not in done.stdout
    assert not any(mark.exists() for mark in marks)


def test_a_server_runs_no_code_of_a_folder(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied()
    mark = with_code(folder, model_type="mine")
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "serve", "vllm", str(folder)],
        input="yes\n" * 20, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"WORKBENCH_RUN_DIR": str(tmp_path / "runs")},
    )  # fmt: skip
    assert done.returncode != 0
    assert "trust_remote_code" in done.stdout + done.stderr
    assert not mark.exists()


def test_code_runs_where_that_is_asked_for(copied: Callable[..., Path]) -> None:
    folder = copied()
    mark = with_code(folder, model_type="mine")
    with open_folder("transformers", folder, trust_remote_code=True) as engine:
        assert mark.exists()
        assert engine.generate(["1+1="], SHORT)[0].error is None
    with pytest.raises(InputError, match="trust_remote_code='yes'"):
        open_folder("transformers", folder, trust_remote_code="yes")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "pytorch_model-1-of-1.bin"]
)
def test_pickles_are_never_read(copied: Callable[..., Path], tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    for kind in ENGINES:
        folder = copied(DIFFUSION if kind == "diffusion" else MODEL, kind)
        torch.save({"a": Evil(mark)}, folder / name)
        if "-of-" in name:
            index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        if kind != "vllm":  # which has a separate test, as it loads longer
            open_folder(kind, folder).close()
        (folder / WEIGHTS).unlink()
        with pytest.raises(InputError, match=f"pickles .{name}.*safetensors") as caught:
            open_folder(kind, folder)
        assert "weights_only" not in str(caught.value)
        with pytest.raises(InputError, match="pickles"):
            serve(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("form", ["pt", "npcache"])
def test_pickles_are_not_read_on_demand(form: str) -> None:
    for attempt in (
        lambda: open_folder("vllm", MODEL, load_format=form),
        lambda: VLLMEngine("some/model", None, "test", {"load_format": form}),
        lambda: serve("some/model", load_format=form),
    ):
        with pytest.raises(InputError, match=f"load_format='{form}' reads pickles"):
            attempt()


def test_vllm_never_chooses_pickles_by_itself(copied: Callable[..., Path]) -> None:
    folder = copied()
    for asked in (None, "auto", "hf"):
        assert safe_format("some/model", asked, None) == "safetensors"
        assert safe_format(str(folder), asked, None) == "safetensors"
    for asked in ("dummy", "mistral", "sharded_state", "tensorizer", "runai_streamer", "gguf"):
        assert safe_format("some/model", asked, None) == asked
    (folder / "consolidated.safetensors").touch()
    assert safe_format(str(folder), "auto", None) == "mistral"


def cut(size: int) -> Callable[[Path], Any]:
    return lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:size])


def put(name: str, content: bytes | str) -> Callable[[Path], Any]:
    data = content.encode() if isinstance(content, str) else content
    return lambda f: (f / name).write_bytes(data)


def config(**values: Any) -> Callable[[Path], Any]:
    return lambda f: edit(f / "config.json", **values)


def without(*names: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return make


def tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return make


def half_of_the_shards(folder: Path) -> None:
    found = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    placed = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(found)}
    first = {name: found[name] for name in found if "00001" in placed[name]}
    save_file(first, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": placed}))


PART = "model.layers.3.mlp.up_proj.weight"
LAYERED = {PART: torch.zeros(7, 192, dtype=torch.bfloat16)}
# What is broken, what is said of it, and whether our own look finds it before a library does.
BROKEN: dict[str, tuple[Callable[[Path], Any], str, bool]] = {
    "cut": (cut(3_000_000), f"{WEIGHTS} .*cut off", True),
    "cut header": (cut(500), f"{WEIGHTS} .*cut off", True),
    "empty": (cut(0), f"{WEIGHTS} .0 bytes. .*cut off", True),
    "garbage": (put(WEIGHTS, bytes(range(256)) * 20), f"{WEIGHTS} .*broken", True),
    "header beyond the file": (put(WEIGHTS, (2**60).to_bytes(8, "little")), "broken", True),
    "no tensors": (put(WEIGHTS, (2).to_bytes(8, "little") + b"{}"), "no tensors", True),
    "pointer of git": (put(WEIGHTS, "version https://git-lfs.github.com/spec/v1"), "broken", True),
    "a shard": (half_of_the_shards, "model-00002-of-00002.safetensors .*missing", True),
    "an index": (put(f"{WEIGHTS}.index.json", "{}"), "no weight_map", True),
    "no weights": (without(WEIGHTS), "no weights", True),
    "a tensor is missing": (tensors(lambda t: t.pop(PART)), "lacks? model.layers.3.mlp.up", False),
    "another shape": (tensors(lambda t: t.update(LAYERED)), "shape", False),
    "no JSON": (put("config.json", "{"), "config.json:1: ", True),
    "no text": (put("config.json", b"\xff\xfe"), "config.json:1: ", True),
    "a list": (put("config.json", "[1]"), "config.json holds a list", True),
    "no type": (config(model_type=...), "no model_type", True),
    "odd type": (config(model_type=5), "no model_type", True),
    "unknown type": (config(model_type="nosuch"), "nosuch", False),
    "a text for a size": (config(hidden_size="abc"), "hidden_size.*abc", False),
    "below zero": (config(hidden_size=-4), "hidden_size=-4", True),
    "no heads": (config(num_attention_heads=0), "ZeroDivision", False),
    "layers without end": (config(num_hidden_layers=10**7), "num_hidden_layers=10000000", True),
    "larger than memory": (config(vocab_size=10**10), "vocab_size=10000000000", True),
    "endless context": (config(max_position_embeddings=10**12), "max_position_embeddings", True),
    "unknown activation": (config(hidden_act="nosuch"), "nosuch", False),
    "tokenizer, no JSON": (put("tokenizer.json", "{"), "tokenizer.json:1: ", True),
    "tokenizer, a list": (put("tokenizer.json", "[]"), "tokenizer.json holds a list", True),
    "tokenizer, nothing": (put("tokenizer.json", "{}"), "added_tokens", False),
    "its settings": (put("tokenizer_config.json", "{"), "tokenizer_config.json:1: ", True),
    "no tokenizer": (without("tokenizer.json"), "tokenizer.json", True),
    "settings of decoding": (put("generation_config.json", "{"), "generation_config.json", True),
}  # fmt: skip


# vLLM takes seconds to find out what we do not look for ourselves: one of those will do.
QUICK = ("a tensor is missing", "another shape", "tokenizer, nothing")
PLACES = [(n, k) for n in BROKEN for k in ENGINES if k != "vllm" or BROKEN[n][2] or n in QUICK]


@pytest.mark.parametrize(("name", "kind"), PLACES)
def test_what_is_broken_is_named(copied: Callable[..., Path], name: str, kind: str) -> None:
    make, match, _ = BROKEN[name]
    folder = copied(DIFFUSION if kind == "diffusion" else MODEL)
    make(folder)
    with pytest.raises(InputError, match=match) as caught:
        open_folder(kind, folder)
    assert len(str(caught.value).splitlines()) == 1
    if name != "unknown type":
        assert folder.name in str(caught.value)


def test_random_weights_need_no_file(copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / WEIGHTS).unlink()
    check_folder(folder, load_format="dummy")
    open_folder("transformers", folder, load_format="dummy").close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(chat, "TEMPLATE_SECONDS", 0.5)
    yield
    for thread in threading.enumerate():
        if thread.name == "chat template":
            thread.join(5)
            assert not thread.is_alive()


ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{{ messages[0]['content'] }}"
)


@pytest.mark.parametrize("kind", ["transformers", "diffusion"])
@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{% for %}", "the chat template refuses this chat: Expected"),
        ("{{ raise_exception('no\nway') }}", "the chat template refuses this chat: no way"),
        (ENDLESS, "the chat template .* did not end"),
        (5, "the chat template refuses this chat"),
    ],
)
def test_a_broken_chat_template_concerns_chats_only(
    copied: Callable[..., Path], impatient: None, kind: str, template: Any, match: str
) -> None:
    folder = copied(DIFFUSION if kind == "diffusion" else MODEL)
    edit(folder / "tokenizer_config.json", chat_template=template)
    with open_folder(kind, folder) as engine:
        assert engine.generate(["1+1="], SHORT)[0].error is None
        rows = engine.generate([CHAT] * 4, SHORT, errors="return")
        chats = [[{"role": "user", "content": text}] for text in "abcd"]
        rows = engine.generate(chats, SHORT, errors="return")
        assert all("chat template" in row.error for row in rows)
        engine._endless = 0
        (row,) = engine.generate([CHAT], SHORT, errors="return")
        with pytest.raises(InputError, match=match):
            raise InputError(row.error)
        assert len(row.error.splitlines()) == 1
        assert engine.generate(["2+2="], SHORT)[0].error is None


def test_one_chat_without_end_costs_only_itself(
    copied: Callable[..., Path], impatient: None
) -> None:
    folder = copied()
    template = "{% if messages[0]['content'] == 'b' %}" + ENDLESS + "{% endif %}x"
    edit(folder / "tokenizer_config.json", chat_template=template)
    with open_folder("transformers", folder) as engine:
        chats = [[{"role": "user", "content": text}] for text in "abc"]
        rows = engine.generate(chats, SHORT, errors="return")
    assert [row.error is None for row in rows] == [True, False, True]


def test_vllm_with_an_endless_template_and_old_pickles(
    copied: Callable[..., Path], tmp_path: Path, impatient: None
) -> None:
    folder, mark = copied(), tmp_path / "ran"
    edit(folder / "tokenizer_config.json", chat_template=ENDLESS)
    torch.save({"a": Evil(mark)}, folder / "pytorch_model.bin")
    with open_folder("vllm", folder) as engine:
        assert engine.generate(["1+1="], SHORT)[0].error is None
        (row,) = engine.generate([CHAT], SHORT, errors="return")
        assert "the chat template refuses this chat: it did not end" in row.error
        assert engine.llm.chat_template is None
    assert not mark.exists()


def test_an_adapter_is_known_by_its_contents(tmp_path: Path) -> None:
    def opened(folder: Path) -> VLLMEngine:
        store = Store(tmp_path / "s.sqlite")
        return VLLMEngine(None, store, "test", {"adapter": str(folder)})

    first = _adapter(tmp_path / "a", 0)
    with opened(first) as engine:
        variant, (row,) = engine.variant, engine.generate(["1+1="], SHORT)
        elsewhere = Path(shutil.copytree(first, tmp_path / "b"))
        with opened(elsewhere) as other:
            assert other.variant == variant
            (again,) = other.generate(["1+1="], SHORT)
            assert (again.from_store, again.text) == (True, row.text)
        shutil.rmtree(first)
        with opened(_adapter(first, 1)) as changed:
            assert changed.variant != variant
            assert not changed.generate(["1+1="], SHORT)[0].from_store


def test_adapters_that_are_no_good(tmp_path: Path) -> None:
    folder, mark = _adapter(tmp_path / "a", 0), tmp_path / "ran"
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match):
            VLLMEngine(None, None, "test", {"adapter": str(folder)})
        with pytest.raises(InputError, match=match):
            serve(enable_lora=True, lora_modules=[f"mine={folder}"])

    refused("cut off")
    weights.unlink()
    refused("no adapter_model.safetensors")
    torch.save({"a": Evil(mark)}, folder / "adapter_model.bin")
    refused("pickles.*safe_serialization")
    (folder / "adapter_config.json").write_text("[")
    refused("adapter_config.json:1: ")
    assert not mark.exists()


def test_a_tensor_that_layers_share_is_stored_once(tmp_path: Path) -> None:
    from transformers import Zamba2Config, Zamba2ForCausalLM

    from workbench.engines.checkpoints.checks import check_whole

    config = Zamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid"] * 2,
        mamba_d_state=8, mamba_headdim=8, n_mamba_heads=8, num_attention_heads=4, num_mem_blocks=1,
        adapter_rank=4, intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    Zamba2ForCausalLM(config).save_pretrained(tmp_path)
    check_whole(tmp_path)
