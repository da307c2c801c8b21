"""One of a few letters out of a response."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import NamedTuple

from workbench.answers.statements import WINDOW, statements
from workbench.answers.tidy import STOP, TABLE, sentence, tidy
from workbench.answers.wording import REFUSAL, UNFIT, retracted

LETTERS = tuple("ABCDEFGHIJ")
OPEN = r"[\s*_`\"'“‘$(\[{:：#]{0,12}"
CLOSE = r"[\s*_`\"'”’$)\]}.:!]{0,12}"
LINK = re.compile(
    r"[\s*_`\"')\]}]{0,6}(?:(?P<weak>[,;+–—-])|/|&|\||\b(?:or|and|nor)\b)[\s,]{0,4}"
    r"(?:(?:or|and|maybe)\s)?",
    re.IGNORECASE,
)
GOES_ON = re.compile(r"[*_`\"']{0,6}[,:]?[ \t]+(?!(?:and|or|nor|are)\b)[a-z]")
"""A label with a clause of its own is none that is added by a comma: "B; C is wrong"."""
PROSE = re.compile(r"\s+(?!(?:because|since|as|for|which|is|or|and)\b)[a-z]")
OF_A_NAME = re.compile(
    r"\b(?:vitamin|hepatitis|influenza|type|plan|figure|step|part|section|point|case)s?\s\Z",
    re.IGNORECASE,
)
PREDICATE = re.compile(r"[\W_]{0,4}\s(?:is|was|can|could|does|seems)")
NOT = re.compile(r"[\s*_]*not\b", re.IGNORECASE)
BUT = re.compile(r"\bbut\s+(?:rather\s+|instead\s+)?", re.IGNORECASE)
RIGHT = re.compile(
    r"[\s*_`:=–—-]*(?:[^\n,;:]{0,60}[:–—-]\s*)?[*_]*(?:correct|true|right|yes|✓|✔|✅)(?!\w)",
    re.IGNORECASE,
)
ASIDE = re.compile(
    r"\b(?i:among|between|of)\s+(?:(?:options?|choices?)\s+)?[A-J]\b(?:,\s*[A-J]\b)*(?:,?\s*(?:and|or)\s+[A-J]\b)?"
)
CLAUSES = re.compile(
    r"[,;]\s*(?:and\s+)?(?=(?:so|thus|therefore|hence|which\s+leaves|that\s+leaves|leaving)\b)"
)
TAIL = 4000
"""Characters at the end of a response in which an option is looked for that is not stated."""


class _Letters(NamedTuple):
    """Patterns for one set of letters, and the letters by their upper case."""

    whole: re.Pattern[str]
    stated: re.Pattern[str]
    first: re.Pattern[str]
    mention: re.Pattern[str]
    right: re.Pattern[str]
    option: re.Pattern[str]
    lower: re.Pattern[str]
    known: dict[str, str]

    def of(self, found: re.Match[str]) -> str:
        named = found.groupdict()
        return self.known[(named["bracketed"] or named["plain"] or named["lower"]).upper()]


@lru_cache(maxsize=64)
def _letters(labels: tuple[str, ...]) -> _Letters:
    any_of = either(labels)
    bracketed = rf"(?:[(\[{{]\s?)?(?P<bracketed>(?ai:{any_of}))\s?[)\]}}]"
    plain = rf"(?P<plain>{any_of})(?![A-Za-z0-9_À-\u1fff'’]|-\w)"
    lower = rf"(?P<lower>(?ai:{any_of}))(?=[*_`\"'”’$)\]]{{0,4}}[.!]?\s*(?:\Z|\n))"
    why = r"\s+(?:because|since|as)\b"
    named = r"(?i:(?:the\s)?(?:option|choice|letter|answer)\b)?"
    marked = rf"(?=[*_`\"']{{0,4}}(?:[).:;!]|\s*\Z|\s*\n|\s+[-–—]\s|{why}))"
    return _Letters(
        re.compile(rf"{OPEN}{named}{OPEN}(?P<plain>(?ai:{any_of}))(?P<bracketed>){CLOSE}\Z"),
        re.compile(rf"{OPEN}{named}{OPEN}(?:{bracketed}|{plain}|{lower})"),
        re.compile(rf"[\s*_`\"'$]{{0,12}}{named}{OPEN}(?:{bracketed}|{plain}{marked})"),
        re.compile(rf"[(\[{{]{bracketed}|(?<![A-Za-z0-9_À-\u1fff'’.-]){plain}"),
        re.compile(
            rf"\A[\s*_]*(?i:(?:so|thus|therefore|only|option|choice)\s+)*(?:{bracketed}|{plain})"
            r"[*_]*\s+is\s+(?:the\s+)?(?:only\s+)?(?:correct|right|best|true)\b(?!\s+(?:if|only|when))[^?]*\Z"
        ),
        re.compile(
            rf"(?<![A-Za-z0-9])(?:[(\[{{]\s?({any_of})\s?[)\]}}][.:]?|({any_of})\s?[).:=])(?=[\s*\d])"
        ),
        re.compile(rf"\s{{0,4}}(?P<bracketed>(?!))?(?P<plain>(?i:{any_of}))[.:]\s+\S[^\n]*\Z"),
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
    text = text if text.isascii() else text.translate(TABLE)
    if whole := letters.whole.match(text):
        return letters.of(whole)
    for place in statements(text, chosen=True):
        content = tidy(place.content)
        boxed = letters.whole.match(content) if place.kind == "whole" else None
        answer = letters.of(boxed) if boxed else _stated(content, letters)
        if answer is not None:
            taken = retracted(place.after, answer, partial(_named, letters=letters))
            return None if taken else answer or None
    comments = listed(text[:TAIL], letters.option, labels)
    if comments is not None:
        concluded = [*comments.values()][-1].partition("\n")[2]  # behind the line of the last one
        return judged(comments) or _mentioned(concluded, letters)
    if {*map(str.strip, text[:TAIL].splitlines())} >= {*labels[:3]} and len(labels) > 2:
        return None  # bare letters, a line each
    first = letters.first.match(text) or letters.lower.match(text)
    if first and not _set_aside(text, first, letters, labels):
        return letters.of(first)
    return _mentioned(text, letters)


def listed(text: str, option: re.Pattern[str], labels: tuple[str, ...]) -> dict[str, str] | None:
    """What is said of each option where a response goes through all of them, else None."""
    known = {label.casefold(): label for label in labels}
    marks = list(option.finditer(text))
    found = [known[next(filter(None, mark.groups())).casefold()] for mark in marks]
    whole = len(found) == len(labels) >= 2 and set(found) == {*labels}
    if not whole and (len(found) < 3 or found != [*labels[: len(found)]]):
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    comments = [text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
    return dict(zip(found, comments, strict=True))


def judged(comments: dict[str, str]) -> str | None:
    """The only option that is said to be right."""
    right = [label for label, said in comments.items() if RIGHT.match(said)]
    if not right:  # or the only one that is not refused
        right = [label for label, said in comments.items() if not REFUSAL.search(said)]
    return right[0] if len(right) == 1 else None


def _stated(content: str, letters: _Letters) -> str | None:
    """The letter of a statement: "" where it gives several, None where it gives none."""
    if NOT.match(content):
        rest = BUT.split(content.partition("\n")[0], maxsplit=1)
        content = rest[1] if len(rest) == 2 else ""
    found = letters.stated.match(content)
    if found and _echoed(content.partition("\n")[0], letters):
        return None  # "Options: A) … B) …"
    if not found or _article(content, found) or content[found.end() :].lstrip(" *)")[:1] == "?":
        return None
    if UNFIT.match(content, found.end()):
        return ""
    return "" if _another(content, found, letters) else letters.of(found)


def _article(text: str, found: re.Match[str]) -> bool:
    """Whether a letter is the word "a" or "I"."""
    return found["plain"] in {"A", "I", "a", "i"} and bool(PROSE.match(text, found.end()))


def _another(text: str, found: re.Match[str], letters: _Letters) -> bool:
    """Whether a different letter is given beside the one found."""
    link = LINK.match(text, found.end())
    other = letters.stated.match(text, link.end()) if link else None
    if not link or not other:
        return False
    if link["weak"] and other["plain"] and GOES_ON.match(text, other.end()):
        return False
    return not _article(text, other) and letters.of(other) != letters.of(found)


def _set_aside(text: str, first: re.Match[str], letters: _Letters, labels: tuple[str, ...]) -> bool:
    """Whether the letter a response begins with is refused, or one of several, or taken back."""
    after = text[first.end() : first.end() + WINDOW]
    return (
        bool(PREDICATE.match(after) and REFUSAL.search(sentence(text[:TAIL])[0]))
        or _another(text, first, letters)
        or _echoed(text.partition("\n")[0], letters)
        or _repeated(after, letters.of(first), letters, labels)
        or retracted(after, letters.of(first), partial(_named, letters=letters))
    )


def _echoed(line: str, letters: _Letters) -> bool:
    """Whether a line goes through several options: "(A) cat (B) dog"."""
    found = {next(filter(None, mark.groups())).upper() for mark in letters.option.finditer(line)}
    return len(found) > 1 and not REFUSAL.search(line)


def _repeated(after: str, first: str, letters: _Letters, labels: tuple[str, ...]) -> bool:
    """Whether a response writes out the options: the first one, and in a later line the second."""
    if labels.index(first) or len(labels) == 1:
        return False
    lines = [(letters.first.match(line), line) for line in after.split("\n")[1:]]
    return any(
        one and letters.of(one) == labels[1] and not REFUSAL.search(line) for one, line in lines
    )


def _named(text: str, letters: _Letters) -> list[str]:
    """The letters that a text names, in its order."""
    return [
        letters.of(letter)
        for letter in letters.mention.finditer(text)
        if not _article(text, letter)
        and not OF_A_NAME.search(text[max(0, letter.start() - 12) : letter.start()])
    ]


def _mentioned(text: str, letters: _Letters) -> str | None:
    """The only letter named, or else the only one of the last sentence."""
    named: list[set[str]] = []
    for one in _sentences(ASIDE.sub("", text[-TAIL:])):
        if right := letters.right.search(one):
            named.append({letters.of(right)})
            continue
        refused = "?" in one or REFUSAL.search(one)
        named.append(set() if refused else set(_named(one, letters)))
    every = set[str]().union(*named)
    last = every if len(every) == 1 else named[-1] if named else every
    return last.pop() if len(last) == 1 else None


def _sentences(text: str) -> Iterator[str]:
    """Sentences, with what they conclude apart: "not A, so B"."""
    start = 0
    for stop in STOP.finditer(text):
        yield from CLAUSES.split(text[start : stop.end()])
        start = stop.end()
    if text[start:].strip():
        yield from CLAUSES.split(text[start:])


def either(labels: tuple[str, ...]) -> str:
    """Any of the labels, the longest first."""
    return "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
