"""Find the parts of a response that count: without think tags, its statements, its sentences.

The rule for all kinds of answers (numbers, letters, labels):

1. Marks: `#### …`, `\\boxed{…}` or `\\fbox{…}`, `<answer>…</answer>`; the last one that contains
   an answer. A later conclusion ("Final answer: …", "wait, the answer is …") overrides it.
2. Without a mark, the last phrase: "the answer is …", "Answer: …", "A: …" and the like.

A statement does not count if it has no answer ("the answer is unknown", "#### Step 1"), is
conditional ("if"), doubted ("I doubt that the answer is 7") or a question ("The answer is 7?"). A
wrong "right" spoils a result, an unread answer costs one item. So an answer next to a denial, a
bound, an operand or a correction is not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

WINDOW = 400
"""Maximum characters of a statement or a last sentence."""
MOST = 32
"""Statements of one kind to try, from the last one: enough in practice, and safe from floods."""

Kind = Literal["line", "whole", "phrase", "label"]
"""`####` line; content of a box or a tag; "answer is"; "Answer:", which may head a solution."""

# Reasoning and sentences

THINK_TAG = re.compile(r"[<\[](/?)(?:think|thinking|thought|reasoning)[>\]]", re.IGNORECASE)
FINAL_CHANNEL = re.compile(r"<\|channel\|>\s?final\b[^<\n]{0,40}<\|message\|>")
STOP = re.compile(r"[.!?](?=[\"')\]}*_`$]*(?:\s|$))|[。！？।]|\n")
FINISHED = re.compile(r"(?:[.!。！।][\"')\]}*_`$]*|\*\*|\\[)\]])\Z")

# Marks and phrases

NOUNS = tuple(
    "answer antwort antwoord respuesta réponse reponse risposta resposta ans svar odpowiedź ответ "
    "答案 答え 정답 답 उत्तर الإجابة الجواب".split()
)
CHOSEN = ("option", "choice", "label", "verdict", "sentiment", "category", "classification")
VERBS = (
    r"(?:is|are|was|(?:would|will|should|must|has\s+to)\s+be|equals|comes\s+(?:out\s+)?to|ist|"
    r"lautet|es|est|è|é|jest|är|er|это|равен|हे|है|هي|هو)(?![\w'’])|是|为|為|は|은|는"
)
MARK = re.compile(
    r"####+|\\(?:boxed|fbox)(?:\s*\{|\s+(?P<bare>[-+]?\d[\d.,]*(?<![.,])|[A-Z]\b))|<answer>",
    re.IGNORECASE,
)


def _phrase_pattern(nouns: tuple[str, ...]) -> re.Pattern[str]:
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


PHRASES = {nouns: _phrase_pattern(nouns) for nouns in (NOUNS, NOUNS + CHOSEN)}
NOT = re.compile(r"[\s*_]*(?:definitely\s+|certainly\s+)?not\b", re.IGNORECASE)
BUT = re.compile(r"\bbut\s+(?:rather\s+|instead\s+|actually\s+)?", re.IGNORECASE)
CONCLUDING = re.compile(
    r"\b(?:final|correct|actual|so|therefore|thus|hence|actually|finally|wait|sorry|conclusion)\b"
    r"\W{1,4}(?:(?:the|my|our|final|correct|actual)\W{1,4}){0,3}\Z",
    re.IGNORECASE,
)

# Words that retract an answer

_NOT = (
    r"(?:\b(?:not|never|neither|nor|cannot|no(?=\s)(?!\s+(?:doubt|wonder|question|other"
    r"|need|longer))"
    r"|doubt(?:s|ed|ful)?(?<!no\sdoubt)|myth|impossible|unable|nicht|kein\w*|pas|non(?!-)"
    r"|não|не|нет|niet|geen|inte|"
    r"ikke|ليس)\b|n['’]t\b|नहीं|不是|不可能|并非|並非|ではあり|ではな|じゃな|아니|아닙)"
)
_AGAINST = (
    r"\b(?:wrong|incorrect|false|unlikely|except|besides|other\s+than|rul(?:e[ds]?|ing)\s+out|"
    r"eliminat\w+|excluded?|(?<!at\s)least|worst)\b"
)
DENIAL = re.compile(_NOT, re.IGNORECASE)
REFUSAL = re.compile(f"{_NOT}|{_AGAINST}", re.IGNORECASE)
"""A sentence with one of these rejects an answer; `DENIAL` leaves out judgements."""

DOUBTED = re.compile(
    r"\b(?:if|whether|unless|suppose|supposing|assume|assuming)[^\w.!?\n]+"
    r"(?:\w+[^\w.!?\n]+){0,3}\Z"
    r"|(?:\bdoubt\w*|\bden(?:y|ie[ds])|\bmyth|(?:\b(?:not|never|hardly|no\s+one|nobody)|n['’]t)\s+"
    r"(?:\w+\s+){0,2}?(?:case|true|certain|clear|likely|sure|think|believe|say|mean|know)s?)\s+"
    r"(?:(?:that|if|the|my|correct|right|final|best)\s+)*\Z"
    r"|\b(?:wrong|incorrect|false|worst|least\s+\w+)\s+\Z",
    re.IGNORECASE,
)
"""Right before "answer": it is questioned, assumed, denied or the wrong one."""

HINDERED = re.compile(
    rf"{_NOT}(?:\W+\w+){{0,3}}\W*\Z|\b(?:impossible|unable)\b|\bI\s+need\W*\Z"
    r"|(?:[<>≤≥≠±]|\+/-|\\[lg]eq?)\W*\Z"
    r"|\b(?:half|twice|double|triple|thrice|quarter|third|root|square|cube"
    r"|(?<!\ba\s)(?:sum|product|difference|quotient))"
    r"(?:\s+(?:of|the|between|both|a|an))*[\s$*_`(]*\Z"
    r"|\b(?:step|page|question|problem|part|section|chapter|figure|table|line|example|exercise"
    r"|equation|note|case)\s+\Z",
    re.IGNORECASE,
)
"""Before a number: it is denied, an operand, or the number of a step or a page."""

BOUND = re.compile(
    r"\b(?:at\s+(?:least|most)|(?:more|less|fewer|greater|higher|lower|larger|smaller)\s+than"
    r"|(?<!left\s)over|under|above|below|beyond|up\s+to|minimum|maximum)\W*\Z",
    re.IGNORECASE,
)
"""Before the number of "the answer is": a bound; "She needs at least 18 boxes" may be right."""

UNFIT = re.compile(
    r"""
    [\s*_`"'”’$)\]}]{0,6}
    (?: (?:is|was|are|would\s+be|seems|can)\s+(?:(?:just|clearly|definitely|certainly)\s+)?
        (?:not|never|wrong|incorrect|false)\b
      | (?:is|was|are)n['’]t\b | cannot\b | can['’]t\b
      | (?:\w+\s+){0,2}(?:or|and)\s+(?:more|less|fewer|over|under|above|below|higher|lower|up)\b
      | (?:では|じゃ)(?:あり|な) | [이가]?\s?(?:아니|아닙) | नहीं
      | \s*[<>≤≥]=?\s*[A-Za-z]\b
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""After an answer: it is denied or a bound."""

_START = r"(?:\A|[.!?,;:\n–—-])[\s*_`\"'”’)$\]}]{0,6}(?:(?:but|and|oh|hmm|no)\b,?\s+)?"
_CORRECTED = re.compile(
    rf"{_START}(?:no[,.!:]|(?:(?:no\s+)?wait(?!\s+(?:times?|for|until)\b)|hold\s+on|oops|correction"
    r"|scratch\s+that|sorry|actually,?\s+(?:it|that|the\s+answer)|I\s+(?:mean|meant"
    r"|miscounted|forgot|was\s+wrong"
    r"|made\s+an?\s+(?:\w+\s+)?(?:mistake|error|slip)))\b)",
    re.IGNORECASE,
)
_DISOWNED = re.compile(
    r"[^.!?\n]{0,80}?[.!?,;\n]\W{0,6}(?:(?:but|and|though|yet)\s+)?"
    r"(?:(?:that|this|it|they|which)(?:\s+(?:is|are|was|were)|['’](?:s|re)))\s+"
    r"(?:wrong|incorrect|mistaken|false|not\s+(?:right|correct|true)\b)",
    re.IGNORECASE,
)


class Place(NamedTuple):
    """A place to read an answer from.

    Attributes:
        content: the text from the statement on, at most `WINDOW` characters.
        kind: how the answer is introduced.
        start: its position in the response.
        after: the text after it, which may retract it.
        last: no line follows it.
        final: a phrase that concludes, as strong as a mark.
    """

    content: str
    kind: Kind
    start: int
    after: str
    last: bool = False
    final: bool = False


def statements(text: str, *, chosen: bool = False) -> Iterator[Place]:
    """Places to read, the strongest first; the first one that contains an answer decides.

    Args:
        chosen: accept "option", "choice", "label" and "verdict" as well as "answer".
    """
    nouns = NOUNS + CHOSEN if chosen else NOUNS
    if places := marks(text):
        places += [phrase for phrase in _phrases(text, nouns, places[0].start) if phrase.final]
        yield from sorted(places, key=lambda place: place.start, reverse=True)
    yield from reversed(_phrases(text, nouns))


def marks(text: str) -> list[Place]:
    """The last marks of a text, in order."""
    places = [_mark(text, mark) for mark in list(MARK.finditer(text))[-MOST:]]
    return [place for place in places if place]


def _mark(text: str, mark: re.Match[str]) -> Place | None:
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
    close = _closing_brace(window) if "{" in mark[0] else window.lower().find("</answer>")
    if close < 0:
        return None
    after = text[end + close + 1 : end + close + 1 + WINDOW].removeprefix("/answer>")
    return Place(window[:close], "whole", mark.start(), after)


def _closing_brace(text: str) -> int:
    """The position of the brace that closes one opened before the text, -1 if there is none."""
    depth = 1
    for brace in re.finditer(r"(?<!\\)[{}]", text):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return -1


def _phrases(text: str, nouns: tuple[str, ...], start: int = 0) -> list[Place]:
    """The last phrases from `start` on."""
    lower = text.lower()
    if len(lower) == len(text):  # then a plain search finds the first one much faster
        at = [lower.find(stem, start) for stem in (*nouns, "a:", "a*", "a_")]
        start = max(start, min((place for place in at if place >= 0), default=len(text)) - 6)
    phrases = list(PHRASES[nouns].finditer(text, start))[-MOST:]
    return [place for phrase in phrases if (place := _phrase(text, phrase))]


def _phrase(text: str, phrase: re.Match[str]) -> Place | None:
    before = text[max(0, phrase.start() - 40) : phrase.start()]
    if DOUBTED.search(before):
        return None
    window = text[phrase.end() : phrase.end() + WINDOW]
    kind: Kind = "phrase" if phrase["verb"] else "label"
    last = not window.strip().partition("\n")[2].strip()
    final = bool(CONCLUDING.search(before))
    return Place(window, kind, phrase.start(), window, last, final)


def retracted(after: str, answer: str, answers_in: Callable[[str], list[str]]) -> bool:
    """Whether the words after an answer retract it and do not return to it.

    Args:
        answers_in: returns the answers that a text names, in order.
    """
    if _DISOWNED.match(after):
        return True
    if not (sign := _CORRECTED.search(after)):
        return False
    tail = after[sign.end() :]
    answers = answers_in(tail)
    return answers[-1] != answer if answers else bool(REFUSAL.search(tail))


def corrected(text: str) -> str:
    """The conclusion of a statement: "not 20 but 18" is 18; empty if it only denies."""
    while NOT.match(text):
        but = BUT.search(text)
        text = text[but.end() :] if but else ""
    return text


def outside_reasoning(text: str) -> str:
    """The text without think tags and their content, or the text on the channel "final".

    A closing tag alone ends reasoning that began with the text. If an opening tag is never closed,
    there is no answer yet, and the result is empty.
    """
    if "<|channel|>" in text:
        final = list(FINAL_CHANNEL.finditer(text))
        return text[final[-1].end() :].partition("<|")[0] if final else ""
    outside = ""
    start, thinking = 0, False
    for tag in THINK_TAG.finditer(text):
        if not tag[1]:
            outside += "" if thinking else text[start : tag.start()]
        elif not thinking:
            outside = ""
        thinking = not tag[1]
        start = tag.end()
    return "" if thinking else outside + text[start:]


def sentence(text: str, start: int = 0) -> tuple[str, str]:
    """The sentence that begins at `start`, without its end mark, and that mark ("" if none)."""
    end = STOP.search(text, start)
    return (text[start : end.start()], end[0]) if end else (text[start:], "")


def final_sentence(text: str) -> str | None:
    """The last sentence of a stripped text; None if it is cut off, a question or too long."""
    if not FINISHED.search(text[-12:]):
        return None
    window = text[-WINDOW:]
    begin = 0 if len(text) <= WINDOW else -1
    for stop in STOP.finditer(window.rstrip("\"')]}*_`$\\.!。！। ")):
        begin = stop.end()
    return None if begin < 0 else window[begin:]
