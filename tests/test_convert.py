"""DCP checkpoints made into model folders: every layout of torch's, and everything wrong."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
)
from typer.testing import CliRunner

from benchmarks import llada
from tools.training.memoriser import MEMORISER, pairs
from workbench import Sampling
from workbench.cli import app
from workbench.engines.checkpoints import convert
from workbench.engines.checkpoints.convert import convert_dcp
from workbench.engines.checkpoints.dcp import Chunk, SavedTensor
from workbench.engines.diffusion import DiffusionEngine
from workbench.errors import InputError, WorkbenchError

Tensors = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    found: Tensors = load_file(MEMORISER / "model.safetensors")
    return found


def save(state: Tensors, folder: Path) -> Path:
    """As training saves it, without a process group."""
    dcp.save(state, storage_writer=FileSystemWriter(folder), no_dist=True)
    return folder


def optimizer(tensors: Tensors) -> Tensors:
    """An optimizer's state as torch names it, beside numbers that are no tensors."""
    state = {name: {"exp_avg": torch.zeros_like(value)} for name, value in tensors.items()}
    return {"state": state, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}


def same(folder: Path, tensors: Tensors) -> None:
    found = load_file(folder / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("layout", ["flat", "beside", "nested", "deep", "compiled", "tied twice"])
def test_every_layout_gives_the_same_tensors(tmp_path: Path, tensors: Tensors, layout: str) -> None:
    state: Tensors = {
        "flat": tensors,
        "beside": tensors | {"optim": optimizer(tensors)},
        "nested": {"model": tensors, "optim": optimizer(tensors), "step": 7},
        "deep": {"app": {"model": tensors, "ema": {"decay": torch.ones(1)}}},
        "compiled": {f"_orig_mod.{name}": value for name, value in tensors.items()},
        "tied twice": tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]},
    }[layout]
    made = convert_dcp(save(state, tmp_path / "dcp"), str(MEMORISER), tmp_path / "out")
    same(made.folder, tensors)
    assert made.tensors == len(tensors)
    assert made.size == sum(value.nbytes for value in tensors.values())
    left = {"beside": len(tensors), "nested": len(tensors), "deep": 1}
    assert len(made.left_out) == left.get(layout, 0)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# At an interpreter's end the threads of PyTorch's group sometimes abort it: so it ends by itself.
RANK = """
import os, sys
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
meeting, rank, source, out = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
mesh = init_device_mesh("cpu", (2,))
def placed(name, value):
    part = Replicate() if value.ndim < 2 else Shard("down" in name)
    return distribute_tensor(value, mesh, [part])
state = {name: placed(name, value) for name, value in load_file(source).items()}
dcp.save({"model": state}, checkpoint_id=out)
dist.destroy_process_group()
os._exit(0)
"""


