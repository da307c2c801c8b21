from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.engines.base import FORMAT
from workbench.engines.requests import plan
from workbench.errors import StoreError
from workbench.store import Store, digest, dump, folder_digest, load, open_store
from workbench.types import Completion, LabelRow, Prompt, Sampling, TokenLogprob


def test_rows_come_back_and_the_first_value_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "s.sqlite")
    keys = [digest(i) for i in range(1200)]  # more than one batch of variables
    store.put((key, {"i": i, "text": "é\n\ud800"}) for i, key in enumerate(keys))
    store.put({keys[0]: "other"})
    assert len(store) == 1200
    assert Store(store.path).get(keys)[keys[1199]] == {"i": 1199, "text": "é\n\ud800"}
    assert store.get([keys[0], digest("unknown")]) == {keys[0]: {"i": 0, "text": "é\n\ud800"}}


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read" * 99, b"SQLite"])
def test_a_corrupt_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="was not changed"):
        Store(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    store.close()
    with sqlite3.connect(store.path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="version 99"):
        Store(store.path)


def test_a_row_damaged_later_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    store.put({b"k": 1})
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE responses SET value = x'00'")
    with pytest.raises(StoreError, match="move it away"):
        store.get([b"k"])


def test_a_read_only_folder_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    # The superuser may write anywhere, so become somebody else where we are.
    tmp_path.chmod(0o555)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(StoreError, match="store=None"):
            open_store(tmp_path / "s.sqlite")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


WRITER = """
import sys
from pathlib import Path
from typing import Any
from workbench.store import Store, digest
store = Store(Path(sys.argv[1]))
for i in range(300):
    store.put({digest(sys.argv[2], i): i, digest("both", i): i})
"""


def test_what_is_stored_is_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store(tmp_path / "s.sqlite")
        store.put({b"k": 1})
    finally:
        os.umask(before)
    files = [*tmp_path.iterdir()]
    assert len(files) == 3  # the log and its index too
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}


def test_facts_are_changed_in_one_step(tmp_path: Path) -> None:
    one, two = (Store(tmp_path / "s.sqlite") for _ in range(2))
    assert one.update(b"k", lambda old: [old]) == [None]
    assert two.update(b"k", lambda old: [*(old or ()), 2]) == [None, 2]
    with pytest.raises(ZeroDivisionError):
        one.update(b"k", lambda _: 1 / 0)
    assert one.update(b"k", lambda old: old) == [None, 2]
    assert len(one) == 0  # they are no responses


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(Store(path)) == 900


def test_a_folders_digest_follows_its_contents(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "README.md").write_text("words")
    first = folder_digest(tmp_path)
    stat = (tmp_path / "model.safetensors").stat()
    (tmp_path / "model.safetensors").write_bytes(b"1235")
    os.utime(tmp_path / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = folder_digest(tmp_path)
    (tmp_path / "README.md").write_text("other words")
    assert first != second == folder_digest(tmp_path)


class Stopped:
    """A connection at which Ctrl-C comes as soon as one statement is done."""

    def __init__(self, db: Any, statement: str) -> None:
        self._db, self._statement = db, statement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, sql: str, *rest: Any) -> Any:
        done = self._db.execute(sql, *rest)
        if sql.startswith(self._statement):
            raise KeyboardInterrupt
        return done


@pytest.mark.parametrize("statement", ["BEGIN", "COMMIT", "ROLLBACK"])
def test_ctrl_c_at_any_statement_leaves_a_store_that_writes(tmp_path: Path, statement: str) -> None:
    store = Store(tmp_path / "store.sqlite")
    whole = store._db
    store._db = Stopped(whole, statement)  # type: ignore[assignment]
    if statement == "ROLLBACK":
        whole.execute("BEGIN")
    with pytest.raises(KeyboardInterrupt):
        store.put({b"first": 1})
    if statement != "COMMIT":
        whole.execute("BEGIN") if not whole.in_transaction else None  # it came a line later
    store._db = whole
    store.put({b"second": 2})
    assert store.get([b"second"]) == {b"second": 2}
    assert (b"first" in store.get([b"first"])) == (statement == "COMMIT")
    store.close()


@pytest.mark.parametrize(
    ("prompts", "sampling", "keys", "seed"),
    [
        (["Ä 1", "b", "b"], Sampling(max_tokens=4), "2508b9d540a623cf", None),
        (
            ["Ä 1", "b", "b"],
            Sampling(max_tokens=4, temperature=1, seed=7, n=2),
            "e9f9f2578047059a",
            35646944817952039,
        ),
        ([[{"role": "user", "content": "hi"}]], Sampling(), "69b050b36137bcf4", None),
    ],
)
def test_keys_are_those_of_older_stores(
    prompts: list[Prompt], sampling: Sampling, keys: str, seed: int | None
) -> None:
    identity = digest(FORMAT, {"weights": ["w", None]})
    base = hashlib.sha256(identity + digest(sampling.canonical()))
    requests = [request for request, _, _ in plan(prompts, sampling, base)]
    together = hashlib.sha256(b"".join(request.key for request in requests))
    assert together.hexdigest()[:16] == keys
    assert requests[-1].seed == seed
    assert digest("draw", b"x".hex()).hex()[:16] == "fa8dc98f73d2bab0"  # of draws that resume


def test_rows_of_older_stores_are_read() -> None:
    text = {
        "text": "4", "finish": "stop", "ids": [7, 2], "prompt": 5, "completion": 2,
        "logprobs": [[7, -0.5, [[7, -0.5], [9, -1.5]]], [2, -0.1, []]],
    }  # fmt: skip
    row = load(text)
    assert isinstance(row, Completion)
    assert row.logprobs == (
        TokenLogprob(7, -0.5, ((7, -0.5), (9, -1.5))),
        TokenLogprob(2, -0.1, ()),
    )
    assert (row.text, row.token_ids, row.reasoning, row.from_store) == ("4", (7, 2), None, True)
    assert load([-1.5, -2.5]) == LabelRow(0, (-1.5, -2.5), upper=(-1.5, -2.5))
    assert load([[-1.5, -math.inf], [-1.5, -9.0]]) == LabelRow(
        0, (-1.5, -math.inf), upper=(-1.5, -9.0)
    )
    for one in (row, LabelRow(0, (-1.5,), upper=(-1.0,))):
        assert load(json.loads(json.dumps(dump(one)))) == one


def test_the_environment_names_the_default_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "mine.sqlite"))
    for name, there in [
        ("default", "mine.sqlite"),
        (str(tmp_path / "other.sqlite"), "other.sqlite"),
    ]:
        store = open_store(name)
        assert store is not None
        store.close()
        assert (tmp_path / there).exists()
