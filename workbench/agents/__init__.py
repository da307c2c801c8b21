"""Agents: programs over prompts, advanced for all items of a task together.

`standard` asks once, `MajorityVote` samples and counts, `BestOfN` samples and verifies,
`SelfRefine` criticises and revises. One's own is a generator: see `program`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from workbench.agents.best_of_n import BestOfN
from workbench.agents.majority_vote import MajorityVote
from workbench.agents.program import Agent, Answer, Ask, Case, Program, Score
from workbench.agents.rounds import Outcome, advance
from workbench.agents.self_refine import SelfRefine
from workbench.agents.standard import standard
from workbench.errors import InputError

__all__ = [
    "AGENTS", "Agent", "Answer", "Ask", "BestOfN", "Case", "MajorityVote", "Outcome", "Program",
    "Score", "SelfRefine", "advance", "named", "open_agent", "standard",
]  # fmt: skip

AGENTS: Mapping[str, Callable[[], Agent]] = MappingProxyType(
    {
        "standard": lambda: standard,
        "majority_vote": MajorityVote,
        "best_of_n": BestOfN,
        "self_refine": SelfRefine,
    }
)
"""All agents by name, as they are by default."""


def open_agent(agent: str | Agent) -> Agent:
    """The agent of that name, or the one given.

    Raises:
        InputError: there is none of that name, or it cannot be called.
    """
    if not isinstance(agent, str):
        if isinstance(agent, type):
            raise InputError(f"agent={agent.__name__}: give one of it, {agent.__name__}()")
        if not callable(agent):
            raise InputError(f"agent={agent!r:.60}: give a name or a function that yields calls")
        return agent
    if agent not in AGENTS:
        near = difflib.get_close_matches(agent.lower(), AGENTS, n=1, cutoff=0.0)
        raise InputError(
            f"no agent {agent!r}, did you mean {near[0]!r}? Known: {', '.join(AGENTS)}"
        )
    return AGENTS[agent]()


def named(agent: str | Agent) -> str:
    """How an agent is called in tables and reports."""
    if isinstance(agent, str):
        return agent
    if agent is standard:
        return "standard"
    name = getattr(agent, "__name__", None)
    return str(name) if name else repr(agent)
