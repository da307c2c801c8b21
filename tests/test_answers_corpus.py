"""Nasty answers, each with the verdict of a careful human: the grader must agree."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Row = dict[str, Any]
Grader = Callable[[Row], "bool | None"]

CORPUS = Path(__file__).with_name("answers.jsonl")
ROWS: list[Row] = [json.loads(line) for line in CORPUS.read_text("utf-8").splitlines()]
VERDICTS: dict[str, bool | None] = {"right": True, "wrong": False, "unparsed": None}


def last_number(row: Row) -> bool | None:
    """Grade as many a quick script does: the last number of the text is the answer."""
    found = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", row["response"])
    return found[-1].replace(",", "") == row["answer"] if found else None


def test_the_corpus_is_whole() -> None:
    fields = {"id", "kind", "response", "answer", "style", "verdict"}
    for row in ROWS:
        assert fields <= row.keys() <= fields | {"labels"}, row
        assert row["style"] in {"gsm8k", "choice", "exact", "label"}, row
        if row["style"] == "label":
            assert row["answer"] in row["labels"], row
    assert len(ROWS) >= 150
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    verdicts = Counter(VERDICTS[row["verdict"]] for row in ROWS)
    assert verdicts[True] >= 40
    assert verdicts[False] + verdicts[None] >= 40
    assert min(Counter(row["kind"] for row in ROWS).values()) >= 3


def test_the_grader_agrees_with_the_human() -> None:
    from workbench.answers import grade

    wrong = []
    for row in ROWS:
        labels = row.get("labels", ())
        got = grade(row["response"], row["answer"], style=row["style"], labels=labels)
        if got.correct is not VERDICTS[row["verdict"]]:
            is_now = next(name for name, value in VERDICTS.items() if value is got.correct)
            wrong.append(f"{row['id']}: want {row['verdict']}, got {is_now} ({got.extracted!r})")
    assert 1 - len(wrong) / len(ROWS) >= 0.98, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "grader",
    [lambda row: True, lambda row: False, last_number],
    ids=["always right", "always wrong", "last number"],
)
def test_the_corpus_can_tell_poor_graders(grader: Grader) -> None:
    agreed = sum(grader(row) is VERDICTS[row["verdict"]] for row in ROWS)
    assert agreed / len(ROWS) < 0.7
