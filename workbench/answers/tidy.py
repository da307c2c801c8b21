"""Text made easy to read by rule: reasoning set aside, typography and LaTeX dressing undone."""

from __future__ import annotations

import re
import unicodedata

TAG = re.compile(r"[<\[](/?)(?:think|thinking|thought|reasoning)[>\]]", re.IGNORECASE)
FINAL = re.compile(r"<\|channel\|>\s?final\b[^<\n]{0,40}<\|message\|>")
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
STOP = re.compile(r"[.!?](?=[\"')\]}*_`$]*(?:\s|$))|[。！？।]|\n")
DONE = re.compile(r"(?:[.!。！।][\"')\]}*_`$]*|\*\*|\\[)\]])\Z")


class _Table(dict[int, str]):
    """Every character's plain form, worked out when it is first met."""

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


TABLE = _Table()


def outside_reasoning(text: str) -> str:
    """The text without its parts in think tags, or what it says on the channel "final".

    A closing tag alone ends reasoning that began with the text. After an opening tag that is never
    closed the answer has not been given: then nothing is left.
    """
    if "<|channel|>" in text:
        said = list(FINAL.finditer(text))
        return text[said[-1].end() :].partition("<|")[0] if said else ""
    kept: list[str] = []
    start, thinking = 0, False
    for tag in TAG.finditer(text):
        if not tag[1]:
            if not thinking:
                kept.append(text[start : tag.start()])
            thinking = True
            continue
        if not thinking:
            kept.clear()
        start, thinking = tag.end(), False
    if thinking:
        return ""
    return "".join(kept) + text[start:] if start else text


def tidy(text: str) -> str:
    """A short text with ASCII digits, signs and spaces, and without what is only for the eye."""
    if not text.isascii():
        text = RAISED.sub("", text.translate(TABLE))
    if "<" in text or "~~" in text:
        text = MARKUP.sub("", text)
    if "\\" in text or "{" in text:
        for pattern, plain in (DRESSING[0], *DRESSING):  # twice: \textbf{\text{B}}
            text = pattern.sub(plain, text)
    return text


def sentence(text: str, start: int = 0) -> tuple[str, str]:
    """The sentence that begins at `start`, without its end mark, and that mark ("" for none)."""
    end = STOP.search(text, start)
    return (text[start : end.start()], end[0]) if end else (text[start:], "")


def final_sentence(text: str, longest: int) -> str | None:
    """The last sentence of a stripped text; None where it breaks off, asks or is too long."""
    if not DONE.search(text[-12:]):
        return None
    window = text[-longest:]
    begin = 0 if len(text) <= longest else -1
    for stop in STOP.finditer(window.rstrip("\"')]}*_`$\\.!。！। ")):
        begin = stop.end()
    return None if begin < 0 else window[begin:]
