"""Claims to be labelled true or false, their wording, and the relations between them.

Consistency follows Wen et al. 2025, section 2.3. Its rules use only groups and answer keys, so
gold labels cannot leak into them.
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
"""A label for each claim, in the claims' order; None if there is none yet."""

Rule = Literal["auto", "none", "gold_key_replication"]
RULES: tuple[Rule, ...] = ("auto", "none", "gold_key_replication")


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement that is true or false.

    Attributes:
        text: as the model reads it, up to the position of the label (no space at the end).
        group: shared by the claims about one question; consistency is judged within a group.
        answer_key: the answer that the claim asserts, such as "42", or "A>B" in a comparison. It
            is made from the text alone, never from the gold label.
        gold: the true label, if known. It is used for measuring; no search reads it.
        id: the user's own, or the row's number in the file (from 0) as text; None without a file.
    """

    text: str
    group: str
    answer_key: str | None = None
    gold: bool | None = None
    id: str | None = None


Labelled = Sequence[tuple[Claim, bool]]
"""Claims with their labels, in the order of the demonstrations."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The texts around claims.

    Attributes:
        labels: the texts for true and false after a claim, complete: usually with a space before
            them, or without if the language or the claim's last character requires it.
        after: the end of a labelled claim.
        chat: a chat question about a claim, with `{claim}` in it.
        chat_labels: the answers to that question.
        template: for claims of `read_claims`, with the names of columns in braces, such as
            "Claim: {text}\\nThis is"; None means the template of the published program.

    Raises:
        InputError: a value is unusable; the message names it.
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
        """A claim with its label, as a demonstration."""
        return f"{claim.text}{self.labels[not label]}{self.after}"


def _two_words(given: object) -> bool:
    words = given if isinstance(given, tuple | list) else ()
    return len({word.strip() for word in words if isinstance(word, str)} - {""}) == len(words) == 2


def wording_from(
    labels: str | None = None, after: str | None = None, template: str | None = None
) -> Wording:
    r"""A wording from a command line, in which `\n` and `\t` mean a new line and a tab.

    Args:
        labels: the words for true and false, such as "Yes,No", also for the chat; each gets a space
            before it. For labels without the space make a `Wording`.
        after: the end of a labelled claim.
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
    """The claims, after checking that they can be labelled.

    Raises:
        InputError: there are none, one is not a `Claim` or has no text, or two are the same.
    """
    if isinstance(claims, str) or not isinstance(claims, Sequence) or not claims:
        raise InputError(f"{what}={claims!r:.80}: give a list of at least 1 Claim")
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
                "out, or each would reveal the label of the other"
            )
    return tuple(claims)


@dataclass(frozen=True, slots=True)
class Relation:
    """Two claims, by index, whose labels constrain each other.

    - contradiction: different answers to one question are not both true;
    - implication: the same answer is both times true or both times false;
    - asymmetry: exactly one of "A is better than B" and "B is better than A" is true.
    """

    first: int
    second: int
    kind: Literal["contradiction", "implication", "asymmetry"]

    def holds(self, labels: Labels) -> bool:
        """Whether these labels satisfy the relation; a missing label always does."""
        a, b = labels[self.first], labels[self.second]
        if a is None or b is None:
            return True
        if self.kind == "implication":
            return a == b
        return not (a and b) and (self.kind == "contradiction" or a != b)

    @property
    def repairs(self) -> tuple[tuple[bool, bool], tuple[bool, bool]]:
        """The two repairs that the published code tries."""
        if self.kind == "implication":
            return (False, False), (True, True)
        return (False, True), (True, False)


def relations(claims: Sequence[Claim], rule: Rule = "auto") -> tuple[Relation, ...]:
    """All relations between claims according to a rule.

    Args:
        rule: "auto" uses the answer keys; "none" relates nothing; "gold_key_replication" uses the
            *gold label* as the key, as the published code does: A or B on TruthfulQA, A>B or B>A
            for comparisons, which are claims with ">" in their answer key. It leaks gold labels
            into the search; use it only to replicate published numbers.

    Raises:
        InputError: an unknown rule, or a gold label is needed as a key and missing.
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
    """The relations that these labels violate."""
    return [one for one in related if not one.holds(labels)]


def consistent_labels(odds: Mapping[int, float], related: Sequence[Relation]) -> tuple[bool, ...]:
    """The labels with the greatest sum of log-odds among those that violate no relation.

    All claims of a group are related, so at most one answer in it is true. If no labels satisfy
    all relations, as for two pairs of comparisons in one group, the fewest are violated.
    """
    labels = [odds[index] > 0 for index in range(len(odds))]
    start: dict[int, int] = {}
    groups: dict[int, list[Relation]] = {}
    for one in related:  # the relations of a group's first claim come first
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
