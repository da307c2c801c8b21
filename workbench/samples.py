"""Accuracy by the number of samples, from samples drawn once: pass@k and maj@k.

Both are exact expectations over all subsets of k of an item's samples: nothing is drawn again. An
item that has fewer samples than the largest k, as some failed, is a failed row of the curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from workbench import values
from workbench.agents.methods import cluster as cluster_answers
from workbench.cases import as_task
from workbench.clusters import clustered_mean
from workbench.errors import InputError
from workbench.lazy import ArrayLike, NDArray, np, pd
from workbench.stats import mean
from workbench.types import Item, Report, Task, Usage
from workbench.verdicts import clusters_of, shares_by, try_to_grade

MOST = 1000
"""Maximum number of samples per item of a vote: more subsets than a float can count."""
COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Drawn:
    """An item's samples: how many came, are right, were unreadable and failed.

    `groups` has the size of each group of equal answers, and whether it is right.
    """

    samples: int
    right: int
    unparsed: int = 0
    failed: int = 0
    groups: tuple[tuple[int, bool], ...] = ()


def pass_at(samples: int, right: int, k: int) -> float:
    """Probability that at least one of k samples is right, without bias: 1 - C(n-c, k) / C(n, k).

    As the stable product of Chen et al. (2021, arXiv 2107.03374, section 2.1 and figure 3).

    Args:
        samples, right: n samples (k or more), of which c are right.
    """
    if samples - right < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - right + 1, samples + 1)))


def majority_at(samples: int, groups: Sequence[tuple[int, bool]], k: int) -> float:
    """Probability that the vote of k of n samples is right, over all subsets and orders of them.

    The largest group of equal answers wins; of t groups that tie, each wins in 1 of t orders, as
    the answer that comes first wins (`agents.MajorityVote`). Unreadable samples do not vote.

    Args:
        samples: n, at most `MOST`.
        groups: size of each group of equal answers, and whether it is right.
    """
    return float(_majorities(samples, tuple(sorted(groups)), k)[k])


@cache
def _majorities(
    samples: int, groups: tuple[tuple[int, bool], ...], most: int
) -> NDArray[np.float64]:
    """`majority_at` for each k up to `most`: the subsets that a right group wins are counted.

    With m votes for it, a group of at least m others may have fewer than m votes, or m and tie.
    """
    wins = np.zeros(most + 1)
    for place, (size, right) in enumerate(groups):
        for m in range(1, min(size, most) + 1) if right else ():
            rivals = [one for at, (one, _) in enumerate(groups) if one >= m and at != place]
            free = samples - size - sum(rivals)
            ways = np.array([[math.comb(free, a) for a in range(most - m + 1)]], float)  # [ties, a]
            for rival in rivals:
                before, ways = ways, np.zeros((len(ways) + 1, ways.shape[1]))
                for a in range(min(m, most - m) + 1):
                    part = math.comb(rival, a) * before[:, : ways.shape[1] - a]
                    ways[1:, a:] += part if a == m else 0
                    ways[:-1, a:] += 0 if a == m else part
            wins[m:] += math.comb(size, m) * (ways / np.arange(1, len(ways) + 1)[:, None]).sum(0)
    return wins / [float(math.comb(samples, k)) for k in range(most + 1)]


def pass_at_k(
    report: Report | ArrayLike, k: Sequence[int] = COUNTS, *, task: object = None,
    cluster: str | None = None,
) -> Report:  # fmt: skip
    """Share of items that at least one of k samples solves, for each k (see `pass_at`).

    Args:
        report: of `evaluate` with several samples per item (`n=8, temperature=0.8`, or an agent
            that votes) or runs (`num_runs=8`); or right and wrong as 1 and 0 [items, samples], NaN
            where a sample failed.
        k: numbers of samples, at most as many as were drawn.
        task: the report's task, which grades the samples; by default the task of that name. Runs
            of one sample are graded already.
        cluster: as for `evaluate`; by default as the report.

    Returns:
        A metric for each k, with its 95 % interval over the items, and the paired difference of
        the largest k to the smallest; a row per item.

    Raises:
        InputError: k is not within the samples; or the task is another one.
    """
    if not isinstance(report, Report):
        table = np.asarray(report, float)
        if table.ndim != 2 or not (np.isnan(table) | np.isin(table, (0, 1))).all():
            raise InputError(f"pass_at_k: {table.shape}: pass 0, 1 or NaN, [items, samples]")
        came = ~np.isnan(table)
        counts = zip(came.sum(1), (table == 1).sum(1), (~came).sum(1), strict=True)
        items = {str(i): Drawn(int(n), int(c), 0, int(x)) for i, (n, c, x) in enumerate(counts)}
        report = Report((), pd.DataFrame({"id": [*items]}), Usage(), {})
    else:
        items = _drawn(report, task, vote=False)
    return _curve("pass", items, k, report, cluster)


def maj_at_k(
    report: Report, k: Sequence[int] = COUNTS, *, task: object = None, cluster: str | None = None
) -> Report:
    """Share of items that the majority vote of k samples solves, for each k (see `majority_at`).

    Arguments, result and errors are those of `pass_at_k`.
    """
    items = _drawn(report, task, vote=True)
    if max((one.samples for one in items.values()), default=0) > MOST:
        raise InputError(f"maj_at_k: an item has more than {MOST:,} samples: pass fewer runs")
    return _curve("maj", items, k, report, cluster)


def _curve(
    label: str, items: Mapping[str, Drawn], k: Sequence[int], report: Report, cluster: str | None
) -> Report:
    drawn = max((one.samples + one.failed for one in items.values()), default=0)
    counts = sorted({values.whole("k", one, 1) for one in k})
    if not counts or counts[-1] > drawn:
        raise InputError(f"k={[*k]}: must be from 1 to {drawn}, the number of samples per item")

    def at(one: Drawn, k: int) -> float:
        if label == "pass":
            return pass_at(one.samples, one.right, k)
        return majority_at(one.samples, one.groups, k)

    rows = [
        {
            "id": key, "samples": one.samples, "right": one.right, "unparsed": one.unparsed,
            "failed": one.failed,
            "error": None if one.samples >= counts[-1] else f"only {one.samples} samples came",
            **{f"{label}@{n}": at(one, n) for n in counts if one.samples >= counts[-1]},
        }
        for key, one in items.items()
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    done = frame[frame["error"].isna()].set_index("id")
    field = cluster or report.provenance.get("cluster")
    groups = clusters_of(report.rows, field)
    missing: dict[str, Any] = {
        "n_failed": len(frame) - len(done),
        "n_unparsed": int(done["unparsed"].sum()),
    }
    names = [f"{label}@{n}" for n in counts]
    found = [shares_by(name, done.get(name, done["right"]), groups, **missing) for name in names]
    if len(names) > 1 and len(done):
        name, gains = f"{names[-1]} - {names[0]}", done[names[-1]] - done[names[0]]
        if groups is None:
            gain = mean(name, gains, -1.0, 1.0)
        else:
            gain = clustered_mean(name, gains, groups[gains.index], -1.0)
        found.append(replace(gain, **missing))
    provenance = {**report.provenance, "curve": label, "k": counts, "cluster": field}
    return Report(tuple(found), frame, report.usage, provenance)


def _drawn(report: Report, task: object, *, vote: bool) -> dict[str, Drawn]:
    """The samples of each item: those of the trace, or the rows if a run has one sample."""
    rows, trace = report.rows, getattr(report, "trace", pd.DataFrame(columns=["id", "run"]))
    values.known("column of the report", "correct", map(str, rows.columns))
    several = trace.duplicated(["id", "run"]).any()
    several = several and rows["calls"].max() <= 1  # else they are calls of an agent, not answers
    if not several and not vote:
        return {str(key): _graded(part) for key, part in rows.groupby("id", sort=False)}
    known, items = report_items(report, task)
    texts = dict([*(trace if several else rows).groupby("id", sort=False)])
    empty = pd.DataFrame({"text": [""], "error": ["no sample came"]})
    return {
        str(key): _of_texts(known, items[str(key)], texts.get(key, empty))
        for key in rows["id"].unique()
    }


def report_items(report: Report, task: object) -> tuple[Task, dict[str, Item]]:
    """The task of a report, and its items by id.

    Raises:
        InputError: the task has no such items, or is unknown by its name.
    """
    about = report.provenance
    try:
        known = as_task(about["task"] if task is None else task)
    except (InputError, KeyError) as error:
        raise InputError(f"{error}: pass the report's task, task=…") from error
    items = {item.id: item for item in known.items(about["count"], about["seed"])}
    if missing := {*map(str, report.rows["id"])} - items.keys():
        raise InputError(f"{known.name} has no item {min(missing)!r:.60}: pass the report's task")
    return known, items


def _graded(rows: pd.DataFrame) -> Drawn:
    done = rows[rows["error"].isna()]
    right, unparsed = int(done["correct"].sum()), int((~done["parsed"].astype(bool)).sum())
    return Drawn(len(done), right, unparsed, len(rows) - len(done))


def _of_texts(task: Task, item: Item, drawn: pd.DataFrame) -> Drawn:
    came = drawn["text"][drawn["error"].isna()]
    grades = {text: try_to_grade(task, item, text)[0] for text in came.unique()}
    texts = [text for text in came if grades[text] is not None]
    given = [grade for text in texts if (grade := grades[text])]
    groups = cluster_answers(task, item, texts)
    return Drawn(
        len(texts),
        sum(bool(grade.correct) for grade in given),
        sum(not grade.parsed for grade in given),
        len(drawn) - len(texts),
        tuple((len(group), bool(given[group[0]].correct)) for group in groups),
    )
