"""Self-refine: a draft, a critique of it, a revision, until nothing changes."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.agents.program import Answer, Ask, Case, Program
from workbench.errors import InputError

__all__ = ["SelfRefine"]

CRITIQUE = "Check the solution above step by step. Name each mistake, or say that there is none."
REVISE = "Now write the whole solution again, without the mistakes."


@dataclass(frozen=True, slots=True)
class SelfRefine:
    """Draft, critique and revision by one model (Madaan et al. 2023, arXiv 2303.17651).

    It ends when a revision gives the answer of the text before it, or none that can be read, and
    then the text before it stands. Notes: `revisions` (asked for), `changed` (whether the last
    answer differs from the draft's).

    Args:
        rounds: revisions at most.
        critique, revise: what the model is asked for.

    Raises:
        InputError: fewer than 1 round, or nothing to ask.
    """

    rounds: int = 3
    critique: str = CRITIQUE
    revise: str = REVISE

    def __post_init__(self) -> None:
        if not isinstance(self.rounds, int) or isinstance(self.rounds, bool) or self.rounds < 1:
            raise InputError(f"rounds={self.rounds!r}: must be a whole number from 1")
        for name in ("critique", "revise"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{name}={text!r}: must be a text that is not empty")

    def __call__(self, case: Case) -> Program:
        answer = yield Ask(case.prompt)
        text = str(answer.text)
        first = current = case.extracted(text)
        revisions = 0
        while revisions < self.rounds:
            remarks = yield Ask(case.then(text, self.critique))
            request = f"{self.critique}\n{remarks.text}\n\n{self.revise}"
            revision = yield Ask(case.then(text, request))
            revisions += 1
            found = case.extracted(revision.text)
            if found is None or found == current:
                break
            text, current = str(revision.text), found
        return Answer(text, {"revisions": revisions, "changed": current != first})
