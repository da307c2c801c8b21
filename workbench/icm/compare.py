"""Measure the value of labels on held-out claims, and compare methods.

With several seeds, the same claim judged again with other labels is not a new observation:
intervals are over claims (means over seeds) and over seeds, combined.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from workbench.errors import EngineError, InputError
from workbench.icm.claim import Claim, Labelled, Wording, check_claims
from workbench.icm.predictability import collapsed
from workbench.icm.report import ICMReport
from workbench.icm.scorer import Scorer
from workbench.lazy import ArrayLike, np, pd
from workbench.runs import commit
from workbench.stats import Z, mcnemar, mean, mean_share, paired_shares, proportion
from workbench.types import Engine, Metric, Prompt, Report, Usage
from workbench.verdicts import accuracy

NAN = float("nan")
AUROC = ("auroc", "auroc_low", "auroc_high")
MAY_DIFFER = ("seeds", "notes", "engine", "commit")
ONCE = ("zero-shot", "zero-shot chat")
"""The methods that depend neither on the claims nor on a seed."""
FOUND = ("ICM", "bootstrapping")
"""The methods that find labels without supervision."""


def evaluate_labels(
    report_or_labels: ICMReport | Labelled,
    test_claims: Sequence[Claim],
    engine: Engine,
    *,
    wording: Wording | None = None,
) -> Report:
    """Test accuracy: held-out claims, each judged after all labelled ones as demonstrations.

    *Label accuracy* is different: the share of correct labels among the labelled claims.

    Args:
        report_or_labels: the report of `search`, or claims with labels; empty means zero-shot.
        test_claims: held out; those without gold are judged but do not count.
        wording: None means the report's.

    Returns:
        A `Report` with "test accuracy" and the share judged True, one row per test claim. If not
        all demonstrations fit into the context, `scorer.ContextFit` selects them; the provenance
        has the mean, minimum and maximum per prompt. A test claim that does not fit even alone is
        a failed row.

    Raises:
        InputError: no test claims, one of them is among the labelled ones, or a label is missing.
        EngineError: no claim could be judged.
    """
    if isinstance(report_or_labels, ICMReport):
        wording = wording or Wording(**report_or_labels.provenance["wording"])
        shown = report_or_labels.labelled()
    else:
        shown = report_or_labels
    wording, test = wording or Wording(), check_claims(test_claims, "test_claims")
    claims, labels = _parted(shown)
    known = {claim.text for claim in claims}
    for claim in test:
        if claim.text in known:
            raise InputError(f"the test claim {claim.text!r:.80} is a demonstration too: drop it")
    before, prompts = engine.usage, [claim.text for claim in test]
    settings: dict[str, Any] = {"demonstrations": 0, "labelled": len(claims)}
    if claims:
        scorer = Scorer(engine, claims, wording, more=prompts)
        prompts = [scorer.prompt(labels, range(len(claims)), text) for text in prompts]
        counts = scorer.shown_counts
        settings |= {
            "demonstrations": counts.mean,
            "demonstrations_least": counts.least,
            "demonstrations_most": counts.most,
        }
    return _judged(test, prompts, wording.labels, engine, before=before, settings=settings)


def evaluate_chat(
    test_claims: Sequence[Claim], engine: Engine, *, wording: Wording | None = None
) -> Report:
    """Test accuracy without demonstrations, each claim asked in a chat.

    Raises:
        InputError: no test claims, or the model has no chat template.
        EngineError: no claim could be judged.
    """
    wording, test = wording or Wording(), check_claims(test_claims, "test_claims")
    prompts = [
        [{"role": "user", "content": wording.chat.replace("{claim}", claim.text)}] for claim in test
    ]
    before, settings = engine.usage, {"demonstrations": 0, "chat": True}
    return _judged(test, prompts, wording.chat_labels, engine, before=before, settings=settings)


def _parted(shown: Labelled) -> tuple[tuple[Claim, ...], tuple[bool, ...]]:
    """Claims and their labels, after checking that each has one."""
    for pair in shown:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], bool | np.bool)):
            raise InputError(f"{pair!r:.80} must be a claim with its label: (Claim, True or False)")
    claims = check_claims([claim for claim, _ in shown]) if shown else ()
    return claims, tuple(bool(label) for _, label in shown)


def _judged(
    test: Sequence[Claim],
    prompts: Sequence[Prompt],
    labels: tuple[str, str],
    engine: Engine,
    *,
    before: Usage,
    settings: dict[str, Any],
) -> Report:
    scores = engine.label_logprobs(prompts, labels, errors="return")
    facts = []
    for index, claim in enumerate(test):
        true, false = (float(value) for value in scores.logprobs[index])
        error = scores.errors[index]
        known = math.isfinite(true) and math.isfinite(false) and not scores.missing[index].any()
        if error is None and not known:
            error = "a label's log-probability is missing: an engine that scores labels is needed"
        verdict, odds = (None, None) if error else (true > false, true - false)
        facts.append(verdict_row(claim, verdict, odds, error))
    rows = pd.DataFrame(facts)
    if rows["error"].notna().all():
        raise EngineError(f"no test claim could be judged. First: {rows['error'].iloc[0]}")
    with_gold = rows[rows["answer"].notna()]
    verdicts = rows.assign(correct=rows["verdict"].fillna(value=False).astype(bool))
    summary = [accuracy(with_gold, "test accuracy")] if len(with_gold) else []
    summary.append(accuracy(verdicts, "judged True"))
    provenance = {**settings, "test_claims": len(test), "engine": asdict(engine.info)}
    provenance["commit"] = commit()
    return Report(tuple(summary), rows, engine.usage.since(before), provenance)


def verdict_row(
    claim: Claim, verdict: bool | None, log_odds: float | None = None, error: str | None = None
) -> dict[str, Any]:
    """The row of a test claim."""
    return {
        "id": claim.text,
        "group": claim.group,
        "answer": None if claim.gold is None else str(claim.gold),
        "verdict": verdict,
        "log_odds": log_odds,
        "correct": verdict is not None and verdict is claim.gold,
        "parsed": True,
        "error": error,
    }


def method_table(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One row per method, in the order in which they ran.

    Args:
        rows: one row per method, seed and test claim (method, seed, id, correct, error).
        runs: one row per method and seed (labels, label_accuracy, labels_true, costs).

    Returns:
        method, seeds; test accuracy: value, low, high (95 %), n (claims judged with every seed),
        n_failed (the others), worst_seed and best_seed (their accuracies);
        auroc, auroc_low, auroc_high: see `discrimination`, means over seeds;
        labels, label_accuracy and labels_opposite (to gold; together 1), labels_true;
        versus_golden, versus_golden_low, versus_golden_high, versus_golden_p (see `paired`; NaN
        without golden labels); means over seeds of finding_… and test_… prompts, prompt_tokens,
        computed_tokens, seconds.
    """
    methods = list(dict.fromkeys(rows["method"]))
    return pd.DataFrame(_method(rows, runs, method, methods) for method in methods)


