"""Read a number or an expression from a statement, or from a response without a statement."""

from __future__ import annotations

import re
from typing import Any

from workbench.answers.expressions import LONGEST
from workbench.answers.formula import parse
from workbench.answers.numerals import Number, normalise, number_at, numbers_in, written
from workbench.answers.statements import (
    BOUND,
    HINDERED,
    UNFIT,
    Place,
    corrected,
    final_sentence,
    retracted,
    sentence,
    statements,
)

HEDGES = (
    r"approximately|approx\.?|about|around|roughly|nearly|almost|exactly|precisely|equal\s+to|"
    r"therefore|thus|hence|simply|just|only|still|now|indeed|that|a\s+total\s+of|"
    r"also|donc|entonces|quindi|portanto|logo|environ|etwa|ungefähr"
)
LEAD = re.compile(
    rf"(?:[=-]>|[\s*_`\"'~≈:：=(\[{{|…]|\.{{2,}}|(?:{HEDGES})\b|\$(?=\s*[$*_\\]))*", re.IGNORECASE
)
MATHS = re.compile(r"\$(?=-?\s?[\d\\])")

CLOSERS = str.maketrans(dict.fromkeys("*_`\"')]}$°%", " "))
UNIT = re.compile(r"(?:[^\W\d_]|[€£¥₹¢/²³])[\w²³/.^'-]*")
CLAUSE = re.compile(r"[.,;!(\n]")
NO_UNIT = re.compile(
    r"\b(?:is|are|was|were|has|have|had|minus|plus|times|divided|and|or|through|mod|modulo"
    r"|squared|cubed|factorial|not|[xyz])\b",
    re.IGNORECASE,
)

OPERATOR = re.compile(
    r"\s*(?:[+*/×÷·]\s*(?:[\d(\\$.]|[A-Za-z](?![A-Za-z]))|-\s*[\d(\\$]|x\s*\d"
    r"|(?:plus|minus|times|(?:divided|multiplied)\s+by|mod|modulo|remainder|out\s+of"
    r")\s+\$?\d|(?:in|(?:more|less|fewer)\s+than)\s+\$?\d{1,3}\s*(?:[.,!?]|\Z)|squared\b"
    r"|cubed\b|factorial\b)"
)
SHARE = re.compile(r"\s*of\s+[$€£]?\d")
EQUALS = re.compile(r"(?<![<>!=≠≤≥])=(?![=>])|\bwhich\s+(?:is|equals|makes|gives)\b")
NAMED = re.compile(r"[\s$]*[\w\s]{0,30}=")
NAME = r"(?<![\w\\*/+^-])[A-Za-z](?:_(?:\w|\{\w+\}))?\s*=(?!=)"
SEVERAL = re.compile(rf"{NAME}[^=]*(?:[,;]|\b(?:and|or)\b|\d\s)[\s$(]*{NAME}")
"""Two unknowns with one value each are not a single number."""
SCRIPT = re.compile(r"[_^]\s?\{[^{}]*\}")
REVERSED = re.compile(r"([^=]+)=\s*[A-Za-z]\s*")
ASIDE = re.compile(r"[(,;.]|\b(?:because|since|as|for|not)\b")

LINKED = re.compile(
    r"(?:[\s$*`]*[^\W\d_][\w'/-]*){0,2}?[\s*`$]*"
    r"(?:,\s*(?:and|or)\b|\b(?:and|or|to|y|und|oder|et|ou|plus|minus|times|through)\b|[,&;])[\s$*`]*",
    re.IGNORECASE,
)
COMPOUND = re.compile(
    r"[\s*]*(?:years?|months?|weeks?|days?|h|hrs?|hours?|min|minutes?|feet|foot|ft|lbs?|pounds?"
    r"|dollars?|euros?|k?m|kg|g)\b[\s,]*\d|\s+\d|'\s?\d",
    re.IGNORECASE,
)
BULLET = re.compile(r"\A[\s*]*\n\s*[->]\s")
HEADING = re.compile(r"\s*\d+(?:[.)]\s+|:\s+)[*_]*[A-Za-z]")
CLOCK = re.compile(r"\d{1,3}(?::\d{1,3})+(?:\s?[ap]\.?m\b\.?)?(?![\w:])", re.IGNORECASE)
ROUTE = re.compile(r"\b(?:by|from|if|when|using|between|than|step|no|not|either)\b", re.IGNORECASE)
MEANS = re.compile(r"\bby\s+\w+ing\b", re.IGNORECASE)
QUESTION = re.compile(r"[\w\s*_`$]{0,30}\?")

FENCES = {"$$": "$$", "$": "$", r"\(": r"\)", r"\[": r"\]"}
FENCE = re.compile(r"\s*(\$\$?|\\\(|\\\[)")
RANGE = re.compile(r"[\d.,]+(?:[-–/][\d.,]+)+")
WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
NO_PROSE = re.compile(r"\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\s*\*?\s*\{[^{}]*\}")
SHORT = set("no is in at of to am pm if on it we he me my by do go so up us an as be".split())
MARKS = re.compile(r"[(\[=<>\\,]")
STRUCTURES = {"(", "[", r"\{", "mat", "cup", "cap", "rel"}
ALGEBRA = re.compile(r"[\d+*/^<>≤≥-]")
FUNCTIONS = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan"),
    *("log", "ln", "exp", "sqrt", "pi", "infty", "max", "min", "pmatrix", "matrix"),
}


