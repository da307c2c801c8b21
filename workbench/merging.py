"""Several stores made one: `merge` adds the rows and facts of other store files.

Rows are copied as they are, in the order of their keys: each page of the target's index is written
once per file, and memory does not grow. Files are opened read-only, and may be in use. A part is
one transaction: an interrupt or `kill -9` keeps whole parts, and the same merge again adds the
rest. A file's facts come first, and once more in the end, as the file may be in use: no draw
whose rows are here is unknown, as the next one would then return those rows as its own.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from workbench import values
from workbench.errors import InputError, StoreError
from workbench.progress import check, one_bar
from workbench.store import Store, why_not_ours

PART = 50_000  # rows per transaction: other writers of the target wait for no more
END = """SELECT max(key), count(*)
    FROM (SELECT key FROM other.responses WHERE key > ? ORDER BY key LIMIT ?)"""
ADD = """INSERT OR IGNORE INTO main.responses
    SELECT * FROM other.responses WHERE key > ? AND key <= ? ORDER BY key"""
DIFFERING = """SELECT count(*) FROM other.responses AS a JOIN main.responses AS b USING (key)
    WHERE key > ? AND key <= ? AND a.value <> b.value AND differ(a.value, b.value)"""
UNITE = """INSERT INTO main.facts SELECT key, united('null', value) FROM other.facts WHERE true
    ON CONFLICT (key) DO UPDATE SET value = united(facts.value, excluded.value)"""


@dataclass(frozen=True, slots=True)
class Merged:
    """How many of a file's rows are new, and how many were there; those keep their values.

    `differing` of the latter had another value in this file.
    """

    source: Path
    new: int
    there: int
    differing: int


def merge(into: str | Path, sources: str | Path | Sequence[str | Path]) -> list[Merged]:
    """Add the rows and facts of other stores to a store, which is created if it is missing.

    A key that is there keeps its value, as with `Store.put`. Of facts, fingerprints of servers are
    united; a draw without seeds is finished if a store has finished it, else it can be resumed;
    the note that a server accepts no seeds stays.

    Raises:
        InputError: no source, or one that is the target itself.
        StoreError: a file is missing, damaged, or no store of this version. All are checked before
            anything is written; damage that shows later leaves the parts before it.
    """
    target, files = Path(into).expanduser(), values.paths(sources)
    if not files:
        raise InputError("sources is empty: give the stores to add")
    rows = sum(map(size_of, files))
    if target.exists() and (same := [file for file in files if target.samefile(file)]):
        raise InputError(f"{same[0]} is the store to merge into: leave it out of the sources")
    Store(target).close()
    with one_bar(rows, "merging", "row") as bar:
        return [_add(target, file, bar.update) for file in files]


def size_of(file: Path) -> int:
    """The number of a store's rows, without a look at each; the file is not changed.

    Raises:
        StoreError: it is missing, damaged, or no store of this version.
    """
    if not file.is_file() or not file.stat().st_size:
        raise StoreError(f"{file} {'is empty' if file.is_file() else 'is no file'}: not a store")
    try:
        with closing(sqlite3.connect(_read_only(file), uri=True, timeout=60)) as db:
            if reason := why_not_ours(db):
                raise StoreError(f"{file} is not a store to read here: {reason}")
            return int(db.execute("SELECT max(rowid) FROM responses").fetchone()[0] or 0)
    except sqlite3.Error as error:
        raise StoreError(
            f"cannot read {file} as a store: {error}. Nothing was changed; where its folder cannot "
            "be written, copy it first"
        ) from error


def _read_only(file: Path) -> str:
    return f"{file.absolute().as_uri()}?mode=ro"


def _add(target: Path, file: Path, step: Callable[[int], object]) -> Merged:
    new, seen, differing, last, count = 0, 0, 0, b"", 1
    place = target.absolute().as_uri()
    try:
        with closing(sqlite3.connect(place, uri=True, timeout=60, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous=NORMAL")
            db.create_function("differ", 2, _differ)
            db.create_function("united", 2, _united)
            db.execute("ATTACH ? AS other", (_read_only(file),))
            facts = UNITE if _has_facts(db) else ""
            db.execute(facts)
            while count:
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    end, count = db.execute(END, (last, PART)).fetchone()
                    added = db.execute(ADD, (last, end)).rowcount
                    if added < count:
                        differing += db.execute(DIFFERING, (last, end)).fetchone()[0]
                new, seen, last = new + added, seen + count, end
                step(count)
                check()
            db.execute(facts)
    except sqlite3.Error as error:
        raise StoreError(
            f"merging {file} into {target} ended after {seen:,} rows: {error}. What was added is "
            "kept; the same merge again adds the rest"
        ) from error
    return Merged(file, new, seen - new, differing)


def _has_facts(db: sqlite3.Connection) -> bool:
    """Whether the other store has facts: the first versions kept none."""
    found = db.execute("SELECT 1 FROM other.sqlite_master WHERE type = 'table' AND name = 'facts'")
    return found.fetchone() is not None


def _differ(one: bytes, other: bytes) -> bool:
    """Whether two stored values differ, and not only in how they were compressed."""
    return bool(json.loads(zlib.decompress(one)) != json.loads(zlib.decompress(other)))


def _united(ours: str, theirs: str) -> str:
    """A fact of two stores as one; `null` is none.

    Fingerprints are a list, of which the first that matches names the weights: ours stay first.
    Draws are a dictionary: open only where neither store has finished them, as all their rows are
    here now, and without the process that draws into the other file. Else it is a note.
    """
    one, other = json.loads(ours), json.loads(theirs)
    if isinstance(other, list):
        new = [each for each in other if each not in (one or ())]
        return json.dumps([*(one or ()), *new])
    if not isinstance(other, dict):
        return json.dumps(one or other)
    both = one or {"next": 0, "open": {}}, other
    opened = dict.fromkeys(other["open"]) | both[0]["open"]
    for number in [*opened]:
        if any(int(number) < each["next"] and number not in each["open"] for each in both):
            del opened[number]
    return json.dumps({"next": max(each["next"] for each in both), "open": opened})
