"""A pretrained model, where `make real` has brought one: what a toy cannot show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from workbench import Sampling, open_engine
from workbench.types import Engine

MODEL = Path(__file__).parent.parent / "runs" / "real" / "gemma-3-270m"
pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def gemma(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if not (MODEL / "config.json").is_file():
        pytest.skip("needs Gemma 3 270M: run `make real` once")
    more: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048}
    with open_engine(str(MODEL), request.param, store=None, **more) as engine:
        yield engine


def test_it_can_add_small_numbers(gemma: Engine) -> None:
    (row,) = gemma.generate(["Question: What is 2+3?\nAnswer:"], Sampling(max_tokens=8))
    assert row.text.startswith(" 2+3=5")


def test_texts_begin_with_one_bos(gemma: Engine) -> None:
    ids = cast("Any", gemma)._tokens(["The sea", "<bos>The sea", " ", "café 12 345"])
    assert [[*row[:1], row.count(2)] for row in ids] == [[2, 1]] * 4
    one, other = gemma.generate(["The sea", "<bos>The sea"], Sampling(max_tokens=8))
    assert one.text == other.text


def test_labels_are_those_of_a_plain_forward(gemma: Engine) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        MODEL, dtype=torch.float32, trust_remote_code=False
    )
    prompt, labels = "The capital of France is", [" Paris", " Rome", " New York City"]
    scores = gemma.label_logprobs([prompt], labels).logprobs[0]
    tokenizer = cast("Any", gemma).tokenizer
    before = tokenizer(prompt).input_ids
    for label, score in zip(labels, scores, strict=True):
        after = tokenizer(label, add_special_tokens=False).input_ids
        with torch.inference_mode():
            found = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        places = found[len(before) - 1 : -1]
        plain = sum(float(at[token]) for at, token in zip(places, after, strict=True))
        assert float(score) == pytest.approx(plain, abs=1e-3)
    assert scores[0] > scores[1]


def test_a_base_model_has_no_chats(gemma: Engine) -> None:
    assert not cast("Any", gemma).has_chat
