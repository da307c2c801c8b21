"""Texts made of pieces: their tokens are those of the whole text, whatever the seams do."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workbench.engines.pieces import SEAMS, Pieces, PieceTokenizer
from workbench.tiny import MODEL

TEXTS = [
    Pieces(["Q: is 2 even? A: True\n", "Q: is 3 even? A: False\n", "Q: is 4 even? A:"]),
    Pieces(["Q: is 3 even? A: False\n", "Q: is 4 even? A:"]),
    Pieces(["Q: is 4 even? A:"]),
    Pieces(["see", "saw ", " under", "\n", "\n", "stand"]),
    Pieces(["12", "34"]),
    Pieces(["", "a", ""]),
]


@pytest.fixture(scope="module")
def embedded() -> Any:
    return AutoTokenizer.from_pretrained(str(MODEL))


def bytes_tokenizer(template: str, merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(a + b for a, b in merges), "<s>", "</s>"]
    vocab = {word: index for index, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [(name, vocab[name]) for name in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_a_text_of_pieces_is_a_text() -> None:
    text = Pieces(["a", "b"])
    assert text == "ab"
    known: dict[str, int] = {text: 1}
    assert known["ab"] == 1
    assert text.pieces == ("a", "b")


def test_same_tokens_as_the_whole_text(embedded: Any) -> None:
    tokens = PieceTokenizer(embedded)
    assert tokens(TEXTS) == embedded([*map(str, TEXTS)]).input_ids
    assert tokens(TEXTS[:1]) == embedded([str(TEXTS[0])]).input_ids


@pytest.mark.parametrize("template", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def test_what_the_tokenizer_adds_is_there_once(template: str) -> None:
    made = bytes_tokenizer(template, [("1", "2"), ("e", "e"), ("2", "3")])
    assert PieceTokenizer(made)(TEXTS) == made([*map(str, TEXTS)]).input_ids


def test_a_token_over_a_seam_is_found() -> None:
    made = bytes_tokenizer("$A", [("2", "3")])
    tokens = PieceTokenizer(made)
    assert tokens([Pieces(["12", "34"])]) == made(["1234"]).input_ids
    assert len(made("1234").input_ids) == 3
    assert tokens([Pieces(["12", "4"])]) == made(["124"]).input_ids


def test_known_pieces_are_not_tokenised_again(embedded: Any) -> None:
    asked = []

    class Counting:
        def __call__(self, texts: list[str], **options: Any) -> Any:
            asked.extend(texts)
            return embedded(texts, **options)

    tokens = PieceTokenizer(Counting())
    tokens(TEXTS[:1])
    asked.clear()
    tokens(TEXTS[:3])
    assert not asked
    tokens([Pieces([TEXTS[0].pieces[0], TEXTS[0].pieces[2]])])
    assert len(asked) == 1  # the seam that is new


def test_what_is_remembered_has_an_end(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SEAMS > 4 * 256**2
    monkeypatch.setattr("workbench.engines.pieces.SEAMS", 2)
    tokens = PieceTokenizer(embedded)
    for _ in range(3):
        assert tokens(TEXTS) == embedded([*map(str, TEXTS)]).input_ids
