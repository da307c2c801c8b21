"""A sweep's table: one row per point, in any state, at any moment."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.files import write_whole
from workbench.lazy import pd
from workbench.sweep.folder import PointState, SweepFolder
from workbench.sweep.grid import DETAIL, brief
from workbench.sweep.plan import TAKEN, Sweep, SweepPoint
from workbench.types import Report, Usage
from workbench.verdicts import to_frame

PLAN = "sweep.json"
VERDICTS = "result/results/rows.csv"  # of a point whose notebook saves its rows
LARGE = 2**63
UNENDING = ("nan", "inf", "-inf")  # texts in metrics.json, since JSON has no such numbers
PARTS = {"value": ""} | {n: f".{n}" for n in ("low", "high", "n", "n_failed", "n_unparsed")}
MARKS = {"machine": "machines", "versions": "versions", "commit": "commits"}


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """The state of a sweep.

    Attributes:
        table: one row per point: `key`, `state` (done, failed, timeout, killed, stale, running or
            waiting), `detail`; the parameters by name (lists as JSON); for each metric its value
            by name and, if the notebook saved them, `<metric>.low`, `.high`, `.n`, `.n_failed`,
            `.n_unparsed`; then `seconds`, `ended`, `machine`, `versions`, `commit`. A missing
            number is `pd.NA`, a measured NaN is NaN; whole numbers stay whole.
        varied: parameters with more than one value.
        metrics: names of the metrics.
        notes: what a reader has to know: failures, points from several machines or versions, and
            what may have affected the results but is not in the points' keys.
    """

    table: pd.DataFrame
    varied: tuple[str, ...]
    metrics: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def states(self) -> dict[str, int]:
        """The number of points in each state."""
        return dict(Counter(self.table["state"]))

    @property
    def shown(self) -> pd.DataFrame:
        """The columns that differ, for reading: state, what varied, the metrics, seconds."""
        return self.table[["state", *self.varied, *self.metrics, "seconds", "detail"]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table's rows as plain values, None for missing ones."""
        plain = self.table.astype(object).where(self.table.notna(), None)
        return [
            {str(name): value for name, value in row.items()} for row in plain.to_dict("records")
        ]

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"{self.shown.to_html(index=False, escape=True)}{notes}"


def results(points: Sequence[SweepPoint], folder: SweepFolder) -> Results:
    """The state of these points, done or not."""
    others = folder.records()
    states = [folder.state(point, others=others) for point in points]
    parameters = dict.fromkeys(name for point in points for name in point.row)
    names = dict.fromkeys(name for state in states for name in state.metrics)
    metrics = {name: _column(name, {*parameters, *TAKEN}) for name in names}
    rows = [_row(p, s, metrics) for p, s in zip(points, states, strict=True)]
    for name in parameters:
        _make_one_kind(rows, name)
    notes = *_notes(states), *_uncovered(points)
    return Results(_framed(rows), varied(points), tuple(metrics.values()), notes)


def read_results(folder: str | Path) -> Results:
    """The state of the sweep in this folder, also while it runs.

    Raises:
        InputError: the folder holds no sweep.
    """
    path = Path(folder)
    try:
        kept = json.loads((path / PLAN).read_text(encoding="utf-8"))
        points = [_planned(**one) for one in kept["points"]]
    except OSError as error:
        raise InputError(f"{path} is not a sweep's folder: it has no {PLAN}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path / PLAN} is broken: {error}; run the sweep again") from error
    return results(points, SweepFolder(path))


def paired(folder: str | Path, x: str, by: str | None = None) -> pd.DataFrame:
    """Each value of `x` against the first one at the same `by`, over the items that both answered.

    The notebook has to call `save_table(report.rows, "rows")`. Points that differ in something
    else, such as a seed, are repeats.

    Returns:
        One row per pair: `by`, `x`, `versus` (the first value of `x`), difference, low, high (95 %,
        see `comparison.compare`), items, n_failed.

    Raises:
        InputError: there is no such parameter, or a point did not save its rows.
    """
    from workbench.comparison import compare  # not for the points, which need only a second

    table, columns = read_results(folder).table, [by, x] if by else [x]
    done, first, rows = table[table["state"] == "done"], dict[Any, Any](), []
    files = {key: Path(folder) / key / VERDICTS for key in done["key"]}
    if missing := [key for key, file in files.items() if not file.is_file()]:
        what = 'its notebook has to call save_table(report.rows, "rows")'
        raise InputError(f"point {missing[0]} of {folder} has no saved rows: {what}")
    if missing := [name for name in columns if name not in table]:
        raise InputError(f"the sweep in {folder} has no parameter {missing[0]!r}")
    for place, part in done.groupby(columns, sort=False, dropna=False):
        types = {"id": str, "answer": str}
        runs = [pd.read_csv(files[key], dtype=types).assign(run=key) for key in part["key"]]
        facts, report = (
            dict(zip(columns, place, strict=True)),
            Report((), pd.concat(runs), Usage(), {}),
        )
        value, versus = first.setdefault(place[:-1], (facts[x], report))
        if versus is not report:
            gap = compare(report, versus, "difference")
            found = {"difference": gap.value, "low": gap.low, "high": gap.high, "items": gap.n}
            rows.append({**facts, "versus": value, **found, "n_failed": gap.n_failed})
    return pd.DataFrame(rows)


