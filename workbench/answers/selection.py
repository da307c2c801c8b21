"""Read an option (a letter or a label) from a response, or the text of an exact answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from workbench.answers.numerals import PLAIN_CHARACTERS, normalise
from workbench.answers.statements import (
    DENIAL,
    REFUSAL,
    STOP,
    UNFIT,
    WINDOW,
    corrected,
    final_sentence,
    marks,
    retracted,
    sentence,
    statements,
)

LETTERS = tuple("ABCDEFGHIJ")
OPEN = r"[\s*_`\"'“‘$(\[{:：#]{0,12}"
CLOSE = r"[\s*_`\"'”’$)\]}.:!]{0,12}"
LINK = re.compile(
    r"[\s*_`\"')\]}]{0,6}(?:(?P<weak>[,;+–—-])|/|&|\||\b(?:or|and|nor)\b)[\s,]{0,4}"
    r"(?:(?:or|and|maybe)\s)?",
    re.IGNORECASE,
)
GOES_ON = re.compile(r"[*_`\"']{0,6}[,:]?[ \t]+(?!(?:and|or|nor|are)\b)[a-z]")
"""A label with a verb after it begins a new clause and is no second answer: "B; C is wrong"."""
PROSE = re.compile(r"\s+(?!(?:because|since|as|for|which|is|or|and)\b)[a-z]")
OF_A_NAME = re.compile(
    r"\b(?:vitamin|hepatitis|influenza|type|plan|figure|step|part|section|point|case)s?\s\Z",
    re.IGNORECASE,
)
PREDICATE = re.compile(r"[\W_]{0,4}\s(?:is|was|can|could|does|seems)")
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
"""Characters at the end of a response that are searched if no statement has an option."""
BESIDE = re.compile(
    r"(?P<weak>[.!;][\s*_]{1,6})|[\s,/|&]{0,6}(?:(?:or|and|nor|vs\.?|versus)\s)?\s{0,4}",
    re.IGNORECASE,
)
NO_LABEL = re.compile(
    r"[\s*_]*\?|\s+(?:idea|doubt|clue|comment|opinion|answer|one|matter|wonder|way)\b",
    re.IGNORECASE,
)
DOUBT = re.compile(r"\b(?:whether|if|or|could|may|might)\b|\?", re.IGNORECASE)


class _Letters:
    """The patterns for one set of letters, and the methods that read a letter with them."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        either = _either(labels)
        bracketed = rf"(?:[(\[{{]\s?)?(?P<bracketed>(?ai:{either}))\s?[)\]}}]"
        plain = rf"(?P<plain>{either})(?![A-Za-z0-9_À-\u1fff'’]|-\w)"
        lower = rf"(?P<lower>(?ai:{either}))(?=[*_`\"'”’$)\]]{{0,4}}[.!]?\s*(?:\Z|\n))"
        why = r"\s+(?:because|since|as)\b"
        noun = r"(?i:(?:the\s)?(?:option|choice|letter|answer)\b)?"
        marked = rf"(?=[*_`\"']{{0,4}}(?:[).:;!]|\s*\Z|\s*\n|\s+[-–—]\s|{why}))"
        self.labels = labels
        self.by_capital = {label.upper(): label for label in labels}
        self.whole = re.compile(rf"{OPEN}{noun}{OPEN}(?P<plain>(?ai:{either})){CLOSE}\Z")
        self.stated = re.compile(rf"{OPEN}{noun}{OPEN}(?:{bracketed}|{plain}|{lower})")
        self.first = re.compile(rf"[\s*_`\"'$]{{0,12}}{noun}{OPEN}(?:{bracketed}|{plain}{marked})")
        self.alone = re.compile(rf"\s{{0,4}}(?P<plain>(?i:{either}))[.:]\s+\S[^\n]*\Z")
        self.mention = re.compile(rf"[(\[{{]{bracketed}|(?<![A-Za-z0-9_À-\u1fff'’.-]){plain}")
        self.right = re.compile(
            rf"\A[\s*_]*(?i:(?:so|thus|therefore|only|option|choice)\s+)*(?:{bracketed}|{plain})"
            r"[*_]*\s+is\s+(?:the\s+)?(?:only\s+)?(?:correct|right|best|true)\b(?!\s+(?:if|only|when))[^?]*\Z"
        )
        self.option = re.compile(
            rf"(?<![A-Za-z0-9])(?:[(\[{{]\s?({either})\s?[)\]}}][.:]?|({either})\s?[).:=])(?=[\s*\d])"
        )

    def of(self, match: re.Match[str]) -> str:
        """The letter in a match."""
        return self.by_capital[next(filter(None, match.groupdict().values())).upper()]

    def in_statement(self, content: str) -> str | None:
        """The letter in a statement: "" if it has several, None if it has none."""
        content = corrected(content)
        letter = self.stated.match(content)
        if letter and self.lists_options(content.partition("\n")[0]):
            return None  # "Options: A) … B) …"
        if not letter or _is_article(letter) or content[letter.end() :].lstrip(" *)")[:1] == "?":
            return None
        if UNFIT.match(content, letter.end()):
            return ""
        return "" if self.is_one_of_several(letter) else self.of(letter)

    def is_one_of_several(self, letter: re.Match[str]) -> bool:
        """Whether a different letter is named together with this one."""
        link = LINK.match(letter.string, letter.end())
        other = self.stated.match(letter.string, link.end()) if link else None
        if not link or not other:
            return False
        if link["weak"] and other["plain"] and GOES_ON.match(letter.string, other.end()):
            return False
        return not _is_article(other) and self.of(other) != self.of(letter)

    def is_set_aside(self, first: re.Match[str]) -> bool:
        """Whether the first letter of a response is rejected, retracted or one of several.

        It is one of several if the response lists the options: the second one on a later line.
        """
        text = first.string
        after = text[first.end() : first.end() + WINDOW]
        lines = [(self.first.match(line), line) for line in after.split("\n")[1:]]
        return (
            bool(PREDICATE.match(after) and REFUSAL.search(sentence(text[:TAIL])[0]))
            or self.is_one_of_several(first)
            or self.lists_options(text.partition("\n")[0])
            or retracted(after, self.of(first), self.named)
            or any(
                second and self.labels[:2] == (self.of(first), self.of(second))
                for second, line in lines
                if not REFUSAL.search(line)
            )
        )

    def lists_options(self, line: str) -> bool:
        """Whether a line lists several options: "(A) cat (B) dog"."""
        options = {_option(mark).upper() for mark in self.option.finditer(line)}
        return len(options) > 1 and not REFUSAL.search(line)

    def named(self, text: str) -> list[str]:
        """The letters that a text names, in order."""
        return [
            self.of(letter)
            for letter in self.mention.finditer(text)
            if not _is_article(letter)
            and not OF_A_NAME.search(text[max(0, letter.start() - 12) : letter.start()])
        ]

    def settled(self, text: str) -> str | None:
        """The only letter in the text, or else the only one in its last sentence."""
        named: list[set[str]] = []
        for clause in _clauses(ASIDE.sub("", text[-TAIL:])):
            if right := self.right.search(clause):
                named.append({self.of(right)})
                continue
            refused = "?" in clause or REFUSAL.search(clause)
            named.append(set() if refused else set(self.named(clause)))
        every = set[str]().union(*named)
        last = every if len(every) == 1 else named[-1] if named else every
        return last.pop() if len(last) == 1 else None


