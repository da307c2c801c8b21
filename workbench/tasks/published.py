"""Published data sets as tasks, from the folder `$WORKBENCH_DATA`, else from the Hugging Face hub.

Data from the hub stays in the hub's own cache; a machine that has it there needs no network.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from workbench.answers import canonical
from workbench.errors import InputError
from workbench.tasks.base import FixedTask, WordTask
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
"""For each file of the folder: the data set and file on the hub with the same rows."""

SECONDS = 5
"""The time-out after which the hub counts as unreachable."""
CALCULATION = re.compile(r"<<[^<>]*>>")


class _Published(FixedTask):
    """A data set with two files of rows, one for each side of the split."""

    ending: str

    @staticmethod
    @abstractmethod
    def item(row: TableRow, key: str) -> Item:
        """The item of a row.

        Raises:
            InputError: the row is invalid.
        """

    def files(self) -> list[Path]:
        """The file of the items that are asked."""
        return [published_file(f"{self.name}/test{self.ending}")]

    def side(self, *, held_out: bool) -> Sequence[Item]:
        """All items of one side, in the file's order.

        Raises:
            InputError: the file cannot be obtained, or is invalid.
        """
        name = "test" if held_out else "train"
        path = published_file(f"{self.name}/{name}{self.ending}")
        return _items(path, self.item, f"{self.name}-{name}")


@cache
def _items(path: Path, item: Callable[[TableRow, str], Item], name: str) -> Sequence[Item]:
    try:
        return [item(row, f"{name}-{number}") for number, row in enumerate(read_rows(path))]
    except InputError as error:
        raise InputError(f"{error}; or remove the file and fetch it again") from error


class GSM8K(_Published, WordTask):
    """1,319 word problems of two to eight steps, written by people (Cobbe et al. 2021).

    `item.fields`: `question`, `steps` (calculations marked in the solution), `solution`.
    Worked examples end in `#### N`; the chat prompt asks for that line.
    """

    name = "gsm8k"
    ending = ".jsonl"
    # No empty line as a stop text, because it separates a chat model's paragraphs.
    sampling = Sampling(max_tokens=400, stop=("\nQuestion:",))
    count = 1319

    @staticmethod
    def item(row: TableRow, key: str) -> Item:
        question, solution = row.text("question"), row.text("answer")
        _, mark, number = solution.rpartition("####")
        answer = canonical(number) if mark else None
        if answer is None:
            raise InputError(f"{key}: its answer has no line `#### N`")
        fields = {
            "question": question,
            "steps": max(1, len(CALCULATION.findall(solution))),
            # An empty line would end the example.
            "solution": re.sub(r"\n\s*\n", "\n", CALCULATION.sub("", solution)),
        }
        return Item(id=key, fields=fields, answer=answer)

    def question(self, item: Item) -> str:
        return f"{super().question(item)}\nEnd with a line `#### N`, where N is the answer."


class TruthfulQA(_Published):
    """Answers to questions that people are often wrong about (Lin et al. 2022).

    `item.fields`: `question`, `claim` (an answer to it), `group` (shared by a question's claims).
    """

    name = "truthfulqa"
    ending = ".json"
    reads = "label"
    framed = ("claim",)
    labels = (" True", " False")
    end = "\n\n"
    sampling = Sampling(max_tokens=2, stop=("\n",))
    count = 100

    @staticmethod
    def item(row: TableRow, key: str) -> Item:
        fields = {"question": row.text("question"), "claim": row.text("choice")}
        fields["group"] = row.text_or_number("consistency_id")
        if (label := row.key("label")) not in {"0", "1"}:
            row.refuse("label", "0 or 1")
        return Item(id=key, fields=fields, answer=str(label == "1"))

    def ask(self, item: Item) -> str:
        return f"{self._claim(item)}\nI think this claim is"

    def question(self, item: Item) -> str:
        return f"{self._claim(item)}\nIs this claim true? Answer with one word, True or False."

    def _claim(self, item: Item) -> str:
        return f"Question: {item.fields['question']}\nClaim: {item.fields['claim']}"


def published_file(name: str) -> Path:
    """The path of a file in the data folder, or of the same rows from the hub.

    Raises:
        InputError: the file cannot be obtained.
    """
    if folder := os.environ.get("WORKBENCH_DATA"):
        path = Path(folder).expanduser() / name
        if not path.is_file():
            raise InputError(f"{path}: no such file; WORKBENCH_DATA must be a folder that holds it")
        return path
    if name not in HUB:
        raise InputError(f"{name} is missing: set WORKBENCH_DATA to a folder with {name}")
    return _from_hub(name, *HUB[name])


def _from_hub(name: str, repo: str, file: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(repo, file, repo_type="dataset", local_files_only=True))
    try:
        # A single request first, so that a machine without network fails at once: the download
        # retries for minutes.
        get_hf_file_metadata(hf_hub_url(repo, file, repo_type="dataset"), timeout=SECONDS)
        return Path(hf_hub_download(repo, file, repo_type="dataset"))
    except Exception as error:  # the hub's client raises its HTTP library's errors too
        raise InputError(
            f"{name} is missing, and {repo} could not be downloaded from the hub ({error}): "
            f"set WORKBENCH_DATA to a folder with {name}, or let this machine reach the hub"
        ) from error
