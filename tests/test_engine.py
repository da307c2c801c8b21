"""The in-process vLLM engine, for real: every test talks to the embedded model."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.engine import make_prompts
from benchmarks.harness import reference_logprobs
from workbench import Sampling, open_engine
from workbench.engines.shared_llm import SharedLLM
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError, StoreError, WorkbenchError
from workbench.store import Store
from workbench.tiny import MODEL
from workbench.types import Prompt

TEXTS = make_prompts(24)


def unfinished(engine: VLLMEngine) -> int:
    return int(engine.llm.llm_engine.get_num_unfinished_requests())


def test_answers_are_those_of_bare_vllm_in_the_callers_order(plain: VLLMEngine) -> None:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=12, temperature=0.0)
    bare = plain.llm.generate(TEXTS, params, use_tqdm=False)
    rows = plain.generate(TEXTS, Sampling(max_tokens=12))
    assert [row.text for row in rows] == [output.outputs[0].text for output in bare]
    assert [row.token_ids for row in rows] == [tuple(o.outputs[0].token_ids) for o in bare]
    assert [row.prompt_tokens for row in rows] == [len(o.prompt_token_ids) for o in bare]
    assert {row.finish_reason for row in rows} <= {"stop", "length"}


def test_chat_goes_through_the_template(plain: VLLMEngine) -> None:
    (chat,) = plain.generate([[{"role": "user", "content": "What is 3+4?"}]])
    (text,) = plain.generate(["<|user|>What is 3+4?<|assistant|>"])
    assert chat.token_ids == text.token_ids
    assert chat.finish_reason == "stop"


def test_stop_texts_and_lengths(plain: VLLMEngine) -> None:
    (row,) = plain.generate(TEXTS[:1], Sampling(max_tokens=40, stop=("\n",)))
    assert row.finish_reason == "stop"
    assert "\n" not in row.text
    (row,) = plain.generate(TEXTS[:1], Sampling(max_tokens=2))
    assert (row.finish_reason, row.completion_tokens) == ("length", 2)


def test_structured_outputs(plain: VLLMEngine) -> None:
    (row,) = plain.generate(["1+1=2 "], Sampling(max_tokens=8, choices=("False", "Maybe")))
    assert row.text in {"False", "Maybe"}
    (row,) = plain.generate(["1+1="], Sampling(max_tokens=8, regex="[5-6]{3}"))
    assert len(row.text) == 3
    assert set(row.text) <= set("56")


def test_token_logprobs_are_those_of_the_sampled_tokens(plain: VLLMEngine) -> None:
    (row,) = plain.generate(["20+30="], Sampling(max_tokens=3, logprobs=2))
    assert row.logprobs is not None
    assert row.token_ids is not None
    assert tuple(t.token_id for t in row.logprobs) == row.token_ids
    for at in row.logprobs:
        assert at.logprob == max(p for _, p in at.top) <= 0
        assert len(at.top) >= 2


def test_seeded_samples_repeat_and_differ_within_a_call(plain: VLLMEngine) -> None:
    hot = Sampling(max_tokens=16, temperature=1.5, n=4, seed=7)
    (first,) = plain.generate(["1+1=2\n"], hot)
    (again, other) = plain.generate(["1+1=2\n", "1+1=2\n"], hot)
    texts = [sample.text for sample in first.samples]
    assert texts == [sample.text for sample in again.samples]
    assert len(set(texts)) > 1
    assert texts != [sample.text for sample in other.samples]  # a copy is sampled separately
    (neighbour,) = plain.generate(["1+1=2\n"], Sampling(max_tokens=16, temperature=1.5, seed=8))
    assert neighbour.text not in texts


def test_more_seeded_prompts_than_one_step_takes(plain: VLLMEngine) -> None:
    texts = make_prompts(300)  # some 8,000 tokens: vLLM would split a prompt between two steps
    rows = plain.generate(texts, Sampling(max_tokens=2, temperature=1.0, seed=1))
    assert sum(row.prompt_tokens for row in rows) > 6_000
    assert all(row.completion_tokens == 2 for row in rows if row.finish_reason == "length")


def test_more_samples_reuse_the_first_ones(kept: VLLMEngine) -> None:
    two, four = (
        kept.generate(["5+5="], Sampling(max_tokens=6, temperature=1.0, n=n, seed=1))[0].samples
        for n in (2, 4)
    )
    assert [s.text for s in four[:2]] == [s.text for s in two]
    assert [s.from_store for s in four] == [True, True, False, False]


def test_the_store_answers_the_same_request(kept: VLLMEngine) -> None:
    sampling = Sampling(max_tokens=5, logprobs=1)
    first = kept.generate(TEXTS, sampling)
    again = kept.generate(TEXTS, sampling)
    assert [(r.text, r.token_ids, r.logprobs) for r in first] == [
        (r.text, r.token_ids, r.logprobs) for r in again
    ]
    assert all(row.from_store for row in again)
    assert kept.usage.from_store == len(TEXTS)
    (other,) = kept.generate(TEXTS[:1], Sampling(max_tokens=6, logprobs=1))
    assert not other.from_store


def test_labels_are_kept_too(kept: VLLMEngine) -> None:
    first = kept.label_logprobs(TEXTS, [" True", " False"])
    computed = kept.usage.computed_tokens
    again = kept.label_logprobs(TEXTS, [" True", " False"])
    assert np.array_equal(first.logprobs, again.logprobs)
    assert kept.usage.computed_tokens == computed


def test_equal_greedy_requests_are_computed_once(plain: VLLMEngine) -> None:
    before = plain.usage.requests
    rows = plain.generate(["7+8="] * 5, Sampling(max_tokens=3))
    assert plain.usage.requests - before == 1
    assert len({row.text for row in rows}) == 1
    assert len(rows) == 5


LABELS = [" True", " False", "42", "7\n", " True\n12", "4"]


def test_label_logprobs_are_exact(plain: VLLMEngine) -> None:
    texts = make_prompts(500, seed=3)
    scores = plain.label_logprobs(texts, LABELS)
    assert scores.logprobs.shape == (500, len(LABELS))
    assert np.abs(scores.logprobs - reference_logprobs(MODEL, texts, LABELS)).max() < 1e-4
    assert not scores.missing.any()
    assert np.array_equal(scores.upper, scores.logprobs)


def test_more_labels_than_vllm_takes_at_once(plain: VLLMEngine) -> None:
    labels = [str(n) for n in range(10)] + [chr(c) for c in range(0x100, 0x1F0)]
    wanted = reference_logprobs(MODEL, TEXTS[:2], labels)
    assert np.abs(plain.label_logprobs(TEXTS[:2], labels).logprobs - wanted).max() < 1e-4


def test_labels_follow_the_chat_template(plain: VLLMEngine) -> None:
    chat: list[Prompt] = [[{"role": "user", "content": "What is 3+4?"}]]
    scores = plain.label_logprobs(chat, ["3", "4"]).logprobs
    same = plain.label_logprobs(["<|user|>What is 3+4?<|assistant|>"], ["3", "4"]).logprobs
    assert np.array_equal(scores, same)


def test_shared_prefixes_are_computed_once(plain: VLLMEngine) -> None:
    plain.llm.reset_prefix_cache()
    before = plain.usage
    shared = "".join(f"{p}\n" for p in TEXTS[:12])
    order = random.Random(0).sample(range(60), 60)
    plain.label_logprobs([f"{shared}{i}+{i}=" for i in order], [" True", " False"])
    cached = plain.usage.since(before).cached_tokens or 0
    assert cached / (plain.usage.prompt_tokens - before.prompt_tokens) > 0.8


def test_a_prompt_that_is_too_long_costs_only_itself(kept: VLLMEngine) -> None:
    texts = [TEXTS[0], "1+1=" * 600, TEXTS[1]]
    with pytest.raises(EngineError, match=r"prompt 1: the prompt has 2400 tokens.*holds 2048") as e:
        kept.generate(texts, Sampling(max_tokens=4))
    assert isinstance(e.value.results, list)
    rows = kept.generate(texts, Sampling(max_tokens=4), errors="return")
    assert [row.finish_reason == "error" for row in rows] == [False, True, False]
    assert [row.from_store for row in rows] == [True, False, True]
    scores = kept.label_logprobs(texts, [" True", " False"], errors="return")
    assert scores.missing.tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert np.all(scores.logprobs[1] == -np.inf)
    assert np.all(scores.upper[1] == 0)
    assert scores.errors[1] is not None
    assert "2048" in scores.errors[1]


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        ([], "empty"),
        ("text", "must be a list"),
        (["a", ""], "prompt 1 is empty"),
        (["a", [{"role": "user", "content": "b"}]], "mixes texts and chats"),
        ([[]], "prompt 0"),
        ([3], "prompt 0"),
        ([[{"role": "user"}]], "prompt 0"),
        (None, "must be a list"),
    ],
)
def test_unusable_prompts(plain: VLLMEngine, prompts: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        plain.generate(prompts)
    with pytest.raises(InputError, match=match):
        plain.stream(prompts)  # at once, not at the first row
    with pytest.raises(InputError, match=match):
        plain.label_logprobs(prompts, ["a"])


@pytest.mark.parametrize(
    ("labels", "match"),
    [([], "non-empty list"), ("ab", "list"), (["a", ""], "''"), (["a", "a"], "given twice")],
)
def test_unusable_labels(plain: VLLMEngine, labels: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        plain.label_logprobs(["1+1="], labels)


def test_other_wrong_arguments(plain: VLLMEngine) -> None:
    with pytest.raises(InputError, match="Sampling"):
        plain.generate(["a"], {"max_tokens": 3})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="errors='ignore'"):
        plain.generate(["a"], errors="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"logprobs": 5000}, {"regex": "("}])
def test_what_vllm_refuses_is_our_error(plain: VLLMEngine, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="vLLM refuses"):
        plain.generate(TEXTS, Sampling(**wrong))
    assert unfinished(plain) == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"engine": "vlm"}, "known:"),
        ({"model": ""}, "model=''"),
        ({"model": "./no/such/folder"}, "does not exist"),
        ({"max_modellen": 3}, "did you mean 'max_model_len'"),
        ({"adapter": "nowhere"}, "adapter_config.json"),
        ({"logprobs_mode": "raw_logits"}, "raw_logits"),
    ],
)
def test_engines_that_cannot_be_opened(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        open_engine(**arguments)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        open_engine(str(tmp_path))


def test_a_store_that_cannot_be_used_is_refused_before_loading(tmp_path: Path) -> None:
    (tmp_path / "s.sqlite").write_text("my thesis" * 400)
    with pytest.raises(StoreError, match="was not changed"):
        open_engine(store=tmp_path / "s.sqlite")


def test_ctrl_c_keeps_rows_leaks_nothing_and_leaves_the_engine_usable(
    kept: VLLMEngine, plain: VLLMEngine, tmp_path: Path
) -> None:
    texts = make_prompts(600)
    sampling = Sampling(max_tokens=24)
    wanted = [row.text for row in plain.generate(texts, sampling)]
    watcher = Store(tmp_path / "store.sqlite")

    def press() -> None:
        while not len(watcher):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        kept.generate(texts, sampling)
    finished = len(watcher)
    assert 0 < finished < 600
    assert unfinished(kept) == 0
    rows = kept.generate(texts, sampling)
    assert [row.text for row in rows] == wanted
    assert sum(row.from_store for row in rows) == finished


def test_a_stream_that_is_left_early_leaks_nothing(plain: VLLMEngine) -> None:
    stream = plain.stream(TEXTS, Sampling(max_tokens=8))
    index, row = next(stream)
    assert row.text == plain.generate([TEXTS[index]], Sampling(max_tokens=8))[0].text  # nested
    stream.close()
    assert unfinished(plain) == 0


def test_threads_share_the_engine(plain: VLLMEngine) -> None:
    wanted = [row.text for row in plain.generate(TEXTS, Sampling(max_tokens=8))]
    found: dict[int, list[str]] = {}

    def work(part: int) -> None:
        mine = TEXTS[part::3]
        found[part] = [row.text for row in plain.generate(mine, Sampling(max_tokens=8))]

    threads = [threading.Thread(target=work, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[part] for part in range(3)] == [wanted[part::3] for part in range(3)]


def test_what_it_says_about_itself(plain: VLLMEngine) -> None:
    info = plain.info
    assert (info.engine, info.model, info.dtype) == ("vllm", "workbench-tiny", "float32")
    assert info.context_length == 2048
    assert info.versions["vllm"].startswith("0.32")
    assert plain.usage.peak_memory_bytes > 10**8
    assert "workbench-tiny" in repr(plain)
    with open_engine(info.model, store=None) as again:  # what it calls itself can be opened
        assert again.info.revision == info.revision


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_models_come_and_go(tmp_path: Path) -> None:
    """Loads several times, so everything about loading is here: it replaces the shared engine."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    options: dict[str, Any] = {"kv_cache_memory_bytes": 2**28}
    store = tmp_path / "s.sqlite"
    sampling = Sampling(max_tokens=4)
    with open_engine(str(folder), store=store, **options) as first:
        assert first.info.dtype == "float32"
        old = first.generate(["1+1="], sampling)[0]
        loaded = _resident_bytes()

        # Trained again in the same folder: old answers are not served.
        _other_weights(folder / "model.safetensors")
        with open_engine(str(folder), store=store, **options) as second:
            new = second.generate(["1+1="], sampling)[0]
            assert not new.from_store
            assert new.text != old.text
            with pytest.raises(EngineError, match="closed"):
                first.generate(["2+2="], sampling)
    assert _resident_bytes() < loaded - 2**27
    with pytest.raises(EngineError, match="closed"):
        second.generate(["2+2="], sampling)

    with pytest.raises(WorkbenchError, match="out of memory"):
        open_engine(**(options | {"kv_cache_memory_bytes": 2**60}))
    (folder / "config.json").write_text("{")
    with pytest.raises(WorkbenchError, match=r"config\.json:1: "):
        open_engine(str(folder), **options)

    # Shapes without weights, and an option that changes the context.
    with open_engine(load_format="dummy", max_model_len=128, **options) as dummy:
        assert dummy.info.context_length == 128
        assert dummy.generate(["1+1="], sampling)[0].completion_tokens > 0
    assert SharedLLM._here is None


