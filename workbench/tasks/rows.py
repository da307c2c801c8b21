"""Read your data: files, frames and lists, as rows with their positions.

`read_rows` and `read_table` accept .jsonl, .json, .csv, .tsv, .txt and .parquet files, pandas
DataFrames, Hugging Face `Dataset`s and lists of dicts. They handle encodings (UTF-8, UTF-16 with
its mark), separators, quotes, blank lines and missing values, and report a broken row's line.
A row's own methods refuse a missing or wrong value, and name the row's place and the column.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from workbench.errors import InputError
from workbench.files import LineError, file_error
from workbench.lazy import pd
from workbench.values import cells, is_missing, near, refuse

LONGEST = 2**31 - 1
"""Maximum characters of a CSV field; Python's default limit is 131,072."""
DELIMITED = (".csv", ".tsv", ".txt")
ENDINGS = (".jsonl", ".json", *DELIMITED, ".parquet")
ONE_COLUMN = "\x1f"
"""The delimiter for a file with one column: a character that no text contains."""
EXCEL = ["sep=", ""]
"""Excel's first line, which names the separator."""
BETWEEN = re.compile(r"[\s,]*")
"""The separator between the elements of a list."""
SHAPES = 'a list of objects, {"data": [...]} with one such list, or columns {"text": [...], ...}'


class TableRow(NamedTuple):
    """A row's cells by column, and its place: "claims.csv:5", or "source[3]" of a frame.

    In a JSON list the place is "claims.json:5: row 3", without lines "claims.parquet: row 3".
    """

    place: str
    cells: Mapping[Any, Any]

    def refuse(self, column: str, need: str) -> NoReturn:
        """Raise the error that a column is missing, or what its value must be."""
        if column not in self.cells:
            known = [*map(str, self.cells)]
            raise InputError(
                f"{self.place}: no column {column!r} among {', '.join(known)}; add or rename it"
                + near(column, known)
            )
        value = self.cells[column]
        raise InputError(f"{self.place}: {column}={value!r:.60} must be {need}")

    def text(self, column: str) -> str:
        """A text that every row must have.

        Raises:
            InputError: the column is missing, or holds no text.
        """
        value = self.cells.get(column)
        if not isinstance(value, str) or not value.strip():
            self.refuse(column, "a text that is not empty")
        return value

    def key(self, column: str) -> str | None:
        """A text or number as text (12, 12.0 and "12.0" are equal), None if there is none.

        Raises:
            InputError: it is neither a text nor a number.
        """
        value = self.cells.get(column)
        text = str(value).strip()
        if isinstance(value, float) and not value.is_integer() and not is_missing(value):
            text = f"{float(text):.15g}"  # 0.1 + 0.2 is 0.3
        if not text or is_missing(value):
            return None
        if isinstance(value, Mapping | list | tuple | set):
            self.refuse(column, "a text or a number")
        return re.sub(r"^(-?\d+)\.0+$", r"\1", text)

    def text_or_number(self, column: str) -> str:
        """A required text (without surrounding spaces) or number, as text.

        Raises:
            InputError: the column is missing, or holds neither.
        """
        number = None if isinstance(self.cells.get(column), str) else self.key(column)
        return number or self.text(column).strip()


class Table(NamedTuple):
    """Rows, in which a missing value is None, or "" from a text file; and the same as a DataFrame
    with all columns in order, original values, and index 0 to n - 1."""

    rows: list[TableRow]
    frame: pd.DataFrame


def read_rows(source: object, what: str = "source") -> list[TableRow]:
    """The rows of `read_table`."""
    return read_table(source, what).rows


def read_table(source: object, what: str = "source") -> Table:
    """All rows of a file, a frame or a list.

    Args:
        source: a .jsonl, .json, .csv, .tsv, .txt or .parquet file, a pandas DataFrame, an object
            with `to_pandas` (such as a Hugging Face `Dataset`), or a list of dicts. Columns of a
            text file are separated by `,` `;` tab or `|`, whichever fits all rows; its values
            stay texts. A DataFrame's own index becomes a column.
        what: the name of a list or frame in messages.

    Raises:
        InputError: the source is none of these, cannot be read, or has no rows.
    """
    if isinstance(source, str | Path):
        return _read_file(Path(source).expanduser())
    if callable(convert := getattr(source, "to_pandas", None)):
        source = convert()
    if isinstance(source, pd.DataFrame) and len(source):
        return _from_frame(source, what)
    if not isinstance(source, Sequence) or not source:
        files = f"a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file"
        kinds = "a DataFrame, one split of a Dataset or a list of dicts"
        refuse(what, source, f"{files}, {kinds}, with at least 1 row")
    return _from_objects((f"{what}[{number}]", row) for number, row in enumerate(source))


