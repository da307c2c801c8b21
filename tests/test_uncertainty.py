"""Eliciting options from models and servers, well and badly behaved, and scoring the tables."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from benchmarks.injector import Faults, Injector
from workbench import open_engine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.evaluation import load
from workbench.tasks import Options
from workbench.tasks.multiple_choice import MultipleChoice as Choices
from workbench.tasks.multiple_choice import open_choices
from workbench.tasks.options import LETTERS
from workbench.types import Engine, Item, LabelRow, LabelScores, Report, Usage
from workbench.uncertainty.conformal import conformal_report
from workbench.uncertainty.elicitation import _Question, _scored_by_all, elicit
from workbench.uncertainty.tables import (
    arrays,
    certainty,
    join_tables,
    paper_table,
    score_options,
)

OPTIONS = [*LETTERS]


def items(count: int) -> list[Item]:
    """Made-up questions whose right letter goes round."""
    return [
        Item(f"q{n}", {"question": f"What is {n}?", "options": tuple("uvwxyz")}, LETTERS[n % 4])
        for n in range(count)
    ]


def remote(server: Injector, **options: Any) -> Engine:
    return open_engine(None, "remote", base_url=server.url, store=None, **options)


def answered(prompt: str) -> dict[str, float]:
    """The right letter of most questions, and another one of some."""
    number = int(prompt.rpartition("What is ")[2].partition("?")[0])
    right, other = LETTERS[number % 4], LETTERS[(number + 1) % 4]
    return {f" {right}": -0.4 if number % 5 else -2.0, f" {other}": -1.5}


def elicit_items(asked: list[Item], engine: Engine, **about: Any) -> Report:
    """These items in one prompt."""
    return elicit([Choices("own", "qa", asked)], [engine], ["base"], **about)


def reporting(tops: Mapping[str, float], **about: Any) -> Report:
    """The report for a server that always returns these tokens."""
    with Injector(vllm=False, tops=lambda _: tops) as server, remote(server) as engine:
        return elicit_items(items(12), engine, **about)


def test_the_embedded_model_answers_as_label_scores_say(plain: VLLMEngine, tmp_path: Path) -> None:
    task = open_choices("options")
    report = elicit([task], [plain], ["base"], count=12)
    shown = [Options().prompt(item) for item in Options().items(12)]
    exact = plain.label_logprobs(shown, [f" {letter}" for letter in LETTERS]).logprobs
    assert np.allclose(report.rows[OPTIONS].to_numpy(), exact, atol=1e-5)
    assert report.rows["mass"].to_numpy() == pytest.approx(np.exp(exact).sum(axis=1), abs=1e-5)
    assert report.rows["missing"].eq(0).all()
    assert report.rows["id"].tolist() == [item.id for item in Options().items(12)]
    accuracy, mass, missing = report.summary
    right = np.array(OPTIONS)[exact.argmax(axis=1)] == report.rows["answer"]
    assert (accuracy.value, accuracy.n, missing.value) == (right.mean(), 12, 0)
    assert 0.99 < mass.value <= 1
    again = load(report.save(tmp_path / "table"))
    pd.testing.assert_frame_equal(again.rows, report.rows)


def test_all_tasks_and_prompts_go_in_one_call(
    plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = plain.stream_labels

    def counted(prompts: Any, labels: Any) -> Any:
        calls.append(len(prompts))
        return real(prompts, labels)

    monkeypatch.setattr(plain, "stream_labels", counted)
    one = open_choices("options", demonstrations=2)
    two = Choices("other", "qa", one.items(3, seed=1), one.demonstrations)
    report = elicit([one, two], [plain], count=3)
    assert calls == [18]
    found = report.rows.groupby(["task", "prompt"], sort=False).size()
    assert found.to_dict() == {(t, p): 3 for t in ("options", "other")
                               for p in ("base", "shared", "task")}  # fmt: skip
    assert report.rows["id"][:3].tolist() == [item.id for item in one.items(3)]


def test_a_letter_after_a_space_is_that_letter() -> None:
    for chat in (False, True):
        spaced = reporting({" B": -0.1, " A": -3.0, " C": -4.0, "D": -5.0, " D": -5.0}, chat=chat)
        assert spaced.rows[OPTIONS].idxmax(axis=1).eq("B").all()
        assert spaced.rows["D"].to_numpy() == pytest.approx(-5 + math.log(2))
        assert spaced.rows["missing"].eq(2).all()
        assert spaced.summary[2].value == 1


def test_hidden_letters_are_missing_and_widen_sets() -> None:
    def near(text: str) -> dict[str, float]:
        """The right letter, hidden one time in five, beside a wrong one."""
        number = int(text.rpartition("What is ")[2].partition("?")[0])
        right, other = LETTERS[number % 4], LETTERS[(number + 1) % 4]
        return {f" {other}": -1.5} | ({} if number % 5 == 0 else {f" {right}": -0.4})

    with Injector(vllm=False, tops=near) as server, remote(server) as engine:
        report = elicit_items(items(200), engine)
    assert report.summary[0].value == 0.8
    logits, answers, _ = arrays(report.rows)
    missing = np.isneginf(logits[np.arange(200), answers])
    assert missing.mean() == 0.2
    sets = conformal_report(logits, answers, rule="exact", score="lac")
    assert sets.missing > 0.1
    assert sets.scores[0].threshold == math.inf
    assert sets.set_size == 6  # more are missing than the sets may lack: they must hold all
    few = conformal_report(logits, answers, rule="exact", score="lac", alpha=0.4)
    assert few.set_size < 2


def test_a_server_without_letters_fails_and_guesses_nothing() -> None:
    with pytest.raises(EngineError, match=r"no question was answered.*none of the labels"):
        reporting({"Hello": -0.1, "The": -2.0})
    with pytest.raises(EngineError, match="no question was answered"):
        reporting({})


def test_a_question_that_fails_costs_no_other() -> None:
    plan = Faults(poison="What is 3?", multi=False)
    tops = {" B": -0.1, " A": -3.0}
    with (
        Injector(plan, vllm=False, tops=lambda _: tops) as server,
        remote(server, attempts=1) as engine,
    ):
        report = elicit_items(items(12), engine)
    bad = report.rows["error"].notna()
    assert report.rows["id"][bad].tolist() == ["q3"]
    assert report.rows.loc[bad, OPTIONS].isna().all(axis=None)
    assert [(m.n, m.n_failed) for m in report.summary] == [(11, 1)] * 3


def test_a_lost_server_costs_no_other_model() -> None:
    tops = {" B": -0.1, " A": -3.0}
    with (
        Injector(vllm=False, tops=lambda _: tops, model="good") as server,
        Injector(vllm=False, tops=lambda _: tops, model="lost") as other,
        remote(server) as good,
        remote(other, outage_timeout=0.2, attempts=1) as lost,
    ):
        other.stop()
        task = Choices("own", "qa", items(6))
        report = elicit([task], [lost, good], ["base"])
        failed = report.rows["error"].notna()
        assert report.rows.groupby("model")["error"].count().to_dict() == {"good": 0, "lost": 6}
        assert report.rows["model"].tolist() == ["lost"] * 6 + ["good"] * 6
        assert report.rows.loc[failed, "model"].eq("lost").all()
    assert [(m.name, m.n, m.n_failed) for m in report.summary if m.name.endswith("accuracy")] == [
        ("lost: accuracy", 0, 6), ("good: accuracy", 6, 0)
    ]  # fmt: skip


def test_a_model_of_which_all_failed_leaves_the_others_scored() -> None:
    gone = table("gone").assign(error="lost", **dict.fromkeys(OPTIONS, np.nan))
    wide = paper_table(score_options(join_tables([gone, table()])), "accuracy")
    assert list(wide.index) == ["gone", "m"]
    assert wide["average"].iloc[1] > 0.5
    assert wide["average"].isna().tolist() == [True, False]
    with pytest.raises(InputError, match="all 80 rows failed; the first: lost"):
        score_options(gone)


def test_rows_come_in_the_order_given_whatever_else_is_asked() -> None:
    with Injector(vllm=False, tops=answered) as server, remote(server) as engine:
        one = Choices("base", "qa", items(20))
        two = Choices("b", "qa", items(20)[::-1])
        both = elicit([two, one], [engine], ["base"]).rows
        alone = elicit([one], [engine], ["base"]).rows
    assert both["task"].tolist() == ["b"] * 20 + ["base"] * 20
    mine = both[both["task"] == "base"].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, alone)


def test_prompts_of_one_item_are_one_item() -> None:
    shown = items(23)[20:]
    with Injector(vllm=False, tops=answered) as server, remote(server) as engine:
        task = Choices("own", "qa", items(20), shown)
        one, three = elicit([task], [engine], ["base"]), elicit([task], [engine])
    assert one.summary == three.summary
    assert three.summary[0].n == 20


def test_an_interrupt_does_not_wait_for_other_servers() -> None:
    with (
        Injector(vllm=False, tops=answered, model="quick") as quick,
        Injector(vllm=False, tops=answered, model="slow") as slow,
        remote(quick) as one,
        remote(slow) as other,
    ):
        slow.latency = 20
        came = _scored_by_all([one, other], ["What is 1?", "What is 2?"], [" A", " B"])
        assert [next(came)[0] for _ in range(2)] == [0, 0]
        start = time.monotonic()
        came.close()
        assert time.monotonic() - start < 5


class Forgetful:
    """An engine that answers all prompts but the last."""

    def label_logprobs(
        self, prompts: list[str], labels: list[str], *, errors: str = "raise"
    ) -> LabelScores:
        scores = np.zeros((len(prompts) - 1, len(labels)))
        return LabelScores(scores, scores, scores > 0, (None,) * len(scores))


def test_a_prompt_without_an_answer_is_a_failed_row() -> None:
    rows = [row for _, row in _scored_by_all([cast("Engine", Forgetful())], ["a", "b"], [" A"])]
    assert [row.index for row in rows] == [0, 1]
    assert rows[0].error is None
    assert "gave no answer" in str(rows[1].error)


def test_an_interrupt_stops_all_servers_and_what_came_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = {" B": -0.1, " A": -3.0}
    task = Choices("own", "qa", items(400))
    with (
        Injector(vllm=False, tops=lambda _: tops, model="one", latency=0.02) as first,
        Injector(vllm=False, tops=lambda _: tops, model="two", latency=0.02) as second,
    ):
        opened = [
            open_engine(None, "remote", base_url=server.url, store=tmp_path / "kept.sqlite",
                        max_concurrency=2, prompts_per_request=1)
            for server in (first, second)
        ]  # fmt: skip

        real = _Question.row

        def interrupted(question: _Question, model: str, scored: LabelRow) -> dict[str, Any]:
            if model == "one" and scored.index > 5:
                raise KeyboardInterrupt
            return real(question, model, scored)

        with monkeypatch.context() as patch:
            patch.setattr(_Question, "row", interrupted)
            with pytest.raises(KeyboardInterrupt):
                elicit([task], opened, ["base"])
        asked = first.requests + second.requests
        assert asked < 400
        report = elicit([task], opened, ["base"])
        assert report.rows["error"].isna().all()
        assert len(report.rows) == 800
        assert first.requests + second.requests < 800 + 40  # those in flight are asked again
        for engine in opened:
            engine.close()


def test_both_transports_ask_the_same() -> None:
    tops = {" B": -0.1, " A": -3.0}
    with Injector(vllm=False, tops=lambda _: tops) as server:
        found = []
        for transport in ("aiohttp", "threads"):
            with remote(server, transport=transport) as engine:
                found.append(elicit_items(items(30), engine).rows)
    pd.testing.assert_frame_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"prompts": []}, "prompts is empty"),
        ({"engines": []}, "engines is empty"),
        ({"prompts": ["base", "base"]}, "2 are called 'base'"),
        ({"prompts": ["polite"]}, "no prompt 'polite'"),
        ({"tasks": [Choices("none", "qa", [])]}, "task none has no items"),
        (
            {"tasks": [Choices("twice", "qa", items(2) + items(2))]},
            "ids of twice: 2 are called",
        ),
        ({"count": 0}, "count=0"),
        ({"prompts": "base"}, "prompts='base': give a list"),
        ({"tasks": "options"}, "tasks='options': give a list"),
        ({"tasks": Choices("own", "qa", items(3))}, "give a list"),
        ({"tasks": [replace(items(1)[0], answer="Paris")]}, "not from `open_choices`"),
        (
            {"tasks": [Choices("own", "qa", [replace(items(1)[0], answer="Paris")])]},
            "answer='Paris': must be one of A to F",
        ),
        (
            {
                "tasks": [
                    Choices("own", "qa", [Item("q", {"question": 5, "options": "abcdef"}, "A")])
                ]
            },
            "question=5: must be a text",
        ),
    ],
)
def test_what_cannot_be_asked(arguments: dict[str, Any], said: str, plain: VLLMEngine) -> None:
    given = {
        "tasks": [Choices("own", "qa", items(3))],
        "engines": [plain],
        "prompts": ["base"],
    }
    with pytest.raises(InputError, match=said):
        elicit(**{**given, **arguments})


# Tables, as elicited, and their scores.


def table(model: str = "m", task: str = "t", prompt: str = "base", seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    answers = np.arange(80) % 4
    logits = rng.normal(size=(80, 6))
    logits[np.arange(80), answers] += 2
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    frame = pd.DataFrame(logits, columns=OPTIONS)
    frame.insert(0, "id", [f"q{n}" for n in range(80)])
    return frame.assign(model=model, task=task, prompt=prompt, error=None,
                        answer=[LETTERS[a] for a in answers])  # fmt: skip


def test_scores_are_those_of_each_part_and_their_means() -> None:
    parts = {
        (task, prompt): table(task=task, prompt=prompt, seed=n)
        for n, (task, prompt) in enumerate(
            [("a", "base"), ("a", "shared"), ("b", "base"), ("b", "shared")]
        )
    }
    scored = score_options(join_tables([*parts.values()]))
    for (task, prompt), part in parts.items():
        logits, answers, _ = arrays(part)
        alone = conformal_report(logits, answers)
        rows = scored.rows
        mine = rows[(rows["task"] == task) & (rows["prompt"] == prompt)].set_index("name")["value"]
        assert mine["accuracy"] == alone.acc
        assert mine["UAcc"] == pytest.approx(alone.uacc)
        assert mine["coverage LAC"] == alone.lac.coverage if alone.lac else False
    wide = paper_table(scored, "UAcc")
    assert list(wide.columns) == ["a", "b", "average"]
    uacc = scored.rows[scored.rows["name"] == "UAcc"].groupby("task")["value"].mean()
    assert wide.loc["m", "a"] == pytest.approx(uacc["a"])
    assert wide.loc["m", "average"] == pytest.approx(uacc.mean())
    summary = {metric.name: metric for metric in scored.summary}
    assert summary["UAcc"].value == pytest.approx(uacc.mean())
    assert summary["UAcc"].low < summary["UAcc"].value < summary["UAcc"].high
    assert summary["UAcc"].n == 80  # two tasks' test halves
    point = certainty(scored).set_index("task")
    assert point.loc["a", "accuracy"] == pytest.approx(
        scored.rows.query("task == 'a' and name == 'accuracy'")["value"].mean()
    )
    assert (point["set_size_low"] < point["set_size"]).all()


def test_failed_rows_are_left_out_and_counted() -> None:
    whole = table()
    whole.loc[3, "error"] = "too long"
    whole.loc[3, OPTIONS] = np.nan
    scored = score_options(whole)
    assert set(scored.rows["n_failed"]) == {1}
    ece = scored.rows.set_index("name").loc["ece"]
    assert ece["n"] == 79


def test_several_models_are_told_apart() -> None:
    scored = score_options(join_tables([table("one"), table("two", seed=1)]))
    names = [metric.name for metric in scored.summary]
    assert names[0] == "one: accuracy"
    assert "two: UAcc" in names
    with pytest.raises(
        InputError, match=r"no measure 'uacc', did you mean 'UAcc'.* Known: accuracy"
    ):
        paper_table(scored, "uacc")


def test_tables_that_do_not_go_together() -> None:
    one = table()
    with pytest.raises(InputError, match="two rows of model='m', task='t', prompt='base', id='q0'"):
        join_tables([one, one])
    moved = table("other").assign(answer=[LETTERS[(n + 1) % 4] for n in range(80)])
    with pytest.raises(InputError, match="item 'q0' of t has two right answers"):
        join_tables([one, moved])
    with pytest.raises(InputError, match="a table without task, prompt"):
        join_tables([one, pd.DataFrame({"model": ["x"]})])
    with pytest.raises(InputError, match="give a list of at least 1 table"):
        join_tables([])
    with pytest.raises(InputError, match=r"two was not asked task, prompt, id = .*'easy'"):
        join_tables([one, table(task="easy"), table("two")])
    with pytest.raises(InputError, match="without a model, task, prompt or id"):
        score_options(one.assign(model=None))
    with pytest.raises(InputError, match="what `score_options` returns"):
        paper_table(Report((), one, Usage(), {}))
    with pytest.raises(InputError, match="a table without"):
        score_options(cast("Report", "table"))
    with pytest.raises(InputError, match="no rows"):
        score_options(one[:0])
    with pytest.raises(InputError, match="not one of A to F"):
        score_options(one.assign(answer="G"))
    with pytest.raises(InputError, match="m, t, base: 4 items of 8 to calibrate on"):
        score_options(one[:8])
    wrong = one.copy()
    wrong.loc[0, "A"] = np.nan
    with pytest.raises(InputError, match="m, t, base: logits: row 0 has NaN"):
        score_options(wrong)
