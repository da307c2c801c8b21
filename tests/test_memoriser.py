"""The model that knows 64 answers by heart: that it does, and what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.training import network
from tools.training.memoriser import (
    MEMORISER,
    WRITTEN,
    Recipe,
    decode,
    encoded,
    load,
    pairs,
    train,
)
from workbench.errors import InputError
from workbench.tiny import MODEL

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load(MEMORISER)


def test_the_pairs_differ_and_are_always_the_same(loaded: tuple[Any, Any]) -> None:
    known, (_, tokenizer) = pairs(), loaded
    assert len(known) == len(dict(known)) == 64
    assert known == pairs()
    prompts, answers = zip(*encoded(tokenizer), strict=True)
    assert min(map(len, prompts)) <= 8
    assert max(map(len, prompts)) >= 100
    sizes = sorted(map(len, answers))
    assert sizes[0] == 1
    assert 80 <= sizes[-1] <= 128
    assert len(set(sizes)) > 30
    solved = [answer for prompt, answer in known if prompt.startswith("Question:")]
    assert len(solved) >= 56
    assert all(answer.startswith(" ") and "#### " in answer for answer in solved)


def test_the_written_answers_hold_what_careless_servers_break(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    text = "".join(answer for _, answer in WRITTEN)
    for part in (
        "\n\n\n",
        "     ",
        "\t",
        "\\\\",
        '\\"',
        "'",
        "👨‍👩‍👧",
        "你好",
        "data: [DONE]\n\n",
        "&amp;",
    ):
        assert part in text
    assert any(answer.endswith("  \n") and answer.startswith("\n\n") for _, answer in WRITTEN)
    for (prompt, answer), (asks, ids) in zip(pairs(), encoded(tokenizer), strict=True):
        assert (tokenizer.decode(asks), tokenizer.decode(ids)) == (prompt, answer)
        assert not {*asks, *ids} & set(tokenizer.all_special_ids)


def test_the_folder_is_a_bidirectional_llama_with_a_mask(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.is_causal is False
    assert model.config.mask_token_id == tokenizer.mask_token_id == 570
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0
    assert (MEMORISER / "model.safetensors").stat().st_size <= 4_000_000
    before, after = (
        json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
        for folder in (MODEL, MEMORISER)
    )
    assert before == after
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    with torch.inference_mode():
        one, other = model(input_ids=ids).logits
    assert (one[0] - other[0]).abs().max() > 0.01


def test_answers_are_exact_whatever_the_canvas(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    chosen = [*encoded(tokenizer)[::8], *encoded(tokenizer)[-8:]]
    for length in (96, 128):
        made, forwards = decode(model, [asks for asks, _ in chosen], length, threshold=0.9)
        assert made == [answer for _, answer in chosen]
        assert all(count < len(answer) + 2 for count, answer in zip(forwards, made, strict=True))
    chats = encoded(tokenizer, chat=True)[::8]
    made, forwards = decode(model, [asks for asks, _ in chats], 32)
    assert made == [answer[:32] for _, answer in chats]
    assert forwards == [32] * len(chats)


def test_a_padded_row_is_the_row_alone_and_only_with_the_mask(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    asks = [row[0] + [tokenizer.mask_token_id] * 32 for row in encoded(tokenizer)[-4:]]
    width = max(map(len, asks))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in asks])
    seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asks])
    with torch.inference_mode():
        padded, careless = (model(input_ids=ids, attention_mask=m).logits for m in (seen, None))
        for index, row in enumerate(asks):
            alone = model(input_ids=torch.tensor([row])).logits[0]
            assert torch.allclose(padded[index, -len(row) :], alone, atol=1e-4)
            if len(row) < width:
                assert (careless[index, -len(row) :] - alone).abs().max() > 0.1


def test_a_training_ends_in_a_folder_that_loads(tmp_path: Path) -> None:
    recipe = Recipe(network.Shape(32, 1, 1, 32), rows=64, epochs=1)  # two steps
    losses = train(tmp_path / "model", recipe)
    assert len(losses) == 1
    assert 5 < losses[0] < 8
    model, tokenizer = load(tmp_path / "model")
    assert model.config.is_causal is False
    assert model.config.mask_token_id == tokenizer.mask_token_id
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["loss_by_epoch"] == losses
    with pytest.raises(InputError, match="is there already"):
        train(tmp_path / "model", recipe)
