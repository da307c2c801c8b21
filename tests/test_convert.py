"""DCP checkpoints made into model folders: every layout of torch's, and everything wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter
from typer.testing import CliRunner

from workbench import Sampling
from workbench.bench import llada
from workbench.cli import app
from workbench.engines import convert
from workbench.engines.convert import convert_dcp
from workbench.engines.diffusion import DiffusionEngine
from workbench.errors import InputError, WorkbenchError
from workbench.tiny import MEMORY
from workbench.tiny.memoriser import pairs

Tensors = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return load_file(MEMORY / "model.safetensors")


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


@pytest.mark.parametrize("layout", ["flat", "nested", "deep", "compiled", "tied twice"])
def test_every_layout_gives_the_same_tensors(tmp_path: Path, tensors: Tensors, layout: str) -> None:
    state: Tensors = {
        "flat": tensors,
        "nested": {"model": tensors, "optim": optimizer(tensors), "step": 7},
        "deep": {"app": {"model": tensors, "ema": {"decay": torch.ones(1)}}},
        "compiled": {f"_orig_mod.{name}": value for name, value in tensors.items()},
        "tied twice": tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]},
    }[layout]
    made = convert_dcp(save(state, tmp_path / "dcp"), str(MEMORY), tmp_path / "out")
    same(made.folder, tensors)
    assert made.tensors == len(tensors)
    assert made.size == sum(value.nbytes for value in tensors.values())
    left = {"nested": len(tensors), "deep": 1}
    assert len(made.left_out) == left.get(layout, 0)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


RANK = """
import sys
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
"""


def test_shards_of_two_processes_are_put_together(tmp_path: Path, tensors: Tensors) -> None:
    source, out = MEMORY / "model.safetensors", tmp_path / "dcp"
    lines = [
        [sys.executable, "-c", RANK, str(tmp_path / "meet"), str(rank), str(source), str(out)]
        for rank in range(2)
    ]
    ranks = [subprocess.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"}) for line in lines]
    assert [process.wait(120) for process in ranks] == [0, 0]
    assert len(list(out.glob("*.distcp"))) == 2
    same(convert_dcp(out, str(MEMORY), tmp_path / "out").folder, tensors)


def test_the_converted_model_answers_as_the_original(tmp_path: Path, tensors: Tensors) -> None:
    made = convert_dcp(save({"model": tensors}, tmp_path / "dcp"), str(MEMORY), tmp_path / "out")
    prompts = [prompt for prompt, _ in pairs()]
    answers = []
    for model in (str(MEMORY), str(made.folder)):
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
    out = convert_dcp(save(tensors, tmp_path / "dcp"), str(MEMORY), tmp_path / "out").folder
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
        convert_dcp(path, str(MEMORY), tmp_path / "out")
    same(convert_dcp(path, str(MEMORY), tmp_path / "out", prefix="ema.").folder, other)
    with pytest.raises(InputError, match="lacks"):
        convert_dcp(path, str(MEMORY), tmp_path / "more", prefix="average.")


# --- bad input


def refused(path: Path, out: Path, said: str, base: Path = MEMORY) -> None:
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
    refused(tmp_path / "dcp", tmp_path / "out", "a shard could not be read")
    shards[3].unlink()
    refused(tmp_path / "dcp", tmp_path / "out", f"the shard {shards[3].name} is missing")


def test_tensors_of_another_model_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    norm = "model.norm.weight"
    fewer = {name: value for name, value in tensors.items() if name != norm}
    wider = tensors | {norm: torch.ones(129)}
    deeper = tensors | {"model.layers.4.input_layernorm.weight": torch.ones(128)}
    untied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    for name, state, said in (
        ("fewer", fewer, f"lacks {norm}: it is no checkpoint of"),
        ("wider", wider, rf"{norm} has the shape \[129\], that of the base model \[128\]"),
        ("deeper", deeper, r"beyond the base model, model.layers.4.input_layernorm.weight"),
        ("untied", untied, r"lm_head.weight is not model.embed_tokens.weight"),
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
    same(convert_dcp(path, str(MEMORY), tmp_path / "good").folder, tensors)
    index = path / ".metadata"
    kept = index.read_bytes()
    index.write_bytes(planted)
    refused(path, tmp_path / "out", r"it asks for pathlib\.Path\.touch|nothing of it was run")
    index.write_bytes(kept)
    (shard,) = path.glob("*.distcp")
    shard.write_bytes(planted * (1 + shard.stat().st_size // len(planted)))
    refused(path, tmp_path / "out", "a shard could not be read")
    assert not sign.exists()


def test_broken_indexes_and_wrong_folders(tmp_path: Path, tensors: Tensors) -> None:
    inner = save(tensors, tmp_path / "run" / "weights")
    out = tmp_path / "out"
    refused(tmp_path / "run", out, rf"it has no \.metadata; give {inner}")
    refused(tmp_path / "nowhere", out, "is no folder of torch.distributed.checkpoint")
    index = inner / ".metadata"
    metadata = pickle.loads(index.read_bytes())  # our own
    index.write_bytes(b"PK")
    refused(inner, out, "is broken, or not what torch writes")
    index.write_bytes(pickle.dumps(torch.Size([1])))
    refused(inner, out, "holds no index of a checkpoint")
    for place in metadata.storage_data.values():
        place.relative_path = "../elsewhere"
    index.write_bytes(pickle.dumps(metadata))
    refused(inner, out, r"names the file '\.\./elsewhere', outside")
    metadata.storage_data.popitem()
    index.write_bytes(pickle.dumps(metadata))
    refused(inner, out, "were never saved")
    metadata.storage_data = None
    index.write_bytes(pickle.dumps(metadata))
    refused(inner, out, "contradicts itself")
    metadata.state_dict_metadata = {"a": metadata}
    index.write_bytes(pickle.dumps(metadata))
    refused(inner, out, "lacks")


def test_outputs_that_exist_or_cannot_be(tmp_path: Path, tensors: Tensors) -> None:
    path = save(tensors, tmp_path / "dcp")
    out = tmp_path / "out"
    out.mkdir()
    refused(path, out, "out exists already: choose another folder")
    with pytest.raises(WorkbenchError, match="could not be written"):
        convert_dcp(path, str(MEMORY), tmp_path / "no" / "such" / "folder")
    refused(path, tmp_path / "new", "has no config.json", tmp_path)
    odd = tmp_path / "odd"
    shutil.copytree(MEMORY, odd)
    (odd / "config.json").write_text('{"model_type": "unheard-of"}')
    refused(path, tmp_path / "new", "base model .* is not known here", odd)


# --- the commands


def test_the_command_says_what_it_made_and_left_out(tmp_path: Path, tensors: Tensors) -> None:
    path = save({"model": tensors, "optim": optimizer(tensors)}, tmp_path / "dcp")
    line = ["convert", "dcp", str(path), "--base-model", str(MEMORY), "--out"]
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
    line = [sys.executable, "-c", "from workbench.cli import app; app()", "serve", "diffusion"]
    line += ["--dcp-path", str(path), "--base-model", str(MEMORY), "-o", "threshold=0.9"]
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
            told = json.load(reply)
        assert told["choices"][0]["text"] == answer
        assert told["model"].startswith("step-100")
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
