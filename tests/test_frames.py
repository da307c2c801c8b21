"""Tables in and out: prompts of any iterable, `engine.ask`, frames of every kind as a task."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench import Sampling, open_engine, open_task
from workbench.engines.base import BaseEngine
from workbench.engines.frames import Completions
from workbench.engines.requests import check_prompts
from workbench.engines.tokens import SegmentedPrompt
from workbench.errors import EngineError, InputError
from workbench.store import Store

TEXTS = ["2 + 2 =", "3 + 4 =", "9 - 1 ="]
FEW = Sampling(max_tokens=4)


@pytest.fixture(scope="module")
def engine() -> Iterator[BaseEngine]:
    with open_engine(engine="transformers", store=None) as opened:
        yield opened


@pytest.mark.parametrize(
    "prompts",
    [
        tuple(TEXTS),
        pd.Series(TEXTS, index=[7, 7, 9]),
        pd.Series(TEXTS, dtype="string[pyarrow]"),
        pd.Series(TEXTS, dtype="category"),
        pd.Index(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        dict.fromkeys(TEXTS, 1).keys(),
        {"a": TEXTS[0], "b": TEXTS[1], "c": TEXTS[2]}.values(),
        deque(TEXTS),
        [np.str_(text) for text in TEXTS],
    ],
    ids=lambda given: type(given).__name__,
)
def test_prompts_are_any_iterable(engine: BaseEngine, prompts: Any) -> None:
    wanted = engine.generate(TEXTS, FEW)
    assert engine.generate(prompts, FEW) == wanted
    assert dict(engine.stream(prompts, FEW)) == dict(enumerate(wanted))
    scores = engine.label_logprobs(prompts, np.array([" 4", " 7"]))
    assert scores.logprobs.shape == (3, 2)
    assert scores.labels == (" 4", " 7")


def test_generators_columns_of_arrow_and_chats_of_cells(engine: BaseEngine) -> None:
    import pyarrow as pa

    wanted = engine.generate(TEXTS, FEW)
    assert engine.generate((text for text in TEXTS), FEW) == wanted
    assert engine.generate(pa.array(TEXTS), FEW) == wanted
    rows = [row.logprobs for row in engine.stream_labels(iter(TEXTS), (x for x in [" 4"]))]
    assert len(rows) == 3
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    cells = pd.Series([np.array(chat, dtype=object) for chat in chats])
    assert engine.generate(cells, FEW) == engine.generate(chats, FEW)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ("one text", r"\[prompt\]"),
        (b"bytes", r"\[prompt\]"),
        ({"a": "b"}, "list or column"),
        ({"a", "b"}, "list or column"),
        (7, "list or column"),
        (np.array("x"), "list or column"),
        (pd.DataFrame({"text": TEXTS}), r"prompts\['text'\]"),
        (pd.Series(["a", "b", "c", None]), "prompt 3 is missing"),
        (pd.Series(["a", "b", "c", pd.NA], dtype="string"), "prompt 3 is missing"),
        (["a", float("nan")], "prompt 1 is missing"),
        (["a", 5], "prompt 1 is 5"),
        ([b"a"], "prompt 0 is b'a'"),
        ([{"role": "user", "content": "x"}], "one message"),
        (iter(()), "empty"),
        (pd.Series([], dtype=object), "empty"),
    ],
    ids=lambda given: type(given).__name__,  # not what a set prints, which differs
)
def test_prompts_that_are_none_are_refused_before_any_work(
    engine: BaseEngine, prompts: Any, says: str
) -> None:
    before = engine.usage.requests
    for call in (engine.generate, engine.stream):
        with pytest.raises(InputError, match=says):
            call(prompts)
    with pytest.raises(InputError, match=says):
        engine.label_logprobs(prompts, [" a"])
    assert engine.usage.requests == before


@pytest.mark.parametrize("labels", ["ab", {" a", " b"}, [" a", None], [], [" a", " a"], 3])
def test_labels_that_are_none_are_refused(engine: BaseEngine, labels: Any) -> None:
    with pytest.raises(InputError, match="label"):
        engine.label_logprobs(["x"], labels)


def test_the_list_of_completions_is_a_list(engine: BaseEngine) -> None:
    found = engine.generate(TEXTS, FEW)
    assert isinstance(found, list)
    assert found == [*found] == pickle.loads(pickle.dumps(found))
    assert isinstance(found[:2], Completions)
    assert isinstance(found[0].text, str)
    table = found.frame()
    assert [*table] == ["answer", "tokens", "error"]
    assert table["answer"].tolist() == [one.text for one in found]


def test_ask_keeps_the_index_and_nothing_of_the_user_s(engine: BaseEngine) -> None:
    frame = pd.DataFrame(
        {"the text": [*TEXTS, None], "n": [1, 2, 3, 4]}, index=pd.Index(list("abcd"), name="key")
    )
    answers = engine.ask(frame, "{key} {n}: {the text}", max_tokens=4)
    assert [*answers] == ["answer", "tokens", "error"]
    assert answers.index.equals(frame.index)
    prompts = [f"{key} {n}: {text}" for key, n, text in zip("abc", [1, 2, 3], TEXTS, strict=True)]
    assert answers["answer"].tolist()[:3] == [one.text for one in engine.generate(prompts, FEW)]
    failed = answers.loc["d"]
    assert failed["answer"] is None
    assert "'the text' is missing" in failed["error"]
    assert answers["error"].tolist()[:3] == [None] * 3
    assert len(frame.join(answers)) == 4
    with pytest.raises(EngineError, match="1 of 4 prompts failed") as raised:
        engine.ask(frame, "{the text}", errors="raise", max_tokens=4)
    assert isinstance(raised.value.results, pd.DataFrame)


def test_an_index_with_repeats_keeps_each_answer_at_its_row(
    engine: BaseEngine, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.DataFrame({"text": TEXTS}, index=[0, 0, 1])
    answers = engine.ask(frame, "{text}", max_tokens=4)
    both = pd.concat([frame, answers], axis=1)
    assert both["answer"].tolist() == [one.text for one in engine.generate(TEXTS, FEW)]
    assert "pd.concat([df, answers], axis=1)" in caplog.text
    caplog.clear()
    engine.ask(frame.reset_index(), "{text}", max_tokens=4)
    assert "repeats" not in caplog.text


@pytest.mark.parametrize(
    "numbers",
    [
        np.array([0.1, 2.5], dtype="float32"),
        np.array([0.1, 2.5], dtype="float16"),
        pd.array([0.1, 2.5], dtype="Float32"),
        pd.array([0.1, 2.5], dtype="float[pyarrow]"),
        [np.float32(0.1), np.float32(2.5)],
        [0.4 - 0.3, 2.5],
    ],
)
def test_golds_of_floats_can_be_reached(engine: BaseEngine, numbers: Any) -> None:
    frame = pd.DataFrame({"question": ["a", "b"], "answer": numbers})
    listed = zip(["a", "b"], numbers, strict=True)
    rows = [{"question": question, "answer": number} for question, number in listed]
    for given in (frame, rows)[: 2 if isinstance(numbers, list | np.ndarray) else 1]:
        task = open_task(given)
        golds = {item.id: item for item in task.items()}
        assert [golds[f"row {n}"].answer for n in (0, 1)] == ["0.1", "2.5"]
        assert task.grade(golds["row 0"], "#### 0.1").correct
    if getattr(frame["answer"].dtype, "itemsize", 8) < 8:
        wanted = engine.generate(["0.1 +", "2.5 +"], FEW)
        found = engine.ask(frame, "{answer} +", FEW)
        assert found["answer"].tolist() == [one.text for one in wanted]


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame({"text": TEXTS}),
        pd.Series(TEXTS),
        pd.Series(TEXTS, name="claim"),
        pd.Series(TEXTS, index=pd.Index([5, 5, 6], name="id")),
        TEXTS,
        np.array(TEXTS),
        (text for text in TEXTS),
        [{"text": text} for text in TEXTS],
    ],
    ids=lambda given: type(given).__name__,
)
def test_ask_takes_rows_of_every_kind(engine: BaseEngine, rows: Any) -> None:
    wanted = [one.text for one in engine.generate([f"Sum {text}" for text in TEXTS], FEW)]
    assert engine.ask(rows, "Sum {}", FEW)["answer"].tolist() == wanted


def test_ask_sends_chats_samples_and_braces(engine: BaseEngine) -> None:
    frame = pd.DataFrame({"x": ["a", "b", ""]})
    answers = engine.ask(frame, "{x}", n=3, temperature=1.0, seed=1, max_tokens=4)
    assert [len(samples) for samples in answers["samples"][:2]] == [3, 3]
    assert answers["answer"][0] == answers["samples"][0][0]
    assert "the prompt is empty" in answers["error"][2]
    chat = engine.ask(frame[:1], 'JSON {{"a": "{x}"}}', style="chat", max_tokens=4)
    message = [{"role": "user", "content": 'JSON {"a": "a"}'}]
    assert chat["answer"][0] == engine.generate([message], FEW)[0].text
    for empty in (engine.ask(frame[:0], "{x}"), engine.ask([], "{x}")):
        assert [*empty] == ["answer", "tokens", "error"]
        assert len(empty) == 0


@pytest.mark.parametrize(
    ("rows", "wording", "settings", "says"),
    [
        (None, "{txet}", {}, "did you mean 'text'"),
        (None, '{"a": 1, "b": {text}}', {}, "write {{"),
        (None, '{"a": 1} {text}', {}, "Write {{ and }}"),
        (None, "{text.__class__}", {}, "a plain name"),
        (None, "{text[0]}", {}, "a plain name"),
        (None, "{text!r}", {}, "a plain name"),
        (None, "{}", {}, "known: text, n"),
        (None, "no field", {}, "no field"),
        (None, 7, {}, "template=7"),
        (None, "{text}", {"max_token": 3}, "did you mean 'max_tokens'"),
        (None, "{text}", {"max_tokens": 0}, "max_tokens=0"),
        (None, "{text}", {"sampling": {"n": 1}}, "must be a workbench.Sampling"),
        (None, "{text}", {"style": "chatty"}, "style"),
        (None, "{text}", {"errors": "ignore"}, "errors"),
        ("one text", "{text}", {}, "rows='one text'"),
        ({"text": TEXTS}, "{text}", {}, "a DataFrame"),
        ([{"text": "a"}, "b"], "{text}", {}, "mixes"),
        (pd.Series([[{"role": "user", "content": "a"}]]), "{}", {}, "engine.generate"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "{text}", {}, "several columns"),
    ],
)
def test_ask_refuses_before_any_work(
    engine: BaseEngine, rows: Any, wording: Any, settings: dict[str, Any], says: str
) -> None:
    rows = pd.DataFrame({"text": TEXTS, "n": [1, 2, 3]}) if rows is None else rows
    before = engine.usage.requests
    with pytest.raises(InputError, match=says.replace("{", r"\{")):
        engine.ask(rows, wording, **settings)
    assert engine.usage.requests == before


def test_asked_again_it_is_answered_from_the_store(tmp_path: Path) -> None:
    with open_engine(engine="transformers", store=tmp_path / "kept.sqlite") as kept:
        first = kept.ask(TEXTS, "{}", max_tokens=4)
        assert len(Store(tmp_path / "kept.sqlite")) == 3
        pd.testing.assert_frame_equal(kept.ask(TEXTS, "{}", max_tokens=4), first)
        assert kept.usage.from_store == 3


@pytest.mark.parametrize("kind", ["object", "string", "category", "string[pyarrow]"])
def test_any_frame_is_a_task(kind: str) -> None:
    frame = pd.DataFrame({"A question?": ["1 + 1", "2 + 2"], 7: [2, 4]})
    frame = frame.astype({"A question?": kind}).set_axis(pd.Index([10, 20], name="key"))
    task = open_task(frame, question="A question?", answer=7, id="key")
    assert {item.id: item.answer for item in task.items()} == {"10": "2", "20": "4"}
    numbered = frame.reset_index(drop=True).set_axis([0, 1], axis=1)
    with pytest.raises(InputError, match='question="0", answer="1"'):
        open_task(numbered)
    pairs: list[dict[str, Any]] = [{"question": "0", "answer": "1"}, {"question": 0, "answer": 1}]
    for names in pairs:
        assert len(open_task(numbered, **names).items()) == 2


def test_a_prompt_of_a_kind_of_its_own_stays_one() -> None:
    """The search for labels gives prompts in segments, whose tokens are known piece by piece."""
    segments = SegmentedPrompt(["1+1=2\n", "1+2="])
    (checked,) = check_prompts([segments])
    assert checked is segments
    (text,) = check_prompts(np.array(["1+1="]))
    assert type(text) is str


def test_an_engine_that_gives_too_few_rows_is_an_error(
    engine: BaseEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine._complete

    def short(requests: Any) -> Iterator[Any]:
        return whole(requests[:1])

    monkeypatch.setattr(engine, "_complete", short)
    with pytest.raises(EngineError, match="no row for 2 requests"):
        engine.generate(["Two of", "these three", "are lost"])
