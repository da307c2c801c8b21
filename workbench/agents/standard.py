"""The agent that asks once."""

from __future__ import annotations

from workbench.agents.program import Ask, Case, Program


def standard(case: Case) -> Program:
    """One answer, as the task asks for it."""
    answer = yield Ask(case.prompt)
    return str(answer.text)
