"""What values show: in a notebook a table, in a terminal 5 lines at most, of a real run."""

from __future__ import annotations

import json
import math
import pickle
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench import evaluate, open_engine, open_task
from workbench.engines.base import BaseEngine
from workbench.engines.frames import Completions
from workbench.errors import InputError
from workbench.evaluation import Evaluation, load
from workbench.stats import kappa, mean, mean_share, paired_shares, proportion
from workbench.types import Completion, EngineInfo, Item, LabelScores, Metric, Report, Usage

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&"


@pytest.fixture(scope="module")
def engine() -> Iterator[BaseEngine]:
    with open_engine(engine="transformers", store=None) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(engine: BaseEngine) -> Evaluation:
    return evaluate(open_task("sums"), engine, count=20)


class Tags(HTMLParser):
    """The tags of a text, which must be closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.seen.add(tag)
        assert {name for name, _ in attrs} <= {"style"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(value: Any) -> str:
    """The HTML's text, of HTML that is static and as it should be."""
    html = value._repr_html_()
    tags = Tags(html)
    assert not tags.open
    assert not tags.seen & {"script", "img", "style", "link", "iframe"}
    assert not re.search(r"<[^>]*(src|href|url)", html)
    assert "color:#" not in html
    lines = repr(value).splitlines()
    assert 1 <= len(lines) <= 5
    assert max(map(len, lines)) <= 160
    assert str(value).count("\n") < 5
    return tags.text


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (proportion("a", 17, 20), "85.0 % (64.0 to 94.8, n = 20)"),
        (proportion("a", 0, 4, n_failed=1200, n_unparsed=2),
         "0.0 % (0.0 to 49.0, n = 4, 1,200 failed, 2 unparsed)"),
        (replace(mean_share("a", [0.5, 1.0]), n_failed=1),
         "75.0 % (0.0 to 100.0, n = 2, 1 failed)"),
        (mean_share("a", [], n_failed=3), "unknown (n = 0, 3 failed)"),
        (paired_shares("d", [1, 1, 0, 1], [0, 0, 0, 1]), "+50.0 points (-16.6 to +83.2, n = 4)"),
        (mean("d", [-0.0001] * 4, -1.0, 1.0), "+0.0 points (-49.0 to +49.0, n = 4)"),
        (mean("score", [1, 3, 5], 1, 5), "3 (1 to 5, n = 3)"),
        (Metric("tokens per second", 12345.6, 12000, 13000.4, 3),
         "12,346 (12,000 to 13,000, n = 3)"),
        (Metric("energy", -1.23456, float("nan"), float("nan"), 7), "-1.235 (n = 7)"),
        (kappa("k", [1, 0, 1, 0], [1, 0, 0, 0]), "0.5 (-0.235 to 1, n = 4)"),
    ],
)  # fmt: skip
def test_a_metric_says_what_it_is(metric: Metric, text: str) -> None:
    assert str(metric) == text
    assert repr(metric) == f"{metric.name}: {text}"
    assert text in shown(metric)
    again = pickle.loads(pickle.dumps(metric))
    assert str(again) == text
    assert math.isnan(metric.value + metric.low) or hash(again) == hash(metric)


def test_a_metric_is_data_as_before() -> None:
    share = proportion("a", 17, 20)
    plain = Metric(**asdict(share))
    assert share == plain
    assert plain == share
    assert {share, plain} == {plain}
    assert share != replace(share, n=21)
    columns = ["name", "value", "low", "high", "n", "n_failed", "n_unparsed"]
    assert [*pd.DataFrame([share, plain])] == columns


def test_a_report_shows_its_numbers_wrong_rows_and_cost(report: Evaluation) -> None:
    text = shown(report)
    assert str(report.summary[0]).split(" (")[0] in text
    wrong = report.wrong()
    assert 0 < len(wrong) < 20
    assert len(wrong) == 20 - report.rows["correct"].sum()
    assert f"{len(wrong)} of 20 rows wrong" in text
    assert wrong["id"].iloc[0] in text
    assert "20 requests" in text
    assert "<details>" in str(report._repr_html_())
    assert repr(report.summary[0]) in repr(report)


def test_a_saved_report_shows_the_same_and_one_of_before_is_read(
    report: Evaluation, tmp_path: Path
) -> None:
    folder = report.save(tmp_path / "one")
    assert repr(load(folder)) == repr(report)
    saved = json.loads((folder / "summary.json").read_text())
    del saved["forms"]
    (folder / "summary.json").write_text(json.dumps(saved))
    assert load(folder).summary == report.summary
    assert "0.9" in repr(load(folder)) or "%" not in repr(load(folder))


def made(rows: pd.DataFrame, **provenance: Any) -> Report:
    return Report((proportion("accuracy", 1, 2),), rows, Usage(), provenance)


