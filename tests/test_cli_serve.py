"""`workbench serve diffusion`, as a separate process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools.training.memoriser import MEMORISER, pairs
from workbench.cli import app
from workbench.engines.diffusion import unavailable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"needs {unavailable()}")
LINE = [sys.executable, "-m", "workbench", "serve", "diffusion"]


def test_workers_behind_one_port_answer_and_end_together(tmp_path: Path) -> None:
    line = [
        *LINE,
        "--model",
        str(MEMORISER),
        "--num_gpus",
        "2",
        "--num_nodes",
        "1",
        "-o",
        "device=cpu",
        "-o",
        "threshold=0.9",
    ]
    variables = os.environ | {"WORKBENCH_RUN_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        prompt, answer = pairs()[0]
        for _ in range(2):
            body = {"prompt": prompt, "max_tokens": 128}
            request = urllib.request.Request(
                f"{url}/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as reply:
                assert json.load(reply)["choices"][0]["text"] == answer
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/batch/stats", timeout=60) as reply:
            stats = json.load(reply)
        assert [worker["requests"] for worker in stats["workers"]] == [1, 1]  # one each
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--num-nodes", "2"], "one server per node"),
        (["--num-gpus", "64"], "this machine shows"),
        (["-o", "batch_size=4"], "give --batch-size"),
        (["-o", "treshold=0.9"], "did you mean 'threshold'"),
        (["-o", "threshold=0.9", "-o", "steps=9"], "exclude each other"),
        (["--model", "/nowhere"], "does not exist"),
    ],
    ids=str,
)
def test_wrong_options_are_told_in_one_line(line: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", "diffusion", *line])
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
