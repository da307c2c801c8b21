"""Shared fixtures: one real vLLM engine for the whole run, no user files touched."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.engines import ENGINES
from workbench.engines.vllm import VLLMEngine, unavailable
from workbench.serving import Server, serve
from workbench.store import Store

# A shell's background job starts with Ctrl-C ignored, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nor are the user's own servers and keys.
for name in ("WORKBENCH_BASE_URL", "WORKBENCH_API_KEY", "OPENAI_API_KEY", "LLM_JUDGE_SERVER_URL"):
    os.environ.pop(name, None)

SERVER_KEY = "a-key-for-tests"

# The user's own store is not for tests.
os.environ["WORKBENCH_CACHE"] = tempfile.mkdtemp(prefix="workbench-test-")


@pytest.fixture(scope="session")
def _loaded() -> Iterator[VLLMEngine]:
    if reason := unavailable():
        pytest.skip(f"needs vLLM: {reason}")
    with VLLMEngine(None, None, "test", {}) as engine:
        yield engine


@pytest.fixture
def plain(_loaded: VLLMEngine) -> VLLMEngine:
    """The embedded model without a store."""
    return VLLMEngine(None, None, "test", {})  # the model is in memory already


@pytest.fixture
def kept(_loaded: VLLMEngine, tmp_path: Path) -> VLLMEngine:
    """The embedded model with a store of its own, at `tmp_path / "store.sqlite"`."""
    return VLLMEngine(None, Store(tmp_path / "store.sqlite"), "test", {})


@pytest.fixture
def lacks(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes an engine one that cannot run here, for a reason."""

    def make(name: str, reason: str) -> None:
        kind = replace(ENGINES[name], unavailable=lambda: reason)
        monkeypatch.setitem(ENGINES, name, kind)

    return make


@pytest.fixture(scope="session")
def wrong_start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Future[Server], Path]]:
    """A start with a wrong option, going on while the right one loads: it takes a while too."""
    log = tmp_path_factory.mktemp("wrong") / "new" / "server.log"
    with ThreadPoolExecutor() as pool:
        yield pool.submit(serve, max_num_seqz=3, log=log), log


@pytest.fixture(scope="session")
def _server(wrong_start: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if reason := unavailable():
        pytest.skip(f"needs vLLM: {reason}")
    folder = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_API_KEY", SERVER_KEY)
        patch.setenv("WORKBENCH_RUN_DIR", str(folder))
        # As an engine in this process leaves it: the server must not take it over as it is.
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        started = serve()
    with started:
        yield started


@pytest.fixture
def server(_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A real vLLM server with the embedded model; its key is in the environment."""
    monkeypatch.setenv("WORKBENCH_API_KEY", SERVER_KEY)
    return _server
