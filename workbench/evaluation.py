"""How accurate is a model on a task: one pass over its items, a verdict for each.

Two such reports on the same items make a paired comparison.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import InputError
from workbench.runs import commit
from workbench.stats import mcnemar, paired_shares, proportion
from workbench.types import Completion, Engine, Item, Metric, Report, Sampling, Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["accuracy", "accuracy_by", "compare", "compare_p", "evaluate"]


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

    Raises:
        InputError: the task has no items, or two of one id.
    """
    import pandas as pd

    sampling = sampling or task.sampling
    items = _items(task, count, seed)
    prompts = [task.prompt(item, shots, style) for item in items]
    before = engine.usage
    answers = engine.generate(prompts, sampling, errors="return")
    pairs = zip(items, answers, strict=True)
    frame = pd.DataFrame([_row(task, item, answer) for item, answer in pairs])
    parameters = {"task": task.name, "split": task.split, "count": len(items), "seed": seed}
    provenance = {
        **parameters,
        "shots": shots,
        "style": style,
        "sampling": asdict(sampling),
        "engine": asdict(engine.info),
        "commit": commit(),
    }
    return Report((accuracy(frame),), frame, engine.usage.since(before), provenance)


def _items(task: Task, count: int | None, seed: int) -> list[Item]:
    items = task.items(count, seed)
    if not items:
        raise InputError(
            f"task {task.name} has no items for count={count}, seed={seed}: ask for others"
        )
    key, times = Counter(item.id for item in items).most_common(1)[0]
    if times > 1:
        raise InputError(f"task {task.name} has {times} items {key!r}: give each an id of its own")
    return items


def _row(task: Task, item: Item, answer: Completion) -> dict[str, Any]:
    grade = None if answer.error else task.grade(item, answer.text)
    return {
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


def compare(report: Report, other: Report, name: str = "difference") -> Metric:
    """Accuracy of `report` minus that of `other` over the items that both answered.

    Items go together by their `id`. Those that failed in either are left out and counted as
    failed; those that only one report has are left out.

    Returns:
        The difference with its paired 95 % interval (see `paired_shares`).

    Raises:
        InputError: the reports share no items, or are not of one task.
    """
    done, failed = _paired(report, other, name)
    if done.empty:
        return Metric(name, float("nan"), -1.0, 1.0, 0, n_failed=failed)
    return paired_shares(name, done["correct"], done["correct_other"], n_failed=failed)


def compare_p(report: Report, other: Report) -> float:
    """McNemar's exact p-value for the same items as `compare`: is the difference chance?

    Raises:
        InputError: as `compare`, or no item was answered in both.
    """
    done, _ = _paired(report, other, "compare_p")
    if done.empty:
        raise InputError("compare_p: no item was answered in both reports")
    return mcnemar(done["correct"], done["correct_other"])


def _paired(report: Report, other: Report, name: str) -> tuple[pd.DataFrame, int]:
    """The items that both answered, and how many are left out because one of them failed."""
    both = _verdicts(report).merge(_verdicts(other), on="id", suffixes=("", "_other"))
    if both.empty:
        raise InputError(f"{name}: the reports share no item; evaluate both with the same seed")
    differ = both[both["answer"] != both["answer_other"]]
    if not differ.empty:
        first = differ.iloc[0]
        raise InputError(
            f"{name}: the answer of item {first['id']!r} is {first['answer']!r} in one report and "
            f"{first['answer_other']!r} in the other: compare reports of the same task"
        )
    done = both[both["error"].isna() & both["error_other"].isna()]
    return done, len(both) - len(done)


def _verdicts(report: Report) -> pd.DataFrame:
    columns = ["id", "answer", "correct", "error"]
    missing = [column for column in columns if column not in report.rows]
    if missing:
        raise InputError(f"a report without {', '.join(missing)}: give what `evaluate` returns")
    twice = report.rows["id"][report.rows["id"].duplicated()]
    if not twice.empty:
        raise InputError(f"a report with item {twice.iloc[0]!r} twice: each id must stand for one")
    return report.rows[columns]