def _planned(
    key: str, parameters: object, served: object, rests: object, uncovered: Sequence[str] = ()
) -> SweepPoint:
    if not (
        isinstance(key, str) and isinstance(parameters, dict) and isinstance(rests, dict)
        and isinstance(served, dict | None)
    ):  # fmt: skip
        raise TypeError(f"a point is {key!r:.40}, {parameters!r:.40}, {served!r:.40}")
    return SweepPoint(key, parameters, served, rests, tuple(map(str, uncovered)))


def save_results(found: Results, sweep: Sweep, folder: SweepFolder) -> None:
    """Write `results.parquet`, `results.csv` and `sweep.json`, each atomically."""
    fixed = {n: v for n, v in sweep.points[0].row.items() if n not in found.varied}
    about = {
        "name": sweep.name,
        "notebook": os.path.relpath(sweep.notebook),
        "parameters": {"varied": list(found.varied), "fixed": fixed},
        "metrics": list(found.metrics),
        "notes": list(found.notes),
        "points": [asdict(point) | point.record() for point in sweep.points],
    }
    files: dict[str, Any] = {
        PLAN: json.dumps(about, indent=1, default=str) + "\n",
        "results.csv": found.table.to_csv(index=False),
        "results.parquet": found.table.to_parquet(index=False),
    }
    for name, data in files.items():
        write_whole(folder.path / name, data)


def varied(points: Sequence[SweepPoint]) -> tuple[str, ...]:
    rows = [point.row for point in points]
    names = dict.fromkeys(name for row in rows for name in row)
    return tuple(n for n in names if len({repr(row.get(n)) for row in rows}) > 1)


def _row(point: SweepPoint, state: PointState, metrics: Mapping[str, str]) -> dict[str, object]:
    row: dict[str, object] = {"key": point.key, "state": state.status, "detail": state.detail}
    row |= {name: _plain(value) for name, value in point.row.items()}
    for metric, name in metrics.items():
        found = state.metrics.get(metric)
        parts = {"value": None} | (found if isinstance(found, dict) else {"value": found})
        for part, value in parts.items():
            if part in PARTS:
                row[f"{name}{PARTS[part]}"] = _number(value)
    facts = {name: state.facts.get(name) for name in ("seconds", "ended", *MARKS)}
    return row | facts


def _column(metric: str, taken: set[str]) -> str:
    """A metric's column: its name, or another one if that name is taken."""
    name = metric.encode("utf-8", "replace").decode()
    return f"{name} measured" if name in taken or "." in name else name


def _make_one_kind(rows: list[dict[str, object]], name: str) -> None:
    """Make a column numeric or text, as files require, with no integer beyond 64 bits."""
    values = [row.get(name) for row in rows]
    kinds = {type(value) for value in values} - {type(None)}
    large = any(type(value) is int and not -LARGE <= value < LARGE for value in values)
    if large or not (len(kinds) < 2 or kinds <= {int, float}):
        for row in rows:
            if not isinstance(row.get(name), str | None):
                row[name] = json.dumps(row[name])


def _framed(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """A table that keeps missing numbers and NaN apart, also when pandas reads its file."""
    import pyarrow as pa

    frame = to_frame(rows)
    for name in map(str, frame):
        values: list[Any] = [row.get(name) for row in rows]
        kinds = {type(value) for value in values} - {type(None)}
        if kinds == {int}:
            frame[name] = pd.array(values, dtype="Int64")
        elif kinds and kinds <= {int, float}:  # pandas' own Float64 turns NaN into NA
            floats = [None if value is None else float(value) for value in values]
            frame[name] = pd.arrays.ArrowExtensionArray(pa.array(floats, pa.float64()))
    return frame


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | None) else json.dumps(value)


def _number(value: Any) -> float | None:
    if value in UNENDING:
        return float(value)
    if not isinstance(value, int | float):
        return None
    try:
        return int(value) if isinstance(value, int) and -LARGE <= value < LARGE else float(value)
    except OverflowError:
        return None


def _uncovered(points: Sequence[SweepPoint]) -> list[str]:
    names = dict.fromkeys(brief(name, DETAIL) for point in points for name in point.uncovered)
    return [f"not part of a point's key: {', '.join(names)}"] if names else []


def _notes(states: Sequence[PointState]) -> list[str]:
    counts = Counter(state.status for state in states)
    notes = [", ".join(f"{count} {status}" for status, count in counts.items())]
    for fact, name in MARKS.items():
        seen = Counter(s.facts[fact] for s in states if s.status == "done" and s.facts.get(fact))
        if len(seen) > 1:
            places = "; ".join(f"{brief(v, DETAIL)} ({count})" for v, count in seen.most_common())
            notes.append(f"the points ran on {len(seen)} {name}: {places}")
    return notes
