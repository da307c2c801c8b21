"""Convert text to plain characters (`normalise`), and read its numbers as exact fractions.

It reads signs (`-`, `−`, minus, negative), digits of any script, groups of thousands (`1,234`,
`1 234`, `1'234`, `1_234`, the Indian `1,23,456`), the decimal comma if it cannot be anything else
(`3,5`, `1.234,56`; but `1,234` is over a thousand), fractions and mixed numbers (`3/4`, `1 1/2`,
`½`, LaTeX), powers of ten (`1e3`, `1.2 × 10^3`), number words, hundred to trillion, 万 and 億.
Currency, `%` and units are dropped and never converted: `18%` is 18 and `50 cents` is 50, not 0.5.
Times, dates, versions, ordinals, ranges, `2k`, `2 dozen` and `18+` are not plain numbers.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

SPECIAL = {
    **dict.fromkeys("−‐‑‒–﹣－", "-"),
    **dict.fromkeys("’‘′", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", ""),
    "⁄": "/",
    "٫": ".",
    "٬": ",",
    "⋅": "·",
    "\u3000": " ",
    "⁻": "^-",
}
DRESSING = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\(?:text\w*|math\w*|mbox|emph|operatorname)\s?\{([^{}]*)\}", r"\1"),
        (r"\{,\}", ","),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\^\s?\{?\s?\\circ\s?\}?|\\degree\b", "°"),
        (r"\\times(?![A-Za-z])", "×"),
        (r"\\cdot(?![A-Za-z])", "·"),
        (r"\\(?:approx|simeq)(?![A-Za-z])", "≈"),
        (r"\\pounds(?![A-Za-z])", "£"),
        (r"(?<=\d)\\[,;: ](?=\d{3})", "\u2009"),
        (r"\\!|\\(?:left|right|displaystyle|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])|\\[()\[\]]", ""),
        (r"\\(?:[,;: \\]|q?quad(?![A-Za-z]))", " "),
        (r"\\([$%#&_])", r"\1"),
    )
]
MARKUP = re.compile(
    r"<<[^<>\n]*>>"  # a calculation of GSM8K
    r"|~~[^~\n]{1,80}~~|<(?P<struck>s|del)>[^<\n]{0,80}</(?P=struck)>"
    r"|</?(?:b|i|u|s|em|strong|p|br|span|div|code)\s?/?>|<\|\w{1,40}\|>"
)
RAISED = re.compile(r"(?<=\^[-\d])\^")
LONGEST = 300
"""Maximum digits of a number; Python itself refuses more than 4,300."""

LEAD = 24
"""Maximum characters before the first digit of a number: `negative US$ 5`."""

CURRENCY = (
    r"(?:US|CA|AU|HK|R|S)?[$€£¥₹₩₽₺฿]|"
    r"(?<![A-Za-z])(?:USD|EUR|GBP|CHF|INR|JPY|CNY|CAD|AUD|BRL|MXN|SEK|NOK|DKK|PLN"
    r"|Rs\.?)(?![A-Za-z])"
)
MYRIADS = {**dict.fromkeys("万萬만", 10**4), **dict.fromkeys("亿億억", 10**8)}
TOKEN = (
    r"(?:\d{1,3}(?:[ \u2009'_]\d{3})+(?:[.,]\d+)?(?!\d)"  # other thousands separators
    r"|\d+(?:[.,]\d+)*"
    r"|\.\d+)"
)
NUMBER = re.compile(
    rf"""
    (?:(?P<sign>[-+])\s?|(?P<minus>minus|negative)\s+)?
    (?:(?:{CURRENCY})\s?)?  (?P<inner>-)?
    (?:
        (?:(?P<whole>\d{{1,9}})\s{{0,2}})? \\frac\s?
        (?: \{{\s?(?P<top>{TOKEN})\s?\}}\s?\{{\s?(?P<bottom>{TOKEN})\s?\}} | (?P<tb>\d\d)(?!\d) )
      | (?P<mixed>\d{{1,9}})\s{{1,2}}(?P<over>\d{{1,9}})\s?/\s?(?P<under>\d{{1,9}})
      | (?P<token>{TOKEN})
        (?: \s?/\s?(?P<divisor>{TOKEN})
          | [eE](?P<e>[-+]?\d{{1,3}})(?![\d.])
          | \s?(?:×|x|\*|·)\s?10\s?\^\s?\{{?\s?(?P<power>[-+]?\d{{1,3}})\s?\}}?
        )?
    )
    (?:[\s-]?(?:(?P<scale>hundred|thousand|million|billion|trillion)s?\b|(?P<myriad>[{"".join(MYRIADS)}])))?
    (?:\s?%)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
