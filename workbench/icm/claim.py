"""Claims to be labelled true or false, how they are put to a model, and which exclude each other.

Consistency is that of Wen et al. 2025, section 2.3. Its rules see the groups and the answer keys
and nothing else, so gold labels cannot leak into them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from workbench import values
from workbench.errors import InputError

COLUMNS = r"\{(text|question|choice|first|second)\}"
"""A column in a template."""

Labels = tuple[bool | None, ...]
"""A label for each claim, in the claims' order; None where there is none yet."""

Rule = Literal["auto", "none", "gold_key_replication"]
RULES: tuple[Rule, ...] = ("auto", "none", "gold_key_replication")


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that is true or false.

    Attributes:
        text: as the model sees it, up to where the label begins (no space at the end).
        group: claims of one question share it; consistency is judged within a group.
        answer_key: what the claim says the answer is, such as "42", or "A>B" in a comparison.
            It is made from the text alone, never from the gold label.
        gold: the truth where it is known. It measures; no search ever reads it.
        id: the user's own, or the row's number in the file (from 0) as text; None for claims made
            in Python.
    """

    text: str
    group: str
    answer_key: str | None = None
    gold: bool | None = None
    id: str | None = None


Labelled = Sequence[tuple[Claim, bool]]
"""Claims with their labels, as demonstrations in this order."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The words around claims.

    Attributes:
        labels: how true and false are written after a claim, as they stand: with a space before
            them or, where the model's language or a claim's last sign wants it so, without.
        after: what ends a labelled claim.
        chat: a claim as a question in a chat, `{claim}` in it.
        chat_labels: the answers to that question.
        template: what `read_claims` makes a claim's text of, with the names of columns in braces,
            such as "Claim: {text}\\nThis is"; None is that of the published program.

    Raises:
        InputError: a value cannot be used; the message says which.
    """

    labels: tuple[str, str] = (" True", " False")
    after: str = "\n\n"
    chat: str = "{claim} …\nIs this claim true? Answer with one word, True or False."
    chat_labels: tuple[str, str] = ("True", "False")
    template: str | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "chat_labels"):
            if not _two_words(getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)!r} must be two different words")
        if not isinstance(self.chat, str) or "{claim}" not in self.chat:
            raise InputError(f"chat={self.chat!r} must have {{claim}} where the claim goes")
        if self.template is not None and not re.search(COLUMNS, self.template):
            raise InputError(
                f"template={self.template!r:.80} must have the columns of the claims: {{text}}, "
                "{question} and {choice}, or {question}, {first} and {second}"
            )

    def solved(self, claim: Claim, label: bool) -> str:
        """A demonstration."""
        return f"{claim.text}{self.labels[not label]}{self.after}"


def _two_words(given: object) -> bool:
    words = given if isinstance(given, tuple | list) else ()
    return len({word.strip() for word in words if isinstance(word, str)} - {""}) == len(words) == 2


def wording_from(
    labels: str | None = None, after: str | None = None, template: str | None = None
) -> Wording:
    r"""A wording from a command line, where `\n` and `\t` may be written for a new line and a tab.

    Args:
        labels: true and false, such as "Yes,No"; a space is set before each, and the chat asks for
            them too. For labels without it make a `Wording`.
        after: what ends a labelled claim.
        template: see `Wording`.

    Raises:
        InputError: there are not two different labels, or the template names no column.
    """
    changed: dict[str, Any] = {
        name: text.replace(r"\n", "\n").replace(r"\t", "\t")
        for name, text in (("after", after), ("template", template))
        if text is not None
    }
    if labels is not None:
        words = tuple(word.strip() for word in labels.split(","))
        if not _two_words(words):
            raise InputError(f"labels={labels!r}: give two different words, such as Yes,No")
        changed["labels"], changed["chat_labels"] = tuple(f" {word}" for word in words), words
        changed["chat"] = Wording().chat.replace("True or False", " or ".join(words))
    return Wording(**changed)


def check_claims(claims: Sequence[Claim], what: str = "claims") -> tuple[Claim, ...]:
    """The claims, if they can be labelled.

    Raises:
        InputError: there are none, one is no `Claim` or has no text, or two are the same.
    """
    if isinstance(claims, str) or not isinstance(claims, Sequence) or not claims:
        raise InputError(f"{what}={claims!r:.80}: give a list of Claim, 1 at least")
    first: dict[str, int] = {}
    for index, claim in enumerate(claims):
        where = f"{what}[{index}]"
        if not isinstance(claim, Claim):
            values.refuse(where, claim, "a workbench.icm.Claim")
        if not values.text(f"{where}.text", claim.text).strip():
            values.refuse(f"{where}.text", claim.text, "more than spaces")
        if not isinstance(claim.group, str):
            values.refuse(f"{where}.group", claim.group, "a text")
        if not isinstance(claim.answer_key, str | None):
            values.refuse(f"{where}.answer_key", claim.answer_key, "a text or None")
        if not isinstance(claim.gold, bool | None):
            values.refuse(f"{where}.gold", claim.gold, "True, False or None")
        if (known := first.setdefault(claim.text, index)) != index:
            raise InputError(
                f"{what}[{known}] and [{index}] are the same claim {claim.text!r:.80}: leave one "
                "out, or each would tell the label of the other"
            )
    return tuple(claims)


@dataclass(frozen=True, slots=True)
class Relation:
    """Two claims, by index, whose labels depend on each other.

    - contradiction: different answers to one question are not both true;
    - implication: the same answer is true both times or false both times;
    - asymmetry: of "A is better than B" and "B is better than A" just one is true.
    """

    first: int
    second: int
    kind: Literal["contradiction", "implication", "asymmetry"]

    def holds(self, labels: Labels) -> bool:
        """Whether these labels go together; a claim without a label goes with anything."""
        a, b = labels[self.first], labels[self.second]
        if a is None or b is None:
            return True
        if self.kind == "implication":
            return a == b
        return not (a and b) and (self.kind == "contradiction" or a != b)

    @property
    def repairs(self) -> tuple[tuple[bool, bool], tuple[bool, bool]]:
        """The two ways that the published code tries to make both labels go together."""
        if self.kind == "implication":
            return (False, False), (True, True)
        return (False, True), (True, False)


def relations(claims: Sequence[Claim], rule: Rule = "auto") -> tuple[Relation, ...]:
    """All relations between claims by a rule.

    Args:
        rule: "auto" reads the answer keys; "none" relates nothing; "gold_key_replication" takes
            the *gold label* as the key, as the published code does: A or B on TruthfulQA, A>B or
            B>A of comparisons, which are claims with ">" in their answer key. It leaks the truth
            into the search and is there to replicate numbers, not to make new ones.

    Raises:
        InputError: an unknown rule, or gold labels are wanted as keys and one is missing.
    """
    if rule not in RULES:
        raise InputError(f"consistency={rule!r}: give one of {', '.join(RULES)}")
    keys = [claim.answer_key for claim in claims]
    if rule == "gold_key_replication":
        golds = [claim.gold for claim in claims]
        if None in golds:
            at = golds.index(None)
            raise InputError(f"consistency={rule!r} needs gold labels, and claim {at} has none")
        by_gold = {False: ("B", "A"), True: ("B>A", "A>B")}
        keys = [by_gold[">" in (claim.answer_key or "")][bool(claim.gold)] for claim in claims]
    members: dict[str, list[tuple[int, str]]] = {}
    for index, (claim, key) in enumerate(zip(claims, keys, strict=True)):
        if key is not None and rule != "none":
            members.setdefault(claim.group, []).append((index, key))
    return tuple(
        Relation(a, b, _kind(key, other))
        for group in members.values()
        for (a, key), (b, other) in combinations(group, 2)
    )


def _kind(key: str, other: str) -> Literal["contradiction", "implication", "asymmetry"]:
    if key == other:
        return "implication"
    better, sign, worse = key.partition(">")
    return "asymmetry" if sign and other == f"{worse}>{better}" else "contradiction"


def violated(related: Sequence[Relation], labels: Labels) -> list[Relation]:
    """The relations whose labels do not go together."""
    return [one for one in related if not one.holds(labels)]


def consistent_labels(odds: Mapping[int, float], related: Sequence[Relation]) -> tuple[bool, ...]:
    """The labels with the greatest sum of log-odds of those that violate no relation.

    All claims of a group are related, so that at most one answer is true in it. Where that cannot
    do, as with two pairs of comparisons in one group, the fewest relations are violated.
    """
    labels = [odds[index] > 0 for index in range(len(odds))]
    start: dict[int, int] = {}
    groups: dict[int, list[Relation]] = {}
    for one in related:  # those of the first claim of a group come first
        start[one.second] = start.setdefault(one.first, one.first)
        groups.setdefault(start[one.first], []).append(one)
    for inside in groups.values():
        for index, label in _likeliest(odds, inside).items():
            labels[index] = label
    return tuple(labels)


def _likeliest(odds: Mapping[int, float], inside: Sequence[Relation]) -> dict[int, bool]:
    """The labels of one group: the claims of one answer are true, or none is."""
    alike = {index: {index} for one in inside for index in (one.first, one.second)}
    for one in inside:
        if one.kind == "implication":
            alike[one.first].add(one.second)
            alike[one.second].add(one.first)
    either = [{one.first, one.second} for one in inside if one.kind == "asymmetry"]

    def worth(true: set[int]) -> tuple[int, float]:
        return -sum(true.isdisjoint(ends) for ends in either), sum(odds[i] for i in true)

    best = max([set[int](), *alike.values()], key=worth)
    return {index: index in best for index in alike}
