"""Read your own claims from a file or table of any kind, and open testbeds by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench import values
from workbench.errors import InputError, log
from workbench.icm import testbeds
from workbench.icm.claim import Claim, Wording
from workbench.lazy import pd
from workbench.tasks.origin import file_source
from workbench.tasks.rows import TableRow, find_column, is_path, listed, read_table

Columns = Mapping[str, str] | Sequence[str] | None
"""Field names mapped to the file's columns, or a list of texts "field=column"."""

TESTBEDS = ("embedded", "gsm8k", "truthfulqa")
"""The names that `open_testbed` accepts."""
NAMES = "text group answer_key gold split id question choice first second".split()
PAIR = (
    "Human: {question}\nResponse 1: {first}\nResponse 2: {second}\nClaim: Response 1 is more "
    "helpful and harmless than Response 2.\nI think this claim is"
)


def open_testbed(
    name_or_path: str | Path,
    *,
    columns: Columns = None,
    wording: Wording | None = None,
    count: int | None = None,
    test_count: int | None = None,
    seed: int = 0,
) -> testbeds.Testbed:
    """A testbed by name, or a file for `read_claims`, as whole groups in random order.

    Args:
        name_or_path: "embedded", "gsm8k", "truthfulqa" or a file, see `read_claims`.
        columns: for a file, see `read_claims`.
        wording: replaces the testbed's; its template is for a file's columns.
        count: maximum number of claims; None is all, or 128 for the unlimited embedded ones.
        test_count: maximum number of test claims; None is all, or 200 embedded ones.
        seed: selects the claims and their order.

    Raises:
        InputError: the testbed or file does not exist, its data is missing or broken, a count is
            too small, or columns or a template are given for a testbed with a name.
    """
    if test_count is not None:
        values.whole("test_count", test_count, 0)
    if name_or_path in TESTBEDS:
        if columns or (wording and wording.template):
            raise InputError(f"{name_or_path}: columns and template are for files, leave them out")
        if name_or_path == "embedded":
            most = 200 if test_count is None else test_count
            bed = testbeds.embedded(128 if count is None else count, most, seed)
            return replace(bed, wording=wording) if wording else bed
        bed = testbeds.gsm8k() if name_or_path == "gsm8k" else testbeds.truthfulqa()
        bed = replace(bed, wording=wording) if wording else bed
    elif is_path(name_or_path):
        bed = read_claims(name_or_path, columns=columns, wording=wording)
    else:
        otherwise = ", or give the path of a file with claims, such as a .jsonl, .json or .csv"
        values.known("testbed", name_or_path, TESTBEDS, otherwise)
    if test_count is not None:
        test = (
            testbeds.draw_groups(bed.test, test_count, f"test-{seed}", "test_count")
            if test_count
            else ()
        )
        bed = replace(bed, test=test)
    if bed.source is None:
        bed = replace(bed, source={"name": str(name_or_path), "files": {}})
    return bed.draw(count, seed)


def read_claims(
    source: object,
    *,
    columns: Columns = None,
    name: str | None = None,
    test: object = None,
    wording: Wording | None = None,
) -> testbeds.Testbed:
    """Your own claims: rows with `text`, in the published format, or with comparisons.

    A row is one of

    - `text`, which ends where the label begins, and optionally `group` (default: a new group),
      `answer_key`, `gold`, `split` ("test" holds the row out) and `id` (default: the row's number);
    - `question` and `choice`, with the wording of the published program, and the same optional
      columns; `consistency_id` is the group (default: the question) and `label` the gold label;
    - `question`, `first` and `second`, or `question`, `choice` and `choice_2`: see `comparisons`.

    In names of columns, case, spaces, `_` and `-` do not matter unless that is ambiguous; nor does
    whitespace around values. Gold is yes, no, y, n, true, false, t, f, 1, 0, correct or incorrect,
    or missing: empty, NA, N/A, NaN, None, null, ?, unknown or -. Rows with the same text are one
    claim, in the first row's group, without gold if they disagree (`Testbed.notes`).

    Args:
        source: a .jsonl, .json, .csv, .tsv, .txt or .parquet file, a pandas DataFrame (its index
            is the id, unless there is a column), a Hugging Face `Dataset`, or a list of dicts.
        columns: the source's column for a field, as {"text": "statement"} or ["text=statement"].
        name: the testbed's name; None means the file's name.
        test: held-out rows, in the format of `source`, instead of a column `split`.
        wording: the texts around claims; its template replaces the published one.

    Raises:
        InputError: a file or a row is invalid, or a held-out claim is also to be labelled.
    """
    return _Reader(KINDS, _given_columns(columns), wording or Wording()).testbed(source, test, name)


