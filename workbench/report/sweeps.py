"""The parts of a page about a sweep: states of the points, figures, and where the points ran."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.lazy import pd
from workbench.plots import new_figure
from workbench.plots.points import finite, numbers
from workbench.report.page import Part, drawn, facts, heading, paragraph, table

POINTS = 200  # maximum on a page, failed ones first
REPEATS = ("seed", "run", "repeat")  # parameters to average over, not to compare
PLACES = ("machine", "version", "versions", "commit")


def sweep_report(folder: Path) -> list[Part]:
    """States, figures, the table of points with failed ones first, and where the points ran.

    Raises:
        InputError: a file of the sweep is missing or broken.
    """
    about, points = _read(folder)
    ended = points["state"].value_counts()
    count = f"{len(points):,} point{'s' if len(points) > 1 else ''}"
    parts = [
        heading(about["name"], 1),
        paragraph(f"{count} of {about['notebook']}", "about"),
        *(paragraph(note) for note in about["notes"]),
        table(["state", "points"], ended.items()),
        heading("Figures"),
        *_figures(about, points),
        heading("Points"),
        *_points(about, points),
    ]
    if about["fixed"]:
        parts += [heading("The same in all points"), facts(about["fixed"])]
    places = {name: _counted(points[name]) for name in PLACES if name in points}
    return [*parts, heading("Provenance"), facts(places)] if places else parts


def _read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    try:
        sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        about: dict[str, Any] = {
            "name": str(sweep["name"]),
            "notebook": str(sweep["notebook"]),
            "fixed": dict(sweep["parameters"]["fixed"]),
            "varied": [*map(str, sweep["parameters"]["varied"])],
            "metrics": [*map(str, sweep["metrics"])],
            "notes": [*map(str, sweep["notes"])],
        }
        points = pd.read_parquet(folder / "results.parquet")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds no complete sweep ({type(error).__name__}: {error}): run it again; "
            "points that are done do not run again"
        ) from error
    missing = [name for name in ("state", *about["varied"]) if name not in points]
    if missing or points.empty:
        lack = f"has no column {missing[0]!r}" if missing else "has no points"
        raise InputError(f"{folder / 'results.parquet'} {lack}: run the sweep again")
    return about, points


def _figures(about: Mapping[str, Any], points: pd.DataFrame) -> list[Part]:
    """For each metric lines, a heat map if two parameters vary, and a Pareto front."""
    parts: list[Part] = []
    for metric in about["metrics"]:
        parts.append(heading(metric, 3))
        if finite(points, metric).notna().any():
            parts += _pictures(about, points, metric)
        else:
            parts.append(paragraph("No finished point has a number.", "about"))
    return parts or [paragraph("No point has a metric yet, so there is nothing to draw.", "about")]


def _pictures(about: Mapping[str, Any], points: pd.DataFrame, metric: str) -> list[Part]:
    from workbench.plots.sweep import plot_heat, plot_lines, plot_pareto

    compared = _compared(about["varied"], points)
    by = compared[1] if len(compared) > 1 else None
    front = metric != "seconds" and finite(points, "seconds").notna().any()
    parts: list[Part] = []
    if compared:
        x = compared[0]
        figure, axes = new_figure(2 if by else 1, height=3.8)
        plot_lines(axes[0], points, x, metric, by)
        if by:
            plot_heat(axes[1], points, x, by, metric)
        parts.append(drawn(figure))
        if over := [name for name in about["varied"] if name not in (x, by)]:
            parts.append(paragraph(f"averaged over {', '.join(over)}", "note"))
    if front:
        figure, axes = new_figure(1, height=3.8)
        plot_pareto(axes[0], points, "seconds", metric, about["varied"])
        parts.append(drawn(figure))
    return parts


def _compared(varied: Sequence[str], points: pd.DataFrame) -> list[str]:
    """The parameters to compare, the first numeric one first."""
    mine = [name for name in varied if name not in REPEATS] or [*varied]
    numeric = [name for name in mine if numbers(points[name].dropna()) is not None]
    return [*dict.fromkeys([*numeric[:1], *mine])]


def _points(about: Mapping[str, Any], points: pd.DataFrame) -> list[Part]:
    """One row per point, failed ones with their reasons first."""
    first = points.assign(_done=points["state"] == "done").sort_values("_done", kind="stable")
    why = ["detail"] if "detail" in points and points["detail"].fillna("").ne("").any() else []
    metrics = [name for name in about["metrics"] if name in points]
    ends = [name + end for name in metrics for end in (".low", ".high") if name + end in points]
    counts = [
        name + end for name in metrics for end in (".n_failed", ".n_unparsed")
        if name + end in points and points[name + end].fillna(0).ne(0).any()
    ]  # fmt: skip
    measured = [name for name in points.columns if name in {*metrics, *ends, *counts}]
    rest = [name for name in ("seconds",) if name in points and name not in metrics]
    columns = ["state", *why, *about["varied"], *measured, *rest]
    shown = first[columns].head(POINTS)
    parts = [table(columns, shown.itertuples(index=False, name=None), bad="detail")]
    if len(points) > POINTS:
        parts.append(paragraph(f"the first {POINTS} of {len(points):,} points", "note"))
    return parts


def _counted(column: pd.Series[Any]) -> str:
    """The distinct values, each with its number of points."""
    counts = column.fillna("not known").astype(str).value_counts()
    return "\n".join(f"{value} ({count} points)" for value, count in counts.items())
