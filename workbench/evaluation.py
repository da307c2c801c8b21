"""Accuracy of a model on a task, alone or as part of an agent, with a verdict per item.

A suite is several such reports on the same items, saved as they finish; see `comparison`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, overload

from workbench import verdicts
from workbench.agents import Agent, AgentCase, MajorityVote, advance, named, open_agent, standard
from workbench.answers import given_up
from workbench.cases import as_task, prepare_cases
from workbench.engines.estimate import Estimate, Prices
from workbench.engines.spending import Spending
from workbench.engines.style import check_engine
from workbench.errors import InputError, log
from workbench.progress import fact, interruptible
from workbench.store import digest
from workbench.types import Engine, Sampling, Style
from workbench.verdicts import Evaluation, accuracy, accuracy_by, load

__all__ = ["Evaluation", "accuracy", "accuracy_by", "evaluate", "load", "run_suite"]

MORE = "raise max_tokens, or set max_reasoning_tokens"


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
    cluster: str | None = None,
    dry_run: bool = False,
    price_in: float | None = None,
    price_out: float | None = None,
    max_cost: float | None = None,
    **changes: Any,
) -> Evaluation | Estimate:
    """Run an agent on all items concurrently, and grade the answers.

    After an interrupt, the same call resumes, as the engine's store has the answers so far.

    Args:
        task: a name (`tasks.TASKS`), a file of problems, a DataFrame, a Dataset or a list of dicts
            (see `open_task`), or a task.
        agent: a name (`agents.AGENTS`), or a custom agent.
        count: number of items; None is the task's default. `seed` selects them.
        num_runs: number of runs with different random numbers; if `sampling` has a seed, each run
            has a different one.
        shots: solved examples before each item.
        style: "completion" or "chat"; "auto" chooses by the model (`engines.style`).
        sampling: how to answer; by default the task's (greedy).
        prompt: a template for the question, in items and worked examples, such as
            "{question}\\nThink step by step.". {question} is the task's wording; the other fields
            of an item (the other columns of your rows) are available by name. What the task puts
            around the question stays.
        cluster: a field of the items, such as "passage": items with the same value are alike, and
            the interval accounts for that (`Evaluation.clustered` does it afterwards).
        dry_run: generate nothing and return an `Estimate` of requests, tokens and maximum cost.
        price_in, price_out: prices per million prompt and completion tokens, in any currency; by
            default the model's in your table (WORKBENCH_PRICES). The report has the cost.
        max_cost: in the same currency: no request is sent that could make this call cost more, if
            all requests in flight generate as much as they may. Rows that are not sent fail with
            that reason. The same call with a higher limit resumes from the store, where stored
            answers are free.
        changes: single fields of `Sampling` to change in `sampling`: `temperature`, `max_tokens`, …

    Returns:
        The accuracy with its 95 % interval (Wilson; with several runs, over the items' means), and
        one row per item and run, failures included: the agent's answer, the verdict, `calls`,
        `rounds`, tokens, and the agent's notes. With `dry_run`, an `Estimate`, which is exact for
        requests and the store; for an agent whose calls depend on answers, the minimum.

    Raises:
        InputError: the task has no items, repeated ids, or columns with other names; no such task,
            agent, argument or field of a template; a value is out of its range.
    """
    spending = Spending(engine, _prices(engine, price_in, price_out), max_cost, dry=dry_run)
    settings = {"shots": shots, "style": style, "sampling": sampling, "prompt": prompt}
    settings |= {"cluster": cluster, **changes}
    report = _evaluate(task, engine, spending, agent, count, num_runs, seed, **settings)
    return spending.estimate(further=_asks_more(agent)) if dry_run else report


def _prices(engine: Engine, price_in: float | None, price_out: float | None) -> Prices | None:
    check_engine(engine)
    return Prices.of(price_in, price_out, engine.info.model)


def _asks_more(agent: str | Agent) -> bool:
    """Whether an agent's calls may depend on answers."""
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
            rows.append(verdicts.report_row(case, outcome, run))
            trace += [
                {"id": case.item.id, "run": run, **row}
                for row in verdicts.trace_rows(outcome.trace)
            ]
    frame = verdicts.without_unused(verdicts.to_frame(rows))
    if "cut_thinking" in frame:
        provenance["n_cut_thinking"] = cut = int(frame["cut_thinking"].sum())
        if cut:
            log.warning("evaluate: %d answers ran out of tokens while thinking: %s", cut, MORE)
    provenance["engine"] = asdict(engine.info)  # with its notes on these answers
    provenance["n_timed_out"] = given_up() - timed_out  # comparisons of formulas that took too long
    if spending.prices is not None:
        cost = {"spent": spending.cost - spent, "price_in": spending.prices.price_in}
        cost |= {"price_out": spending.prices.price_out}
        cost |= {} if (most := spending.max_cost) is None else {"max_cost": most}
        provenance["cost"] = cost
    usage = engine.usage.since(before)
    lost = int(frame["error"].astype("string").str.startswith("not sent").sum())
    if lost and spending.limited and not spending.dry:
        log.warning("evaluate: %d of %d rows were not sent: max_cost", lost, len(frame))
    found = accuracy(frame, cluster=provenance["cluster"])
    return Evaluation(
        (found,), frame, usage, provenance, verdicts.without_unused(verdicts.to_frame(trace))
    )


def _of_run(case: AgentCase, run: int) -> AgentCase:
    """The case for a run; further runs have different seeds."""
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
    """Evaluate each agent in each style, for comparison with the first.

    Args:
        agents: names or custom agents, with different names.
        folder: saves each report as soon as it is complete, in a subfolder. A later run reads it
            from there, and repeats only missing or failed reports.
        dry_run: generate nothing and return an `Estimate` for all reports together.
        settings: further arguments of `evaluate`, shared by all; `max_cost` is the limit for all
            of them together.

    Returns:
        Reports by name: the agent's, with the style if there are several.

    Raises:
        InputError: no agents or styles, repeated names, or the folder has reports with other
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
    """`evaluate` for each name of a plan, with that name's arguments; see `run_suite`."""
    spending = Spending(engine, _prices(engine, price_in, price_out), max_cost, dry=dry_run)
    task = as_task(task)
    each = {name: {**settings, **own} for name, own in plan.items()}
    # Refuse the whole plan, or nothing, before anything is sent.
    wanted = {name: prepare_cases(task, engine, **one)[1] for name, one in each.items()}
    reports: dict[str, Evaluation] = {}
    for number, (name, one) in enumerate(each.items(), 1):
        log.info("suite: %s, %d of %d", name, number, len(each))
        place = verdicts.kept_place(folder, name)
        if place and (saved := verdicts.load_kept(place, name, wanted[name])):
            reports[name] = saved.clustered(wanted[name]["cluster"])
            continue
        reports[name] = _evaluate(task, engine, spending, **one)
        if place and not dry_run:
            verdicts.keep(reports[name], place)
    if not dry_run:
        return reports
    return spending.estimate(
        further=any(_asks_more(one.get("agent", "standard")) for one in each.values())
    )


def _plan(
    agents: Sequence[str | Agent], styles: Sequence[Style]
) -> Mapping[str, Mapping[str, Any]]:
    if isinstance(agents, str) or not agents or isinstance(styles, str) or not styles:
        raise InputError(f"agents={agents!r}, styles={styles!r}: pass non-empty lists")
    plan: dict[str, Mapping[str, Any]] = {}
    for style in styles:
        for agent in agents:
            name = named(agent) if len(styles) == 1 else f"{named(agent)}, {style}"
            if " at 0x" in name:
                raise InputError(f"agents: {name} has no stable name; set its __name__")
            if name in plan:
                raise InputError(f"agents: two are {name!r}; make the names unique")
            plan[name] = {"agent": agent, "style": style}
    return plan
