"""Stores made one: real answers, facts, disturbances, and files that are no stores."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.harness import remote_engine
from benchmarks.injector import Injector
from workbench import merging
from workbench.cli import app
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError, StoreError
from workbench.merging import Merged, merge, size_of
from workbench.store import Store, digest
from workbench.types import Sampling

PROMPTS = [f"{a}+{a}=" for a in range(20, 44)]
LABELS = [" True", " False", "4"]
DRAWN = Sampling(max_tokens=4, temperature=1.0)


def engine(path: Path) -> VLLMEngine:
    """The model that is in memory already, with this store."""
    return VLLMEngine(None, Store(path), "test", {})


def filled(path: Path, keys: range, value: str = "answer") -> Path:
    with closing(Store(path)) as store:
        store.put((digest(i), {"text": f"{value} {i}"}) for i in keys)
    return path


def whole(path: Path) -> int:
    """The rows of a store that is sound."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(db.execute("SELECT count(*) FROM responses").fetchone()[0])


def test_the_union_of_real_stores_answers_without_computing(
    plain: VLLMEngine, tmp_path: Path
) -> None:
    samplings = Sampling(max_tokens=6), Sampling(max_tokens=4, temperature=1.0, n=2, seed=0)
    shards = [tmp_path / f"shard-{k}.sqlite" for k in range(2)]
    opened = [engine(path) for path in shards]  # they stay open: their rows are in the log
    for k, one in enumerate(opened):
        part = PROMPTS[k::2]
        for sampling in samplings:
            one.generate(part, sampling)
        one.label_logprobs(part, LABELS)
    done = merge(tmp_path / "all.sqlite", shards)
    assert done == [Merged(path, 12 + 24 + 12, 0, 0) for path in shards]
    assert merge(tmp_path / "all.sqlite", shards) == [Merged(path, 0, 48, 0) for path in shards]
    union = engine(tmp_path / "all.sqlite")
    for sampling in samplings:
        rows = union.generate(PROMPTS, sampling)
        assert all(sample.from_store for row in rows for sample in row.samples)
        assert [r.text for r in rows] == [r.text for r in plain.generate(PROMPTS, sampling)]
    scores = union.label_logprobs(PROMPTS, LABELS).logprobs
    assert np.allclose(scores, plain.label_logprobs(PROMPTS, LABELS).logprobs, atol=1e-4)
    assert (union.usage.requests, union.usage.from_store) == (96, 96)
    assert [len(one._store or ()) for one in opened] == [48, 48]


def test_fingerprints_of_a_server_are_united(tmp_path: Path) -> None:
    shards = [tmp_path / "a.sqlite", tmp_path / "b.sqlite"]
    with Injector() as server:  # it lists no revision: answers belong to a fingerprint
        for k, path in enumerate(shards):
            with remote_engine(server.url, path) as one:
                one.generate(PROMPTS[k::2], Sampling(max_tokens=4))
            server.close()
            server._weights = 0 if k else 7  # other weights behind the same address
            server.start()
        merge(tmp_path / "all.sqlite", shards)
        for weights, k in ((0, 0), (7, 1)):
            server._weights = weights
            with remote_engine(server.url, tmp_path / "all.sqlite") as union:
                rows = union.generate(PROMPTS, Sampling(max_tokens=4))
            assert [row.from_store for row in rows] == [i % 2 == k for i in range(24)]


def early(one: VLLMEngine, count: int) -> None:
    """A call without a seed that ends after so many answers."""
    stream: Iterator[Any] = one.stream(PROMPTS, DRAWN)
    for _ in range(count):
        next(stream)
    stream.close()  # type: ignore[attr-defined]


