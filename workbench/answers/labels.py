"""One of a few labels, or a text, out of a response."""

from __future__ import annotations

import re
from functools import lru_cache, partial

from workbench.answers.choices import GOES_ON, OPEN, PREDICATE, TAIL, either, judged, listed
from workbench.answers.expressions import LONGEST
from workbench.answers.statements import WINDOW, marked, statements
from workbench.answers.tidy import final_sentence, sentence, tidy
from workbench.answers.wording import DENIAL, retracted

BESIDE = re.compile(
    r"(?P<weak>[.!;][\s*_]{1,6})|[\s,/|&]{0,6}(?:(?:or|and|nor|vs\.?|versus)\s)?\s{0,4}",
    re.IGNORECASE,
)
NO_LABEL = re.compile(
    r"[\s*_]*\?|\s+(?:idea|doubt|clue|comment|opinion|answer|one|matter|wonder|way)\b",
    re.IGNORECASE,
)
DOUBT = re.compile(r"\b(?:whether|if|or|could|may|might)\b|\?", re.IGNORECASE)


def read_label(text: str, labels: tuple[str, ...]) -> str | None:
    """The label that a response begins with, else that of its last statement, else its last word.

    Only as a whole word, in any case; None where another label stands right beside it, or where
    it is taken back. The last word counts at the end of a sentence that denies and doubts nothing.
    """
    comments = listed(text[:TAIL], _listed_pattern(labels), labels)
    if comments is not None:  # "Positive: 20 %, Negative: 80 %"
        return judged(comments)
    pattern = _label_pattern(labels)
    found = pattern.match(text)
    if found and not _set_aside(text, found.end()):
        return _kept(text, found, text[found.end() : found.end() + WINDOW], labels)
    for place in statements(text, chosen=True):
        content = tidy(place.content)
        if found := pattern.match(content):
            return _kept(content, found, place.after, labels)
    last = final_sentence(text.strip(), LONGEST)
    if not last or DOUBT.search(last) or DENIAL.search(last):
        return None
    return _last_word(last, labels)


def _set_aside(text: str, end: int) -> bool:
    """Whether a label at the start is asked, denied or a part of something: "No idea"."""
    denied = PREDICATE.match(text, end) and DENIAL.search(sentence(text[:TAIL])[0])
    return bool(denied or NO_LABEL.match(text, end))


def _kept(text: str, found: re.Match[str], after: str, labels: tuple[str, ...]) -> str | None:
    """The label found, if no other one is named beside it and the words behind keep to it."""
    label = _spelled(found[1], labels)
    beside = BESIDE.match(text, found.end())
    other = _label_pattern(labels).match(text, beside.end()) if beside else None
    clause = beside and other and beside["weak"] and GOES_ON.match(text, other.end())
    if other and not clause and _spelled(other[1], labels) != label:
        return None
    return None if retracted(after, label, partial(_named, labels=labels)) else label


def _last_word(last: str, labels: tuple[str, ...]) -> str | None:
    """The label that a sentence ends in, if it names no other."""
    named = _named(last, labels)
    found = list(_word_pattern(labels).finditer(last))
    alone = len(set(named)) == 1 and not re.search(r"\w", last[found[-1].end() :])
    return named[0] if alone else None


def _named(text: str, labels: tuple[str, ...]) -> list[str]:
    """The labels that a text names, in its order."""
    return [_spelled(one[0], labels) for one in _word_pattern(labels).finditer(text)]


@lru_cache(maxsize=64)
def _word_pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w|[-'’])(?:{either(labels)})(?!\w|[-'’]\w)", re.IGNORECASE)


@lru_cache(maxsize=64)
def _label_pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"{OPEN}({either(labels)})(?!\w|[-'’]\w)", re.IGNORECASE)


@lru_cache(maxsize=64)
def _listed_pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)({either(labels)})\s?[:=]", re.IGNORECASE)


def _spelled(word: str, labels: tuple[str, ...]) -> str:
    return next((label for label in labels if label.casefold() == word.casefold()), word)


def read_text(text: str) -> str | None:
    """A text, its white space collapsed: what the last mark holds, or else all of it.

    A `####` line is a mark only at the end; elsewhere it is a heading of the text.
    """
    for place in reversed(marked(text)):
        held = " ".join(tidy(place.content).split())
        if held and (place.kind == "whole" or place.last):
            return held
    return " ".join(text.split()) or None
