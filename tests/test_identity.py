"""Real vLLM servers that could be taken for each other: no stored answer crosses."""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from workbench import Sampling, open_engine
from workbench.engines.identity import deciding, variant
from workbench.engines.vllm import unavailable
from workbench.serving import Server, serve
from workbench.serving.access import free_port
from workbench.serving.process import ServerProcess
from workbench.tiny import MODEL
from workbench.types import Completion

pytestmark = pytest.mark.skipif(unavailable() is not None, reason="needs vLLM")
PROMPTS = [f"{a}+{a}=" for a in range(20, 40)]
LABELS = [" True", " False"]


@contextmanager
def plain_vllm(folder: Path, port: int, log: Path) -> Iterator[str]:
    """vLLM's own server, as others start it: it lists a path, and no revision."""
    line = [
        sys.executable,
        "-P",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
    ]
    line += ["--served-model-name", "m", "--port", str(port), "--host", "127.0.0.1"]
    line += ["--enforce-eager", "--dtype", "float32", "--kv-cache-memory-bytes", str(2**28)]
    line += ["--distributed-executor-backend", "uni", "--max-num-seqs", "64"]
    more = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
    child = ServerProcess(line, dict(os.environ) | more | {"VLLM_NO_USAGE_STATS": "1"}, log)
    try:
        end = time.monotonic() + 240
        while not _healthy(port):
            assert child.alive, log.read_text()[-2000:]
            assert time.monotonic() < end, "it did not come up"
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.finish()


def _healthy(port: int) -> bool:
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def ask(url: str, store: Path) -> tuple[list[Completion], np.ndarray, str]:
    with open_engine(engine="remote", base_url=url, store=store) as engine:
        rows = engine.generate(PROMPTS, Sampling(max_tokens=8, logprobs=1))
        labels = engine.label_logprobs(PROMPTS, LABELS)
        assert engine.usage.from_store in (0, 2 * len(PROMPTS))
        return rows, labels.logprobs, engine.info.revision


def perturb(folder: Path) -> None:
    """Other weights, as after some more training, in the same files."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, values in tensors.items():
            if values.dim() == 2:
                noise = torch.randn(values.shape) * values.float().std() * 0.02
                tensors[name] = (values.float() + noise).to(values.dtype)
        save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.timeout(600)
def test_no_answer_crosses(server: Server, tmp_path: Path) -> None:
    """Monday's weights and Tuesday's under one path and URL; and one model in two dtypes."""
    folder, store, port = tmp_path / "ckpt", tmp_path / "s.sqlite", free_port("127.0.0.1")
    shutil.copytree(MODEL, folder)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(serve, dtype="bfloat16", log=tmp_path / "bf16.log")
        with plain_vllm(folder, port, tmp_path / "monday.log") as url:
            monday, monday_labels, first = ask(url, store)
            again, _, same = ask(url, store)
            took = _seconds_to_open(url)
        perturb(folder)
        with plain_vllm(folder, port, tmp_path / "tuesday.log") as url:
            tuesday, tuesday_labels, second = ask(url, store)
        with other.result() as bf16:
            halves, half_labels, half = ask(bf16.url, store)
    full, full_labels, whole = ask(server.url, store)

    assert first.startswith("fingerprint ")
    assert first == same != second
    assert all(row.from_store for row in again)
    assert took < 1.0
    for rows in (monday, tuesday, halves, full):
        assert not any(row.from_store for row in rows)
    assert np.abs(monday_labels - tuesday_labels).max() > 0.01
    assert np.abs(full_labels - half_labels).max() > 0.001
    assert np.abs(full_labels - monday_labels).max() < 1e-4  # the same weights, apart all the same
    assert (whole, half) == tuple(variant(whole, dtype, {}) for dtype in ("float32", "bfloat16"))


def _seconds_to_open(url: str) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with open_engine(engine="remote", base_url=url, store=None):
            times.append(time.perf_counter() - start)
    return min(times)


def test_what_decides_an_answer(tmp_path: Path) -> None:
    (tmp_path / "template").write_text("one")
    options = {"max_num_seqs": 3, "quantization": "fp8", "chat_template": tmp_path / "template"}
    first = deciding(options)
    assert first.keys() == {"chat_template", "quantization"}
    (tmp_path / "template").write_text("two")
    assert deciding(options)["chat_template"] != first["chat_template"]
    assert deciding({"speculative_config": {"model": str(tmp_path)}}) != deciding(
        {"speculative_config": {"model": "elsewhere"}}
    )
    adapters = {"lora_modules": [f"one={tmp_path}"]}
    before = deciding(adapters)
    (tmp_path / "adapter_model.bin").write_text("weights")
    assert deciding(adapters) != before
    assert deciding({"chat_template": "{{ a }}" * 5000}).keys() == {"chat_template"}
    assert variant("0123456789abcdef", "float32", {}) == "0123456789ab-float32"
    names = {variant("0" * 12, "float32", {"quantization": q}) for q in ("fp8", "awq")}
    assert len(names) == 2