def test_shards_of_two_processes_are_put_together(tmp_path: Path, tensors: Tensors) -> None:
    source, out = MEMORISER / "model.safetensors", tmp_path / "dcp"
    lines = [
        [sys.executable, "-c", RANK, str(tmp_path / "meet"), str(rank), str(source), str(out)]
        for rank in range(2)
    ]
    ranks = [subprocess.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"}) for line in lines]
    assert [process.wait(120) for process in ranks] == [0, 0]
    assert len(list(out.glob("*.distcp"))) == 2
    same(convert_dcp(out, str(MEMORISER), tmp_path / "out").folder, tensors)


def test_the_converted_model_answers_as_the_original(tmp_path: Path, tensors: Tensors) -> None:
    made = convert_dcp(save({"model": tensors}, tmp_path / "dcp"), str(MEMORISER), tmp_path / "out")
    prompts = [prompt for prompt, _ in pairs()]
    answers = []
    for model in (str(MEMORISER), str(made.folder)):
        with DiffusionEngine(model, None, "test", {"threshold": 0.9}) as engine:
            found = engine.generate(prompts, Sampling(max_tokens=96))
            scores = engine.label_logprobs(prompts[:4], [" True", " 7"])
        answers.append(([one.text for one in found], scores.logprobs.tolist()))
    assert answers[0] == answers[1]


def test_a_llada_becomes_the_llama_that_it_is(tmp_path: Path) -> None:
    tensors = llada.weights(spread=0.1)
    base = llada.write(tmp_path / "base", tensors)
    made = convert_dcp(save({"model": tensors}, tmp_path / "dcp"), str(base), tmp_path / "out")
    config = json.loads((made.folder / "config.json").read_text())
    assert (config["model_type"], config["is_causal"]) == ("llama", False)
    assert config["mask_token_id"] == llada.MASK
    texts = []
    for model in (base, made.folder):
        with DiffusionEngine(str(model), None, "test", {"device": "cpu"}) as engine:
            texts.append([one.text for one in engine.generate(["Hello", "17+25="])])
    assert texts[0] == texts[1]


def test_large_models_are_written_in_several_files(
    tmp_path: Path, tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "SHARD", 500_000)
    out = convert_dcp(save(tensors, tmp_path / "dcp"), str(MEMORISER), tmp_path / "out").folder
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert {name: v for file in files for name, v in load_file(out / file).items()}.keys() == (
        tensors.keys()
    )
    with DiffusionEngine(str(out), None, "test", {}) as engine:
        prompt, answer = pairs()[0]
        assert engine.generate([prompt], Sampling(max_tokens=96))[0].text == answer


def test_the_larger_of_several_models_is_not_guessed(tmp_path: Path, tensors: Tensors) -> None:
    other = {name: value + 1 for name, value in tensors.items()}
    path = save({"model": tensors, "ema": other}, tmp_path / "dcp")
    with pytest.raises(InputError, match=r"2 models of that shape.*'ema\.', 'model\.'"):
        convert_dcp(path, str(MEMORISER), tmp_path / "out")
    same(convert_dcp(path, str(MEMORISER), tmp_path / "out", prefix="ema.").folder, other)
    same(convert_dcp(path, str(MEMORISER), tmp_path / "dot", prefix="model").folder, tensors)
    with pytest.raises(InputError, match="lacks"):
        convert_dcp(path, str(MEMORISER), tmp_path / "more", prefix="average.")


# --- bad input


def refused(path: Path, out: Path, said: str, base: Path = MEMORISER) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(InputError, match=said):
        convert_dcp(path, str(base), out)
    assert sorted(out.parent.iterdir()) == before  # nothing half made is left


def test_what_is_missing_or_cut_off_is_named(tmp_path: Path, tensors: Tensors) -> None:
    writer = FileSystemWriter(tmp_path / "dcp", single_file_per_rank=False)
    dcp.save(tensors, storage_writer=writer, no_dist=True)
    shards = sorted((tmp_path / "dcp").glob("*.distcp"))
    whole = shards[3].read_bytes()
    shards[3].write_bytes(whole[:-1])
    refused(tmp_path / "dcp", tmp_path / "out", rf"{shards[3].name} is cut off: \S+ of \S+ bytes")
    shards[3].write_bytes(bytes(len(whole)))
    refused(tmp_path / "dcp", tmp_path / "out", "a shard of .* could not be read")
    shards[3].unlink()
    refused(tmp_path / "dcp", tmp_path / "out", f"the shard {shards[3].name} is missing")


def test_tensors_of_another_model_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    norm = "model.norm.weight"
    fewer = {name: value for name, value in tensors.items() if name != norm}
    wider = tensors | {norm: torch.ones(129)}
    deeper = tensors | {"model.layers.4.input_layernorm.weight": torch.ones(128)}
    untied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    for name, state, said in (
        ("fewer", fewer, f"lacks {norm}: it is not a checkpoint of"),
        ("wider", wider, rf"{norm} has the shape \[129\], that of the base model \[128\]"),
        ("deeper", deeper, r"beyond the base model, model.layers.4.input_layernorm.weight"),
        ("untied", untied, r"lm_head.weight differs from model.embed_tokens.weight"),
        ("none", {"step": 3}, "lacks .* and 35 more"),
    ):
        refused(save(state, tmp_path / name), tmp_path / "out", said)


class Planted:
    """Would leave a file behind if it were ever loaded."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return (Path.touch, (self.sign,))


def test_no_planted_pickle_is_loaded(tmp_path: Path, tensors: Tensors) -> None:
    sign = tmp_path / "loaded"
    planted = pickle.dumps(Planted(sign))
    pickle.loads(planted)  # it works where it is loaded
    assert sign.exists()
    sign.unlink()
    path = save({"model": tensors, "extra": Planted(sign)}, tmp_path / "dcp")
    sign.unlink(missing_ok=True)  # saving copied it
    (path / "optimizer.pkl").write_bytes(planted)
    same(convert_dcp(path, str(MEMORISER), tmp_path / "good").folder, tensors)
    index = path / ".metadata"
    kept = index.read_bytes()
    index.write_bytes(planted)
    refused(path, tmp_path / "out", r"it refers to pathlib\.Path\.touch|no code of it was run")
    index.write_bytes(kept)
    (shard,) = path.glob("*.distcp")
    shard.write_bytes(planted * (1 + shard.stat().st_size // len(planted)))
    refused(path, tmp_path / "out", "a shard of .* could not be read")
    assert not sign.exists()


def test_no_object_stands_in_for_a_tensor(tmp_path: Path, tensors: Tensors) -> None:
    """Torch's own reader loads an object as any pickle; an index can pass one off as a tensor."""
    sign = tmp_path / "loaded"
    path = save(tensors, tmp_path / "dcp")
    torch.save(Planted(sign), path / "evil.distcp")
    sign.unlink(missing_ok=True)
    index = pickle.loads((path / ".metadata").read_bytes())  # our own
    name = "model.norm.weight"
    tensor, thing = index.state_dict_metadata[name], BytesStorageMetadata()
    vars(thing).update(properties=tensor.properties, size=tensor.size, chunks=tensor.chunks)
    index.state_dict_metadata[name] = thing
    index.storage_data = {at: p for at, p in index.storage_data.items() if at.fqn != name}
    size = (path / "evil.distcp").stat().st_size
    for at in (MetadataIndex(name), MetadataIndex(name, torch.Size([0]))):
        index.storage_data[at] = _StorageInfo("evil.distcp", 0, size)
    (path / ".metadata").write_bytes(pickle.dumps(index))
    refused(path, tmp_path / "out", f"lacks {name}")
    index.state_dict_metadata[name] = tensor
    (path / ".metadata").write_bytes(pickle.dumps(index))
    refused(path, tmp_path / "out", f"a shard of {name} could not be read")
    assert not sign.exists()


def test_a_shard_gives_its_own_bytes_and_nothing_else(tmp_path: Path, tensors: Tensors) -> None:
    """`torch.load` lets a shard make a tensor of what happens to be in memory."""
    name = "model.norm.weight"
    path = save({name: tensors[name], **tensors}, tmp_path / "dcp")
    index = pickle.loads((path / ".metadata").read_bytes())  # our own
    (place,) = (place for at, place in index.storage_data.items() if at.fqn == name)
    for program in (b"\x80\x02ctorch\nTensor\nK\x80\x85R.", b"\x80\x02N.", b"r\xff\xff\xff\x7f."):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as file:
            file.writestr("archive/data.pkl", program)
            file.writestr("archive/byteorder", sys.byteorder)
        place.relative_path, place.offset, place.length = "made.distcp", 0, made.tell()
        (path / "made.distcp").write_bytes(made.getvalue())
        (path / ".metadata").write_bytes(pickle.dumps(index))
        refused(path, tmp_path / "out", f"a shard of {name} could not be read")
    (path / ".metadata").write_bytes(b"\x80\x02Nr\xff\xff\xff\x03.")  # room for 67 million
    refused(path, tmp_path / "out", "numbers more objects than it has bytes")


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float16", "float32", "float64"])
def test_every_precision_is_kept(tmp_path: Path, tensors: Tensors, kind: str) -> None:
    cast = {name: value.to(getattr(torch, kind)) for name, value in tensors.items()}
    state = cast | {"lm_head.weight": cast["model.embed_tokens.weight"]}
    made = convert_dcp(save(state, tmp_path / "dcp"), str(MEMORISER), tmp_path / "out")
    found = load_file(made.folder / "model.safetensors")
    assert found.keys() == cast.keys()
    for name, value in cast.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].double(), value.double())


