"""Testbeds: claims to be labelled, and claims held out to see what the labels are worth.

A gold label is passed on and nothing else: text, group, key and order are made without it.
"""

from __future__ import annotations

import difflib
import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from workbench.answers import canonical
from workbench.errors import InputError
from workbench.icm.claim import Claim, Wording, check_claims
from workbench.icm.columns import PAIRS, Columns
from workbench.icm.reading import Found, gold_of, put, read
from workbench.icm.table import check_columns
from workbench.tasks import TruthfulQA
from workbench.tasks.claims import Claims, Equation, equations
from workbench.tasks.published import CALCULATION, published_file
from workbench.tasks.rows import TableRow, read_rows
from workbench.types import Item

if TYPE_CHECKING:
    import pandas as pd

TESTBEDS = ("embedded", "gsm8k", "truthfulqa")
"""The names that `open_testbed` knows."""
PATIENCE = 20_000
"""How many made-up problems are looked at before there are no more new ones."""

log = logging.getLogger("workbench")


@dataclass(frozen=True, slots=True)
class Testbed:
    """Claims and how they are put.

    Attributes:
        name: what it is called in tables.
        claims: to be labelled.
        test: held out; may be empty.
        wording: the words around the claims.
        table: a user's file as it came in, all rows and columns; None for the built-in testbeds.
        places: for the text of each claim to be labelled the rows of `table` that it stands for (of
            a comparison: that its first response is better). The rows in none are held out.
        notes: what was decided in reading the file, such as on rows that contradict each other.

    Raises:
        InputError: the claims cannot be labelled, or a test claim is among them.
    """

    __test__: ClassVar[bool] = False  # pytest takes it for a test by its name

    name: str
    claims: tuple[Claim, ...]
    test: tuple[Claim, ...] = ()
    wording: Wording = field(default_factory=Wording)
    table: pd.DataFrame | None = field(default=None, compare=False, repr=False)
    places: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", check_claims(self.claims))
        object.__setattr__(self, "test", check_claims(self.test, "test") if self.test else ())
        known = {claim.text for claim in self.claims}
        if both := [claim.text for claim in self.test if claim.text in known]:
            raise InputError(
                f"{self.name}: {len(both)} test claims are to be labelled too, such as "
                f"{both[0]!r:.80}: leave them out on one side, so that the test is held out"
            )

    def draw(self, count: int | None, seed: int = 0) -> Testbed:
        """Whole groups in random order, up to `count` claims (None: all); the test stays.

        Raises:
            InputError: `count` is below 1 or below the size of the smallest group.
        """
        return replace(self, claims=_drawn(self.claims, count, random.Random(f"draw-{seed}")))


def parts_of(
    claims: Sequence[Claim] | Testbed, wording: Wording | None
) -> tuple[tuple[Claim, ...], Wording]:
    """What a search needs of claims or of a testbed, whose own wording counts if there is none.

    Raises:
        InputError: the claims cannot be labelled, or the file has columns of the labels' names.
    """
    if not isinstance(claims, Testbed):
        return check_claims(claims), wording or Wording()
    check_columns(claims)
    return claims.claims, wording or claims.wording


def _drawn(
    claims: tuple[Claim, ...], count: int | None, rng: random.Random, name: str = "count"
) -> tuple[Claim, ...]:
    if count is not None:
        _check_count(count, name, 1)
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(claim.group, []).append(claim)
    order = list(groups.values())
    rng.shuffle(order)
    taken = _filled(iter(order), count)
    if claims and not taken:
        least = min(map(len, order))
        raise InputError(f"{name}={count}: no whole group fits, the smallest has {least} claims")
    return taken


def _filled(groups: Iterator[list[Claim]], count: int | None) -> tuple[Claim, ...]:
    taken: list[Claim] = []
    while len(taken) != count and (group := next(groups, None)):
        if count is None or len(taken) + len(group) <= count:
            taken += group
    return tuple(taken)


