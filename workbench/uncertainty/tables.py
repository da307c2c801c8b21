"""The benchmark's table, from the elicited answers: each model on each task, and on average.

A task's value is the mean over its prompts, a model's the mean over its tasks (Ye et al. 2024,
arXiv 2401.12794, section 4); derived values are not recomputed from means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np

from workbench import values
from workbench.errors import InputError, log
from workbench.lazy import NDArray, pd
from workbench.stats import Share, mean_share
from workbench.tasks.options import LETTERS
from workbench.types import Metric, Report, Usage
from workbench.uncertainty.calibration import calibration_report
from workbench.uncertainty.conformal import check_settings, conformal_report
from workbench.uncertainty.logits import Rule

KEY = ["model", "task", "prompt"]


def score_options(
    table: Report | pd.DataFrame, *, alpha: float = 0.1,
    score: Literal["both", "lac", "aps"] = "both", rule: Rule = "ye2024", calibration: float = 0.5,
    split_seed: int = 42,
) -> Report:  # fmt: skip
    """Conformal sets and calibration of each model, task and prompt of a table.

    Args:
        table: what `elicit` returns, or its rows; failed rows are left out and counted.
        alpha, score, rule, calibration, split_seed: as `conformal_report`.

    Returns:
        Summary, for each model (with its name if there are several): accuracy, coverage, set size
        and UAcc, averaged over prompts and then tasks. The average's interval treats prompts as
        the same measurement, since they have the same items, and tasks as independent. Rows:
        one per metric, model, task, prompt: name, value, low, high (95 %), n, n_failed, n_unparsed.
        Intervals of coverage, set size and UAcc are over test items, for the threshold found:
        another calibration part would give another threshold (`conformal_splits`). A model, task
        and prompt whose rows all failed has an accuracy of NaN. The order of the rows determines
        which ones are used for calibration.

    Raises:
        InputError: the table lacks columns, has duplicate rows, or has two right answers for an
            item; or an error of one model, task and prompt, with their names.
    """
    elicited = _check_table(table)
    settings: dict[str, Any] = {
        "alpha": alpha, "score": score, "rule": rule, "calibration": calibration,
        "split_seed": split_seed,
    }  # fmt: skip
    check_settings(alpha, score, rule)
    if elicited["error"].notna().all():
        raise InputError(f"all {len(elicited)} rows failed; the first: {elicited['error'].iloc[0]}")
    rows: list[dict[str, Any]] = []
    for key, part in elicited.groupby(KEY, sort=False):
        about = dict(zip(KEY, key, strict=True))
        metrics = _measure(part, settings, ", ".join(map(str, key)))
        rows += [about | asdict(metric) for metric in metrics]
    frame = pd.DataFrame(rows)
    provenance = dict(settings)
    if isinstance(table, Report):
        provenance["elicited"] = dict(table.provenance)
    return Report(_summary(frame), frame, Usage(), provenance)


def _measure(part: pd.DataFrame, settings: Mapping[str, Any], name: str) -> list[Metric]:
    """All metrics of one model, task and prompt."""
    failed = int(part["error"].notna().sum())
    if failed == len(part):
        log.warning("%s: all rows failed, the first: %s", name, part["error"].iloc[0])
        return [mean_share("accuracy", [], n_failed=failed)]
    try:
        logits, answers, _ = arrays(part)
        sets = conformal_report(logits, answers, **settings).metrics()
        calibrated = calibration_report(logits, answers).metrics()
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    # The accuracy is that of the test part, as published.
    more = [metric for metric in calibrated if metric.name != "accuracy"]
    return [replace(metric, n_failed=failed) for metric in (*sets, *more)]


def arrays(part: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.int64], pd.DataFrame]:
    """The rows that did not fail: log-probabilities [n, 6], indexes of the answers [n], the rows.

    Raises:
        InputError: all rows failed.
    """
    _check_columns(part, [*LETTERS, "id", "answer", "error"])
    done = part[part["error"].isna()]
    if done.empty:
        raise InputError(f"all {len(part)} rows failed")
    wrong = done[~done["answer"].isin(LETTERS)]
    if len(wrong):
        row = wrong.iloc[0]
        raise InputError(f"item {row['id']!r}: answer={row['answer']!r} is not one of A to F")
    places = done["answer"].map(LETTERS.index).to_numpy(np.int64)
    try:
        return done[list(LETTERS)].to_numpy(float), places, done
    except (TypeError, ValueError) as error:
        raise InputError(f"A to F must be log-probabilities: {error}") from error


def join_tables(reports: Sequence[Report | pd.DataFrame]) -> pd.DataFrame:
    """Join several tables, such as those of several models.

    Raises:
        InputError: there are none, they share rows, or the models were asked different questions.
    """
    if not isinstance(reports, Sequence) or not reports:
        raise InputError(f"reports={reports!r:.60}: give a list of at least 1 table")
    tables = [one.rows if isinstance(one, Report) else one for one in reports]
    for table in tables:
        _check_columns(table)
    rows = _check_table(pd.concat(tables, ignore_index=True))
    groups = rows.groupby("model", sort=False)[["task", "prompt", "id"]]
    questions = {str(model): {*part.itertuples(index=False, name=None)} for model, part in groups}
    every = set().union(*questions.values())
    for model, its in questions.items():
        if lacking := every - its:
            raise InputError(
                f"{model} was not asked task, prompt, id = {min(lacking)!r}, as another model was "
                f"({len(lacking)} such): ask all the same questions, or score them apart"
            )
    return rows


def paper_table(scored: Report, measure: str = "UAcc") -> pd.DataFrame:
    """One measure as printed in the paper: a row per model, a column per task, and the average.

    Raises:
        InputError: an unknown measure.
    """
    rows = _scored(scored)
    values.known("measure", measure, dict.fromkeys(rows["name"]))
    chosen = rows[rows["name"] == measure]
    wide = chosen.pivot_table("value", "model", "task", sort=False, dropna=False)
    wide.columns.name = wide.index.name = None
    return wide.assign(average=wide.mean(axis=1, skipna=False))


def certainty(scored: Report) -> pd.DataFrame:
    """Accuracy and set size of each model on each task, the mean over prompts, with intervals
    (those of set sizes for the threshold found).

    Returns:
        One row each: model, task, accuracy, accuracy_low, accuracy_high, and the same for set_size.
    """
    rows = []
    known = _scored(scored).dropna(subset=["value"])
    for (model, task), part in known.groupby(["model", "task"], sort=False):
        row: dict[str, Any] = {"model": model, "task": task}
        size = next(name for name in part["name"] if name.startswith("set size"))
        for column, name in (("accuracy", "accuracy"), ("set_size", size)):
            means = part.loc[part["name"] == name, ["value", "low", "high"]].mean()
            names = (column, f"{column}_low", f"{column}_high")
            row |= dict(zip(names, means, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def _scored(report: Report) -> pd.DataFrame:
    _check_columns(report.rows, [*KEY, "name", "value"], "score_options")
    return report.rows


def _summary(rows: pd.DataFrame) -> tuple[Metric, ...]:
    """The averages of the main metrics for each model."""
    main = rows["name"].str.match(r"(accuracy|UAcc|coverage|set size)\b|ece$")
    names = rows["name"][main].unique()
    metrics = []
    models = rows.groupby("model", sort=False)
    for model, part in models:
        for name in names:
            chosen = part[part["name"] == name]
            if not chosen.empty:
                shown = name if len(models) == 1 else f"{model}: {name}"
                metrics.append(_average(shown, chosen))
    return tuple(metrics)


def _average(name: str, rows: pd.DataFrame) -> Metric:
    """The mean over prompts and then tasks; half an interval's width serves as a standard error."""
    tasks = rows.groupby("task", sort=False)[["value", "low", "high"]].mean()
    below, above = (
        float((side**2).sum() ** 0.5 / len(tasks))
        for side in (tasks["value"] - tasks["low"], tasks["high"] - tasks["value"])
    )
    value = float(tasks["value"].mean())
    # Prompts ask the same items.
    counted = rows.groupby("task")[["n", "n_failed", "n_unparsed"]].max().sum().astype(int)
    kind = Share if rows["name"].str.match("accuracy|coverage").all() else Metric
    return kind(name, value, value - below, value + above, *counted.tolist())


def _check_table(table: Report | pd.DataFrame) -> pd.DataFrame:
    """The table's rows, checked: each item once and with one answer."""
    rows = table.rows if isinstance(table, Report) else table
    _check_columns(rows)
    if rows.empty:
        raise InputError("the table has no rows: elicit some")
    if rows[[*KEY, "id"]].isna().any(axis=None):
        raise InputError("the table has rows without a model, task, prompt or id: fill them in")
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


def _check_columns(
    rows: Any,
    names: Sequence[str] = (*KEY, "id", "answer", *LETTERS, "error"),
    made_by: str = "elicit",
) -> None:
    if missing := [name for name in names if name not in getattr(rows, "columns", [])]:
        raise InputError(f"a table without {', '.join(missing)}: give what `{made_by}` returns")
