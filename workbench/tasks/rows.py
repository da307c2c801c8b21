"""Rows of a user's own: files, tables and lists, every value told by its place."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, for messages, and its values."""

LONGEST = 2**31 - 1
"""Characters of a CSV field; Python's own limit is 131,072."""
MISSING = {"None", "nan", "NaT", "<NA>"}
"""How the values print that stand for no value."""
DELIMITED = (".csv", ".tsv", ".txt")
ENDINGS = (".jsonl", ".json", *DELIMITED, ".parquet")
ONE_COLUMN = "\x1f"
"""The delimiter of a file that has one column: none that a text holds."""
EXCEL = ["sep=", ""]
"""Its first line, which says what parts the columns."""
SHAPES = 'a list of objects, {"data": [...]} with one such list, or columns {"text": [...], ...}'


def rows_of(source: object, what: str = "source") -> list[Row]:
    """The rows of `table_of`."""
    return table_of(source, what)[0]


def table_of(source: object, what: str = "source") -> tuple[list[Row], pd.DataFrame]:
    """Rows, and the same as a table: all columns in their order, values as they came in.

    Args:
        source: a .jsonl, .json, .csv, .tsv, .txt or .parquet file, a pandas DataFrame, what has
            `to_pandas` (such as a Hugging Face `Dataset`), or a list of dicts. Columns of a text
            file are parted by `,` `;` tab or `|`, whichever all its rows agree with; its values
            stay texts. A DataFrame's own index becomes a column.
        what: what a list is called in messages.

    Returns:
        The rows, in which a missing value is None, in a text file ""; the table, index 0 to n - 1.

    Raises:
        InputError: it is nothing of these, cannot be read, or holds no rows.
    """
    import pandas as pd

    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.suffix.lower() != ".parquet":
            return _of_file(path)
        source, what = _parquet(path), str(path)
    elif callable(convert := getattr(source, "to_pandas", None)):
        source = convert()
    if isinstance(source, pd.DataFrame):
        table = _indexed(source)
        plain = table.astype(object).where(table.notna(), None)
        values = plain.itertuples(index=False, name=None)
        source = [dict(zip(table.columns, row, strict=True)) for row in values]
    elif isinstance(source, Sequence):
        table = _table(source)
    if not isinstance(source, Sequence) or not source:
        raise InputError(
            f"{what}={source!r:.60}: give a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file, a "
            "DataFrame, one split of a Dataset or a list of dicts, with 1 row at least"
        )
    return [_named(f"{what}[{number}]", row) for number, row in enumerate(source)], table


def text_of(row: Row, column: str) -> str:
    """A text that every row must have.

    Raises:
        InputError: there is no such column, or no text in it.
    """
    place, values = row
    if column not in values:
        known = ", ".join(map(str, values))
        raise InputError(f"{place}: no column {column!r} among {known}; add or rename it")
    value = values[column]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: {column}={value!r:.60} must be a text that is not empty")
    return value


def name_of(row: Row, column: str) -> str | None:
    """A text or number as text (12, 12.0 and "12.0" are one name), None where there is none.

    Raises:
        InputError: it is a list or the like.
    """
    value = row[1].get(column)
    text = str(value).strip()
    if not text or (not isinstance(value, str) and text in MISSING):
        return None
    if isinstance(value, Mapping | list | tuple | set):
        raise InputError(f"{row[0]}: {column}={value!r:.60} must be a text or a number")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def _of_file(path: Path) -> tuple[list[Row], pd.DataFrame]:
    import pandas as pd

    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"{path}: give a file whose name ends in {', '.join(ENDINGS)}")
    try:
        text = _decoded(path.read_bytes())
        if ending in DELIMITED:
            header, cells = _records(text, ending)
            found = [(place, dict(zip(header, values, strict=True))) for place, values in cells]
            table = pd.DataFrame([row for _, row in cells], columns=pd.Index(header), dtype=object)
        else:
            found = list(_of_lines(text) if ending == ".jsonl" else _of_json(text))
            table = _table([row for _, row in found])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file that can be read") from error
    except ValueError as error:
        raise InputError(f"{path}, {error}; correct the file") from error
    except RecursionError as error:
        raise InputError(f"{path}: JSON nested too deep to be read; correct the file") from error
    if not found:
        raise InputError(f"{path} holds no rows: give a file with 1 at least")
    return [_named(f"{path}, {place}", row) for place, row in found], table


