"""Rows of a user's own: files, tables and lists, every value told by its place."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError

__all__ = ["Row", "name_of", "rows_of", "text_of"]

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, for messages, and its values."""

LONGEST = 2**31 - 1
"""Characters of a CSV field; Python's own limit is 131,072."""
MISSING = {"None", "nan", "NaT", "<NA>"}
"""How the values print that stand for no value."""


def rows_of(source: object, what: str = "source") -> list[Row]:
    """The rows of a .jsonl, .json or .csv file, a pandas DataFrame, what has `to_pandas` (such as a
    Hugging Face `Dataset`), or a list of dicts; a missing value is None, in a file of CSV "".

    Raises:
        InputError: it is nothing of these, cannot be read, or holds no rows.
    """
    if isinstance(source, str | Path):
        return _file_rows(Path(source).expanduser())
    import pandas as pd

    if callable(convert := getattr(source, "to_pandas", None)):
        source = convert()
    if isinstance(source, pd.DataFrame):
        source = source.astype(object).where(source.notna(), None).to_dict("records")
    if not isinstance(source, Sequence) or not source:
        raise InputError(
            f"{what}={source!r:.60}: give a .jsonl, .json or .csv file, a DataFrame, one split of "
            "a Dataset or a list of dicts, with 1 row at least"
        )
    return [_named(f"{what}[{number}]", row) for number, row in enumerate(source)]


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


def _file_rows(path: Path) -> list[Row]:
    readers = {".jsonl": _of_lines, ".json": _of_list, ".csv": _of_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: give a file whose name ends in {', '.join(readers)}")
    try:
        found = list(reader(path.read_bytes().decode("utf-8-sig")))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file that can be read") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}, {error}; correct the file") from error
    except RecursionError as error:
        raise InputError(f"{path}: JSON nested too deep to be read; correct the file") from error
    if not found:
        raise InputError(f"{path} holds no rows: give a file with 1 at least")
    return [_named(f"{path}, {place}", row) for place, row in found]


def _named(place: str, row: object) -> Row:
    if not isinstance(row, Mapping):
        raise InputError(f"{place}: {row!r:.60} must be an object that maps columns to values")
    return place, row


def _of_lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg} at column {error.colno}") from error


def _of_list(text: str) -> Iterator[tuple[str, Any]]:
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise InputError("which must be a list of objects")
    yield from ((f"row {number}", row) for number, row in enumerate(rows))


def _of_csv(text: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(LONGEST)  # for a whole document in a field
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num}: has more or fewer values than the header")
        yield f"line {reader.line_num}", row
