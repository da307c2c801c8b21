"""Against recorded runs of the published program, and against energies computed by hand."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_icm_search import LINES, Synthetic, energies_of, labels_of, moves_of, sums

from workbench.engines.vllm import VLLMEngine
from workbench.icm import Claim, Wording, search
from workbench.icm.predictability import Order
from workbench.types import Errors, LabelScores

FOLDER = Path(os.environ.get("WORKBENCH_DATA", "none")) / "icm_oracle"
RUNS = [
    (bed, alpha, seed)
    for bed in ("truthfulQA", "gsm8k", "alpaca")
    for alpha in (50.0, 5.0, 0.5)
    for seed in range(4)
]
recorded = pytest.mark.skipif(
    not FOLDER.exists(), reason="needs runs of the published program: WORKBENCH_DATA/icm_oracle"
)


@cache
def published() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "published_runs.json").read_text()))


@cache
def scorer() -> Any:
    spec = importlib.util.spec_from_file_location("icm_oracle_scorer", FOLDER / "scorer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Hashing(Synthetic):
    """The network of the recorded runs: its scores depend on each character of a prompt."""

    def __init__(self, claims: Sequence[Claim], number: int) -> None:
        super().__init__(claims)
        self._gold, self._number = {claim.text: claim.gold for claim in claims}, number

    def label_logprobs(
        self,
        prompts: Any,
        labels: Any,
        *,
        errors: Errors = "raise",
    ) -> LabelScores:
        rows = [scorer().label_logprobs(str(p), self._gold, self._number) for p in prompts]
        found = np.array(rows)
        return LabelScores(found, found, np.zeros_like(found, bool), (None,) * len(rows))


@recorded
def test_all_recorded_runs_are_here() -> None:
    found = [
        (name, run["alpha"], run["seed"])
        for name, bed in published()["testbeds"].items()
        for run in bed["runs"]
    ]
    assert found == RUNS


@recorded
@pytest.mark.parametrize("order", ["reference", "exact"])
@pytest.mark.parametrize(("name", "alpha", "seed"), RUNS)
def test_the_published_program_accepts_the_same_moves(
    name: str, alpha: float, seed: int, order: Order
) -> None:
    bed = published()["testbeds"][name]
    (run,) = (one for one in bed["runs"] if (one["alpha"], one["seed"]) == (alpha, seed))
    claims = [Claim(**fields) for fields in bed["claims"]]
    found = search(
        claims, Hashing(claims, seed), alpha=alpha, n_iterations=published()["K"], seed=seed,
        schedule="code", order=order, consistency=bed["consistency"],
    )  # fmt: skip
    assert moves_of(found) == [(iteration, claim) for iteration, claim, _ in run["moves"]]
    assert energies_of(found)[1:] == pytest.approx([value for *_, value in run["moves"]], abs=1e-9)
    assert labels_of(found) == [None if label is None else bool(label) for label in run["labels"]]


@pytest.mark.parametrize("order", ["reference", "exact", "tree"])
@pytest.mark.parametrize("words", [LINES, Wording((" Yes", " No"), after="\n")])
def test_energies_are_those_of_prompts_made_by_hand(
    plain: VLLMEngine, order: Order, words: Wording
) -> None:
    claims = sums(20, 5)
    report = search(claims, plain, order=order, n_iterations=60, alpha=15, seed=1, wording=words)
    pool = [(c, y) for c, y in zip(claims, labels_of(report), strict=True) if y is not None]
    assert len(pool) > 10
    prompts = [
        "".join(
            f"{c.text}{words.labels[0 if y else 1]}{words.after}" for c, y in pool if c is not one
        )
        + one.text
        for one, _ in pool
    ]
    true, false = plain.label_logprobs(prompts, words.labels).logprobs.T
    signs = np.array([1 if label else -1 for _, label in pool])
    broken = sum(
        a.group == b.group and (y != z if a.answer_key == b.answer_key else y and z)
        for (a, y), (b, z) in combinations(pool, 2)
    )
    predictable = float((signs * (true - false)).mean())
    assert report.provenance["predictability"] == pytest.approx(predictable, abs=1e-4)
    assert (report.energy + broken) / 15 == pytest.approx(predictable, abs=1e-4)