def is_path(source: object) -> bool:
    """Whether it names a file and not a built-in task: a `Path`, or a text with a dot or slash."""
    return isinstance(source, Path) or bool(re.search(r"[/\\.]", str(source)))


def check_distinct(rows: Sequence[TableRow], column: object, ids: Sequence[str]) -> None:
    """Refuse duplicate ids.

    Raises:
        InputError: two ids are equal; the message names both rows.
    """
    places: dict[str, str] = {}
    for row, one in zip(rows, ids, strict=True):
        if one in places:
            raise InputError(
                f"{row.place}: {column}={one!r:.60} is that of {places[one]} too; give each row "
                "a unique id"
            )
        places[one] = row.place


def find_column(columns: Sequence[Any], wanted: str, where: str) -> Any | None:
    """The column with this name, or the only one that differs only in case, spaces, `_` and `-`.

    Raises:
        InputError: several columns do.
    """

    def plain(name: object) -> str:
        return re.sub(r"[\s_-]+", "", str(name)).casefold()

    matching = [column for column in columns if str(column) == wanted] or [
        column for column in columns if plain(wanted) and plain(column) == plain(wanted)
    ]
    if len(matching) > 1:
        names = listed(matching)
        raise InputError(f"{where}: the columns {names} could all be {wanted}; rename one")
    return matching[0] if matching else None


def listed(columns: Sequence[Any]) -> str:
    """Names of columns for a message."""
    return ", ".join(f"{column!s:.40}" or "(a blank one)" for column in columns)


def _from_objects(pairs: Iterator[tuple[str, Any]]) -> Table:
    rows = [TableRow(place, row) for place, row in pairs]
    for place, row in rows:
        if not isinstance(row, Mapping):
            raise InputError(f"{place}: {row!r:.60} must be an object that maps columns to values")
    return Table(rows, pd.DataFrame([row.cells for row in rows], dtype=object))


def _from_frame(source: pd.DataFrame, what: str | Path) -> Table:
    frame = source.reset_index(drop=True)
    # A custom index becomes the first column, unless a column has it already.
    if not source.index.equals(frame.index) and not any(n in frame for n in source.index.names):
        frame = source.reset_index(allow_duplicates=True)
    plain = cells(frame).where(frame.notna(), None)
    rows = (dict(zip(frame.columns, row, strict=True)) for row in plain.itertuples(False, None))
    place = "{}: row {}" if isinstance(what, Path) else "{}[{}]"
    return Table([TableRow(place.format(what, n), row) for n, row in enumerate(rows)], frame)


def _read_file(path: Path) -> Table:
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"{path}: give a file whose name ends in {', '.join(ENDINGS)}")
    try:
        if ending == ".parquet":
            table = _from_frame(pd.read_parquet(path), path)
        elif ending in DELIMITED:
            table = _of_delimited(_decoded(path.read_bytes()), ending, path)
        else:
            pairs = (_of_lines if ending == ".jsonl" else _of_json)(_decoded(path.read_bytes()))
            table = _from_objects((f"{path}:{place}", row) for place, row in pairs)
    except InputError:  # it is a ValueError too
        raise
    except OSError as error:
        raise InputError(f"{file_error(path, error)}; give a file that can be read") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file_error(path, error)}; correct the file") from error
    if not table.rows:
        raise InputError(f"{path} holds no rows: give a file with at least 1")
    return table


def _decoded(raw: bytes) -> str:
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise LineError(
            line,
            f"the byte {raw[error.start]:#04x} is not UTF-8 but Windows-1252 or the "
            'like: save it as UTF-8 (Excel: "CSV UTF-8"), or run iconv -f WINDOWS-1252 -t UTF-8',
        ) from error
    if "\0" in text:
        raise ValueError("it holds NUL characters, as UTF-16 does: save it as UTF-8")
    return text