GERMAN = re.compile(r"\d{1,3}(?P<groups>\.\d{3})\s?Euro\b")
"""One group of thousands in German notation; in English `12.500 euros` are twelve and a half."""
MULTIPLE = (
    r"(?:dozen|lakh|crore|(?:mill?i?|milh|billi|trilli)[oõóã]\w*|mill?iard\w*|mil\b|mille\b|mila\b"
    r"|bn\b|mn\b|mln\b|tausend|миллион|миллиард|тысяч|тыс\b|млн|млрд"
    r"|(?:half|halv|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)e?s\b"
    r"|and\s+a\s+(?:half|third|quarter)\b|point\s+(?:\d|zero|one|two|three|four|five|six|seven"
    r"|eight|nine))"
)
"""Words that change the value of the number before them; hundred to trillion are read."""
BROKEN = re.compile(
    rf"""
    \d | [.:/]\d | ,\d | \s?/\s?\d | -\d          # versions, times, dates, ranges
  | \s?\^ | \s?\\[A-Za-z] | \(\s?\d | \s?(?:π|√|pi\b|sqrt\b)   # parts of an expression
  | (?:st|nd|rd|th)\b                              # ordinals
  | [A-Zabcdefijknopqrtuvwxyz](?<![CFLVWJN])(?![A-Za-zÀ-ɏ])     # variables, 2k, 3B
  | \s(?:[kMB]\b(?!&)|[xyz](?![\w']|-[a-z])(?!\s?[\d$(]))
  | [\s-]?(?:(?i:{MULTIPLE})|千(?![克米瓦])|[百兆천])
  | \s?(?:±|\+/-|\.\.+\s?\d|[…~]\s?\d) | \+(?!\s?[\d($\\]|\s?[A-Za-z](?![A-Za-z]))
  | !(?=\s?[-+*/×^$])                                # a factorial
    """,
    re.VERBOSE,
)
BEFORE = re.compile(r"(?:[A-Za-z0-9_À-\u1fff^\\:/√]|[\w)][-.,])\Z")
"""Text right before a number that makes it a part of something else."""

SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = {word: value for value, word in enumerate(SMALL)}
WORDS |= {word: 10 * tens for tens, word in enumerate(TENS, 2)}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
SCALES["trillion"] = 10**12
WORD = re.compile(rf"(?:{'|'.join([*WORDS, *SCALES])})\b", re.IGNORECASE)
PARTS = re.compile(
    rf"[\s-](?:half|quarters?|(?:third|fourth|(?:fif|six|seven|eigh|nin|ten)th)(?!\W?grade))\b"
    rf"|[\s-]?{MULTIPLE}",
    re.IGNORECASE,
)
MINUS = re.compile(r"(?:minus|negative)\s+|-", re.IGNORECASE)
PRONOUN = re.compile(r"one\s+of\b", re.IGNORECASE)
JOINT = re.compile(r"[\s-]+(and\s+)?", re.IGNORECASE)


class _PlainCharacters(dict[int, str]):
    """The plain form of every character, computed at its first use."""

    def __missing__(self, code: int) -> str:
        self[code] = plain = _plain(chr(code))
        return plain


def _plain(char: str) -> str:
    if char in SPECIAL or char.isascii():
        return SPECIAL.get(char, char)
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    kind, _, code = unicodedata.decomposition(char).partition(" ")
    if kind == "<super>" and char.isdigit():
        return f"^{unicodedata.digit(char)}"
    if kind == "<fraction>":
        return " " + "".join(chr(int(one, 16)) for one in code.split()).replace("⁄", "/")
    if kind == "<wide>":
        return chr(int(code, 16))
    return "\u2009" if char.isspace() and char not in "\u2028\u2029\x85" else char


PLAIN_CHARACTERS = _PlainCharacters()


def normalise(text: str) -> str:
    """A short text with ASCII digits, signs and spaces, and without formatting."""
    if not text.isascii():
        text = RAISED.sub("", text.translate(PLAIN_CHARACTERS))
    if "<" in text or "~~" in text:
        text = MARKUP.sub("", text)
    if "\\" in text or "{" in text:
        for pattern, plain in (DRESSING[0], *DRESSING):  # twice: \textbf{\text{B}}
            text = pattern.sub(plain, text)
    return text


class Number(NamedTuple):
    """A number and its position in the text."""

    value: Fraction
    start: int
    end: int


def number_at(text: str, start: int = 0) -> Number | None:
    """The number that begins exactly at `start` of a normalised text, None if there is none."""
    if (match := NUMBER.match(text, start)) is None:
        return _spelt(text, start)
    if BROKEN.match(text, match.end()):
        return None
    value = _value(match)
    if value is not None and (grouped := GERMAN.match(text, match.start("token"))):
        value *= 1000 ** grouped["groups"].count(".")
    return None if value is None else Number(value, start, match.end())


