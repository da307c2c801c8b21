"""Tasks: items, the prompts made from them, and graders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from workbench import values
from workbench.errors import InputError
from workbench.tasks.arithmetic import Claims, Sums
from workbench.tasks.harness import PREFIX, HarnessTask
from workbench.tasks.multiple_choice import MultipleChoice, open_choices
from workbench.tasks.options import Options
from workbench.tasks.own import OwnTask
from workbench.tasks.published import GSM8K, TruthfulQA
from workbench.tasks.rows import is_path
from workbench.tasks.word_problems import Verdicts, WordProblems
from workbench.types import Task

__all__ = [
    "GSM8K", "TASKS", "Claims", "HarnessTask", "MultipleChoice", "Options", "OwnTask", "Sums",
    "TruthfulQA", "Verdicts", "WordProblems", "open_choices", "open_task",
]  # fmt: skip

TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {
        "claims": Claims,
        "gsm8k": GSM8K,
        "options": Options,
        "sums": Sums,
        "truthfulqa": TruthfulQA,
        "verdicts": Verdicts,
        "word_problems": WordProblems,
    }
)
"""All tasks by name."""


def open_task(name: object, /, **columns: Any) -> Task:
    """A task by name with its default settings, or your own problems.

    Args:
        name: one of `TASKS`, the path of a file such as a .jsonl, .json or .csv, or rows: a
            DataFrame, a Hugging Face `Dataset` or a list of dicts; or "lm_eval:NAME", a task of
            lm-evaluation-harness or the path of a YAML file with one.
        columns: for your own problems, the arguments of `OwnTask`; for a task of the harness,
            those of `HarnessTask`.

    Raises:
        InputError: no task has this name, the task accepts no arguments, or the file is invalid.
    """
    if isinstance(name, str) and name.startswith(PREFIX):
        for column in columns:
            values.known("argument", column, [*inspect.signature(HarnessTask).parameters][1:])
        return HarnessTask(name.removeprefix(PREFIX), **columns)
    if not isinstance(name, str) or is_path(name):
        for column in columns:
            values.known("file argument", column, [*inspect.signature(OwnTask).parameters][1:])
        return OwnTask(name, **columns)
    otherwise = ", or give the path of a .jsonl, .json or .csv file, a DataFrame, or lm_eval:NAME"
    task = TASKS[values.known("task", name, TASKS, otherwise)]
    if columns:
        raise InputError(f"{', '.join(columns)}: these are for a file, not for the task {name}")
    return task()