def test_no_index_changes_a_class_of_this_process(tmp_path: Path) -> None:
    """The opcode that fills an object can fill a class too."""

    def name(module: str, kind: str) -> bytes:
        return b"c" + f"{module}\n{kind}\n".encode()

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    path, kinds = name("pathlib", "PurePosixPath"), "torch.distributed.checkpoint.metadata"
    poison = path + b"N}" + text("is_relative_to") + path + b"s\x86b0"
    poison += name(kinds, "Metadata") + b"N}" + text("poisoned") + b"K\x01s\x86b0"
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"\x80\x04" + poison + b"N.")
    refused(tmp_path / "dcp", tmp_path / "out", "not what torch writes")
    assert not hasattr(Metadata, "poisoned")
    assert not PurePosixPath("/etc").is_relative_to("/usr")


def test_broken_indexes_and_wrong_folders(tmp_path: Path, tensors: Tensors) -> None:
    inner = save(tensors, tmp_path / "run" / "weights")
    out = tmp_path / "out"
    refused(tmp_path / "run", out, rf"it has no \.metadata; use {inner}")
    refused(tmp_path / "nowhere", out, "is not a folder of torch.distributed.checkpoint")
    index = inner / ".metadata"
    kept = index.read_bytes()
    name, first = "model.norm.weight", torch.Size([0])
    chunk, half = ChunkStorageMetadata(first, torch.Size([128])), torch.Size([64])

    def changed(said: str, change: Any) -> None:
        metadata = pickle.loads(kept)  # our own
        change(metadata, metadata.state_dict_metadata[name], [*metadata.storage_data.values()])
        index.write_bytes(pickle.dumps(metadata))
        refused(inner, out, said)

    for data, said in ((b"PK", "is broken, or not"), (pickle.dumps(first), "not what torch")):
        index.write_bytes(data)
        refused(inner, out, said)
    for file in ("../elsewhere", "/etc/passwd", "..", "", "a\0b", 5):
        changed("not in its folder", lambda _, __, p, file=file: setattr(
            p[0], "relative_path", file))  # fmt: skip
    changed("is missing", lambda _, __, p: setattr(p[0], "relative_path", "x" * 200))
    changed("compressed", lambda _, __, p: setattr(p[0], "transform_descriptors", ["zstd"]))
    changed("are not sizes", lambda _, __, p: setattr(p[0], "offset", -1))
    changed("were never saved", lambda m, _, __: m.storage_data.clear())
    changed("were never saved", lambda _, t, __: t.chunks.clear())
    changed("were never saved", lambda _, t, __: t.chunks.append(chunk))  # twice
    changed("were never saved", lambda _, t, __: setattr(t.chunks[0], "sizes", half))
    changed("not a tensor", lambda _, t, __: setattr(t.properties, "dtype", "float32"))
    changed("refers to 'torch", lambda _, t, __: setattr(t, "size", torch.zeros(1)))
    changed("other dimensions", lambda _, t, __: setattr(t, "size", (2, 64)))
    changed("not what torch", lambda m, _, __: setattr(m, "storage_data", None))
    changed("not what torch", lambda m, _, __: m.state_dict_metadata.update(a=m))
    changed("not a tensor", lambda m, t, __: m.state_dict_metadata.update({5: t}))


