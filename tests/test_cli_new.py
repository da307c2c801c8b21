"""`workbench new`, `notebook copy`, and what a shell asks: the version and completions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import workbench
from workbench.cli import app
from workbench.nb.notebook import load
from workbench.nb.parameters import default, faults
from workbench.runs import shipped_notebooks
from workbench.sweep import Sweep

run = CliRunner().invoke


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(tmp_path / "runs"))
    return tmp_path


@pytest.mark.parametrize("name", ["mine", "mine.ipynb", "work/deep/mine", "./mine"])
def test_new_writes_three_files_that_fit_each_other(here: Path, name: str) -> None:
    done = run(app, ["new", name])
    assert done.exit_code == 0, done.output
    written = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in written] == ["mine.csv", "mine.ipynb", "mine.yaml"]
    assert not any(re.search("(?i)your.own.data", path.read_text()) for path in written)
    notebook = load(written[1])
    assert not any(cell.outputs or cell.count for cell in notebook.cells)
    assert (default(notebook, "data"), default(notebook, "store")) == ("mine.csv", "default")
    assert "learn" not in "".join(cell.source for cell in notebook.cells)
    assert [*faults(notebook)] == []
    assert len(Sweep.read(written[2]).points) == 4
    assert "mine.yaml" in done.stderr
    before = [path.read_bytes() for path in written]
    again = run(app, ["new", name])
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
    assert [path.read_bytes() for path in written] == before


@pytest.mark.timeout(600)
def test_a_new_notebook_and_its_sweep_run_as_they_are(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(here / "cache"))  # where the answers are kept
    assert run(app, ["new", "mine"]).exit_code == 0
    done = run(app, ["notebook", "run", "mine.ipynb", "--out", "out"])
    assert done.exit_code == 0, done.output
    assert (here / "out" / "figures" / "mine.png").stat().st_size > 1000
    answers = pd.read_csv(here / "out" / "results" / "mine.csv")
    found = json.loads((here / "out" / "metrics.json").read_text())["accuracy"]
    assert (found["value"], found["n"]) == (answers["correct"].mean(), 24)
    assert (here / "cache" / "store.sqlite").is_file()
    grid = Path("mine.yaml")  # as it is, but for fewer rows and an engine that loads sooner
    text = grid.read_text().replace("count: 12", "count: 4\n  engine: transformers")
    grid.write_text(text)
    swept = run(app, ["sweep", "run", "mine.yaml", "--jobs", "2", "--out", "swept"])
    assert swept.exit_code == 0, swept.output
    table = pd.read_csv(here / "swept" / "results.csv")
    assert (len(table), table["state"].unique().tolist()) == (4, ["done"])
    assert table["accuracy"].between(0, 1).all()


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "work/", "x.py", "a/..", ".hidden", "-"])
def test_a_bad_name_is_refused(here: Path, name: str) -> None:
    done = run(app, ["new", "--", name])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "is not a notebook's name" in done.stderr
    assert [*here.iterdir()] == []


def test_new_writes_none_of_its_files_where_one_is_there(here: Path) -> None:
    (here / "mine.csv").write_text("kept")
    done = run(app, ["new", "mine"])
    assert (done.exit_code, "mine.csv exists already" in done.stderr) == (2, True)
    assert [path.name for path in here.iterdir()] == ["mine.csv"]


def test_copies_are_whole_and_never_overwritten(here: Path) -> None:
    done = run(app, ["notebooks", "copy", "own"])
    assert done.exit_code == 0, done.output
    names = {path.relative_to(here / "own") for path in (here / "own").rglob("*.*")}
    assert names >= {
        path.relative_to(shipped_notebooks()) for path in shipped_notebooks().glob("*.ipynb")
    }
    assert Path("sweeps/accuracy.yaml") in names
    first = here / "own" / "01_quickstart.ipynb"
    first.unlink()
    assert run(app, ["notebook", "copy", "own"]).stdout.startswith("1 files in own")
    first.write_text("mine")
    shutil.rmtree(here / "own" / "sweeps")
    refused = run(app, ["notebook", "copy", "own"])
    assert (refused.exit_code, "01_quickstart.ipynb has been changed" in refused.stderr) == (
        2,
        True,
    )
    assert first.read_text() == "mine"
    assert not (here / "own" / "sweeps").exists()


def shell(*words: str) -> list[str]:
    """What bash offers for the last word."""
    env = os.environ | {
        "_WORKBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["workbench", *words]),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-m", "workbench"]
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_names() -> None:
    assert shell("ev") == ["eval"]
    assert "--temperature" in shell("generate", "--t")
    assert shell("eval", "--task", "word") == ["word_problems"]
    assert shell("eval", "--agent", "maj") == ["majority_vote"]
    assert shell("generate", "--engine", "tr") == ["transformers"]


def test_the_version_and_help_need_no_heavy_library() -> None:
    done = run(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"workbench {workbench.__version__}\n")
    code = "import sys; from workbench.cli import app; app(['--help'], standalone_mode=False); "
    code += "sys.exit(str({'torch', 'vllm', 'pandas', 'numpy', 'transformers'} & {*sys.modules}))"
    done_help = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert done_help.stderr.strip() == "set()"
    assert "Ask a model" in done_help.stdout
