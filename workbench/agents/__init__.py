"""Agents: programs over prompts, advanced for all items of a task together.

`standard` asks once, `MajorityVote` samples and counts, `BestOfN` samples and verifies,
`SelfRefine` criticises and revises. Your own agent is a generator: see `program`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from workbench import values
from workbench.agents.methods import BestOfN, MajorityVote, SelfRefine, standard, yes_or_no
from workbench.agents.program import Agent, AgentCase, Answer, Ask, Program, Score
from workbench.agents.scheduler import AgentOutcome, advance
from workbench.errors import InputError

__all__ = [
    "AGENTS", "Agent", "AgentCase", "AgentOutcome", "Answer", "Ask", "BestOfN", "MajorityVote",
    "Program", "Score", "SelfRefine", "advance", "named", "open_agent", "standard",
]  # fmt: skip

AGENTS: Mapping[str, Callable[[], Agent]] = MappingProxyType(
    {
        "standard": lambda: standard,
        "majority_vote": MajorityVote,
        "best_of_n": BestOfN,
        "self_refine": SelfRefine,
    }
)
"""The built-in agents by name, each with its default settings."""


def open_agent(agent: str | Agent) -> Agent:
    """The agent with this name, or the agent given.

    Raises:
        InputError: no agent has this name, or the object is not callable.
    """
    if not isinstance(agent, str):
        if isinstance(agent, type):
            raise InputError(f"agent={agent.__name__}: give an instance, {agent.__name__}()")
        if not callable(agent):
            raise InputError(f"agent={agent!r:.60}: give a name or a function that yields calls")
        return agent
    return AGENTS[values.known("agent", agent, AGENTS)]()


def named(agent: str | Agent) -> str:
    """The agent's name in tables and reports."""
    if isinstance(agent, str):
        return agent
    if agent is standard:
        return "standard"
    if name := getattr(agent, "__name__", None):
        return f"custom {name}" if name in AGENTS else str(name)
    custom = isinstance(agent, BestOfN) and agent.verify is not yes_or_no
    return f"{agent!r} with a custom verify" if custom else repr(agent)
