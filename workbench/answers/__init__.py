"""Read answers from responses and grade them: numbers, letters, exact texts, labels.

An answer that cannot be read gets its own verdict, "unparsed", which is counted apart.

    grade("She has 9 * 2 = 18 dollars.\\n#### 18", "18")    right
    grade("The answer is (B).", "B", "choice")             right
    grade("I am not sure.", "18")                          unparsed

Text in think tags is removed first (`statements.outside_reasoning`). `statements` finds the text
that states an answer, `numerals` reads numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

from workbench.answers.expressions import LONGEST, given_up, same_expression
from workbench.answers.extraction import bare_number, boxed, expression, read_number, read_several
from workbench.answers.formula import parse, tokens
from workbench.answers.numerals import normalise, written
from workbench.answers.selection import LETTERS, read_label, read_letter, read_text
from workbench.answers.statements import outside_reasoning
from workbench.errors import InputError
from workbench.types import Grade

__all__ = ["Style", "canonical", "equivalent", "extract", "given_up", "grade"]

MARKED = re.compile(r"^[ \t]*####[ \t]*[-+$]?\d[^\n]*", re.MULTILINE)
TUPLE = re.compile(r"\s*(?:[(\[]|\\\{|\\left)[^=]*,")
Style = Literal["gsm8k", "choice", "exact", "label"]


def grade(
    response: str,
    answer: str,
    style: Style = "gsm8k",
    *,
    labels: Sequence[str] = (),
    run_on: bool = False,
) -> Grade:
    """The verdict on one response.

    Args:
        answer: the correct answer: a number or expression, an option's letter, a text or a label.
        style: the kind of answer.
        labels: the letters for "choice" (A to J by default), the labels for "label".
        run_on: ignore everything after the first line `#### N`. A base model without a stop text
            continues with problems it invents, and the last line answers one of those. A model
            that reasons may correct itself, and its last line is its answer. So the last line
            counts by default, and tasks end a response at their stop texts.

    Returns:
        A grade that is not parsed, neither right nor wrong, if no answer can be read or if two
        expressions cannot be compared within 1.5 seconds; in that case it still has the answer.

    Raises:
        InputError: the response is not a text, the style is unknown, the labels are unusable, or
            the correct answer could never be read in this style.
    """
    names = _names(style, labels)
    gold = _gold(answer, style, names)
    if run_on and isinstance(response, str) and (line := MARKED.search(response)):
        response = response[: line.end()]
    # a list or an equation, of which a single number is only a part
    formula = parse(gold) if style == "gsm8k" and canonical(gold) is None else None
    several = formula is not None and formula[0] in {"list", "rel"}
    read = extract(response, style, labels=names)
    if style == "gsm8k" and canonical(gold) is None:
        text = outside_reasoning(response)
        content = boxed(text)
        if content is not None and tokens(content) == tokens(answer):
            return Grade(True, read or content.strip(), parsed=True)
        read = read_several(text) if several else read
    if read is None:
        return Grade(None, None, parsed=False)
    if several:
        verdict = same_expression(read, gold)
    else:
        verdict = read == gold if style != "gsm8k" else _same(read, gold)
    return Grade(verdict, read, parsed=verdict is not None)


def extract(response: str, style: Style = "gsm8k", *, labels: Sequence[str] = ()) -> str | None:
    """The answer in a response, None if none can be read.

    Returns:
        A number in the form of `canonical`, any other expression unchanged, a letter or label as
        in `labels`, or a text with its white space collapsed.

    Raises:
        InputError: as for `grade`.
    """
    names = _names(style, labels)
    if not isinstance(response, str):
        raise InputError(f"response={response!r} must be a text, not {type(response).__name__}")
    text = outside_reasoning(response)
    if style in {"gsm8k", "exact"}:
        return (read_number if style == "gsm8k" else read_text)(text)
    return (read_letter if style == "choice" else read_label)(text, names)


def equivalent(first: str, second: str) -> bool:
    """Whether two answers are the same number, text or expression; False if that is undecided."""
    return _same(first, second) is True


@lru_cache(maxsize=4096)
def canonical(text: str) -> str | None:
    """A plain number, with or without a currency and a unit, as text; equal for equal numbers.

    Returns:
        `1234.5`, `-7`, `1/3` (if its decimals never end), or None if it is not a plain number.
    """
    if len(text) > LONGEST or (TUPLE.match(text) and parse(text)):
        return None
    number = bare_number(text)
    return written(number.value) if number else None


def _same(first: str, second: str) -> bool | None:
    """Whether two answers are equal, None if that is undecided."""
    if first == second:
        return True
    pair = canonical(first), canonical(second)
    if None not in pair:
        return pair[0] == pair[1]
    if _compact(first) == _compact(second) or _compact(normalise(first)) == _compact(
        normalise(second)
    ):
        return True
    one, other = pair[0] or _formula(first), pair[1] or _formula(second)
    if one is None or other is None:  # words, and different ones
        return False
    return same_expression(one, other)


def _formula(text: str) -> str | None:
    """The text if it is mathematics: not prose, not a time of day."""
    formula = expression(text)
    return None if formula is None or re.search(r"\d:\d", formula) else formula


def _compact(text: str) -> tuple[str, ...]:
    """The words and signs of an answer; the case of a word's first letter does not matter."""
    text = re.sub(
        r"(?<!\\)\b[A-Z](?=[a-z]{2})|\b[A-Z]{4,}\b|\b(?:[AP]M|N[Oo]|O[Kk])\b",
        lambda word: word[0].lower(),
        text,
    )
    return tokens(text)


@lru_cache(maxsize=64)
def _known(style: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    if style not in get_args(Style):
        raise InputError(f"style={style!r} is not known; known: {', '.join(get_args(Style))}")
    names = tuple(label.strip() for label in labels)
    if style == "choice" and not names:
        return LETTERS
    if style in {"choice", "label"} and (not names or not all(names)):
        raise InputError(f"labels={labels!r}: the style {style!r} needs texts to choose from")
    if len({name.casefold() for name in names}) < len(names):
        raise InputError(f"labels={labels!r}: two of them differ only in case and spaces")
    return names


def _names(style: Style, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels without surrounding spaces."""
    if not isinstance(style, str):
        raise InputError(f"style={style!r} must be a text, one of {', '.join(get_args(Style))}")
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"labels={labels!r} must be a list of texts")
    return _known(style, tuple(labels))


@lru_cache(maxsize=4096)
def _gold(answer: str, style: str, labels: tuple[str, ...]) -> str:
    """The correct answer in the form that `extract` returns."""
    if not isinstance(answer, str) or not answer.strip():
        raise InputError(f"answer={answer!r}: the right answer must be a text that is not empty")
    text = " ".join(answer.split())
    if style == "exact":
        return text
    if style == "gsm8k":
        if len(text) > LONGEST or not re.search(r"\w", text):
            raise InputError(f"answer={text[:80]!r} is not a number, expression or short text")
        return canonical(text) or text
    bare = text.strip("()[].:")
    for label in labels:
        if label.casefold() in {text.casefold(), bare.casefold()}:
            return label
    raise InputError(f"answer={answer!r} is not one of the labels: {', '.join(labels)}")
