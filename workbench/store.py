"""A persistent store of answers: one SQLite file, a row per answer, written as each completes.

A key is the digest of everything that affects the answer; a value is compressed JSON.
Several processes may use one file at once (write-ahead log). `kill -9` loses what was in flight.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from platformdirs import user_cache_path

from workbench.errors import StoreError
from workbench.types import Completion, LabelRow, TokenLogprob

APPLICATION_ID = 0x576B4263  # "WkBc": marks a file as ours
VERSION = 1
T = TypeVar("T")
BATCH = 500  # SQLite allows 999 variables in a statement on old builds


def default_path() -> Path:
    """`store.sqlite` in the user's cache folder (`WORKBENCH_CACHE` overrides the folder)."""
    folder = os.environ.get("WORKBENCH_CACHE")
    return (Path(folder) if folder else user_cache_path("workbench")) / "store.sqlite"


def digest(*parts: object) -> bytes:
    """SHA-256 of the parts as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of a model folder's files, read in parallel."""
    from concurrent.futures import ThreadPoolExecutor

    def one(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    inside = ((p, p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    files = sorted(
        path
        for path, name in inside
        if path.suffix not in {".md", ".png"} and not any(x.startswith(".") for x in name.parts)
    )
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(one, files))
    names = [p.relative_to(folder).as_posix() for p in files]
    return digest(list(zip(names, sums, strict=True))).hex()


def why_not_ours(db: sqlite3.Connection) -> str | None:
    """Why a database is no store of this version; None if it is."""
    kind, version = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if kind != APPLICATION_ID:
        return "it is a database of another program"
    if version != VERSION:
        return f"it has version {version}, this workbench reads version {VERSION}"
    return None


class Store:
    """A dictionary of answers on disk, safe for several threads and processes.

    Raises:
        StoreError: the file is corrupt, not a workbench store, or its folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # prompts are private
            self._db = sqlite3.connect(
                path, timeout=60, check_same_thread=False, isolation_level=None
            )
            with self._transaction():
                self._prepare()
            self._use_log()
        except (OSError, sqlite3.Error) as error:
            if db := getattr(self, "_db", None):
                db.close()
            self._refuse(str(error))

    def _refuse(self, reason: str) -> NoReturn:
        raise StoreError(
            f"cannot use {self.path} as a response store: {reason}. It was not changed; set "
            'another path as store="…", or store=None to work without one'
        )

    def _prepare(self) -> None:
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and (reason := why_not_ours(self._db)):
            self._refuse(reason)
        if not tables:
            self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={VERSION}")
            self._db.execute(
                "CREATE TABLE responses"
                "(key BLOB PRIMARY KEY, value BLOB NOT NULL, created REAL NOT NULL)"
            )
        self._db.execute("CREATE TABLE IF NOT EXISTS facts (key BLOB PRIMARY KEY, value TEXT)")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._roll_back()  # an interrupt may have left a transaction open
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _use_log(self) -> None:
        """Switch to the write-ahead log; SQLite does not wait for other processes here."""
        patience = time.monotonic() + 30
        self._db.execute("PRAGMA synchronous=NORMAL")
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > patience:
                    raise
                time.sleep(0.02)
            else:
                return

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """The stored values of these keys."""
        found: dict[bytes, Any] = {}
        try:
            with self._lock:
                for start in range(0, len(keys), BATCH):
                    part = keys[start : start + BATCH]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT key, value FROM responses WHERE key IN ({marks})"
                    for key, value in self._db.execute(query, part):
                        found[key] = json.loads(zlib.decompress(value))
        except (sqlite3.Error, zlib.error, ValueError) as error:
            raise StoreError(
                f"{self.path} is damaged ({error}); move it away or use another store"
            ) from error
        return found

    def put(self, rows: Mapping[bytes, Any] | Iterable[tuple[bytes, Any]]) -> None:
        """Add rows in one transaction; an existing key keeps its value."""
        pairs = rows.items() if isinstance(rows, Mapping) else rows
        now = time.time()
        packed = [
            (key, zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1), now)
            for key, value in pairs
        ]
        try:
            with self._lock, self._transaction():
                self._db.executemany("INSERT OR IGNORE INTO responses VALUES (?,?,?)", packed)
        except sqlite3.Error as error:
            raise StoreError(
                f"could not write to {self.path}: {error}; free some disk space or use "
                "another store (earlier writes are kept)"
            ) from error

    def update(self, key: bytes, change: Callable[[Any | None], T]) -> T:
        """Replace a fact by `change` of it (None if there is none) atomically; returns the new one.

        Facts are stored next to the answers: what is known of models and calls. Other threads and
        processes see the old or the new fact.
        """
        try:
            with self._lock, self._transaction():
                query = "SELECT value FROM facts WHERE key = ?"
                row = self._db.execute(query, (key,)).fetchone()
                new = change(None if row is None else json.loads(row[0]))
                query = "INSERT OR REPLACE INTO facts VALUES (?,?)"
                self._db.execute(query, (key, json.dumps(new)))
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(
                f"could not use {self.path}: {error}; set another store as store=…, or None"
            ) from error
        return new

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM responses").fetchone()[0])

    def close(self) -> None:
        self._db.close()


def open_store(store: str | Path | None) -> Store | None:
    """`"default"` is the user's file, a path is that file, None is no store."""
    if store is None:
        return None
    if store == "default":
        store = os.environ.get("WORKBENCH_STORE") or default_path()
    return Store(Path(store).expanduser())


def dump(row: Completion | LabelRow) -> Any:
    """An answer's stored form."""
    if isinstance(row, LabelRow):
        parts = {"upper": row.upper, "lengths": row.lengths, "greedy": row.greedy}
        return {"scores": row.logprobs, **{k: v for k, v in parts.items() if v is not None}}
    thought = {"reasoning": row.reasoning, "thought": row.reasoning_tokens}
    return {
        "text": row.text,
        "finish": row.finish_reason,
        "ids": row.token_ids,
        "logprobs": row.logprobs and [(t.token_id, t.logprob, t.top) for t in row.logprobs],
        "prompt": row.prompt_tokens,
        "completion": row.completion_tokens,
    } | (thought if row.reasoning or row.reasoning_tokens else {})


def load(value: Any) -> Completion | LabelRow:
    """An answer from its stored form; the index of label scores is unknown.

    Earlier versions stored label scores as a list, or as two: scores and bounds.
    """
    if not isinstance(value, dict):
        scores, upper = value if isinstance(value[0], list | tuple) else (value, value)
        return LabelRow(0, tuple(scores), upper=tuple(upper))
    if "scores" in value:
        scores, lengths = tuple(value["scores"]), value.get("lengths")
        return LabelRow(
            0,
            scores,
            upper=tuple(value.get("upper") or scores),
            lengths=tuple(lengths) if lengths else None,
            greedy=value.get("greedy"),
        )
    logprobs, ids = value["logprobs"], value["ids"]
    if logprobs is not None:
        logprobs = tuple(
            TokenLogprob(i, p, tuple((j, q) for j, q in top)) for i, p, top in logprobs
        )
    return Completion(
        text=value["text"],
        finish_reason=value["finish"],
        token_ids=None if ids is None else tuple(ids),
        logprobs=logprobs,
        prompt_tokens=value["prompt"],
        completion_tokens=value["completion"],
        reasoning=value.get("reasoning"),
        # Rows of earlier versions have no count: unknown where there is thinking.
        reasoning_tokens=value.get("thought", None if value.get("reasoning") else 0),
        from_store=True,
    )
