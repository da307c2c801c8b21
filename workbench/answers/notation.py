"""Signs of mathematics: Unicode ones as LaTeX, and those that make a comparison idle."""

from __future__ import annotations

import re

__all__ = ["comparable", "latex"]

SIGNS: dict[str, str | int | None] = {
    "π": r"\pi ",
    "θ": r"\theta ",
    "∞": r"\infty ",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": "/",
    "⁄": "/",
    "−": "-",
    "–": "-",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "°": r"^\circ ",
    "\u2009": r"\,",
    "\u202f": r"\,",
    "\u00a0": " ",
}
RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺"
LEVEL = str.maketrans(RAISED, "0123456789-+")
POWER = re.compile(f"[{RAISED}]+")
ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")

DROPPED = re.compile(
    r"[?#@`\"]|[^\x00-\x7f]|0x|!=|\+/-|(?<![\w)}])!|\d\s*_|(?<![_^])(?<!\\frac )\d\s+\d|\d{?\.\."
    r"|\\[lc]?dots|[-+*/^_]\s*\Z"
)
"""What Math-Verify would drop, or join: two numbers, the base of a number, an unfinished sum."""
LOGIC = re.compile(r"\\(?:neq?|not|pm|mp|sim|pmod|bmod|mod)(?![A-Za-z])|[~&']")
RELATION = re.compile(r"[<>=]|\\(?:[lg]eq?|[lg]t)(?![A-Za-z])")
NAMED = re.compile(r"\\?[A-Za-z]+(?:_(?:\w|\{\w+\})|')?(?:\([^()=]*\))?\s*=([^=<>]*)\Z")
PLAIN = re.compile(r"[-+]?[\d.,/]+\Z")


def latex(text: str) -> str:
    """An expression with LaTeX in the place of Unicode signs."""
    if text.isascii():
        return text
    text = POWER.sub(lambda power: "^{" + power[0].translate(LEVEL) + "}", text)
    text = ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", text)
    return text.translate(str.maketrans(SIGNS))


def comparable(first: str, second: str) -> bool:
    """Whether Math-Verify takes account of all that two LaTeX expressions say.

    Of signs that it knows only in places, both must have the same; a number equals neither a
    relation nor a list of them, but the right side of one name ("x = 3").
    """
    pair = (first, second)
    if any(DROPPED.search(one) or one.count("|") % 2 for one in pair):
        return False
    if set(LOGIC.findall(first)) != set(LOGIC.findall(second)):
        return False
    plain = any(map(PLAIN.match, pair))
    return not plain or all(NAMED.match(one) or not RELATION.search(one) for one in pair)
