"""The masked-diffusion engine: as published, and each row as if it were alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import llada as published
from tools.training.memoriser import MEMORISER, pairs
from workbench import Sampling, open_engine
from workbench.engines.diffusion import Denoising, DiffusionEngine, Row, unavailable
from workbench.engines.diffusion.denoising import most_confident, propose
from workbench.engines.diffusion.likelihood import EXACT, maskings
from workbench.engines.diffusion.network import KVCache, Network
from workbench.errors import EngineError, InputError
from workbench.evaluation import evaluate
from workbench.serving import serve
from workbench.store import Store
from workbench.tasks import WordProblems
from workbench.tiny import MODEL as TINY

if reason := unavailable():
    pytest.skip(f"needs PyTorch and transformers: {reason}", allow_module_level=True)

import torch

PROMPTS = [f"Question {i}: {'how many ' * (i % 5)}apples?" for i in range(8)]
GREEDY = Sampling(max_tokens=24, ignore_eos=True)
HOT = Sampling(max_tokens=21, temperature=0.8, top_p=0.95, seed=5, ignore_eos=True)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"block_length": 8},
    {"block_length": 8, "steps": 7},
    {"block_length": 8, "threshold": 0.03},
    {"block_length": 8, "remasking": "random"},
    {"block_length": 8, "cfg_scale": 0.7},
    {"block_length": 8, "cache": "prefix"},
    {"block_length": 8, "cache": "dual", "threshold": 0.03},
    {"block_length": 8, "cache": "dual", "cfg_scale": 0.7},
)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    return published.weights()


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any]) -> Path:
    return published.write(tmp_path_factory.mktemp("llada") / "model", tensors)


@pytest.fixture(scope="module")
def opens(llada: Path) -> Callable[..., DiffusionEngine]:
    def make(model: Path | None = llada, store: Store | None = None, **options: Any) -> Any:
        return DiffusionEngine(str(model) if model else None, store, "test", options)

    return make


@pytest.fixture(scope="module")
def engine(opens: Callable[..., DiffusionEngine]) -> Iterator[DiffusionEngine]:
    with opens(block_length=8) as opened:
        yield opened


def run(engine: DiffusionEngine, rows: Sequence[Row], slots: int) -> list[list[int]]:
    """Denoise rows to their end; the tokens of each answer."""
    denoiser = engine.denoiser(slots)
    for row in rows:
        denoiser.add(row)
    while denoiser.live or denoiser.waiting:
        denoiser.step()
    return [list(row.completion().token_ids or ()) for row in rows]


def test_logits_are_those_published(engine: DiffusionEngine, tensors: dict[str, Any]) -> None:
    network = engine.network
    assert network is not None
    rows = [torch.randint(1, 500, (size,)) for size in (40, 17, 3)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=network.mask)
    valid = torch.arange(40) < torch.tensor([[40], [17], [3]])
    with torch.inference_mode():
        found = network.logits(network.hidden(ids, valid, torch.arange(40)[None]))
        blind = network.logits(network.hidden(ids, valid | True, torch.arange(40)[None]))
    assert max(published.difference(padding) for padding in (0, 9)) < 1e-5
    for row, given in enumerate(rows):
        right = published.logits(tensors, given)
        assert (found[row, : len(given)] - right).abs().max() < 1e-5 * right.abs().max()
        assert row == 0 or (blind[row, : len(given)] - right).abs().max() > 1e-2  # the mask matters


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"steps": 6},
        {"steps": 12},
        {"threshold": 0.05},
        {"threshold": 1.0},
        {"cfg_scale": 1.5, "steps": 6},
        {"threshold": 0.05, "cfg_scale": 0.5},
    ],
    ids=str,
)
def test_answers_are_those_of_the_published_sampler(
    engine: DiffusionEngine, tensors: dict[str, Any], settings: dict[str, Any]
) -> None:
    for text in PROMPTS[:3]:
        prompt = engine.encode(text)
        row = engine.row(prompt, GREEDY, Denoising(block_length=8, **settings))
        (made,) = run(engine, [row], 1)
        right, forwards = published.denoise(tensors, prompt, 24, 8, **settings)
        assert made == right
        assert row.forwards == forwards


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_batch_answers_as_one_by_one(engine: DiffusionEngine, settings: dict[str, Any]) -> None:
    how = Denoising(**settings)

    def rows() -> list[Row]:
        given = [(engine.encode(text), i) for i, text in enumerate(PROMPTS)]
        return [engine.row(ids, (GREEDY, HOT)[i % 2], how, seed=i) for ids, i in given]

    assert run(engine, rows(), 5) == run(engine, rows(), 1)


def test_each_row_keeps_its_own_settings(engine: DiffusionEngine) -> None:
    def rows() -> list[Row]:
        return [
            engine.row(
                engine.encode(PROMPTS[index % len(PROMPTS)]),
                Sampling(max_tokens=5 + index % 23, temperature=index % 3 / 2, ignore_eos=True),
                Denoising(**SETTINGS[index % len(SETTINGS)]),
                seed=index,
            )
            for index in range(len(SETTINGS) * 2)
        ]

    together = run(engine, rows(), 6)
    assert together == run(engine, rows(), 1)
    assert [len(made) for made in together] == [5 + index % 23 for index in range(len(together))]


def test_a_row_that_joins_late_answers_the_same(engine: DiffusionEngine) -> None:
    ids = [engine.encode(text) for text in PROMPTS[:4]]
    alone = run(engine, [engine.row(i, GREEDY) for i in ids], 1)
    rows, denoiser = [engine.row(i, GREEDY) for i in ids], engine.denoiser(4)
    for row in rows:
        denoiser.add(row)
        for _ in range(3):
            denoiser.step()
    while denoiser.live:
        denoiser.step()
    assert [list(row.completion().token_ids or ()) for row in rows] == alone


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_changes_nothing_where_each_block_takes_one_step(
    engine: DiffusionEngine, cache: Any
) -> None:
    def rows(cache: Any) -> list[Row]:
        how = Denoising(block_length=8, steps=3, cache=cache)
        return [engine.row(engine.encode(text), GREEDY, how) for text in PROMPTS]

    assert run(engine, rows(cache), 4) == run(engine, rows("none"), 4)


def test_a_cache_computes_fewer_tokens(engine: DiffusionEngine) -> None:
    tokens = []
    for cache in ("none", "prefix", "dual"):
        denoiser = engine.denoiser(4)
        for text in PROMPTS[:4]:
            how = Denoising(block_length=8, cache=cache)
            denoiser.add(engine.row(engine.encode(text), GREEDY, how))
        while denoiser.live or denoiser.waiting:
            denoiser.step()
        assert denoiser.counts.committed == 4 * 24
        tokens.append(denoiser.counts.tokens - denoiser.counts.padding)
    assert tokens[0] > 1.5 * tokens[1] > 1.5 * tokens[2]


def test_continuous_batching_leaves_no_slot_idle(engine: DiffusionEngine) -> None:
    lengths = [4, 24] * 8
    rows = [
        engine.row(engine.encode(text), Sampling(max_tokens=size, ignore_eos=True))
        for text, size in zip(PROMPTS * 2, lengths, strict=False)
    ]
    denoiser = engine.denoiser(4)
    for row in rows:
        denoiser.add(row)
    while denoiser.live or denoiser.waiting:
        denoiser.step()
    static = sum(max(lengths[at : at + 4]) for at in range(0, 16, 4))
    assert sum(lengths) / 4 <= denoiser.counts.forwards < 0.75 * static


def test_random_order_is_the_same_again(opens: Callable[..., DiffusionEngine]) -> None:
    with opens(block_length=8, remasking="random") as engine:
        one, two = (engine.generate(PROMPTS[:4], GREEDY) for _ in range(2))
    assert one == two


def test_samples_differ_and_a_seed_repeats_them(engine: DiffusionEngine) -> None:
    sampling = replace(HOT, n=3)
    first, again = (engine.generate(PROMPTS[:2], sampling) for _ in range(2))
    assert first == again
    assert len({sample.token_ids for row in first for sample in row.samples}) == 6
    other = engine.generate(PROMPTS[:2], replace(sampling, seed=6))
    assert other != first


def test_a_stored_answer_is_of_the_same_settings(
    opens: Callable[..., DiffusionEngine], tmp_path: Path
) -> None:
    def ask(**options: Any) -> Any:
        with opens(store=Store(tmp_path / "store.sqlite"), **options) as engine:
            return engine.generate(PROMPTS[:2], GREEDY)

    first, again = ask(block_length=8), ask(block_length=8, batch_size=1)
    assert [row.from_store for row in first + again] == [False, False, True, True]
    assert [row.token_ids for row in first] == [row.token_ids for row in again]
    assert not any(row.from_store for row in ask(block_length=4))


def test_the_masks_name_in_a_prompt_is_plain_text(opens: Callable[..., DiffusionEngine]) -> None:
    with opens(MEMORISER) as engine:
        name = engine.tokenizer.mask_token
        plain, chat = f"a {name} b", [{"role": "user", "content": f"a {name} b"}]
        assert engine.network is not None
        for ids in (engine.encode(plain), engine.encode_chat(chat)):
            assert engine.network.mask not in ids
            assert name in engine.tokenizer.decode(ids)
        assert engine.generate([plain], Sampling(max_tokens=4))[0].error is None
        with pytest.raises(InputError, match="mask token"):
            engine.row([5, engine.network.mask], GREEDY)


def test_the_mask_is_never_written(llada: Path, tmp_path: Path, tensors: dict[str, Any]) -> None:
    loud = dict(tensors)
    loud["model.transformer.ff_out.weight"] = tensors["model.transformer.ff_out.weight"].clone()
    loud["model.transformer.ff_out.weight"][published.MASK] *= 100
    with DiffusionEngine(str(published.write(tmp_path / "m", loud)), None, "test", {}) as engine:
        for how in (Denoising(), Denoising(threshold=0.5)):
            row = engine.row(engine.encode("hello"), GREEDY, how)
            (made,) = run(engine, [row], 1)
            assert len(made) == 24
            assert published.MASK not in made


def test_logits_that_are_not_numbers_fail_their_row_only(
    tmp_path: Path, tensors: dict[str, Any]
) -> None:
    broken = dict(tensors)
    broken["model.transformer.wte.weight"] = tensors["model.transformer.wte.weight"].clone()
    with DiffusionEngine(str(published.write(tmp_path / "m", broken)), None, "test", {}) as engine:
        assert engine.network is not None
        bad = engine.encode("~")[0]
        engine.network.model.model.embed_tokens.weight.data[bad] = torch.nan
        for how in (Denoising(), Denoising(cache="dual")):
            rows = [engine.row(engine.encode(x), GREEDY, how) for x in ("a ~ " * 9, "b c", "d")]
            good = run(engine, [engine.row(engine.encode("d"), GREEDY, how)], 1)
            assert run(engine, rows, 2)[2] == good[0]  # in the slot of the one that failed
            assert "not numbers" in str(rows[0].error)
        scores = engine.label_logprobs(["a ~", "d"], [" x"], errors="return")
        assert "not numbers" in str(scores.errors[0])
        assert np.isfinite(scores.logprobs[1]).all()


def failing(most: int, monkeypatch: pytest.MonkeyPatch, *, at: int = 0) -> None:
    """Memory runs out where a forward has more than `most` rows, from the forward `at` on."""
    real = Network.hidden
    forwards = count()

    def hidden(network: Any, ids: Any, *rest: Any) -> Any:
        if next(forwards) >= at and len(ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(network, ids, *rest)

    monkeypatch.setattr(Network, "hidden", hidden)


@pytest.mark.parametrize("settings", [SETTINGS[1], *SETTINGS[6:8]], ids=str)
@pytest.mark.parametrize("at", [0, 5, 12])
def test_where_memory_runs_out_the_slots_halve_and_no_row_is_lost(
    engine: DiffusionEngine, settings: dict[str, Any], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows() -> list[Row]:
        how, ids = Denoising(**settings), [engine.encode(text) for text in PROMPTS]
        return [engine.row(one, HOT, how, seed=i) for i, one in enumerate(ids)]

    alone = run(engine, rows(), 1)
    failing(2, monkeypatch, at=at)
    mine, denoiser = rows(), engine.denoiser(8)
    for row in mine:
        denoiser.add(row)
    while denoiser.live or denoiser.waiting:
        denoiser.step()
    assert [list(row.completion().token_ids or ()) for row in mine] == alone
    assert denoiser.slots == 2
    assert denoiser.counts.out_of_memory > 0


def test_a_row_that_does_not_fit_alone_fails_with_the_reason(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(0, monkeypatch)
    rows = engine.generate(PROMPTS[:2], GREEDY, errors="return")
    assert all("out of memory" in str(row.error) for row in rows)
    scores = engine.label_logprobs(PROMPTS[:2], [" a", " b"], errors="return")
    assert all("out of memory" in str(error) for error in scores.errors)


def test_labels_are_scored_in_smaller_batches_where_memory_runs_out(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.label_logprobs(PROMPTS[:5], [" a", " three"])
    failing(3, monkeypatch)
    parts = engine.label_logprobs(PROMPTS[:5], [" a", " three"])
    np.testing.assert_allclose(parts.logprobs, whole.logprobs, atol=1e-4)


def test_denoising_that_does_not_end_is_an_error(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.engines.diffusion.row.most_confident", lambda *_: [])
    (row,) = engine.generate(["hello"], GREEDY, errors="return")
    assert "was not filled after 24 steps" in str(row.error)


def test_a_broken_model_is_an_error_of_ours(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(*_: Any) -> Any:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(Network, "hidden", hidden)
    with pytest.raises(EngineError, match="device-side assert"):
        engine.generate(["hello"], GREEDY)
    with pytest.raises(EngineError, match="device-side assert"):
        engine.label_logprobs(["hello"], [" a"])


def test_the_label_of_one_token_has_its_exact_probability(
    engine: DiffusionEngine, tensors: dict[str, Any]
) -> None:
    found = engine.label_logprobs(PROMPTS[:5], [" a", " b", "7"])
    for row, text in enumerate(PROMPTS[:5]):
        ids = torch.tensor([*engine.encode(text), published.MASK])
        right = published.logits(tensors, ids)[-1].double().log_softmax(-1)
        for column, label in enumerate((" a", " b", "7")):
            (token,) = engine.tokenizer(label, add_special_tokens=False).input_ids
            assert found.logprobs[row, column] == pytest.approx(float(right[token]), abs=1e-4)
    assert not found.missing.any()


def bound(tensors: dict[str, Any], prompt: list[int], target: list[int]) -> float:
    """E over k in 1..L and over subsets of k tokens of L/k · Σ log p, written out."""
    total, length = 0.0, len(target)
    for size in range(1, length + 1):
        subsets = list(combinations(range(length), size))
        for places in subsets:
            ids = torch.tensor([*prompt, *target])
            ids[[len(prompt) + place for place in places]] = published.MASK
            found = published.logits(tensors, ids).double().log_softmax(-1)
            each = sum(float(found[len(prompt) + place, target[place]]) for place in places)
            total += each * length / size / len(subsets) / length
    return total


def test_the_label_of_some_tokens_has_the_bound_on_its_probability(
    engine: DiffusionEngine, tensors: dict[str, Any]
) -> None:
    found = engine.label_logprobs(["how many?"], ["xyzq", " a"])
    target = engine.tokenizer("xyzq", add_special_tokens=False).input_ids
    assert 2 <= len(target) <= EXACT
    right = bound(tensors, engine.encode("how many?"), target)
    assert found.logprobs[0, 0] == pytest.approx(right, rel=1e-5)


def test_long_labels_are_estimated_the_same_way_each_time(
    opens: Callable[..., DiffusionEngine],
) -> None:
    label = "qwxyzvkjhgfd"
    with opens(batch_size=3) as one, opens(batch_size=8) as other:
        first = one.label_logprobs(["how many?", "x"], [label]).logprobs
        second = other.label_logprobs(["x", "how many?"], [label]).logprobs[::-1]
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_masks_are_drawn_without_bias() -> None:
    """Where all log-probabilities are −1 the bound is −L, however many tokens are masked."""
    for length in (1, 3, EXACT, EXACT + 1, 40):
        found = sum(len(m.places) * m.weight for m in maskings([1, 2], list(range(length))))
        assert found == pytest.approx(length)
    share = np.zeros(40)
    for prompt in range(200):
        for masking in maskings([prompt], list(range(40))):
            share[list(masking.places)] += masking.weight / 200
    assert share == pytest.approx(1, abs=0.1)


def test_what_a_step_commits() -> None:
    assert most_confident([0.1, 0.9, 0.5, 0.9], 2, 0.0) == [1, 3]
    assert most_confident([0.1, 0.9, 0.5, 0.9], None, 0.5) == [1, 3, 2]
    assert most_confident([0.1, 0.2], None, 0.5) == [1]
    assert most_confident([0.3, 0.3, 0.3], 1, 0.0) == [0]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2, 9.0]).log().repeat(20_000, 1)
    logits[:, 3] = 9.0  # the mask: likely, and never drawn
    sampling = Sampling(temperature=1.0)
    made = propose(logits, 3, sampling, "low_confidence", torch.Generator().manual_seed(1))
    share = np.bincount(made.tokens, minlength=4) / 20_000
    np.testing.assert_allclose(share, [0.5, 0.3, 0.2, 0], atol=0.012)
    cut = replace(sampling, top_p=0.6)
    made = propose(logits, 3, cut, "low_confidence", torch.Generator().manual_seed(1))
    assert set(made.tokens) == {0, 1}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"steps": 4, "threshold": 0.9}, "exclude each other"),
        ({"threshold": 0.9, "remasking": "random"}, "low_confidence"),
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"block_length": 0}, "block_length=0"),
        ({"block_length": 2.5}, "block_length=2.5"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"threshold": False}, "threshold=False"),
        ({"cfg_scale": -1}, "cfg_scale=-1"),
        ({"cfg_scale": "a"}, "cfg_scale='a'"),
        ({"remasking": "best"}, "remasking='best'"),
        ({"cache": "duall"}, "cache='duall'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Denoising(**settings)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"treshold": 0.9}, "did you mean 'threshold'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "auto"}, "batch_size='auto'"),
        ({"max_model_len": 9999}, "max_model_len=9999"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"load_format": "dumy"}, "load_format='dumy'"),
        ({"mask_token_id": "600"}, "mask_token_id='600'"),
        ({"mask_token_id": 10**6}, "from 0 to 639"),
        ({"dtype": "float33"}, "dtype"),
    ],
)
def test_wrong_options_are_refused(
    opens: Callable[..., DiffusionEngine], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        opens(**options)


def test_too_few_steps_for_the_blocks_are_refused(engine: DiffusionEngine) -> None:
    with pytest.raises(InputError, match="use at least 3"):
        engine.row([1, 2], GREEDY, Denoising(block_length=8, steps=2))


def test_a_length_that_is_no_multiple_of_the_block_is_answered_in_full(
    engine: DiffusionEngine,
) -> None:
    for size in (1, 7, 9, 20):
        row = engine.row([5, 6], Sampling(max_tokens=size, ignore_eos=True))
        (made,) = run(engine, [row], 1)
        assert (len(made), row.forwards) == (size, size)


def test_structured_output_is_refused(engine: DiffusionEngine) -> None:
    with pytest.raises(InputError, match="regex"):
        engine.generate(["a"], Sampling(regex="a+"))


def test_what_does_not_fit_the_context_fails_alone(engine: DiffusionEngine) -> None:
    long = "how many apples are there? " * 60
    rows = engine.generate([long, "hello"], Sampling(max_tokens=8), errors="return")
    assert "context" in str(rows[0].error)
    assert rows[1].error is None
    near = "7" * 250  # a token each; the context holds 256
    (row,) = engine.generate([near], replace(GREEDY, max_tokens=100))
    assert (row.completion_tokens, row.finish_reason) == (6, "length")


def test_a_checkpoint_must_be_whole_and_of_its_kind(
    tmp_path: Path, tensors: dict[str, Any], opens: Callable[..., DiffusionEngine]
) -> None:
    first = "model.transformer.blocks.1.attn_out.weight"
    lacking = {name: tensor for name, tensor in tensors.items() if name != first}
    extra = tensors | {"model.transformer.blocks.0.q_proj.bias": torch.zeros(64)}
    small = tensors | {first: torch.zeros(64, 32)}
    for name, given, config, said in (
        ("lacking", lacking, {}, r"lacks model\.layers\.1\.self_attn\.o_proj\.weight"),
        ("extra", extra, {}, r"has, beyond the model"),
        ("small", small, {}, r"model\.layers\.1\.self_attn\.o_proj\.weight"),
        ("biased", tensors, {"include_bias": True}, "include_bias=True"),
        ("sizeless", tensors, {"d_model": None}, "hidden_size"),
        ("maskless", tensors, {"mask_token_id": None}, "set mask_token_id"),
    ):
        with pytest.raises(InputError, match=said):
            opens(published.write(tmp_path / name, given, **config))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_broken_file_is_reported(
    name: str, llada: Path, tmp_path: Path, opens: Callable[..., DiffusionEngine]
) -> None:
    folder = shutil.copytree(llada, tmp_path / "m")
    (folder / name).write_bytes((folder / name).read_bytes()[:200])
    with pytest.raises(InputError, match=rf"{name}(:\d+:| .*cut off)"):
        opens(folder)


def test_a_pickle_is_not_read(
    tmp_path: Path, tensors: dict[str, Any], opens: Callable[..., DiffusionEngine]
) -> None:
    folder = published.write(tmp_path / "m", tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        opens(folder)


def test_a_causal_model_is_refused(opens: Callable[..., DiffusionEngine]) -> None:
    with pytest.raises(InputError, match="is_causal"):
        opens(TINY)


def test_causal_attention_is_found_at_load(
    opens: Callable[..., DiffusionEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(network: Any, ids: Any, valid: Any, positions: Any) -> Any:
        """As where a mask is ignored and the model falls back to causal attention."""
        ahead = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        return network.model.model(
            input_ids=ids, attention_mask=ahead[None, None], position_ids=positions
        ).last_hidden_state

    monkeypatch.setattr(Network, "hidden", blind)
    with pytest.raises(InputError, match="attention is causal"):
        opens()


def test_what_is_no_token_or_no_text_is_refused(engine: DiffusionEngine) -> None:
    wrong: list[Any] = [[10**6], [-5], ["a"], [True]]
    for ids in wrong:
        with pytest.raises(InputError, match="token id"):
            engine.row(ids, GREEDY)
    with pytest.raises(InputError, match="logprobs=9999"):
        engine.row([1], replace(GREEDY, logprobs=9999))
    fine, half = engine.generate(["a", "b\ud800"], GREEDY, errors="return")
    assert fine.error is None
    assert "not valid text" in str(half.error)
    with pytest.raises(InputError, match="not valid text"):
        engine.label_logprobs(["a"], ["x", "\udfff"])


def test_a_lone_row_is_tried_with_less_before_it_fails(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache makes room for all slots at once: with one row that may be what does not fit."""
    real = KVCache.reserve

    def reserve(cache: KVCache, width: int) -> None:
        if cache.slots > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(cache, width)

    monkeypatch.setattr(KVCache, "reserve", reserve)
    how = Denoising(block_length=8, cache="dual")
    row, denoiser = engine.row(engine.encode("hello"), GREEDY, how), engine.denoiser(8)
    denoiser.add(row)
    while denoiser.live or denoiser.waiting:
        denoiser.step()
    assert (row.error, denoiser.slots) == (None, 1)


