"""The baseline: padded batches that answer as one by one, and as vLLM does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench import Sampling, open_engine
from workbench.engines.checkpoints.architecture import Architecture, dummy_model
from workbench.engines.cpu import fast_dtype
from workbench.engines.decoding import BatchSize
from workbench.engines.transformers import TransformersEngine, unavailable
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, EngineUnavailableError, InputError
from workbench.evaluation import evaluate
from workbench.store import Store
from workbench.tasks import Claims, WordProblems
from workbench.tiny import MODEL as TINY

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"needs {unavailable()}")

TASK = WordProblems()
HOT = Sampling(max_tokens=24, stop=("\n\n",), temperature=0.9, top_p=0.95, n=2, seed=3)


def make(**options: Any) -> TransformersEngine:
    return TransformersEngine(None, None, "test", options)


@pytest.fixture(scope="module")
def baseline() -> Iterator[TransformersEngine]:
    with make(batch_size=32) as engine:
        yield engine


def mixed(count: int) -> list[str]:
    """Prompts of very different lengths."""
    items = enumerate(TASK.items(count))
    return [str(TASK.prompt(item, shots=number % 3)) for number, item in items]


def test_batches_answer_as_one_by_one(baseline: TransformersEngine) -> None:
    prompts = mixed(48)
    with make(batch_size=1) as single:
        alone = single.generate(prompts, TASK.sampling)
    together = baseline.generate(prompts, TASK.sampling)
    assert together == alone
    assert len({row.completion_tokens for row in alone}) > 5
    assert {row.finish_reason for row in alone} == {"stop"}


def test_verdicts_are_those_of_vllm(baseline: TransformersEngine, plain: VLLMEngine) -> None:
    mine = evaluate(TASK, baseline, count=60)
    theirs = evaluate(TASK, plain, count=60)
    assert mine.rows["text"].tolist() == theirs.rows["text"].tolist()
    assert mine.rows["correct"].tolist() == theirs.rows["correct"].tolist()
    assert 0.5 < mine.summary[0].value < 1  # both verdicts occur
    one, other = mine.provenance["engine"], theirs.provenance["engine"]
    assert (one["engine"], other["engine"]) == ("transformers", "vllm")
    assert (one["model"], one["revision"]) == (other["model"], other["revision"])


def test_completions_are_those_of_vllm(baseline: TransformersEngine, plain: VLLMEngine) -> None:
    prompts = mixed(6)
    for sampling in (
        Sampling(max_tokens=12),
        Sampling(max_tokens=40, stop=(" then", "=")),
        Sampling(max_tokens=40, stop=("####",), logprobs=3),
        Sampling(max_tokens=70, ignore_eos=True),
    ):
        for a, b in zip(
            baseline.generate(prompts, sampling), plain.generate(prompts, sampling), strict=True
        ):
            assert (a.text, a.token_ids, a.finish_reason) == (b.text, b.token_ids, b.finish_reason)
            assert (a.prompt_tokens, a.completion_tokens) == (b.prompt_tokens, b.completion_tokens)
            for x, y in zip(a.logprobs or (), b.logprobs or (), strict=True):
                assert (x.token_id, len(x.top)) == (y.token_id, len(y.top))
                assert x.logprob == pytest.approx(y.logprob, abs=1e-4)
    chats = [TASK.prompt(item, style="chat") for item in TASK.items(4)]
    endless = Sampling(max_tokens=90, ignore_eos=True)
    for sampling in (Sampling(max_tokens=90), endless):
        mine, theirs = (engine.generate(chats, sampling) for engine in (baseline, plain))
        assert [row.token_ids for row in mine] == [row.token_ids for row in theirs]
    assert {row.completion_tokens for row in mine} == {90}  # past the end of each answer


def test_labels_are_those_of_vllm(baseline: TransformersEngine, plain: VLLMEngine) -> None:
    task, labels = Claims(), [" True", " False", " True\n12", "4"]
    prompts = [task.prompt(item, shots=n % 5) for n, item in enumerate(task.items(40))]
    mine = baseline.label_logprobs(prompts, labels)
    theirs = plain.label_logprobs(prompts, labels)
    assert np.abs(mine.logprobs - theirs.logprobs).max() < 1e-4
    assert not mine.missing.any()


def test_a_sample_depends_on_its_seed_and_not_on_the_batch(baseline: TransformersEngine) -> None:
    prompts = mixed(12)
    wanted = [row.samples for row in baseline.generate(prompts, HOT)]
    assert [row.samples for row in baseline.generate(prompts[:3], HOT)] == wanted[:3]
    with make(batch_size=5) as other:
        assert [row.samples for row in other.generate(prompts, HOT)] == wanted
    assert any(a.text != b.text for a, b in wanted)
    fresh = Sampling(max_tokens=24, temperature=1.5, n=4)
    assert len({s.text for s in baseline.generate(prompts[:1], fresh)[0].samples}) > 1


def test_draws_follow_the_distribution(baseline: TransformersEngine) -> None:
    prompt = mixed(1)[0]
    likely = baseline.generate([prompt], Sampling(max_tokens=1, logprobs=2))[0].logprobs
    assert likely is not None
    (first, one), (second, two) = likely[0].top[:2]
    hot = Sampling(max_tokens=1, temperature=1.0, top_k=2, n=600, seed=0)
    drawn = [s.token_ids for s in baseline.generate([prompt], hot)[0].samples]
    share = sum(ids == (first,) for ids in drawn) / len(drawn)
    assert {ids[0] for ids in drawn if ids} == {first, second}
    wanted = np.exp(one) / (np.exp(one) + np.exp(two))
    assert share == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / 600) ** 0.5)


def test_answers_are_kept_apart_from_those_of_other_engines(
    baseline: TransformersEngine, kept: VLLMEngine, tmp_path: Path
) -> None:
    prompts, path = mixed(3), tmp_path / "store.sqlite"
    kept.generate(prompts, TASK.sampling)
    with TransformersEngine(None, Store(path), "test", {}) as engine:
        assert not any(row.from_store for row in engine.generate(prompts, TASK.sampling))
        assert all(row.from_store for row in engine.generate(prompts, TASK.sampling))


def test_ctrl_c_keeps_finished_batches(baseline: TransformersEngine, tmp_path: Path) -> None:
    prompts, path = mixed(80), tmp_path / "store.sqlite"

    def press() -> None:
        while len(Store(path)) == 0:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with TransformersEngine(None, Store(path), "test", {"batch_size": 4}) as engine:
        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            engine.generate(prompts, TASK.sampling)
        finished = len(Store(path))
        rows = engine.generate(prompts, TASK.sampling)
    assert 0 < finished == sum(row.from_store for row in rows) < len(prompts)
    wanted = baseline.generate(prompts, TASK.sampling)
    assert [row.text for row in rows] == [row.text for row in wanted]


def test_a_prompt_that_is_too_long_costs_only_itself(baseline: TransformersEngine) -> None:
    prompts = ["1+1=", "7 " * 3000, "2+2="]
    rows = baseline.generate(prompts, Sampling(max_tokens=4), errors="return")
    assert [row.error is None for row in rows] == [True, False, True]
    assert "the context of workbench-tiny holds 2048" in str(rows[1].error)
    scores = baseline.label_logprobs(prompts, [" True", " False"], errors="return")
    assert [error is None for error in scores.errors] == [True, False, True]
    short = make(max_model_len=40)
    long = Sampling(max_tokens=20, ignore_eos=True)
    rows = short.generate(["1+" * 15, "1+1=", "1+" * 17], long)
    assert [row.prompt_tokens + row.completion_tokens for row in rows] == [40, 24, 40]
    assert {row.finish_reason for row in rows} == {"length"}


def grown(*rates: float, left: int = 10**6) -> BatchSize:
    size = BatchSize("generate", "auto")
    for rate in rates:
        size.note(size.now, int(1000 * rate), 1000.0, left)
    return size


def test_the_batch_grows_while_it_pays() -> None:
    size = grown(100, 190, 350)
    assert size.now == 256
    size.note(3, 10**9, 1.0, 10**6)  # a last, smaller batch says nothing
    assert size.now == 256
    # 256 seems slower than 128, which is asked again: the work itself has become slower.
    size = grown(100, 190, 350, 300, 200)
    assert size.now == 512
    # 256 is slower.
    size = grown(100, 190, 350, 300, 340, 1, 1000)
    assert (size.now, size.best) == (128, 128)
    # What is left is too little to try more on.
    assert grown(100, 190, left=200).now == 64


def test_the_batch_halves_when_memory_runs_out() -> None:
    size = BatchSize("generate", "auto")
    assert size.out_of_memory(32)
    assert size.now == 16
    size.note(16, 100, 1.0, 10**6)
    assert size.now == 16
    assert size.out_of_memory(1) is False
    assert BatchSize("generate", 4).out_of_memory(4) is False


# Memory that is really short: the limit leaves room for the model and small batches only.
SHORT = """
import json, resource, sys
from workbench.engines.transformers import TransformersEngine
from workbench.types import Sampling
engine = TransformersEngine(None, None, "test", {"batch_size": json.loads(sys.argv[1])})
prompts = [f"{i} " + "7 " * 250 for i in range(32)]
engine.label_logprobs(prompts[:1], [" True"])
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[2]) * 2**20, -1))
if sys.argv[1] == '"auto"':
    scores = engine.label_logprobs(prompts, [" True", " False"], errors="return")
    print(json.dumps([engine.batch_size, scores.errors]))
