"""A user's own problems as a task: rows from everywhere, graded in four styles."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.errors import InputError
from workbench.tasks import TASKS, OwnTask, WordProblems, open_task
from workbench.types import Sampling, Task

ROWS: list[dict[str, Any]] = [
    {"question": "Tom has 3 cats and gets 4. How many?", "answer": 7},
    {"question": "What do they cost?", "answer": "$1,080.00"},
    {"question": "Half of 9?", "answer": 4.5},
]
SHOWN: list[dict[str, Any]] = [
    {"question": "And 2 and 2?", "answer": "4", "why": "2+2=4\n#### 4"},
    {"question": "A third of 1?", "answer": "1/3", "why": "1/3\n#### 1/3"},
]


def as_lines(rows: Iterable[object]) -> str:
    return "\n".join(map(json.dumps, rows))


def answers_of(task: Task) -> dict[str, str]:
    return {item.id: item.answer for item in task.items()}


def test_rows_are_the_same_from_everywhere(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(as_lines(ROWS))
    (tmp_path / "mine.json").write_text(json.dumps(ROWS))
    frame = pd.DataFrame(ROWS)
    frame.to_csv(tmp_path / "mine.csv", index=False)
    files = [tmp_path / "mine.jsonl", str(tmp_path / "mine.json"), tmp_path / "mine.csv"]
    for source in (*files, frame, ROWS, tuple(ROWS)):
        task = OwnTask(source)
        assert answers_of(task) == {"row 0": "7", "row 1": "1080", "row 2": "4.5"}
        assert task.name == ("mine" if isinstance(source, str | Path) else "own")


def test_items_are_all_rows_shuffled_by_seed() -> None:
    rows = [{"question": f"{n}+1?", "answer": n + 1} for n in range(40)]
    task = OwnTask(rows)
    assert (len(task.items()), len(task.items(7))) == (40, 7)
    assert task.items(7) == task.items()[:7] == OwnTask(rows).items(7)
    assert [item.id for item in task.items()] != [f"row {n}" for n in range(40)]
    assert task.items(7, seed=1) != task.items(7)
    with pytest.raises(InputError, match="count=41: own has 40 items, ask for fewer"):
        task.items(41)
    with pytest.raises(InputError, match="count=0"):
        task.items(0)


def test_the_prompt_is_that_of_the_embedded_word_problems() -> None:
    (item,) = WordProblems().items(1)
    (own,) = OwnTask([{"question": item.fields["question"], "answer": item.answer}]).items()
    assert OwnTask(ROWS).prompt(own) == WordProblems().prompt(item)
    assert OwnTask(ROWS).prompt(own, 0, "chat") == WordProblems().prompt(item, 0, "chat")


def test_examples_show_solutions_or_answers() -> None:
    task = OwnTask(ROWS, examples=SHOWN, instruction="End with `#### N`.")
    item = task.items(1)[0]
    asked = "Question: {}\nEnd with `#### N`.\nAnswer:".format
    first, second = (
        f"{asked('And 2 and 2?')} #### 4\n\n",
        f"{asked('A third of 1?')} #### 1/3\n\n",
    )
    last = asked(item.fields["question"])
    assert task.prompt(item, 2) in {first + second + last, second + first + last}
    assert task.prompt(item, 2) == task.prompt(item, 9) == task.prompt(item, 2)
    user, assistant, again = list(task.prompt(item, 1, "chat"))
    assert isinstance(user, dict)
    assert isinstance(assistant, dict)
    assert user["content"].endswith("?\nEnd with `#### N`.")
    assert assistant["content"] in {" #### 4", " #### 1/3"}
    assert again == {"role": "user", "content": f"{item.fields['question']}\nEnd with `#### N`."}

    solved = OwnTask(SHOWN[:1], solution="why", examples=SHOWN[1:])
    (item,) = solved.items()
    assert item.fields == {"question": "And 2 and 2?", "solution": "2+2=4\n#### 4"}
    assert solved.prompt(item, 1) == (
        "Question: A third of 1?\nAnswer: 1/3\n#### 1/3\n\nQuestion: And 2 and 2?\nAnswer:"
    )
    assert {example.id for example in solved.examples(item)} == {"example row 0"}


def test_columns_have_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "sums.csv"
    path.write_text("key,problem,result\n3,1+1?,2\n5,2+2?,4\n")
    task = open_task(path, question="problem", answer="result", id="key", name="mine")
    assert (task.name, answers_of(task)) == ("mine", {"3": "2", "5": "4"})
    assert open_task(str(path), question="problem", answer="result").name == "sums"


@pytest.mark.parametrize(
    ("options", "gold", "kept", "texts"),
    [
        ({}, "$1,080.00", "1080", ("So 1,080 dollars.\n#### 1080", "#### 108", "No idea.")),
        ({}, r"\frac{1}{2}", "0.5", (r"\boxed{1/2}", "The answer is 2.", "")),
        ({}, "(3, 4)", "(3, 4)", (r"\boxed{(3,4)}", r"\boxed{(4,3)}", "I do not know.")),
        ({"style": "choice"}, "(b)", "B", ("The answer is (B).", "C", "Banana")),
        ({"style": "choice", "labels": ["1", " 2"]}, 2, "2", ("2", "1", "3")),
        ({"style": "exact"}, " New  York ", "New York", ("New York", "new york", " ")),
        ({"style": "exact"}, "2.0", "2.0", ("<answer>2.0</answer>", "2", "")),
        ({"style": "label", "labels": [" True", " False"]}, True, "True", ("true.", "False", "Eh")),
    ],
)
def test_styles(
    options: dict[str, Any], gold: object, kept: str, texts: tuple[str, str, str]
) -> None:
    """A right, a wrong and an unreadable response, in every style."""
    task = OwnTask([{"question": "?", "answer": gold}], **options)
    (item,) = task.items()
    assert item.answer == kept
    grades = [task.grade(item, text) for text in (task.answer(item), *texts)]
    assert [grade.correct for grade in grades] == [True, True, False, None]
    assert [grade.parsed for grade in grades] == [True, True, True, False]
    assert grades[0].extracted == kept


def test_labels_are_what_an_engine_is_asked_for() -> None:
    row = [{"question": "?", "answer": "B"}]
    assert OwnTask([{"question": "?", "answer": "5"}], labels=["A"]).labels == ()
    assert OwnTask(row, style="exact").labels == ()
    assert OwnTask(row, style="choice").labels == tuple(f" {letter}" for letter in "ABCDEFGHIJ")
    assert OwnTask(row, style="choice", labels=["A", "B"]).labels == (" A", " B")
    assert OwnTask(row, style="label", labels=[" B", "C "]).labels == (" B", " C")


def test_sampling_has_room_for_what_is_asked() -> None:
    assert OwnTask(ROWS).sampling.stop == ("\nQuestion:",)
    assert OwnTask([{"question": "?", "answer": "x"}], style="exact").sampling.stop == ("\n",)
    own = Sampling(max_tokens=9, stop=("END",))
    task = OwnTask(ROWS[:1], sampling=own)
    (item,) = task.items()
    assert task.sampling == own
    assert task.grade(item, "#### 7 END #### 8").correct


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"answer": "1"}, {}, r"source\[1\]: no column 'question' among answer; add or rename it"),
        ({"question": "a"}, {}, r"source\[1\]: no column 'answer' among question"),
        ({"question": " ", "answer": "1"}, {}, r"source\[1\]: question=' ' must be a text that is"),
        ({"question": "a", "answer": ""}, {}, r"source\[1\]: answer='' must be a text that is not"),
        ({"question": "a", "answer": None}, {}, r"source\[1\]: answer=None must be a text"),
        ({"question": "a", "answer": [1]}, {}, r"source\[1\]: answer=\[1\] must be a text or a n"),
        ({"question": "a", "answer": "Paris"}, {},
         r"\]: answer='Paris' must be a number or .* in the style 'gsm8k'; correct the row"),
        ({"question": "a", "answer": "It is 18.\n#### 18"}, {}, r"answer=.* must be a number"),
        ({"question": "a", "answer": "1" * 999}, {}, r"\[1\]: answer=.* must be a number"),
        ({"question": "a", "answer": "#### 5"}, {"style": "exact"}, r"\[1\]: .* a text without"),
        ({"question": "a", "answer": "Z"}, {"style": "choice", "labels": ["7", "B"]},
         r"\[1\]: answer='Z' must be one of 7, B in the style 'choice'; correct the row"),
        ({"question": "a", "answer": "no"}, {"style": "label", "labels": ["7", "yes"]},
         r"\[1\]: answer='no' must be one of 7, yes in the style 'label'"),
        ({"question": "a", "answer": "1"}, {"solution": "why"}, r"\[0\]: no column 'why' among"),
        ({"question": "a", "answer": "1"}, {"id": "key"}, r"\[0\]: no column 'key' among"),
        ({"question": "a", "answer": 7}, {"id": "answer"},
         r"\[1\]: answer='7' is that of source\[0\] too; give each row a unique id"),
        ({"question": "a", "answer": "1"}, {"style": "maths"}, "style='maths' is not known; known"),
        ({"question": "a", "answer": "1"}, {"style": "label"}, "labels=.* the style 'label' needs"),
        ({"question": "a", "answer": "1"}, {"labels": "AB"}, "labels='AB' must be a list of texts"),
        ({"question": "a", "answer": "1"}, {"examples": []}, r"examples=\[\]: must be a .jsonl"),
        ({"question": "a", "answer": "1"}, {"examples": [{"question": "b"}]},
         r"examples\[0\]: no column 'answer'"),
        ({"question": "a", "answer": "1"}, {"examples": [{"question": " a", "answer": "1"}]},
         "own: 1 questions of examples are asked too, such as 'a': leave them out"),
    ],
)  # fmt: skip
def test_wrong_rows_are_named(row: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OwnTask([ROWS[0], row], **options)


def test_shots_need_examples() -> None:
    task = OwnTask(ROWS)
    item = task.items(1)[0]
    assert task.prompt(item)
    with pytest.raises(InputError, match="own has no worked examples to show: give examples="):
        task.prompt(item, 1)


def test_wrong_files_and_names(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.jsonl", tmp_path / "broken.jsonl"
    empty.write_text("\n")
    broken.write_text(as_lines([*ROWS, {"question": "a", "answer": "unclear"}]))
    for name, message in (
        (empty, "holds no rows: give a file with at least 1"),
        (broken, r"broken\.jsonl:4: answer='unclear' must be a number"),
        (tmp_path / "none.csv", r"none\.csv: No such file"),
        ("mine.xlsx", r"mine\.xlsx: give a file whose name ends in \.jsonl, \.json, \.csv"),
        ("gms8k", "no task 'gms8k', did you mean 'gsm8k'.*or give the path of a .jsonl"),
    ):
        with pytest.raises(InputError, match=message):
            open_task(name)
    for name in TASKS:
        with pytest.raises(InputError, match=f"style, id: .*not for the task {name}"):
            open_task(name, style="exact", id="key")


def test_what_a_file_does_not_have_is_named(tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text('{"question": "1+1?", "answer": 2}\n')
    with pytest.raises(InputError, match=r"no file argument 'questions', did you mean 'question'"):
        open_task(source, questions="question")


def test_a_table_is_a_task_and_files_may_be_large_or_deep(tmp_path: Path) -> None:
    table = pd.DataFrame({"question": ["1+1?", "2+2?"], "answer": ["2", "4"]})
    assert [item.answer for item in open_task(table).items(2)] in (["2", "4"], ["4", "2"])
    long = tmp_path / "long.csv"
    long.write_text(f"question,answer\n{'a' * 200_000},2\n")
    assert len(open_task(long).items(1)[0].fields["question"]) == 200_000
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(InputError, match=r"deep\.json: nested too deep"):
        open_task(deep)
    lines = tmp_path / "deep.jsonl"
    lines.write_text("[" * 100_000 + "]" * 100_000 + "\n")
    with pytest.raises(InputError, match=r"deep\.jsonl:1: nested too deep"):
        open_task(lines)


def test_no_column_is_lost() -> None:
    """A user's own `question` and a twice named column would be; a `solution` is kept."""
    frame = pd.DataFrame({"question": ["a"], "text": ["b"], "answer": [1], "solution": ["why"]})
    with pytest.raises(InputError, match="your column 'question': rename that"):
        open_task(frame, question="text")
    with pytest.raises(InputError, match="several columns 'answer'"):
        open_task(pd.concat([frame, frame[["answer"]]], axis=1))
    rows = pd.DataFrame({"question": ["c"], "answer": [2], "solution": ["so"]})
    task = OwnTask(frame, examples=rows)
    assert task.items()[0].fields["solution"] == "why"
    assert "so" not in str(task.prompt(task.items()[0], 1)).split()
    tags: Any = [np.arange(1001)]
    lists = frame.assign(tags=tags)
    assert open_task(lists).items()[0].fields["tags"].endswith("999, 1000]")
    with pytest.raises(InputError, match=r'style="label", labels=\["True", "False"\]'):
        open_task(frame.assign(answer=[True]))
    open_task(frame.assign(answer=[True]), style="label", labels=["True", "False"])