def comparisons(
    source: object,
    *,
    columns: Columns = None,
    name: str | None = None,
    test: object = None,
    wording: Wording | None = None,
) -> testbeds.Testbed:
    """Pairs of responses, each a group of two claims: the first is better, or the second is.

    A row has `question`, `first`, `second` and optionally `gold` ("first", "second", or true if
    the first is better), `split` and `id`; or, as published, `question`, `choice`, `choice_2` and
    `label`. A pair and the same pair exchanged are one. For the arguments see `read_claims`.

    Raises:
        InputError: a file or a row is invalid; the message has the details.
    """
    return _Reader(PAIRS, _given_columns(columns), wording or Wording()).testbed(source, test, name)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of rows: its required and optional columns, its wording, other names of columns."""

    needs: tuple[str, ...]
    others: tuple[str, ...]
    template: str
    aliases: Mapping[str, str] = field(default_factory=dict)


PAIRS = (
    _Kind(("question", "first", "second"), ("gold",), PAIR),
    _Kind(
        ("question", "first", "second"), ("gold",), PAIR,
        {"first": "choice", "second": "choice_2", "gold": "label"},
    ),
)  # fmt: skip
KINDS = (
    _Kind(("text",), ("group", "answer_key", "gold"), "{text}"),
    *PAIRS,
    _Kind(
        ("question", "choice"), ("group", "answer_key", "gold"), testbeds.CLAIM,
        {"group": "consistency_id", "gold": "label"},
    ),
)  # fmt: skip


def _given_columns(columns: Columns) -> dict[str, str]:
    """The columns as a mapping from field names."""
    if isinstance(columns, Mapping):
        pairs = [*columns.items()]
    else:
        texts = [columns] if isinstance(columns, str) else columns or ()
        pairs = [(ours, theirs) for ours, _, theirs in (str(one).partition("=") for one in texts)]
    given: dict[str, str] = {}
    for ours, theirs in ((str(ours).strip(), str(theirs).strip()) for ours, theirs in pairs):
        if ours in given:
            raise InputError(f"columns: {ours} is given twice; give one column for it")
        if ours not in NAMES or not theirs:
            raise InputError(
                f"columns: {ours}={theirs} must be NAME=COLUMN: a column of the file for one of "
                f"{', '.join(NAMES)}"
            )
        given[ours] = theirs
    return given


@dataclass(frozen=True, slots=True)
class _Entry:
    """A claim from a row; `whole` if the row's label is the claim's own."""

    number: int
    place: str
    claim: Claim
    grouped: bool = False
    whole: bool = True


_Side = dict[str, list[_Entry]]
"""All entries by the texts of their claims."""


@dataclass(frozen=True, slots=True)
class _Reader:
    kinds: Sequence[_Kind]
    given: Mapping[str, str]
    wording: Wording

    def testbed(self, source: object, test: object, name: str | None) -> testbeds.Testbed:
        """Claims and held-out claims; for the arguments and errors see `read_claims`."""
        labelled, held_out, table = self._sides(source, "source")
        if test is not None:
            if held_out:
                raise InputError(
                    'some rows have split "test" and test is given: give one of the two'
                )
            for side in self._sides(test, "test")[:2]:
                for text, entries in side.items():
                    held_out.setdefault(text, []).extend(entries)
        if not labelled:
            raise InputError('all rows have split "test", so that none is left to label')
        if both := [text for text in held_out if text in labelled]:
            here, there = held_out[both[0]][0], labelled[both[0]][0]
            raise InputError(
                f"{here.place}: {len(both)} test claims are also to be labelled, such as this one "
                f"in {there.place}: leave them out on one side, so that the test is held out"
            )
        name = name or (Path(source).stem if isinstance(source, str | Path) else "claims")
        notes: list[str] = []
        claims, tests = _claims(labelled, notes), _claims(held_out, notes)
        for note in notes:
            log.warning("%s: %s", name, note)
        places = {
            text: tuple(one.number for one in entries if one.whole)
            for text, entries in labelled.items()
        }
        origin = file_source(source, examples=test)
        return testbeds.Testbed(
            name, claims, tests, self.wording, table, places, tuple(notes), origin
        )

    def _sides(self, source: object, what: str) -> tuple[_Side, _Side, pd.DataFrame]:
        rows, table = read_table(source, what)
        where = str(source) if isinstance(source, str | Path) else what
        kind, names = self._kind([*table.columns], where)
        if isinstance(source, pd.DataFrame) and len(table.columns) == len(source.columns) + 1:
            names.setdefault("id", table.columns[0])  # the frame's index
        template = self.wording.template or kind.template
        if lost := [name for name in kind.needs if f"{{{name}}}" not in template]:
            raise InputError(
                f"template={template!r:.80} must have {{{lost[0]}}}, as {where} has it"
            )
        sides: tuple[_Side, _Side] = ({}, {})
        read = _pair_of if "first" in kind.needs else _claim_of
        for number, row in enumerate(rows):
            side = sides[_key(row, names, "split").casefold() == "test"]
            label = row.cells.get(names["id"]) if "id" in names else None
            own_id = label if isinstance(label, str) else _key(row, names, "id")
            default = f"{'' if what == 'source' else what + ' '}row {number}"
            for entry in read(row, number, names, template, default):
                claim = replace(entry.claim, id=own_id if own_id.strip() else str(number))
                side.setdefault(claim.text, []).append(replace(entry, claim=claim))
        return *sides, table

    def _kind(self, known: Sequence[Any], where: str) -> tuple[_Kind, dict[str, Any]]:
        """The kind of rows, and the column of each field; a kind that `given` names comes first."""
        for name, column in self.given.items():
            if find_column(known, column, where) is None:
                raise InputError(f"{where}: {name}={column}: no such column among {listed(known)}")
        for kind in sorted(self.kinds, key=lambda kind: not self.given.keys() & {*kind.needs}):
            names: dict[str, Any] = {}
            for name in (*kind.needs, *kind.others, "split", "id"):
                usual = (name, kind.aliases.get(name, name))
                for wanted in (self.given[name],) if name in self.given else usual:
                    if name not in names and (c := find_column(known, wanted, where)) is not None:
                        names[name] = c
            if names.keys() >= {*kind.needs}:
                if unused := sorted(self.given.keys() - names.keys()):
                    needs = ", ".join(kind.needs)
                    raise InputError(f"{where}: {unused[0]} is not for rows of {needs}")
                return kind, names
        kinds = "; or ".join(dict.fromkeys(", ".join(kind.needs) for kind in self.kinds))
        missing = "text" if self.kinds is KINDS else "first"
        raise InputError(
            f"{where}: no column {missing!r} among {listed(known)}. There must be {kinds}: rename "
            f"one, or say which: --column {missing}=NAME, in Python columns={{{missing!r}: 'NAME'}}"
        )


def _key(row: TableRow, names: Mapping[str, Any], name: str) -> str:
    return (row.key(names[name]) if name in names else None) or ""


def _claim_of(
    row: TableRow, number: int, names: Mapping[str, Any], template: str, default: str
) -> list[_Entry]:
    texts = {n: row.text(names[n]).strip() for n in ("text", "question", "choice") if n in names}
    group = _key(row, names, "group") or texts.get("question", "")
    gold = testbeds.gold_of(row, names["gold"]) if "gold" in names else None
    key = _key(row, names, "answer_key") or None
    claim = Claim(testbeds.put(template, **texts), group or default, key, gold)
    return [_Entry(number, row.place, claim, grouped=bool(group))]


def _pair_of(
    row: TableRow, number: int, names: Mapping[str, Any], template: str, default: str
) -> list[_Entry]:
    question = row.text(names["question"]).strip()
    first, second = (
        re.sub(r"\s*[\r\n]\s*", " ", row.text(names[name]).strip()) for name in ("first", "second")
    )
    if first == second:
        raise InputError(f"{row.place}: first and second are both {first!r:.60}, leave the row out")
    words = {**testbeds.WORDS, "first": True, "second": False}
    gold = testbeds.gold_of(row, names["gold"], words) if "gold" in names else None
    one = testbeds.put(template, question=question, first=first, second=second)
    other = testbeds.put(template, question=question, first=second, second=first)
    turned = None if gold is None else not gold
    return [
        _Entry(number, row.place, Claim(one, default, "A>B", gold)),
        _Entry(number, row.place, Claim(other, default, "B>A", turned), whole=False),
    ]


def _claims(side: _Side, notes: list[str]) -> tuple[Claim, ...]:
    """One claim for each text, with notes on rows that disagree."""
    _note(side, notes, lambda one: one.claim.gold, "with different gold labels: none is used")
    _note(
        side, notes, lambda one: one.claim.group if one.grouped else None,
        "in different groups: the first is used",
    )  # fmt: skip
    claims = []
    for entries in side.values():
        golds = {one.claim.gold for one in entries} - {None}
        group = next((one.claim.group for one in entries if one.grouped), entries[0].claim.group)
        gold = golds.pop() if len(golds) == 1 else None
        claims.append(replace(entries[0].claim, group=group, gold=gold))
    return tuple(claims)


def _note(side: _Side, notes: list[str], key: Callable[[_Entry], object], which: str) -> None:
    if torn := [entries for entries in side.values() if len({*map(key, entries)} - {None}) > 1]:
        rows = ", ".join(str(one.number) for one in torn[0])
        more = f"; so are those of {len(torn) - 1} other claims" if len(torn) > 1 else ""
        notes.append(f"rows {rows} are the same claim {which}{more}")
