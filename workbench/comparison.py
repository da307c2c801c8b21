"""Evaluations compared: paired differences, their significance, and costs.

`by_samples` computes a whole curve of votes from one report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from workbench.agents.methods import cluster
from workbench.browser import with_reports
from workbench.clusters import ROUNDING, clustered_error, clustered_mean, crossed_mean
from workbench.errors import InputError
from workbench.lazy import np, pd
from workbench.samples import report_items
from workbench.stats import Z, mcnemar, mean, paired_shares
from workbench.types import Metric, Report, Usage
from workbench.verdicts import Evaluation, accuracy, clusters_of

NAN = float("nan")
SIGNS = 6
"""Below this number of items that only one of two solves, McNemar's test shows nothing."""
POWER = 0.841621
"""For a power of 4 in 5: standard errors from the detectable difference to its interval's end."""


@with_reports
def compare(
    report: Report, other: Report, name: str = "difference", *, cluster: str | None = None
) -> Metric:
    """Accuracy of `report` minus that of `other`, over the items that both answered.

    Items are matched by `id`, with the mean over several runs. Items that failed in either report
    are left out and counted as failed; items that only one report has are left out.

    Args:
        cluster: a column of the rows, such as "passage": items with the same value are alike. By
            default the field by which the reports were evaluated, if there is one.

    Returns:
        The difference with its paired 95 % interval: of shares (see `stats.paired_shares`), of the
        items' means if runs differ (see `stats.mean`), or of items in clusters (Miller 2024, arXiv
        2411.00640, section 4.2; see `clusters.clustered_mean`).

    Raises:
        InputError: the reports share no items, or belong to different tasks; or there is no such
            column, or an item has several values of it.
    """
    done, failed = _paired(report, other, name)
    if done.empty:
        return Metric(name, NAN, -1.0, 1.0, 0, n_failed=failed)
    gains = done["correct"] - done["correct_other"]
    if (clusters := _clusters(done, report, other, cluster)) is not None:
        return replace(clustered_mean(name, gains, clusters, -1.0), n_failed=failed)
    if _runs_agree(done):
        return paired_shares(name, done["correct"], done["correct_other"], n_failed=failed)
    return replace(mean(name, gains, -1.0, 1.0), n_failed=failed)


def _clusters(
    done: pd.DataFrame, report: Report, other: Report, field: str | None
) -> pd.Series[str] | None:
    """The cluster of each compared item, if the reports have clusters or a field is given."""
    field = field or report.provenance.get("cluster") or other.provenance.get("cluster")
    found = clusters_of((report if field in report.rows else other).rows, field)
    return None if found is None else found[done["id"]]


def compare_p(report: Report, other: Report, *, cluster: str | None = None) -> float:
    """The p-value of the difference in `compare`: McNemar's exact test; if runs differ, the paired
    t-test of the items' means (the sign test if all differ by the same); with clusters, the t-test
    with their standard error (the sign test of clusters if it is 0; 1 for a single cluster).

    Raises:
        InputError: as `compare`, or no item was answered in both reports.
    """
    done, _ = _paired(report, other, "compare_p")
    if done.empty:
        raise InputError("compare_p: no item was answered in both reports")
    from scipy.stats import binomtest, t, ttest_rel

    gains = done["correct"] - done["correct_other"]
    if (clusters := _clusters(done, report, other, cluster)) is not None:
        error, count = clustered_error(gains, clusters)
        if error > ROUNDING:
            return float(2 * t.sf(abs(gains.mean()) / error, count - 1))
        return float(binomtest(count, count).pvalue) if count > 1 and gains.mean() else 1.0
    if _runs_agree(done):
        return mcnemar(done["correct"], done["correct_other"])
    if (gains == gains.iloc[0]).all():  # the spread is 0: use the signs
        return float(binomtest(len(gains), len(gains)).pvalue) if gains.any() else 1.0
    return float(ttest_rel(done["correct"], done["correct_other"]).pvalue)


