"""Words that take an answer back: denials, bounds, operands, corrections; one list for all readers.

A wrong "right" spoils a result, an unread answer only costs one item: what stands beside such a
word is not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable

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
"""A sentence with one of these names what is not the answer; `DENIAL` leaves judgements out."""

DOUBTED = re.compile(
    r"\b(?:if|whether|unless|suppose|supposing|assume|assuming)[^\w.!?\n]+"
    r"(?:\w+[^\w.!?\n]+){0,3}\Z"
    r"|(?:\bdoubt\w*|\bden(?:y|ie[ds])|\bmyth|(?:\b(?:not|never|hardly|no\s+one|nobody)|n['’]t)\s+"
    r"(?:\w+\s+){0,2}?(?:case|true|certain|clear|likely|sure|think|believe|say|mean|know)s?)\s+"
    r"(?:(?:that|if|the|my|correct|right|final|best)\s+)*\Z"
    r"|\b(?:wrong|incorrect|false|worst|least\s+\w+)\s+\Z",
    re.IGNORECASE,
)
"""Right before "answer": it is asked, supposed or denied, or the wrong one."""

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
"""Behind an answer: it is denied or a bound."""

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


def retracted(after: str, answer: str, given: Callable[[str], list[str]]) -> bool:
    """Whether the words from an answer on take it back and do not come to it again.

    Args:
        given: the answers that a text names, in its order.
    """
    if _DISOWNED.match(after):
        return True
    sign = _CORRECTED.search(after)
    if not sign:
        return False
    tail = after[sign.end() :]
    answers = given(tail)
    return answers[-1] != answer if answers else bool(REFUSAL.search(tail))
