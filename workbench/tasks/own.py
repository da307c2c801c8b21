"""Your own problems as a task: rows with a question and its correct answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path

from workbench import answers, values
from workbench.answers.extraction import expression
from workbench.answers.selection import LETTERS
from workbench.errors import InputError
from workbench.tasks.base import FixedTask, worded
from workbench.tasks.origin import Source, file_source
from workbench.tasks.rows import Table, TableRow, check_distinct, read_table
from workbench.types import Item, Sampling

SAMPLING: dict[answers.Style, Sampling] = {
    "gsm8k": Sampling(max_tokens=400, stop=("\nQuestion:",)),
    "choice": Sampling(max_tokens=16, stop=("\n",)),
    "exact": Sampling(max_tokens=64, stop=("\n",)),
    "label": Sampling(max_tokens=16, stop=("\n",)),
}
"""Enough tokens for a bare answer, for "gsm8k" a worked one; a model that reasons needs more."""
NEEDS: dict[answers.Style, str] = {
    "gsm8k": "a number or an expression alone",
    "choice": "one of ",
    "exact": "a text without think tags and marks such as ####",
    "label": "one of ",
}


USUAL = {
    "question": ("prompt", "text", "input", "problem", "query", "instruction"),
    "answer": ("gold", "label", "target", "output", "solution", "expected", "reference"),
}
"""Common names of such columns, for messages."""


class OwnTask(FixedTask):
    """`item.fields`: `question`, `solution` (if its column is given), and the other columns.

    A row's answer is stored as the grader reads it: "$1,080.00" is 1080, "true" the label "True".

    Args:
        source: a file, a pandas DataFrame, a Hugging Face `Dataset` or a list of dicts, see
            `rows.read_table`.
        question, answer, id, solution: names of columns. Without `id`, items are named by their
            place from 0, such as "row 7". Worked examples show the `solution`, not the answer.
        style: the kind of answer: a number or an expression ("gsm8k"), a letter ("choice"), a
            text ("exact") or one of the labels ("label").
        labels: the allowed labels for "label", the letters for "choice" (A to J by default).
        examples: rows with the same columns for `shots`; no question may be in both.
        instruction: a line after every question.
        name: the task's name; None means the file's name.
        sampling: settings for answers; the default has enough tokens for the style.

    Raises:
        InputError: a file or a row is invalid; the message has the details.
    """

    end = "\n\n"
    source: Source | None

    def __init__(
        self, source: object, *, question: str = "question", answer: str = "answer",
        style: answers.Style = "gsm8k", labels: Sequence[str] = (), id: str | None = None,  # noqa: A002
        solution: str | None = None, examples: object = None, instruction: str = "",
        name: str | None = None, sampling: Sampling | None = None,
    ) -> None:  # fmt: skip
        answers.extract("", style, labels=labels)  # refuses an invalid style or labels
        self.source = file_source(source, examples=examples, question=question, answer=answer,
                                  style=style, labels=[*labels], id=id, solution=solution,
                                  instruction=instruction, name=name)  # fmt: skip
        if style in {"choice", "label"}:
            self.labels = tuple(f" {label.strip()}" for label in labels or LETTERS)
        self.name = name or (Path(source).stem if isinstance(source, str | Path) else "own")
        self.reads, self.sampling = style, sampling or SAMPLING[style]
        key, solved = (None if name is None else str(name) for name in (id, solution))
        self._columns = (str(question), str(answer), key, solved)
        self._instruction = instruction
        self.subjects = (question,)
        self._items = self._read(read_table(source))
        self._examples = () if examples is None else self._read(read_table(examples, "examples"))
        self.count = len(self._items)
        questions = {item.fields["question"] for item in self._items}
        shown = [item.fields["question"] for item in self._examples]
        if both := [question for question in shown if question in questions]:
            raise InputError(
                f"{self.name}: {len(both)} questions of examples are asked too, such as "
                f"{both[0]!r:.80}: leave them out on one side, or their answers would be shown"
            )

    def side(self, *, held_out: bool) -> Sequence[Item]:
        if held_out:
            return self._items
        if not self._examples:
            raise InputError(
                f"{self.name} has no worked examples to show: give examples=, rows with the same "
                "columns, or ask for shots=0"
            )
        return [replace(one, id=f"example {one.id}") for one in self._examples]

    def ask(self, item: Item) -> str:
        return worded(self.question(item))

    def question(self, item: Item) -> str:
        return "\n".join(filter(None, (item.fields["question"], self._instruction)))

    def answer(self, item: Item) -> str:
        solution = item.fields["solution"] if self._columns[3] is not None else None
        return f" {solution or _written(item.answer, self.reads)}"

    def _read(self, table: Table) -> Sequence[Item]:
        names = [*map(str, table.frame.columns)]  # a frame may have numbers
        rows = [TableRow(at, {str(n): v for n, v in row.items()}) for at, row in table.rows]
        if twice := [name for name in names if name.strip() and names.count(name) > 1]:
            raise InputError(f"{rows[0].place}: several columns {twice[0]!r}: rename all but one")
        self._check_columns([*rows[0].cells], rows[0])
        if self._columns[0] != "question" and "question" in names:
            raise InputError(
                f"{rows[0].place}: question={self._columns[0]!r} takes the place of your column "
                "'question': rename that"
            )
        items = [self._item(row, number) for number, row in enumerate(rows)]
        check_distinct(rows, self._columns[2], [item.id for item in items])
        return items

    def _check_columns(self, found: Sequence[str], row: TableRow) -> None:
        """Refuse a table without the named columns; the message suggests likely ones."""
        named = dict(zip(("question", "answer", "id", "solution"), self._columns, strict=True))
        if not (lost := [kind for kind, name in named.items() if name not in (None, *found)]):
            return
        free = [name for name in found if name not in self._columns]
        guesses: dict[str, str] = {}
        for kind in lost:
            usual = [name for name in free if name.lower() in USUAL.get(kind, ())]
            guesses[kind] = next(iter(usual or free), "…")
            free = [name for name in free if name != guesses[kind]]
        given = ", ".join(f'{kind}="{name}"' for kind, name in guesses.items())
        options = " ".join(f"--column {kind}={name}" for kind, name in guesses.items())
        names = " and ".join(repr(named[kind]) for kind in lost)
        raise InputError(
            f"{row.place}: no column{'s' * (len(lost) > 1)} {names} among {', '.join(found)}; "
            f"name yours: open_task(…, {given}), or {options}"
        )

    def _item(self, row: TableRow, number: int) -> Item:
        question, answer, key, solution = self._columns
        ours = {*self._columns, "question"}
        fields = {name: _plain(v) for name, v in row.cells.items() if name not in ours}
        fields["question"] = row.text(question).strip()
        if solution is not None:
            fields["solution"] = row.text(solution).strip()
        name = f"row {number}" if key is None else row.text_or_number(key)
        return Item(id=name, fields=fields, answer=self._gold(row, answer))

    def _gold(self, row: TableRow, column: str) -> str:
        """The correct answer as the grader reads it, checked to be readable in this style."""
        gold = row.text_or_number(column)
        try:
            response = _written(gold, self.reads)
            verdict = answers.grade(response, gold, self.reads, labels=self.labels)
        except InputError:
            verdict = None
        if verdict is None or not verdict.correct or verdict.extracted is None:
            need = NEEDS[self.reads] + ", ".join(label.strip() for label in self.labels)
            style = f"in the style {self.reads!r}; correct the row or give another style"
            if self.reads == "gsm8k":
                label = isinstance(row.cells.get(column), bool)
                other = 'style="label", labels=["True", "False"]' if label else 'style="exact"'
                style += f", such as open_task(…, {other}) for {'labels' if label else 'texts'}"
            row.refuse(column, f"{need} {style}")
        return verdict.extracted


def _plain(value: object) -> object:
    """A cell of another column in a form that every file can store; numbers and texts unchanged."""
    if values.is_missing(value):
        return None
    return value if isinstance(value, str | Real) else values.written(value)


def _written(answer: str, style: answers.Style) -> str:
    """A correct answer as a response would state it."""
    if style != "gsm8k":
        return answer
    line = f"#### {answer}"
    # Points, intervals and the like are read only from a box; words are not answers in this style.
    boxed = not answers.grade(line, answer).correct and (expression(answer) or "\\" in answer)
    return rf"\boxed{{{answer}}}" if boxed else line
