"""Self-refine: a draft, a critique of it, a revision, until nothing changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench.agents.majority_vote import cluster
from workbench.agents.program import Answer, Ask, Case, Program
from workbench.errors import InputError
from workbench.types import Sampling

CRITIQUE = "Check the solution above step by step. Name each mistake, or say that there is none."
LEAST = 160
"""Tokens for a critique or a revision at the least."""
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
        room = _room(case.sampling)
        text = str(answer.text)
        first = current = case.extracted(text)
        revisions = 0
        while revisions < self.rounds:
            remarks = yield Ask(case.then(text, self.critique), room)
            request = f"{self.critique}\n{remarks.text}\n\n{self.revise}"
            revision = yield Ask(case.then(text, request), room)
            revisions += 1
            found = case.extracted(revision.text)
            alike = current and len(cluster(case.task, case.item, [text, revision.text])) == 1
            if found is None or alike:
                break
            text, current = str(revision.text), found
        return Answer(text, {"revisions": revisions, "changed": current != first})


def _room(sampling: Sampling) -> Sampling:
    """For remarks and whole solutions, where the task asks for a word or a letter."""
    stop = tuple(text for text in sampling.stop if text != "\n") or ("\n\n",)
    return replace(sampling, max_tokens=max(sampling.max_tokens, LEAST), stop=stop)
