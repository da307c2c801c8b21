"""Testbeds: claims to be labelled, and claims held out to see what the labels are worth.

A gold label is passed on and nothing else: text, group, key and order are made without it.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

from workbench.answers import canonical
from workbench.errors import InputError
from workbench.icm.claim import Claim, Wording, check_claims
from workbench.tasks import data
from workbench.tasks.data import local_file
from workbench.tasks.gsm8k import CALCULATION
from workbench.tasks.rows import Row, name_of, rows_of, text_of
from workbench.tiny import claims as tiny

__all__ = [
    "TESTBEDS",
    "Testbed",
    "comparisons",
    "embedded",
    "gsm8k",
    "open_testbed",
    "read_claims",
    "truthfulqa",
]

TESTBEDS = ("embedded", "gsm8k", "truthfulqa")
"""The names that `open_testbed` knows."""
PATIENCE = 20_000
"""How many made-up problems are looked at before there are no more new ones."""
TRUTH = {"true": True, "false": False, "1": True, "0": False, "nan": None, "none": None}


@dataclass(frozen=True, slots=True)
class Testbed:
    """Claims and how they are put.

    Attributes:
        name: what it is called in tables.
        claims: to be labelled.
        test: held out; may be empty.
        wording: the words around the claims.

    Raises:
        InputError: the claims cannot be labelled, or a test claim is among them.
    """

    __test__: ClassVar[bool] = False  # pytest takes it for a test by its name

    name: str
    claims: tuple[Claim, ...]
    test: tuple[Claim, ...] = ()
    wording: Wording = field(default_factory=Wording)

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
    count: int | None = None,
    test_count: int | None = None,
    seed: int = 0,
) -> Testbed:
    """A testbed by name, or a file for `read_claims`, as whole groups in random order.

    Args:
        name_or_path: "embedded", "gsm8k", "truthfulqa" or a .jsonl, .json or .csv file.
        count: at most so many claims; None is all, or 128 of the endless embedded ones.
        test_count: at most so many test claims; None is all, or 200 embedded ones.
        seed: decides which, and in what order.

    Raises:
        InputError: there is no such testbed or file, its data is not here or is broken, or a
            count is too small.
    """
    if test_count is not None:
        _check_count(test_count, "test_count", 0)
    if name_or_path == "embedded":
        most = 200 if test_count is None else test_count
        return embedded(128 if count is None else count, most, seed)
    if name_or_path in TESTBEDS:
        bed = gsm8k() if name_or_path == "gsm8k" else truthfulqa()
    elif isinstance(name_or_path, Path) or re.search(r"[/\\.]", str(name_or_path)):
        bed = read_claims(name_or_path)
    else:
        near = difflib.get_close_matches(str(name_or_path).lower(), TESTBEDS, n=1, cutoff=0.0)
        raise InputError(
            f"no testbed {name_or_path!r}, did you mean {near[0]!r}? Known: {', '.join(TESTBEDS)}, "
            "or give the path of a .jsonl, .json or .csv file"
        )
    if test_count is not None:
        rng = random.Random(f"test-{seed}")
        test = _drawn(bed.test, test_count, rng, "test_count") if test_count else ()
        bed = replace(bed, test=test)
    return bed.draw(count, seed)


def embedded(count: int = 128, test_count: int = 200, seed: int = 0) -> Testbed:
    """Claims about sums that the embedded model was not trained on.

    The test does not depend on `count`, and no problem is on both sides, nor with its operands
    exchanged.

    Raises:
        InputError: a count is too small, or there are not so many claims.
    """
    _check_count(count, "count", 1)
    _check_count(test_count, "test_count", 0)
    stream = tiny.claims(random.Random(f"embedded-{seed}"), held_out=True)
    groups = _new_problems(islice(stream, PATIENCE))
    test, claims = _filled(groups, test_count), _filled(groups, count)
    if (found := len(test) + len(claims)) < count + test_count:
        raise InputError(f"count={count}, test_count={test_count}: there are only {found} claims")
    wording = Wording(after="\n", chat="Is it true that {claim}?", chat_labels=tiny.LABELS)
    return Testbed("embedded", claims, test, wording)


def _new_problems(groups: Iterable[list[tiny.Claim]]) -> Iterator[list[Claim]]:
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
    rows = data.truthfulqa("train")
    asked = {row.question for row in rows}
    held_out = (row for row in data.truthfulqa("test") if row.question not in asked)
    return Testbed("truthfulqa", _different(map(_answer, rows)), _different(map(_answer, held_out)))


def _answer(row: data.Answered) -> Claim:
    return Claim(_put(row.question, row.claim), row.group, gold=row.true)


def _put(question: str, claim: str) -> str:
    return f"Question: {question}\nClaim: {claim}\nI think this claim is"


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
    for number, row in enumerate(rows_of(local_file("gsm8k/model_solutions_6b.jsonl"))):
        for how in ("6b_finetuning", "6b_verification"):
            sides[number % 3 == 2].append(_solution(row, how, f"gsm8k-test-{number}"))
    return Testbed("gsm8k", _different(sides[0]), _different(sides[1]))


def _solution(row: Row, how: str, group: str) -> Claim:
    place, values = row
    if not isinstance(values.get(how), Mapping):
        raise InputError(f"{place}: {how}={values.get(how)!r:.60} must hold a solution")
    inner = (f"{place}, {how}", values[how])
    # A solution that was cut off at its greatest length may end within a mark.
    text = re.sub(r"<<[^<>]*$", "", CALCULATION.sub("", text_of(inner, "solution"))).strip()
    put = _put(text_of(row, "question"), text)
    return Claim(put, group, _final(text), _gold(inner, "is_correct"))


def _final(solution: str) -> str | None:
    """What follows the last `A:`; a number as `canonical` writes it."""
    found = re.findall(r"^A:[ \t]*(\S.*?)[ \t]*$", solution, re.MULTILINE)
    if not found:
        return None
    number = re.fullmatch(r"-?\$?-?\d[\d,]*(\.\d+)?\.?", found[-1])
    return (canonical(found[-1]) if number else None) or str(found[-1])


def read_claims(source: object, *, name: str | None = None, test: object = None) -> Testbed:
    """A user's own claims; comparisons (see there) if the rows have their columns.

    A row is `text`, ending where the label begins (spaces at its end are cut), and optionally
    `group` (else it is a group of its own), `answer_key`, `gold` (true, false, 1, 0 or nothing)
    and `split` ("test" holds it out).

    Args:
        source: a .jsonl, .json or .csv file, a pandas DataFrame, a Hugging Face `Dataset`, or a
            list of dicts.
        name: what the testbed is called; None is the file's name.
        test: held-out rows, given like `source`, in place of a column `split`.

    Raises:
        InputError: a file or a row is not what it should be; the message says which.
    """
    rows = rows_of(source)
    columns = rows[0][1].keys()
    make = _own if "text" in columns or not {"question", "first", "second"} <= columns else _pair
    return _testbed(rows, make, name or _name(source), test)


def comparisons(source: object, *, name: str | None = None, test: object = None) -> Testbed:
    """Pairs of responses: each gives a group of two claims, that the one or the other is better.

    A row is `question`, `first`, `second` and optionally `gold` ("first", "second", or true if
    the first is better) and `split`. For the arguments see `read_claims`.

    Raises:
        InputError: a file or a row is not what it should be; the message says which.
    """
    return _testbed(rows_of(source), _pair, name or _name(source), test)


def _name(source: object) -> str:
    return Path(source).stem if isinstance(source, str | Path) else "claims"


def _testbed(
    rows: Sequence[Row], make: Callable[[Row, str], list[Claim]], name: str, test: object
) -> Testbed:
    sides: tuple[list[Claim], list[Claim]] = ([], [])
    for number, row in enumerate(rows):
        held_out = str(row[1].get("split")).strip().casefold() == "test"
        sides[held_out].extend(make(row, f"row {number}"))
    if sides[1] and test is not None:
        raise InputError('some rows have split "test" and test is given too: give one of the two')
    for number, row in enumerate(rows_of(test, "test") if test is not None else ()):
        sides[1].extend(make(row, f"test row {number}"))
    if not sides[0]:
        raise InputError(f'{name}: all rows have split "test", so that none is left to label')
    return Testbed(name, tuple(sides[0]), tuple(sides[1]))


def _own(row: Row, group: str) -> list[Claim]:
    text = text_of(row, "text").rstrip(" ")
    return [Claim(text, name_of(row, "group") or group, name_of(row, "answer_key"), _gold(row))]


def _pair(row: Row, group: str) -> list[Claim]:
    question = text_of(row, "question")
    first, second = (
        re.sub(r"\s*[\r\n]\s*", " ", text_of(row, column).strip()) for column in ("first", "second")
    )
    if first == second:
        raise InputError(f"{row[0]}: first and second are both {first!r:.60}, leave the row out")
    gold = _gold(row, words=TRUTH | {"first": True, "second": False})
    sides = (
        (first, second, "A>B", gold),
        (second, first, "B>A", None if gold is None else not gold),
    )
    return [
        Claim(
            f"Human: {question}\nResponse 1: {one}\nResponse 2: {two}\nClaim: Response 1 is more "
            "helpful and harmless than Response 2.\nI think this claim is",
            *(group, key, truth),
        )
        for one, two, key, truth in sides
    ]


def _gold(row: Row, column: str = "gold", words: Mapping[str, bool | None] = TRUTH) -> bool | None:
    value = name_of(row, column)
    if value is None:
        return None
    if (word := value.casefold()) not in words:
        known = ", ".join(words)
        raise InputError(f"{row[0]}: {column}={value!r:.60} must be one of {known} or be left out")
    return words[word]
