"""One of a few letters, one of a few labels or a text out of a response."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from workbench.answers.expressions import LONGEST
from workbench.answers.statements import marked, statements
from workbench.answers.tidy import STOP, final_sentence, sentence, tidy

__all__ = ["LETTERS", "read_label", "read_letter", "read_text"]

LETTERS = tuple("ABCDEFGHIJ")
OPEN = r"[\s*_`\"'“‘$(\[{:：#]{0,12}"
CLOSE = r"[\s*_`\"'”’$)\]}.:!]{0,12}"
LINK = re.compile(
    r"[\s*_`\"')\]}]{0,6}(?:,|/|&|\||\b(?:or|and|nor)\b)[\s,]{0,4}(?:(?:or|and|maybe)\s)?",
    re.IGNORECASE,
)
BESIDE = re.compile(r"[\s,/|&]{0,6}(?:(?:or|and|nor)\s)?\s{0,4}", re.IGNORECASE)
PROSE = re.compile(r"\s+(?!(?:because|since|as|for|which|is|or|and)\b)[a-z]")
REFUSED = re.compile(
    r"\b(?:not|wrong|incorrect|false|neither|cannot|eliminate[ds]?)\b|n['’]t\b", re.IGNORECASE
)
PREDICATE = re.compile(r"[\W_]{0,4}\s(?:is|was|can|could|does|seems)")
NOT = re.compile(r"[\s*_]*not\b", re.IGNORECASE)
BUT = re.compile(r"\bbut\s+(?:rather\s+|instead\s+)?", re.IGNORECASE)
DOUBT = re.compile(
    r"\b(?:not|never|neither|nor|whether|if|or|could|may|might)\b|n['’]t\b|\?", re.IGNORECASE
)
TAIL = 4000
"""Characters at the end of a response in which an option is looked for that is not stated."""


class _Letters(NamedTuple):
    """Patterns for one set of letters, and the letters by their upper case."""

    whole: re.Pattern[str]
    stated: re.Pattern[str]
    first: re.Pattern[str]
    mention: re.Pattern[str]
    known: dict[str, str]

    def of(self, found: re.Match[str]) -> str:
        return self.known[(found["bracketed"] or found["plain"]).upper()]


@lru_cache(maxsize=64)
def _letters(labels: tuple[str, ...]) -> _Letters:
    either = _either(labels)
    bracketed = rf"(?:[(\[{{]\s?)?(?P<bracketed>(?ai:{either}))\s?[)\]}}]"
    plain = rf"(?P<plain>{either})(?![A-Za-z0-9_À-\u1fff'’]|-\w)"
    named = r"(?i:(?:the\s)?(?:option|choice|letter|answer)\b)?"
    marked = r"(?=[*_`\"']{0,4}(?:[).:;!]|\s*\Z|\s*\n|\s+[-–—]\s))"
    return _Letters(
        re.compile(rf"{OPEN}{named}{OPEN}(?P<plain>(?ai:{either}))(?P<bracketed>){CLOSE}\Z"),
        re.compile(rf"{OPEN}{named}{OPEN}(?:{bracketed}|{plain})"),
        re.compile(rf"[\s*_`\"'$]{{0,12}}{named}{OPEN}(?:{bracketed}|{plain}{marked})"),
        re.compile(rf"[(\[{{]{bracketed}|(?<![A-Za-z0-9_À-\u1fff'’.-]){plain}"),
        {label.upper(): label for label in labels},
    )


def read_letter(text: str, labels: tuple[str, ...]) -> str | None:
    """The option that a response settles on.

    In order: the whole response; a statement (`statements`); a letter with a mark of its own at
    the very start ("B) because …"); the one letter named in sentences that refuse nothing; the one
    letter of the last sentence, if that refuses nothing. A letter counts in its own case, unless
    it is bracketed or alone, and "A" or "I" not where a word follows ("A cat sat").
    """
    letters = _letters(labels)
    if whole := letters.whole.match(text):
        return letters.of(whole)
    for place in statements(text, chosen=True):
        content = tidy(place.content)
        boxed = letters.whole.match(content) if place.kind == "whole" else None
        answer = letters.of(boxed) if boxed else _stated(content, letters)
        if answer is not None:
            return answer or None
    if (first := letters.first.match(text)) and not _set_aside(text, first, letters):
        return letters.of(first)
    return _mentioned(text, letters)


def _stated(content: str, letters: _Letters) -> str | None:
    """The letter of a statement: "" where it gives several, None where it gives none."""
    if NOT.match(content):
        rest = BUT.split(content.partition("\n")[0], maxsplit=1)
        content = rest[1] if len(rest) == 2 else ""
    found = letters.stated.match(content)
    if not found or _article(content, found) or content[found.end() :].lstrip(" *)")[:1] == "?":
        return None
    return "" if _another(content, found, letters) else letters.of(found)


def _article(text: str, found: re.Match[str]) -> bool:
    """Whether a letter is the word "a" or "I"."""
    return found["plain"] in {"A", "I", "a", "i"} and bool(PROSE.match(text, found.end()))


def _another(text: str, found: re.Match[str], letters: _Letters) -> bool:
    """Whether a different letter is given beside the one found."""
    link = LINK.match(text, found.end())
    other = letters.stated.match(text, link.end()) if link else None
    return bool(other and not _article(text, other) and letters.of(other) != letters.of(found))


def _set_aside(text: str, first: re.Match[str], letters: _Letters) -> bool:
    """Whether the letter a response begins with is one of several, or refused: "(A) is wrong"."""
    refused = PREDICATE.match(text, first.end()) and REFUSED.search(sentence(text[:TAIL])[0])
    return bool(refused) or _another(text, first, letters)


def _mentioned(text: str, letters: _Letters) -> str | None:
    """The only letter named, or else the only one of the last sentence."""
    named: list[set[str]] = []
    for one in _sentences(text[-TAIL:]):
        refused = "?" in one or REFUSED.search(one)
        found = () if refused else letters.mention.finditer(one)
        named.append({letters.of(letter) for letter in found if not _article(one, letter)})
    every = set[str]().union(*named)
    last = every if len(every) == 1 else named[-1] if named else every
    return last.pop() if len(last) == 1 else None


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for stop in STOP.finditer(text):
        yield text[start : stop.end()]
        start = stop.end()
    if text[start:].strip():
        yield text[start:]


def read_label(text: str, labels: tuple[str, ...]) -> str | None:
    """The label that a response begins with, else that of its last statement, else its last word.

    Only as a whole word, in any case; None where another label stands right beside it. The last
    word counts at the end of a sentence that denies and doubts nothing.
    """
    pattern = _label_pattern(labels)
    if found := pattern.match(text):
        return _label(text, found, pattern, labels)
    for place in statements(text, chosen=True):
        content = tidy(place.content)
        if found := pattern.match(content):
            return _label(content, found, pattern, labels)
    last = final_sentence(text.strip(), LONGEST)
    return _last_word(last, labels) if last and not DOUBT.search(last) else None


def _last_word(last: str, labels: tuple[str, ...]) -> str | None:
    """The label that a sentence ends in, if it names no other."""
    pattern = re.compile(rf"(?<!\w|[-'’])(?:{_either(labels)})(?!\w|[-'’]\w)", re.IGNORECASE)
    found = list(pattern.finditer(last))
    named = {_spelled(one[0], labels) for one in found}
    if len(named) != 1 or re.search(r"\w", last[found[-1].end() :]):
        return None
    return named.pop()


def _either(labels: tuple[str, ...]) -> str:
    """Any of the labels, the longest first."""
    return "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))


@lru_cache(maxsize=64)
def _label_pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"{OPEN}({_either(labels)})(?!\w|[-'’]\w)", re.IGNORECASE)


def _label(
    text: str, found: re.Match[str], pattern: re.Pattern[str], labels: tuple[str, ...]
) -> str | None:
    """The label as given in `labels`, None if another one is named beside it."""
    label = _spelled(found[1], labels)
    beside = BESIDE.match(text, found.end())
    other = pattern.match(text, beside.end()) if beside else None
    return None if other and _spelled(other[1], labels) != label else label


def _spelled(word: str, labels: tuple[str, ...]) -> str | None:
    return next((label for label in labels if label.casefold() == word.casefold()), None)


def read_text(text: str) -> str | None:
    """A text, its white space collapsed: what the last mark holds, or else all of it.

    A `####` line is a mark only at the end; elsewhere it is a heading of the text.
    """
    for place in reversed(marked(text)):
        held = " ".join(tidy(place.content).split())
        if held and (place.kind == "whole" or place.last):
            return held
    return " ".join(text.split()) or None