def numbers_in(text: str) -> list[Number]:
    """All plain numbers of a short normalised text; number words only if there are no digits."""
    first = re.search(r"\d", text)
    numbers, at = [], max(0, first.start() - LEAD) if first else len(text)
    while match := NUMBER.search(text, at):
        start, at = match.span()
        if match["sign"] and text[start + 1].isspace():  # a dash, or 5 - 3
            at = start + 1
            continue
        part = BEFORE.search(text[max(0, start - 2) : start])
        number = None if part else number_at(text, start)
        if number is not None:
            numbers.append(number)
    return numbers or _all_spelt(text)


def written(value: Fraction) -> str:
    """A number as text, equal for equal numbers: `1234.5`, or `1/3` if its decimals never end."""
    top, bottom = value.numerator, value.denominator
    if not (places := next((n for n in range(31) if 10**n % bottom == 0), None)):
        return str(top) if bottom == 1 else f"{top}/{bottom}"
    digits = str(abs(top) * 10**places // bottom).rjust(places + 1, "0")
    return f"{'-' if top < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a match of `NUMBER`, None if its groups of digits are not a number."""
    part = match.groupdict()
    if part["token"]:
        value = _token(part["token"])
        if part["divisor"]:
            value = _ratio(value, _token(part["divisor"]))
        elif value is not None and (power := part["e"] or part["power"]):
            value *= Fraction(10) ** int(power)
    elif part["mixed"]:
        value = _ratio(Fraction(part["over"]), Fraction(part["under"]), int(part["mixed"]))
    else:
        top, bottom = tuple(part["tb"] or ()) or (part["top"], part["bottom"])
        value = _ratio(_token(top), _token(bottom), int(part["whole"] or 0))
    if value is None:
        return None
    negative = (part["sign"] == "-" or bool(part["minus"])) != bool(part["inner"])
    scale = SCALES[part["scale"].lower()] if part["scale"] else MYRIADS.get(part["myriad"], 1)
    return -value * scale if negative else value * scale


def _ratio(top: Fraction | None, bottom: Fraction | None, whole: int = 0) -> Fraction | None:
    return whole + top / bottom if top is not None and bottom else None


def _token(token: str) -> Fraction | None:
    """The value of digits with separators of thousands and decimals."""
    if token.isdigit() and len(token) <= LONGEST:
        return Fraction(int(token))
    if len(token) > LONGEST:
        return None
    pieces = re.split(r"[., \u2009'_]", token)
    marks = re.sub(r"\d", "", token)
    decimal = _has_decimals(pieces, marks)
    whole, part = (pieces[:-1], pieces[-1]) if decimal else (pieces, "")
    if len(set(marks[: len(whole) - 1])) > 1 or not _grouped(whole):
        return None
    if decimal and marks[-1] in marks[:-1]:
        return None
    return Fraction(int("".join(whole) + part or "0"), 10 ** len(part))


def _has_decimals(pieces: list[str], marks: str) -> bool:
    """Whether the last separator is a decimal one."""
    last = marks[-1]
    if last not in ".," or marks.count(last) > 1:
        return False
    if len(marks) > 1 or last == ".":
        return True
    return len(pieces[1]) != 3 or len(pieces[0]) > 3 or pieces[0].startswith("0")


def _grouped(whole: list[str]) -> bool:
    """Whether digits before the decimal separator are in groups of three, or of two as in India."""
    if len(whole) == 1:
        return True
    first, *middle, last = map(len, whole)
    size = 2 if middle and middle[0] == 2 else 3
    return 1 <= first <= size and last == 3 and all(n == size for n in middle)


def _spelt(text: str, start: int) -> Number | None:
    """The longest number in words at `start`."""
    sign = MINUS.match(text, start)
    at = sign.end() if sign else start
    total = part = end = 0
    room, biggest, joint = 1000, 10**15, True
    while word := WORD.match(text, at):
        name = word[0].lower()
        value = WORDS.get(name, -1)
        if 0 <= value < room and (joint or room >= 100):
            part, room = part + value, 10 if value >= 20 else 0
        elif name == "hundred" and 1 <= part < 10:
            part, room = part * 100, 100
        elif value < 0 and 100 < SCALES[name] < biggest and part:
            total, biggest, room = total + part * SCALES[name], SCALES[name], 1000
            part = 0
        else:
            break
        end = word.end()
        link = JOINT.match(text, end)
        joint = bool(link and not link[1])
        at = link.end() if link else len(text)
    if PRONOUN.match(text, start) or (end and PARTS.match(text, end)):
        return None
    value = total + part
    return Number(Fraction(-value if sign else value), start, end) if end else None


def _all_spelt(text: str) -> list[Number]:
    """Numbers in words; a single "one" is skipped, because it is usually a pronoun."""
    numbers, at = [], 0
    while word := WORD.search(text, at):
        at = word.end()
        part = BEFORE.search(text[max(0, word.start() - 2) : word.start()])
        number = None if part else _spelt(text, word.start())
        if number is not None:
            at = number.end
            if text[number.start : at].lower() != "one":
                numbers.append(number)
    return numbers
