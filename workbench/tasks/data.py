"""Rows of published data sets: from the folder `$WORKBENCH_DATA`, else from the Hugging Face hub.

What comes from the hub stays in the hub's own cache; a machine that has it there needs no network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from workbench.errors import InputError
from workbench.tasks.rows import Row, name_of, rows_of, text_of

Rows = Sequence[Mapping[str, str]]

HUB = {
    "gsm8k/train.jsonl": ("openai/gsm8k", "main/train-00000-of-00001.parquet"),
    "gsm8k/test.jsonl": ("openai/gsm8k", "main/test-00000-of-00001.parquet"),
    **{
        f"uncertainty/{file}": ("ErikYip/LLM-Uncertainty-Bench", file)
        for file in (
            "mmlu_10k.json", "cosmosqa_10k.json", "hellaswag_10k.json",
            "halu_dialogue.json", "halu_summarization.json",
        )
    },
}  # fmt: skip
"""For each file of the folder the data set and the file on the hub that hold the same rows."""

SECONDS = 5
"""How long the hub may be silent before it counts as out of reach."""


def read_rows(name: str, columns: Sequence[str]) -> Rows:
    """The rows of one file, in its order; read once a process.

    Args:
        name: the file as the folder has it: JSON lines, such as "gsm8k/test.jsonl".
        columns: what every row must hold, as text; the rest is left out.

    Raises:
        InputError: the file cannot be had, or is not what it should be.
    """
    if folder := os.environ.get("WORKBENCH_DATA"):
        return _json_lines(Path(folder).expanduser() / name, tuple(columns))
    return _table(_from_hub(name), tuple(columns))


def local_file(name: str) -> Path:
    """A file that only the folder has: no hub holds it in this layout.

    Raises:
        InputError: WORKBENCH_DATA is not set, or that folder has no such file.
    """
    folder = os.environ.get("WORKBENCH_DATA")
    if not folder:
        raise InputError(f"{name} is not here: set WORKBENCH_DATA to a folder that holds {name}")
    path = Path(folder).expanduser() / name
    if not path.is_file():
        raise InputError(f"{path}: no such file; WORKBENCH_DATA must be a folder that holds it")
    return path


def published_file(name: str) -> Path:
    """A file that the hub holds in the folder's own layout.

    Raises:
        InputError: the file cannot be had.
    """
    return local_file(name) if os.environ.get("WORKBENCH_DATA") else _from_hub(name)


class Answered(NamedTuple):
    """A question with one answer to it; answers of one `group` are to the same question."""

    question: str
    claim: str
    group: str
    true: bool


def truthfulqa(side: Literal["train", "test"]) -> Sequence[Answered]:
    """Answers to the questions of TruthfulQA (Lin et al. 2022), in the file's order.

    Raises:
        InputError: the file is not in `$WORKBENCH_DATA`, or is not what it should be.
    """
    return _truthfulqa(local_file(f"truthfulqa/{side}.json"))


@cache
def _truthfulqa(path: Path) -> Sequence[Answered]:
    return tuple(map(_answered, rows_of(path)))


def _answered(row: Row) -> Answered:
    group = name_of(row, "consistency_id") or text_of(row, "consistency_id")
    label = name_of(row, "label") or text_of(row, "label")
    if label not in {"0", "1"}:
        raise InputError(f"{row[0]}: label={label!r:.60} must be 0 or 1; fetch the file again")
    return Answered(text_of(row, "question"), text_of(row, "choice"), group, label == "1")


@cache
def _json_lines(path: Path, columns: tuple[str, ...]) -> Rows:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; WORKBENCH_DATA must be a folder that holds this file"
        ) from error
    rows = [
        _row(line, columns, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise InputError(f"{path} holds no rows: fetch the file again")
    return rows


def _row(line: bytes, columns: tuple[str, ...], place: str) -> dict[str, str]:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: {error}; fetch the file again") from error
    for column in columns:
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            raise InputError(f"{place}: {_short(line)} has no text as {column!r}")
    return {column: row[column] for column in columns}


def _short(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return text if len(text) <= 60 else f"{text[:60]}…"


@cache
def _table(path: Path, columns: tuple[str, ...]) -> Rows:
    from pyarrow import parquet

    try:
        rows: Rows = parquet.read_table(path, columns=list(columns)).to_pylist()
    except (OSError, ValueError) as error:  # Arrow's own errors are among them
        raise InputError(f"{path}: {error}; remove it, so that it is fetched again") from error
    return rows


@cache
def _from_hub(name: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, file = HUB[name]
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        # Asked once, so that a machine without network hears so at once: the download asks
        # again and again for minutes.
        get_hf_file_metadata(hf_hub_url(repo, file, repo_type="dataset"), timeout=SECONDS)
        return Path(hf_hub_download(repo, file, repo_type="dataset"))
    except Exception as error:  # the hub's client raises its HTTP library's errors too
        raise InputError(
            f"{name} is not here, and {repo} could not be had from the Hugging Face hub ({error}): "
            f"set WORKBENCH_DATA to a folder that holds {name}, or let this machine reach the hub"
        ) from error
