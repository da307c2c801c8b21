"""Segmented prompts: their tokens are those of the whole text, whatever the seams do."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workbench.engines.tokens import SEAMS, LabelTree, SegmentedPrompt, SegmentTokenizer
from workbench.errors import InputError
from workbench.tiny import MODEL

TEXTS = [
    SegmentedPrompt(["Q: is 2 even? A: True\n", "Q: is 3 even? A: False\n", "Q: is 4 even? A:"]),
    SegmentedPrompt(["Q: is 3 even? A: False\n", "Q: is 4 even? A:"]),
    SegmentedPrompt(["Q: is 4 even? A:"]),
    SegmentedPrompt(["see", "saw ", " under", "\n", "\n", "stand"]),
    SegmentedPrompt(["12", "34"]),
    SegmentedPrompt(["", "a", ""]),
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


def test_a_segmented_prompt_is_a_text() -> None:
    text = SegmentedPrompt(["a", "b"])
    assert text == "ab"
    known: dict[str, int] = {text: 1}
    assert known["ab"] == 1
    assert text.segments == ("a", "b")


def test_same_tokens_as_the_whole_text(embedded: Any) -> None:
    tokens = SegmentTokenizer(embedded)
    assert tokens(TEXTS) == embedded([*map(str, TEXTS)]).input_ids
    assert tokens(TEXTS[:1]) == embedded([str(TEXTS[0])]).input_ids


@pytest.mark.parametrize("template", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def test_what_the_tokenizer_adds_is_there_once(template: str) -> None:
    made = bytes_tokenizer(template, [("1", "2"), ("e", "e"), ("2", "3")])
    assert SegmentTokenizer(made)(TEXTS) == made([*map(str, TEXTS)]).input_ids


def test_a_token_over_a_seam_is_found() -> None:
    made = bytes_tokenizer("$A", [("2", "3")])
    tokens = SegmentTokenizer(made)
    assert tokens([SegmentedPrompt(["12", "34"])]) == made(["1234"]).input_ids
    assert len(made("1234").input_ids) == 3
    assert tokens([SegmentedPrompt(["12", "4"])]) == made(["124"]).input_ids


def test_known_segments_are_not_tokenised_again(embedded: Any) -> None:
    asked = []

    class Counting:
        def __call__(self, texts: list[str], **options: Any) -> Any:
            asked.extend(texts)
            return embedded(texts, **options)

    tokens = SegmentTokenizer(Counting())
    tokens(TEXTS[:1])
    asked.clear()
    tokens(TEXTS[:3])
    assert not asked
    tokens([SegmentedPrompt([TEXTS[0].segments[0], TEXTS[0].segments[2]])])
    assert len(asked) == 1  # the seam that is new


def test_what_is_remembered_has_an_end(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SEAMS > 4 * 256**2
    monkeypatch.setattr("workbench.engines.tokens.SEAMS", 2)
    tokens = SegmentTokenizer(embedded)
    for _ in range(3):
        assert tokens(TEXTS) == embedded([*map(str, TEXTS)]).input_ids


def test_shared_beginnings_are_one_node() -> None:
    tree = LabelTree.build(["ab", "ac", "a", "d"], [[1, 2], [1, 3], [1], [4]], width=128)
    assert [(node.prefix, node.children) for node in tree.nodes] == [((), (1, 4)), ((1,), (2, 3))]
    assert tree.depth == 2
    half = math.log(0.5)
    scores = {((), 1): half, ((), 4): half, ((1,), 2): half, ((1,), 3): 2 * half}
    assert tree.total(scores) == (2 * half, 3 * half, half, half)


def test_wide_nodes_are_split() -> None:
    tree = LabelTree.build([str(i) for i in range(300)], [[i] for i in range(300)], width=128)
    assert [len(node.children) for node in tree.nodes] == [128, 128, 44]


def test_labels_without_tokens_or_with_the_same_ones() -> None:
    with pytest.raises(InputError, match="no tokens"):
        LabelTree.build(["x"], [[]], 128)
    with pytest.raises(InputError, match="'x' and 'y' have the same tokens"):
        LabelTree.build(["x", "y"], [[1], [1]], 128)
