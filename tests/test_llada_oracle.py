"""Against canvases that the official LLaDA and Fast-dLLM programs left: the same tokens."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.engines.diffusion import Denoising, DiffusionEngine
from workbench.engines.diffusion.denoising import Cache
from workbench.types import Sampling

FOLDER = Path(os.environ.get("WORKBENCH_DATA", "none")) / "llada_oracle"
pytestmark = pytest.mark.skipif(
    not FOLDER.exists(), reason="needs canvases of the official programs: WORKBENCH_DATA"
)
CACHES: tuple[Cache, ...] = ("prefix", "dual")
STRIDE = 13  # prime to every repetition in the list: a sample has cases of each kind
MORE_FORWARDS = 4  # theirs runs one more after a block is full, where it has a cache


@cache
def recorded() -> dict[str, Any]:
    with gzip.open(FOLDER / "canvases.json.gz") as file:
        return dict(json.load(file))


@pytest.fixture(scope="module")
def engine() -> Iterator[DiffusionEngine]:
    options = {"device": "cpu", "batch_size": 8}
    with DiffusionEngine(str(FOLDER / "model"), None, "for the test", options) as opened:
        yield opened


def settings(case: dict[str, Any]) -> Denoising:
    kind, program = case["kind"], case["kw"]
    steps = None if kind.startswith("loose") or program.get("threshold") else program["steps"]
    return Denoising(
        steps=steps,
        block_length=program["block_length"],
        threshold=program.get("threshold"),
        cfg_scale=program.get("cfg_scale", 0.0),
        cache=next((name for name in CACHES if kind.endswith(name)), "none"),
    )


def answers(engine: DiffusionEngine, cases: list[dict[str, Any]]) -> list[tuple[list[int], int]]:
    """Canvas and forwards of each case, all of them in mixed batches."""
    rows = [
        engine.row(
            recorded()["prompts"][case["prompt"]],
            Sampling(max_tokens=case["kw"]["gen_length"], ignore_eos=True),
            settings(case),
        )
        for case in cases
    ]
    denoiser = engine.denoiser()
    for row in rows:
        denoiser.add(row)
    while not all(row.done for row in rows):
        denoiser.step()
    assert [row.error for row in rows if row.error] == []
    return [(row.ids.tolist(), row.forwards) for row in rows]


def check(engine: DiffusionEngine, cases: list[dict[str, Any]]) -> None:
    for case, (ids, forwards) in zip(cases, answers(engine, cases), strict=True):
        assert ids == case["ids"], case
        if case["nfe"] is not None:
            more = MORE_FORWARDS if case["kind"].endswith(CACHES) else 0
            assert forwards <= case["nfe"] <= forwards + more, case


def test_logits_are_those_of_the_official_class(engine: DiffusionEngine) -> None:
    import torch

    network = engine.network
    assert network is not None
    with np.load(FOLDER / "logits.npz") as files, torch.inference_mode():
        assert files.files
        for name in files.files:
            right = files[name]
            prompt = recorded()["prompts"][int(name)]
            ids = torch.tensor([[*prompt, *[network.mask] * (len(right) - len(prompt))]])
            places = torch.arange(ids.shape[1])[None]
            hidden = network.hidden(ids, torch.ones_like(ids, dtype=torch.bool), places)
            # In one process they are equal to the bit; another processor adds in another order.
            assert network.logits(hidden)[0].numpy() == pytest.approx(right, rel=1e-5, abs=2e-5)


def test_a_sample_of_canvases_is_the_official_programs(engine: DiffusionEngine) -> None:
    cases = recorded()["cases"]
    assert {case["kind"] for case in cases[::STRIDE]} == {case["kind"] for case in cases}
    check(engine, cases[::STRIDE])


@pytest.mark.slow
def test_all_canvases_are_the_official_programs(engine: DiffusionEngine) -> None:
    cases = recorded()["cases"]
    assert len(cases) == 2160
    check(engine, cases)
