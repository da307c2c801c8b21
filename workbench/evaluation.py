"""How accurate is a model on a task: one pass over its items, a verdict for each."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from workbench.stats import proportion
from workbench.types import Engine, Metric, Report, Sampling, Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["accuracy", "accuracy_by", "evaluate"]


def evaluate(
    task: Task,
    engine: Engine,
    *,
    count: int | None = None,
    seed: int = 0,
    shots: int = 0,
    style: Literal["completion", "chat"] = "completion",
    sampling: Sampling | None = None,
) -> Report:
    """Ask every item once and grade the answer.

    Args:
        count: items, or None for the task's own number; `seed` chooses them.
        shots: solved examples before each item.
        sampling: how to answer; as the task says by default (greedy).

    Returns:
        A `Report` with the accuracy (95 % Wilson interval), one row an item, failures included.
    """
    import pandas as pd

    sampling = sampling or task.sampling
    items = task.items(count, seed)
    prompts = [task.prompt(item, shots, style) for item in items]
    before = engine.usage
    answers = engine.generate(prompts, sampling, errors="return")
    rows = []
    for item, answer in zip(items, answers, strict=True):
        grade = None if answer.error else task.grade(item, answer.text)
        rows.append(
            {
                "id": item.id,
                **item.fields,
                "answer": item.answer,
                "text": answer.text,
                "extracted": grade and grade.extracted,
                "correct": bool(grade and grade.correct),
                "parsed": bool(grade and grade.parsed),
                "error": answer.error,
                "from_store": answer.from_store,
            }
        )
    frame = pd.DataFrame(rows)
    parameters = {"task": task.name, "split": task.split, "count": len(items), "seed": seed}
    provenance = {
        **parameters,
        "shots": shots,
        "style": style,
        "sampling": asdict(sampling),
        "engine": asdict(engine.info),
        "commit": _commit(),
    }
    return Report((accuracy(frame),), frame, engine.usage.since(before), provenance)


def accuracy(rows: pd.DataFrame, name: str = "accuracy") -> Metric:
    """Share of right answers among the rows that did not fail; unparsed ones are wrong."""
    done = rows[rows["error"].isna()]
    if done.empty:  # nothing is known, which is not the same as nothing right
        return Metric(name, float("nan"), 0.0, 1.0, 0, n_failed=len(rows))
    return proportion(
        name,
        int(done["correct"].sum()),
        len(done),
        n_failed=len(rows) - len(done),
        n_unparsed=int((~done["parsed"]).sum()),
    )


def accuracy_by(rows: pd.DataFrame, field: str) -> list[Metric]:
    """The accuracy of each group of rows, in the order of the groups' names."""
    return [accuracy(part, str(name)) for name, part in rows.groupby(field)]


def _commit() -> str | None:
    """The git commit of the checkout that this package runs from, if it does."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None
