"""Questions with six options: five published tasks, your own files, the embedded task.

A file has the layout of Ye et al. 2024 (arXiv 2401.12794): rows of `id`, `source`, `question`,
`choices` (A to F), `answer` (a letter) and, in some, `context` and `subcategory`.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from workbench import values
from workbench.errors import InputError
from workbench.tasks.base import first_items, shuffled
from workbench.tasks.options import LETTERS, Options
from workbench.tasks.origin import Source, file_source, sums
from workbench.tasks.published import published_file
from workbench.tasks.rows import TableRow, check_distinct, is_path, read_rows
from workbench.types import Item

Kind = Literal["qa", "rc", "ci", "drs", "ds"]
"""Question answering, reading comprehension, commonsense inference, dialogue response selection,
document summarization: all but the first have a context."""
KINDS: tuple[Kind, ...] = get_args(Kind)


class Published(NamedTuple):
    """A published task: its file, its kind, and the ids of the rows shown as examples."""

    file: str
    kind: Kind
    shown: tuple[str, ...]


FIVE = ("1", "3", "5", "7", "9")
"""The published scores leave these rows out in every task, shown or not."""
PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "mmlu": Published("mmlu_10k.json", "qa", FIVE),
        "cosmosqa": Published("cosmosqa_10k.json", "rc", FIVE),
        "hellaswag": Published("hellaswag_10k.json", "ci", FIVE),
        "halueval_dialogue": Published("halu_dialogue.json", "drs", FIVE[2:]),
        "halueval_summarization": Published("halu_summarization.json", "ds", FIVE[4:]),
    }
)


class MultipleChoice:
    """A task of six options. `item.fields`: `question`, `options` (six texts), `kind`, `group` (""
    if there is none) and, if there is one, `context`.

    Args:
        name: the task's name.
        kind: the kind of question.
        items: the items, in the order of the file.
        demonstrations: worked examples that all items share; none of them is in `items`.
    """

    split = "test"
    difficulty = "group"
    source: Source | None = None

    def __init__(
        self, name: str, kind: Kind, items: Sequence[Item], demonstrations: Sequence[Item] = ()
    ) -> None:
        self.name, self.kind = name, kind
        self.demonstrations = tuple(demonstrations)
        self._items = tuple(items)

    def items(self, count: int | None = None, seed: int = 0) -> list[Item]:
        """`count` items in random order, the same for the same seed; None is all, in file order.

        Raises:
            InputError: `count` is below 1 or above the number of items.
        """
        if count is None:
            return list(self._items)
        order = shuffled(self._items, random.Random(f"{self.name}-{seed}"))
        return first_items(order, count, self.name)


class _Embedded(MultipleChoice):
    """The embedded task, whose items are generated on demand; `group` is their level."""

    def __init__(self, demonstrations: int) -> None:
        # A suitable seed: a model copies the letter if all examples have the same one.
        drawn = Options().stream(random.Random("demonstrations"), held_out=False)
        super().__init__(Options.name, "qa", (), [*map(_by_level, islice(drawn, demonstrations))])

    def items(self, count: int | None = None, seed: int = 0) -> list[Item]:
        return [*map(_by_level, Options().items(count, seed))]


def _by_level(item: Item) -> Item:
    fields = {name: item.fields[name] for name in ("question", "options")}
    return replace(item, fields={**fields, "kind": "qa", "group": item.fields["level"]})


def open_choices(
    name_or_file: str | Path, /, *, kind: Kind = "qa", demonstrations: int = 0
) -> MultipleChoice:
    """A task of six options.

    Args:
        name_or_file: "options" (the embedded task), one of `PUBLISHED` (from the folder
            `uncertainty` of `$WORKBENCH_DATA`, else from the Hugging Face hub), or the path of a
            .json, .jsonl or .csv file with the same columns. Columns A to F can replace
            `choices`; a row without `id` is named by its place.
        kind: the kind of question in a file; all but "qa" show the column `context`.
        demonstrations: number of worked examples. A file's first rows are used, and not asked;
            a published task always shows its own.

    Raises:
        InputError: an unknown task, arguments that it does not accept, or an invalid file.
    """
    values.known("kind", kind, KINDS)
    demonstrations = values.whole("demonstrations", demonstrations, 0)
    given = {"kind": kind, "demonstrations": demonstrations}
    if is_path(name_or_file):
        task = _own(Path(name_or_file), kind, demonstrations)
        task.source = file_source(name_or_file, **given)
        return task
    otherwise = ", or give the path of a .json, .jsonl or .csv file"
    name = values.known("six-option task", name_or_file, [Options.name, *PUBLISHED], otherwise)
    if kind not in {"qa", its_kind := PUBLISHED[name].kind if name in PUBLISHED else "qa"}:
        raise InputError(f"kind={kind!r}: {name} is {its_kind!r}; leave kind out")
    task = _published(name, demonstrations) if name in PUBLISHED else _Embedded(demonstrations)
    task.source = {"name": name, "arguments": given, "files": {}}
    if name in PUBLISHED:
        task.source |= {"files": sums(published_file(f"uncertainty/{PUBLISHED[name].file}"))}
    return task


def _published(name: str, demonstrations: int) -> MultipleChoice:
    file, kind, shown = PUBLISHED[name]
    if demonstrations not in {0, len(shown)}:
        raise InputError(
            f"demonstrations={demonstrations}: {name} always shows its {len(shown)} published "
            "ones; leave demonstrations out"
        )
    path = published_file(f"uncertainty/{file}")
    items = {item.id: item for item in _read(path, kind)}
    if missing := [key for key in shown if key not in items]:
        raise InputError(
            f"{path}: no row has id={missing[0]}, which {name} shows as an example; fetch the "
            "whole file"
        )
    if not (questions := [item for item in items.values() if item.id not in FIVE]):
        raise InputError(
            f"{path} has no rows but {', '.join(FIVE)}, which are not asked; fetch the whole file"
        )
    return MultipleChoice(name, kind, questions, [items[key] for key in shown])


def _own(path: Path, kind: Kind, demonstrations: int) -> MultipleChoice:
    items = _read(path, kind)
    if kind == "qa" and (lost := [item for item in items if "context" in item.fields]):
        raise InputError(
            f"{path}: item {lost[0].id!r:.60} has a context, which kind='qa' does not show; give "
            f"one of {', '.join(KINDS[1:])} as kind, or drop the column"
        )
    if demonstrations >= len(items):
        raise InputError(
            f"demonstrations={demonstrations}: {path} has {len(items)} rows, so that none would be "
            "left to ask; show fewer"
        )
    return MultipleChoice(path.stem, kind, items[demonstrations:], items[:demonstrations])


def _read(path: Path, kind: Kind) -> list[Item]:
    rows = read_rows(path)
    ids = [row.key("id") or f"row {number}" for number, row in enumerate(rows)]
    check_distinct(rows, "id", ids)
    return [_item(row, key, kind) for row, key in zip(rows, ids, strict=True)]


def _item(row: TableRow, key: str, kind: Kind) -> Item:
    fields = {"question": row.text("question"), "options": _options(row), "kind": kind}
    if row.cells.get("context") not in (None, ""):
        fields["context"] = row.text("context")
    fields["group"] = row.key("subcategory") or row.key("source") or ""
    if (answer := row.text("answer").strip()) not in LETTERS:
        row.refuse("answer", f"one of {', '.join(LETTERS)}")
    return Item(id=key, fields=fields, answer=answer)


def _options(row: TableRow) -> tuple[str, ...]:
    letters = {name: row.cells[name] for name in row.cells if name in {*string.ascii_uppercase}}
    options = TableRow(row.place, letters)
    if "choices" in row.cells or not letters:
        options = TableRow(f"{row.place}: choices", row.cells.get("choices", ()))
        if not isinstance(options.cells, Mapping):
            row.refuse("choices", "six texts by A to F; or leave it out and give columns A to F")
    if {*options.cells} != {*LETTERS}:
        names = ", ".join(map(str, options.cells))
        raise InputError(
            f"{options.place}: {len(options.cells)} options ({names:.60}), must be the six A to F; "
            "add or drop some, the last two are I don't know and None of the above"
        )
    texts = []
    for letter in LETTERS:
        cell = options.cells[letter]
        # Numbers as they are printed: the published prompts show 12.0 as 12.0.
        texts.append(str(cell) if isinstance(cell, int | float) else options.text(letter))
    return tuple(texts)
