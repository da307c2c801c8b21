"""Methods side by side: accuracies with intervals, paired differences, costs, and plain words.

With several seeds the same claim, judged again with other labels, is no new one: intervals are over
claims (means over seeds) and over seeds, both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.icm.claim import Labelled
from workbench.icm.predictability import collapsed
from workbench.stats import Z, mcnemar, mean, paired_shares, proportion
from workbench.types import Metric

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

NAN = float("nan")
AUROC = ("auroc", "auroc_low", "auroc_high")
MAY_DIFFER = ("seeds", "notes", "engine", "commit")
ONCE = ("zero-shot", "zero-shot chat")
"""The methods that depend neither on claims nor on chance."""
FOUND = ("ICM", "bootstrapping")
"""The methods that find labels by themselves."""


def method_table(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a method, in the order in which they were run.

    Args:
        rows: a row a method, seed and test claim (method, seed, id, correct, error).
        runs: a row a method and seed (labels, label_accuracy, labels_true, costs).

    Returns:
        method, seeds; test accuracy: value, low, high (95 %), n (claims judged at each seed),
        n_failed (the others), worst_seed and best_seed (its accuracy);
        auroc, auroc_low, auroc_high: see `discrimination`, means over seeds;
        labels, label_accuracy and labels_opposite (to gold; together 1), labels_true;
        versus_golden, versus_golden_low, versus_golden_high, versus_golden_p (see `paired`; NaN
        without golden labels); means over seeds of finding_… and test_… prompts, prompt_tokens,
        computed_tokens, seconds.
    """
    import pandas as pd

    methods = list(dict.fromkeys(rows["method"]))
    return pd.DataFrame(_method(rows, runs, method, methods) for method in methods)


def _method(
    rows: pd.DataFrame, runs: pd.DataFrame, method: str, methods: list[str]
) -> dict[str, Any]:
    mine, run = rows[rows["method"] == method], runs[runs["method"] == method]
    metric = _accuracy(mine)
    by_seed = _right(mine).mean()
    facts: dict[str, Any] = {
        "method": method, "seeds": len(run), "value": metric.value, "low": metric.low,
        "high": metric.high, "n": metric.n, "n_failed": metric.n_failed,
        "worst_seed": by_seed.min(), "best_seed": by_seed.max(),
    }  # fmt: skip
    for column in (*AUROC, "labels", "label_accuracy", "labels_true"):
        facts[column] = run[column].astype(float).mean()
    facts["labels_opposite"] = 1 - facts["label_accuracy"]
    versus, p = Metric("", NAN, NAN, NAN, 0), NAN
    if "golden labels" in methods and method != "golden labels":
        versus, p = paired(rows, method, "golden labels")
    facts |= {"versus_golden": versus.value, "versus_golden_low": versus.low}
    facts |= {"versus_golden_high": versus.high, "versus_golden_p": p}
    costs = [name for name in map(str, runs) if name.startswith(("finding_", "test_"))]
    return facts | {name: run[name].mean() for name in costs}


def discrimination(name: str, odds: ArrayLike, gold: ArrayLike) -> Metric:
    """AUROC of the log-odds: how often those of a true claim are above those of a false one.

    The interval is a 95 % bootstrap one over claims, see `uncertainty.selective_report`. Claims
    without log-odds (NaN) are the failed ones; with gold labels of one kind all is NaN.
    """
    import numpy as np

    from workbench.uncertainty.selective_prediction import selective_report

    values, truth = np.asarray(odds, float), np.asarray(gold, bool)
    known = ~np.isnan(values)
    n, failed = int(known.sum()), int((~known).sum())
    if len(np.unique(truth[known])) < 2:
        return Metric(name, NAN, NAN, NAN, n, failed)
    signal = values[known]
    row = selective_report({"log-odds": signal}, truth[known].astype(int), lengths=signal).iloc[0]
    value, low, high = (float(row[column]) for column in AUROC)
    return Metric(name, value, low, high, n, failed)


def agreement(found: Mapping[int, Labelled]) -> list[Metric]:
    """For each two seeds the shares of claims, labelled at both, with equal and opposite labels."""
    by_seed = {seed: {claim.text: label for claim, label in own} for seed, own in found.items()}
    metrics = []
    for one, other in combinations(by_seed, 2):
        both = by_seed[one].keys() & by_seed[other].keys()
        same = sum(by_seed[one][text] is by_seed[other][text] for text in both)
        for what, hits in (("equal", same), ("inverted", len(both) - same)):
            if both:
                metrics.append(proportion(f"seeds {one} and {other}: {what}", hits, len(both)))
    return metrics


