"""Run a saved report again past the store, and say value by value what is the same.

`reproduce` opens the model, the task, the agent and the sampling that the report's provenance
names. What cannot be had here is named too: that is data, as a failed row is.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workbench import values
from workbench.comparison import compare
from workbench.differences import COLUMNS, PROVENANCE, SUMMARY, differences
from workbench.errors import InputError, WorkbenchError
from workbench.lazy import pd
from workbench.repeating import Again, kind_of
from workbench.reprs import Card, note, table
from workbench.runs import commit
from workbench.stats import proportion
from workbench.types import Engine, Metric, Report, Usage
from workbench.verdicts import load

SHOWN = 10
"""How many differing values a display has."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reproduction(Report):
    """A report run again.

    Attributes:
        rows: a row per value: id, what, then, now, difference, same; see `differences`. The id is
            "provenance" for what was asked of whom, and "summary" for headline numbers.
        cannot: why it could not be run here; "" if it was.
        notes: what limits the comparison.
    """

    cannot: str
    notes: tuple[str, ...]

    @property
    def status(self) -> int:
        """0 if all results are the same, 1 if some differ, 2 if it could not be run."""
        return 2 if self.cannot else int(len(self.differing()) > 0)

    def differing(self, *, provenance: bool = False) -> pd.DataFrame:
        """The results that differ, or the parts of the provenance that do."""
        chosen = (self.rows["id"] == PROVENANCE) == provenance
        return self.rows[chosen & ~self.rows["same"]]

    def verdict(self) -> str:
        """The outcome in a line."""
        if self.cannot:
            return f"it cannot be run here: {self.cannot}"
        same, largest, *_ = self.summary
        text = f"{round(same.value * same.n):,} of {same.n:,} rows are the same"
        text += f", numbers differ by at most {largest.value:.2g}" if largest.value > 0 else ""
        sides = {"these differ": self.differing()}
        sides["the provenance differs in"] = self.differing(provenance=True)
        for what, part in sides.items():
            names = [*dict.fromkeys(part["what"])]
            more = " …" if len(names) > SHOWN else ""
            text += f"; {what}: {', '.join(names[:SHOWN])}{more}" if names else ""
        return text

    def _card(self) -> Card:
        parts = [self.differing(provenance=True), self.differing()]
        lines = [self.verdict(), *self.notes]
        cells = pd.concat(parts).astype(object)
        shown = table(COLUMNS, cells.head(SHOWN).itertuples(index=False), len(cells))
        return Card(lines, [*map(note, lines), shown if len(cells) else ""])


def reproduce(
    run: str | Path | Report, *, model: str | None = None, engine: str | Engine | None = None,
    task: object = None, agent: object = None, same: object = None,
    store: str | Path | None = None, tolerance: float = 1e-4, **options: Any,
) -> Reproduction:  # fmt: skip
    """Run a report again, and compare it with the first run.

    Args:
        run: a report of `evaluate`, `uncertainty.elicit`, `uncertainty.sample_uncertainty`,
            `icm.search`, `icm.label_all` or `icm.study`; or the folder in which one is saved.
        model: where the model is here, if it has moved.
        engine: another kind of engine, or an open engine without a store.
        task, agent, same: these, where the report has only the name of custom code or of rows in
            memory; or a moved file's new path.
        store: None computes everything again; a path is a new file, from which a stopped call
            resumes.
        tolerance: maximum absolute difference of numbers that count as the same; sums of
            floating-point numbers depend on the batch.
        options: of `open_engine`, instead of the report's, such as `dtype="bfloat16"`.

    Returns:
        A `Reproduction`. Its summary has the share of the report's rows without a difference, the
        largest difference of a number, and of evaluations the paired difference of accuracy.

    Raises:
        InputError: no report, one of an experiment that cannot be repeated, or an engine with a
            store.
    """
    values.real("tolerance", tolerance, 0, float("inf"))
    if getattr(engine, "has_store", False):
        raise InputError("the engine has a store, which would answer: open it with store=None")
    folder = None if isinstance(run, Report) else Path(run).expanduser()
    then = _as_saved(run) if isinstance(run, Report) else load(_one_report(Path(run).expanduser()))
    kind = kind_of(then)
    given = {"model": model, "engine": engine, "task": task, "agent": agent, "same": same}
    again = Again(then, given, options, store, folder, getattr(run, "testbed", None))
    about: dict[str, Any] = {"run": folder and str(folder.resolve()), "commit": commit()}
    about |= {"then": dict(then.provenance), "tolerance": tolerance, "notes": again.notes}
    try:
        now = _as_saved(kind.run(again))
    except WorkbenchError as error:
        why = str(error)
    else:
        return _compared(then, now, again, about, tolerance)
    row = (PROVENANCE, "cannot be had here", "", why, float("nan"), False)
    rows = pd.DataFrame([row], columns=COLUMNS)
    return Reproduction((), rows, Usage(), about, why, tuple(again.notes))


def _one_report(place: Path) -> Path:
    """The folder of a report, not of several, such as a suite's."""
    if not (place / "summary.json").exists() and (inside := sorted(place.glob("*/summary.json"))):
        first = inside[0].parent
        raise InputError(f"{place} holds {len(inside)} reports: pass one, such as {first}")
    return place


def _as_saved(report: Report) -> Report:
    """The report as it is read from its files, in which values have plain types."""
    with TemporaryDirectory() as place:
        return load(report.save(Path(place) / "report"))


def _compared(
    then: Report, now: Report, again: Again, about: dict[str, Any], tolerance: float
) -> Reproduction:
    found = differences(then, now, kind_of(then).key(then), tolerance)
    results = found[~found["id"].isin([PROVENANCE, SUMMARY])]
    rows, most = results.groupby("id", sort=False)["same"].all(), results["difference"].max()
    summary: list[Metric] = [
        proportion("rows that are the same", int(rows.sum()), len(rows)),
        Metric("largest difference of a number", *(float(most),) * 3, len(rows)),
    ]
    with suppress(InputError):  # no verdicts, or other items
        summary.append(compare(now, then, "accuracy, now minus then"))
    again.limits(now)
    about |= {"now": dict(now.provenance)}
    return Reproduction(tuple(summary), found, now.usage, about, "", tuple(again.notes))