def comparison(reports: Mapping[Any, Report], *, cluster: str | None = None) -> pd.DataFrame:
    """All reports, each compared with the first, on the items that both answered.

    Args:
        cluster: as for `compare`; the accuracies' intervals are clustered too.

    Returns:
        A row per report: name; accuracy, low, high (95 %), n, n_failed, n_unparsed; runs;
        difference to the first, difference_low, difference_high, p, and p_holm, adjusted for all
        comparisons (Holm 1979); detectable, about the smallest difference that 4 of 5 such samples
        would show at the 5 % level; prompt_tokens and completion_tokens, if the rows have them;
        seconds, and speedup, the first's seconds over the report's, if neither used stored answers.

    Raises:
        InputError: no reports; and as `compare`.
    """
    if not isinstance(reports, Mapping) or not reports:
        raise InputError(f"reports={reports!r:.60}: pass reports by name, {{name: report}}")
    first = next(iter(reports.values()))
    rows = []
    for name, report in reports.items():
        versus = {} if report is first else _difference(report, first, name, cluster)
        rows.append({**_accuracy_and_costs(name, report, cluster), **versus})
    table = pd.DataFrame(rows)
    if "p" in table:
        table.insert([*table.columns].index("p") + 1, "p_holm", _holm(table["p"]))
    return table


def _accuracy_and_costs(name: str, report: Report, cluster: str | None) -> dict[str, Any]:
    rows = report.rows
    metric = accuracy(rows, cluster=cluster) if cluster else report.summary[0]
    costs = ("prompt_tokens", "completion_tokens")
    return {
        "name": name, "accuracy": metric.value, "low": metric.low, "high": metric.high,
        "n": metric.n, "n_failed": metric.n_failed, "n_unparsed": metric.n_unparsed,
        "runs": int(rows["run"].nunique()) if "run" in rows else 1,
        **{cost: int(rows[cost].sum()) for cost in costs if cost in rows},
        "seconds": report.usage.seconds,
    }  # fmt: skip


def _difference(report: Report, first: Report, name: str, cluster: str | None) -> dict[str, float]:
    apart = compare(report, first, name, cluster=cluster)
    facts = {"difference": apart.value, "difference_low": apart.low, "difference_high": apart.high}
    if not report.usage.from_store and not first.usage.from_store and report.usage.seconds:
        facts["speedup"] = first.usage.seconds / report.usage.seconds
    if not apart.n:
        return {**facts, "p": NAN, "detectable": NAN}
    detectable = (Z + POWER) * ((apart.high - apart.low) / 2 / Z)
    if _runs_agree(_paired(report, first, name)[0]):
        detectable = max(detectable, SIGNS / apart.n)
    return {
        **facts,
        "p": compare_p(report, first, cluster=cluster),
        "detectable": min(1.0, detectable),
    }


def _holm(values: pd.Series[float]) -> pd.Series[float]:
    """p-values adjusted for several tests (Holm 1979); NaN stays NaN."""
    known = values.dropna().sort_values()
    steps = known * np.arange(len(known), 0, -1)
    return steps.cummax().clip(upper=1.0).reindex(values.index)


def _runs_agree(done: pd.DataFrame) -> bool:
    """Whether each item has the same verdict in all runs."""
    return bool(done[["correct", "correct_other"]].isin([0.0, 1.0]).all(axis=None))


def _paired(report: Report, other: Report, name: str) -> tuple[pd.DataFrame, int]:
    """The items that both answered, and the number of items left out because one failed."""
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
    done = both[both["correct"].notna() & both["correct_other"].notna()]
    return done, len(both) - len(done)