def _method(
    rows: pd.DataFrame, runs: pd.DataFrame, method: str, methods: list[str]
) -> dict[str, Any]:
    own, run = rows[rows["method"] == method], runs[runs["method"] == method]
    metric = _accuracy(own)
    by_seed = _right(own).mean()
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
    """AUROC of the log-odds: how often a true claim's are above a false claim's.

    The interval is a 95 % bootstrap over claims, see `uncertainty.selective_report`. Claims without
    log-odds (NaN) count as failed; with gold labels of only one kind all values are NaN.
    """
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
    """For each two seeds the shares of claims, labelled by both, with equal and opposite labels."""
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
    """The method table over saved studies with different seeds, for example of two machines.

    Raises:
        InputError: a folder holds no study, or two share a seed or differ in more than their seeds.
    """
    rows, runs, known = [], [], dict[str, Any]()
    for folder in map(Path, folders):
        try:
            rows.append(pd.read_parquet(folder / "rows.parquet"))
            runs.append(pd.read_csv(folder / "runs.csv"))
            facts = json.loads((folder / "summary.json").read_text("utf-8"))["provenance"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder} holds no saved study: {error}") from error
        engine = {name: facts["engine"][name] for name in ("model", "revision", "dtype")}
        facts = {k: v for k, v in facts.items() if k not in MAY_DIFFER} | engine
        facts["test claims"] = sorted({*rows[-1]["id"]})
        if differ := [k for k, v in facts.items() if known and known.get(k) != v]:
            raise InputError(f"{folder} is of another study than {folders[0]}: its {differ[0]}")
        known = known or facts
    if not folders:
        raise InputError("give the folders of at least 1 saved study")
    every, facts_of = pd.concat(rows, ignore_index=True), pd.concat(runs, ignore_index=True)
    if (twice := every.duplicated(["method", "seed", "id"])).any():
        raise InputError(f"seed {every['seed'][twice].iloc[0]} is in two of the studies")
    again = facts_of["method"].isin(ONCE) & facts_of["method"].duplicated()
    return method_table(every, facts_of[~again])