def _of_lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            try:
                yield str(number), json.loads(line)
            except json.JSONDecodeError as error:
                raise LineError(number, f"{error.msg} at column {error.colno}") from error
            except RecursionError as error:
                raise LineError(number, "nested too deep to be read") from error


def _of_json(text: str) -> Iterator[tuple[str, Any]]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        hint = ", or name it .jsonl if it has one object per line" if "Extra" in error.msg else ""
        message = f"{error.msg} at column {error.colno}{hint}"
        raise LineError(error.lineno, message) from error
    rows = _of_object(whole) if isinstance(whole, Mapping) else whole
    if not isinstance(rows, list):
        raise ValueError(f"it must be {SHAPES}; it is {whole!r:.60}")  # noqa: TRY004
    if rows is whole:
        lines = enumerate(_begins(text, len(rows)))
        return ((f"{line}: row {n}", row) for (n, line), row in zip(lines, rows, strict=True))
    return ((f" row {number}", row) for number, row in enumerate(rows))


def _begins(text: str, count: int) -> Iterator[int]:
    """The lines in which the first `count` elements of a list begin."""
    line, at, decoder = 1, text.index("[") + 1, json.JSONDecoder()
    line += text.count("\n", 0, at)
    for _ in range(count):
        begin = at + len(BETWEEN.match(text, at)[0])  # type: ignore[index]  # it matches nothing too
        line += text.count("\n", at, begin)
        yield line
        at = decoder.raw_decode(text, begin)[1]
        line += text.count("\n", begin, at)


def _of_object(whole: Mapping[str, Any]) -> object:
    """The list of rows in an object, or its columns as rows."""
    lists = {name: value for name, value in whole.items() if isinstance(value, list)}
    tables = [rows for rows in lists.values() if rows and all(isinstance(r, Mapping) for r in rows)]
    lengths = {name: len(value) for name, value in lists.items()}
    even = len(lists) == len(whole) > 0 and len({*lengths.values()}) == 1
    if len(tables) == 1 and (len(lists) == 1 or not even):
        return tables[0]
    if even and len(tables) < len(lists):
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    shape = f"with lists of the lengths {lengths}" if lists else f"with the keys {[*whole]}"
    raise ValueError(f"it must be {SHAPES}; it is an object {shape:.200}")


def _of_delimited(text: str, ending: str, path: Path) -> Table:
    csv.field_size_limit(LONGEST)  # allows a whole document in a field
    usual = "\t" if ending == ".tsv" else ","
    fits = {by: _fit(*_records(text, by)) for by in (usual, *",;\t|")}
    by = max(fits, key=lambda delimiter: fits[delimiter])
    records, error = _records(text, by if fits[by][0] else ONE_COLUMN)
    header = records[0][1] if records else []
    cells = [values for _, values in records[1:]]
    for line, values in records[1:]:
        if len(values) != len(header):
            many = f"{len(values)} values where the header has {len(header)}, by {by!r}"
            raise LineError(line, many)
    if error:
        raise error
    named = [
        TableRow(f"{path}:{line}", dict(zip(header, row, strict=True))) for line, row in records[1:]
    ]
    return Table(named, pd.DataFrame(cells, columns=pd.Index(header), dtype=object))


def _records(text: str, by: str) -> tuple[list[tuple[int, list[str]]], LineError | None]:
    """Values and first line of each record that is not blank, up to an error; and that error."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=by, strict=True)
    records: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for values in reader:
            if any(map(str.strip, values)) and values != EXCEL:
                records.append((line, values))
            line = reader.line_num + 1
    except csv.Error as error:
        return records, LineError(line, str(error))
    return records, None


def _fit(records: list[tuple[int, list[str]]], error: LineError | None) -> tuple[bool, bool, int]:
    """How well a delimiter fits: several columns? as many in all rows? how many?"""
    columns = len(records[0][1]) if records else 0
    even = all(len(values) == columns for _, values in records)
    return columns > 1, even and not error, columns
