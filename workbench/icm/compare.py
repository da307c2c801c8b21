"""Methods side by side: accuracies with intervals, paired differences, costs, and plain words.

With several seeds the same claim, judged again with other labels, is no new one: intervals are over
claims (means over seeds) and over seeds, both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workbench.stats import Z, mcnemar, mean, paired_shares, proportion
from workbench.types import Metric

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["method_table", "paired", "verdicts"]

NAN = float("nan")


def method_table(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a method, in the order in which they were run.

    Args:
        rows: a row a method, seed and test claim (method, seed, id, correct, error).
        runs: a row a method and seed (labels, label_accuracy, labels_true, costs).

    Returns:
        method, seeds; test accuracy: value, low, high (95 %), n (claims judged at each seed),
        n_failed (the others), worst_seed and best_seed (its accuracy);
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
    for column in ("labels", "label_accuracy", "labels_true"):
        facts[column] = run[column].astype(float).mean()
    facts["labels_opposite"] = 1 - facts["label_accuracy"]
    versus, p = Metric("", NAN, NAN, NAN, 0), NAN
    if "golden labels" in methods and method != "golden labels":
        versus, p = paired(rows, method, "golden labels")
    facts |= {"versus_golden": versus.value, "versus_golden_low": versus.low}
    facts |= {"versus_golden_high": versus.high, "versus_golden_p": p}
    costs = [name for name in map(str, runs) if name.startswith(("finding_", "test_"))]
    return facts | {name: run[name].mean() for name in costs}


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


def verdicts(rows: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """What the table says of the search, in plain words."""
    by_name = table.set_index("method")
    said = [
        f"{name}: {share:.0%} of its labels are opposite to gold: it has found the concept upside "
        "down, or another one"
        for name, share in by_name["labels_opposite"].items()
        if share > 0.5 and name in ("ICM", "bootstrapping")
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