def test_a_draw_resumes_unless_one_of_the_stores_has_finished_it(
    plain: VLLMEngine, tmp_path: Path
) -> None:
    assert plain.info.model
    first, second, third = (tmp_path / f"{name}.sqlite" for name in "abc")
    for path in (first, second):
        early(engine(path), 3)
    engine(third).generate(PROMPTS, DRAWN)
    merge(tmp_path / "open.sqlite", [first, second])
    there = size_of(tmp_path / "open.sqlite")
    resumed = engine(tmp_path / "open.sqlite").generate(PROMPTS, DRAWN)
    assert sum(row.from_store for row in resumed) == there >= 3
    for into in (first, tmp_path / "new.sqlite"):  # also where the target's own is open
        merge(into, [second, third])
        again = engine(into).generate(PROMPTS, DRAWN)
        assert not any(row.from_store for row in again)  # a new draw: this one was finished


def test_an_interrupted_merge_replays_no_draw(
    plain: VLLMEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a store of the first versions, which had no facts, end the merge."""
    into, drawn, old = (tmp_path / f"{name}.sqlite" for name in ("into", "drawn", "old"))
    with engine(drawn) as one:
        one.generate(PROMPTS, DRAWN)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merging, "check", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge(into, [drawn])
    assert whole(into) == len(PROMPTS)
    with engine(into) as merged:
        assert not any(row.from_store for row in merged.generate(PROMPTS, DRAWN))
    filled(old, range(5))
    with closing(sqlite3.connect(old)) as db:
        db.execute("DROP TABLE facts")
    assert merge(into, [old, drawn]) == [Merged(old, 5, 0, 0), Merged(drawn, 0, len(PROMPTS), 0)]


def test_other_facts_stay_or_are_added(tmp_path: Path) -> None:
    into, source = Store(tmp_path / "a.sqlite"), Store(tmp_path / "b.sqlite")
    into.update(b"both", lambda _: False)
    source.update(b"both", lambda _: True)
    source.update(b"only", lambda _: True)
    source.update(b"draw", lambda _: {"next": 2, "open": {"1": [1, 2.0, "elsewhere"]}})
    merge(into.path, str(source.path))  # one, without a list
    assert into.update(b"both", lambda old: old) is True
    assert into.update(b"only", lambda old: old) is True
    draw = {"next": 2, "open": {"1": None}}  # that process draws into the other file
    assert into.update(b"draw", lambda old: old) == draw


def test_another_value_is_counted_and_the_first_one_stays(tmp_path: Path) -> None:
    into = filled(tmp_path / "a.sqlite", range(100))
    source = filled(tmp_path / "b.sqlite", range(90, 130))
    with closing(sqlite3.connect(source)) as db, db:
        other = zlib.compress(json.dumps({"text": "other"}).encode())
        db.execute("UPDATE responses SET value = ? WHERE key = ?", (other, digest(95)))
        packed = zlib.compress(json.dumps({"text": "answer 96"}).encode(), 9)
        db.execute("UPDATE responses SET value = ? WHERE key = ?", (packed, digest(96)))
    assert merge(into, [source]) == [Merged(source, 30, 10, 1)]
    assert Store(into).get([digest(95)]) == {digest(95): {"text": "answer 95"}}
    assert whole(into) == 130


def test_an_interrupt_keeps_whole_parts_and_the_next_merge_adds_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, into = filled(tmp_path / "b.sqlite", range(1000)), tmp_path / "a.sqlite"
    monkeypatch.setattr(merging, "PART", 100)
    looks = iter(range(3))

    def stop() -> None:
        if next(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(merging, "check", stop)
    with pytest.raises(KeyboardInterrupt):
        merge(into, [source])
    assert whole(into) == 300
    monkeypatch.undo()
    assert merge(into, [source]) == [Merged(source, 700, 300, 0)]


CHILD = """
import sys, time
from pathlib import Path
from workbench import merging
from workbench.store import Store, digest
source, into = map(Path, sys.argv[1:])
store = Store(source)
store.put((digest(i), i) for i in range(1000))
merging.PART, parts = 100, []
def check():
    parts.append(0)
    if len(parts) == 4:
        print("here", flush=True)
        time.sleep(600)
merging.check = check
merging.merge(into, [source])
"""


def test_kill_9_keeps_whole_parts_and_a_log_that_it_leaves_is_read(tmp_path: Path) -> None:
    source, into = tmp_path / "b.sqlite", tmp_path / "a.sqlite"
    line = [sys.executable, "-c", CHILD, str(source), str(into)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.kill()
    assert (tmp_path / "b.sqlite-wal").stat().st_size > 10_000  # no one has closed it
    assert whole(into) == 400
    assert merge(into, [source]) == [Merged(source, 600, 400, 0)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is no file"),
        (b"", "is empty"),
        (b"no database, but long enough to be read" * 99, "not a database"),
        ("CREATE TABLE theirs (x)", "another program"),
        (f"PRAGMA application_id={0x576B4263}; PRAGMA user_version=99; CREATE TABLE t (x)", "99"),
    ],
)
def test_what_is_no_store_is_named_before_anything_is_written(
    tmp_path: Path, content: bytes | str | None, reason: str
) -> None:
    bad = tmp_path / "bad.sqlite"
    if isinstance(content, bytes):
        bad.write_bytes(content)
    elif content is not None:
        with closing(sqlite3.connect(bad)) as db:
            db.executescript(content)
    good = filled(tmp_path / "good.sqlite", range(10))
    with pytest.raises(StoreError, match=reason) as raised:
        merge(tmp_path / "all.sqlite", [good, bad])
    assert "bad.sqlite" in str(raised.value)
    assert not (tmp_path / "all.sqlite").exists()


def test_damage_in_the_middle_leaves_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, into = filled(tmp_path / "b.sqlite", range(3000)), tmp_path / "a.sqlite"
    sound = source.read_bytes()
    middle = len(sound) // 2
    source.write_bytes(sound[:middle] + b"\xff" * 8192 + sound[middle + 8192 :])
    monkeypatch.setattr(merging, "PART", 10)
    with pytest.raises(StoreError, match=r"b\.sqlite into .*a\.sqlite ended after"):
        merge(into, [source])
    before = whole(into)
    assert 0 < before < 3000
    source.write_bytes(sound)
    assert merge(into, [source]) == [Merged(source, 3000 - before, before, 0)]


def test_a_store_is_not_merged_into_itself(tmp_path: Path) -> None:
    store = filled(tmp_path / "a.sqlite", range(10))
    (tmp_path / "link.sqlite").symlink_to(store)
    with pytest.raises(InputError, match=r"link\.sqlite is the store to merge into"):
        merge(store, [tmp_path / "link.sqlite"])
    with pytest.raises(InputError, match="sources is empty"):
        merge(store, [])


def test_the_commands(tmp_path: Path) -> None:
    into = filled(tmp_path / "a.sqlite", range(100))
    same, other = (
        filled(tmp_path / f"{name}.sqlite", range(90, 130), value)
        for name, value in (("b", "answer"), ("c", "other"))
    )
    run = CliRunner().invoke
    done = run(app, ["store", "merge", str(into), str(same)])
    assert done.exit_code == 0
    assert done.stdout.split()[-3:] == ["30", "10", "0"]
    assert "warning" not in done.stderr
    done = run(app, ["store", "merge", str(into), str(other), "--json"])
    assert json.loads(done.stdout) == [
        {"source": str(other), "new": 0, "there": 40, "differing": 40}
    ]
    assert "warning: 40 answers have another value" in done.stderr
    facts = json.loads(run(app, ["store", "info", str(into), "--json"]).stdout)
    assert (facts["rows"], facts["bytes"]) == (130, into.stat().st_size)
    for command in (["merge", str(into), str(tmp_path / "none")], ["info", str(tmp_path / "none")]):
        done = run(app, ["store", *command])
        assert done.exit_code == 2
        assert "none is no file: not a store" in done.stderr
