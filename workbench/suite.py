"""A suite: several agents in several styles on the same items, kept as it goes, in one table."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from workbench.agents import Agent, named
from workbench.comparison import load
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.types import Engine, Report, Task

__all__ = ["run_suite"]

log = logging.getLogger("workbench")

Style = Literal["completion", "chat"]


def run_suite(
    task: Task,
    engine: Engine,
    agents: Sequence[str | Agent],
    styles: Sequence[Style] = ("completion",),
    *,
    folder: str | Path | None = None,
    **settings: Any,
) -> dict[str, Report]:
    """Evaluate each agent in each style, those after the first against which they compare.

    Args:
        agents: names or agents of one's own, each with a name of its own.
        folder: keeps a report as soon as it is whole, in a folder of its own name. Run again, it is
            read from there, and what is missing is done.
        settings: further arguments of `evaluate`, the same for all.

    Returns:
        Reports by name: the agent's, and the style's where there are several.

    Raises:
        InputError: no agents or styles, two of one name, or the folder has reports of other
            settings; and as `evaluate`.
    """
    plan = _plan(agents, styles)
    place = Path(folder).expanduser() if folder is not None else None
    reports: dict[str, Report] = {}
    for number, (name, (agent, style)) in enumerate(plan.items(), 1):
        log.info("suite: %s, %d of %d", name, number, len(plan))
        target = place / name if place else None
        if target is not None and target.exists():
            reports[name] = _known(target, {"agent": named(agent), "style": style, **settings},
                                   task, engine)  # fmt: skip
            continue
        reports[name] = evaluate(task, engine, agent, style=style, **settings)
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            reports[name].save(target)
    return reports


def _plan(
    agents: Sequence[str | Agent], styles: Sequence[Style]
) -> Mapping[str, tuple[str | Agent, Style]]:
    if isinstance(agents, str) or not agents or isinstance(styles, str) or not styles:
        raise InputError(f"agents={agents!r}, styles={styles!r}: give a list of each, 1 at least")
    plan: dict[str, tuple[str | Agent, Style]] = {}
    for style in styles:
        for agent in agents:
            name = named(agent) if len(styles) == 1 else f"{named(agent)}, {style}"
            if name in plan:
                raise InputError(f"agents: two are {name!r}; give each a name of its own")
            plan[name] = agent, style
    return plan


def _known(target: Path, settings: Mapping[str, Any], task: Task, engine: Engine) -> Report:
    """A report that is there, if it is of these settings."""
    report = load(target)
    info = engine.info
    wanted = {
        "task": task.name,
        "model": info.model,
        "revision": info.revision,
        **{k: v for k, v in settings.items() if v is not None},
        "sampling": asdict(settings.get("sampling") or task.sampling),
    }
    told = {**report.provenance["engine"], **report.provenance}
    for name, value in json.loads(json.dumps(wanted, default=str)).items():
        if told.get(name) != value:
            raise InputError(
                f"{target} has {name}={told.get(name)!r}, here it is {value!r}: give this suite "
                "another name, or remove the folder"
            )
    return report
