"""Thinking: its tokens are counted, its length is limited, and no answer is read from it.

The model is that of `test_chat`: the embedded one, whose working before `####` is its thinking.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_chat import SHORT, chats, thinker

from workbench import Sampling, evaluate, open_engine, store
from workbench.engines.remote import wire
from workbench.errors import InputError
from workbench.evaluation import load, run_suite
from workbench.judge.votes import read
from workbench.tasks import WordProblems, open_task
from workbench.types import Completion

OPEN: dict[str, Any] = {"enable_thinking": True}  # the prompt begins the thinking


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinker(tmp_path_factory.mktemp("thinking") / "model")


def test_limits_agree_in_process(folder: Path) -> None:
    limited = replace(SHORT, max_reasoning_tokens=3)
    found = []
    for kind in ("vllm", "transformers"):
        with open_engine(
            str(folder), engine=kind, store=None, dtype="float32", chat_template_kwargs=OPEN
        ) as engine:
            found.append(engine.generate(chats(8), limited))
    assert [row.token_ids for row in found[0]] == [row.token_ids for row in found[1]]
    assert {row.reasoning_tokens for row in found[0]} == {3}


def test_a_model_without_thinking_has_no_limit(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with open_engine(
        engine="transformers", store=tmp_path / "s.sqlite", chat_template=template
    ) as engine:
        with pytest.raises(InputError, match="no pair of marks around thinking"):
            engine.generate(chats(1), replace(SHORT, max_reasoning_tokens=3))
        (row,) = engine.generate(chats(1), SHORT)
    assert (row.reasoning, row.reasoning_tokens) == (None, 0)


def test_a_report_counts_answers_that_ran_out_while_thinking(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, kept = open_task("word_problems"), tmp_path / "store.sqlite"
    with open_engine(
        str(folder), engine="transformers", store=kept, chat_template_kwargs=OPEN
    ) as engine:
        settings: dict[str, Any] = {"count": 24, "style": "chat", "sampling": SHORT}
        short = evaluate(task, engine, max_tokens=9, **settings)
        again = evaluate(task, engine, max_tokens=9, **settings)
        voted = evaluate(task, engine, "majority_vote", max_tokens=9, **settings)
        limited = evaluate(task, engine, max_tokens=20, max_reasoning_tokens=4, **settings)
    cut = short.rows["cut_thinking"] > 0
    assert 0 < cut.sum() < 24
    assert short.provenance["n_cut_thinking"] == cut.sum()
    assert "ran out of tokens while thinking" in caplog.text + repr(short)
    assert f"{cut.sum()} ran out of tokens while thinking" in repr(short)
    assert (short.rows["text"][cut] == "").all()
    assert not short.rows["parsed"][cut].any()
    assert short.summary[0].n_unparsed >= cut.sum()
    assert (short.rows["reasoning_tokens"] > 0).all()
    assert short.trace["reasoning"].notna().all()
    assert again.rows["from_store"].all()
    assert (again.rows["reasoning_tokens"] == short.rows["reasoning_tokens"]).all()
    assert voted.provenance["n_cut_thinking"] > 0
    assert limited.provenance["n_cut_thinking"] == 0
    assert (limited.rows["reasoning_tokens"] <= 4).all()
    short.save(tmp_path / "report")
    assert load(tmp_path / "report").rows["cut_thinking"].sum() == cut.sum()


def test_thinking_alone_is_never_graded(tmp_path: Path) -> None:
    """Also by a grader that finds an answer in an empty text."""

    class Lenient(WordProblems):
        def grade(self, item: Any, text: str) -> Any:
            return super().grade(item, text or f"#### {item.answer}")

    model = str(thinker(tmp_path / "model"))
    with open_engine(model, engine="transformers", store=None, chat_template_kwargs=OPEN) as engine:
        report = evaluate(Lenient(), engine, count=6, style="chat", sampling=Sampling(max_tokens=3))
    assert report.summary[0].value == 0
    assert report.summary[0].n_unparsed == 6


def test_a_suite_saved_before_continues(tmp_path: Path) -> None:
    """A report of an earlier version lacks the later fields of Sampling."""
    with open_engine(engine="transformers", store=tmp_path / "s.sqlite") as engine:
        run_suite("word_problems", engine, ["standard"], folder=tmp_path / "suite", count=3)
        file = tmp_path / "suite" / "standard" / "summary.json"
        saved = json.loads(file.read_text())
        del (
            saved["provenance"]["sampling"]["max_reasoning_tokens"],
            saved["usage"]["reasoning_tokens"],
        )
        file.write_text(json.dumps(saved))
        again = run_suite("word_problems", engine, ["standard"], folder=tmp_path / "suite", count=3)
    assert len(again["standard"].rows) == 3
    assert "cut_thinking" not in again["standard"].rows
    assert "reasoning" not in again["standard"].trace


def test_keys_and_rows_of_earlier_versions_stay() -> None:
    assert "max_reasoning_tokens" not in Sampling().canonical()
    assert Sampling(max_reasoning_tokens=5).canonical()["max_reasoning_tokens"] == 5
    thought = Completion(text="4", finish_reason="stop", reasoning="2+2", reasoning_tokens=3)
    value = store.dump(thought)
    assert store.load(value) == replace(thought, from_store=True)
    del value["thought"]
    assert store.load(value) == replace(thought, from_store=True, reasoning_tokens=None)
    plain = Completion(text="4", finish_reason="stop")
    assert "thought" not in store.dump(plain)
    assert store.load(store.dump(plain)) == replace(plain, from_store=True)
    hidden = replace(plain, reasoning_tokens=9)  # a server that shows no thinking, but counts it
    assert store.load(store.dump(hidden)) == replace(hidden, from_store=True)


def test_a_servers_counts() -> None:
    def row(usage: dict[str, Any], **message: Any) -> Completion:
        choice = {"index": 0, "message": {"content": "42", **message}, "finish_reason": "length"}
        reply = {"choices": [choice], "usage": usage}
        (one,) = wire.read_each(reply, 1, lambda _, choice, n: wire.read(choice, SHORT, n))
        assert isinstance(one, Completion)
        return one

    counted = {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}}
    assert row(counted).reasoning_tokens == 7
    assert row(counted, content=None).cut_thinking
    assert row({}, reasoning="6*7").reasoning_tokens is None
    assert row({}).reasoning_tokens == 0
    assert not row({}, content=None).cut_thinking  # nothing says that it was thinking
    for text, answer, thought in (
        ("<think>6*7</think>\n42", "\n42", "6*7"),
        ("6*7</think>42", "42", "6*7"),
        ("<think>6*7", "", "6*7"),
        ("42 < 43", "42 < 43", None),
    ):
        made = row({}, content=text)
        assert (made.text, made.reasoning) == (answer, thought)


def test_only_vllm_servers_limit_thinking() -> None:
    with pytest.raises(InputError, match="only a vLLM server"):
        wire.check(Sampling(max_reasoning_tokens=5), wire.Dialect("m"), [])
    chat = [{"role": "user", "content": "Why?"}]
    _, body = wire.request([chat], Sampling(max_reasoning_tokens=5), wire.Dialect("m", vllm=True))
    assert body["thinking_token_budget"] == 5
    _, body = wire.request([chat], Sampling(), wire.Dialect("m", vllm=True))
    assert "thinking_token_budget" not in body


def test_verdicts_and_sums_are_not_read_from_thinking() -> None:
    assert read("<think>Verdict: correct", ("correct", "incorrect")) is None
    assert read("[think]Verdict: correct[/think] incorrect", ("correct", "incorrect")) == 1
    assert read("<think>no</think>correct", ("correct", "incorrect")) == 0
    task = open_task("sums")
    (item,) = task.items(1)
    assert not task.grade(item, f"<think>{item.answer}").parsed
    assert task.grade(item, f"<think>1</think>{item.answer}").correct
