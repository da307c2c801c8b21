"""Labels per prompt, tokens and whole texts: exact in every engine, each prefix computed once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from workbench import open_engine
from workbench.engines.base import BaseEngine
from workbench.engines.continuations import node_scores
from workbench.engines.scoring import rolled
from workbench.engines.tokens import LabelTree, Node
from workbench.engines.transformers import TransformersEngine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.scores import LabelScores
from workbench.serving import Server
from workbench.store import Store, load
from workbench.tiny import MODEL
from workbench.types import LabelRow

# One long prompt (several cache blocks) beside short ones; labels of 1 to 40 tokens.
PROMPTS = ["The cat sat on the mat. " * 12 + "Then", "Once upon a time there was", "Tom has 3"]
LABELS = [
    [" the dog ran away with the ball and the cat", " she said hello to the man", " blue"],
    [" lived", " a king who died in the big castle of his father and mother, far away"],
    [" apples", " had 12 pears and an orange in his basket", " is", "  not", " 7"],
]
LONG = " and so they all went home to eat" * 6  # more tokens than a block of the cache
FEW = [" True", " False"]


@pytest.fixture(scope="module")
def baseline() -> Iterator[TransformersEngine]:
    with TransformersEngine(None, None, "test", {"batch_size": 4}) as engine:
        yield engine


@pytest.fixture(scope="module")
def truth(baseline: TransformersEngine) -> Callable[[Sequence[int], Sequence[int]], list[float]]:
    """Log-probabilities of tokens after tokens, from one plain forward of the model."""
    import torch

    def score(before: Sequence[int], after: Sequence[int]) -> list[float]:
        with torch.inference_mode():
            logits = baseline._model(torch.tensor([[*before, *after]])).logits[0].double()
        rows = logits[len(before) - 1 : -1].log_softmax(-1)
        return [float(row[token]) for row, token in zip(rows, after, strict=True)]

    return score


@pytest.fixture(params=["vllm", "transformers"])
def engine(request: pytest.FixtureRequest) -> BaseEngine:
    name = {"vllm": "plain", "transformers": "baseline"}[request.param]
    found: BaseEngine = request.getfixturevalue(name)
    return found


def ids_of(engine: Any, text: str, *, special: bool = False) -> list[int]:
    return list(engine.tokenizer(text, add_special_tokens=special).input_ids)


def assert_true(engine: Any, scores: LabelScores, truth: Any) -> None:
    for index, (prompt, labels) in enumerate(zip(PROMPTS, LABELS, strict=True)):
        before = ids_of(engine, prompt, special=True)
        for place, label in enumerate(labels):
            after = ids_of(engine, label)
            assert scores.logprobs[index, place] == pytest.approx(
                sum(truth(before, after)), abs=1e-4
            )
            if scores.tokens is not None:
                assert scores.tokens[index, place] == len(after)


def test_labels_of_each_prompt(engine: BaseEngine, truth: Any) -> None:
    scores = engine.label_logprobs(PROMPTS, LABELS)
    assert scores.logprobs.shape == (3, 5)
    assert_true(engine, scores, truth)
    there = np.array([[place < len(own) for place in range(5)] for own in LABELS])
    assert (np.isfinite(scores.logprobs) == there).all()
    assert not scores.missing.any()
    assert (scores.upper == scores.logprobs).all()
    assert [scores.labels_of(i) for i in range(3)] == [tuple(own) for own in LABELS]
    assert [*scores.frame()] == [0, 1, 2, 3, 4]
    assert "up to 5 labels after 3 prompts" in repr(scores)


@pytest.mark.parametrize("kind", [tuple, np.array, iter])
def test_lists_of_labels_may_be_of_any_kind(plain: VLLMEngine, kind: Any) -> None:
    scores = plain.label_logprobs(PROMPTS[:2], [kind(LABELS[0]), kind(LABELS[1])])
    assert scores.labels == (tuple(LABELS[0]), tuple(LABELS[1]))
    one = plain.label_logprobs(PROMPTS[:1], kind(LABELS[0]))
    assert one.labels == tuple(LABELS[0])
    assert one.logprobs[0] == pytest.approx(scores.logprobs[0], abs=1e-4)


def test_a_list_of_labels_is_for_all_prompts(plain: VLLMEngine) -> None:
    scores = plain.label_logprobs(PROMPTS, FEW)
    again = plain.label_logprobs(PROMPTS, [FEW, FEW, FEW])
    assert scores.labels == tuple(FEW)
    assert (scores.logprobs == again.logprobs).all()


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([FEW], "1 lists for 2 prompts"),
        ([FEW, [" a", " a"]], "' a' is given twice"),
        ([FEW, []], "non-empty list"),
        ([FEW, " a"], "labels"),
        ([[" a", 3], FEW], "label 3"),
        ([], "non-empty list"),
        ([" a", FEW], "must be a non-empty text"),
    ],
)
def test_wrong_labels_are_named(plain: VLLMEngine, labels: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        plain.label_logprobs(["a", "b"], labels)


def test_labels_that_the_cache_holds_are_computed(plain: VLLMEngine, truth: Any) -> None:
    """Labels that share more than a block beyond the prompt, and labels that were asked before."""
    labels = [LONG, LONG + " too", LONG + " or not"]
    assert len(ids_of(plain, LONG)) > 32
    for _ in range(2):
        scores = plain.label_logprobs(["Tom has 3"], labels)
        before = ids_of(plain, "Tom has 3", special=True)
        expected = [sum(truth(before, ids_of(plain, label))) for label in labels]
        assert scores.logprobs[0] == pytest.approx(expected, abs=1e-3)


def test_a_prompt_is_computed_once(baseline: TransformersEngine, plain: VLLMEngine) -> None:
    prompt = "A new prompt that no test has. " * 30
    size = len(ids_of(plain, prompt, special=True))
    labels = [[f" the {x} dog ran away with the ball" for x in ("big", "small", "old", "red")]]
    before = plain.usage
    plain.label_logprobs([prompt], labels)
    used = plain.usage.since(before)
    assert used.prompt_tokens > 4 * size
    assert used.cached_tokens is not None
    assert used.cached_tokens > 0.8 * 3 * size
    seen: list[int] = []
    forward = baseline._model.forward

    def counted(**more: Any) -> Any:
        seen.append(more["input_ids"].numel())
        return forward(**more)

    baseline._model.forward = counted
    try:
        baseline.label_logprobs([prompt], labels)
    finally:
        baseline._model.forward = forward
    assert seen[0] == size
    assert sum(seen) < 1.5 * size


def test_three_normalisations(plain: VLLMEngine) -> None:
    scores = plain.label_logprobs(PROMPTS, LABELS)
    there = scores.logprobs > -math.inf
    sizes = {"sum": 1, "token": len(ids_of(plain, LABELS[1][1])), "byte": len(LABELS[1][1])}
    for unit, size in sizes.items():
        found = scores.per(unit)  # type: ignore[arg-type]
        assert found[1, 1] == pytest.approx(scores.logprobs[1, 1] / size)
        assert (np.isfinite(found) == there).all()
    accents = plain.label_logprobs(["a"], [" é", " e"])
    assert accents.per("byte")[0, 0] == pytest.approx(accents.logprobs[0, 0] / 3)
    with pytest.raises(InputError, match=r"unit='word'.*sum.*token.*byte"):
        scores.per("word")  # type: ignore[arg-type]


def test_scores_are_stored_with_their_lengths(kept: VLLMEngine, tmp_path: Path) -> None:
    first = kept.label_logprobs(PROMPTS, LABELS)
    again = kept.label_logprobs(PROMPTS, LABELS)
    assert kept.usage.from_store == 3
    assert (again.logprobs == first.logprobs).all()
    assert (again.per("token") == first.per("token")).all()
    texts = kept.score_texts(PROMPTS)
    assert (kept.score_texts(PROMPTS).logprobs == texts.logprobs).all()
    assert kept.usage.from_store == 6


def test_rows_of_earlier_versions_have_no_lengths() -> None:
    row = load([-1.5, -2.5])
    assert isinstance(row, LabelRow)
    array = np.array([row.logprobs])
    unknown = np.zeros(array.shape, int)
    scores = LabelScores(array, array, array > 0, (None,), (" a", " bc"), unknown)
    assert scores.per("byte").tolist() == [[-0.75, -2.5 / 3]]
    with pytest.raises(InputError, match="token counts are unknown"):
        scores.per("token")


def test_tokens_after_tokens(engine: Any, truth: Any) -> None:
    pairs = [
        (ids_of(engine, prompt, special=True), ids_of(engine, label))
        for prompt, labels in zip(PROMPTS, LABELS, strict=True)
        for label in labels
    ]
    for pair, one in zip(pairs, engine.score_tokens(pairs), strict=True):
        assert one.logprobs == pytest.approx(truth(*pair), abs=1e-4)
        assert one.total == pytest.approx(sum(one.logprobs))
        assert not one.greedy or len(pair[1]) < 3


def test_greedy_continuations_are_known(engine: Any) -> None:
    answers = engine.generate(PROMPTS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        before, after = ids_of(engine, prompt, special=True), list(answer.token_ids)
        for size in (1, 2, len(after)):
            other = [*after[: size - 1], after[size - 1] + 1]
            asked = [(before, after[:size]), (before, other), (before, [other[-1], *after[:size]])]
            assert [one.greedy for one in engine.score_tokens(asked)] == [True, False, False]


@pytest.mark.parametrize("pair", [([], [1]), ([1], []), (["a"], [1]), ([1], [-1]), 3, ([1],)])
def test_pairs_are_ids(plain: VLLMEngine, pair: Any) -> None:
    with pytest.raises(InputError, match="token ids"):
        plain.score_tokens([pair])


def test_what_does_not_fit_fails_alone(engine: Any) -> None:
    context = engine.info.context_length
    pairs = [([1] * context, [2]), ([1], [2]), ([1] * (context - 3), [2, 2, 2]), ([1], [10**6])]
    found = engine.score_tokens(pairs, errors="return")
    assert [one.error is None for one in found] == [False, True, True, False]
    assert "context" in found[0].error
    assert "embeddings" in found[3].error
    assert found[0].total == -math.inf
    with pytest.raises(EngineError, match="2 of 4"):
        engine.score_tokens(pairs)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_windows_are_those_of_the_harness(size: int) -> None:
    for length in range(1, 25):
        tokens = [*range(100, 100 + length)]
        theirs = map(make_disjoint_window, get_rolling_token_windows(tokens, 7, size, 1))
        assert [*rolled([7], tokens, size)] == [*theirs]


def test_texts(engine: Any, truth: Any) -> None:
    longest = "The dog ran to the big house and ate. " * 260
    texts = [*PROMPTS, longest, "é"]
    scores = engine.score_texts(texts)
    first = engine.tokenizer.eos_token_id  # the embedded model has no token for the beginning
    tokens = [ids_of(engine, text) for text in texts]
    assert len(tokens[3]) > engine.info.context_length
    for index, ids in enumerate(tokens):
        size = engine.info.context_length - 2
        windows = get_rolling_token_windows(ids, first, size, 1)
        expected = [score for pair in map(make_disjoint_window, windows) for score in truth(*pair)]
        assert scores.token_logprobs[index] == pytest.approx(expected, abs=1e-3)
        assert scores.logprobs[index] == pytest.approx(sum(expected), rel=1e-5)
    assert scores.tokens.tolist() == [*map(len, tokens)]
    assert scores.bytes.tolist() == [len(text.encode()) for text in texts]
    total = scores.logprobs.sum()
    assert scores.perplexity == pytest.approx(math.exp(-total / scores.tokens.sum()))
    assert scores.bits_per_byte == pytest.approx(-total / scores.bytes.sum() / math.log(2))
    assert [*scores.frame()] == ["logprob", "tokens", "bytes", "perplexity", "bits_per_byte"]
    assert repr(scores).startswith("5 texts: perplexity ")


def test_texts_that_fail(engine: Any) -> None:
    scores = engine.score_texts(["a cat", "\ud800"], errors="return")
    assert scores.errors[0] is None
    assert "not valid text" in scores.errors[1]
    assert scores.logprobs[1] == -math.inf
    assert scores.frame()["logprob"].isna().tolist() == [False, True]
    alone = engine.score_texts(["a cat"])
    assert scores.perplexity == pytest.approx(alone.perplexity)
    with pytest.raises(EngineError, match="1 of 2"):
        engine.score_texts(["a cat", "\ud800"])
    with pytest.raises(InputError, match="must be a text"):
        engine.score_texts([[{"role": "user", "content": "a"}]])
    all_failed = engine.score_texts(["\ud800"], errors="return")
    assert repr(all_failed) == "1 texts, 1 failed"
    with pytest.raises(InputError, match="all 1 texts failed"):
        _ = all_failed.perplexity


def test_a_diffusion_model_scores_labels_per_prompt() -> None:
    labels = [[" a", " three"], [" b"], [" c", " d", " the cat"]]
    with open_engine(engine="diffusion", store=None) as engine:
        scores = engine.label_logprobs(PROMPTS, labels)
        for index, own in enumerate(labels):
            alone = engine.label_logprobs([PROMPTS[index]], own).logprobs[0]
            assert scores.logprobs[index, : len(own)] == pytest.approx(alone, abs=1e-4)
            assert (scores.logprobs[index, len(own) :] == -math.inf).all()
        assert scores.tokens is not None
        assert (scores.tokens[1] > 0).tolist() == [True, False, False]
        with pytest.raises(InputError, match="scores labels only"):
            engine.score_texts(["a"])
        with pytest.raises(InputError, match="scores labels only"):
            engine.score_tokens([([1], [2])])


def test_a_server_scores_labels_per_prompt(server: Server, plain: VLLMEngine) -> None:
    with open_engine(engine="remote", base_url=server.url, store=None) as remote:
        found = remote.label_logprobs(PROMPTS, LABELS)
        with pytest.raises(InputError, match="scores labels only"):
            remote.score_texts(["a"])
    scores = plain.label_logprobs(PROMPTS, LABELS)
    there = np.isfinite(scores.logprobs)
    assert (np.isfinite(found.logprobs) == there).all()
    assert found.logprobs[there] == pytest.approx(scores.logprobs[there], abs=1e-3)
    assert found.tokens is not None
    assert (found.tokens == scores.tokens).all()


def test_long_labels_are_one_request_each() -> None:
    tokens = [[1, 2, 3, 4, 5, 6], [1, 7, 8, 9, 10, 11]]
    tree = LabelTree.build(["x", "y"], tokens, 128, chains=True)
    assert tree.nodes == tuple(Node((), tuple(one), chain=True) for one in tokens)
    assert tree.nodes[0].given == (1, 2, 3, 4, 5)
    assert tree.nodes[0].keys[:2] == [((), 1), ((1,), 2)]
    short = LabelTree.build(["x", "y"], [[1, 2], [1, 3]], 128, chains=True)
    assert not any(node.chain for node in short.nodes)


def config_of(kind: str) -> Any:
    """Small models with a window, and with a memory that is not keys and values."""
    from transformers import Gemma3TextConfig, MambaConfig

    if kind == "window":
        return Gemma3TextConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=8,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=6,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )  # fmt: skip
    return MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)


@pytest.mark.parametrize("kind", ["window", "state"])
def test_other_kinds_of_memory(kind: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(kind)).eval()
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22]]
    nodes = [
        Node((), (30, 31, 32, 33, 34, 35, 36, 37), chain=True),
        Node((), (40, 41), chain=True),
        Node((50, 51), (52, 53)),
        Node((), (1, 2, 3)),
    ]
    groups = [[(at, node, ids) for node in nodes] for at, ids in enumerate(prompts)]
    found = node_scores(model, groups)
    assert [(one.index, one.node) for one in found] == [*itertools.product((0, 1), nodes)]
    for one in found:
        ids = [*prompts[one.index], *one.node.given]
        with torch.inference_mode():
            rows = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        last = len(prompts[one.index]) - 1
        children = one.node.children
        at = [*range(last, last + len(children))] if one.node.chain else [-1] * len(children)
        expected = [float(rows[i, child]) for i, child in zip(at, children, strict=True)]
        assert one.scores == pytest.approx(expected, abs=1e-4)
        assert one.greedy == all(
            int(rows[i].argmax()) == c for i, c in zip(at, children, strict=True)
        )


def test_a_store_is_shared_by_engines_of_the_same_weights(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.sqlite")
    with VLLMEngine(str(MODEL), store, "test", {}) as engine:
        engine.label_logprobs(PROMPTS, LABELS)
        assert engine.label_logprobs(PROMPTS[:1], LABELS[:1]).tokens is not None
        assert engine.usage.from_store == 1  # the same labels as one list for all