def boxed(text: str) -> str | None:
    """The content of a response's last box or tag, unchanged."""
    place = next((place for place in statements(text) if place.kind == "whole"), None)
    taken = place is None or retracted(place.after, place.content.strip(), _numbers_named)
    return None if place is None or taken else place.content


def read_several(text: str) -> str | None:
    """The list or equation that a response states, unchanged: here "1, 2" is not a decimal."""
    for place in statements(text):
        content = place.content
        if place.kind != "whole":
            content = sentence(content.lstrip(" \n:*").partition("\n")[0])[0]
        if content.strip():
            return expression(content)
    return expression(text)


def read_number(text: str) -> str | None:
    """The answer at the end of worked reasoning: a number as `written`, or an expression unchanged.

    It comes from `statements`. Without one: a response that is only a number, or else its last
    sentence if that is complete and has exactly one number, or a number after its last "=". Two
    adjacent amounts ("5 apples and 3 pears", "18 or 20") are not an answer.
    """
    hindrances = [MEANS]
    for place in statements(text):
        hindrances = [MEANS, BOUND]
        if (answer := _READERS[place.kind](place)) is not None:
            return None if not answer or retracted(place.after, answer, _numbers_named) else answer
    text = text.strip()
    if len(text) <= LONGEST and (number := bare_number(text)):
        return written(number.value)
    if last := final_sentence(text):
        return _conclusion(normalise(last), *hindrances)
    last = final_sentence(f"{text}.")  # an equation needs no full stop
    number = _after_equals(normalise(last)) if last and not WORD.search(last) else None
    return written(number.value) if number and not text.endswith("?") else None


def _numbers_named(text: str) -> list[str]:
    """The numbers in a text."""
    return [written(number.value) for number in numbers_in(normalise(text))]


def bare_number(text: str) -> Number | None:
    """The number, if the text is only a number with at most a currency and a unit."""
    text = normalise(text)
    number = _first_number(text)
    return number if number and "!" not in text and _is_unit(text[number.end :]) else None


def expression(text: str) -> str | None:
    """A text as an expression without its delimiters, None if it is prose or empty."""
    text = text.strip().rstrip(".,;").strip("*` ")
    for opening, closing in FENCES.items():
        if text.startswith(opening) and text.endswith(closing) and len(text) > 4:
            text = text[len(opening) : -len(closing)].strip()
    text = text.rstrip(".")
    words = {word.lower() for word in WORD.findall(NO_PROSE.sub(" ", text))}
    prose = any(len(word) > 2 or word in SHORT for word in words - FUNCTIONS - {"and"})
    if prose or len(text) > LONGEST or RANGE.fullmatch(text) or not re.search(r"[^\W_]", text):
        return None
    return text


# Readers of statements: "" for a statement whose answer cannot be read, None for no statement.


def _line(place: Place) -> str | None:
    """After `####`; a heading is not an answer."""
    if not place.last and HEADING.match(place.content):
        return None
    answer = _from_start(normalise(place.content))
    return answer if answer is not None else _formula(place.content)


def _label(place: Place) -> str | None:
    """After "Answer:", which may head a whole solution; then its first sum is not the answer."""
    line = BULLET.sub("", place.content).lstrip(" \n:*").partition("\n")[0]
    words = normalise(sentence(line)[0])
    number = _first_number(words)
    if not place.last and (number or NAMED.match(words)):
        rest = words[number.end :] if number else ""
        clause = CLAUSE.split(rest, maxsplit=1)[0]
        if not number or OPERATOR.match(rest) or not _is_unit(clause):
            return None
    answer = _from_start(words)
    return answer if answer is not None else _formula(line)


def _phrase(place: Place) -> str | None:
    """After "the answer is"."""
    words, mark = sentence(normalise(place.content.lstrip(" \n:*")))
    if "?" in mark:
        return None
    if (answer := _from_start(words)) is None:
        answer = _formula(place.content)
    return _only_number(words) if answer is None else answer


def _whole(place: Place) -> str | None:
    """In a box or a tag: all of it is the answer, words included."""
    text = normalise(place.content).strip()
    if not re.search(r"[^\W_]", text):
        return None
    tree = parse(place.content) if MARKS.search(place.content) else None
    number = bare_number(text) if tree is None or tree[0] not in STRUCTURES else None
    if number:
        return written(number.value)
    formula = expression(place.content)
    if formula is not None and (tree is None or tree[0] != "t"):
        return _reduced(formula)
    number = None if ALGEBRA.search(text.rpartition("=")[0]) else _after_equals(text)
    if number:
        return written(number.value)
    answer = _from_start(text)
    return (_only_number(text) if answer is None else answer) or text


