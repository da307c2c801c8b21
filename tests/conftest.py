"""Shared fixtures: one real vLLM engine for the whole run, no user files touched."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.engines.vllm import VLLMEngine, unavailable
from workbench.store import Store

# A shell's background job starts with Ctrl-C ignored, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

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