def test_wrong_rows_are_answers_and_need_verdicts() -> None:
    rows = pd.DataFrame(
        {
            "id": list("abcd"),
            "correct": [True, False, False, None],
            "error": [None, None, "lost", None],
        }
    )
    assert made(rows).wrong()["id"].tolist() == ["b"]
    assert made(rows.drop(columns="error")).wrong()["id"].tolist() == ["b", "c"]
    with pytest.raises(InputError, match=r"no verdicts.*id, error"):
        made(rows.drop(columns="correct")).wrong()
    assert "4 rows" in shown(made(rows.drop(columns="correct")))
    assert "1 rows failed. First: lost" in shown(made(rows))


def test_data_is_text_and_secrets_are_left_out() -> None:
    rows = pd.DataFrame({"id": [EVIL], "correct": [False], "error": [None], EVIL: [EVIL]})
    secret = {
        "api_key": "hunter2", "engine": {"model": "http://a:hunter2@b/v1?key=hunter2"},
        "headers": ["Authorization: Bearer hunter2"], "hf_token": "hunter2", "max_tokens": 77,
        EVIL: EVIL,
    }  # fmt: skip
    text = shown(made(rows, **secret))
    assert "<script>" in text
    assert "hunter2" not in text
    assert "77" in text
    answer = Completion(text=EVIL, finish_reason="stop")
    failed = Completion(text="", finish_reason="error", error=f"http://u:hunter2@x {EVIL}")
    for value in (answer, Completions([answer, failed]), Item(EVIL, {EVIL: EVIL}, EVIL)):
        assert "alert(1)" in shown(value)
        assert "hunter2" not in shown(value) + repr(value)


def test_what_looks_like_a_secret_stays_in_data() -> None:
    said = "open http://a:b@c/?token=abc with sk-0123456789"
    answer = Completion(text=said, finish_reason="stop")
    rows = pd.DataFrame({"id": ["1"], "correct": [False], "answer": ["x"], "text": [said]})
    item = Item("1", {"api_key": said}, said)
    for value in (answer, Completions([answer]), item, made(rows)):
        assert said in shown(value)
    assert said in repr(answer)
    assert said in repr(item)


def test_what_is_broken_still_prints() -> None:
    for value in (
        Report(None, None, None, None),  # type: ignore[arg-type]
        Metric("a", "x", None, None, None),  # type: ignore[arg-type]
        Item(None, None, None),  # type: ignore[arg-type]
        Usage(requests="x"),  # type: ignore[arg-type]
        LabelScores(None, None, None, None),  # type: ignore[arg-type]
    ):
        assert type(value).__name__ in repr(value) or repr(value)
        value._repr_html_()


def test_much_data_shows_in_little_time_and_space() -> None:
    many = 100_000
    rows = pd.DataFrame({"id": range(many), "correct": False, "answer": "x" * 5000, "error": None})
    one = Completion(text="y" * 5000, finish_reason="stop")
    scores = np.zeros((many, 2))
    values: list[Any] = [
        made(rows, ids=[*range(many)]),
        Completions([one] * many),
        LabelScores(scores, scores, scores > 0, (None,) * many, (" a", " b")),
        Item("a", {"text": "z" * 1_000_000}, "b" * 1_000_000),
    ]
    start = time.monotonic()
    for value in values:
        shown(value)
        assert len(value._repr_html_()) < 50_000
    assert time.monotonic() - start < 20


def test_everything_of_a_real_engine_shows(engine: BaseEngine) -> None:
    found = engine.generate(["2 + 2 =", "3 + 4 ="])
    assert found[0].text[:6] in shown(found)
    assert "2 completions" in repr(found)
    scores = engine.label_logprobs(["2 + 2 ="], [" 4", " 7"])
    assert [*scores.frame()] == [" 4", " 7"]
    assert scores.frame().to_numpy().tolist() == scores.logprobs.tolist()
    assert " 7" in shown(scores)
    for value in (found[0], engine.info, engine.usage, open_task("sums")):
        assert shown(value)
    assert "workbench-tiny" in repr(engine.info)
    task = open_task("claims")
    assert str(task.prompt(task.items(1)[0])) in shown(task)
    several = engine.label_logprobs(["a", "b"], [" x"])
    failed = replace(several, errors=(None, "lost"))
    assert failed.frame()["error"].tolist() == [None, "lost"]
    assert failed.frame()[" x"].isna().tolist() == [False, True]
    known = LabelScores(several.logprobs, several.upper, several.missing, several.errors)
    assert [*known.frame()] == [0]


def test_an_engine_s_facts_stay_short() -> None:
    info = EngineInfo(engine="remote", model="m", revision="", device="http://a", dtype="",
                      context_length=0, versions={}, why="w" * 999, notes=("n",) * 9)  # fmt: skip
    assert "m" in shown(info)
