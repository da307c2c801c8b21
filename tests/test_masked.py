"""What the masked-diffusion model learns from: rows that decoding meets, and no held-out sum."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer

from tools.training import masked
from tools.training.masked import STAGES, batch
from workbench.tasks.arithmetic import Sum, is_held_out
from workbench.tiny import DIFFUSION, MODEL

TOKENIZER = Tokenizer.from_file(str(DIFFUSION / "tokenizer.json"))
MASK, END = TOKENIZER.get_vocab()["<|mask|>"], TOKENIZER.get_vocab()["<|end|>"]


def made(
    progress: float, seed: int = 0, tokens: int = 6144
) -> list[tuple[list[int], list[int], list[float]]]:
    """Rows of noised ids, ids and weights."""
    return list(zip(*batch(seed, tokens, progress, encode, mask=MASK, end=END), strict=True))


def encode(text: str) -> list[int]:
    found: list[int] = TOKENIZER.encode(text).ids
    return found


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_rows_are_whole_and_hide_what_counts(stage: int) -> None:
    before = STAGES[stage - 1].until if stage else 0.0
    rows = made(before + 0.01)
    assert len(rows) == 6144 // STAGES[stage].length
    for noised, ids, weights in rows:
        assert len(noised) == len(ids) == len(weights) == STAGES[stage].length
        assert MASK not in ids
        for seen, token, weight in zip(noised, ids, weights, strict=True):
            assert seen == (MASK if weight else token)
            assert 0 <= weight <= 1
        assert max(weights) > 0 or END not in ids  # a short row of sums may hide nothing
    assert rows == made(before + 0.01)
    assert rows != made(before + 0.01, seed=1)


def test_questions_are_never_hidden_and_no_sum_is_held_out() -> None:
    sums = 0
    for progress in (0.0, 0.3, 0.6, 0.95):
        for noised, ids, _ in made(progress):
            text = TOKENIZER.decode(ids, skip_special_tokens=False)
            asks = re.search(r"(Question: .*Answer:)|(<.user.>.*<.assistant.>)", text)
            if asks:
                question = encode(asks[0])
                assert noised[: len(question)] == question
            for left, sign, right in re.findall(r"(\d+)([-+*/])(\d+)=", text):
                sums += 1
                assert not is_held_out(Sum(int(left), sign, int(right))), text
    assert sums > 500


def test_blocks_of_all_sizes_are_met() -> None:
    hidden = set()
    for noised, _, weights in made(0.6, tokens=60_000):
        near = [place for place, weight in enumerate(weights) if weight == 1]
        far = [place for place, weight in enumerate(weights) if 0 < weight < 0.5]
        assert all(noised[place] == MASK for place in (*near, *far))
        hidden.add(len(near))
    assert {1, 2, 4, 8, 16} <= hidden
    assert masked.BLOCKS[-1] == 32  # that of `Denoising`


def test_the_two_models_share_their_tokens() -> None:
    small = Tokenizer.from_file(str(MODEL / "tokenizer.json")).get_vocab()
    assert TOKENIZER.get_vocab() == small | {"<|mask|>": len(small)}
