"""Tables of reports: Markdown and LaTeX for papers, CSV and Excel for spreadsheets.

A spreadsheet must not run what a model wrote: a text that begins like a formula is a text in Excel,
and begins with an apostrophe in CSV, unless it is a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import values
from workbench.errors import InputError
from workbench.export import need, public, summary_table
from workbench.export.inspect_log import write_log
from workbench.lazy import pd
from workbench.reprs import brief, sides, spent

if TYPE_CHECKING:
    from workbench.types import Metric, Report

Cells = Sequence[Sequence[str]]
FORMULA = re.compile(r"[=+\-@\t\r]")
NUMBER = re.compile(r"[+-]?(\d[\d,]*)?\.?\d+(e[+-]?\d+)?%?", re.IGNORECASE)
SPECIAL = str.maketrans(
    {one: f"\\{one}" for one in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " "}
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
LONGEST, MOST_ROWS = 32_767, 1_048_575  # of Excel: characters in a cell, rows below a header


def summary(reports: Mapping[str, Report]) -> Cells:
    """A header and rows: a row per number of one report, or a row per report."""
    costs = [brief(spent(report)) for report in reports.values()]
    if len(reports) == 1:
        (report,) = reports.values()
        rows = [[m.name, *sides(m), *_counts(m), f"{m.n_unparsed:,}"] for m in report.summary]
        rows += [["cost", *costs, "", "", "", ""]] * any(costs)
        return [["", "value", "95 % interval", "n", "failed", "unparsed"], *rows]
    names = dict.fromkeys(one.name for report in reports.values() for one in report.summary)
    table = [["", *names, "n", "failed", "cost"]]
    for (name, report), cost in zip(reports.items(), costs, strict=True):
        found = {one.name: _with_interval(one) for one in report.summary}
        counts = _counts(report.summary[0]) if report.summary else ["", ""]
        table.append([name, *(found.get(one, "") for one in names), *counts, cost])
    return table if any(costs) else [row[:-1] for row in table]


def _counts(metric: Metric) -> list[str]:
    return [f"{metric.n:,}", f"{metric.n_failed:,}"]


def _with_interval(metric: Metric) -> str:
    value, interval = sides(metric)
    return f"{value} ({interval})" if interval else value


def markdown(cells: Cells) -> str:
    def line(row: Sequence[str]) -> str:
        texts = (re.sub(r"([\\|*`<\[]|(?<!\w)_|_(?!\w))", r"\\\1", text) for text in row)
        return f"| {' | '.join(' '.join(text.split()) for text in texts)} |\n"

    rule = f"|---|{'---:|' * (len(cells[0]) - 1)}\n"
    return line(cells[0]) + rule + "".join(map(line, cells[1:]))


def latex(cells: Cells) -> str:
    """A `tabular` with booktabs; special characters are escaped, signs are minus signs."""

    def line(row: Sequence[str]) -> str:
        first, *others = (text.translate(SPECIAL) for text in row)
        signed = (re.sub(r"(?<![\w-])-(?=\d)", "$-$", text) for text in others)
        return rf"  {' & '.join([first, *signed])} \\"

    head, *body = map(line, cells)
    begin = rf"\begin{{tabular}}{{l{'r' * (len(cells[0]) - 1)}}}"
    rules = [begin, r"  \toprule", head, r"  \midrule", *body, r"  \bottomrule", r"\end{tabular}"]
    return "\n".join(rules) + "\n"


def plain(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of numbers and texts: collections become JSON, missing values stay missing."""

    def cell(value: Any) -> Any:
        return value if isinstance(value, str | Real) else values.written(value)

    made = rows.copy()
    for place, kind in enumerate(made.dtypes):
        if kind.kind == "O":
            made.isetitem(place, made.iloc[:, place].map(cell, na_action="ignore").array)
    return made


def python_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """As `plain`, with Python's values, and None for missing ones."""
    made = plain(frame)
    return made.astype(object).where(made.notna(), None)


def _csv(rows: pd.DataFrame, path: Path) -> None:
    def safe(value: Any) -> Any:
        formula = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
        return f"'{value}" if formula else value

    made = plain(rows).map(safe, na_action="ignore")
    made.rename(columns=safe).to_csv(path, index=False, encoding="utf-8")


def _excel(reports: Mapping[str, Report], path: Path) -> None:
    book = need("excel", "openpyxl").Workbook(write_only=True)
    _fill(book.create_sheet("summary"), summary(reports))
    for number, report in enumerate(reports.values(), 1):
        end = f" {number}" * (len(reports) > 1)
        rows = python_rows(report.rows)
        if len(rows) > MOST_ROWS:
            raise InputError(f"{len(rows):,} rows are too many for a sheet: export to .parquet")
        body = rows.itertuples(index=False, name=None)
        _fill(book.create_sheet(f"rows{end}"), [[*map(str, rows.columns)], *body])
        _fill(book.create_sheet(f"provenance{end}"), public(report.provenance).items())
    book.save(path)


def _fill(sheet: Any, rows: Iterable[Sequence[Any]]) -> None:
    from openpyxl.cell import WriteOnlyCell

    def cell(value: Any) -> Any:
        value = str(value) if value in (float("inf"), float("-inf")) else value
        if not isinstance(value, str):
            return value
        text = CONTROL.sub("\ufffd", value)
        made = WriteOnlyCell(sheet, text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …")
        made.data_type = "s"  # also of what looks like a formula or an error
        made.quotePrefix = bool(FORMULA.match(text))
        return made

    for row in rows:
        sheet.append([*map(cell, row)])


def _one(write: Callable[[Report, Path], object]) -> Callable[[Mapping[str, Report], Path], object]:
    return lambda reports, path: write(next(iter(reports.values())), path)


WRITERS: Mapping[str, Callable[[Mapping[str, Report], Path], object]] = {
    ".csv": _one(lambda one, path: _csv(one.rows, path)),
    ".jsonl": _one(lambda one, path: one.rows.to_json(path, orient="records", lines=True)),
    ".parquet": _one(lambda one, path: one.rows.to_parquet(path, index=False)),
    ".eval": _one(write_log),
    ".xlsx": _excel,
    ".md": lambda given, path: path.write_text(summary_table(given), "utf-8"),
    ".tex": lambda given, path: path.write_text(summary_table(given, "latex"), "utf-8"),
}
SEVERAL = (".xlsx", ".md", ".tex")  # endings of files that hold several reports
