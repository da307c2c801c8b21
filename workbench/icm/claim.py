"""Claims to be labelled true or false, and how they are put to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.errors import InputError

__all__ = ["Claim", "Labelled", "Labels", "Wording", "check_claims"]

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
    """

    text: str
    group: str
    answer_key: str | None = None
    gold: bool | None = None


Labelled = Sequence[tuple[Claim, bool]]
"""Claims with their labels, as demonstrations in this order."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The words around claims.

    Attributes:
        labels: how true and false are written after a claim, with the space before them.
        after: what ends a labelled claim.
        chat: a claim as a question in a chat, `{claim}` in it.
        chat_labels: the answers to that question.
    """

    labels: tuple[str, str] = (" True", " False")
    after: str = "\n\n"
    chat: str = "{claim} …\nIs this claim true? Answer with one word, True or False."
    chat_labels: tuple[str, str] = ("True", "False")

    def __post_init__(self) -> None:
        if not isinstance(self.chat, str) or "{claim}" not in self.chat:
            raise InputError(f"chat={self.chat!r} must have {{claim}} where the claim goes")

    def solved(self, claim: Claim, label: bool) -> str:
        """A demonstration."""
        return f"{claim.text}{self.labels[not label]}{self.after}"


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