_letters = lru_cache(maxsize=64)(_Letters)


def read_letter(text: str, labels: tuple[str, ...]) -> str | None:
    """The option that a response chooses.

    In order: the whole response; a statement (`statements`); a marked letter at the very start
    ("B) because …"); the only letter in sentences that reject nothing; the only letter of the last
    sentence, if that rejects nothing. The case must match unless the letter is bracketed or alone.
    "A" and "I" do not count if a word follows ("A cat sat").
    """
    letters = _letters(labels)
    text = text if text.isascii() else text.translate(PLAIN_CHARACTERS)
    if whole := letters.whole.match(text):
        return letters.of(whole)
    for place in statements(text, chosen=True):
        content = normalise(place.content)
        boxed = letters.whole.match(content) if place.kind == "whole" else None
        answer = letters.of(boxed) if boxed else letters.in_statement(content)
        if answer is not None:
            return None if retracted(place.after, answer, letters.named) else answer or None
    if (comments := _comments(text[:TAIL], letters.option, labels)) is not None:
        concluded = [*comments.values()][-1].partition("\n")[2]  # after the last option's line
        return _called_right(comments) or letters.settled(concluded)
    if {*map(str.strip, text[:TAIL].splitlines())} >= {*labels[:3]} and len(labels) > 2:
        return None  # bare letters, one per line
    first = letters.first.match(text) or letters.alone.match(text)
    return letters.of(first) if first and not letters.is_set_aside(first) else letters.settled(text)


def _option(mark: re.Match[str]) -> str:
    return str(next(filter(None, mark.groups())))


