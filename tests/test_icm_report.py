"""What a search leaves: its report, and a checkpoint from which it resumes to the same end."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_icm_search import (
    LINES,
    ORDERS,
    Synthetic,
    assert_same,
    claims_of,
    energies_of,
    labels_of,
    sums,
)

from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.icm import Claim, Step, Wording, search
from workbench.icm.annealing import temperature
from workbench.icm.predictability import Order
from workbench.store import Store
from workbench.types import Errors, LabelScores

FEW = claims_of(8, 4)
ODD = [
    Claim('c0, "the first"\nof two lines', "größer, als", "1, 2", gold=True),
    Claim("c1'; ½ – «x»\t…", "größer, als", "3", gold=False),
    *claims_of(14, 2, seed=4)[2:],
]


def test_a_report_tells_all_of_it(tmp_path: Path) -> None:
    engine = Synthetic(ODD)
    report = search(ODD, engine, n_iterations=8, n_seeds=6, alpha=20.0, seed=3)
    rows, labels = report.rows, labels_of(report)
    assert None in labels
    assert report.labels == tuple(labels)
    assert report.labelled() == [(c, y) for c, y in zip(ODD, labels, strict=True) if y is not None]
    assert list(rows["text"]) == [claim.text for claim in ODD]
    for label, row in zip(labels, rows.to_dict("records"), strict=True):
        if label is None:
            assert "before it came to this claim" in row["error"]
            assert math.isnan(row["logprob_true"])
            continue
        assert pd.isna(row["error"])
        assert row["log_odds"] == row["logprob_true"] - row["logprob_false"]
        assert row["predicted"] is ((row["log_odds"] > 0) is label)
    there = len(labels) - labels.count(None)
    named = {metric.name: metric for metric in report.summary}
    assert next(iter(named)) == "label accuracy"
    assert named["labels True"].value == labels.count(True) / there
    assert named["labels that the others predict"].value == rows["predicted"].dropna().mean()
    for name, metric in named.items():
        assert 0 <= metric.low <= metric.value <= metric.high <= 1
        assert metric.low < metric.high
        assert metric.n + metric.n_failed == len(ODD) or name == "inconsistent pairs"
    assert report.usage.requests == report.cost.prompts == len(engine.asked)
    folder = report.save(tmp_path / "report")
    names = {"summary.json", "rows.parquet", "history.parquet", "labels.jsonl", "labels.csv"}
    assert {path.name for path in folder.iterdir()} == names
    kept = json.loads((folder / "summary.json").read_text())
    assert kept["provenance"]["energy"] == report.energy
    assert kept["provenance"]["notes"] == list(report.notes)
    assert kept["provenance"]["wording"]["after"] == "\n\n"
    assert kept["provenance"]["engine"]["model"] == "stand-in"
    assert len(kept["summary"]) == len(report.summary)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "rows.parquet"), rows)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "history.parquet"), report.history)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_labels_go_out_and_come_back(ending: str, tmp_path: Path) -> None:
    report = search(ODD, Synthetic(ODD), n_iterations=8, n_seeds=6, alpha=20.0, seed=3)
    path = report.save_labels(tmp_path / "new" / f"labels.{ending}")
    if ending == "csv":
        back = pd.read_csv(path, dtype={"answer_key": str})
    else:
        back = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
    assert len(back) == len(ODD)
    assert list(back["text"]) == [claim.text for claim in ODD]
    assert list(back["group"]) == [claim.group for claim in ODD]
    assert list(back["answer_key"]) == [claim.answer_key for claim in ODD]
    assert [None if pd.isna(y) else bool(y) for y in back["label"]] == labels_of(report)
    assert np.allclose(
        back["logprob_true"].astype(float), report.rows["logprob_true"], equal_nan=True
    )
    for name in ("labels.txt", "labels"):
        with pytest.raises(InputError, match=r"\.jsonl or \.csv"):
            report.save_labels(tmp_path / name)


def test_a_report_without_gold_or_keys_is_saved_too(tmp_path: Path) -> None:
    claims = [Claim(claim.text, claim.group) for claim in FEW]
    report = search(claims, Synthetic(FEW), n_iterations=5)
    back = pd.read_parquet(report.save(tmp_path / "report") / "rows.parquet")
    assert back["gold"].isna().all()
    assert back["answer_key"].isna().all()
    assert [metric.name for metric in report.summary] == [
        "labels that the others predict", "labels True",
    ]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_every_step_is_shown(order: Order) -> None:
    claims = claims_of(32, 4, seed=1)
    steps: list[Step] = []
    report = search(
        claims, Synthetic(claims), order=order, n_iterations=60, alpha=20.0, on_step=steps.append
    )
    assert [step.iteration for step in steps] == list(range(1, 61))
    for before, step in pairwise(steps):
        assert before.pool <= step.pool <= 32
        assert 0 <= step.accepted - before.accepted <= step.tried - before.tried <= 1
        assert 0 <= before.computed_tokens <= step.computed_tokens <= step.prompt_tokens
        assert 0 <= before.saved_tokens <= step.saved_tokens
        assert 0 <= step.cache_hit_rate <= 1
        if step.accepted == before.accepted:
            assert (step.energy, step.pool) == (before.energy, before.pool)
        assert step.temperature == temperature("paper", step.iteration, 0)
    history = report.history
    assert steps[-1].accepted == history["accepted"].sum() - 1
    assert steps[-1].tried == len(history) - 1
    assert steps[-1].energy == history["energy"][history["accepted"]].iloc[-1]
    assert (steps[-1].saved_tokens > 0) is (order != "reference")


def test_ctrl_c_and_again_with_a_store(kept: VLLMEngine, plain: VLLMEngine, tmp_path: Path) -> None:
    claims = sums(12, 3)
    chosen: dict[str, Any] = {"n_iterations": 30, "wording": LINES, "alpha": 30}

    def press(step: Step) -> None:
        if step.iteration == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        search(claims, kept, on_step=press, **chosen)
    first = Store(tmp_path / "store.sqlite")
    answered = len(first)
    assert answered > 0
    before = kept.usage
    report = search(claims, kept, **chosen)
    used = kept.usage.since(before)
    assert used.requests - used.from_store == len(first) - answered
    assert used.from_store >= answered
    first.close()
    wanted = search(claims, plain, **chosen)
    assert labels_of(report) == labels_of(wanted)
    assert report.energy == pytest.approx(wanted.energy, abs=1e-4 * 30)
    assert report.cost.computed_tokens < wanted.cost.prompt_tokens


# Stopped, killed, cut, and not ours.

SOME: dict[str, Any] = {"n_iterations": 70, "alpha": 20.0, "seed": 2}
CLAIMS = claims_of(28, 4, "keys", 2)  # one more tree is built on the way


def stop_at(iteration: int) -> Callable[[Step], None]:
    def look(step: Step) -> None:
        if step.iteration == iteration:
            raise KeyboardInterrupt

    return look


@pytest.mark.parametrize("order", ORDERS)
def test_stopped_several_times(order: Order, tmp_path: Path) -> None:
    engine, path = Synthetic(CLAIMS), tmp_path / "new" / "search.jsonl"
    wanted = search(CLAIMS, engine, order=order, **SOME)
    asked = []
    for iteration in sorted(random.Random(order).sample(range(1, 60), 4)):
        other = Synthetic(CLAIMS)
        with pytest.raises(KeyboardInterrupt):
            search(CLAIMS, other, order=order, checkpoint=path, on_step=stop_at(iteration), **SOME)
        asked += other.asked
    other = Synthetic(CLAIMS)
    found = search(CLAIMS, other, order=order, checkpoint=path, **SOME)
    assert_same(found, wanted)
    assert found.cost == wanted.cost
    assert found.usage.requests == len(other.asked) < len(engine.asked)
    assert asked + other.asked == engine.asked  # nothing again
    other = Synthetic(CLAIMS)
    assert_same(search(CLAIMS, other, order=order, checkpoint=path, **SOME), wanted)
    assert other.asked == []


def test_cut_anywhere(tmp_path: Path) -> None:
    engine, path = Synthetic(CLAIMS), tmp_path / "search.jsonl"
    wanted = search(CLAIMS, engine, checkpoint=path, **SOME)
    whole = path.read_bytes()
    head, ends = whole.index(b"\n"), [i + 1 for i, byte in enumerate(whole) if byte == 10]
    rng = random.Random(3)
    cuts = [0, 1, head // 2, head, head + 1, len(whole) - 1, *rng.sample(ends, 4)]
    for cut in cuts + rng.sample(range(head, len(whole)), 8):
        path.write_bytes(whole[:cut])
        kept = sum(len(json.loads(x).get("scores", ())) for x in whole[:cut].split(b"\n")[:-1])
        other = Synthetic(CLAIMS)
        assert_same(search(CLAIMS, other, checkpoint=path, **SOME), wanted)
        assert other.asked == engine.asked[kept:]
        assert path.read_bytes() == whole


class Slow(Synthetic):
    """Gives the killer time."""

    def label_logprobs(self, prompts: Any, labels: Any, *, errors: Errors = "raise") -> LabelScores:
        time.sleep(0.01)
        return super().label_logprobs(prompts, labels, errors=errors)


def child() -> None:
    search(CLAIMS, Slow(CLAIMS), checkpoint=sys.argv[2], **SOME)


def test_killed(tmp_path: Path) -> None:
    engine, path = Synthetic(CLAIMS), tmp_path / "search.jsonl"
    wanted = search(CLAIMS, engine, **SOME)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_icm_report as t; t.child()"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(path)]
    for more in random.Random(1).sample(range(5, len(engine.calls) // 4), 2):
        before = lines_of(path)
        with subprocess.Popen(command) as process:
            while lines_of(path) < before + more:
                assert process.poll() is None
                time.sleep(0.003)
            process.kill()
    whole = path.read_bytes().split(b"\n")[:-1]
    kept = sum(len(json.loads(line).get("scores", ())) for line in whole)
    other = Synthetic(CLAIMS)
    found = search(CLAIMS, other, checkpoint=path, **SOME)
    assert_same(found, wanted)
    assert 0 < len(other.asked) < len(engine.asked)
    assert other.asked == engine.asked[kept:]


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("order", ORDERS)
def test_more_or_fewer_iterations_of_a_checkpoint(order: Order, tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    for count in (20, 70, 45):
        chosen = SOME | {"n_iterations": count, "order": order}
        found = search(CLAIMS, Synthetic(CLAIMS), checkpoint=path, **chosen)
        wanted = search(CLAIMS, Synthetic(CLAIMS), **chosen)
        assert labels_of(found) == labels_of(wanted)
        assert found.energy == wanted.energy
        assert energies_of(found) == energies_of(wanted)


OTHER: list[tuple[str, dict[str, Any]]] = [
    ("alpha", {"alpha": 21}),
    ("n_seeds", {"n_seeds": 6}),
    ("schedule", {"schedule": "code"}),
    ("order", {"order": "exact"}),
    ("consistency", {"consistency": "none"}),
    ("objective", {"objective": "log_prob"}),
    ("scores", {"scores": "top20"}),
    ("seed", {"seed": 3}),
    ("wording|claims", {"wording": Wording(after="\n")}),
    ("claims", {"claims": CLAIMS[:-1]}),
    ("claims", {"claims": CLAIMS[::-1]}),
    ("claims", {"claims": [replace(CLAIMS[0], text="c000!"), *CLAIMS[1:]]}),
    ("claims", {"claims": [replace(CLAIMS[0], group="alone"), *CLAIMS[1:]]}),
    ("claims", {"claims": [replace(c, answer_key="right") for c in CLAIMS]}),
    ("model", {"info": {"model": "another"}}),
    ("revision", {"info": {"revision": "2"}}),
    ("dtype", {"info": {"dtype": "bfloat16"}}),
]


@pytest.mark.parametrize(("name", "change"), OTHER)
def test_a_checkpoint_of_something_else_is_refused(
    name: str, change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "search.jsonl"
    chosen = SOME | {"n_iterations": 5}
    search(CLAIMS, Synthetic(CLAIMS), checkpoint=path, **chosen)
    before = path.read_bytes()
    claims = change.get("claims", CLAIMS)
    engine = Synthetic(claims)
    engine.info = replace(engine.info, **change.get("info", {}))
    settings = chosen | {k: v for k, v in change.items() if k not in ("claims", "info")}
    with pytest.raises(InputError, match=f"search.jsonl is of another search: its {name}"):
        search(claims, engine, checkpoint=path, **settings)
    assert engine.calls == []
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"some notes", b"some notes\n", b"a\nb\n", b"\x00\xff\n\x00", b"\xff\xfe", b"[]\n",
        b'{"workbench": "icm"', b'{"id": 1}\n{"id": 2}\n', b"null\n", b"\n", b"[1, 2]",
    ],
)  # fmt: skip
def test_a_file_that_is_no_checkpoint_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    if content.startswith(b'{"workbench": "icm"'):  # half a header: nothing is lost with it
        search(CLAIMS, Synthetic(CLAIMS), checkpoint=path, **SOME)
        return
    with pytest.raises(InputError, match=r"checkpoint .*notes\.txt"):
        search(CLAIMS, Synthetic(CLAIMS), checkpoint=path, **SOME)
    assert path.read_bytes() == content


JUNK = [
    "3", "null", '"asked"', "[]", "{}}", "[3, 4]", "{}", '{"move": 3}', "", '{"asked": [1]}',
    '{"asked": "a", "scores": 3, "cost": [1, 2, 3, 4]}',
    '{"asked": "a", "scores": [[1, 2, 3]], "cost": [1, 2, 3, 4]}',
    '{"asked": "a", "scores": [[1, "2"]], "cost": [1, 2, 3, 4]}',
    '{"asked": "a", "scores": [[1, NaN]], "cost": [1, 2, 3, 4]}',
    '{"asked": ["a"], "scores": [[1, 2]], "cost": [1, 2, 3, 4]}',
    '{"asked": "a", "scores": [[1, 2]], "cost": 4}',
]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK)
def test_a_broken_line_costs_its_answer_alone(
    junk: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, engine = tmp_path / "search.jsonl", Synthetic(CLAIMS)
    wanted = search(CLAIMS, engine, checkpoint=path, **SOME)
    lines = path.read_text().splitlines()
    asked = [i for i, line in enumerate(lines) if "asked" in line]
    places = [asked[1], asked[len(asked) // 2]]
    lost = sum(len(json.loads(lines[i])["scores"]) for i in places)
    broken = [junk if i in places else line for i, line in enumerate(lines)]
    path.write_text("\n".join(broken) + "\n" + '{"half')
    other = Synthetic(CLAIMS)
    assert_same(search(CLAIMS, other, checkpoint=path, **SOME), wanted)
    assert len(other.asked) == lost
    (warned,) = caplog.messages
    assert f"search.jsonl.broken: {places[0] + 1}, {places[1] + 1};" in warned
    assert (tmp_path / "search.jsonl.broken").read_text() == f"{junk}\n" * 2
    assert {*path.read_text().splitlines()} == {*lines}
    assert_same(search(CLAIMS, other, checkpoint=path, **SOME), wanted)
    assert len(caplog.messages) == 1
    assert len(other.asked) == lost


def test_one_search_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"

    def again(_: Step) -> None:
        with pytest.raises(InputError, match=r"search\.jsonl: another search is using it"):
            search(CLAIMS, Synthetic(CLAIMS), checkpoint=path, **SOME)

    search(CLAIMS, Synthetic(CLAIMS), checkpoint=path, on_step=again, **SOME)
    before = path.read_bytes()
    with pytest.raises(InputError, match="another search: its alpha"):
        search(CLAIMS, Synthetic(CLAIMS), checkpoint=path, **(SOME | {"alpha": 3.0}))
    search(CLAIMS, Synthetic(CLAIMS), checkpoint=path, **SOME)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["search.jsonl"]


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "search.jsonl"):
        with pytest.raises(InputError, match="cannot be written"):
            search(CLAIMS, Synthetic(CLAIMS), checkpoint=path, **SOME)
