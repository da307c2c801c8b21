"""The throughput experiment on real engines: counts and bookkeeping, never the clock."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import Sampling, open_engine
from workbench.cli import app
from workbench.engines.transformers import TransformersEngine, unavailable
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.load import (
    Load,
    Runner,
    _free_share,
    filler,
    open_both,
    open_replicas,
    versus,
)
from workbench.machine import ResourceMonitor
from workbench.plots import new_figure, plot_replicas, plot_speeds, plot_speedups
from workbench.serving import Server
from workbench.throughput import CALLS, Throughput, by_replicas, speedups, summarise

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"needs {unavailable()}")

SMALL = Load(requests=12, prompt_tokens=24, output_tokens=6)


@pytest.fixture(scope="module")
def baseline() -> Iterator[TransformersEngine]:
    with TransformersEngine(None, None, "test", {"batch_size": 4}) as engine:
        yield engine


def test_fillers_have_the_length_asked_for(plain: VLLMEngine) -> None:
    texts = filler(plain.tokenizer, 20, 50, shared=0.5, seed="a")
    ids = plain.tokenizer(texts).input_ids
    assert {len(row) for row in ids} == {50}
    assert len({tuple(row[:25]) for row in ids}) == 1
    assert len({tuple(row[:26]) for row in ids}) > 1
    assert filler(plain.tokenizer, 20, 50, shared=0.5, seed="a") == texts
    other = filler(plain.tokenizer, 20, 50, shared=0.5, seed="b")
    assert other[0][:40] != texts[0][:40]
    for count, tokens, shared in ((1, 0, 0.0), (200, 1, 0.0), (8, 50, 1.0)):
        with pytest.raises(InputError, match=r"prompt_tokens=0|not enough"):
            filler(plain.tokenizer, count, tokens, shared=shared)


@pytest.mark.parametrize("space", ["\u2581", "\u0120"])
def test_fillers_fit_tokenizers_of_both_kinds(space: str) -> None:
    """SentencePiece puts a space before a text and takes it off again; both add a beginning."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [space + "".join(letters) for letters in product("abc", repeat=3)]
    vocabulary = {piece: n for n, piece in enumerate(["<s>", "<unk>", space, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    if space == "\u2581":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        made.decoder = decoders.Metaspace(prepend_scheme="always")
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    texts = filler(tokenizer, 12, 20, shared=0.5)
    assert {len(ids) for ids in tokenizer(texts).input_ids} == {20}
    assert 1 not in set(chain.from_iterable(tokenizer(texts).input_ids))


def test_every_cell_is_measured_with_the_same_work(
    plain: VLLMEngine, baseline: TransformersEngine
) -> None:
    loads = [SMALL, *SMALL.vary(shared=(0.75,), requests=(5,))]
    measured = Throughput(versus(plain, baseline, (1, 4)), loads, repeats=2)
    report = measured.run()
    rows = report.rows
    assert len(rows) == 4 * 3 * 2
    assert rows["error"].isna().all()
    together = rows[rows["batch"] == 0]
    assert (together["count"] == together["requests"]).all()
    assert (rows.loc[rows["batch"] == 1, "count"] == CALLS).all()
    assert set(rows.loc[rows["batch"] == 4, "count"]) == {12, 4}  # whole batches
    tokens = rows["output_tokens_per_s"] * rows["seconds"]
    assert tokens.tolist() == pytest.approx((rows["count"] * rows["output_tokens"]).tolist())
    tokens = rows["total_tokens_per_s"] * rows["seconds"]
    assert tokens.tolist() == pytest.approx((rows["count"] * 30).tolist())
    assert (rows["cpu"] > 0).all()
    assert (rows["peak_memory_gib"] > 0.1).all()

    names = [metric.name for metric in report.summary]
    first = "vllm, all at once"
    assert names[0] == first
    assert f"{first} over transformers, batch 1" in names
    assert f"{first} over bare LLM.generate, all at once" in names
    assert all(metric.n == 2 and metric.low <= metric.value <= metric.high
               for metric in report.summary)  # fmt: skip
    assert report.provenance["complete"] is True
    assert report.usage.completion_tokens == int((rows["count"] * rows["output_tokens"]).sum())

    table = summarise(rows)
    assert len(table) == 4 * 3
    assert (table["n"] == 2).all()
    assert (table["low"] <= table["output_tokens_per_s"]).all()


def test_nothing_is_answered_from_memory(plain: VLLMEngine, kept: VLLMEngine) -> None:
    load = Load(requests=8, prompt_tokens=160, output_tokens=2)
    twice = [Runner("one", plain), Runner("two", plain), Runner("bare", plain, bare=True)]
    rows = Throughput(twice, [load], repeats=2).run().rows
    assert (rows["cached"] == 0).all()
    shared = Throughput(twice, load.vary(shared=(0.8,)), repeats=1).run().rows
    assert (shared["cached"] > 0.4).all()
    with pytest.raises(InputError, match="open it with store=None"):
        Runner("kept", kept)


def test_what_was_measured_survives_an_interrupt(
    plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Throughput([Runner("vllm", plain)], [SMALL], repeats=3)
    with pytest.raises(InputError, match="nothing has been measured"):
        measured.report()
    real = Throughput._measure
    calls: list[int] = []

    def stop(self: Throughput, runner: Runner, load: Load, repeat: int) -> dict[str, object]:
        if repeat == 1 and not calls:
            calls.append(repeat)
            raise KeyboardInterrupt
        return real(self, runner, load, repeat)

    monkeypatch.setattr(Throughput, "_measure", stop)
    with pytest.raises(KeyboardInterrupt):
        measured.run()
    assert len(measured.rows) == 1
    assert measured.report().provenance["complete"] is False
    before = measured.rows["seconds"].iloc[0]
    report = measured.run()
    assert report.rows["repeat"].tolist() == [0, 1, 2]
    assert report.rows["seconds"].iloc[0] == before
    assert report.provenance["complete"] is True


def test_a_run_that_fails_is_a_row_with_its_reason(
    plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Runner.run

    def fail(self: Runner, prompts: list[str], sampling: Sampling) -> tuple[int, int, int]:
        if self.name == "broken":
            raise EngineError("out of memory with batch_size=4")
        return real(self, prompts, sampling)

    monkeypatch.setattr(Runner, "run", fail)
    runners = [Runner("vllm", plain), Runner("broken", plain)]
    report = Throughput(runners, [SMALL], repeats=2).run()
    metrics = {metric.name: metric for metric in report.summary}
    broken = metrics["broken, all at once"]
    assert (broken.n, broken.n_failed) == (0, 2)
    assert broken.value != broken.value
    assert not any(" over " in name for name in metrics)
    assert report.usage.failed == 24
    assert speedups(report.rows[report.rows["runner"] == "broken"]) == []
    with pytest.raises(InputError, match="several loads"):
        speedups(Throughput([Runner("vllm", plain)], [SMALL, Load(requests=4)]).run().rows)


def test_a_stop_during_bare_generate_leaves_vllm_clean(plain: VLLMEngine) -> None:
    load = Load(requests=64, prompt_tokens=32, output_tokens=64)
    measured = Throughput([Runner("bare", plain, bare=True)], [load], repeats=50)

    def stop() -> None:
        while measured.rows.empty:  # however long the first run takes
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        measured.run()
    assert plain.llm.llm_engine.get_num_unfinished_requests() == 0
    assert 0 < len(measured.rows) < 50
    assert measured.rows["error"].isna().all()


def test_bad_requests(plain: VLLMEngine) -> None:
    for wrong, match in (
        ({"requests": 0}, "requests=0"),
        ({"prompt_tokens": 1.5}, "prompt_tokens=1.5"),
        ({"shared": 1.2}, "shared=1.2"),
    ):
        with pytest.raises(InputError, match=match):
            Load(**wrong)
    with pytest.raises(InputError, match="batch=-1"):
        Runner("vllm", plain, -1)
    runner = Runner("vllm", plain)
    with pytest.raises(InputError, match="at least one"):
        Throughput([runner], [])
    with pytest.raises(InputError, match="repeats=0"):
        Throughput([runner], [SMALL], repeats=0)
    with pytest.raises(InputError, match="have the same label"):
        Throughput([runner, runner], [SMALL])
    with pytest.raises(InputError, match="holds 2048 tokens"):
        Throughput([runner], [Load(prompt_tokens=2000)])
    with pytest.raises(InputError, match="not a whole batch"):
        Throughput([Runner("vllm", plain, 64)], [SMALL])
    other: Any = SimpleNamespace(info=SimpleNamespace(context_length=0))  # as of a server
    with pytest.raises(InputError, match="no tokenizer in this process"):
        Throughput([Runner("other", other)], [SMALL])
    with pytest.raises(InputError, match="set only one"):
        open_both("some/model", "llama-1b")


def test_the_baseline_on_a_gpu_leaves_room_for_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * 2**30, 80 * 2**30))
    on_gpu: Any = SimpleNamespace(info=SimpleNamespace(device="cuda (some GPU)"))
    assert _free_share(on_gpu) == {"gpu_memory_utilization": 0.56}
    on_cpu: Any = SimpleNamespace(info=SimpleNamespace(device="cpu"))
    assert _free_share(on_cpu) == {}


def test_bare_is_for_vllm_only(baseline: TransformersEngine) -> None:
    with pytest.raises(InputError, match="only vLLM can run bare"):
        Runner("transformers", baseline, bare=True)
    with pytest.raises(InputError, match="the engine has batches of 4 rows"):
        Runner("transformers", baseline, 8)


def test_the_monitor_sees_work_and_memory() -> None:
    with ResourceMonitor() as idle:
        pass
    with ResourceMonitor() as busy:
        held = bytearray(200 * 2**20)
        held[:: 2**12] = b"1" * len(held[:: 2**12])
        sum(range(3_000_000))
    assert busy.reading.seconds > 0
    assert 0 < busy.reading.cpu <= 1.05
    assert busy.reading.peak_memory_bytes - idle.reading.peak_memory_bytes > 150 * 2**20
    assert busy.reading.gpu is None


def test_figures_show_every_runner(plain: VLLMEngine) -> None:
    runners = [Runner("vllm", plain), Runner("vllm", plain, 4), Runner("bare", plain, bare=True)]
    rows = Throughput(runners, [SMALL], repeats=2).run().rows
    figure, (speeds, faster) = new_figure(2)
    plot_speeds(speeds, summarise(rows), "batch")
    plot_speedups(faster, speedups(rows))
    assert [text.get_text() for text in speeds.get_xticklabels()] == ["4", "12"]
    assert "tokens per second" in speeds.get_ylabel()
    assert len(faster.collections) == 2
    figure.canvas.draw()


def test_the_command(tmp_path: Path, plain: VLLMEngine) -> None:
    out = tmp_path / "speed"
    command = ["throughput", "--requests", "6", "--prompt-tokens", "16", "--output-tokens", "3",
               "--repeats", "1", "--batch", "2", "--out", str(out), "--json"]  # fmt: skip
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    names = [row["name"] for row in json.loads(done.stdout)]
    assert "vllm, all at once over transformers, batch 2" in names
    assert {path.name for path in out.iterdir()} == {"summary.json", "rows.parquet", "figure.png"}
    assert len(pd.read_parquet(out / "rows.parquet")) == 3
    with open_engine(store=None) as again:  # the shared model is as it was
        assert again.info.model == "workbench-tiny"
    wrong = CliRunner().invoke(app, ["throughput", "--architecture", "llama-9b"])
    assert wrong.exit_code == 2
    assert "llama-8b" in wrong.stderr


def test_replicas_get_the_same_work_and_are_drawn(plain: VLLMEngine, server: Server) -> None:
    """Two names of one server are two replicas; a third is not there."""
    urls = f"{server.url},{server.url.replace('127.0.0.1', 'localhost')}"
    opened = partial(open_replicas, base_url=urls)
    rows = by_replicas(opened, (1, 2), SMALL, plain.tokenizer, repeats=2)
    assert list(rows["replicas"]) == [1, 1, 2, 2]
    assert rows["error"].isna().all()
    assert set(rows["count"]) == {SMALL.requests}
    assert (rows["requests_per_s"] > 0).all()
    _, (ax,) = new_figure()
    plot_replicas(ax, rows)
    drawn = np.asarray(ax.lines[0].get_ydata()).tolist()
    assert drawn == list(rows.pivot_table("requests_per_s", "repeat", "replicas").median())
    with pytest.raises(InputError, match=r"replicas=3, but .* has 2 servers"):
        opened(3)
    assert by_replicas(opened, (), SMALL, plain.tokenizer).empty
