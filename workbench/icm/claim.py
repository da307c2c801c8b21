"""Claims to be labelled true or false, and how they are put to a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import InputError

COLUMNS = r"\{(text|question|choice|first|second)\}"
"""A column in a template."""

Labels = tuple[bool | None, ...]
"""A label for each claim, in the claims' order; None where there is none yet."""


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
    changed: dict[str, Any] = {}
    if labels is not None:
        words = tuple(word.strip() for word in labels.split(","))
        if not _two_words(words):
            raise InputError(f"labels={labels!r}: give two different words, such as Yes,No")
        chat = Wording().chat.replace("True or False", " or ".join(words))
        changed |= {"labels": tuple(f" {word}" for word in words), "chat_labels": words}
        changed |= {"chat": chat}
    for name, text in (("after", after), ("template", template)):
        if text is not None:
            changed[name] = text.replace(r"\n", "\n").replace(r"\t", "\t")
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
        if not isinstance(claim, Claim):
            raise InputError(f"{what}[{index}]={claim!r:.80} must be a workbench.icm.Claim")
        if not isinstance(claim.text, str) or not claim.text.strip():
            raise InputError(f"{what}[{index}].text={claim.text!r} must not be empty")
        if not claim.text.isascii() and re.search("[\ud800-\udfff]", claim.text):
            raise InputError(f"{what}[{index}].text={claim.text!r:.80} has half a character")
        if not isinstance(claim.group, str):
            raise InputError(f"{what}[{index}].group={claim.group!r:.80} must be a text")
        if not isinstance(claim.answer_key, str | None):
            raise InputError(
                f"{what}[{index}].answer_key={claim.answer_key!r:.80} must be a text or None"
            )
        if claim.gold is not None and not isinstance(claim.gold, bool):
            raise InputError(f"{what}[{index}].gold={claim.gold!r} must be True, False or None")
        if claim.text in first:
            raise InputError(
                f"{what}[{first[claim.text]}] and [{index}] are the same claim {claim.text!r:.80}: "
                "leave one out, or each would tell the label of the other"
            )
        first[claim.text] = index
    return tuple(claims)
