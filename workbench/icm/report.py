"""The report of a search: labels and scores of the claims, the history, and the cost.

It also says whether the labels are more coherent than uninformed ones, which needs no gold labels.
Coherence alone does not imply truth: if all claims have the same label, each predicts the others,
and the energy of such a collapsed search can be as high as that of a good one.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from workbench.errors import InputError
from workbench.icm.claim import Claim, Labelled, Labels, Wording, relations, violated
from workbench.icm.predictability import Reference, Scores, collapsed, energy
from workbench.icm.scorer import Cost, Scorer, TrueFalse
from workbench.icm.testbeds import Testbed, joined
from workbench.lazy import np, pd
from workbench.progress import one_bar
from workbench.runs import commit
from workbench.stats import difference, proportion
from workbench.types import Engine, Metric, Report, Usage
from workbench.values import json_text

DRAWS = 2  # of random labels


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ICMReport(Report):
    """A `Report` of one search. `rows` has one row per claim, unlabelled ones included; their
    `id` is the claim's own or, if it has none, its index.

    Attributes:
        claims, labels: in the claims' order; None for a claim that the search did not reach.
        energy: of the final labels, with demonstrations in the claims' own order, in nats.
        history: one row for each proposal that would have changed a label, and a first one for the
            seeds: iteration, claim (index), energy, accepted, pool, temperature, inconsistencies,
            label_accuracy (NaN without gold), and the sums of prompts, prompt_tokens,
            computed_tokens and seconds up to it.
        cost: of the whole search, with the part before an interruption; `usage` is this process's.
        notes: caveats to know before quoting a number.
        table: the user's own rows with their labels; `save_labels` writes it if it exists.
    """

    claims: tuple[Claim, ...]
    labels: Labels
    energy: float
    history: pd.DataFrame
    cost: Cost
    notes: tuple[str, ...]
    table: pd.DataFrame | None = None

    def labelled(self) -> Labelled:
        """The claims that have a label, with their labels."""
        pairs = zip(self.claims, self.labels, strict=True)
        return [(claim, label) for claim, label in pairs if label is not None]

    def scores(self) -> dict[int, TrueFalse]:
        """Log-probabilities of true and false, in nats, of the labelled claims by index."""
        values = self.rows[["logprob_true", "logprob_false"]].to_numpy(float)
        pairs = zip(self.labels, values, strict=True)
        return {
            i: (float(t), float(f)) for i, (label, (t, f)) in enumerate(pairs) if label is not None
        }

    def save_labels(self, path: str | Path) -> Path:
        """Write the claims, or `table`, with labels and scores, as `.jsonl` or `.csv`.

        Raises:
            InputError: another suffix, or the file cannot be written.
        """
        return save_table(self.rows if self.table is None else self.table, path)

    def _write(self, folder: Path) -> None:
        Report._write(self, folder)
        self.history.to_parquet(folder / "history.parquet", index=False)
        for ending in ("jsonl", "csv"):
            self.save_labels(folder / f"labels.{ending}")


def make_report(
    source: Sequence[Claim] | Testbed, labels: Labels, scores: Scores, engine: Engine,
    settings: Mapping[str, Any], *, usage: Usage, history: Sequence[Mapping[str, Any]], cost: Cost,
    notes: Sequence[str], unfit: Mapping[int, str],
) -> ICMReport:  # fmt: skip
    """The report of a finished search.

    Args:
        labels, scores: the final ones, in the claims' own order.
        unfit: claims, by index, that were not sent to the model, each with the reason.
    """
    claims = source.claims if isinstance(source, Testbed) else tuple(source)
    related = relations(claims, settings["consistency"])
    broken = len(violated(related, labels))
    total = energy(labels, scores, related, settings["alpha"], settings["objective"])
    facts = [
        _row(i, claim, labels[i], scores.get(i), unfit.get(i)) for i, claim in enumerate(claims)
    ]
    rows = pd.DataFrame(facts).astype({"label": "boolean", "gold": "boolean"})
    if any(claim.id is not None for claim in claims):
        rows["id"] = rows["id"].astype(str)
    summary = _summary(rows)
    if related:
        summary.append(proportion("inconsistent pairs", broken, len(related)))
    provenance = {
        **settings,
        "claims": len(claims),
        "energy": total,
        "predictability": (total + broken) / settings["alpha"],
        "cost": asdict(cost),
        "notes": list(notes),
        "source": source.source if isinstance(source, Testbed) else None,
        "engine": asdict(engine.info),
        "commit": commit(),
    }
    table = None
    if isinstance(source, Testbed) and source.table is not None:
        table = joined(source, claims, labels, scores, [fact["error"] for fact in facts])
    return ICMReport(
        tuple(summary), rows, usage, provenance, claims, labels, total, pd.DataFrame(history),
        cost, tuple(notes), table,
    )  # fmt: skip


def said_by(what: str, notes: Mapping[int, Sequence[str]]) -> list[str]:
    """Notes of several seeds or batches, each once, with their names; of a single one unchanged."""
    if len(notes) == 1:
        return [note for own in notes.values() for note in own]
    by_note: dict[str, list[int]] = {}
    for number, own in notes.items():
        for note in own:
            by_note.setdefault(note, []).append(number)
    many = "batches" if what == "batch" else f"{what}s"
    return [
        f"{what if len(whose) == 1 else many} {', '.join(map(str, whose))}: {note}"
        for note, whose in by_note.items()
    ]


def _row(
    index: int, claim: Claim, label: bool | None, score: TrueFalse | None, unfit: str | None
) -> dict[str, Any]:
    true, false = score or (math.nan, math.nan)
    reason = unfit or "the search ended before it came to this claim"
    return {
        "id": index if claim.id is None else claim.id,
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


def _summary(rows: pd.DataFrame) -> list[Metric]:
    there = rows[rows["label"].notna()]
    n, left = len(there), len(rows) - len(there)
    known = there[there["gold"].notna()]
    metrics = []
    if len(known):
        right = int((known["label"] == known["gold"]).sum())
        missing = len(rows) - len(known)
        metrics.append(proportion("label accuracy", right, len(known), n_failed=missing))
    agreed, true = (int(there[name].sum()) for name in ("predicted", "label"))
    metrics.append(proportion("labels that the others predict", agreed, n, n_failed=left))
    metrics.append(proportion("labels True", true, n, n_failed=left))
    return metrics


def save_table(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as .jsonl or .csv, in UTF-8, so that reading it gives the same values.

    Raises:
        InputError: another suffix, or the file cannot be written.
    """
    target = Path(path).expanduser()
    if target.suffix not in (".jsonl", ".csv"):
        raise InputError(f"{target}: labels are written as .jsonl or .csv")
    plain = frame.astype(object).where(frame.notna(), None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".csv":
            # Quotes around every text, so that a lone carriage return survives.
            plain.map(_cell).to_csv(target, index=False, quoting=csv.QUOTE_NONNUMERIC)
        else:
            names = _distinct([*map(str, plain.columns)])
            rows = (dict(zip(names, row, strict=True)) for row in plain.itertuples(index=False))
            target.write_text("".join(f"{_line(row)}\n" for row in rows), "utf-8")
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
    return target


def _distinct(names: Sequence[str]) -> list[str]:
    """The names of columns; a duplicate gets a number, because a JSON object has each name once."""
    found: list[str] = []
    for name in names:
        number, own = 1, name
        while own in found:
            number, own = number + 1, f"{name}.{number + 1}"
        found.append(own)
    return found


def _line(value: object) -> str:
    """A value as JSON; half a character, which no file can hold, as its escape."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=json_text)
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, default=json_text)
    except TypeError:  # keys that JSON does not allow
        own = value.items() if isinstance(value, Mapping) else ()
        plain = {str(k): v if isinstance(v, str | int | float | None) else str(v) for k, v in own}
        return json.dumps(plain or str(value), ensure_ascii=True)
    return text


def _cell(value: object) -> object:
    """Lists and objects as JSON, which a reader of the CSV can parse."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return _line(value) if isinstance(value, dict | list | tuple) else value


def salience(report: ICMReport, engine: Engine, *, seed: int = 0) -> pd.DataFrame:
    """Energies of the labels found and of others on the same claims, all in the claims' own order.

    Each of the others takes a leave-one-out pass. For a report in batches, the first batch is used,
    because its prompts have no labels of other batches.

    Args:
        report: of `search` or of `label_all`; the settings of its energy are used.
        engine: the one that made the report.
        seed: of the random labels; their energy is the mean over 2 draws.

    Returns:
        One row each for the labels found, inverted, all true, all false and random: labels, energy
        (nats), inconsistencies, below (energy found minus this one), low, high (its 95 % interval,
        paired over claims; the claims depend on each other, so it is a little too narrow),
        labels_true (share of True).

    Raises:
        InputError: fewer than 2 claims have a label.
        EngineError: a claim could not be scored.
    """
    facts, known = report.provenance, report.scores()
    batches = facts.get("batches") or [range(len(report.claims))]
    there = [index for index in batches[0] if report.labels[index] is not None]
    if len(there) < 2:
        raise InputError(f"{len(there)} claims have a label: at least 2 are needed")
    claims = [report.claims[index] for index in there]
    labels = tuple(bool(report.labels[index]) for index in there)
    chosen = {name: facts[name] for name in ("seed", "scores")}
    order = Reference(Scorer(engine, claims, Wording(**facts["wording"]), **chosen))
    passes = {"found": [(labels, {i: known[index] for i, index in enumerate(there)})]}
    rng = random.Random(f"salience-{seed}")
    others = [("inverted", tuple(not label for label in labels))]
    others += [("all true", (True,) * len(labels)), ("all false", (False,) * len(labels))]
    others += [("random", tuple(rng.random() < 0.5 for _ in labels)) for _ in range(DRAWS)]
    with one_bar(len(others), "salience", "pass") as bar:
        for name, other in others:
            passes.setdefault(name, []).append((other, dict(order.all(other))))
            bar.update(1)
    related = relations(claims, facts["consistency"])
    rows, first = [], (np.zeros(0), 0.0)
    for name, own in passes.items():
        likely = np.mean([_each(report, *one) for one in own], axis=0)
        broken = fmean(len(violated(related, one)) for one, _ in own)
        first = (likely, broken) if name == "found" else first
        apart, more = difference(name, first[0], likely), broken - first[1]
        rows.append(
            {
                "labels": name,
                "energy": likely.mean() - broken,
                "inconsistencies": broken,
                "below": apart.value + more,
                "low": apart.low + more,
                "high": apart.high + more,
            }
        )
    share = fmean(labels)
    return pd.DataFrame(rows).assign(labels_true=[share, 1 - share, 1.0, 0.0, 0.5])


def _each(report: ICMReport, labels: Labels, scores: Scores) -> list[float]:
    """The energy of each claim alone."""
    alpha, objective = report.provenance["alpha"], report.provenance["objective"]
    return [energy(labels, {i: score}, (), alpha, objective) for i, score in scores.items()]


def stands_out(table: pd.DataFrame) -> tuple[bool, str]:
    """Whether the labels found are more coherent than random and inverted ones, and a sentence.

    The same label for all claims is not compared: each predicts the next in any context, so good
    labels can have less energy. Labels that are nearly all the same never stand out.

    Args:
        table: from `salience`.
    """
    rows = {str(name): own.iloc[0] for name, own in table.groupby("labels")}
    rival = min(("inverted", "random"), key=lambda name: float(rows[name]["low"]))
    same = max(("all true", "all false"), key=lambda name: float(rows[name]["energy"]))
    found, near, flat = (f"{float(rows[name]['energy']):.1f}" for name in ("found", rival, same))
    share = float(rows["found"]["labels_true"])
    if collapsed(share):
        return False, (
            f"{share:.0%} of the labels found are True, nearly all the same: do not believe them, "
            f"however coherent (energy {found}, {same} {flat})"
        )
    if rows[rival]["low"] <= 0:
        return False, (
            f"the labels found (energy {found}) do not stand out from {rival} ones ({near}): their "
            "coherence is no reason to believe them"
        )
    text = f"the labels found (energy {found}) stand out from random and inverted ones ({near})"
    if rows[same]["low"] <= 0:
        text += (
            f"; {same} is as coherent ({flat}), so that another seed may end there: compare some"
        )
    return True, text
