"""Published data sets as tasks, from the folder `$WORKBENCH_DATA`, else from the Hugging Face hub.

What comes from the hub stays in the hub's own cache; a machine that has it there needs no network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from workbench.answers import canonical
from workbench.errors import InputError
from workbench.tasks.generated import Fixed, Worked
from workbench.tasks.rows import TableRow, read_rows
from workbench.types import Item, Sampling

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
CALCULATION = re.compile(r"<<[^<>]*>>")


class GSM8K(Fixed, Worked):
    """1,319 word problems of two to eight steps written by people (Cobbe et al. 2021).

    `item.fields`: `question`, `steps` (calculations marked in the solution), `solution`. A model
    ends in `#### N` because it is shown examples, or because the chat asks for it.
    """

    name = "gsm8k"
    # No empty line: a chat model's paragraphs are separated by them.
    sampling = Sampling(max_tokens=400, stop=("\nQuestion:",))
    count = 1319

    def side(self, *, held_out: bool) -> Sequence[Item]:
        name = "test" if held_out else "train"
        return _gsm8k(published_file(f"gsm8k/{name}.jsonl"), name)

    def question(self, item: Item) -> str:
        return f"{super().question(item)}\nEnd with a line `#### N`, where N is the answer."


class TruthfulQA(Fixed):
    """Answers to questions that people are often wrong about (Lin et al. 2022).

    `item.fields`: `question`, `claim` (an answer to it), `group` (the same for one question).
    """

    name = "truthfulqa"
    reads = "label"
    labels = (" True", " False")
    end = "\n\n"
    sampling = Sampling(max_tokens=2, stop=("\n",))
    count = 100

    def side(self, *, held_out: bool) -> Sequence[Item]:
        return truthfulqa("test" if held_out else "train")

    def ask(self, item: Item) -> str:
        return f"{_claimed(item)}\nI think this claim is"

    def question(self, item: Item) -> str:
        return f"{_claimed(item)}\nIs this claim true? Answer with one word, True or False."


def _claimed(item: Item) -> str:
    return f"Question: {item.fields['question']}\nClaim: {item.fields['claim']}"


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
    """A file of the folder, else the same rows from the hub.

    Raises:
        InputError: the file cannot be had.
    """
    return local_file(name) if os.environ.get("WORKBENCH_DATA") else _from_hub(name)


@cache
def _gsm8k(path: Path, side: str) -> Sequence[Item]:
    rows = _read(path, "question", "answer")
    return [_word_problem(row, f"gsm8k-{side}-{number}") for number, row in enumerate(rows)]


def _word_problem(row: TableRow, key: str) -> Item:
    solution = row.text("answer")
    _, mark, number = solution.rpartition("####")
    answer = canonical(number) if mark else None
    if answer is None:
        raise InputError(f"{key}: its answer has no line `#### N`; fetch the GSM8K files again")
    fields = {
        "question": row.text("question"),
        "steps": max(1, len(CALCULATION.findall(solution))),
        # An empty line would end the example.
        "solution": re.sub(r"\n\s*\n", "\n", CALCULATION.sub("", solution)),
    }
    return Item(id=key, fields=fields, answer=answer)


def truthfulqa(side: Literal["train", "test"]) -> Sequence[Item]:
    """All items of one side of TruthfulQA, in the file's order.

    Raises:
        InputError: the file is not in `$WORKBENCH_DATA`, or is not what it should be.
    """
    return _truthfulqa(local_file(f"truthfulqa/{side}.json"), side)


@cache
def _truthfulqa(path: Path, side: str) -> Sequence[Item]:
    rows = _read(path, "question", "choice")
    return [_claim(row, f"truthfulqa-{side}-{number}") for number, row in enumerate(rows)]


def _claim(row: TableRow, key: str) -> Item:
    group, label = row.text_or_number("consistency_id"), row.text_or_number("label")
    if label not in {"0", "1"}:
        raise InputError(f"{row.place}: label={label!r:.60} must be 0 or 1; fetch the file again")
    fields = {"question": row.text("question"), "claim": row.text("choice"), "group": group}
    return Item(id=key, fields=fields, answer=str(label == "1"))


def _read(path: Path, *columns: str) -> Sequence[TableRow]:
    """The rows of a file, all of which have a text in these columns."""
    try:
        rows = read_rows(path)
        for row in rows:
            for column in columns:
                row.text(column)
    except InputError as error:
        raise InputError(f"{error}; or remove the file and fetch it again") from error
    return rows


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