def _reduced(formula: str) -> str:
    """The value of "x = 5", "f(3) = 5" or "9 * 2 = 18"; any other equation is itself the answer."""
    bare = SCRIPT.sub(lambda script: "_" * len(script[0]), formula)
    left, sign, right = formula[: bare.rfind("=")], "=" in bare, formula[bare.rfind("=") + 1 :]
    tree = parse(formula)
    if not sign or not right.strip() or (tree and tree[0] != "rel"):
        return formula
    if tree is None:
        reduces = not ALGEBRA.search(normalise(left))
    else:
        comes_to = _defines(tree) or all(map(_is_numeric, tree[1:-1:2]))
        reduces = comes_to and set(tree[2::2]) == {"="}
    if REVERSED.fullmatch(formula):  # 5 = x
        left, right, reduces = right, left, True
    if not reduces:
        return formula
    number = bare_number(right)
    return written(number.value) if number else formula


def _defines(relation: list[Any]) -> bool:
    """Whether it assigns a value to a name or a function: x = 5, f(3) = 2 + 3 = 5."""
    first = relation[1]
    named = first[0] == "v" and not re.search(r"\(.*[A-Za-z]", first[1])
    return named and str(first) not in str(relation[3:])


def _is_numeric(formula: object) -> bool:
    """Whether a formula has no names."""
    return not isinstance(formula, list) or (formula[0] != "v" and all(map(_is_numeric, formula)))


_READERS = {"line": _line, "label": _label, "phrase": _phrase, "whole": _whole}


def _from_start(text: str) -> str | None:
    """The number at the start of a statement, or the value of the sum there."""
    text = corrected(text)
    if clock := CLOCK.match(text, _end_of_lead(text)):
        return clock[0]
    if number := _first_number(text):
        return _with_what_follows(number, text)
    number = _after_equals(text) if NAMED.match(text) else None
    return written(number.value) if number else None


def _with_what_follows(number: Number, text: str) -> str | None:
    """The value of a number at the start together with the words after it."""
    rest = text[number.end :]
    last: Number | None = number
    share = SHARE.match(rest) and re.search("[%/]", text[number.start : number.end])
    if QUESTION.match(rest):
        return None
    if OPERATOR.match(rest):
        last = _after_equals(rest)
    elif UNFIT.match(rest) or _has_another(rest):  # 18 or more, 18 or 20
        return ""
    elif "=" in rest and not ASIDE.search(rest.partition("=")[0]):
        last = _after_equals(rest) or number
    elif share:  # 20 % of 90
        return ""
    return written(last.value) if last else None


def _has_another(rest: str) -> bool:
    """Whether a second number follows the first."""
    rest = rest[:80]
    link = LINKED.match(rest)
    return bool(COMPOUND.match(rest) or (link and number_at(rest, link.end())))


def _is_unit(rest: str) -> bool:
    """Whether the text after a number is at most its unit."""
    words = rest.translate(CLOSERS).strip(" .!。,;").split()
    plain = len(words) <= 3 and all(map(UNIT.fullmatch, words))
    return plain and not NO_UNIT.search(rest) and not (words and numbers_in(rest))


def _end_of_lead(text: str) -> int:
    """The position after emphasis, hedges and the like."""
    lead = LEAD.match(text)
    return lead.end() if lead else 0


def _first_number(text: str) -> Number | None:
    """The number at the start."""
    start = _end_of_lead(text)
    number = number_at(text, start)
    if number is None and (maths := MATHS.match(text, start)):
        number = number_at(text, maths.end())
    if number is None:
        return None
    point = text[:start].rstrip()[-1:] in {"(", "[", "{"} and "," in text[start : number.end]
    return None if point and number.value.denominator > 1 else number


def _after_equals(text: str) -> Number | None:
    """The number right after the last "="."""
    signs = list(EQUALS.finditer(SCRIPT.sub(lambda script: "_" * len(script[0]), text)))
    if not signs or SEVERAL.search(text):
        return None
    rest = text[signs[-1].end() :]
    number = _first_number(rest)
    return None if number is None or OPERATOR.match(rest, number.end) else number


def _only_number(words: str) -> str | None:
    """The only number of a statement that has words before it, unless they describe a step."""
    return _conclusion(words, ROUTE, BOUND)


def _conclusion(words: str, *unless: re.Pattern[str]) -> str | None:
    """The only number of a sentence, if neither `HINDERED` nor `unless` matches before it."""
    if number := _after_equals(words):
        return written(number.value)
    numbers = numbers_in(words)
    if len({number.value for number in numbers}) != 1:
        return None
    before, rest = words[max(0, numbers[0].start - 80) : numbers[0].start], words[numbers[0].end :]
    if any(hindrance.search(before) for hindrance in (HINDERED, *unless)):
        return None
    more = UNFIT.match(rest) or OPERATOR.match(rest) or (len(numbers) > 1 and _has_another(rest))
    return None if more else written(numbers[0].value)


def _formula(content: str) -> str | None:
    """An expression at the start of a statement: its whole line, or what its delimiters hold."""
    line = content.lstrip(" \n:*").partition("\n")[0]
    if fence := FENCE.match(line):
        inner, end, _ = line[fence.end() :].partition(FENCES[fence[1]])
        return expression(inner) if end else None
    return expression(sentence(line)[0])