def test_the_room_that_a_context_leaves_is_part_of_a_stored_answer(
    opens: Callable[..., DiffusionEngine], tmp_path: Path
) -> None:
    lengths = []
    for options in ({"max_model_len": 16}, {}):
        with opens(store=Store(tmp_path / "store.sqlite"), **options) as engine:
            (row,) = engine.generate(["hello"], GREEDY)
            assert not row.from_store
            lengths.append(row.completion_tokens)
    assert lengths[0] < lengths[1] == 24


def test_random_weights_need_no_checkpoint(
    llada: Path, tmp_path: Path, opens: Callable[..., DiffusionEngine]
) -> None:
    folder = shutil.copytree(llada, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with opens(folder, load_format="dummy") as one, opens(folder, load_format="dummy") as other:
        mine = one.generate(PROMPTS[:2], GREEDY)
        assert [row.completion_tokens for row in mine] == [24, 24]
        assert mine == other.generate(PROMPTS[:2], GREEDY)


def test_stop_texts_and_log_probabilities(engine: DiffusionEngine) -> None:
    (whole,) = engine.generate(["hello"], replace(GREEDY, logprobs=3))
    assert whole.logprobs is not None
    assert whole.token_ids is not None
    assert [one.token_id for one in whole.logprobs] == list(whole.token_ids)
    assert all(one.logprob <= 0 and len(one.top) >= 3 for one in whole.logprobs)
    stop = whole.text[5:8]
    (cut,) = engine.generate(["hello"], replace(GREEDY, stop=(stop,), logprobs=0))
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: cut.completion_tokens]
    assert cut.logprobs is not None
    assert len(cut.logprobs) == cut.completion_tokens < 24


