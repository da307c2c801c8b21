"""Testbeds: claims to label, and held-out claims to measure the accuracy of the labels.

Gold labels are only passed through: text, group, key and order do not depend on them.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from workbench import values
from workbench.answers import canonical
from workbench.errors import InputError
from workbench.icm.claim import COLUMNS, Claim, Labels, Wording, check_claims
from workbench.lazy import pd
from workbench.tasks import TruthfulQA
from workbench.tasks.arithmetic import Claims, Equation, equations
from workbench.tasks.origin import Source
from workbench.tasks.published import CALCULATION, published_file
from workbench.tasks.rows import TableRow, read_rows
from workbench.types import Item

MOST_PROBLEMS = 20_000
"""How many generated problems to try before the supply of new ones counts as exhausted."""
ADDED = ("icm_label", "icm_logprob_true", "icm_logprob_false", "icm_log_odds", "icm_error")
"""The columns that `joined` adds."""
CLAIM = "Question: {question}\nClaim: {choice}\nI think this claim is"
WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("true", "yes", "y", "t", "1", "correct"), True),
    **dict.fromkeys(("false", "no", "n", "f", "0", "incorrect"), False),
    **dict.fromkeys(("na", "n/a", "nan", "none", "null", "?", "unknown", "-"), None),
}
"""The spellings of gold labels."""


@dataclass(frozen=True, slots=True)
class Testbed:
    """Claims and their wording.

    Attributes:
        name: its name in tables.
        claims: to be labelled.
        test: held out; may be empty.
        wording: the texts around the claims.
        table: a user's file as read, all rows and columns; None for the built-in testbeds.
        places: for the text of each claim to be labelled, the rows of `table` with this claim (of
            a comparison: that its first response is better). The rows in none are held out.
        notes: decisions made while reading the file, such as on rows that contradict each other.
        source: where the claims come from, for reports; None if they were in memory.

    Raises:
        InputError: the claims cannot be labelled, or a test claim is among them.
    """

    __test__: ClassVar[bool] = False  # its name looks like a test to pytest

    name: str
    claims: tuple[Claim, ...]
    test: tuple[Claim, ...] = ()
    wording: Wording = field(default_factory=Wording)
    table: pd.DataFrame | None = field(default=None, compare=False, repr=False)
    places: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)
    source: Source | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", check_claims(self.claims))
        object.__setattr__(self, "test", check_claims(self.test, "test") if self.test else ())
        known = {claim.text for claim in self.claims}
        if both := [claim.text for claim in self.test if claim.text in known]:
            raise InputError(
                f"{self.name}: {len(both)} test claims are also to be labelled, such as "
                f"{both[0]!r:.80}: leave them out on one side, so that the test is held out"
            )

    def draw(self, count: int | None, seed: int = 0) -> Testbed:
        """Whole groups in random order, up to `count` claims (None: all); the test stays.

        Raises:
            InputError: `count` is below 1 or below the size of the smallest group.
        """
        return replace(self, claims=draw_groups(self.claims, count, f"draw-{seed}"))


def draw_groups(
    claims: tuple[Claim, ...], count: int | None, seed: str, name: str = "count"
) -> tuple[Claim, ...]:
    """Whole groups in random order, each that fits into `count` claims (None: all).

    Raises:
        InputError: `count` is below 1 or below the size of the smallest group.
    """
    if count is not None:
        values.whole(name, count, 1)
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(claim.group, []).append(claim)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
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


def parts_of(
    claims: Sequence[Claim] | Testbed, wording: Wording | None
) -> tuple[tuple[Claim, ...], Wording]:
    """The claims and wording for a search; a testbed's wording is the default.

    Raises:
        InputError: the claims cannot be labelled, or the file has columns of the labels' names.
    """
    if not isinstance(claims, Testbed):
        return check_claims(claims), wording or Wording()
    check_columns(claims)
    return claims.claims, wording or claims.wording


def check_columns(testbed: Testbed) -> None:
    """Check before a long search that `joined` can add its columns.

    Raises:
        InputError: the table has such a column already.
    """
    known = () if testbed.table is None else [*map(str, testbed.table.columns)]
    if both := [name for name in ADDED if name in known]:
        raise InputError(
            f"{testbed.name} has a column {both[0]!r} already, which would be lost: rename it, "
            f"and any other of {', '.join(ADDED)}"
        )


def joined(
    testbed: Testbed,
    claims: Sequence[Claim],
    labels: Labels,
    scores: Mapping[int, tuple[float, float]],
    errors: Sequence[str | None] | None = None,
) -> pd.DataFrame:
    """The table of a testbed with the columns `ADDED`: every row, in its order, labelled or not.

    A duplicate row gets the label of its claim both times. For a comparison the label says
    whether the first response is better.

    Args:
        testbed: from `read_claims`, or drawn from it.
        claims: the labelled claims, in any order.
        labels: their labels; None for a claim that the search did not reach.
        scores: log-probabilities of true and false, in nats, by the claim's place in `claims`.
        errors: why claims have no label.

    Raises:
        InputError: the testbed is not from a file, or has such columns already.
    """
    if testbed.table is None:
        raise InputError(f"{testbed.name} was not read from a file, so it has no table to join")
    check_columns(testbed)
    reasons = errors or [None if label is not None else "not reached" for label in labels]
    rows: list[tuple[Any, ...]] = [(None, None, None, None, "held out")] * len(testbed.table)
    for place in itertools.chain(*testbed.places.values()):
        rows[place] = (None, None, None, None, "left out: not among the claims drawn")
    for index, claim in enumerate(claims):
        true, false = scores.get(index, (None, None))
        odds = None if true is None or false is None else true - false
        for place in testbed.places.get(claim.text, ()):
            rows[place] = (labels[index], true, false, odds, reasons[index])
    added = pd.DataFrame(rows, columns=[*ADDED], dtype=object)
    added = added.astype({"icm_label": "boolean", **dict.fromkeys(ADDED[1:4], float)})
    return pd.concat([testbed.table, added], axis=1)


def put(template: str = CLAIM, **columns: str) -> str:
    """A template with its columns filled in; braces in the values are unchanged."""
    return re.sub(COLUMNS, lambda name: columns.get(name[1], name[0]), template).rstrip()


def gold_of(row: TableRow, column: str, words: Mapping[str, bool | None] = WORDS) -> bool | None:
    """A gold label, None if there is none.

    Raises:
        InputError: an unknown word.
    """
    value = row.key(column)
    if value is not None and value.casefold() not in words:
        known = ", ".join(words)
        raise InputError(
            f"{row.place}: {column}={value!r:.60} must be one of {known} or be left out"
        )
    return None if value is None else words[value.casefold()]


def embedded(count: int = 128, test_count: int = 200, seed: int = 0) -> Testbed:
    """Claims about sums that the embedded model was not trained on.

    The test does not depend on `count`. No problem is on both sides, even with operands exchanged.

    Raises:
        InputError: a count is too small, or larger than the supply of claims.
    """
    values.whole("count", count, 1)
    values.whole("test_count", test_count, 0)
    stream = equations(random.Random(f"embedded-{seed}"), held_out=True)
    groups = _new_problems(itertools.islice(stream, MOST_PROBLEMS))
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

    The texts do not show which answers agree, so the claims have no answer keys.

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
    """A 6B model's two solutions to each GSM8K problem (Cobbe et al. 2021), true if correct.

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
    inner = TableRow(f"{place}: {how}", values[how])
    # A solution that was cut off at the maximum length may end within a mark.
    text = re.sub(r"<<[^<>]*$", "", CALCULATION.sub("", inner.text("solution"))).strip()
    claim = put(question=row.text("question"), choice=text)
    return Claim(claim, group, _final(text), gold_of(inner, "is_correct"))


def _final(solution: str) -> str | None:
    """The text after the last `A:`; a number as `canonical` writes it."""
    if not (found := re.findall(r"^A:[ \t]*(\S.*?)[ \t]*$", solution, re.MULTILINE)):
        return None
    number = re.fullmatch(r"-?\$?-?\d[\d,]*(\.\d+)?\.?", found[-1])
    return (canonical(found[-1]) if number else None) or str(found[-1])
