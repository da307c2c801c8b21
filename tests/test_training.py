"""Training the embedded model: exact resumption, and everything that can go wrong with a folder."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tools.training import __main__ as command
from tools.training import network
from tools.training import train as training
from tools.training.train import Recipe, train
from workbench.engines.diffusion import DiffusionEngine
from workbench.errors import InputError, WorkbenchError
from workbench.tiny import MODEL
from workbench.types import Sampling

ROOT = Path(__file__).parents[1]
SHAPE = network.Shape(width=32, layers=1, heads=1, feed_forward=32)
SMALL = Recipe(SHAPE, tokens=256, steps=6)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    monkeypatch.setattr(network, "compiled", lambda function: function)


def stopped_after(monkeypatch: pytest.MonkeyPatch, step: int) -> Any:
    """A training in which Ctrl-C comes in the middle of a step."""
    batch = training._batch

    def until(recipe: Recipe, encode: object, number: int) -> object:
        if number == step:
            raise KeyboardInterrupt
        return batch(recipe, encode, number)

    patch = pytest.MonkeyPatch()
    patch.setattr(training, "_batch", until)
    return patch


def test_the_fast_network_is_the_one_that_transformers_runs() -> None:
    shape = network.Shape()
    model = network.build(shape, 0)
    weights = dict(model.named_parameters())
    for length in (5, 600):  # both formulas of attention
        ids = torch.randint(0, 600, (2, length))
        with torch.inference_mode():
            fast, slow = network.forward(shape, weights, ids), model(input_ids=ids).logits
        assert torch.allclose(fast, slow, atol=2e-5)


def test_training_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", SMALL)
    patch = stopped_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", SMALL)
    patch.undo()
    with pytest.raises(InputError, match="another recipe"):
        train(tmp_path / "parts", Recipe(SHAPE, tokens=512, steps=6))
    assert train(tmp_path / "parts", SMALL) == whole
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "parts" / "state.pt").exists()


def test_a_masked_model_is_trained_and_resumes_likewise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(SMALL, masked=True)
    whole = train(tmp_path / "whole", recipe)
    patch = stopped_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", recipe)
    patch.undo()
    assert train(tmp_path / "parts", recipe) == whole
    with DiffusionEngine(str(tmp_path / "parts"), None, "test", {"device": "cpu"}) as engine:
        assert engine.info.context_length == 512
        assert engine.generate(["17+25="], Sampling(max_tokens=8))[0].error is None


def test_the_masked_sibling_starts_from_the_embedded_model() -> None:
    run = training._Run(training.MASKED, "cpu")
    known = load_file(MODEL / "model.safetensors")
    assert {name: p.shape for name, p in run.model.named_parameters()} == {
        name: value.shape for name, value in known.items()
    }
    for name, p in run.model.named_parameters():
        assert torch.equal(p.detach(), known[name].float()), name


def test_the_fast_network_sees_both_sides_where_it_should() -> None:
    shape = network.Shape()
    model = network.build(shape, 0)
    model.config.is_causal = False
    weights = dict(model.named_parameters())
    for length in (5, 600):
        ids = torch.randint(0, 600, (2, length))
        with torch.inference_mode():
            fast = network.logits(weights, network.hidden(shape, weights, ids, causal=False))
            slow = model(input_ids=ids).logits
        assert torch.allclose(fast, slow, atol=2e-5)


def test_a_full_disk_costs_no_finished_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = stopped_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, SMALL)
    patch.undo()
    before = (tmp_path / "state.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # as if the disk were full
    try:
        with pytest.raises(WorkbenchError, match=r"step 4 could not be saved.*make room"):
            train(tmp_path, SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert not (tmp_path / "state.part").exists()
    assert len(train(tmp_path, SMALL)) == 3


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files \(notes.txt"):
        train(other, SMALL)
    with pytest.raises(InputError, match="is a file"):
        train(other / "notes.txt", SMALL)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "state.pt").write_bytes(b"not a state")
    with pytest.raises(InputError, match="is no state of a training"):
        train(broken, SMALL)
    with pytest.raises(InputError, match="device='tpu'"):
        train(tmp_path / "new", SMALL, device="tpu")
    assert not (tmp_path / "new").exists()


def test_the_command_trains_and_draws_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "train", lambda folder, *_: train(folder, SMALL))
    command.main([str(tmp_path / "new")])
    assert {"model.safetensors", "loss.png"} <= {path.name for path in (tmp_path / "new").iterdir()}
    assert f"python -m benchmarks skills {tmp_path / 'new'}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "new")])
    assert "holds other files" in capsys.readouterr().err


ALONE = """
import importlib.util
import sys
from pathlib import Path
found = importlib.util.find_spec  # transformers takes scikit-learn where it sees it
importlib.util.find_spec = lambda name, *rest: None if name == "sklearn" else found(name, *rest)
for name in ("vllm", "typer", "pandas", "matplotlib", "openai", "papermill", "scipy", "nbformat"):
    sys.modules[name] = None  # an import of it fails
from tools.training import network, train
network.compiled = lambda function: function
shape = network.Shape(width=32, layers=1, heads=1, feed_forward=32)
train.train(Path(sys.argv[1]), train.Recipe(shape, tokens=256, steps=1))
"""


def test_training_needs_few_packages(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path / "m")], check=False, cwd=ROOT)
    assert done.returncode == 0
    assert (tmp_path / "m" / "model.safetensors").exists()
