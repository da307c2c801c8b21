"""The published scores: sums over the twenty likeliest first tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_icm_search import LINES, Synthetic, assert_same, by_hand, claims_of, labels_of, sums

from workbench import Sampling
from workbench.engines.remote import RemoteEngine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.icm import search
from workbench.icm.scorer import NEITHER, compute_top_logprobs
from workbench.serving import Server
from workbench.types import Completion, Errors, TokenLogprob

LABELS = (" True", " False")
EPS = 1e-5


class TopTokens(Synthetic):
    """A server that names tokens by their text and gives nothing but the likeliest ones."""

    tops: dict[str, Sequence[tuple[str | int, float]]] = {}  # noqa: RUF012
    error: str | None = None

    def generate(
        self,
        prompts: Any,
        sampling: Sampling = Sampling(),  # noqa: B008
        *,
        errors: Errors = "raise",
    ) -> list[Completion]:
        assert (sampling.max_tokens, sampling.logprobs, errors) == (1, 20, "return")
        self.calls.append([str(prompt) for prompt in prompts])
        return [self._answer(str(prompt)) for prompt in prompts]

    def _answer(self, prompt: str) -> Completion:
        true, false = map(math.exp, self.row(prompt))
        top = self.tops.get(prompt.rpartition("\n\n")[2], [(" true", true), ("FALSE", false)])
        logs = tuple((token, math.log(p)) for token, p in top)
        found = (TokenLogprob(" x", -9.0, logs),) if logs else None
        return Completion(text=" x", finish_reason="length", logprobs=found, error=self.error)


def test_sums_by_hand() -> None:
    claims = claims_of(5)
    engine = TopTokens(claims)
    engine.tops = {
        "c000": [(" True", 0.5), ("untrue", 0.125), ("falsehood", 0.25), ("Truefalse", 0.1)],
        "c001": [(" true", 0.5), (" the", 0.5)],
        "c002": [(" the", 0.5), (" it", 0.25)],
        "c003": [("FALSE", 1.0)],
    }
    wanted = [(0.625, 0.25), (0.5, 0), (0, 0), (0, 1), [math.exp(x) for x in engine.row("c004")]]
    prompts = [claim.text for claim in claims]
    found = compute_top_logprobs(prompts, LABELS, engine)
    assert found.dtype == np.float64
    assert found == pytest.approx(np.log(np.array(wanted) + EPS), abs=1e-12)
    assert tuple(found[2]) == NEITHER
    assert found[1, 0] - found[1, 1] == pytest.approx(math.log(0.50001 / EPS))


def test_a_search_counts_prompts_without_either_label(tmp_path: Path) -> None:
    claims = claims_of(12, 4)
    engine, again = TopTokens(claims), TopTokens(claims)
    engine.tops = again.tops = {"c005": [(" the", 0.5)], "c009": [(" the", 0.5)]}
    path = tmp_path / "search.jsonl"
    report = search(claims, engine, n_iterations=60, scores="top20", checkpoint=path)
    unknown = sum(prompt.endswith(("c005", "c009")) for prompt in engine.asked)
    assert unknown > 2
    (note,) = (note for note in report.notes if "neither label" in note)
    assert f"for {unknown} of {len(engine.asked)} prompts" in note
    assert report.provenance["scores"] == "top20"
    assert report.rows["log_odds"][5] == 0
    resumed = search(claims, again, n_iterations=60, scores="top20", checkpoint=path)
    assert_same(resumed, report)
    assert resumed.notes == report.notes
    assert again.asked == []
    with pytest.raises(InputError, match="another search: its scores is 'top20'"):
        search(claims, again, n_iterations=60, checkpoint=path)


@pytest.mark.parametrize("fault", ["error", "nothing", "numbers"])
def test_what_fails_is_no_zero(fault: str) -> None:
    claims = claims_of(8)
    engine = TopTokens(claims)
    kind, message = EngineError, "prompt 0 of 8 .* could not be scored: it broke down"
    if fault == "error":
        engine.error = "it broke down"
    elif fault == "nothing":
        engine.tops, message = {"c000": []}, "the reply has no likeliest tokens"
    else:
        engine.tops = {claim.text: [(17, 0.5)] for claim in claims}
        kind, message = InputError, "needs the text of each token"  # type: ignore[assignment]
    with pytest.raises(kind, match=message):
        search(claims, engine, scores="top20")


def test_a_model_and_its_server(plain: VLLMEngine, server: Server) -> None:
    import torch

    claims = sums(10, 1)
    report = search(claims, plain, scores="top20", n_iterations=20, wording=LINES, order="exact")
    labels = labels_of(report)
    tokenizer, model = by_hand()
    for i, label in enumerate(labels):
        if label is None:
            continue
        others = (
            f"{c.text}{LABELS[not y]}\n"
            for j, (c, y) in enumerate(zip(claims, labels, strict=True))
            if j != i and y is not None
        )
        ids = tokenizer("".join(others) + claims[i].text).input_ids
        with torch.inference_mode():
            top = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).topk(20)
        mass = [EPS, EPS]
        for p, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            text = tokenizer.decode([token]).lower()
            if ("true" in text) != ("false" in text):
                mass["false" in text] += p
        found = report.rows[["logprob_true", "logprob_false"]].iloc[i].to_numpy(float)
        assert found == pytest.approx(np.log(mass), abs=1e-4)
    with (
        RemoteEngine(None, None, "test", {"base_url": server.url}) as remote,
        pytest.raises(InputError, match="use scores='exact'"),
    ):
        search(claims, remote, scores="top20", wording=LINES)
