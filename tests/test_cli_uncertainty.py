"""`workbench uncertainty`: asking a server, and scoring what was saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from benchmarks.injector import Injector
from workbench.cli import app
from workbench.cli.uncertainty import _options
from workbench.errors import InputError


def run(*command: str) -> Result:
    return CliRunner().invoke(app, ["uncertainty", *command])


def answered(prompt: str) -> dict[str, float]:
    """The right letter of most questions, and another one of some."""
    number = int(prompt.rpartition("What is ")[2].partition("?")[0])
    right, other = "ABCD"[number % 4], "ABCD"[(number + 1) % 4]
    sure = -0.2 if number % 7 else -2.0
    return {f" {right}": sure, f" {other}": -1.5, " E": -4.0, " F": -5.0}


@pytest.fixture
def server() -> Iterator[Injector]:
    with Injector(vllm=False, tops=answered, model="one") as running:
        yield running


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A custom file."""
    rows = [
        {"id": n, "question": f"What is {n}?", "answer": "ABCD"[n % 4],
         "choices": dict(zip("ABCDEF", "uvwxyz", strict=True))}
        for n in range(83)
    ]  # fmt: skip
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows))
    return path


def test_a_server_is_asked_and_its_answers_are_scored_again(
    server: Injector, mine: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers"
    asked = run(
        "run", "--api-base", server.url, "--model", "one", "--task", str(mine), "--max-workers",
        "8", "--batch-size", "4", "--use-threads", "--demonstrations", "3", "--sample-size", "60",
        "--store", "none", "--out", str(out),
    )  # fmt: skip
    assert asked.exit_code == 0, asked.output
    assert asked.stdout.split()[:3] == ["value", "low", "high"]
    assert "UAcc LAC" in asked.stdout
    rows = pd.read_parquet(out / "rows.parquet")
    assert rows.groupby("prompt").size().to_dict() == {"base": 60, "shared": 60, "task": 60}
    again = run("score", str(out), "--rule", "exact", "--alpha", "0.2", "--json")
    assert again.exit_code == 0, again.output
    found = {row["name"]: row for row in json.loads(again.stdout)}
    assert found["accuracy"]["n"] == 30
    assert found["coverage"]["value"] > 0.7
    saved = run("score", str(out), "--out", str(tmp_path / "scores"))
    assert saved.exit_code == 0, saved.output
    assert (tmp_path / "scores" / "figure.png").stat().st_size > 1000


def test_several_models_are_one_table(server: Injector, mine: Path, tmp_path: Path) -> None:
    folders = []
    with Injector(vllm=False, tops=answered, model="two") as other:
        for where in (server, other):
            folders.append(str(tmp_path / where.model))
            command = ["run", "--api-base", where.url, "--task", str(mine), "--store", "none"]
            assert run(*command, "--out", folders[-1]).exit_code == 0
    both = run("score", *folders)
    assert both.exit_code == 0, both.output
    assert both.stdout.startswith("accuracy\n")
    assert [line.split()[0] for line in both.stdout.splitlines()[2:4]] == ["one", "two"]
    twice = run("score", folders[0], folders[0])
    assert twice.exit_code == 2
    assert "two rows of model='one'" in twice.stderr


def test_what_cannot_be_done_is_told(mine: Path, tmp_path: Path) -> None:
    for command, said in (
        (["run", "--task", "mmul"], "did you mean 'mmlu'"),
        (["run", "--max-workers", "4"], "give --api-base"),
        (["run", "--out", str(tmp_path)], "exists already"),
        (["score", str(tmp_path)], "holds no report"),
        (["run", "--alpha", "2"], "alpha=2.0"),
        (["run", "--task", str(mine), "--kind", "rc", "--api-base", "http://127.0.0.1:9/v1"],
         "127.0.0.1:9"),
        (["run", "--task", str(mine), "--api-base", "http://127.0.0.1:9/v1",
          "-o", "outage_timeout=0.1"], "127.0.0.1:9"),
    ):  # fmt: skip
        done = run(*command)
        assert done.exit_code != 0
        assert said in done.stderr


@pytest.mark.parametrize(
    ("given", "served", "options"),
    [
        ((4, 2, True), True,
         {"max_concurrency": 4, "prompts_per_request": 2, "transport": "threads"}),
        ((None, None, False), True, {}),
        ((None, 16, False), False, {"max_num_seqs": 16}),
        ((None, None, False), False, {}),
    ],
)  # fmt: skip
def test_flags_are_options_of_the_engine(given: Any, served: bool, options: Any) -> None:
    assert _options(*given, served=served) == options
    with pytest.raises(InputError, match="for a server"):
        _options(1, None, False, served=False)
