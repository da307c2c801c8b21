"""One HTML page of results: a saved report, a run of notebooks, or a sweep.

It includes its figures, works offline, and is the same for the same folder. It runs no script but
that of a saved report's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple
from pathlib import Path

from workbench.errors import InputError
from workbench.files import write_whole
from workbench.lazy import pd
from workbench.report.answers import browsed
from workbench.report.notebooks import one_notebook, several_notebooks
from workbench.report.page import Part, facts, frame, heading, image, page, paragraph, table
from workbench.report.sweeps import sweep_report
from workbench.reprs import flat, spent
from workbench.types import Report
from workbench.verdicts import Evaluation, load

__all__ = ["render"]
ROWS, REASONS, CALLS = 20, 20, 5
"""How many rows, reasons for failures and calls of a saved report are on a page."""


def saved_report(folder: Path) -> list[Part]:
    """Headline numbers, the figure, failures, all rows to browse, the cost and the provenance.

    Raises:
        InputError: a file of the report is missing or broken.
    """
    report = _load(folder)
    columns = ["metric", "value", "low", "high", "n", "failed", "unparsed"]
    parts = [heading(folder.resolve().name, 1), table(columns, map(astuple, report.summary))]
    if (folder / "figure.png").is_file():
        parts += [heading("Figure"), image(folder / "figure.png")]
    parts += [*_failures(report.rows), heading("Rows"), browsed(report, ROWS)]
    if isinstance(report, Evaluation) and len(report.trace):
        parts += [heading("What was asked"), *frame(report.trace, CALLS)]
    parts += [heading("Usage"), facts(_cost(report))]
    return [*parts, heading("Provenance"), facts(flat(report.provenance))]


def _load(folder: Path) -> Report:
    """A saved report, with its numbers checked."""
    report = load(folder)
    numbers: list[object] = [value for m in report.summary for value in astuple(m)[1:]]
    numbers += [value for value in astuple(report.usage) if value is not None]
    wrong = [value for value in numbers if not isinstance(value, int | float)]
    if wrong or not isinstance(report.provenance, Mapping):
        what = f"{wrong[0]!r:.40} is not a number" if wrong else "its provenance has no names"
        raise InputError(f"{folder / 'summary.json'} is broken ({what}): save the report again")
    return report


def _failures(rows: pd.DataFrame) -> list[Part]:
    """Each reason once, with the number of failed rows."""
    if "error" not in rows or not rows["error"].notna().any():
        return []
    failed = rows[rows["error"].notna()]
    reasons = failed["error"].astype(str).value_counts()
    names = failed["id"].astype(str) if "id" in failed else failed.index.astype(str).to_series()
    items = names.groupby(failed["error"].astype(str).to_numpy()).unique().to_dict()
    lines = []
    for reason, count in reasons.head(REASONS).items():
        first, more = items[reason][:3], len(items[reason]) - 3
        lines.append((count, reason, ", ".join(first) + f" and {more} more" * (more > 0)))
    parts = [
        heading("Failures"),
        paragraph(f"{len(failed):,} of {len(rows):,} rows have no answer.", "about"),
        table(["rows", "reason", "items"], lines, bad="reason"),
    ]
    if len(reasons) > REASONS:
        parts.append(paragraph(f"the first {REASONS} of {len(reasons):,} reasons", "note"))
    return parts


def _cost(report: Report) -> dict[str, object]:
    usage, rate = report.usage, report.usage.cache_hit_rate
    return {
        **{name.replace("_", " "): value for name, value in asdict(usage).items()},
        "computed tokens": usage.computed_tokens,
        "prefix-cache hit rate": "not known" if rate is None else f"{rate:.1%}",
        **({} if spent(report) is None else {"cost": spent(report)}),
    }


KINDS: dict[str, Callable[[Path], list[Part]]] = {
    "sweep.json": sweep_report,
    "summary.json": saved_report,
    "*.ipynb": several_notebooks,
}


def render(path: str | Path, out: str | Path | None = None) -> Path:
    """Write an HTML page about a sweep, a saved report or executed notebooks.

    Args:
        path: a folder of a sweep (`sweep.json`), of a saved report (`summary.json`) or of executed
            notebooks, or one executed notebook.
        out: the page; by default `report.html` in the folder, or the notebook's name with `.html`
            next to it. An existing page is replaced atomically.

    Returns:
        The page's path.

    Raises:
        InputError: `path` is none of these, a file in it is broken, or the page cannot be written.
    """
    place = Path(path).expanduser()
    parts = _parts(place)
    beside = place / "report.html" if place.is_dir() else place.with_suffix(".html")
    target = Path(out).expanduser() if out is not None else beside
    if target.suffix != ".html" or target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{target}: give a file that ends in .html, in an existing folder")
    folder = place if place.is_dir() else place.parent
    title = place.resolve().name
    text = page(title, parts(place), folder)
    try:
        write_whole(target, text.encode(errors="replace"))
    except OSError as error:
        raise InputError(f"the page could not be written to {target}: {error}") from error
    return target


def _parts(place: Path) -> Callable[[Path], list[Part]]:
    """The function that makes the page's parts for this path."""
    if place.is_file() and place.suffix == ".ipynb":
        return one_notebook
    for pattern, parts in KINDS.items() if place.is_dir() else ():
        if any(place.glob(pattern)):
            return parts
    inner = {path.parent for pattern in KINDS for path in place.glob(f"*/{pattern}")}
    hint = f"; {min(inner)} holds one" if inner else ""
    raise InputError(
        f"{place} is not a folder of a sweep, a saved report or executed notebooks, nor a notebook"
        f"{hint}: give one of these"
    )
