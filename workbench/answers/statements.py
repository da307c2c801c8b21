"""Where a response states its answer: marks, phrases in several languages, in order of weight.

The rule, whatever the answers are (numbers, letters, labels):

1. Marks: `#### …`, `\\boxed{…}` or `\\fbox{…}`, `<answer>…</answer>`; the last one that holds an
   answer. Only a later conclusion ("Final answer: …", "so the answer is …", "wait, the answer
   is …") takes its place.
2. Without a mark, the last phrase: "the answer is …", "Answer: …", "A: …" and the like.

A statement with no answer in it ("the answer is unknown", "#### Step 1"), under an "if", doubted
("I doubt that the answer is 7") or asked ("The answer is 7?") is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from workbench.answers.wording import DOUBTED

WINDOW = 400
"""Characters of a statement that are looked at."""
MOST = 32
"""Statements of a kind that are tried, from the last one on: enough, and safe from floods."""

Kind = Literal["line", "whole", "phrase", "label"]
"""`####` line; content of a box or a tag; "answer is"; "Answer:", which may head a solution."""

NOUNS = (
    *("answer", "antwort", "antwoord", "respuesta", "réponse", "reponse", "risposta", "resposta"),
    *(
        "ans",
        "svar",
        "odpowiedź",
        "ответ",
        "答案",
        "答え",
        "정답",
        "답",
        "उत्तर",
        "الإجابة",
        "الجواب",
    ),
)
CHOSEN = ("option", "choice", "label", "verdict", "sentiment", "category", "classification")
SHORT = ("a:", "a*", "a_")
VERBS = (
    r"(?:is|are|was|(?:would|will|should|must|has\s+to)\s+be|equals|comes\s+(?:out\s+)?to|ist|"
    r"lautet|es|est|è|é|jest|är|er|это|равен|हे|है|هي|هو)(?![\w'’])|是|为|為|は|은|는"
)
MARK = re.compile(
    r"####+|\\(?:boxed|fbox)(?:\s*\{|\s+(?P<bare>[-+]?\d[\d.,]*(?<![.,])|[A-Z]\b))|<answer>",
    re.IGNORECASE,
)


def _phrase(nouns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(
        rf"""
        (?<![a-zß-ÿа-я])(?:{"|".join(nouns)})s?(?![a-z])
        (?: \s+(?:to|for|of|in)\b[^.\n:=?]{{0,80}}? | \s*\([^()\n]{{0,40}}\) )?
        [\s*_`"'”’\])]{{0,6}}
        (?: (?P<verb>{VERBS}|=(?!=)) | (?P<colon>[:：—→⇒]|-(?=\s)|(?<=\n)) )
      | (?:^|\n)[ \t*_]{{0,4}}A[*_]{{0,2}}(?P<short>:)
        """,
        re.VERBOSE | re.IGNORECASE,
    )


PHRASES: dict[tuple[str, ...], re.Pattern[str]] = {
    nouns: _phrase(nouns) for nouns in (NOUNS, NOUNS + CHOSEN)
}
FINAL = re.compile(
    r"\b(?:final|correct|actual|so|therefore|thus|hence|actually|finally|wait|sorry|conclusion)\b"
    r"\W{1,4}(?:(?:the|my|our|final|correct|actual)\W{1,4}){0,3}\Z",
    re.IGNORECASE,
)


class Place(NamedTuple):
    """Where an answer should be found.

    Attributes:
        content: from the statement on, at most `WINDOW` characters.
        kind: how it was introduced.
        start: where it stands in the response.
        after: what follows, where it may be taken back.
        last: no line follows it.
        final: a phrase that concludes, as good as a mark.
    """

    content: str
    kind: Kind
    start: int
    after: str
    last: bool = False
    final: bool = False


def statements(text: str, *, chosen: bool = False) -> Iterator[Place]:
    """Places to read, the weightiest first; the first one that holds an answer decides.

    Args:
        chosen: know "option", "choice", "label" and "verdict" beside "answer".
    """
    nouns = NOUNS + CHOSEN if chosen else NOUNS
    if marks := marked(text):
        said = _said(text, nouns, marks[0].start)
        strong = [*marks, *(phrase for phrase in said if phrase.final)]
        yield from sorted(strong, key=lambda place: place.start, reverse=True)
    yield from reversed(_said(text, nouns))


def marked(text: str) -> list[Place]:
    """The last marks of a text, in its order."""
    places = [_marked(text, mark) for mark in list(MARK.finditer(text))[-MOST:]]
    return [place for place in places if place]


def _marked(text: str, mark: re.Match[str]) -> Place | None:
    end = mark.end()
    window = text[end : end + WINDOW]
    if mark[0].startswith("#"):
        body = window.lstrip(" \t")
        if body.startswith("\n"):
            body = body.lstrip()
        line, more, rest = body.partition("\n")
        cut = not more and end + WINDOW < len(text)
        return None if cut else Place(line, "line", mark.start(), window, not rest.strip())
    if mark["bare"]:  # \\boxed 5
        return Place(mark["bare"], "whole", mark.start(), window)
    close = _closed(window) if "{" in mark[0] else window.lower().find("</answer>")
    if close < 0:
        return None
    after = text[end + close + 1 : end + close + 1 + WINDOW].removeprefix("/answer>")
    return Place(window[:close], "whole", mark.start(), after)


def _closed(text: str) -> int:
    """Where the brace closes that was opened before the text, -1 if it is not closed."""
    depth = 1
    for brace in re.finditer(r"(?<!\\)[{}]", text):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return -1


def _said(text: str, nouns: tuple[str, ...], start: int = 0) -> list[Place]:
    """The last phrases from `start` on."""
    lower = text.lower()
    if len(lower) == len(text):  # then a plain search tells, much faster, where the first one is
        at = [lower.find(stem, start) for stem in (*nouns, *SHORT)]
        start = max(start, min((place for place in at if place >= 0), default=len(text)) - 6)
    found = list(PHRASES[nouns].finditer(text, start))[-MOST:]
    return [place for one in found if (place := _phrased(text, one))]


def _phrased(text: str, found: re.Match[str]) -> Place | None:
    before = text[max(0, found.start() - 40) : found.start()]
    if DOUBTED.search(before):
        return None
    window = text[found.end() : found.end() + WINDOW]
    kind: Kind = "phrase" if found["verb"] else "label"
    last = not window.strip().partition("\n")[2].strip()
    return Place(window, kind, found.start(), window, last, final=bool(FINAL.search(before)))
