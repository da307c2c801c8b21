"""Parse mathematics in LaTeX or plain text, completely or not at all.

A parser that skips unknown parts reads `4 \\star 2` as `4`, and grades wrong answers as right.
This parser accepts a fixed set of tokens. A text with any other token parses to None, and equals
only a text with the same `tokens`.

A formula is a list that JSON can hold, such as `["+", ["n", "1"], ["v", "x"]]`:

    ["n", text] a number      ["v", name] a name or a constant    ["t", words] words in \\text{…}
    ["+" | "*" | "/" | "^", a, b]      ["-", a]      ["!", a]      ["pm", a, b]
    ["f", function, a] or, with a base or an index, ["f", function, a, b]
    ["rel", first, sign, second, sign, third …]
    ["list", items …] in any order     ["(", ")", items …] a tuple, an interval or a set
    ["cup" | "cap", sets …]     ["mat", rows …] with lists of cells
"""

from __future__ import annotations

import re
from collections.abc import Callable
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
UNITS = set(  # in words after an expression: `12\\sqrt{3}\\text{ cm}`
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
"""Letters that are usually functions if a bracket follows."""


class _UnreadableError(Exception):
    """A token that the parser does not support."""


@lru_cache(maxsize=8192)
def tokens(text: str) -> tuple[str, ...]:
    """The meaningful tokens of a text, without spaces, sizes, dollars and bare braces."""
    if not text.isascii():
        text = POWER.sub(lambda power: "^{" + power[0].translate(RAISED) + "}", text)
        text = "".join(f" {SIGNS[char]} " if char in SIGNS else char for char in text)
    text = REPEATING.sub(_fraction, text)
    text = JOINING.sub(lambda word: f'"{word[0]}"', text.replace('"', ""))
    text = WORDED.sub(_quoted, text)
    text = NAMED.sub(_operator, text)
    text = PLAIN.sub(r" \\\1 ", text).replace("{,}", "")
    text = ROOT.sub(r"\\sqrt{\1}", text)
    signs: list[str] = []
    for token in TOKEN.findall(text):
        sign = SAME.get(token, token)
        if token in SPACES or (sign == "," and signs[-1:] == [","]):
            continue
        if sign == "}" and signs[-2:-1] == ["{"] and signs[-1] not in {"{", "}"}:
            signs[-2:] = signs[-1:]  # x_{1} is x_1
        elif re.fullmatch(r"\d\d", sign) and signs[-1:] in ([r"\frac"], [r"\binom"]):
            signs += sign  # \frac12 has two arguments
        else:
            signs.append(sign)
    while signs and signs[-1] in {".", ",", ";"}:
        signs.pop()
    return tuple(signs)


def _operator(name: re.Match[str]) -> str:
    letters = name[1] or name[2]
    return rf" \{letters} " if len(letters) > 1 else f"{{{letters}}}"


def _fraction(repeating: re.Match[str]) -> str:
    """`0.1\\overline{6}` as a fraction."""
    whole, once, again = repeating[1] or "0", repeating[2], repeating[3]
    top = int(whole + once + again) - int(whole + once)
    return rf"\frac{{{top}}}{{{10 ** len(once) * (10 ** len(again) - 1)}}}"


def _quoted(worded: re.Match[str]) -> str:
    words = " ".join(worded[2].replace('"', "").split())
    return f" {words} " if re.fullmatch(r"[\d.,]*", words) else f' "{words}" '


@lru_cache(maxsize=8192)
def parse(text: str) -> Formula | None:
    """The formula in a text, None if any part of it is unknown."""
    signs = [*tokens(text)]
    unit = signs[:-2] if signs[-2:-1] == ["^"] else signs  # cm^2
    if len(unit) > 1 and unit[-1][:1] == '"' and UNITS.issuperset(unit[-1].strip('"').split()):
        signs = unit[:-1]
    try:
        return _Reader(signs).everything()
    except (_UnreadableError, RecursionError):
        return None


class _Reader:
    """Reads tokens from left to right; each method consumes only what it reads."""

    def __init__(self, signs: list[str]) -> None:
        self.tokens = signs
        self.at = 0
        self.bars = 0  # open |

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        if self.next == "" or (wanted and self.next not in wanted):
            raise _UnreadableError
        self.at += 1
        return self.tokens[self.at - 1]

    def accept(self, token: str) -> bool:
        """Consume the token if it is next; returns whether it was."""
        accepted = self.next == token
        self.at += accepted
        return accepted

    def everything(self) -> Formula:
        items = self.items('"and"', '"or"', ";")
        if self.next:
            raise _UnreadableError
        return items[0] if len(items) == 1 else ["list", *items]

    def items(self, *loose: str) -> list[Formula]:
        """Items between commas, and outside of brackets also between words and semicolons."""
        items = [self.relation()]
        while self.next in {",", *loose}:
            if self.take() in {",", ";"} and self.next in loose[:2]:
                self.take()
            items.append(self.relation())
        return items

    def relation(self) -> Formula:
        relation: Formula = ["rel", self.union()]
        while self.next in RELATIONS:
            relation += [self.take(), self.union()]
        return relation[1] if len(relation) == 2 else relation

    def union(self) -> Formula:
        first, sign = self.sum(), self.next
        if sign not in {r"\cup", r"\cap"}:
            return first
        union = [sign[1:], first]
        while self.accept(sign):
            union.append(self.sum())
        return union

    def sum(self) -> Formula:
        if self.accept(r"\pm"):
            return ["pm", ["n", "0"], self.product()]
        tree = self.product() if self.accept("+") else self.negated(self.product)
        while self.next in {"+", "-", r"\pm"}:
            sign = self.take()
            term = self.product()
            tree = ["pm" if sign == r"\pm" else "+", tree, ["-", term] if sign == "-" else term]
        return tree

    def product(self) -> Formula:
        tree, first = self.power(), True
        while True:
            if self.next in {"*", r"\times", r"\cdot", "/"}:
                sign = "/" if self.take() == "/" else "*"
                factor = self.negated(self.power)
                if sign == "/" and self.begins():  # 1/2x is ambiguous: is x in the denominator?
                    raise _UnreadableError
                tree = [sign, tree, factor]
            elif self.begins():
                tree = ["*", tree, self.beside(tree, first=first)]
            else:
                return tree
            first = False

    def negated(self, read: Callable[[], Formula]) -> Formula:
        """An operand that may have a minus before it: 2 * -3, 2^-3 in plain text."""
        return ["-", read()] if self.accept("-") else read()

    def begins(self) -> bool:
        """Whether a factor without a sign follows."""
        token = self.next
        if token == "|":
            return not self.bars
        known = token[1:] in GREEK | FUNCTIONS or token in {r"\frac", r"\sqrt", r"\binom"}
        return token in {"(", "{"} or known or token.isalpha() or token[:1].isdigit()

    def beside(self, before: Formula, *, first: bool) -> Formula:
        """A factor without a sign; not a second number or a part of a mixed number."""
        mixed = before[0] == "n" and first and self.next == r"\frac"
        if self.next[:1].isdigit() or mixed or before[0] == "t":
            raise _UnreadableError
        return self.power()

    def power(self) -> Formula:
        tree = self.atom()
        while self.next in {"^", "!"}:
            if self.take() == "!":
                tree = ["!", tree]
                if self.next == "!":
                    raise _UnreadableError
            else:
                tree = ["^", tree, self.negated(self.atom)]
        return tree

    def group(self) -> Formula:
        """An argument of a command: in braces, or a single token."""
        if not self.accept("{"):
            return self.atom()
        bars, self.bars = self.bars, 0
        tree = self.relation()
        self.bars = bars
        self.take("}")
        return tree

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
            words = token.strip('"()[]. ')
            if words in {"and", "or", ""}:
                raise _UnreadableError
            return self.name(words) if len(words) == 1 else ["t", words]
        if token in CLOSING:
            return self.bracket(token)
        return self.bar() if token == "|" else self.command(token)

    def bar(self) -> Formula:
        self.bars += 1
        tree = self.sum()
        self.take("|")
        self.bars -= 1
        return ["f", "abs", tree]

    def bracket(self, opening: str) -> Formula:
        bars, self.bars = self.bars, 0
        tree = self.items()
        self.bars = bars
        closing = self.take(*CLOSING[opening])
        if len(tree) == 1 and opening == "(" and closing == ")":
            if tree[0][0] == "rel":
                raise _UnreadableError
            return tree[0]
        if len(tree) == 1 and opening != r"\{":
            raise _UnreadableError
        return [opening, closing, *tree]

    def name(self, letters: str) -> Formula:
        """A letter with its index; if a bracket follows, a function with that name."""
        if self.accept("_"):
            letters += "_" + self.verbatim()
        if self.next == "'":
            raise _UnreadableError
        if letters in APPLIED and self.next == "(":
            letters += f"({self.verbatim('()')})"
        return ["v", letters]

    def verbatim(self, brackets: str = "{}") -> str:
        """An index or the content of brackets, unchanged."""
        text = self.take()
        if text == brackets[0]:
            text = ""
            while self.next and self.next not in brackets:
                text += self.take()
            self.take(brackets[1])
        return text

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
        tree = self.sum()
        self.take("\\r" + name[1:])
        return ["f", name[1:], tree]

    def root(self) -> Formula:
        if not self.accept("["):
            return ["f", "sqrt", self.group()]
        index = self.sum()
        self.take("]")
        return ["f", "root", self.group(), index]

    def function(self, name: str) -> Formula:
        base = power = None
        while self.next in {"_", "^"}:
            if self.take() == "_":
                base = self.group()
            else:
                power = self.negated(self.atom)
        if (base and name != "log") or (power and power[0] == "-"):  # an inverse or a reciprocal
            raise _UnreadableError
        tree = ["f", name, self.argument(), *([base] if base else [])]
        return ["^", tree, power] if power else tree

    def argument(self) -> Formula:
        """A function's argument: brackets, or the factors up to the next function or sign."""
        if self.next == "(":
            return self.atom()
        tree = self.power()
        while self.begins() and self.next[1:] not in FUNCTIONS and self.next != "(":
            tree = ["*", tree, self.beside(tree, first=True)]
        return tree

    def matrix(self) -> Formula:
        kind = self.verbatim()
        if kind not in MATRICES:
            raise _UnreadableError
        rows: list[list[Formula]] = [[self.relation()]]
        while self.next in {"&", "\\\\"}:
            if self.take() == "&":
                rows[-1].append(self.relation())
            elif self.next != r"\end":
                rows.append([self.relation()])
        self.take(r"\end")
        if self.verbatim() != kind:
            raise _UnreadableError
        return ["mat", *rows]