else:
    try:
        engine.generate(prompts, Sampling(max_tokens=2))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def short_of_memory(batch: object, megabytes: int) -> Any:
    command = [sys.executable, "-c", SHORT, json.dumps(batch), str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_no_free_memory() -> None:
    size, errors = short_of_memory("auto", 40)
    assert size < 32
    assert errors == [None] * 32
    kind, message = short_of_memory(32, 40)
    assert kind == "EngineError"
    assert "out of memory with batch_size=32" in message
    assert 'or "auto"' in message


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size=0: must be"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": "big"}, "batch_size='big'"),
        ({"batchsize": 4}, "did you mean 'batch_size'"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"load_format": "dumy"}, "load_format='dumy'"),
        ({"max_model_len": 4096}, "max_model_len=4096"),
        ({"dtype": "float7"}, "could not be loaded"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        open_engine(engine="transformers", store=None, **options)


def test_models_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        open_engine(str(tmp_path), "transformers", store=None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no model_type"):
        open_engine(str(tmp_path), "transformers", store=None)


def test_a_gpu_where_none_is(plain: VLLMEngine) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineUnavailableError, match="device='cuda': PyTorch sees no GPU"):
        open_engine(engine="transformers", store=None, device="cuda")
    with pytest.raises(EngineUnavailableError, match="vLLM runs on cpu here"):
        open_engine(engine="vllm", store=None, device="cuda")


def test_positions_end_with_the_context(tmp_path: Path) -> None:
    """A model with a table of positions: no row may step beyond it while others continue."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=640, n_positions=32, n_embd=32, n_layer=1, n_head=2, eos_token_id=5
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path)
    with open_engine(str(tmp_path), "transformers", store=None) as engine:
        assert isinstance(engine, TransformersEngine)
        assert set(engine._ends) == {5, 0}  # the model's and the tokenizer's, as vLLM has it
        rows = engine.generate(["1+" * 14, "1+"], Sampling(max_tokens=20, ignore_eos=True))
        assert [row.prompt_tokens + row.completion_tokens for row in rows] == [32, 22]


def test_structured_output_is_refused(baseline: TransformersEngine) -> None:
    with pytest.raises(InputError, match='choices=… needs engine="vllm"'):
        baseline.generate(["1+1="], Sampling(choices=("1", "2")))


def test_random_weights(tmp_path: Path) -> None:
    shapes = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 2048,
    }  # fmt: skip
    source = tmp_path / "small.json"
    source.write_text(json.dumps(shapes))
    folder = dummy_model(source, tmp_path / "model")
    with pytest.raises(InputError, match="no weights"):
        open_engine(str(folder), "transformers", store=None)
    with open_engine(str(folder), "transformers", store=None, load_format="dummy") as engine:
        assert engine.info.dtype == fast_dtype("bfloat16")  # float32 where a CPU lacks it
        rows = engine.generate(["1+1=", "2+2="], Sampling(max_tokens=5, ignore_eos=True))
        assert [row.completion_tokens for row in rows] == [5, 5]
    assert Architecture.load(source).parameters > 0


def test_auto_falls_back_and_says_why(lacks: Callable[[str, str], None]) -> None:
    lacks("vllm", "not built for this machine")
    with open_engine(store=None) as engine:
        assert engine.info.engine == "transformers"
        assert engine.info.why == "auto: transformers, since vllm: not built for this machine"
    lacks("transformers", "torch is not installed")
    with pytest.raises(EngineUnavailableError, match=r"not built .* torch is not .* no server"):
        open_engine(store=None)


def test_a_closed_engine_says_so() -> None:
    engine = make()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(["1+1="])


def test_what_it_says_about_itself(baseline: TransformersEngine) -> None:
    assert repr(baseline) == "<transformers engine: workbench-tiny on cpu, float32>"
    assert baseline.batch_size == 32
    before = baseline.usage
    baseline.generate(mixed(4), TASK.sampling)
    used = baseline.usage.since(before)
    assert (used.requests, used.failed, used.cached_tokens) == (4, 0, 0)
    assert used.computed_tokens == used.prompt_tokens + used.completion_tokens > 0
    lengths = [len(prompt) for prompt in mixed(9)]
    assert any(a > b for a, b in pairwise(lengths))  # the order is the caller's, not ours