def _comments(text: str, option: re.Pattern[str], labels: tuple[str, ...]) -> dict[str, str] | None:
    """The comment on each option if a response discusses all of them, else None."""
    options = list(option.finditer(text))
    names = [_as_given(_option(mark), labels) for mark in options]
    whole = len(names) == len(labels) >= 2 and set(names) == {*labels}
    if not whole and (len(names) < 3 or names != [*labels[: len(names)]]):
        return None
    ends = [mark.start() for mark in options[1:]] + [len(text)]
    comments = [text[mark.end() : end] for mark, end in zip(options, ends, strict=True)]
    return dict(zip(names, comments, strict=True))


def _called_right(comments: dict[str, str]) -> str | None:
    """The only option that is called right, or else the only one that is not rejected."""
    if not (right := [label for label, comment in comments.items() if RIGHT.match(comment)]):
        right = [label for label, comment in comments.items() if not REFUSAL.search(comment)]
    return right[0] if len(right) == 1 else None


def _is_article(letter: re.Match[str]) -> bool:
    """Whether a letter is the word "a" or "I"."""
    return letter["plain"] in {*"AIai"} and bool(PROSE.match(letter.string, letter.end()))


def _clauses(text: str) -> Iterator[str]:
    """Sentences, with conclusions as separate ones: "not A, so B"."""
    start = 0
    for stop in STOP.finditer(text):
        yield from CLAUSES.split(text[start : stop.end()])
        start = stop.end()
    if text[start:].strip():
        yield from CLAUSES.split(text[start:])


def read_label(text: str, labels: tuple[str, ...]) -> str | None:
    """The label at the start of a response, else that of its last statement, else its last word.

    Only as a whole word, in any case. None if another label is next to it, or if it is retracted.
    The last word counts if its sentence neither denies nor doubts anything.
    """
    at_start, anywhere, listed = _label_patterns(labels)
    comments = _comments(text[:TAIL], listed, labels)
    if comments is not None:  # "Positive: 20 %, Negative: 80 %"
        return _called_right(comments)
    first = at_start.match(text)
    if first and not _is_no_label(first):
        return _sole_label(first, text[first.end() : first.end() + WINDOW], labels)
    for place in statements(text, chosen=True):
        if label := at_start.match(normalise(place.content)):
            return _sole_label(label, place.after, labels)
    last = final_sentence(text.strip())
    if not last or DOUBT.search(last) or DENIAL.search(last):
        return None
    named = list(anywhere.finditer(last))
    if not named or re.search(r"\w", last[named[-1].end() :]):
        return None
    names = {_as_given(word[0], labels) for word in named}
    return names.pop() if len(names) == 1 else None


def _is_no_label(first: re.Match[str]) -> bool:
    """Whether a label at the start is questioned, denied or part of a phrase such as "No idea"."""
    text, end = first.string, first.end()
    denied = PREDICATE.match(text, end) and DENIAL.search(sentence(text[:TAIL])[0])
    return bool(denied or NO_LABEL.match(text, end))


def _sole_label(first: re.Match[str], after: str, labels: tuple[str, ...]) -> str | None:
    """The label, if no other one is next to it and the words after it do not retract it."""
    at_start, anywhere, _ = _label_patterns(labels)
    label = _as_given(first[1], labels)
    beside = BESIDE.match(first.string, first.end())
    other = at_start.match(first.string, beside.end()) if beside else None
    clause = beside and other and beside["weak"] and GOES_ON.match(first.string, other.end())
    if other and not clause and _as_given(other[1], labels) != label:
        return None

    def named(text: str) -> list[str]:
        return [_as_given(word[0], labels) for word in anywhere.finditer(text)]

    return None if retracted(after, label, named) else label


@lru_cache(maxsize=64)
def _label_patterns(labels: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """Patterns for a label at the start, anywhere, and in a list of labels."""
    either, ends = _either(labels), r"(?!\w|[-'’]\w)"
    patterns = (
        rf"{OPEN}({either}){ends}",
        rf"(?<!\w|[-'’])(?:{either}){ends}",
        rf"(?<!\w)({either})\s?[:=]",
    )
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


def _either(labels: tuple[str, ...]) -> str:
    """A pattern for any of the labels, the longest first."""
    return "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))


def _as_given(word: str, labels: tuple[str, ...]) -> str:
    """The label in the spelling of `labels`."""
    return next((label for label in labels if label.casefold() == word.casefold()), word)


def read_text(text: str) -> str | None:
    """A text with its white space collapsed: the content of the last mark, or else all of it.

    A `####` line is a mark only at the end; elsewhere it is a heading.
    """
    for place in reversed(marks(text)):
        content = " ".join(normalise(place.content).split())
        if content and (place.kind == "whole" or place.last):
            return content
    return " ".join(text.split()) or None