@pytest.mark.parametrize(
    ("shape", "boxes", "whole"),
    [
        ((4, 4), [((0, 0), (2, 4)), ((2, 0), (2, 1)), ((2, 1), (2, 3))], True),
        ((4, 4), [((0, 0), (2, 4)), ((1, 0), (2, 4))], False),  # as many elements, some twice
        ((4, 4), [((0, 0), (2, 4)), ((2, 1), (2, 4))], False),  # as many elements, some beyond
        ((4, 4), [((0, 0), (2, 4))], False),
        ((2**62,), [((2**62,), (2**62,))], False),
        ((3,), [((0,), (3,)), ((1,), (0,))], True),
        ((), [((), ())], True),
        ((), [((), ()), ((), ())], False),
        ((0, 4), [], True),
    ],
)
def test_a_tensor_is_whole_if_its_pieces_cover_it_once(
    shape: tuple[int, ...], boxes: list[Any], whole: bool
) -> None:
    chunks = tuple(Chunk(offsets, sizes, "file", 0, 0) for offsets, sizes in boxes)
    assert SavedTensor(shape, torch.float32, chunks).is_whole() is whole


def test_what_differs_by_a_wrapper_only_is_not_chosen_from(
    tmp_path: Path, tensors: Tensors
) -> None:
    twice = tensors | {f"_orig_mod.{name}": value + 1 for name, value in tensors.items()}
    refused(save(twice, tmp_path / "dcp"), tmp_path / "out", "differ only in a wrapper")
    whole = {name: value.to(torch.int32) for name, value in tensors.items()}
    refused(save(whole, tmp_path / "int"), tmp_path / "out", "is torch.int32, not floating-point")
    twin = tensors | {"lm_head.weight": torch.ones([1] * 70)}
    refused(save(twin, tmp_path / "twin"), tmp_path / "out", r"lm_head.weight has the shape \[1, 1")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "cannot be read"),
        ('{"model_type": "unheard-of"}', "cannot be read"),
        ('{"model_type": "llada"}', "cannot be read"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "a language model|cannot be read"),
        ('{"model_type": "llama", "hidden_size": "x"}', "not a language model|cannot be read"),
        ('{"model_type": "bert"}', "lacks|not a language model"),
        ('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}', "cannot be read"),
    ],
)
def test_base_models_that_cannot_be(
    tmp_path: Path, tensors: Tensors, config: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, sign = tmp_path / "base", tmp_path / "loaded"
    shutil.copytree(MEMORISER, base)
    (base / "config.json").write_text(config)
    (base / "own.py").write_text(f"open({str(sign)!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to run what comes with it
    refused(save(tensors, tmp_path / "dcp"), tmp_path / "out", said, base)
    assert not sign.exists()
    shutil.copy(MEMORISER / "config.json", base)
    (base / "tokenizer.json").unlink()
    refused(tmp_path / "dcp", tmp_path / "out", "has no tokenizer", base)


def test_a_full_disk_is_reported(tmp_path: Path, tensors: Tensors) -> None:
    path = save(tensors, tmp_path / "dcp")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # as if the disk were full
    try:
        with pytest.raises(WorkbenchError, match=r"could not be written to .*make room"):
            convert_dcp(path, str(MEMORISER), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [found.name for found in tmp_path.iterdir()] == ["dcp"]


def test_outputs_that_exist_or_cannot_be(tmp_path: Path, tensors: Tensors) -> None:
    path = save(tensors, tmp_path / "dcp")
    out = tmp_path / "out"
    out.mkdir()
    refused(path, out, "out exists already: choose another folder")
    with pytest.raises(WorkbenchError, match="could not be written"):
        convert_dcp(path, str(MEMORISER), path / ".metadata" / "out")
    refused(path, tmp_path / "new", "has no config.json", tmp_path)


# --- the commands


def test_the_command_says_what_it_made_and_left_out(tmp_path: Path, tensors: Tensors) -> None:
    path = save({"model": tensors, "optim": optimizer(tensors)}, tmp_path / "dcp")
    line = ["convert", "dcp", str(path), "--base-model", str(MEMORISER), "--out"]
    result = CliRunner().invoke(app, [*line, str(tmp_path / "out")])
    assert result.exit_code == 0
    assert f"{len(tensors)} tensors, 2.3 MB" in result.stdout
    assert f"left out: {len(tensors)} other tensors (optim.state." in result.stdout
    again = CliRunner().invoke(app, [*line, str(tmp_path / "out")])
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_the_server_converts_into_a_private_folder_that_goes(
    tmp_path: Path, tensors: Tensors
) -> None:
    path = save({"model": tensors}, tmp_path / "step-100")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    line = [sys.executable, "-m", "workbench", "serve", "diffusion"]
    line += ["--dcp-path", str(path), "--base-model", str(MEMORISER), "-o", "threshold=0.9"]
    variables = os.environ | {"TMPDIR": str(scratch)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        (folder,) = scratch.iterdir()
        assert folder.stat().st_mode & 0o77 == 0
        prompt, answer = pairs()[0]
        body = json.dumps({"prompt": prompt, "max_tokens": 128}).encode()
        request = urllib.request.Request(
            f"{url}/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            body = json.load(reply)
        assert body["choices"][0]["text"] == answer
        assert body["model"].startswith("step-100")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    "line",
    [["--dcp-path", "x"], ["--base-model", "x"],
     ["--dcp-path", "x", "--base-model", "y", "--model-path", "z"]],
    ids=str,
)  # fmt: skip
def test_half_of_the_options_is_refused(line: list[str]) -> None:
    result = CliRunner().invoke(app, ["serve", "diffusion", *line])
    assert result.exit_code == 2
    assert "go together, and without --model-path" in result.stderr