def test_adapters_change_the_answers_and_their_keys(tmp_path: Path) -> None:
    store, sampling = tmp_path / "s.sqlite", Sampling(max_tokens=4)
    with open_engine(store=store) as base:
        plain = base.generate(["1+1="], sampling)[0]
    first = open_engine(store=store, adapter=str(_adapter(tmp_path / "a", 0)))
    second = open_engine(store=store, adapter=str(_adapter(tmp_path / "b", 1)))
    rows = [engine.generate(["1+1="], sampling)[0] for engine in (first, second)]
    assert not any(row.from_store for row in rows)
    assert len({row.text for row in (plain, *rows)}) == 3
    first.close()
    second.close()


def test_a_model_that_broke_down_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down() -> None:
        raise RuntimeError("no memory left")

    sampling = Sampling(max_tokens=4)
    broken = VLLMEngine(None, None, "test", {})
    wanted = broken.generate(["1+1="], sampling)[0].text
    monkeypatch.setattr(broken.llm.llm_engine, "step", break_down)
    with pytest.raises(EngineError, match=r"mid-run: no memory left.*again"):
        broken.generate(["1+1="], sampling)
    with open_engine(store=None) as repaired:
        assert repaired.generate(["1+1="], sampling)[0].text == wanted


def _adapter(folder: Path, seed: int) -> Path:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = json.loads((MODEL / "config.json").read_text())
    width, layers = model["hidden_size"], model["num_hidden_layers"]
    names = [f"base_model.model.model.layers.{i}.self_attn.q_proj" for i in range(layers)]
    shapes = {"lora_A": (8, width), "lora_B": (width, 8)}
    tensors = {f"{n}.{k}.weight": torch.randn(shape) for n in names for k, shape in shapes.items()}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _other_weights(path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    tensors = {name: torch.randn_like(t) * 0.05 for name, t in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def test_one_chat_that_the_template_refuses_fails_alone(
    tmp_path: Path,
) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template += "{{ messages[0].content }}"
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    (folder / "chat_template.jinja").write_text(template)
    chats = [[{"role": role, "content": "1+1="}] for role in ("user", "system", "user")]
    with open_engine(str(folder), "transformers", store=None) as engine:
        rows = engine.generate(chats, Sampling(max_tokens=4), errors="return")
        scores = engine.label_logprobs(chats, [" 2", " 3"], errors="return")
    assert [row.error is None for row in rows] == [True, False, True]
    assert "no system" in str(rows[1].error)
    assert [error is None for error in scores.errors] == [True, False, True]


def test_one_text_that_is_none_fails_alone(plain: VLLMEngine) -> None:
    texts = ["1+1=", "half \ud800", "2+2="]
    rows = plain.generate(texts, Sampling(max_tokens=4), errors="return")
    assert [row.error is None for row in rows] == [True, False, True]
    with pytest.raises(EngineError, match=r"1 of 3 prompts failed.*prompt 1"):
        plain.generate(texts, Sampling(max_tokens=4))
