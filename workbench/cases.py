"""The inputs of an evaluation: a task, its items, and their prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from workbench import values
from workbench.agents import Agent, AgentCase, named, open_agent
from workbench.engines.frames import with_settings
from workbench.engines.style import chosen_style
from workbench.errors import InputError
from workbench.messages import plain_prompt
from workbench.runs import commit
from workbench.store import digest
from workbench.tasks import TASKS, open_task
from workbench.tasks.base import worded_prompt
from workbench.tasks.origin import source_of
from workbench.types import Engine, Item, PromptStyle, Sampling, Style, Task

SAMPLING = [field.name for field in fields(Sampling) if field.name != "seed"]
"""Fields that may be changed besides `sampling`; `seed` belongs to the evaluation."""


def as_task(task: object) -> Task:
    """The task itself, or a task from a name, a file, a DataFrame or rows (see `open_task`).

    Raises:
        InputError: it is none of these.
    """
    if isinstance(task, type):
        raise InputError(f"task={task.__name__}: pass an instance, {task.__name__}()")
    if all(callable(getattr(task, name, None)) for name in ("items", "prompt", "grade")):
        return task  # type: ignore[return-value]
    return open_task(task)


def chosen_sampling(task: Task, sampling: Sampling | None, changes: Mapping[str, Any]) -> Sampling:
    """The task's sampling or the given one, with single fields changed.

    Raises:
        InputError: no such field, or a value is out of its range.
    """
    for name in changes:
        values.known("argument of evaluate", name, [*ARGUMENTS, *SAMPLING])
    return with_settings(task.sampling if sampling is None else sampling, changes)


ARGUMENTS = (
    "task", "engine", "agent", "count", "num_runs", "seed", "shots", "style", "sampling", "prompt",
    "cluster", "dry_run", "price_in", "price_out", "max_cost",
)  # fmt: skip
"""Arguments of `evaluate`, besides the fields of Sampling."""


def prepare_cases(  # noqa: PLR0917  # as `evaluate`
    task: object,
    engine: Engine | None,
    agent: str | Agent = "standard",
    count: int | None = None,
    num_runs: int = 1,
    seed: int = 0,
    *,
    shots: int = 0,
    style: Style = "auto",
    sampling: Sampling | None = None,
    prompt: str | None = None,
    cluster: str | None = None,
    **changes: Any,
) -> tuple[list[AgentCase], dict[str, Any]]:
    """The cases of an `evaluate` call with these arguments, and its report's provenance.

    Without an engine, it refuses what `evaluate` would refuse before one is opened.

    Raises:
        InputError: as `evaluate`.
    """
    open_agent(agent)
    known = as_task(task)
    chosen = chosen_sampling(known, sampling, changes)
    values.whole("num_runs", num_runs, 1)
    items = _items(known, count, values.whole("seed", seed, 0))
    for item in items if cluster is not None else ():
        values.known(f"field of item {item.id!r} to cluster by", cluster, item.fields)
    asked: PromptStyle
    asked, why = ("completion", "") if engine is None else chosen_style(engine, style)
    prompts = [
        plain_prompt(worded_prompt(known, item, shots, asked, prompt), f"item {item.id!r:.60}")
        for item in items
    ]
    cases = [AgentCase(known, *pair, chosen) for pair in zip(items, prompts, strict=True)]
    content = [[case.item.id, case.prompt, case.item.answer] for case in cases]
    return cases, {
        "task": known.name,
        "split": known.split,
        "source": source_of(known, TASKS),
        "items": digest(content).hex()[:12],
        "count": len(items),
        "seed": int(seed),
        "agent": named(agent),
        "num_runs": int(num_runs),
        "shots": shots,
        "style": asked,
        "style_why": why,
        "prompt": prompt,
        "cluster": cluster,
        "sampling": asdict(chosen),
        "engine": engine and asdict(engine.info),
        "commit": commit(),
    }


def _items(task: Task, count: int | None, seed: int) -> list[Item]:
    if not (items := task.items(count, seed)):
        raise InputError(
            f"task {task.name} has no items for count={count}, seed={seed}: change count or seed"
        )
    key, times = Counter(item.id for item in items).most_common(1)[0]
    if times > 1:
        raise InputError(f"task {task.name} has {times} items {key!r}: make each id unique")
    return items