def _accuracy(rows: pd.DataFrame) -> Metric:
    right = _right(rows).dropna()
    shares, failed = right.mean(axis=1), rows["id"].nunique() - len(right)
    if shares.isin([0.0, 1.0]).all():
        return mean_share("", shares, n_failed=failed)
    metric = _over_claims_and_seeds(right, 0.0)
    return replace(metric, low=max(0.0, metric.low), high=min(1.0, metric.high), n_failed=failed)


def paired(rows: pd.DataFrame, method: str, other: str) -> tuple[Metric, float]:
    """Accuracy of `method` minus that of `other` on the same claims, and a p-value.

    If no seed changes a verdict, it is McNemar's exact test. Otherwise the t intervals of the
    claims' mean differences and of the seeds' are added in quadrature, and p is below 0.05 if the
    resulting interval excludes 0 (normal approximation).
    """
    ours, theirs = (_right(rows[rows["method"] == name]) for name in (method, other))
    apart = (ours - theirs).dropna()
    if len(apart) < 2:
        return Metric("", NAN, -1.0, 1.0, len(apart)), NAN
    a, b = (one.loc[apart.index].mean(axis=1) for one in (ours, theirs))
    if a.isin([0.0, 1.0]).all() and b.isin([0.0, 1.0]).all():
        return paired_shares("", a, b), mcnemar(a, b)
    metric = _over_claims_and_seeds(apart, -1.0)
    value = metric.value
    towards_zero = value - metric.low if value > 0 else metric.high - value
    p = math.erfc(Z * abs(value) / towards_zero / 2**0.5)
    return replace(metric, low=max(-1.0, metric.low), high=min(1.0, metric.high)), p


def _right(rows: pd.DataFrame) -> pd.DataFrame:
    """Right (1.0) or wrong (0.0), one row per claim, one column per seed."""
    done = rows[rows["error"].isna()].astype({"correct": float})
    return done.pivot_table("correct", "id", "seed")


def _over_claims_and_seeds(by_seed: pd.DataFrame, least: float) -> Metric:
    """Mean over claims; its interval is widened by a t interval over the seeds."""
    from scipy.stats import t

    metric = mean("", by_seed.mean(axis=1), least, 1.0)
    seeds, k, half = by_seed.mean(), by_seed.shape[1], 0.0
    if k > 1:
        half = float(t.ppf(0.975, k - 1) * seeds.std(ddof=1) / k**0.5)
    below = math.hypot(metric.value - metric.low, half)
    above = math.hypot(metric.high - metric.value, half)
    return replace(metric, low=metric.value - below, high=metric.value + above)


def seed_notes(rows: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Notes on seeds that have collapsed or are inverted, which a mean hides."""
    if runs["seed"].nunique() < 2:
        return []
    notes, shares = [], runs.astype({"label_accuracy": float, "labels_true": float})
    for run in shares[shares["method"].isin(FOUND)].to_dict("records"):
        own = rows[(rows["method"] == run["method"]) & (rows["seed"] == run["seed"])]
        right = own["correct"][own["error"].isna()].astype(float).mean()
        who = f"{run['method']}, seed {run['seed']} (test accuracy {right:.2f})"
        true, opposite = run["labels_true"], 1 - run["label_accuracy"]
        if collapsed(true):
            notes.append(f"{who}: it has collapsed, {true:.0%} of its labels are True")
        elif opposite > 0.5:
            notes.append(f"{who}: {opposite:.0%} of its labels are opposite to gold")
    return notes


def verdicts(rows: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Conclusions from the table about the search, in plain words."""
    by_name = table.set_index("method")
    notes = [
        f"{name}: {share:.0%} of its labels are opposite to gold: it has found the concept upside "
        "down, or another one"
        for name, share in by_name["labels_opposite"].items()
        if share > 0.5 and name in FOUND
    ]
    if "ICM" not in by_name.index or "bootstrapping" not in by_name.index:
        return notes
    gain, p = paired(rows, "ICM", "bootstrapping")
    tokens = by_name["finding_computed_tokens"][["ICM", "bootstrapping"]]
    ends = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f} points, p = {p:.2g}"
    does = "beats" if gain.low > 0 else "does not beat"
    times = tokens["ICM"] / tokens["bootstrapping"] if tokens.all() else NAN  # all from the store
    price = f", at {times:.1f} times its computed tokens" if times > 0 else ""
    notes.append(f"ICM {does} bootstrapping here ({100 * gain.value:+.1f}, {ends}){price}")
    return notes
