"""Tasks: items, the prompts made from them, and graders."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from workbench.errors import InputError
from workbench.tasks.claims import Claims
from workbench.tasks.gsm8k import GSM8K
from workbench.tasks.options import Options
from workbench.tasks.sums import Sums
from workbench.tasks.verdicts import Verdicts
from workbench.tasks.word_problems import WordProblems
from workbench.types import Task

__all__ = [
    "GSM8K",
    "TASKS",
    "Claims",
    "Options",
    "Sums",
    "Verdicts",
    "WordProblems",
    "open_task",
]

TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {
        "claims": Claims,
        "gsm8k": GSM8K,
        "options": Options,
        "sums": Sums,
        "verdicts": Verdicts,
        "word_problems": WordProblems,
    }
)
"""All tasks by name."""


def open_task(name: str) -> Task:
    """The task of that name, as it is by default.

    Raises:
        InputError: there is none of that name.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name.lower(), TASKS, n=1, cutoff=0.0)
        raise InputError(f"no task {name!r}, did you mean {near[0]!r}? Known: {', '.join(TASKS)}")
    return TASKS[name]()
