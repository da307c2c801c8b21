"""Mistaken commands: a line with its remedy on stderr, status 2, nothing else, and no wait."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

SECONDS = 4.0
"""Of processor time, twice what is promised: on a busy machine the same work takes more of it."""
DEAD = "http://127.0.0.1:9/v1"

# What a person types, and what they must read. Files are those of `files`.
MISTAKES: Mapping[str, str] = {
    # names
    "evl --task sums": "no such command 'evl'; did you mean 'eval'",
    "--verson": "no such option: --verson; did you mean --version",
    "notebook chek mine.ipynb": "no such command 'chek'; did you mean 'check'?",
    "uncertainty scor x": "no such command 'scor'; did you mean 'score'?",
    "info --jsn": "no such option: --jsn; did you mean --json?",
    "eval --tsak sums": "no such option: --tsak; did you mean --task",
    "eval": "missing option '--task'; see workbench eval --help",
    "generate prompts.jsonl": "missing argument 'out'; see workbench generate --help",
    "info all": "unexpected extra argument",
    # eval
    "eval --task word_problem": "no task 'word_problem', did you mean 'word_problems'?",
    "eval --task gone.csv": "gone.csv: No such file or directory; give a file",
    "eval --task ./folder": "folder: give a file whose name ends in .jsonl",
    "eval --task empty.csv": "empty.csv holds no rows: give a file with at least 1",
    "eval --task binary.csv": "binary.csv: it holds NUL characters",
    "eval --task latin.csv": "latin.csv:2: the byte 0xe9 is not UTF-8",
    "eval --task uneven.csv": "uneven.csv:3: 3 values where the header has 2",
    "eval --task table.xlsx": "table.xlsx: give a file whose name ends in .jsonl",
    "eval --task good.csv --column qestion=q": "did you mean 'question'?",
    "eval --task good.csv --column question=q": "good.csv:2: no column 'q' among question, answer",
    "eval --task good.csv --column question": "--column 'question' must be NAME=VALUE",
    "eval --task sums --agent majorty_vote": "did you mean 'majority_vote'?",
    "eval --task sums --engine vlm": "vlm",
    "eval --task sums --count 0": "'--count'",
    "eval --task sums --count ten": "'--count'",
    "eval --task sums --batch-size 0": "--batch-size '0': give a whole number from 1, or auto",
    "eval --task sums --out folder": "folder exists already: choose another folder",
    "eval --task sums --model ./gone": "gone",
    "eval --task sums --engine remote": "WORKBENCH_BASE_URL",
    "eval --task sums -o store=x": "store is not an engine argument",
    "eval --task sums -o max_modellen=9": "did you mean 'max_model_len'?",
    "compare folder": "folder holds no report: pass a folder",
    "compare broken": "summary.json:1: ",
    # generate
    "generate gone.jsonl out.jsonl": "gone.jsonl: No such file or directory; give a file",
    "generate broken.jsonl out.jsonl": "broken.jsonl:2: Expecting property name",
    "generate good.csv out.jsonl": 'good.csv:2: it needs either "prompt" or "messages"',
    "generate good.csv out.jsonl --prompt {qestion}": "did you mean 'question'?",
    "generate prompts.jsonl out.csv": "out.csv: the output is JSONL",
    "generate prompts.jsonl other.jsonl": "other.jsonl was not made from this input",
    "generate prompts.jsonl out.jsonl --top-p 2": "'--top-p'",
    "generate prompts.jsonl out.jsonl -n 2": "set temperature above 0",
    "generate prompts.jsonl out.jsonl --base-url localhost": "localhost",
    f"generate prompts.jsonl out.jsonl --base-url {DEAD}": "127.0.0.1:9",
    f"generate prompts.jsonl out.jsonl --engine vllm --base-url {DEAD}": "leave one out",
    # icm, uncertainty, throughput, report
    "icm --testbed truthfulq": "did you mean 'truthfulqa'?",
    "icm --seed 1 --seed 1": "--seed 1 is given twice",
    "icm --method ICN": "did you mean 'ICM'?",
    "icm --order treee": "did you mean 'tree'?",
    "icm --testbed good.csv": "good.csv: no column 'text' among question, answer",
    "icm --column text=claim": "columns and template are for files",
    "uncertainty run --alpha 2": "alpha=2.0",
    "uncertainty run --task mmul": "did you mean 'mmlu'?",
    "uncertainty run --prompt bas": "did you mean 'base'?",
    "uncertainty run --kind x": "'--kind'",
    "uncertainty run --max-workers 3": "give --api-base, or --engine remote",
    "uncertainty score folder": "folder holds no report: pass a folder",
    "throughput --architecture llama-9b": "did you mean 'llama-8b'?",
    "throughput --architecture shapes.json": "shapes.json:2: hidden_size=0: must be",
    "throughput --shared 3": "'--shared'",
    "report gone": "gone is not a folder of a sweep",
    "report folder": "give one of these",
    # notebooks and sweeps
    "new mine": "mine.ipynb exists already",
    "new two words": "unexpected extra argument",
    "new my.study.py": "'my.study.py' is not a notebook's name",
    "notebook run gone.ipynb --out x": "gone.ipynb",
    "notebook run torn.ipynb --out x": "torn.ipynb:1: ",
    "notebook run mine.ipynb": "missing option '--out'",
    "notebook run mine.ipynb --out x -p coutn 3": "did you mean 'count'?",
    "notebook run mine.ipynb --out x -p count many": "count cannot be set",
    "notebook run mine.ipynb --out x -p count": "-p count has no value",
    "notebook validate gone.ipynb": "gone.ipynb",
    "notebook lab gone": "gone: no such file or folder",
    "notebook copy changed": "has been changed",
    "sweep run gone.yaml": "gone.yaml: No such file or directory",
    "sweep run torn.yaml": "torn.yaml:2: not valid YAML",
    "sweep run unknown.yaml": "unknown.yaml:2: no sweep key 'prodct', did you mean 'product'?",
    "sweep run lost.yaml": "gone.ipynb: No such file or directory",
    "sweep run stranger.yaml": "has no parameter 'coutn', did you mean 'count'?",
    "sweep show folder": "folder",
    # models and servers
    "convert gguf gone.gguf --out x": "gone.gguf",
    "convert gguf good.csv --out x": "good.csv",
    "convert dcp gone --base-model m --out x": "gone",
    "check-server localhost": "localhost",
    "serve vllm --preset 9b": "no preset '9b'. Known: 8b, 70b, 405b",
    "serve vllm ./gone": "gone",
    "serve diffusion --num-nodes 2": "--num-nodes 2: start one server per node",
    "serve diffusion --base-model m": "--dcp-path and --base-model go together",
    "slurm serve": "missing option '--account'",
    "slurm serve --account a --kind vlm": "did you mean 'vllm'?",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str
    seconds: float


def files(folder: Path) -> None:
    """What is there when the commands are typed."""
    cell: dict[str, object] = {
        "cell_type": "code", "execution_count": None, "id": "a", "outputs": [],
        "metadata": {"tags": ["parameters"]}, "source": "count: int = 3",
    }  # fmt: skip
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    sweep = "notebook: mine.ipynb\n"
    for name, content in {
        "empty.csv": "",
        "binary.csv": "question,answer\n\0,1\n",
        "latin.csv": "question,answer\ncaf\udce9,1\n",
        "uneven.csv": "question,answer\na,1\nb,2,3\n",
        "good.csv": "question;answer\n1+1?;2\n",
        "table.xlsx": "PK",
        "prompts.jsonl": '{"prompt": "1+1="}\n',
        "other.jsonl": '{"prompt": "1+1="}\n',
        "broken.jsonl": '{"prompt": "1+1="}\n{oops}\n',
        "shapes.json": '{\n"hidden_size": 0, "intermediate_size": 8, "num_hidden_layers": 1,\n'
        '"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 600}',
        "mine.ipynb": json.dumps(notebook),
        "torn.ipynb": "{",
        "torn.yaml": f"{sweep}product: [",
        "unknown.yaml": f"{sweep}prodct: {{count: [1]}}\n",
        "lost.yaml": "notebook: gone.ipynb\nproduct: {count: [1]}\n",
        "stranger.yaml": f"{sweep}product: {{coutn: [1]}}\n",
        "broken/summary.json": "{",
        "changed/01_quickstart.ipynb": "{}",
        "folder/note.txt": "",
    }.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogateescape"))


def ended(command: str, folder: Path) -> Ended:
    """Type a command."""
    env = {k: v for k, v in os.environ.items() if k not in {"WORKBENCH_BASE_URL", "COLUMNS"}}
    env |= {"WORKBENCH_RUN_DIR": str(folder / "runs"), "HF_HUB_OFFLINE": "1"}
    out, err = (folder / f".{abs(hash(command))}.{name}" for name in ("out", "err"))
    with out.open("wb") as to_out, err.open("wb") as to_err:
        process = subprocess.Popen(
            [sys.executable, "-m", "workbench", *shlex.split(command)],
            cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=to_out, stderr=to_err,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(
        process.returncode, out.read_text(), err.read_text(), used.ru_utime + used.ru_stime
    )


@pytest.fixture(scope="module")
def all_ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All of them, two at a time."""
    folder = tmp_path_factory.mktemp("mistakes")
    files(folder)
    before = sorted(folder.rglob("[!.]*"))
    ended("info --jsn", folder)  # modules are compiled once
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda command: ended(command, folder), MISTAKES)
        found = dict(zip(MISTAKES, results, strict=True))
    assert sorted(folder.rglob("[!.]*")) == before  # nothing was begun
    return found


@pytest.mark.timeout(900)
def test_there_are_enough(all_ended: dict[str, Ended]) -> None:
    assert len(all_ended) >= 52


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_a_line_with_its_remedy(command: str, all_ended: dict[str, Ended]) -> None:
    done = all_ended[command]
    assert (done.status, done.out) == (2, ""), done
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("error: ")
    assert MISTAKES[command] in done.err
    assert done.seconds < SECONDS