def test_open_engine_knows_it(llada: Path) -> None:
    with open_engine(str(llada), "diffusion", store=None, block_length=4) as engine:
        assert engine.info.engine == "diffusion"
        assert engine.generate(["hello"], Sampling(max_tokens=4))[0].error is None
    with pytest.raises(InputError, match="block_length"):
        open_engine(str(llada), "diffusion", store=None, blok_length=4)


def test_what_is_known_by_heart_comes_back_whole() -> None:
    known = pairs()
    prompts = [prompt for prompt, _ in known]
    exact = {}
    for cache in ("none", "dual"):
        options: dict[str, Any] = {"store": None, "threshold": 0.9, "cache": cache}
        with open_engine(str(MEMORISER), "diffusion", **options) as engine:
            rows = engine.generate(prompts, Sampling(max_tokens=128))
            exact[cache] = sum(
                row.text == answer for row, (_, answer) in zip(rows, known, strict=True)
            )
            assert {row.finish_reason for row in rows} == {"stop"}
    assert exact["none"] == 64
    assert exact["dual"] > 32


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_other_engines_leave_it_alone(engine: str) -> None:
    pytest.importorskip(engine)
    for model in ("workbench-tiny-diffusion", str(MEMORISER)):
        with pytest.raises(InputError, match='use engine="diffusion"'):
            open_engine(model, engine, store=None)
    with pytest.raises(InputError, match='use engine="diffusion"'):
        serve(str(MEMORISER))


def test_the_embedded_models_are_opened_by_name() -> None:
    for model, name in (
        (None, "workbench-tiny-diffusion"),
        (str(MEMORISER), str(MEMORISER)),
    ):
        with open_engine(model, "diffusion", store=None) as engine:
            assert engine.info.model == name


def test_an_experiment_runs_on_it() -> None:
    with open_engine(engine="diffusion", store=None, threshold=0.9) as engine:
        report = evaluate(WordProblems(), engine, count=6)
    assert (report.summary[0].n, report.summary[0].n_failed) == (6, 0)
    assert report.provenance["engine"]["engine"] == "diffusion"
