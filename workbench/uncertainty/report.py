"""The benchmark's table, computed from what was elicited: each model on each task, and on average.

A task's value is the mean over its prompts, a model's the mean over its tasks (Ye et al. 2024,
arXiv 2401.12794, section 4), never recomputed from other means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.errors import InputError
from workbench.types import Metric, Report, Usage
from workbench.uncertainty.calibration import calibration_report
from workbench.uncertainty.choices import LETTERS
from workbench.uncertainty.conformal import conformal_report
from workbench.uncertainty.sets import Rule

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["arrays", "certainty", "joined_tables", "paper_table", "score_options"]

KEY = ["model", "task", "prompt"]
COLUMNS = [*KEY, "id", "answer", *LETTERS, "error"]
AVERAGE = "average"


def score_options(
    table: Report | pd.DataFrame,
    *,
    alpha: float = 0.1,
    score: Literal["both", "lac", "aps"] = "both",
    rule: Rule = "ye2024",
    calibration: float = 0.5,
    split_seed: int = 42,
) -> Report:
    """Conformal sets and calibration of each model, task and prompt of a table.

    Args:
        table: what `elicit` returns, or its rows; failed rows are left out and counted.
        alpha, score, rule, calibration, split_seed: as `conformal_report`.

    Returns:
        As summary, of each model (with its name where there are several) accuracy, coverage, set
        size and UAcc, averaged over prompts and then tasks. The average's interval takes prompts as
        one and the same measurement, since they ask the same items, and tasks as independent. As
        rows, every metric of every model, task and prompt: name, value, low, high (95 %), n,
        n_failed, n_unparsed, and missing, the share of questions of which a letter is missing.

    Raises:
        InputError: the table lacks columns, has a row twice, or gives an item two right answers;
            or what a single one of them raises, named.
    """
    import pandas as pd

    told = _checked(table)
    rows: list[dict[str, Any]] = []
    for key, part in told.groupby(KEY, sort=False):
        about: dict[str, Any] = dict(zip(KEY, key, strict=True))
        failed = int(part["error"].notna().sum())
        try:
            logits, answers, _ = arrays(part)
            sets = conformal_report(
                logits, answers, alpha=alpha, score=score, rule=rule, calibration=calibration,
                split_seed=split_seed,
            )  # fmt: skip
            metrics = [*sets.metrics(), *calibration_report(logits, answers).metrics()]
        except InputError as error:
            raise InputError(f"{', '.join(map(str, key))}: {error}") from error
        about["missing"] = float(np.isneginf(logits).any(axis=1).mean())
        names = set()
        for metric in metrics:  # accuracy of the test half, as published, and not of all
            if metric.name not in names:
                rows.append(about | asdict(replace(metric, n_failed=failed)))
                names.add(metric.name)
    frame = pd.DataFrame(rows)
    provenance: dict[str, Any] = {
        "alpha": alpha, "score": score, "rule": rule, "calibration": calibration,
        "split_seed": split_seed,
    }  # fmt: skip
    if isinstance(table, Report):
        provenance["elicited"] = dict(table.provenance)
    return Report(_summary(frame), frame, Usage(), provenance)


def arrays(
    part: pd.DataFrame,
) -> tuple[NDArray[np.float64], NDArray[np.int64], pd.DataFrame]:
    """The rows that did not fail: log-probabilities [n, 6], places of the answers [n], themselves.

    Raises:
        InputError: all failed.
    """
    done = part[part["error"].isna()]
    if done.empty:
        raise InputError(f"all {len(part)} rows failed; the first: {part['error'].iloc[0]}")
    wrong = ~done["answer"].isin(LETTERS)
    if wrong.any():
        row = done[wrong].iloc[0]
        raise InputError(f"item {row['id']!r}: answer={row['answer']!r} is none of A to F")
    places = done["answer"].map(LETTERS.index).to_numpy(np.int64)
    return done[list(LETTERS)].to_numpy(float), places, done


def joined_tables(reports: Sequence[Report | pd.DataFrame]) -> pd.DataFrame:
    """Several tables as one, such as those of several models.

    Raises:
        InputError: there are none, they share rows, or they are not of the same tasks.
    """
    import pandas as pd

    if not reports:
        raise InputError("no tables: give 1 at least")
    found = [one.rows if isinstance(one, Report) else one for one in reports]
    for one in found:
        _check_columns(one)
    return _checked(pd.concat(found, ignore_index=True))


def paper_table(scored: Report, measure: str = "UAcc") -> pd.DataFrame:
    """One measure as the paper prints it: a row a model, a column a task, and the average.

    Raises:
        InputError: there is no such measure.
    """
    rows = scored.rows
    if measure not in set(rows["name"]):
        raise InputError(
            f"measure={measure!r}: give one of {', '.join(dict.fromkeys(rows['name']))}"
        )
    chosen = rows[rows["name"] == measure]
    wide = chosen.pivot_table(values="value", index="model", columns="task", sort=False)
    wide.columns.name = wide.index.name = None
    return wide.assign(**{AVERAGE: wide.mean(axis=1)})


def certainty(scored: Report) -> pd.DataFrame:
    """Accuracy and set size of each model on each task, the mean over prompts, with intervals.

    Returns:
        A row each: model, task, accuracy, accuracy_low, accuracy_high, and so for set_size.
    """
    import pandas as pd

    rows = []
    for (model, task), part in scored.rows.groupby(["model", "task"], sort=False):
        row: dict[str, Any] = {"model": model, "task": task}
        for column, name in (("accuracy", "accuracy"), ("set_size", _size(part))):
            mine = part[part["name"] == name]
            row |= {column: mine["value"].mean(), f"{column}_low": mine["low"].mean(),
                    f"{column}_high": mine["high"].mean()}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)


def _size(rows: pd.DataFrame) -> str:
    return str(next(name for name in rows["name"] if name.startswith("set size")))


def _summary(rows: pd.DataFrame) -> tuple[Metric, ...]:
    models = list(dict.fromkeys(rows["model"]))
    names = [n for n in dict.fromkeys(rows["name"]) if n.split(" ")[0] in {"accuracy", "UAcc"}
             or n.startswith(("coverage", "set size")) or n == "ece"]  # fmt: skip
    found = []
    for model in models:
        for name in names:
            chosen = rows[(rows["model"] == model) & (rows["name"] == name)]
            shown = name if len(models) == 1 else f"{model}: {name}"
            found.append(_average(shown, chosen))
    return tuple(found)


def _average(name: str, rows: pd.DataFrame) -> Metric:
    """Over prompts and then over tasks; half an interval's width goes for a standard error."""
    tasks = rows.groupby("task", sort=False)[["value", "low", "high"]].mean()
    below, above = (
        float((side**2).sum() ** 0.5 / len(tasks))
        for side in (tasks["value"] - tasks["low"], tasks["high"] - tasks["value"])
    )
    value = float(tasks["value"].mean())
    per_task = rows.groupby("task")["n"].max().sum()  # prompts ask the same items
    counted = {column: int(rows[column].sum()) for column in ("n_failed", "n_unparsed")}
    return Metric(name, value, value - below, value + above, int(per_task), **counted)


def _checked(table: Report | pd.DataFrame) -> pd.DataFrame:
    rows = table.rows if isinstance(table, Report) else table
    _check_columns(rows)
    if rows.empty:
        raise InputError("the table has no rows: elicit some")
    twice = rows[rows.duplicated([*KEY, "id"])]
    if not twice.empty:
        where = ", ".join(f"{name}={twice.iloc[0][name]!r}" for name in [*KEY, "id"])
        raise InputError(f"the table has two rows of {where}: each item may be there once")
    answers = rows.groupby(["task", "id"])["answer"].nunique()
    if (answers > 1).any():
        task, item = answers[answers > 1].index[0]
        raise InputError(
            f"item {item!r} of {task} has two right answers: these tables are of different tasks "
            "that have one name; rename one"
        )
    return rows


def _check_columns(rows: Any) -> None:
    missing = [name for name in COLUMNS if name not in getattr(rows, "columns", [])]
    if missing:
        raise InputError(f"a table without {', '.join(missing)}: give what `elicit` returns")
