"""A suite: several agents in several styles on the same items, kept as it goes, in one table."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from workbench.agents import Agent, named
from workbench.comparison import load
from workbench.errors import InputError
from workbench.evaluation import Evaluation, asked, evaluate
from workbench.store import digest
from workbench.types import Engine, Task

log = logging.getLogger("workbench")

Style = Literal["completion", "chat"]
LONGEST = 60
"""Letters of a folder's name."""


def run_suite(
    task: Task,
    engine: Engine,
    agents: Sequence[str | Agent],
    styles: Sequence[Style] = ("completion",),
    *,
    folder: str | Path | None = None,
    **settings: Any,
) -> dict[str, Evaluation]:
    """Evaluate each agent in each style, those after the first against which they compare.

    Args:
        agents: names or agents of one's own, each with a name of its own.
        folder: keeps a report as soon as it is whole, in a folder of its own name. Run again, it is
            read from there, and what is missing or failed is done.
        settings: further arguments of `evaluate`, the same for all.

    Returns:
        Reports by name: the agent's, and the style's where there are several.

    Raises:
        InputError: no agents or styles, two of one name, or the folder has reports of other
            settings; and as `evaluate`.
    """
    plan = _plan(agents, styles)
    place = Path(folder).expanduser() if folder is not None else None
    reports: dict[str, Evaluation] = {}
    for number, (name, (agent, style)) in enumerate(plan.items(), 1):
        log.info("suite: %s, %d of %d", name, number, len(plan))
        target = place / _folder(name) if place else None
        if target is not None and target.exists():
            known = _known(target, asked(task, engine, agent, style=style, **settings)[1])
            if known.rows["error"].isna().all():
                reports[name] = known
                continue
            log.info("suite: %s has failed rows, which are asked again", name)
        reports[name] = evaluate(task, engine, agent, style=style, **settings)
        if target is not None:
            shutil.rmtree(target.resolve(), ignore_errors=True)  # of a link it removes nothing
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
            if " at 0x" in name:
                raise InputError(f"agents: {name} has no name that stays; give it a __name__")
            if name in plan:
                raise InputError(f"agents: two are {name!r}; give each a name of its own")
            plan[name] = agent, style
    return plan


def _folder(name: str) -> str:
    """The name as a folder's, which an agent's arguments may be too long for."""
    plain = re.sub(r"[^\w.,=() -]", "_", name)
    if plain == name and len(name) <= LONGEST:
        return name
    return f"{plain[:LONGEST]} {digest(name).hex()[:8]}"


def _known(target: Path, wanted: Mapping[str, Any]) -> Evaluation:
    """A report that is there, if it is of these settings, model and items."""
    report = load(target)
    if not isinstance(report, Evaluation):
        raise InputError(f"{target} has no trace.parquet: remove the folder, and it is made anew")
    there, here = (_settings(one) for one in (report.provenance, wanted))
    for name, value in here.items():
        if there.get(name) != value:
            raise InputError(
                f"{target} has {name}={there.get(name)!r}, here it is {value!r}: give this suite "
                "another name, or remove the folder"
            )
    return report


def _settings(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the answers, as it is read from a file."""
    model = {name: provenance["engine"][name] for name in ("model", "revision")}
    kept = {name: v for name, v in provenance.items() if name not in {"engine", "commit"}}
    found: dict[str, Any] = json.loads(json.dumps(model | kept, default=str))
    return found
