"""Shared fixtures: one real vLLM engine for the whole run, no user files touched."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

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


@pytest.fixture(autouse=True)
def _number_format() -> Iterator[None]:
    """No test leaves another number format behind: PyTorch's is one for the whole process."""
    yield
    if torch := sys.modules.get("torch"):
        left = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        assert left == torch.float32


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
    """The embedded model with a separate store, at `tmp_path / "store.sqlite"`."""
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
    """A start with a wrong option, at the same time as the right one loads, as it is slow too."""
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
    if not _server.alive:  # a test has ended it
        _server.restart()
    return _server


# Quick, without this package: what is tested is the sweep. `do` is what happens in the point.
POINT = """
import json, os, signal, sys, time
from pathlib import Path
done = Path(os.environ["WORKBENCH_RUN_DIR"])
done.mkdir(parents=True, exist_ok=True)
with open(os.environ.get("TALLY", os.devnull), "a") as tally:
    tally.write(f"{n} {seed}\\n")
if (Path("broken") / f"{n}-{seed}").exists():
    trouble = (Path("broken") / f"{n}-{seed}").read_text()
    exec(trouble)
exec(do)
"""
KEEP = """
(done / "metrics.json").write_text(json.dumps({"square": {"value": n * n, "low": n * n - 1,
    "high": n * n + 1, "n": 10, "n_failed": 0, "n_unparsed": 0}, "seeded": n + seed}))
"""
PARAMETERS = """\
n: int = 3  # to be squared
rate: float = 0.5  # of nothing
seed: int = 0  # added
label: str = ""  # any text
do: str = ""  # code to be run
"""


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a plain kernel and the notebooks `point`, `model` and `bare`."""
    nbformat: Any = import_module("nbformat")
    v4 = nbformat.v4

    kernel = tmp_path / "jupyter" / "kernels" / "workbench"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "workbench", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("TALLY", str(tmp_path / "tally"))
    monkeypatch.chdir(tmp_path)
    cells = [v4.new_code_cell(code) for code in (PARAMETERS, POINT, KEEP)]
    nbformat.write(v4.new_notebook(cells=cells[1:]), tmp_path / "bare.ipynb")
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "point.ipynb")
    cells[0].source += 'model: str = ""  # name\nengine: str = "auto"  # which\n'
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "model.ipynb")
    return tmp_path
