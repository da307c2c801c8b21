"""What a search found: labels and scores of the claims, the way there, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.icm.claim import Claim, Labelled, Labels
from workbench.icm.consistency import Pair, violated
from workbench.icm.oracle import Cost
from workbench.icm.orders import Scores
from workbench.runs import commit
from workbench.stats import proportion
from workbench.types import Engine, Metric, Report, Usage

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ICMReport", "Result", "make_report"]


@dataclass(frozen=True, slots=True)
class Result:
    """Where a search ended: `scores` are those of the final labels in the claims' own order.

    `unfit` are claims, by index, that were not asked about, each with the reason.
    """

    labels: Labels
    scores: Scores
    related: Sequence[Pair]
    energy: float
    predictability: float
    history: Sequence[Mapping[str, Any]]
    cost: Cost
    notes: Sequence[str]
    unfit: Mapping[int, str]


@dataclass(frozen=True, slots=True, eq=False)
class ICMReport(Report):
    """A `Report` of one search; `rows` has one row a claim, unlabelled ones included.

    Attributes:
        claims, labels: in the claims' order; None where the search did not come to a claim.
        energy: of the final labels, with demonstrations in the claims' own order, in nats.
        history: one row for each proposal that would have changed a label, and a first one for the
            seeds: iteration, claim (index), energy, accepted, pool, temperature, inconsistencies,
            label_accuracy (NaN without gold), and the sums of prompts, prompt_tokens,
            computed_tokens and seconds until then.
        cost: of the whole search, what was asked before an interruption included; `usage` is that
            of this process.
        notes: what a reader has to know before quoting a number.
    """

    claims: tuple[Claim, ...]
    labels: Labels
    energy: float
    history: pd.DataFrame
    cost: Cost
    notes: tuple[str, ...]

    def labelled(self) -> Labelled:
        """The claims that have a label, with it."""
        pairs = zip(self.claims, self.labels, strict=True)
        return [(claim, label) for claim, label in pairs if label is not None]

    def save_labels(self, path: str | Path) -> Path:
        """Write the claims with labels and scores; `.jsonl` or `.csv` says how.

        Raises:
            InputError: another ending, or the file cannot be written.
        """
        target = Path(path).expanduser()
        if target.suffix not in (".jsonl", ".csv"):
            raise InputError(f"{target}: labels are written as .jsonl or .csv")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".csv":
                self.rows.to_csv(target, index=False)
            else:
                self.rows.to_json(target, orient="records", lines=True, force_ascii=False)
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error}") from error
        return target

    def _write(self, folder: Path) -> None:
        Report._write(self, folder)
        self.history.to_parquet(folder / "history.parquet", index=False)
        for ending in ("jsonl", "csv"):
            self.save_labels(folder / f"labels.{ending}")


def make_report(
    claims: Sequence[Claim],
    result: Result,
    engine: Engine,
    usage: Usage,
    settings: Mapping[str, Any],
) -> ICMReport:
    """The report of a search that has ended."""
    import pandas as pd

    rows = pd.DataFrame([_row(i, claim, result) for i, claim in enumerate(claims)])
    rows["label"] = rows["label"].astype("boolean")
    rows["gold"] = rows["gold"].astype("boolean")
    provenance = {
        **settings,
        "claims": len(claims),
        "energy": result.energy,
        "predictability": result.predictability,
        "cost": asdict(result.cost),
        "notes": list(result.notes),
        "engine": asdict(engine.info),
        "commit": commit(),
    }
    summary = tuple(_summary(claims, result))
    return ICMReport(
        summary, rows, usage, provenance, tuple(claims), result.labels, result.energy,
        pd.DataFrame(result.history), result.cost, tuple(result.notes),
    )  # fmt: skip


def _row(index: int, claim: Claim, result: Result) -> dict[str, Any]:
    label = result.labels[index]
    true, false = result.scores.get(index, (math.nan, math.nan))
    reason = result.unfit.get(index, "the search ended before it came to this claim")
    return {
        "id": index,
        "text": claim.text,
        "group": claim.group,
        "answer_key": claim.answer_key,
        "gold": claim.gold,
        "label": label,
        "logprob_true": true,
        "logprob_false": false,
        "log_odds": true - false,
        "predicted": None if label is None else (true > false) is label,
        "error": reason if label is None else None,
    }


def _summary(claims: Sequence[Claim], result: Result) -> list[Metric]:
    there = [index for index, label in enumerate(result.labels) if label is not None]
    left = len(claims) - len(there)
    agreed = sum((result.scores[i][0] > result.scores[i][1]) is result.labels[i] for i in there)
    metrics = [
        proportion("labels that the others predict", agreed, len(there), n_failed=left),
        proportion(
            "labels True", sum(bool(result.labels[i]) for i in there), len(there), n_failed=left
        ),
    ]
    if result.related:
        broken = len(violated(result.related, result.labels))
        metrics.append(proportion("inconsistent pairs", broken, len(result.related)))
    gold = [i for i in there if claims[i].gold is not None]
    if gold:
        right = sum(claims[i].gold is result.labels[i] for i in gold)
        missing = len(claims) - len(gold)
        metrics.insert(0, proportion("label accuracy", right, len(gold), n_failed=missing))
    return metrics