def across_seeds(
    reports: Report | Sequence[Report] | Mapping[Any, Report], *, cluster: str | None = None
) -> Report:
    """Accuracy over reports of the same items with other seeds, for other items and other seeds.

    Each report is a seed, whatever it is a seed of: training, worked examples, sampling; of a
    single report, each run is one. The interval is of crossed random effects
    (`clusters.crossed_mean`); it needs about 5 seeds.

    Args:
        cluster: as for `compare`.

    Returns:
        The accuracy over the items that all answered; an item that failed with one seed counts as
        failed. A row for each seed, on these items. `provenance["variance"]` has the parts of the
        squared standard error: items, seeds, and the rest.

    Raises:
        InputError: fewer than 2 seeds or items; and as `compare`.
    """
    if isinstance(reports, Report):
        seeds = {run: replace(reports, rows=rows) for run, rows in reports.rows.groupby("run")}
    else:
        seeds = dict(reports if isinstance(reports, Mapping) else enumerate(reports))
    if len(seeds) < 2:
        raise InputError(f"across_seeds: {len(seeds)} seeds: pass reports with 2 seeds or more")
    first = next(iter(seeds.values()))
    for report in seeds.values():
        _paired(report, first, "across_seeds")
    verdicts = {
        name: _verdicts(report).set_index("id")["correct"] for name, report in seeds.items()
    }
    both = pd.concat(verdicts, axis=1, join="inner")
    done = both.dropna().rename_axis("id").reset_index()
    metric, parts = crossed_mean("accuracy", done[[*seeds]], _clusters(done, first, first, cluster))
    kept = [report.rows[report.rows["id"].isin(done["id"])] for report in seeds.values()]
    each = [asdict(accuracy(rows, str(name))) for name, rows in zip(seeds, kept, strict=True)]
    lost = {"n_failed": len(both) - len(done), "n_unparsed": sum(r["n_unparsed"] for r in each)}
    used = [report.usage for report in seeds.values()]
    usage = reports.usage if isinstance(reports, Report) else sum(used, Usage())
    about = {**first.provenance, "seeds": [*map(str, seeds)], "variance": parts}
    return Report((replace(metric, **lost),), pd.DataFrame(each), usage, about)


def _verdicts(report: Report) -> pd.DataFrame:
    """A row per item: its answer, and its mean share of right answers; NaN if all failed."""
    columns = ["id", "answer", "correct", "error"]
    rows = report.rows
    if missing := [column for column in columns if column not in rows]:
        raise InputError(f"a report without {', '.join(missing)}: pass what `evaluate` returns")
    key = ["id", "run"] if "run" in rows else ["id"]
    twice = rows["id"][rows.duplicated(key)]
    if not twice.empty:
        raise InputError(f"a report with item {twice.iloc[0]!r} twice: ids must be unique")
    right = rows["correct"].astype(float).where(rows["error"].isna())
    items = rows.assign(correct=right).groupby("id", sort=False)
    return items.agg(answer=("answer", "first"), correct=("correct", "mean")).reset_index()


def by_samples(task: object, report: Evaluation, counts: Sequence[int]) -> pd.DataFrame:
    """Accuracy of the vote over the first k samples of each item, for each k of `counts`.

    Args:
        task: the task of `report`, which is an evaluation by `MajorityVote`.

    Returns:
        A row for each count: samples, tokens (the mean number of generated tokens per item), and
        what `comparison` says of accuracy and of the difference to the first count.

    Raises:
        InputError: the report has fewer samples for an item, or more than one call.
    """
    trace = report.trace[report.trace["error"].isna()]
    drawn = list(trace.groupby(["id", "run"], sort=False))
    least = min((len(part) for _, part in drawn), default=0)
    if not counts or min(counts) < 1 or max(counts) > least or report.rows["calls"].max() > 1:
        raise InputError(
            f"counts={list(counts)}: must be from 1 to {least}, the number of samples per item in "
            "the report of the majority vote"
        )
    task, items = report_items(report, task)
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
            about_it = {"id": key, "run": run, "answer": item.answer, "tokens": tokens[count - 1]}
            rows[count].append(about_it | verdict)
    parts = {}
    for count, verdicts in rows.items():
        frame = pd.DataFrame(verdicts)
        parts[f"a vote of {count}"] = replace(report, rows=frame, summary=(accuracy(frame),))
    means = [float(part.rows["tokens"].mean()) for part in parts.values()]
    found = comparison(parts).drop(columns=["runs", "seconds", "n_failed", "n_unparsed"])
    return found.assign(samples=[*rows], tokens=means)