def _check_count(count: object, name: str, least: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise InputError(f"{name}={count!r}: must be a whole number from {least}")


def open_testbed(
    name_or_path: str | Path,
    *,
    columns: Columns = None,
    wording: Wording | None = None,
    count: int | None = None,
    test_count: int | None = None,
    seed: int = 0,
) -> Testbed:
    """A testbed by name, or a file for `read_claims`, as whole groups in random order.

    Args:
        name_or_path: "embedded", "gsm8k", "truthfulqa" or a file, see `read_claims`.
        columns: of a file, see `read_claims`.
        wording: in place of the testbed's; its template is for a file's columns.
        count: at most so many claims; None is all, or 128 of the endless embedded ones.
        test_count: at most so many test claims; None is all, or 200 embedded ones.
        seed: decides which, and in what order.

    Raises:
        InputError: there is no such testbed or file, its data is not here or is broken, or a
            count is too small; columns or a template are given for a testbed that has a name.
    """
    if test_count is not None:
        _check_count(test_count, "test_count", 0)
    if name_or_path in TESTBEDS:
        if columns or (wording and wording.template):
            raise InputError(f"{name_or_path}: columns and template are for files, leave them out")
        bed = _built_in(str(name_or_path), count, test_count, seed)
        bed = replace(bed, wording=wording) if wording else bed
        if name_or_path == "embedded":
            return bed
    elif isinstance(name_or_path, Path) or re.search(r"[/\\.]", str(name_or_path)):
        bed = read_claims(name_or_path, columns=columns, wording=wording)
    else:
        near = difflib.get_close_matches(str(name_or_path).lower(), TESTBEDS, n=1, cutoff=0.0)
        raise InputError(
            f"no testbed {name_or_path!r}, did you mean {near[0]!r}? Known: {', '.join(TESTBEDS)}, "
            "or give the path of a file with claims, such as a .jsonl, .json or .csv"
        )
    if test_count is not None:
        rng = random.Random(f"test-{seed}")
        test = _drawn(bed.test, test_count, rng, "test_count") if test_count else ()
        bed = replace(bed, test=test)
    return bed.draw(count, seed)


def _built_in(name: str, count: int | None, test_count: int | None, seed: int) -> Testbed:
    if name != "embedded":
        return gsm8k() if name == "gsm8k" else truthfulqa()
    most = 200 if test_count is None else test_count
    return embedded(128 if count is None else count, most, seed)


def embedded(count: int = 128, test_count: int = 200, seed: int = 0) -> Testbed:
    """Claims about sums that the embedded model was not trained on.

    The test does not depend on `count`, and no problem is on both sides, nor with its operands
    exchanged.

    Raises:
        InputError: a count is too small, or there are not so many claims.
    """
    _check_count(count, "count", 1)
    _check_count(test_count, "test_count", 0)
    stream = equations(random.Random(f"embedded-{seed}"), held_out=True)
    groups = _new_problems(islice(stream, PATIENCE))
    test, claims = _filled(groups, test_count), _filled(groups, count)
    if (found := len(test) + len(claims)) < count + test_count:
        raise InputError(f"count={count}, test_count={test_count}: there are only {found} claims")
    wording = Wording(after="\n", chat="Is it true that {claim}?", chat_labels=Claims.labels)
    return Testbed("embedded", claims, test, wording)


def _new_problems(groups: Iterable[list[Equation]]) -> Iterator[list[Claim]]:
    seen = set()
    for group in groups:
        problem = group[0].problem
        same = (problem.op, *sorted((problem.left, problem.right)))
        if same not in seen:
            seen.add(same)
            yield [Claim(str(c), str(c.problem), str(c.shown), c.right) for c in group]


def truthfulqa() -> Testbed:
    """TruthfulQA (Lin et al. 2022): answers to questions, of which several may be true.

    No rule tells from the texts which answers agree, so there are no keys.

    Raises:
        InputError: the files are not in `$WORKBENCH_DATA`, or are broken.
    """
    rows = TruthfulQA().side(held_out=False)
    asked = {row.fields["question"] for row in rows}
    held_out = (
        row for row in TruthfulQA().side(held_out=True) if row.fields["question"] not in asked
    )
    return Testbed("truthfulqa", _different(map(_answer, rows)), _different(map(_answer, held_out)))


def _answer(item: Item) -> Claim:
    text = put(question=item.fields["question"], choice=item.fields["claim"])
    return Claim(text, item.fields["group"], gold=item.answer == "True")


def _different(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    first: dict[str, Claim] = {}
    for claim in claims:
        first.setdefault(claim.text, claim)
    return tuple(first.values())


def gsm8k() -> Testbed:
    """A 6B model's two solutions to each GSM8K problem (Cobbe et al. 2021), true if right.

    Every third problem is held out.

    Raises:
        InputError: the file is not in `$WORKBENCH_DATA`, or is broken.
    """
    sides: tuple[list[Claim], list[Claim]] = ([], [])
    for number, row in enumerate(read_rows(published_file("gsm8k/model_solutions_6b.jsonl"))):
        for how in ("6b_finetuning", "6b_verification"):
            sides[number % 3 == 2].append(_solution(row, how, f"gsm8k-test-{number}"))
    return Testbed("gsm8k", _different(sides[0]), _different(sides[1]))


def _solution(row: TableRow, how: str, group: str) -> Claim:
    place, values = row
    if not isinstance(values.get(how), Mapping):
        raise InputError(f"{place}: {how}={values.get(how)!r:.60} must hold a solution")
    inner = TableRow(f"{place}, {how}", values[how])
    # A solution that was cut off at its greatest length may end within a mark.
    text = re.sub(r"<<[^<>]*$", "", CALCULATION.sub("", inner.text("solution"))).strip()
    claim = put(question=row.text("question"), choice=text)
    return Claim(claim, group, _final(text), gold_of(inner, "is_correct"))


def _final(solution: str) -> str | None:
    """What follows the last `A:`; a number as `canonical` writes it."""
    found = re.findall(r"^A:[ \t]*(\S.*?)[ \t]*$", solution, re.MULTILINE)
    if not found:
        return None
    number = re.fullmatch(r"-?\$?-?\d[\d,]*(\.\d+)?\.?", found[-1])
    return (canonical(found[-1]) if number else None) or str(found[-1])


def read_claims(
    source: object,
    *,
    columns: Columns = None,
    name: str | None = None,
    test: object = None,
    wording: Wording | None = None,
) -> Testbed:
    """A user's own claims: rows of `text`, of the published data or of comparisons.

    A row is one of

    - `text`, ending where the label begins, and optionally `group` (else it is a group of its own),
      `answer_key`, `gold`, `split` ("test" holds the row out) and `id` (else the row's number);
    - `question` and `choice`, as the published program reads them, worded as there; the same,
      `consistency_id` being the group (else the question is) and `label` the gold label;
    - `question`, `first` and `second`, or `question`, `choice` and `choice_2`: see `comparisons`.

    Case, spaces, `_` and `-` in names of columns do not matter where that is unambiguous, nor does
    whitespace around values. Gold is yes, no, y, n, true, false, t, f, 1, 0, correct or incorrect,
    or nothing: empty, NA, N/A, NaN, None, null, ?, unknown or -. Rows with the same text are one
    claim: of the first group, without gold if they disagree (`Testbed.notes`).

    Args:
        source: a .jsonl, .json, .csv, .tsv, .txt or .parquet file, a pandas DataFrame (its index
            is the id, unless there is a column), a Hugging Face `Dataset`, or a list of dicts.
        columns: which column of the source is which of ours, as {"text": "statement"} or
            ["text=statement"].
        name: what the testbed is called; None is the file's name.
        test: held-out rows, given like `source`, in place of a column `split`.
        wording: how claims are put; its template takes the place of the published wording.

    Raises:
        InputError: a file or a row is not what it should be, or a held-out claim is to be labelled
            too; the message says which.
    """
    found = read(source, columns=columns, test=test, wording=wording or Wording())
    return _testbed(found, name or _name(source), wording)


def comparisons(
    source: object,
    *,
    columns: Columns = None,
    name: str | None = None,
    test: object = None,
    wording: Wording | None = None,
) -> Testbed:
    """Pairs of responses: each gives a group of two claims, that the one or the other is better.

    A row is `question`, `first`, `second` and optionally `gold` ("first", "second", or true if
    the first is better), `split` and `id`; or, as published, `question`, `choice`, `choice_2` and
    `label`. A pair and the same exchanged are one. For the arguments see `read_claims`.

    Raises:
        InputError: a file or a row is not what it should be; the message says which.
    """
    found = read(source, columns=columns, test=test, wording=wording or Wording(), forms=PAIRS)
    return _testbed(found, name or _name(source), wording)


def _name(source: object) -> str:
    return Path(source).stem if isinstance(source, str | Path) else "claims"


def _testbed(found: Found, name: str, wording: Wording | None) -> Testbed:
    for note in found.notes:
        log.warning("%s: %s", name, note)
    return Testbed(
        name, found.claims, found.test, wording or Wording(),
        found.table, found.places, found.notes,
    )  # fmt: skip
