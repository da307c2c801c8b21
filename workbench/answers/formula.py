"""Mathematics in LaTeX or plain text, read whole or not at all.

A parser that skips what it does not know makes `4` of `4 \\star 2`, and calls wrong answers
right. This one is an allow-list: each token of a text must be accounted for, else the text is None
here, and equals only what has the same `tokens`.

A formula is a list for JSON, such as `["+", ["n", "1"], ["v", "x"]]`:

    ["n", text] a number      ["v", name] a name or a constant    ["t", words] words in \\text{…}
    ["+" | "*" | "/" | "^", a, b]      ["-", a]      ["!", a]      ["pm", a, b]
    ["f", function, a] or, with a base or an index, ["f", function, a, b]
    ["rel", first, sign, second, sign, third …]
    ["list", items …] in any order     ["(", ")", items …] a tuple, an interval or a set
    ["cup" | "cap", sets …]     ["mat", rows …] with lists of cells
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

Formula = list[Any]

TOKEN = re.compile(r'"[^"]*"|\\(?:[A-Za-z]+|.)|\d+(?:\.\d+)?|\.\d+|\*\*|\S', re.DOTALL)
SIGNS = {
    "π": r"\pi", "θ": r"\theta", "∞": r"\infty", "×": r"\times", "·": r"\cdot", "⋅": r"\cdot",
    "∗": "*", "÷": "/", "⁄": "/", "−": "-", "–": "-", "≤": r"\le", "≥": r"\ge", "≠": r"\ne",
    "±": r"\pm", "∪": r"\cup", "∩": r"\cap", "°": r"^\circ", "√": r"\sqrt",
}  # fmt: skip
SAME = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\ast": "*", r"\div": "/",
    r"\leq": r"\le", r"\leqslant": r"\le", r"\geq": r"\ge", r"\geqslant": r"\ge", r"\neq": r"\ne",
    r"\lt": "<", r"\gt": ">", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lvert": "|", r"\rvert": "|",
    r"\vert": "|", r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\lparen": "(", r"\rparen": ")",
    r"\lbrack": "[", r"\rbrack": "]", r"\colon": ":", "**": "^", r"\quad": ",", r"\qquad": ",",
}  # fmt: skip
SPACES = {
    r"\left", r"\right", r"\big", r"\Big", r"\bigl", r"\bigr", r"\Bigl", r"\Bigr", r"\bigg",
    r"\Bigg", r"\displaystyle", r"\textstyle", r"\limits", r"\nolimits", r"\,", r"\;", r"\:",
    r"\!", r"\ ", r"\~", "~", r"\(", r"\)", r"\[", r"\]", "$", r"\$",
}  # fmt: skip
UNITS = set(  # in words behind an expression: `12\\sqrt{3}\\text{ cm}`
    "cm mm m km in inch inches ft feet foot yd yards mi miles kg g mg lb lbs oz s sec seconds min "
    "minutes h hr hours days weeks months years deg degrees rad radians unit units dollars cents "
    "euros meters metres square cubic L mL mph".split()
)
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
POWER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
WORDED = re.compile(r"\\(text|textrm|textbf|textit|mbox|textnormal)\s*\{([^{}]*)\}")
NAMED = re.compile(
    r"\\(?:mathrm|operatorname|mathit)\s*\*?"
    r"(?:\s*\{\s*([A-Za-z]+)\s*\}|\s+([A-Za-z])\b)"
)
PLAIN = re.compile(r"(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|cot|sec|csc|ln|log|exp)(?![A-Za-z])")
REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s*\{\s*(\d+)\s*\}")
JOINING = re.compile(r"(?<![\\A-Za-z])(?:and|or)(?![A-Za-z])")
ROOT = re.compile(r"\\sqrt\s*\(([^()]*)\)")

GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi pi rho "
    "sigma tau phi varphi chi psi omega infty "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split()
)
FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp".split())
COMMANDS = {"frac", "binom", "sqrt", "begin", "lfloor", "lceil"}
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in"}
MATRICES = {"pmatrix", "bmatrix", "matrix", "smallmatrix"}
CLOSING = {"(": ")]", "[": ")]", r"\{": [r"\}"]}
APPLIED = set("fghFGHPpNn")
"""Letters that with a bracket behind them are functions as a rule."""


class _UnreadableError(Exception):
    """A token that is not accounted for."""


@lru_cache(maxsize=8192)
def tokens(text: str) -> tuple[str, ...]:
    """The text in signs that mean something: without spaces, sizes, dollars and bare braces."""
    if not text.isascii():
        text = POWER.sub(lambda power: "^{" + power[0].translate(RAISED) + "}", text)
        text = "".join(f" {SIGNS[char]} " if char in SIGNS else char for char in text)
    text = REPEATING.sub(_repeated, text)
    text = JOINING.sub(lambda word: f'"{word[0]}"', text.replace('"', ""))
    text = WORDED.sub(_worded, text)
    text = NAMED.sub(_named, text)
    text = PLAIN.sub(r" \\\1 ", text).replace("{,}", "")
    text = ROOT.sub(r"\\sqrt{\1}", text)
    found = [SAME.get(token, token) for token in TOKEN.findall(text) if token not in SPACES]
    found = [t for t, before in zip(found, ["", *found], strict=False) if t != "," or before != ","]
    while found and found[-1] in {".", ",", ";"}:
        found.pop()
    return tuple(_unbraced(_single_digits(found)))


def _named(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    return rf" \{name} " if len(name) > 1 else f"{{{name}}}"


def _repeated(found: re.Match[str]) -> str:
    """`0.1\\overline{6}` as the fraction that it is."""
    whole, once, again = found[1] or "0", found[2], found[3]
    top = int(whole + once + again) - int(whole + once)
    return rf"\frac{{{top}}}{{{10 ** len(once) * (10 ** len(again) - 1)}}}"


def _worded(found: re.Match[str]) -> str:
    words = " ".join(found[2].replace('"', "").split())
    return f" {words} " if re.fullmatch(r"[\d.,]*", words) else f' "{words}" '


def _single_digits(found: list[str]) -> list[str]:
    """`\\frac12` has two arguments."""
    made: list[str] = []
    for token in found:
        two = token.isdigit() and len(token) == 2 and made and made[-1] in {r"\frac", r"\binom"}
        made += [*token] if two else [token]
    return made


def _unbraced(found: list[str]) -> list[str]:
    """Without braces around one token: `x_{1}` is `x_1`."""
    kept: list[str] = []
    for token in found:
        if token == "}" and len(kept) > 1 and kept[-2] == "{" and kept[-1] not in {"{", "}"}:
            kept[-2:] = kept[-1:]
        else:
            kept.append(token)
    return kept


@lru_cache(maxsize=8192)
def parse(text: str) -> Formula | None:
    """The formula that a text is, None where not all of it is known."""
    found = [*tokens(text)]
    unit = found[:-2] if found[-2:-1] == ["^"] else found  # cm^2
    if len(unit) > 1 and unit[-1][:1] == '"' and UNITS.issuperset(unit[-1].strip('"').split()):
        found = unit[:-1]
    reader = _Reader(found)
    try:
        made = reader.everything()
    except (_UnreadableError, RecursionError):
        return None
    return made


class _Reader:
    """Reads tokens from left to right; every method leaves what it did not read."""

    def __init__(self, found: list[str]) -> None:
        self.rest = found
        self.at = 0
        self.bars = 0  # open |

    @property
    def next(self) -> str:
        return self.rest[self.at] if self.at < len(self.rest) else ""

    def take(self, *wanted: str) -> str:
        if self.next == "" or (wanted and self.next not in wanted):
            raise _UnreadableError
        self.at += 1
        return self.rest[self.at - 1]

    def everything(self) -> Formula:
        if not self.rest:
            raise _UnreadableError
        made = self.items(loose=True)
        if self.next:
            raise _UnreadableError
        return made[0] if len(made) == 1 else ["list", *made]

    def items(self, *, loose: bool = False) -> list[Formula]:
        """Between commas; `loose` outside of brackets, where "and" and "or" separate too."""
        made = [self.relation()]
        while True:
            separates = self.next == "," or (loose and (self.next == ";" or self.conjunction()))
            if not separates:
                return made
            if self.next in {",", ";"}:
                self.take()
            if loose and self.conjunction():
                self.take()
            made.append(self.relation())

    def conjunction(self) -> bool:
        return self.next in {'"and"', '"or"'}

    def relation(self) -> Formula:
        made: Formula = ["rel", self.union()]
        while self.next in RELATIONS:
            made += [self.take(), self.union()]
        return made[1] if len(made) == 2 else made

    def union(self) -> Formula:
        made, sign = [self.sum()], ""
        while self.next in {r"\cup", r"\cap"}:
            if sign and self.next != sign:
                raise _UnreadableError
            sign = self.take()
            made.append(self.sum())
        return [sign[1:], *made] if sign else made[0]

    def sum(self) -> Formula:
        if self.next == r"\pm":
            self.take()
            return ["pm", ["n", "0"], self.product()]
        made = self.signed()
        while self.next in {"+", "-", r"\pm"}:
            sign = self.take()
            term = self.product()
            made = ["pm" if sign == r"\pm" else "+", made, ["-", term] if sign == "-" else term]
        return made

    def signed(self) -> Formula:
        if self.next in {"+", "-"}:
            return ["-", self.product()] if self.take() == "-" else self.product()
        return self.product()

    def product(self) -> Formula:
        made, first = self.power(), True
        while True:
            if self.next in {"*", r"\times", r"\cdot", "/"}:
                sign = "/" if self.take() == "/" else "*"
                minus = self.next == "-"
                if minus:
                    self.take()
                factor = self.power()
                if sign == "/" and self.begins():  # 1/2x: under the line or not?
                    raise _UnreadableError
                made = [sign, made, ["-", factor] if minus else factor]
            elif self.begins():
                made = ["*", made, self.beside(made, first=first)]
            else:
                return made
            first = False

    def begins(self) -> bool:
        """Whether a factor follows without a sign."""
        token = self.next
        if token == "|":
            return not self.bars
        known = token[1:] in GREEK | FUNCTIONS or token in {r"\frac", r"\sqrt", r"\binom"}
        return token in {"(", "{"} or known or token.isalpha() or token[:1].isdigit()

    def beside(self, before: Formula, *, first: bool) -> Formula:
        """A factor without a sign: no second number, nor a part of a mixed number."""
        mixed = before[0] == "n" and first and self.next == r"\frac"
        if self.next[:1].isdigit() or mixed or before[0] == "t":
            raise _UnreadableError
        return self.power()

    def power(self) -> Formula:
        made = self.atom()
        while self.next in {"^", "!"}:
            if self.take() == "!":
                if self.next == "!":
                    raise _UnreadableError
                made = ["!", made]
            else:
                made = ["^", made, self.exponent()]
        return made

    def exponent(self) -> Formula:
        if self.next == "-":  # 2^-3, in plain text
            self.take()
            return ["-", self.atom()]
        return self.atom()

    def group(self) -> Formula:
        """An argument of a command: in braces, or one sign."""
        if self.next == "{":
            self.take()
            bars, self.bars = self.bars, 0
            made = self.relation()
            self.bars = bars
            self.take("}")
            return made
        return self.atom()

    def atom(self) -> Formula:
        token = self.next
        if token == "{":
            return self.group()
        self.take()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return ["n", token]
        if token.isascii() and token.isalpha():
            return self.name(token)
        if token[0] == '"':
            return self.words(token.strip('"()[]. '))
        if token in CLOSING:
            return self.bracket(token)
        return self.bar() if token == "|" else self.command(token)

    def words(self, said: str) -> Formula:
        if said in {"and", "or", ""}:
            raise _UnreadableError
        return self.name(said) if len(said) == 1 else ["t", said]

    def bar(self) -> Formula:
        self.bars += 1
        made = self.sum()
        self.take("|")
        self.bars -= 1
        return ["f", "abs", made]

    def bracket(self, opening: str) -> Formula:
        bars, self.bars = self.bars, 0
        made = self.items()
        self.bars = bars
        closing = self.take(*CLOSING[opening])
        if len(made) == 1 and opening == "(" and closing == ")":
            if made[0][0] == "rel":
                raise _UnreadableError
            return made[0]
        if len(made) == 1 and opening != r"\{":
            raise _UnreadableError
        return [opening, closing, *made]

    def name(self, letters: str) -> Formula:
        """A letter with its index; with a bracket behind it, a function of a name of its own."""
        if self.next == "_":
            self.take()
            letters += "_" + self.raw()
        if self.next == "'":
            raise _UnreadableError
        if letters in APPLIED and self.next == "(":
            return ["v", letters + self.raw_bracket()]
        return ["v", letters]

    def raw(self) -> str:
        """An index as it stands."""
        if self.next != "{":
            return self.take()
        self.take()
        said = ""
        while self.next not in {"", "{", "}"}:
            said += self.take()
        self.take("}")
        return said

    def raw_bracket(self) -> str:
        said = self.take("(")
        while self.next not in {"", "(", ")"}:
            said += self.take()
        return said + self.take(")")

    def command(self, token: str) -> Formula:
        name = token[1:]
        if token[0] != "\\" or name not in COMMANDS | GREEK | FUNCTIONS:
            raise _UnreadableError
        if name in GREEK:
            return self.name(token)
        if name in FUNCTIONS:
            return self.function(name)
        if name in {"frac", "binom"}:
            pair = [self.group(), self.group()]
            return ["/", *pair] if name == "frac" else ["f", name, *pair]
        if name in {"sqrt", "begin"}:
            return self.root() if name == "sqrt" else self.matrix()
        made = self.sum()
        self.take("\\r" + name[1:])
        return ["f", name[1:], made]

    def root(self) -> Formula:
        if self.next != "[":
            return ["f", "sqrt", self.group()]
        self.take()
        index = self.sum()
        self.take("]")
        return ["f", "root", self.group(), index]

    def function(self, name: str) -> Formula:
        base = power = None
        while self.next in {"_", "^"}:
            if self.take() == "_":
                base = self.group()
            else:
                power = self.exponent()
        if (base and name != "log") or (power and power[0] == "-"):  # an inverse, or a reciprocal?
            raise _UnreadableError
        made = ["f", name, self.argument(), *([base] if base else [])]
        return ["^", made, power] if power else made

    def argument(self) -> Formula:
        """What a function is of: brackets, or the factors up to the next function or sign."""
        if self.next == "(":
            return self.atom()
        made = self.power()
        while self.begins() and self.next[1:] not in FUNCTIONS and self.next != "(":
            made = ["*", made, self.beside(made, first=True)]
        return made

    def matrix(self) -> Formula:
        kind = self.raw()
        if kind not in MATRICES:
            raise _UnreadableError
        rows: list[list[Formula]] = [[self.relation()]]
        while self.next in {"&", "\\\\"}:
            if self.take() == "&":
                rows[-1].append(self.relation())
            elif self.next != r"\end":
                rows.append([self.relation()])
        self.take(r"\end")
        if self.raw() != kind:
            raise _UnreadableError
        return ["mat", *rows]
