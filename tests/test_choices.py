"""Six options: tasks from files, published or own, and the prompts made from them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import InputError
from workbench.tasks import Options, Sums
from workbench.tasks.multiple_choice import KINDS, PUBLISHED, Kind, MultipleChoice, open_choices
from workbench.tasks.options import LEVELS
from workbench.types import Item
from workbench.uncertainty.elicitation import PROMPTS, labels, option_prompts

LAST_TWO = {"E": "I don't know", "F": "None of the above"}


def row(number: int, **changes: Any) -> dict[str, Any]:
    """Row `number` of a file, with an answer that goes round the first four letters."""
    choices = {letter: f"{letter.lower()}{number}" for letter in "ABCD"} | LAST_TWO
    fields = {"id": number, "question": f"Q{number}?", "choices": choices}
    return fields | {"answer": "ABCD"[number % 4]} | changes


def flat(number: int, **changes: Any) -> dict[str, Any]:
    """The same with columns A to F."""
    fields = row(number)
    return {**fields.pop("choices"), **fields, **changes}


def published(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: list[dict[str, Any]]
) -> None:
    """A data folder that holds these rows as the file of a published task."""
    (folder / "uncertainty").mkdir()
    (folder / "uncertainty" / PUBLISHED[name].file).write_text(json.dumps(rows))
    monkeypatch.setenv("WORKBENCH_DATA", str(folder))


def own(folder: Path, rows: object, **arguments: Any) -> MultipleChoice:
    path = folder / "mine.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return open_choices(path, **arguments)


def ids(items: list[Item] | tuple[Item, ...]) -> list[str]:
    return [item.id for item in items]


@pytest.mark.parametrize(
    ("name", "kind", "shown"),
    [
        ("mmlu", "qa", "13579"),
        ("cosmosqa", "rc", "13579"),
        ("hellaswag", "ci", "13579"),
        ("halueval_dialogue", "drs", "579"),
        ("halueval_summarization", "ds", "9"),
    ],
)
def test_published_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, shown: str
) -> None:
    rows = [row(n, source="S", context=f"C{n}") for n in range(12)]
    published(tmp_path, monkeypatch, name, rows)
    task = open_choices(name)
    assert (task.name, task.kind, task.split, task.difficulty) == (name, kind, "test", "group")
    assert ids(task.demonstrations) == list(shown)
    assert ids(task.items()) == ["0", "2", "4", "6", "8", "10", "11"]
    first = task.items()[0]
    assert first.answer == "A"
    assert first.fields == {
        "question": "Q0?", "options": ("a0", "b0", "c0", "d0", *LAST_TWO.values()),
        "kind": kind, "context": "C0", "group": "S",
    }  # fmt: skip
    again = open_choices(name, kind=PUBLISHED[name].kind, demonstrations=len(shown))
    assert (again.items(), again.demonstrations) == (task.items(), task.demonstrations)
    with pytest.raises(
        InputError, match=rf"demonstrations=2: {name} always shows its {len(shown)}"
    ):
        open_choices(name, demonstrations=2)
    other: Kind = "rc" if kind != "rc" else "ds"
    with pytest.raises(InputError, match=rf"kind='{other}': {name} is '{kind}'; leave kind out"):
        open_choices(name, kind=other)


def test_items_in_random_order_by_seed(tmp_path: Path) -> None:
    task = own(tmp_path, [row(n) for n in range(40)])
    assert ids(task.items()) == list(map(str, range(40)))
    assert len(task.items(7)) == 7
    assert (
        task.items(7) == task.items(40)[:7] == own(tmp_path, [row(n) for n in range(40)]).items(7)
    )
    assert task.items(40) != task.items()
    assert sorted(ids(task.items(40))) == sorted(ids(task.items()))
    assert task.items(7, seed=1) != task.items(7)
    with pytest.raises(InputError, match="count=41: mine has 40 items, ask for fewer"):
        task.items(41)
    with pytest.raises(InputError, match="count=0: must be a whole number from 1"):
        task.items(0)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_columns_for_options_in_every_format(tmp_path: Path, suffix: str) -> None:
    rows = [flat(n, subcategory="easy" if n else "", source="S") for n in range(3)]
    path = tmp_path / f"mine.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text(json.dumps(rows))
    task = open_choices(str(path), demonstrations=1)
    assert (task.name, task.kind) == ("mine", "qa")
    assert (ids(task.demonstrations), ids(task.items())) == (["0"], ["1", "2"])
    assert task.demonstrations[0].fields["group"] == "S"
    assert task.items()[0] == Item(
        id="1",
        fields={
            "question": "Q1?", "options": ("a1", "b1", "c1", "d1", *LAST_TWO.values()),
            "kind": "qa", "group": "easy",
        },
        answer="B",
    )  # fmt: skip


def test_what_an_own_file_may_hold(tmp_path: Path) -> None:
    fields = row(0)["choices"]
    rows = [
        row(0, choices=fields | {"B": "a0"}),  # equal options, as published rows may have them
        row(1, choices=fields | {"A": 12.0, "B": 12}),
        row(2, answer=" C ", context=None, source=None),
    ]
    del rows[2]["id"]
    items = own(tmp_path, rows).items()
    assert items[0].fields["options"][:2] == ("a0", "a0")
    assert items[1].fields["options"][:2] == ("12.0", "12")
    assert (items[2].id, items[2].answer, items[2].fields["group"]) == ("row 2", "C", "")
    assert "context" not in items[2].fields


def test_the_embedded_task() -> None:
    task = open_choices("options")
    items = task.items(20, seed=3)
    assert (task.name, task.kind, task.difficulty) == ("options", "qa", "group")
    assert task.demonstrations == ()
    raw = Options().items(20, seed=3)
    assert [(item.id, item.answer) for item in items] == [(item.id, item.answer) for item in raw]
    for item, plain in zip(items, raw, strict=True):
        assert {*item.fields} == {"question", "options", "kind", "group"}
        assert item.fields["group"] == plain.fields["level"]
        assert item.fields["group"] in LEVELS
    assert option_prompts(items) == option_prompts(raw) == [Options().prompt(one) for one in raw]
    assert len(task.items()) == 2000
    shown = open_choices("options", demonstrations=5).demonstrations
    assert len({*ids(shown)}) == 5
    assert len({item.answer for item in shown[:3]}) == 3
    assert shown == open_choices("options", demonstrations=5).demonstrations
    assert shown[:2] == open_choices("options", demonstrations=2).demonstrations
    assert not {*ids(shown)} & {*ids(task.items())}
    assert len(option_prompts(items, "task", demonstrations=shown)) == 20
    with pytest.raises(InputError, match="kind='rc': options is 'qa'"):
        open_choices("options", kind="rc")


@pytest.mark.parametrize(
    ("name", "near"), [("mmul", "mmlu"), ("HellaSwag", "hellaswag"), ("halueval", "halueval_di")]
)
def test_an_unknown_name(name: str, near: str) -> None:
    with pytest.raises(
        InputError, match=rf"no six-option task '{name}'.*did you mean '{near}.*Known: option"
    ):
        open_choices(name)


def test_arguments_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no kind 'QA', did you mean 'qa'.*Known: qa, rc, ci"):
        open_choices("options", kind="QA")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="demonstrations=-1: must be a whole number"):
        open_choices("options", demonstrations=-1)
    with pytest.raises(InputError, match=r"demonstrations=2: .*mine\.json has 2 rows.*show fewer"):
        own(tmp_path, [row(0), row(1)], demonstrations=2)
    with pytest.raises(InputError, match=r"none\.json: No such file"):
        open_choices(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"mine\.xlsx: give a file whose name ends in \.jsonl"):
        open_choices("mine.xlsx")


def without(number: int, *columns: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in row(number, **changes).items() if name not in columns}


FIVE = dict(list(row(1)["choices"].items())[:5])
SEVEN = row(1)["choices"] | {"G": "g"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0), row(1, choices=FIVE)], r"row 1: choices: 5 options \(A, B, C, D, E\), must be"),
        ([row(1, choices=SEVEN)], r"row 0: choices: 7 options \(A, B, C, D, E, F, G\), must be"),
        ([row(1, choices={})], r"row 0: choices: 0 options \(\), must be"),
        ([flat(1, G="g")], r"row 0: 7 options \(A, B, C, D, E, F, G\)"),
        ([row(1, choices=list("abcdef"))], r"row 0: choices=\['a', .* must be six texts by A to F"),
        ([row(1, choices=SEVEN | {"A": " "})], "7 options"),
        ([row(1, choices=row(1)["choices"] | {"B": " "})], "row 0: choices: B=' ' must be a text"),
        ([row(1, choices=row(1)["choices"] | {"B": None})], "row 0: choices: B=None must be"),
        ([flat(0), flat(1, C="")], "row 1: C='' must be a text that is not empty"),
        ([row(1, answer="G")], "row 0: answer='G' must be one of A, B, C, D, E, F"),
        ([row(1, answer="b")], "row 0: answer='b' must be one of A"),
        ([row(1, answer="AB")], "row 0: answer='AB' must be one of A"),
        ([row(1, answer=1)], "row 0: answer=1 must be a text"),
        ([row(1), row(2), row(1)], r"row 2: id='1' is that of .*row 0 too; give each"),
        ([row(1), row(2, id="1")], "id='1' is that of"),
        ([row(1, id=[1])], r"row 0: id=\[1\] must be a text or a number"),
        ([without(1, "question")], "row 0: no column 'question' among id, choices, answer"),
        ([without(1, "choices")], "row 0: no column 'choices' among id, question, answer"),
        ([without(1, "answer")], "row 0: no column 'answer' among"),
        ([row(1, question="")], "row 0: question='' must be a text"),
        ([row(1, context=["x"])], r"row 0: context=\['x'\] must be a text"),
        ([row(1, context="C")], r"item '1' has a context, which kind='qa' does not show; give one"),
        ([row(1), 3], "row 1: 3 must be an object"),
        (
            row(1),
            "must be a list of objects, .*; it is an object with the keys .*; correct the file",
        ),
        ([], "holds no rows"),
        ('[{"id": 1,', r"json:1: .* at column 11; correct the file"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        own(tmp_path, rows)
    assert "mine.json" in str(caught.value)


def test_published_files_that_are_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"uncertainty/mmlu_10k\.json: no such file; WORKBENCH"):
        open_choices("mmlu")
    published(tmp_path, monkeypatch, "mmlu", [row(n) for n in range(9)])
    with pytest.raises(InputError, match=r"mmlu_10k\.json: no row has id=9, which mmlu shows as"):
        open_choices("mmlu")
    (tmp_path / "uncertainty" / "halu_summarization.json").write_text(json.dumps([row(9)]))
    with pytest.raises(InputError, match="has no rows but 1, 3, 5, 7, 9, which are not asked"):
        open_choices("halueval_summarization")


def opened(cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Open MMLU in a new process with the hub's cache in `cache` and no data folder."""
    program = "from workbench.tasks import open_choices; print(open_choices('mmlu').items(1)[0])"
    kept = {key: value for key, value in os.environ.items() if key != "WORKBENCH_DATA"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": "http://127.0.0.1:9"} | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_published_files_from_the_hub(tmp_path: Path) -> None:
    assert "uncertainty/mmlu_10k.json is missing, and ErikYip/" in opened(tmp_path).stderr
    repo = tmp_path / "datasets--ErikYip--LLM-Uncertainty-Bench"
    file = repo / "snapshots" / ("a" * 40) / "mmlu_10k.json"
    file.parent.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    file.write_text(json.dumps([row(n, source="MMLU") for n in (1, 2, 3, 5, 7, 9)]))
    done = opened(tmp_path)
    assert "Q2?" in done.stdout, done.stderr


# The prompts, written out: one demonstration, one question.

WITH_CONTEXT = {"rc": "Context: ", "ci": "Context: ", "drs": "Dialogue: ", "ds": "Document: "}
SHOWN = (
    "Question: How many legs has a cat?\n"
    "Choices:\n"
    "A. 2\n"
    "B. 3\n"
    "C. 4\n"
    "D. 5\n"
    "E. I don't know\n"
    "F. None of the above\n"
    "Answer: C\n"
)
ASKED = (
    "Question: Who flies?\n"
    "Choices:\n"
    "A. the bird\n"
    "B. the fish\n"
    "C. the dog\n"
    "D. the cow\n"
    "E. I don't know\n"
    "F. None of the above\n"
    "Answer:"
)
TASK = {
    "qa": (
        "Below are some examples of multiple-choice questions about question answering. Each "
        "question should be answered based on your world knowledge and problem solving ability."
        "\n\n"
    ),
    "ci": (
        "Below are some examples of multiple-choice questions about commonsense natural language "
        "inference. For each question, there is a given context and the answer is the option that "
        "most likely follows the context.\n\n"
    ),
    "rc": (
        "Below are some examples of multiple-choice questions about reading comprehension. Each "
        "question should be answered based on the given context and commonsense reasoning when "
        "necessary.\n\n"
    ),
    "drs": (
        "Below are some examples of multiple-choice questions about dialogue response selection. "
        "For each question, the answer is the option that represents the most suitable response "
        "for the given dialogue history, without hallucination and non-factual information.\n\n"
    ),
    "ds": (
        "Below are some examples of multiple-choice questions about document summarization. For "
        "each question, the answer is the option that accurately summarizes the given document "
        "without hallucination and non-factual information.\n\n"
    ),
}
BEFORE: dict[str, Callable[[str], str]] = {
    "base": lambda kind: "",
    "shared": lambda kind: (
        "Below are some examples of multiple-choice questions with six potential answers. For each "
        "question, only one option is correct.\n\n"
    ),
    "task": lambda kind: TASK[kind],
}
BETWEEN = (
    "\nNow make your best effort and select the correct answer for the following question. You "
    "only need to output the option.\n\n"
)


def made(question: str, texts: str, answer: str, kind: str | None, context: str = "") -> Item:
    options = (*texts.split(", "), *LAST_TWO.values())
    fields: dict[str, Any] = {"question": question, "options": options}
    fields |= {"kind": kind} if kind else {}
    return Item(question, fields | ({"context": context} if context else {}), answer)


def cat(kind: str | None) -> Item:
    return made("How many legs has a cat?", "2, 3, 4, 5", "C", kind, "A cat walks.")


def bird(kind: str | None, context: str = "A bird\nsings.") -> Item:
    animals = "the bird, the fish, the dog, the cow"
    return made("Who flies?", animals, "A", kind, context)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_to_the_letter(prompt: Any, kind: str) -> None:
    first, second = SHOWN, ASKED
    if kind in WITH_CONTEXT:
        first = f"{WITH_CONTEXT[kind]}A cat walks.\n{SHOWN}"
        second = f"{WITH_CONTEXT[kind]}A bird\nsings.\n{ASKED}"
    between = "" if prompt == "base" else BETWEEN
    expected = f"{BEFORE[prompt](kind)}{first}{between}{second}"
    (text,) = option_prompts([bird(kind)], prompt, demonstrations=[cat(kind)])
    assert text == expected
    (turns,) = option_prompts([bird(kind)], prompt, demonstrations=[cat(kind)], chat=True)
    assert turns == [{"role": "user", "content": expected}]


def test_one_prompt_in_one_piece() -> None:
    (text,) = option_prompts([bird("rc")], "shared", demonstrations=[cat("rc"), cat("qa")])
    assert (
        text
        == """\
Below are some examples of multiple-choice questions with six potential answers. \
For each question, only one option is correct.

Context: A cat walks.
Question: How many legs has a cat?
Choices:
A. 2
B. 3
C. 4
D. 5
E. I don't know
F. None of the above
Answer: C
Question: How many legs has a cat?
Choices:
A. 2
B. 3
C. 4
D. 5
E. I don't know
F. None of the above
Answer: C

Now make your best effort and select the correct answer for the following question. \
You only need to output the option.

Context: A bird
sings.
Question: Who flies?
Choices:
A. the bird
B. the fish
C. the dog
D. the cow
E. I don't know
F. None of the above
Answer:"""
    )


def test_each_item_by_its_own_kind() -> None:
    kinds = ["qa", "ds", None, "drs"]
    texts = option_prompts([bird(kind) for kind in kinds], "task", demonstrations=[cat("qa")])
    for text, kind in zip(texts, kinds, strict=True):
        before = WITH_CONTEXT.get(kind or "qa", "")
        context = f"{before}A bird\nsings.\n" if before else ""
        assert text == f"{TASK[kind or 'qa']}{SHOWN}{BETWEEN}{context}{ASKED}"
    assert option_prompts([]) == []
    assert option_prompts([bird("qa"), bird("qa", "")]) == [ASKED, ASKED]


def test_labels() -> None:
    assert labels(chat=False) == (" A", " B", " C", " D", " E", " F") == Options.labels
    assert labels(chat=True) == ("A", "B", "C", "D", "E", "F")


def changed(fields: Mapping[str, Any]) -> Item:
    return Item("x", {**bird("qa").fields, **fields}, "A")


def test_what_cannot_be_asked() -> None:
    with pytest.raises(InputError, match=r"item '.*' has no question and no options among"):
        option_prompts(Sums().items(1))
    with pytest.raises(InputError, match="item 'x' has no options among question"):
        option_prompts([Item("x", {"question": "?"}, "A")])
    with pytest.raises(InputError, match=r"item 'Who flies.' of kind 'rc' has no context: fill"):
        option_prompts([bird("rc", "")])
    with pytest.raises(InputError, match="item 'x': kind='mc': must be one of qa, rc"):
        option_prompts([changed({"kind": "mc"})])
    for options in ("abcdef", list("abcde"), tuple("abcdefg"), 6):
        with pytest.raises(InputError, match=r"item 'x': options=.* must be six texts"):
            option_prompts([changed({"options": options})])
    with pytest.raises(
        InputError, match=r"no prompt 'tasks', did you mean 'task'.* Known: base, shared, task"
    ):
        option_prompts([bird("qa")], "tasks")  # type: ignore[arg-type]
    prompts: tuple[Any, ...] = ("shared", "task")
    for prompt in prompts:
        with pytest.raises(InputError, match=rf"prompt='{prompt}' says that examples follow"):
            option_prompts([bird("qa")], prompt)
    with pytest.raises(InputError, match="demonstration 'x': answer='7': must be one of A to F"):
        option_prompts([cat("qa")], demonstrations=[Item("x", bird("qa").fields, "7")])
    with pytest.raises(InputError, match=r"item 'Who flies.' is one of the demonstrations"):
        option_prompts([cat("qa"), bird("qa")], demonstrations=[bird("qa")])