def join(*folders: str | Path) -> pd.DataFrame:
    """The table of methods of saved studies that differ in their seeds, such as of two machines.

    Raises:
        InputError: a folder holds no study, or two have a seed in common or differ in anything
            but their seeds.
    """
    import pandas as pd

    rows, runs, known = [], [], dict[str, Any]()
    for folder in map(Path, folders):
        try:
            rows.append(pd.read_parquet(folder / "rows.parquet"))
            runs.append(pd.read_csv(folder / "runs.csv"))
            facts = json.loads((folder / "summary.json").read_text("utf-8"))["provenance"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder} holds no saved study: {error}") from error
        engine = {name: facts["engine"][name] for name in ("model", "revision", "dtype")}
        mine = {k: v for k, v in facts.items() if k not in MAY_DIFFER} | engine
        mine["test claims"] = sorted({*rows[-1]["id"]})
        if differ := [k for k, v in mine.items() if known and known.get(k) != v]:
            raise InputError(f"{folder} is of another study than {folders[0]}: its {differ[0]}")
        known = known or mine
    if not folders:
        raise InputError("give the folders of saved studies, 1 at least")
    every, facts_of = pd.concat(rows, ignore_index=True), pd.concat(runs, ignore_index=True)
    if (twice := every.duplicated(["method", "seed", "id"])).any():
        raise InputError(f"seed {every['seed'][twice].iloc[0]} is in two of the studies")
    again = facts_of["method"].isin(ONCE) & facts_of["method"].duplicated()
    return method_table(every, facts_of[~again])


def _accuracy(rows: pd.DataFrame) -> Metric:
    right = _right(rows).dropna()
    failed = rows["id"].nunique() - len(right)
    if right.empty:
        return Metric("", NAN, 0.0, 1.0, 0, failed)
    shares = right.mean(axis=1)
    if shares.isin([0.0, 1.0]).all():
        return proportion("", int(shares.sum()), len(shares), n_failed=failed)
    found = mean("", shares, 0.0, 1.0)
    below, above = _halves(found, right)
    low, high = max(0.0, found.value - below), min(1.0, found.value + above)
    return Metric("", found.value, low, high, found.n, failed)


def paired(rows: pd.DataFrame, method: str, other: str) -> tuple[Metric, float]:
    """Accuracy of `method` minus that of `other` on the same claims, and a p-value.

    Where no seed changes a verdict it is McNemar's exact test; else the t intervals of
    the claims' mean differences and of the seeds' are added in squares, and p is below 0.05 where
    the sum leaves out 0 (normal).
    """
    mine, theirs = (_right(rows[rows["method"] == name]) for name in (method, other))
    apart = (mine - theirs).dropna()
    if len(apart) < 2:
        return Metric("", NAN, -1.0, 1.0, len(apart)), NAN
    a, b = (one.loc[apart.index].mean(axis=1) for one in (mine, theirs))
    if a.isin([0.0, 1.0]).all() and b.isin([0.0, 1.0]).all():
        return paired_shares("", a, b), mcnemar(a, b)
    found = mean("", apart.mean(axis=1), -1.0, 1.0)
    below, above = _halves(found, apart)
    p = math.erfc(Z * abs(found.value) / (below if found.value > 0 else above) / 2**0.5)
    low, high = max(-1.0, found.value - below), min(1.0, found.value + above)
    return Metric("", found.value, low, high, found.n), p


def _right(rows: pd.DataFrame) -> pd.DataFrame:
    """Right (1.0) or wrong (0.0), a row a claim, a column a seed."""
    done = rows[rows["error"].isna()].astype({"correct": float})
    return done.pivot_table("correct", "id", "seed")


def _halves(claims: Metric, by_seed: pd.DataFrame) -> tuple[float, float]:
    """How far the interval of claims' means goes down and up with a t interval over the seeds."""
    from scipy.stats import t

    seeds, k, half = by_seed.mean(), by_seed.shape[1], 0.0
    if k > 1:
        half = float(t.ppf(0.975, k - 1) * seeds.std(ddof=1) / k**0.5)
    value = claims.value
    return math.hypot(value - claims.low, half), math.hypot(claims.high - value, half)


def seed_notes(rows: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Which of several seeds have collapsed or are inverted, which a mean hides."""
    if runs["seed"].nunique() < 2:
        return []
    said, shares = [], runs.astype({"label_accuracy": float, "labels_true": float})
    for run in shares[shares["method"].isin(FOUND)].to_dict("records"):
        mine = rows[(rows["method"] == run["method"]) & (rows["seed"] == run["seed"])]
        right = mine["correct"][mine["error"].isna()].astype(float).mean()
        who = f"{run['method']}, seed {run['seed']} (test accuracy {right:.2f})"
        if collapsed(run["labels_true"]):
            said.append(f"{who}: it has collapsed, {run['labels_true']:.0%} of its labels are True")
        elif run["label_accuracy"] < 0.5:
            said.append(
                f"{who}: {1 - run['label_accuracy']:.0%} of its labels are opposite to gold"
            )
    return said


def verdicts(rows: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """What the table says of the search, in plain words."""
    by_name = table.set_index("method")
    said = [
        f"{name}: {share:.0%} of its labels are opposite to gold: it has found the concept upside "
        "down, or another one"
        for name, share in by_name["labels_opposite"].items()
        if share > 0.5 and name in FOUND
    ]
    if "ICM" not in by_name.index or "bootstrapping" not in by_name.index:
        return said
    gain, p = paired(rows, "ICM", "bootstrapping")
    tokens = by_name["finding_computed_tokens"][["ICM", "bootstrapping"]]
    ends = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f} points, p = {p:.2g}"
    does = "beats" if gain.low > 0 else "does not beat"
    times = tokens["ICM"] / tokens["bootstrapping"] if tokens.all() else NAN  # all from the store
    price = f", at {times:.1f} times its computed tokens" if times > 0 else ""
    said.append(f"ICM {does} bootstrapping here ({100 * gain.value:+.1f}, {ends}){price}")
    return said
