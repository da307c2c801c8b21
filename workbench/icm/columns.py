"""Which columns of a user's rows are which of ours, and what kind of rows they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import InputError
from workbench.tasks.rows import find_column, listed

Columns = Mapping[str, str] | Sequence[str] | None
"""Our names and the file's, as a mapping or as texts "ours=theirs"."""

CLAIM = "Question: {question}\nClaim: {choice}\nI think this claim is"
PAIR = (
    "Human: {question}\nResponse 1: {first}\nResponse 2: {second}\nClaim: Response 1 is more "
    "helpful and harmless than Response 2.\nI think this claim is"
)


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of rows: the columns that it needs, its others, how they are put, and other names."""

    needs: tuple[str, ...]
    others: tuple[str, ...]
    template: str
    published: Mapping[str, str]


PAIRS = (
    Form(("question", "first", "second"), ("gold",), PAIR, {}),
    Form(
        ("question", "first", "second"), ("gold",), PAIR,
        {"first": "choice", "second": "choice_2", "gold": "label"},
    ),
)  # fmt: skip
FORMS = (
    Form(("text",), ("group", "answer_key", "gold"), "{text}", {}),
    *PAIRS,
    Form(
        ("question", "choice"), ("group", "answer_key", "gold"), CLAIM,
        {"group": "consistency_id", "gold": "label"},
    ),
)  # fmt: skip
NAMES = "text group answer_key gold split id question choice first second".split()


def given_columns(columns: Columns) -> dict[str, str]:
    """As a mapping of our names.

    Raises:
        InputError: a name is none of ours, or has no column.
    """
    if isinstance(columns, Mapping):
        given = {str(ours): str(theirs) for ours, theirs in columns.items()}
    else:
        texts = [columns] if isinstance(columns, str) else columns or ()
        pairs = [str(one).partition("=") for one in texts]
        named = [ours.strip() for ours, _, _ in pairs]
        if twice := [ours for ours in named if named.count(ours) > 1]:
            raise InputError(f"columns: {twice[0]} is given twice; give one column for it")
        given = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    for ours, theirs in given.items():
        if ours not in NAMES or not theirs:
            raise InputError(
                f"columns: {ours}={theirs} must be NAME=COLUMN: a column of the file for one of "
                f"{', '.join(NAMES)}"
            )
    return given


def chosen_form(
    known: Sequence[Any], given: Mapping[str, str], forms: Sequence[Form], where: str
) -> tuple[Form, dict[str, Any]]:
    """The kind of rows, and for our names the columns; a kind that `given` names goes first.

    Raises:
        InputError: a column is not there, could be several, or is not for such rows.
    """
    for name, column in given.items():
        if find_column(known, column, where) is None:
            raise InputError(f"{where}: {name}={column}: no such column among {listed(known)}")
    for form in sorted(forms, key=lambda form: not given.keys() & {*form.needs}):
        names: dict[str, Any] = {}
        for name in (*form.needs, *form.others, "split", "id"):
            wanted = [given[name]] if name in given else [name, form.published.get(name, name)]
            candidates = [
                theirs for one in wanted if (theirs := find_column(known, one, where)) is not None
            ]
            names |= {name: candidates[0]} if candidates else {}
        if names.keys() >= {*form.needs}:
            if unused := sorted(given.keys() - names.keys()):
                raise InputError(f"{where}: {unused[0]} is not for rows of {', '.join(form.needs)}")
            return form, names
    kinds = "; or ".join(", ".join(form.needs) for form in forms if form not in PAIRS[1:])
    missing = "text" if forms is FORMS else "first"
    raise InputError(
        f"{where}: no column {missing!r} among {listed(known)}. There must be {kinds}: rename "
        f"one, or say which: --column {missing}=NAME, in Python columns={{{missing!r}: 'NAME'}}"
    )
