"""Accuracy against samples drawn: what votes of fewer samples would have said, from one report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench.agents.majority_vote import cluster
from workbench.errors import InputError
from workbench.evaluation import Evaluation, accuracy
from workbench.types import Task

if TYPE_CHECKING:
    import pandas as pd


def by_samples(task: Task, report: Evaluation, counts: Sequence[int]) -> pd.DataFrame:
    """The vote of the first k samples of each item, for each k of `counts`.

    Args:
        task: what `report` is an evaluation of, by `MajorityVote`.

    Returns:
        A row a count: samples, accuracy, low, high (95 %), n, and tokens, the mean number of
        generated tokens an item.

    Raises:
        InputError: the report has fewer samples of an item, or more than one call.
    """
    import pandas as pd

    trace = report.trace[report.trace["error"].isna()]
    drawn = list(trace.groupby(["id", "run"], sort=False))
    least = min((len(part) for _, part in drawn), default=0)
    if not counts or min(counts) < 1 or max(counts) > least or report.rows["calls"].max() > 1:
        raise InputError(
            f"counts={list(counts)}: give numbers from 1 to {least}, the samples that the report "
            "of a majority vote has of each item"
        )
    told = report.provenance
    items = {item.id: item for item in task.items(told["count"], told["seed"])}
    if missing := {str(key) for (key, _), _ in drawn} - items.keys():
        raise InputError(f"{task.name} has no item {min(missing)!r:.60}: give that of the report")
    rows: dict[int, list[dict[str, object]]] = {count: [] for count in counts}
    for (key, run), part in drawn:
        item = items[str(key)]
        texts = part["text"].tolist()
        groups = cluster(task, item, texts)
        tokens = part["completion_tokens"].cumsum().tolist()
        for count in counts:
            votes = [[place for place in group if place < count] for group in groups]
            most = max(votes, key=len, default=[])
            won = task.grade(item, texts[most[0] if most else 0])
            verdict = {"correct": bool(won.correct), "parsed": won.parsed, "error": None}
            rows[count].append({"id": key, "run": run, **verdict, "tokens": tokens[count - 1]})
    return pd.DataFrame(_point(count, pd.DataFrame(found)) for count, found in rows.items())


def _point(count: int, rows: pd.DataFrame) -> dict[str, float]:
    found = accuracy(rows)
    return {
        "samples": count, "accuracy": found.value, "low": found.low, "high": found.high,
        "n": found.n, "tokens": float(rows["tokens"].mean()),
    }  # fmt: skip
