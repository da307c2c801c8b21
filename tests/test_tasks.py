"""The tasks: items, prompts, graders, and that the embedded model can do its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.icm.testbeds import truthfulqa
from workbench.tasks import (
    GSM8K,
    TASKS,
    Claims,
    Options,
    Sums,
    TruthfulQA,
    Verdicts,
    WordProblems,
    open_task,
)
from workbench.tasks.base import BaseTask
from workbench.tasks.published import published_file
from workbench.tasks.rows import read_rows
from workbench.tiny import MODEL
from workbench.types import Item

needs_data = pytest.mark.skipif(
    not os.environ.get("WORKBENCH_DATA"), reason="needs published data: WORKBENCH_DATA is not set"
)
each = pytest.mark.parametrize(
    "task",
    [
        *(Sums(), WordProblems(), Claims(), Claims("random"), Options(), Verdicts()),
        *(pytest.param(task, marks=needs_data) for task in (GSM8K(), TruthfulQA())),
    ],
    ids=lambda t: t.name,
)


@each
def test_items_differ_and_repeat(task: BaseTask) -> None:
    count = min(200, task.count)
    items = task.items(count, seed=3)
    assert len({item.id for item in items}) == count
    assert items == task.items(count, seed=3)
    assert items != task.items(count, seed=4)
    json.dumps([[item.id, dict(item.fields), item.answer] for item in items])


@each
def test_the_grader_accepts_every_gold_answer(task: BaseTask) -> None:
    for item in task.items(min(300, task.count)):
        assert task.grade(item, task.answer(item)).correct
        assert task.grade(item, f"{task.answer(item)}\n\nQuestion: 1+1?\n#### 3\n").correct
    silence = task.grade(item, " ")
    assert (silence.correct, silence.parsed) == (None, False)


def test_graders_tell_wrong_from_unreadable() -> None:
    (item,) = WordProblems().items(1)
    assert WordProblems().grade(item, f"#### {int(item.answer) + 1}").correct is False
    assert WordProblems().grade(item, f"{item.answer} or {item.answer}1").parsed is False
    (item,) = Options().items(1)
    wrong = "A" if item.answer != "A" else "B"
    assert Options().grade(item, f" {wrong}.").correct is False
    assert Options().grade(item, " Apple").parsed is False
    assert Options().grade(item, "G").parsed is False
    (item,) = Claims().items(1)
    assert Claims().grade(item, "Truely").parsed is False
    assert Claims().grade(item, "True or False").parsed is False


def test_answers_are_read_however_they_are_stated() -> None:
    (item,) = WordProblems().items(1)
    for text in (item.answer, f"The answer is {item.answer}.", rf"So \boxed{{{item.answer}.0}}"):
        assert WordProblems().grade(item, text).correct
    (item,) = Options().items(1)
    for text in (item.answer.lower(), f"First I add.\nThe answer is ({item.answer})."):
        grade = Options().grade(item, text)
        assert (grade.correct, grade.extracted) == (True, item.answer)
    for item in Claims().items(4):
        for text in (item.answer.lower(), f"**{item.answer}**", f"I add.\n\nAnswer: {item.answer}"):
            grade = Claims().grade(item, text)
            assert (grade.correct, grade.extracted) == (True, item.answer)
    (item,) = Verdicts().items(1)
    assert Verdicts().grade(item, f"{item.answer.upper()}, it is.").correct


def test_reasoned_answers_end_where_their_task_stops() -> None:
    task = WordProblems()
    (item,) = task.items(1)
    assert task.grade(item, f"\n\n#### {item.answer}\n\nQuestion: 1+1?\nAnswer: 2").correct
    # A chat writes in paragraphs, and reasons aloud where it may.
    assert task.grade(item, f"I add.\n\n#### {item.answer}").correct
    assert task.grade(item, f"<think>\nQuestion: how?\n</think>\n#### {item.answer}").correct


@each
def test_examples_are_never_held_out_and_chats_alternate(task: BaseTask) -> None:
    item = task.items(1)[0]
    examples = [example for example, _ in zip(task.examples(item), range(50), strict=False)]
    assert not {example.id for example in examples} & {
        i.id for i in task.items(min(300, task.count))
    }
    prompt = task.prompt(item, 3)
    assert str(prompt).startswith(task.solved(examples[0]))
    assert str(prompt).endswith(task.ask(item))
    chat = task.prompt(item, 2, "chat")
    assert not isinstance(chat, str)
    assert [turn["role"] for turn in chat] == ["user", "assistant"] * 2 + ["user"]


def test_tasks_open_by_name() -> None:
    assert [open_task(name).name for name in TASKS] == list(TASKS)
    with pytest.raises(InputError, match=r"no task 'GMS8K', did you mean 'gsm8k'\?.*: claims,"):
        open_task("GMS8K")


@needs_data
def test_gsm8k_is_whole_and_every_published_solution_is_accepted() -> None:
    task = GSM8K()
    sides = [list(task.stream(random.Random(0), held_out=held_out)) for held_out in (True, False)]
    assert [len({item.id for item in side}) for side in sides] == [1319, 7473]
    assert not {i.fields["question"] for i in sides[0]} & {i.fields["question"] for i in sides[1]}
    for name, side in zip(("test", "train"), sides, strict=True):
        rows = [r.cells for r in read_rows(published_file(f"gsm8k/{name}.jsonl"))]
        for item in side:
            row = rows[int(item.id.removeprefix(f"gsm8k-{name}-"))]
            assert row["question"] == item.fields["question"]
            assert row["answer"].rpartition("#### ")[2].replace(",", "") == item.answer
            for text in (row["answer"], task.answer(item), item.answer):
                assert task.grade(item, text).correct
                assert task.grade(item, text).extracted == item.answer
            assert task.grade(item, f"{task.answer(item)}1").correct is False
    assert len(task.items()) == 1319
    with pytest.raises(InputError, match="count=1320: gsm8k has 1319 items"):
        task.items(1320)


@needs_data
def test_gsm8k_prompts_are_cheap_and_keep_their_examples() -> None:
    task = GSM8K()
    items = task.items(200)
    start = time.perf_counter()
    prompts = [str(task.prompt(item, 8)) for item in items]
    assert time.perf_counter() - start < 2
    assert prompts == [str(GSM8K().prompt(item, 8)) for item in items]
    assert len({prompt.partition("\n\n")[0] for prompt in prompts}) > 150
    assert {prompt.count("\n\nQuestion: ") for prompt in prompts} == {8}
    assert not any("<<" in prompt for prompt in prompts)


@needs_data
def test_gsm8k_runs_and_is_too_hard_for_the_embedded_model(plain: VLLMEngine) -> None:
    report = evaluate(GSM8K(), plain, count=8, shots=1)
    assert report.summary[0].n == 8
    assert report.summary[0].value < 0.5
    assert set(report.rows["steps"]) <= set(range(1, 9))


ROWS = [
    {"question": "Tom has 3 cats and 4 dogs. How many pets?", "answer": "3+4=<<3+4=7>>7\n#### 7"},
    {"question": "And x = 1,000 more?", "answer": "Let x be 1.\n\nThen 1,007.\n#### 1,007"},
]


def own_data(folder: Path, monkeypatch: pytest.MonkeyPatch, test: bytes) -> None:
    """A data folder whose GSM8K has these test rows and `ROWS` to train on."""
    (folder / "gsm8k").mkdir()
    (folder / "gsm8k" / "test.jsonl").write_bytes(test)
    (folder / "gsm8k" / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    monkeypatch.setenv("WORKBENCH_DATA", str(folder))


def test_gsm8k_from_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"question": "Half of \u2028 9?", "answer": "It is <<9/2=4.5>>4.5.\n#### 4.5", "more": 1}
    own_data(tmp_path, monkeypatch, json.dumps(row, ensure_ascii=False).encode())
    task = GSM8K()
    (item,) = task.items(1)
    assert item.fields == {
        "question": "Half of \u2028 9?",
        "steps": 1,
        "solution": "It is 4.5.\n#### 4.5",
    }
    assert (item.id, item.answer) == ("gsm8k-test-0", "4.5")
    prompt = str(task.prompt(item, 5))  # there are but two
    assert sorted(prompt.split("\n\n")) == [
        "Question: And x = 1,000 more?\nAnswer: Let x be 1.\nThen 1,007.\n#### 1,007",
        "Question: Half of \u2028 9?\nAnswer:",
        "Question: Tom has 3 cats and 4 dogs. How many pets?\nAnswer: 3+4=7\n#### 7",
    ]
    assert "####" in str(task.prompt(item, 0, "chat"))
    assert task.grade(item, "4.5\n\n#### 4.50\n\nQuestion: 1+1?\n#### 2").correct
    assert task.grade(item, "4.5").correct
    assert task.grade(item, "It is 4 or 5.").parsed is False
    with pytest.raises(InputError, match="count=1319: gsm8k has 1 items"):
        task.items()


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (b"", "holds no rows"),
        (b'\n{"question": "a", "answer', ":2: .*Unterminated"),
        (b'{"question": "a"}', ":1: no column 'answer' among question.* fetch it again"),
        (b'{"question": 1, "answer": "2"}', ":1: question=1 must be a text.* fetch it again"),
        (b"[1, 2]", r":1: \[1, 2\] must be an object.* fetch it again"),
        (b'{"question": "a\xff"}', ":1: the byte 0xff is not UTF-8"),
        (b'{"question": "a", "answer": "2"}', "gsm8k-test-0: its answer has no line `#### N`"),
        (b'{"question": "a", "answer": "#### b"}', "gsm8k-test-0: its answer has no line"),
    ],
)
def test_broken_data_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: bytes, message: str
) -> None:
    own_data(tmp_path, monkeypatch, test)
    with pytest.raises(InputError, match=message) as caught:
        GSM8K().items(1)
    assert "gsm8k" in str(caught.value)


def test_a_folder_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"none/gsm8k/test\.jsonl: no such file; WORKBENCH_DATA"):
        GSM8K().items(1)


@needs_data
def test_truthfulqa_as_published() -> None:
    task = TruthfulQA()
    items = task.items()
    assert len(items) == 100
    assert {task.ask(item) for item in items} == {claim.text for claim in truthfulqa().test}
    assert sum(item.answer == "True" for item in items) == 43
    questions = {item.fields["question"] for item in items}
    examples = list(task.examples(items[0]))
    assert len(examples) == 256
    assert not questions & {example.fields["question"] for example in examples}
    with pytest.raises(InputError, match="count=101: truthfulqa has 100 items"):
        task.items(101)


def own_claims(folder: Path, monkeypatch: pytest.MonkeyPatch, test: str) -> None:
    """A data folder whose TruthfulQA has this test file and one claim as an example."""
    (folder / "truthfulqa").mkdir()
    (folder / "truthfulqa" / "test.json").write_text(test)
    row = {"question": "Q1", "choice": "a.", "label": 1, "consistency_id": 7}
    (folder / "truthfulqa" / "train.json").write_text(json.dumps([row]))
    monkeypatch.setenv("WORKBENCH_DATA", str(folder))


def test_truthfulqa_from_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"question": "Q2", "choice": "b.", "label": 0, "consistency_id": 8}
    own_claims(tmp_path, monkeypatch, json.dumps([row]))
    task = TruthfulQA()
    (item,) = task.items(1)
    assert (item.id, item.answer) == ("truthfulqa-test-0", "False")
    assert item.fields == {"question": "Q2", "claim": "b.", "group": "8"}
    assert task.prompt(item, 1) == (
        "Question: Q1\nClaim: a.\nI think this claim is True\n\n"
        "Question: Q2\nClaim: b.\nI think this claim is"
    )
    (turn,) = list(task.prompt(item, 0, "chat"))
    assert isinstance(turn, dict)
    assert turn["content"].startswith("Question: Q2\nClaim: b.\nIs this claim true?")
    assert task.grade(item, " False").correct
    assert task.grade(item, "The claim is true.").correct is False
    assert task.grade(item, "It depends.").parsed is False


CLAIM = '{"question": "Q", "choice": "c", "label": 1, "consistency_id": 1}'


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("[]", "holds no rows"),
        (f"[{CLAIM}, {{", r"test\.json:1: .*; correct the file"),
        (CLAIM, "must be a list of objects"),
        (f"[{CLAIM}, 3]", "row 1: 3 must be an object"),
        (f"[{CLAIM.replace('question', 'asked')}]", "row 0: no column 'question' among asked"),
        (f"[{CLAIM.replace(chr(34) + 'c' + chr(34), '4')}]", "row 0: choice=4 must be a text"),
        (f"[{CLAIM}, {CLAIM.replace('label', 'truth')}]", "row 1: no column 'label' among"),
        (f"[{CLAIM.replace('1', '2', 1)}]", "row 0: label=2 must be 0 or 1; or remove the file"),
        (f"[{CLAIM.replace('1', 'null', 1)}]", "row 0: label=None must be"),
        (f"[{CLAIM.replace('_id', '')}]", "row 0: no column 'consistency_id' among"),
    ],
)
def test_broken_claims_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str, message: str
) -> None:
    own_claims(tmp_path, monkeypatch, test)
    with pytest.raises(InputError, match=message) as caught:
        TruthfulQA().items(1)
    assert "truthfulqa" in str(caught.value)


def test_claims_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"truthfulqa/test\.json: no such file; WORKBENCH_DATA"):
        TruthfulQA().items(1)
    monkeypatch.delenv("WORKBENCH_DATA")
    with pytest.raises(InputError, match=r"truthfulqa/test\.json is missing: set WORKBENCH_DATA"):
        TruthfulQA().items(1)


def from_hub(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Read GSM8K in a new process with its hub cache in `folder` and no data folder."""
    program = "from workbench.tasks import GSM8K; print(GSM8K().items(1)[0])"
    kept = {key: value for key, value in os.environ.items() if key != "WORKBENCH_DATA"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {"HF_HUB_CACHE": str(folder)} | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_gsm8k_from_the_hub_cache_needs_no_network(tmp_path: Path) -> None:
    repo = tmp_path / "datasets--openai--gsm8k"
    rows = repo / "snapshots" / ("a" * 40) / "main" / "test-00000-of-00001.parquet"
    rows.parent.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    pd.DataFrame(ROWS[:1]).to_parquet(rows)
    nowhere = "http://127.0.0.1:9"
    done = from_hub(tmp_path, HF_ENDPOINT=nowhere)
    assert "Tom has 3 cats" in done.stdout, done.stderr
    pd.DataFrame({"question": ["?"]}).to_parquet(rows)
    assert "remove the file and fetch it again" in from_hub(tmp_path).stderr


def test_without_folder_and_network_the_error_says_what_to_do(tmp_path: Path) -> None:
    start = time.perf_counter()
    done = from_hub(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")  # nothing listens there
    assert "InputError: gsm8k/test.jsonl is missing" in done.stderr
    assert "set WORKBENCH_DATA to a folder with gsm8k/test.jsonl" in done.stderr
    assert time.perf_counter() - start < 15


def test_random_demonstrations_say_nothing_about_the_truth() -> None:
    item = Claims().items(1)[0]
    pairs = zip(Claims().examples(item), Claims("random").examples(item), range(400), strict=False)
    same = [gold.answer == noise.answer for gold, noise, _ in pairs]
    assert 0.4 < np.mean(same) < 0.6


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_impossible_counts(count: int) -> None:
    with pytest.raises(InputError, match=f"count={count}"):
        Sums().items(count)


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match="shots=-1"):
        Sums().prompt(Sums().items(1)[0], -1)
    with pytest.raises(InputError, match="demonstrations='gold'"):
        Claims("gold")  # type: ignore[arg-type]


def chosen(task: BaseTask, engine: VLLMEngine, items: list[Item], shots: int) -> float:
    prompts = [task.prompt(item, shots) for item in items]
    best = engine.label_logprobs(prompts, task.labels).logprobs.argmax(axis=1)
    answers = [task.labels[b].strip() for b in best]
    return float(np.mean([a == item.answer for a, item in zip(answers, items, strict=True)]))


def test_the_model_has_its_skills(plain: VLLMEngine) -> None:
    """Far looser than `python -m benchmarks skills`, on few items: something is there at all."""
    assert evaluate(Sums(), plain, count=200, shots=2).summary[0].low > 0.8
    words = evaluate(WordProblems(), plain, count=200)
    assert 0.5 < words.summary[0].value < 0.95
    assert words.summary[0].n_unparsed < 20
    assert evaluate(WordProblems(), plain, count=100, style="chat").summary[0].value > 0.5
    items = Claims().items(200)
    assert chosen(Claims(), plain, items, 32) > 0.85
    assert chosen(Claims(), plain, items, 0) < 0.65
    assert chosen(Verdicts(), plain, Verdicts().items(100), 0) > 0.8
    assert chosen(Options(), plain, Options().items(200), 0) > 0.5


def test_characters_never_seen_are_answered(plain: VLLMEngine) -> None:
    item = WordProblems().items(1)[0]
    prompt = str(WordProblems().prompt(item)).replace("has", "має 🦉 \x00 \u202e")
    (answer,) = plain.generate([prompt])
    assert answer.error is None
    scores = plain.label_logprobs([prompt], [" 猫", " True"])
    assert np.isfinite(scores.logprobs).all()


def test_the_weights_are_small_and_need_no_remote_code() -> None:
    assert sum(p.stat().st_size for p in MODEL.iterdir()) < 12 * 2**20
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 2048
    assert "auto_map" not in config