def _named(place: str, row: object) -> Row:
    if not isinstance(row, Mapping):
        raise InputError(f"{place}: {row!r:.60} must be an object that maps columns to values")
    return place, row


def _table(rows: Sequence[object]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([row for row in rows if isinstance(row, Mapping)], dtype=object)


def _indexed(frame: pd.DataFrame) -> pd.DataFrame:
    """With an index 0 to n - 1; one that was the user's is the first column, if none already."""
    bare = frame.reset_index(drop=True)
    known = frame.index.equals(bare.index) or any(name in bare for name in frame.index.names)
    return bare if known else frame.reset_index(allow_duplicates=True)


def _parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: {reason}; give a file that can be read") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}; correct the file") from error


def _decoded(raw: bytes) -> str:
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line}: the byte {raw[error.start]:#04x} is not UTF-8 but Windows-1252 or the "
            'like: save it as UTF-8 (Excel: "CSV UTF-8"), or run iconv -f WINDOWS-1252 -t UTF-8'
        ) from error
    if "\0" in text:
        raise ValueError("which holds NUL characters, as UTF-16 does: save it as UTF-8")
    return text


def _of_lines(text: str) -> Iterator[tuple[str, Any]]:
    row = 0
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            try:
                yield f"row {row}, line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg} at column {error.colno}") from error
            row += 1


def _of_json(text: str) -> Iterator[tuple[str, Any]]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        hint = ", or name it .jsonl if it has one object a line" if "Extra" in error.msg else ""
        raise ValueError(f"{error}{hint}") from error
    rows = _of_object(found) if isinstance(found, Mapping) else found
    if not isinstance(rows, list):
        raise ValueError(f"which must be {SHAPES}; it is {found!r:.60}")  # noqa: TRY004
    yield from ((f"row {number}", row) for number, row in enumerate(rows))


def _of_object(found: Mapping[str, Any]) -> object:
    lists = {name: value for name, value in found.items() if isinstance(value, list)}
    tables = [rows for rows in lists.values() if rows and all(isinstance(r, Mapping) for r in rows)]
    lengths = {name: len(value) for name, value in lists.items()}
    even = len(lists) == len(found) > 0 and len({*lengths.values()}) == 1
    if len(tables) == 1 and (len(lists) == 1 or not even):
        return tables[0]
    if even and len(tables) < len(lists):
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    shape = f"with lists of the lengths {lengths}" if lists else f"with the keys {[*found]}"
    raise ValueError(f"which must be {SHAPES}; it is an object {shape:.200}")


def _records(text: str, ending: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The header, and the place and values of each row that is not blank."""
    csv.field_size_limit(LONGEST)  # for a whole document in a field
    by = _delimiter(text, ending)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=by, strict=True)
    header: list[str] = []
    rows: list[tuple[str, list[str]]] = []
    line = 1
    try:
        for values in reader:
            place, line = f"row {len(rows)}, line {line}", reader.line_num + 1
            if not any(map(str.strip, values)) or values == EXCEL:
                continue
            if not header:
                header = values
            elif len(values) != len(header):
                raise ValueError(f"{place}: has more or fewer values than the header, by {by!r}")
            else:
                rows.append((place, values))
    except csv.Error as error:
        raise ValueError(f"row {len(rows)}, line {line}: {error}") from error
    return header, rows


def _delimiter(text: str, ending: str) -> str:
    """What parts the header into several columns, then all rows into as many, then into most."""
    usual = "\t" if ending == ".tsv" else ","
    best = max((usual, *",;\t|"), key=lambda delimiter: _fit(text, delimiter))
    return best if _fit(text, best)[0] else ONE_COLUMN


def _fit(text: str, delimiter: str) -> tuple[bool, bool, int]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = 0
    try:
        widths = (len(row) for row in reader if any(map(str.strip, row)))
        columns = next(widths, 0)
        return columns > 1, all(width == columns for width in widths), columns
    except csv.Error:
        return columns > 1, False, columns
