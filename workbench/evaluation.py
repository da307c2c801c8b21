"""How accurate is a model on a task, alone or as part of an agent: a verdict for each item.

A suite is several such reports on the same items, kept as it goes; `comparison` compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, overload

from workbench.agents import Agent, AgentCase, MajorityVote, advance, named, open_agent, standard
from workbench.answers import given_up
from workbench.cases import as_task, prepare_cases
from workbench.engines.estimate import Estimate, Prices
from workbench.engines.spending import Spending
from workbench.errors import InputError, log
from workbench.progress import fact, interruptible
from workbench.store import digest
from workbench.types import Engine, Sampling, Style
from workbench.verdicts import (
    Evaluation,
    accuracy,
    accuracy_by,
    keep,
    kept_place,
    load,
    load_kept,
    report_row,
    to_frame,
    trace_rows,
)

__all__ = ["Evaluation", "accuracy", "accuracy_by", "evaluate", "load", "run_suite"]


@overload
def evaluate(
    task: object,
    engine: Engine,
    agent: str | Agent = ...,
    count: int | None = ...,
    num_runs: int = ...,
    seed: int = ...,
    *,
    dry_run: Literal[True],
    **settings: Any,
) -> Estimate: ...
@overload
def evaluate(
    task: object,
    engine: Engine,
    agent: str | Agent = ...,
    count: int | None = ...,
    num_runs: int = ...,
    seed: int = ...,
    *,
    dry_run: Literal[False] = ...,
    **settings: Any,
) -> Evaluation: ...
@interruptible("evaluate")
def evaluate(  # noqa: PLR0917  # the first six are a contract
    task: object,
    engine: Engine,
    agent: str | Agent = "standard",
    count: int | None = None,
    num_runs: int = 1,
    seed: int = 0,
    *,
    shots: int = 0,
    style: Style = "auto",
    sampling: Sampling | None = None,
    prompt: str | None = None,
    dry_run: bool = False,
    price_in: float | None = None,
    price_out: float | None = None,
    max_cost: float | None = None,
    **changes: Any,
) -> Evaluation | Estimate:
    """Have an agent answer every item, all of them together, and grade the answers.

    Interrupted and called again, it resumes: what was answered is in the engine's store.

    Args:
        task: a name (`tasks.TASKS`), a file of problems, a DataFrame, a Dataset or a list of dicts
            (as `open_task` takes them), or a task as it is.
        agent: a name (`agents.AGENTS`), or a custom agent.
        count: items, or None for the task's own number; `seed` chooses them.
        num_runs: times that all is done, each with other random numbers: with further seeds where
            `sampling` has one.
        shots: solved examples before each item.
        style: "completion" or "chat"; "auto" is what suits the model (`engines.style`).
        sampling: how to answer; as the task says by default (greedy).
        prompt: a template that words the question, of items and worked examples alike, such as
            "{question}\\nThink step by step."; {question} is as the task words it, and the other
            fields of an item (the other columns of own rows) are there by name. What the task puts
            around the question stays.
        dry_run: generate nothing and return an `Estimate`: what is to be asked, the cost at most.
        price_in, price_out: of a million prompt and completion tokens, in any currency; the report
            says what was spent (`provenance["cost"]`).
        max_cost: in the same currency: no request is sent that could make the cost of this call
            exceed it if each one under way generated as much as it may. Rows that are not sent have
            failed rows with that reason; the same call with more resumes from the store, where
            what is there costs nothing.
        changes: single fields of `Sampling` that are to differ from `sampling`: `temperature`,
            `max_tokens`, …

    Returns:
        The accuracy with its 95 % interval (Wilson; over the items' means with several runs), and
        one row an item and run, failures included: what the agent answered, the verdict, `calls`,
        `rounds`, tokens, and the agent's notes. With `dry_run` an `Estimate`: exact as to requests
        and the store; of an agent that asks more by what it was answered, the least.

    Raises:
        InputError: the task has no items, or two of one id, or its columns have other names; there
            is no such task, agent, argument or field of a template; a value is out of its range.
    """
    spending = Spending(engine, Prices.of(price_in, price_out), max_cost, dry=dry_run)
    settings = {"shots": shots, "style": style, "sampling": sampling, "prompt": prompt, **changes}
    report = _evaluate(task, engine, spending, agent, count, num_runs, seed, **settings)
    return spending.estimate(further=_asks_more(agent)) if dry_run else report


def _asks_more(agent: str | Agent) -> bool:
    """Whether an agent's answers may lead to further calls."""
    return (agent := open_agent(agent)) is not standard and not isinstance(agent, MajorityVote)


def _evaluate(
    task: object, engine: Engine, spending: Spending, agent: str | Agent = "standard",
    *arguments: Any, **settings: Any,
) -> Evaluation:  # fmt: skip
    cases, provenance = prepare_cases(task, engine, agent, *arguments, **settings)
    chosen = open_agent(agent)
    num_runs, seed = provenance["num_runs"], provenance["seed"]
    if num_runs > 1 and chosen is standard and cases[0].sampling.temperature == 0:
        log.warning("evaluate: greedy answers are the same in all %d runs", num_runs)
    before, timed_out, spent = engine.usage, given_up(), spending.cost
    rows: list[dict[str, Any]] = []
    trace: list[dict[str, Any]] = []
    for run in range(num_runs):
        if num_runs > 1:
            fact("run", f"{run + 1} of {num_runs}")
        of_run = [_of_run(case, run) for case in cases]
        outcomes = advance(
            chosen, of_run, engine, seed=_seed("evaluate", seed, run), spending=spending
        )
        for case, outcome in zip(of_run, outcomes, strict=True):
            rows.append(report_row(case, outcome, run))
            trace += [{"id": case.item.id, "run": run, **row} for row in trace_rows(outcome.trace)]
    frame = to_frame(rows)
    provenance["engine"] = asdict(engine.info)  # with its notes on these answers
    provenance["n_timed_out"] = given_up() - timed_out  # comparisons of formulas, which took long
    if spending.prices is not None:
        cost = {"spent": spending.cost - spent, "price_in": spending.prices.price_in}
        cost |= {"price_out": spending.prices.price_out}
        provenance["cost"] = cost | (
            {} if (most := spending.max_cost) is None else {"max_cost": most}
        )
    usage = engine.usage.since(before)
    if spending.limited and not spending.dry:
        lost = int(frame["error"].astype("string").str.startswith("not sent").sum())
        if lost:
            log.warning("evaluate: %d of %d rows were not sent: max_cost", lost, len(frame))
    return Evaluation((accuracy(frame),), frame, usage, provenance, to_frame(trace))


def _of_run(case: AgentCase, run: int) -> AgentCase:
    """Further runs have seeds of their own."""
    if not run or case.sampling.seed is None:
        return case
    seed = _seed("sampling", case.sampling.seed, run)
    return replace(case, sampling=replace(case.sampling, seed=seed))


def _seed(*parts: object) -> int:
    return int.from_bytes(digest(*parts)[:4], "big")


@overload
def run_suite(
    task: object, engine: Engine, agents: Sequence[str | Agent], styles: Sequence[Style] = ...,
    *, folder: str | Path | None = ..., dry_run: Literal[True], **settings: Any,
) -> Estimate: ...  # fmt: skip
@overload
def run_suite(
    task: object, engine: Engine, agents: Sequence[str | Agent], styles: Sequence[Style] = ...,
    *, folder: str | Path | None = ..., dry_run: Literal[False] = ..., **settings: Any,
) -> dict[str, Evaluation]: ...  # fmt: skip
@interruptible("run_suite")
def run_suite(
    task: object,
    engine: Engine,
    agents: Sequence[str | Agent],
    styles: Sequence[Style] = ("auto",),
    *,
    folder: str | Path | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> dict[str, Evaluation] | Estimate:
    """Evaluate each agent in each style, those after the first against which they compare.

    Args:
        agents: names or custom agents, no two with the same name.
        folder: keeps a report as soon as it is whole, in a folder of its own name. Run again, it is
            read from there, and what is missing or failed is done.
        dry_run: generate nothing and return an `Estimate` of all of them together.
        settings: further arguments of `evaluate`, the same for all; `max_cost` is for all of them
            together.

    Returns:
        Reports by name: the agent's, and the style's where there are several.

    Raises:
        InputError: no agents or styles, two of one name, or the folder has reports of other
            settings; and as `evaluate`.
    """
    plan = _plan(agents, styles)
    return evaluate_each(task, engine, plan, folder=folder, dry_run=dry_run, **settings)


def evaluate_each(
    task: object,
    engine: Engine,
    plan: Mapping[str, Mapping[str, Any]],
    *,
    folder: str | Path | None = None,
    dry_run: bool = False,
    price_in: float | None = None,
    price_out: float | None = None,
    max_cost: float | None = None,
    **settings: Any,
) -> dict[str, Evaluation] | Estimate:
    """`evaluate` for each name of a plan, with the arguments that are its own; see `run_suite`."""
    spending = Spending(engine, Prices.of(price_in, price_out), max_cost, dry=dry_run)
    task = as_task(task)
    each = {name: {**settings, **own} for name, own in plan.items()}
    # All of them are refused or none, before anything is asked.
    wanted = {name: prepare_cases(task, engine, **one)[1] for name, one in each.items()}
    reports: dict[str, Evaluation] = {}
    for number, (name, one) in enumerate(each.items(), 1):
        log.info("suite: %s, %d of %d", name, number, len(each))
        place = kept_place(folder, name)
        if place and (saved := load_kept(place, name, wanted[name])):
            reports[name] = saved
            continue
        reports[name] = _evaluate(task, engine, spending, **one)
        if place and not dry_run:
            keep(reports[name], place)
    if not dry_run:
        return reports
    return spending.estimate(
        further=any(_asks_more(one.get("agent", "standard")) for one in each.values())
    )


def _plan(
    agents: Sequence[str | Agent], styles: Sequence[Style]
) -> Mapping[str, Mapping[str, Any]]:
    if isinstance(agents, str) or not agents or isinstance(styles, str) or not styles:
        raise InputError(f"agents={agents!r}, styles={styles!r}: give a list of each, 1 at least")
    plan: dict[str, Mapping[str, Any]] = {}
    for style in styles:
        for agent in agents:
            name = named(agent) if len(styles) == 1 else f"{named(agent)}, {style}"
            if " at 0x" in name:
                raise InputError(f"agents: {name} has no name that stays; give it a __name__")
            if name in plan:
                raise InputError(f"agents: two are {name!r}; give each a name of its own")
            plan[name] = {"agent": agent, "style": style}
    return plan
