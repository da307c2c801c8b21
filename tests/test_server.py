"""The remote engine on a real vLLM server: the same answers as in process, and moving between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.injector import Injector
from workbench import Sampling, open_engine
from workbench.cli import app
from workbench.engines.base import BaseEngine
from workbench.engines.remote import RemoteEngine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, EngineGoneError
from workbench.evaluation import evaluate
from workbench.judge import LLMJudgeClient, compute_llm_judge_scores_batch
from workbench.serving import Server
from workbench.tasks import Claims, Verdicts, WordProblems
from workbench.types import Message

Lacks = Callable[[str, str], None]
WORDS = WordProblems()
TEXTS = [str(WORDS.prompt(item)) for item in WORDS.items(60)]
CHATS: list[list[Message]] = [[{"role": "user", "content": f"What is {i}+4?"}] for i in range(12)]


@pytest.fixture
def remote(server: Server) -> Iterator[RemoteEngine]:
    with RemoteEngine(None, None, "test", {"base_url": server.url}) as engine:
        yield engine


def test_answers_are_those_in_process(plain: VLLMEngine, remote: RemoteEngine) -> None:
    mine, theirs = (engine.generate(TEXTS, WORDS.sampling) for engine in (plain, remote))
    for a, b in zip(mine, theirs, strict=True):
        assert (a.text, a.token_ids, a.finish_reason) == (b.text, b.token_ids, b.finish_reason)
        assert (a.prompt_tokens, a.completion_tokens) == (b.prompt_tokens, b.completion_tokens)
    assert remote.info.revision == plain.variant == f"{plain.info.revision}-float32"
    assert remote.info.context_length == plain.info.context_length


def test_chats_too(plain: VLLMEngine, remote: RemoteEngine) -> None:
    sampling = Sampling(max_tokens=6, logprobs=2)
    mine, theirs = (engine.generate(CHATS, sampling) for engine in (plain, remote))
    assert [row.text for row in mine] == [row.text for row in theirs]
    assert sum(r.prompt_tokens for r in mine) == sum(r.prompt_tokens for r in theirs)
    for a, b in zip(mine, theirs, strict=True):
        assert a.logprobs is not None
        assert b.logprobs is not None
        assert [t.token_id for t in a.logprobs] == [t.token_id for t in b.logprobs]
        values = [np.array([t.logprob for t in x]) for x in (a.logprobs, b.logprobs)]
        assert np.abs(values[0] - values[1]).max() < 1e-4


@pytest.mark.parametrize("labels", [[" True", " False"], [" E", " F", " True"]])
def test_labels_are_exact(plain: VLLMEngine, remote: RemoteEngine, labels: list[str]) -> None:
    claims = Claims()
    prompts = [claims.prompt(item) for item in claims.items(40)]
    mine, theirs = (engine.label_logprobs(prompts, labels) for engine in (plain, remote))
    assert np.abs(mine.logprobs - theirs.logprobs).max() < 1e-4
    assert not theirs.missing.any()
    chats = [engine.label_logprobs(CHATS, labels).logprobs for engine in (plain, remote)]
    assert np.abs(chats[0] - chats[1]).max() < 1e-4


def test_seeds_repeat_and_structures_hold(remote: RemoteEngine) -> None:
    hot = Sampling(max_tokens=8, temperature=1.0, n=4, seed=5)
    first, second = (remote.generate(TEXTS[:3], hot) for _ in range(2))
    assert [[s.text for s in row.samples] for row in first] == [
        [s.text for s in row.samples] for row in second
    ]
    assert len({s.text for row in first for s in row.samples}) > 4
    kept = remote.generate(TEXTS[:3], Sampling(max_tokens=8, choices=("left", "right")))
    assert {row.text for row in kept} <= {"left", "right"}
    digits = remote.generate(TEXTS[:3], Sampling(max_tokens=8, regex="[0-9]{3}"))
    assert all(len(row.text) == 3 and row.text.isdigit() for row in digits)


def test_too_long_prompts_fail_alone(remote: RemoteEngine) -> None:
    long = Sampling(max_tokens=4096, stop=("\n",))  # more than the context holds
    rows = remote.generate([*TEXTS[:9], "1+1=" * 600], long, errors="return")
    assert [row.error is None for row in rows] == [True] * 9 + [False]
    assert "context length" in str(rows[9].error)


def test_cached_tokens_come_from_the_servers_counter(remote: RemoteEngine) -> None:
    before = remote.usage
    stem = "".join(f"{text}\n" for text in TEXTS[:6])
    remote.generate([stem + text for text in TEXTS[6:20]], Sampling(max_tokens=1))
    used = remote.usage.since(before)
    assert used.cached_tokens is not None
    assert used.cached_tokens / used.prompt_tokens > 0.5


def test_the_threads_do_the_same(server: Server, remote: RemoteEngine) -> None:
    options = {"base_url": server.url, "transport": "threads"}
    sampling = Sampling(max_tokens=8)
    with RemoteEngine(None, None, "test", options) as engine:
        rows = engine.generate(TEXTS, sampling)
    assert [row.text for row in rows] == [r.text for r in remote.generate(TEXTS, sampling)]


def test_auto_takes_the_server_where_vllm_cannot_run(
    server: Server, lacks: Lacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks("vllm", "not built for this machine")
    with open_engine(base_url=server.url, store=None) as engine:
        assert engine.info.engine == "remote"
        assert engine.info.why == "auto: remote, since vllm: not built for this machine"
    monkeypatch.setenv("WORKBENCH_BASE_URL", "http://127.0.0.1:9")
    with open_engine(store=None) as engine:  # set, but no server is there
        assert engine.info.engine == "transformers"
        assert "cannot be reached" in engine.info.why


def test_a_run_goes_on_where_the_same_model_is(
    server: Server, plain: VLLMEngine, lacks: Lacks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [row.text for row in plain.generate(TEXTS[:30], Sampling(max_tokens=8))]
    monkeypatch.setattr(VLLMEngine, "_complete", _dies_after(VLLMEngine._complete, 10))
    lacks("transformers", "not for this test")
    with open_engine(base_url=server.url, store=tmp_path / "s.sqlite") as engine:
        assert engine.info.engine == "vllm"
        rows = engine.generate(TEXTS[:30], Sampling(max_tokens=8))
        assert [row.text for row in rows] == wanted
        assert engine.info.engine == "remote"
        assert "vllm was lost (out of luck); continued with remote" in engine.info.failovers[0]
        assert engine.usage.requests == 30
        again = engine.generate(TEXTS[:30], Sampling(max_tokens=8))
        assert all(row.from_store for row in again)  # from either


def test_a_run_never_goes_on_with_another_model(
    plain: VLLMEngine, lacks: Lacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VLLMEngine, "_complete", _dies_after(VLLMEngine._complete, 10))
    lacks("transformers", "not for this test")
    said = pytest.raises(EngineError, match=r"out of luck.*remote has workbench-tiny fingerprint")
    with Injector(model="workbench-tiny") as other:
        with open_engine(base_url=other.url, store=None) as engine, said:
            engine.generate(TEXTS[:30], Sampling(max_tokens=8))
        assert not set(TEXTS) & set(other.answered)


def test_check_server_shows_what_works(server: Server) -> None:
    done = CliRunner().invoke(app, ["check-server", server.url])
    assert done.exit_code == 0, done.output
    assert "exact: Yes" in done.output
    assert "NO" not in done.output
    with Injector(vllm=False, batch=False) as other:
        done = CliRunner().invoke(app, ["check-server", other.url])
    assert done.exit_code == 0, done.output
    missing = " ".join(line for line in done.output.splitlines() if " NO " in line)
    assert all(what in missing for what in ("label log-probabilities", "chats in one request"))
    assert "only a vLLM server can restrict answers to choices" in missing


def test_verdicts_over_the_wire(remote: RemoteEngine) -> None:
    report = evaluate(Verdicts(), remote, count=40)
    assert report.summary[0].value == 1.0
    assert report.provenance["engine"]["engine"] == "remote"


def test_the_names_that_other_clients_have(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_JUDGE_SERVER_URL", server.url)
    fields = [item.fields for item in Verdicts().items(12)]
    scores, best = compute_llm_judge_scores_batch(
        [f["problem"] for f in fields],
        [f["reference"] for f in fields],
        [[f["candidate"], None] for f in fields],
        store=None,
    )
    answers = [item.answer == "Yes" for item in Verdicts().items(12)]
    assert scores == [[float(right), None] for right in answers]
    assert best == [0] * 12
    client = LLMJudgeClient(store=None, num_workers=2)
    texts = client.generate_responses(["What is 3+4?"] * 3, batch_size_per_worker=2, max_tokens=6)
    assert len(texts) == 3
    assert all(texts)


def _dies_after(complete: Any, count: int) -> Any:
    """`_complete` of an engine that is lost after so many rows."""

    def dying(engine: BaseEngine, requests: Any) -> Iterator[Any]:
        done = 0
        for batch in complete(engine, requests):
            yield batch
            done += len(batch)
            if done >= count:
                raise EngineGoneError("out of luck")

    return dying
