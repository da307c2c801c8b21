"""Which labels of one group exclude each other (Wen et al. 2025, section 2.3).

Rules see the groups and the answer keys and nothing else, so gold labels cannot leak into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from workbench.errors import InputError
from workbench.icm.claim import Claim, Labels

Rule = Literal["auto", "none", "gold_key_replication"]
RULES: tuple[Rule, ...] = ("auto", "none", "gold_key_replication")

Kind = Literal["contradiction", "implication", "asymmetry"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two claims, by index, whose labels depend on each other.

    - contradiction: different answers to one question are not both true;
    - implication: the same answer is true both times or false both times;
    - asymmetry: of "A is better than B" and "B is better than A" just one is true.
    """

    first: int
    second: int
    kind: Kind

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


def pairs(claims: Sequence[Claim], rule: Rule = "auto") -> tuple[Pair, ...]:
    """All pairs that `rule` relates.

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
    groups = [claim.group for claim in claims]
    if rule == "auto":
        return _related(groups, [claim.answer_key for claim in claims])
    if rule == "none":
        return ()
    missing = next((i for i, claim in enumerate(claims) if claim.gold is None), None)
    if missing is not None:
        raise InputError(f"consistency={rule!r} needs gold labels, and claim {missing} has none")
    keys = {False: ("B", "A"), True: ("B>A", "A>B")}
    return _related(groups, [keys[">" in (c.answer_key or "")][bool(c.gold)] for c in claims])


def violated(related: Sequence[Pair], labels: Labels) -> list[Pair]:
    """The pairs whose labels do not go together."""
    return [pair for pair in related if not pair.holds(labels)]


def _related(groups: Sequence[str], keys: Sequence[str | None]) -> tuple[Pair, ...]:
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        if keys[index] is not None:
            members.setdefault(group, []).append(index)
    return tuple(
        Pair(a, b, _kind(str(keys[a]), str(keys[b])))
        for group in members.values()
        for a, b in combinations(group, 2)
    )


def _kind(key: str, other: str) -> Kind:
    if key == other:
        return "implication"
    better, sign, worse = key.partition(">")
    return "asymmetry" if sign and other == f"{worse}>{better}" else "contradiction"
