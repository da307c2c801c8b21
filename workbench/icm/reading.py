"""Claims out of a user's rows: which columns, which words, and rows that are there twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.icm.claim import COLUMNS, Claim, Wording
from workbench.icm.columns import CLAIM, FORMS, Columns, Form, chosen_form, given_columns
from workbench.tasks.rows import TableRow, read_table

if TYPE_CHECKING:
    import pandas as pd

WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("true", "yes", "y", "t", "1", "correct"), True),
    **dict.fromkeys(("false", "no", "n", "f", "0", "incorrect"), False),
    **dict.fromkeys(("na", "n/a", "nan", "none", "null", "?", "unknown", "-"), None),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a source holds; see `testbeds.Testbed`."""

    claims: tuple[Claim, ...]
    test: tuple[Claim, ...]
    table: pd.DataFrame
    places: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Made:
    """A claim of a row; `whole` if the row's label is the claim's own."""

    number: int
    place: str
    claim: Claim
    grouped: bool
    whole: bool = True


_Side = dict[str, list[_Made]]
"""All that was made, by the claims' texts."""


def read(
    source: object,
    *,
    columns: Columns,
    test: object,
    wording: Wording,
    forms: Sequence[Form] = FORMS,
) -> Found:
    """Claims and held-out claims; for the arguments and errors see `testbeds.read_claims`."""
    labelled, held_out, table = _sides(source, "source", columns, wording, forms)
    if test is not None:
        if held_out:
            raise InputError('some rows have split "test" and test is given: give one of the two')
        own, split, _ = _sides(test, "test", columns, wording, forms)
        for text, made in (*own.items(), *split.items()):
            held_out.setdefault(text, []).extend(made)
    if not labelled:
        raise InputError('all rows have split "test", so that none is left to label')
    if both := [text for text in held_out if text in labelled]:
        here, there = held_out[both[0]][0], labelled[both[0]][0]
        raise InputError(
            f"{here.place}: {len(both)} test claims are to be labelled too, such as this one in "
            f"{there.place}: leave them out on one side, so that the test is held out"
        )
    notes: list[str] = []
    places = {t: tuple(one.number for one in made if one.whole) for t, made in labelled.items()}
    return Found(_claims(labelled, notes), _claims(held_out, notes), table, places, tuple(notes))


def put(template: str = CLAIM, **values: str) -> str:
    """A template with its columns filled in; braces in the values stay as they are."""
    return re.sub(COLUMNS, lambda found: values.get(found[1], found[0]), template).rstrip()


def gold_of(row: TableRow, column: str, words: Mapping[str, bool | None] = WORDS) -> bool | None:
    """A gold label, None where there is none.

    Raises:
        InputError: a word that is not known.
    """
    value = row.key(column)
    if value is None:
        return None
    if (word := value.casefold()) not in words:
        known = ", ".join(words)
        raise InputError(
            f"{row.place}: {column}={value!r:.60} must be one of {known} or be left out"
        )
    return words[word]


def _sides(
    source: object, what: str, columns: Columns, wording: Wording, forms: Sequence[Form]
) -> tuple[_Side, _Side, pd.DataFrame]:
    import pandas as pd

    rows, table = read_table(source, what)
    where = str(source) if isinstance(source, str | Path) else what
    given = given_columns(columns)
    extra = len(table.columns) - len(source.columns) if isinstance(source, pd.DataFrame) else 0
    form, names = chosen_form([*table.columns], given, forms, where)
    if extra == 1:
        names.setdefault("id", table.columns[0])
    template = wording.template or form.template
    if lost := [name for name in form.needs if f"{{{name}}}" not in template]:
        raise InputError(f"template={template!r:.80} must have {{{lost[0]}}}, as {where} has it")
    sides: tuple[_Side, _Side] = ({}, {})
    make = _pair if "first" in form.needs else _own
    for number, row in enumerate(rows):
        side = sides[_text(row, names, "split").casefold() == "test"]
        label = row.cells.get(names["id"]) if "id" in names else None
        known = label if isinstance(label, str) else _text(row, names, "id")
        default = f"{'' if what == 'source' else what + ' '}row {number}"
        for made in make(row, number, names, template, default):
            own = replace(made.claim, id=known if known.strip() else str(number))
            side.setdefault(own.text, []).append(replace(made, claim=own))
    return *sides, table


def _text(row: TableRow, names: Mapping[str, Any], name: str) -> str:
    return (row.key(names[name]) if name in names else None) or ""


def _own(
    row: TableRow, number: int, names: Mapping[str, Any], template: str, default: str
) -> list[_Made]:
    values = {n: row.text(names[n]).strip() for n in ("text", "question", "choice") if n in names}
    group = _text(row, names, "group") or values.get("question", "")
    gold = gold_of(row, names["gold"]) if "gold" in names else None
    claim = Claim(
        put(template, **values), group or default, _text(row, names, "answer_key") or None, gold
    )
    return [_Made(number, row.place, claim, bool(group))]


def _pair(
    row: TableRow, number: int, names: Mapping[str, Any], template: str, default: str
) -> list[_Made]:
    question = row.text(names["question"]).strip()
    first, second = (
        re.sub(r"\s*[\r\n]\s*", " ", row.text(names[name]).strip()) for name in ("first", "second")
    )
    if first == second:
        raise InputError(f"{row.place}: first and second are both {first!r:.60}, leave the row out")
    words = {**WORDS, "first": True, "second": False}
    gold = gold_of(row, names["gold"], words) if "gold" in names else None
    one = Claim(put(template, question=question, first=first, second=second), default, "A>B", gold)
    turned = put(template, question=question, first=second, second=first)
    other = Claim(turned, default, "B>A", None if gold is None else not gold)
    return [
        _Made(number, row.place, one, grouped=False),
        _Made(number, row.place, other, grouped=False, whole=False),
    ]


def _claims(side: _Side, notes: list[str]) -> tuple[Claim, ...]:
    """One claim for each text."""
    _note(side, notes, lambda made: made.claim.gold, "with different gold labels: none is used")
    _note(
        side, notes, lambda made: made.claim.group if made.grouped else None,
        "in different groups: the first is used",
    )  # fmt: skip
    claims = []
    for made in side.values():
        golds = {one.claim.gold for one in made} - {None}
        first = next((one.claim for one in made if one.grouped), made[0].claim)
        claim = replace(
            made[0].claim, group=first.group, gold=golds.pop() if len(golds) == 1 else None
        )
        claims.append(claim)
    return tuple(claims)


def _note(side: _Side, notes: list[str], key: Callable[[_Made], object], which: str) -> None:
    torn = [made for made in side.values() if len({key(one) for one in made} - {None}) > 1]
    if torn:
        rows = ", ".join(str(one.number) for one in torn[0])
        more = f"; so are those of {len(torn) - 1} other claims" if len(torn) > 1 else ""
        notes.append(f"rows {rows} are the same claim {which}{more}")
