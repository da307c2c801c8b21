"""What a model gets on a CPU: memory within what is free, a fast number format, quiet threads."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workbench import Sampling, machine, open_engine
from workbench.engines import cpu, device
from workbench.engines.checkpoints.architecture import Architecture, dummy_model
from workbench.engines.checkpoints.checks import weights_size
from workbench.engines.cpu import MemoryNeed, fast_dtype, plan_cache, threads
from workbench.engines.vllm import unavailable
from workbench.errors import EngineError
from workbench.tiny import MODEL

GIB = 2**30
# About Gemma 3 270M: 262,144 tokens of vocabulary and a context of 32,768.
GEMMA = MemoryNeed(
    dtype="float32", weights=1_700_000_000, token=36_864, step=40_000, row=12 * 262_144,
    context=32_768, sequences=256,
)  # fmt: skip


def test_a_large_machine_gives_the_whole_context_and_no_share_of_its_memory() -> None:
    for free in (24, 240, 2400):
        room = plan_cache("m", free * GIB, [GEMMA])
        assert room.context == 32_768
        assert 32_768 * GEMMA.token <= room.cache <= 4 * GIB


def test_6_gib_give_a_smaller_cache() -> None:
    room = plan_cache("m", 6 * GIB, [GEMMA])
    whole = plan_cache("m", 24 * GIB, [GEMMA])
    assert room.cache < whole.cache
    assert GEMMA.overhead(room.context) + room.cache <= 6 * GIB
    assert room.cache >= room.context * GEMMA.token


@pytest.mark.parametrize("free", [2.8, 3, 3.5, 4, 5, 6, 8, 12])
def test_what_is_given_is_free(free: float) -> None:
    room = plan_cache("m", int(free * GIB), [GEMMA])
    assert GEMMA.overhead(room.context) + room.cache <= free * GIB
    assert room.cache >= room.context * GEMMA.token
    assert room.context == 32_768 or room.context & (room.context - 1) == 0


def test_1_gib_is_refused_with_what_would_fit() -> None:
    with pytest.raises(EngineError) as caught:
        plan_cache("gemma", GIB, [replace(GEMMA, weights=1_070_000_000)])
    text = str(caught.value)
    assert "'gemma' does not fit into the 1.0 GiB of free memory" in text
    assert "1.0 GiB of weights in float32" in text
    assert 'It would fit with dtype="bfloat16", max_model_len=8192, max_num_seqs=16' in text


def test_where_nothing_would_fit_it_says_that() -> None:
    with pytest.raises(EngineError, match=r"2\.\d GiB in all .* use a smaller or quantised"):
        plan_cache("m", GIB // 4, [GEMMA])


def test_half_the_bytes_where_only_they_fit() -> None:
    (half,) = GEMMA.halved()
    assert plan_cache("m", 24 * GIB, [GEMMA, half]).dtype == "float32"
    assert plan_cache("m", 2 * GIB, [GEMMA, half]).dtype == "bfloat16"
    assert half.halved() == ()


def test_a_context_that_was_asked_for_is_not_cut() -> None:
    with pytest.raises(EngineError, match="max_model_len=8192"):
        plan_cache("m", 4 * GIB, [replace(GEMMA, fixed=True)])
    assert plan_cache("m", 24 * GIB, [replace(GEMMA, fixed=True)]).context == 32_768
    assert plan_cache("m", 6 * GIB, [replace(GEMMA, context=500)]).context == 500


def test_bfloat16_where_the_processor_has_it() -> None:
    for flags in ({"avx2"}, {"avx512f", "avx2"}, {"asimd", "fphp"}):
        assert fast_dtype("bfloat16", flags) == "float32"
    for flags in ({"avx512_bf16"}, {"amx_bf16", "amx_tile"}, {"asimd", "bf16"}):
        assert fast_dtype("bfloat16", flags) == "bfloat16"
    assert fast_dtype("float16", {"avx2"}) == "float32"
    assert fast_dtype("float32", {"avx512_bf16"}) == "float32"
    assert fast_dtype("bfloat16", set()) == "bfloat16"  # nothing is known: as the model is


def test_threads_are_within_what_this_process_may_use() -> None:
    assert 1 <= threads() <= len(os.sched_getaffinity(0))


def test_weights_are_counted_in_the_format_they_will_have() -> None:
    stored = sum(file.stat().st_size for file in MODEL.glob("*.safetensors"))
    assert weights_size(MODEL, "bfloat16") == pytest.approx(stored, rel=0.01)
    assert weights_size(MODEL, "float32") == 2 * weights_size(MODEL, "bfloat16")


def groups(root: Path, text: str, files: dict[str, str]) -> list[float]:
    own = root / "own"
    own.write_text(text)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return machine._left_in_groups(root, own)


def test_limits_of_containers_count(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": "max", "a/b/memory.current": "5",
        "a/memory.max": "1000", "a/memory.current": "700",
        "a/memory.stat": "anon 100\ninactive_file 250\nactive_file 50\n",
    }  # fmt: skip
    assert groups(tmp_path, "0::/a/b\n", files) == [600.0]  # cached files can be given back


def test_limits_of_older_containers_count(tmp_path: Path) -> None:
    files = {
        "memory/a/memory.limit_in_bytes": "1000", "memory/a/memory.usage_in_bytes": "400",
        "memory/memory.limit_in_bytes": "5000", "memory/memory.usage_in_bytes": "100",
    }  # fmt: skip
    assert groups(tmp_path, "4:memory:/a\n1:cpu:/\n", files) == [600.0, 4900.0]
    assert groups(tmp_path, "1:cpu:/\n", {}) == []


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model without weights whose cache takes 128 KiB a token, with a context of 32,768."""
    shapes = Architecture(
        hidden_size=256, intermediate_size=512, num_hidden_layers=16, num_attention_heads=8,
        num_key_value_heads=8, head_dim=128, vocab_size=1024, max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )  # fmt: skip
    import json
    from dataclasses import asdict

    (tmp_path / "shapes.json").write_text(json.dumps(asdict(shapes)))
    return dummy_model(tmp_path / "shapes.json", tmp_path / "large")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Says how much memory is free, in GiB."""
    if reason := unavailable():
        pytest.skip(f"needs vLLM: {reason}")

    def say(gib: float) -> None:
        monkeypatch.setattr(cpu, "free_memory", lambda: gib * GIB)

    return say


def test_opens_in_less_memory_and_says_so(
    free: Any, large: Path, caplog: pytest.LogCaptureFixture
) -> None:
    free(6)
    caplog.set_level(logging.INFO, "workbench")
    options: dict[str, Any] = {"load_format": "dummy", "dtype": "float32"}
    with open_engine(str(large), "vllm", store=None, **options) as engine:
        assert engine.info.context_length == 16_384
        (note,) = engine.info.notes
        assert note.startswith("the context is 16,384 tokens instead of the model's 32,768, as")
        assert engine.generate(["a"], Sampling(max_tokens=4))[0].error is None
    assert "GiB of cache" in caplog.text
    assert "context 16,384; 6.0 GiB were free" in caplog.text


def test_is_refused_where_it_does_not_fit(free: Any, large: Path) -> None:
    free(0.1)
    with pytest.raises(EngineError, match=r"does not fit into the 0\.1 GiB of free memory"):
        open_engine(str(large), "vllm", store=None, load_format="dummy", dtype="float32")


def test_none_is_no_wish(free: Any, large: Path) -> None:
    free(6)
    options: dict[str, Any] = {"load_format": "dummy", "dtype": "float32"}
    options |= {"max_model_len": None, "kv_cache_memory_bytes": None}
    with open_engine(str(large), "vllm", store=None, **options) as engine:
        assert engine.info.context_length == 16_384


def test_steps_of_a_size_that_was_asked_for() -> None:
    assert replace(GEMMA, batched=4096).work(32_768) < GEMMA.work(32_768)
    assert replace(GEMMA, batched=65_536).work(1024) > GEMMA.work(1024)
    assert plan_cache("m", 6 * GIB, [replace(GEMMA, token=0)]).cache == 0


def test_the_callers_own_cache_stands(free: Any) -> None:
    free(0.001)
    with open_engine(engine="vllm", store=None, kv_cache_memory_bytes=2**27) as engine:
        assert engine.info.context_length == 2048


def test_threads_do_not_spin() -> None:
    code = "from workbench.engines.device import prepare; prepare(); import os; import torch; "
    code += "print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "passive"
    assert device.PASSIVE == {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.slow
def test_opens_beside_a_process_that_holds_most_of_the_memory() -> None:
    left = 2.5
    hold = textwrap.dedent(f"""
        import numpy, sys
        from workbench.machine import free_memory
        held = numpy.ones(max(0, int(free_memory() - {left} * 2**30)), dtype="uint8")
        print("held", flush=True)
        sys.stdin.read()
    """)
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert machine.free_memory() < (left + 1.5) * GIB
        with open_engine(engine="vllm", store=None) as engine:
            assert engine.generate(["a"], Sampling(max_tokens=4))[0].error is None
    finally:
        other.kill()
        other.wait()
