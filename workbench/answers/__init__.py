"""Answers read out of responses, and graded: numbers, letters, exact texts, labels.

What cannot be read is an outcome of its own ("unparsed") and never silently wrong.

    grade("She has 9 * 2 = 18 dollars.\\n#### 18", "18")    right
    grade("The answer is (B).", "B", "choice")             right
    grade("I cannot tell.", "18")                          unparsed

Think tags are set aside first (`statements.outside_reasoning`). `statements` says which statement
counts, `numerals` what a number is.
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
    """A verdict on one response.

    Args:
        answer: the right one: a number or an expression, an option's letter, a text, a label.
        style: what is asked for.
        labels: the letters of "choice" (A to J by default), the labels of "label".
        run_on: leave out all behind the first line `#### N`. A base model without a stop text goes
            on with problems of its own, and the last line answers one of those; a model that
            reasons may correct itself, and the last line is its answer: so the last one counts by
            default, and tasks end a response at their stop texts.

    Returns:
        Not parsed, and neither right nor wrong, where nothing could be read, or where two
        expressions could not be compared (in 1.5 seconds): what was read is given all the same.

    Raises:
        InputError: the response is no text, the style is not known, the labels are none, or the
            answer is not one that this style could ever read.
    """
    names = _names(style, labels)
    gold = _gold(answer, style, names)
    if run_on and isinstance(response, str) and (line := MARKED.search(response)):
        response = response[: line.end()]
    several = style == "gsm8k" and _is_several(gold)
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
    """The answer that a response gives, None where it gives none that can be read.

    Returns:
        A number as `canonical` writes it, another expression as it stands, a letter or a label as
        in `labels`, or a text with its white space collapsed.

    Raises:
        InputError: as `grade`.
    """
    names = _names(style, labels)
    if not isinstance(response, str):
        raise InputError(f"response={response!r} must be a text, not {type(response).__name__}")
    text = outside_reasoning(response)
    if style in {"gsm8k", "exact"}:
        return (read_number if style == "gsm8k" else read_text)(text)
    return (read_letter if style == "choice" else read_label)(text, names)


def _is_several(gold: str) -> bool:
    """Whether the right answer is a list or an equation, of which one number would be a part."""
    formula = parse(gold) if canonical(gold) is None else None
    return formula is not None and formula[0] in {"list", "rel"}


def equivalent(first: str, second: str) -> bool:
    """Whether two answers are the same number, text or expression; False if it cannot be told."""
    return _same(first, second) is True


@lru_cache(maxsize=4096)
def canonical(text: str) -> str | None:
    """A plain number, with or without a currency and a unit, as text: equal for equal numbers.

    Returns:
        `1234.5`, `-7`, `1/3` (where decimals never end), or None for what is no plain number.
    """
    if len(text) > LONGEST or (TUPLE.match(text) and parse(text)):
        return None
    number = bare_number(text)
    return written(number.value) if number else None


def _same(first: str, second: str) -> bool | None:
    """Whether two answers are equal, None if that cannot be told."""
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
    if one is None or other is None:  # words, and they are others
        return False
    return same_expression(one, other)


def _formula(text: str) -> str | None:
    """What is mathematics: no prose, no time of day."""
    formula = expression(text)
    return None if formula is None or re.search(r"\d:\d", formula) else formula


def _compact(text: str) -> tuple[str, ...]:
    """What an answer is written with; only words may begin with a capital or not."""
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
        raise InputError(f"labels={labels!r}: two of them are equal but for case and spaces")
    return names


def _names(style: Style, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels without spaces around them."""
    if not isinstance(style, str):
        raise InputError(f"style={style!r} must be a text, one of {', '.join(get_args(Style))}")
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"labels={labels!r} must be a list of texts")
    return _known(style, tuple(labels))


@lru_cache(maxsize=4096)
def _gold(answer: str, style: str, labels: tuple[str, ...]) -> str:
    """The right answer as `extract` would give it."""
    if not isinstance(answer, str) or not answer.strip():
        raise InputError(f"answer={answer!r}: the right answer must be a text that is not empty")
    text = " ".join(answer.split())
    if style == "exact":
        return text
    if style == "gsm8k":
        if len(text) > LONGEST or not re.search(r"\w", text):
            raise InputError(f"answer={text[:80]!r} is no number, expression or short text")
        return canonical(text) or text
    bare = text.strip("()[].:")
    for label in labels:
        if label.casefold() in {text.casefold(), bare.casefold()}:
            return label
    raise InputError(f"answer={answer!r} is none of the labels: {', '.join(labels)}")
