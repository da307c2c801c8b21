"""How accurate is a model on a task, alone or as part of an agent: a verdict for each item.

Two such reports on the same items make a paired comparison (`comparison`).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench.agents import Agent, Case, Outcome, advance, named, open_agent, standard
from workbench.agents.program import Ask
from workbench.agents.rounds import Made
from workbench.answers import given_up
from workbench.errors import InputError
from workbench.progress import fact
from workbench.runs import commit
from workbench.stats import mean, proportion
from workbench.store import digest
from workbench.tasks import open_task
from workbench.types import Completion, Engine, Item, Metric, Report, Sampling, Task

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("workbench")


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation(Report):
    """A `Report` with one row an item and run, and with all that was asked.

    A field of an item or a note of an agent stands in the rows unless its name is taken there.

    Attributes:
        trace: one row for each answer to each call: id, run, round, call (its place in the round),
            kind ("ask" or "score"), prompt (a chat as JSON), sample, text (log-probabilities as
            JSON), finish_reason, error, prompt_tokens, completion_tokens, from_store.
    """

    trace: pd.DataFrame

    def _write(self, folder: Path) -> None:
        super(Evaluation, self)._write(folder)
        self.trace.to_parquet(folder / "trace.parquet", index=False)


def evaluate(  # noqa: PLR0917  # the first six are a contract
    task: Task | str,
    engine: Engine,
    agent: str | Agent = "standard",
    count: int | None = None,
    num_runs: int = 1,
    seed: int = 0,
    *,
    shots: int = 0,
    style: Literal["completion", "chat"] = "completion",
    sampling: Sampling | None = None,
) -> Evaluation:
    """Have an agent answer every item, all of them together, and grade the answers.

    Interrupted and called again, it goes on: what was answered is in the engine's store.

    Args:
        task: a name (`tasks.TASKS`) or a file of problems, or a task as it is.
        agent: a name (`agents.AGENTS`), or an agent of one's own.
        count: items, or None for the task's own number; `seed` chooses them.
        num_runs: times that all is done, each with other random numbers: with further seeds where
            `sampling` has one.
        shots: solved examples before each item.
        sampling: how to answer; as the task says by default (greedy).

    Returns:
        The accuracy with its 95 % interval (Wilson; over the items' means with several runs), and
        one row an item and run, failures included: what the agent answered, the verdict, `calls`,
        `rounds`, tokens, and the agent's notes.

    Raises:
        InputError: the task has no items, or two of one id; there is no such task or agent; a value
            is out of its range.
    """
    cases, provenance = asked(task, engine, agent, count, num_runs, seed, shots=shots, style=style,
                              sampling=sampling)  # fmt: skip
    chosen = open_agent(agent)
    if num_runs > 1 and chosen is standard and cases[0].sampling.temperature == 0:
        log.warning("evaluate: greedy answers are the same in all %d runs", num_runs)
    before, timed_out = engine.usage, given_up()
    rows: list[dict[str, Any]] = []
    trace: list[dict[str, Any]] = []
    for run in range(num_runs):
        if num_runs > 1:
            fact("run", f"{run + 1} of {num_runs}")
        drawn = _drawn("evaluate", seed, run)
        mine = [replace(case, sampling=_again(case.sampling, run)) for case in cases]
        for case, outcome in zip(mine, advance(chosen, mine, engine, seed=drawn), strict=True):
            rows.append(_row(case, outcome, run))
            trace += [{"id": case.item.id, "run": run, **fact} for fact in _traced(outcome.trace)]
    frame = tabled(rows)
    usage = engine.usage.since(before)
    provenance["n_timed_out"] = given_up() - timed_out  # comparisons of formulas, which took long
    return Evaluation((accuracy(frame),), frame, usage, provenance, tabled(trace))


def tabled(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a frame that every file takes: valid Unicode, numbers or texts in a column."""
    import pandas as pd

    frame = pd.DataFrame([{name: _valid(v) for name, v in row.items()} for row in rows])
    for name in frame.columns[[kind.kind == "O" for kind in frame.dtypes]]:
        texts = frame[name].map(lambda value: isinstance(value, str))
        if texts.any() and not (texts | frame[name].isna()).all():
            frame[name] = frame[name].map(str, na_action="ignore")
    return frame


def _valid(value: Any) -> Any:
    """Half a character, which a server may send, cannot be written."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def asked(  # noqa: PLR0917  # as `evaluate`
    task: Task | str,
    engine: Engine,
    agent: str | Agent = "standard",
    count: int | None = None,
    num_runs: int = 1,
    seed: int = 0,
    *,
    shots: int = 0,
    style: Literal["completion", "chat"] = "completion",
    sampling: Sampling | None = None,
) -> tuple[list[Case], dict[str, Any]]:
    """What `evaluate` with these arguments works on, and its report's provenance."""
    task = open_task(task) if isinstance(task, str) else task
    sampling = sampling or task.sampling
    if not isinstance(num_runs, int) or isinstance(num_runs, bool) or num_runs < 1:
        raise InputError(f"num_runs={num_runs!r}: must be a whole number from 1")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r}: must be a whole number from 0")
    if not isinstance(sampling, Sampling):
        raise InputError(f"sampling={sampling!r:.60} must be a workbench.Sampling")
    items = _items(task, count, seed)
    cases = [Case(task, item, task.prompt(item, shots, style), sampling) for item in items]
    told = [[case.item.id, case.prompt, case.item.answer] for case in cases]
    return cases, {
        "task": task.name,
        "split": task.split,
        "items": digest(told).hex()[:12],
        "count": len(items),
        "seed": seed,
        "agent": named(agent),
        "num_runs": num_runs,
        "shots": shots,
        "style": style,
        "sampling": asdict(sampling),
        "engine": asdict(engine.info),
        "commit": commit(),
    }


def _again(sampling: Sampling, run: int) -> Sampling:
    """Further runs have seeds of their own."""
    if not run or sampling.seed is None:
        return sampling
    return replace(sampling, seed=_drawn("sampling", sampling.seed, run))


def _drawn(*parts: object) -> int:
    return int.from_bytes(digest(*parts)[:4], "big")


def _items(task: Task, count: int | None, seed: int) -> list[Item]:
    items = task.items(count, seed)
    if not items:
        raise InputError(
            f"task {task.name} has no items for count={count}, seed={seed}: ask for others"
        )
    key, times = Counter(item.id for item in items).most_common(1)[0]
    if times > 1:
        raise InputError(f"task {task.name} has {times} items {key!r}: give each an id of its own")
    return items


def _row(case: Case, outcome: Outcome, run: int) -> dict[str, Any]:
    item, answer, error = case.item, outcome.answer, outcome.error
    try:
        grade = case.task.grade(item, answer.text) if answer else None
    except Exception as failure:  # noqa: BLE001 - a user's code, of any kind
        grade, error = None, f"the task's grader raised {type(failure).__name__}: {failure}"
    answers = [made.result for made in outcome.trace if isinstance(made.result, Completion)]
    samples = [sample for one in answers for sample in one.samples]
    about = {**item.fields, **(answer.notes if answer else {})}
    return {
        "id": item.id,
        "run": run,
        **{name: value for name, value in about.items() if name not in {"id", "run"}},
        "answer": item.answer,
        "text": answer.text if answer else "",
        "extracted": grade and grade.extracted,
        "correct": bool(grade and grade.correct),
        "parsed": bool(grade and grade.parsed),
        "error": error,
        "from_store": bool(samples) and all(sample.from_store for sample in samples),
        "calls": len(outcome.trace),
        "rounds": max((made.round for made in outcome.trace), default=0),
        "prompt_tokens": sum(one.prompt_tokens for one in answers),
        "completion_tokens": sum(sample.completion_tokens for sample in samples),
    }


def _traced(trace: Sequence[Made]) -> Iterator[dict[str, Any]]:
    for place, made in enumerate(trace):
        call, result = made.call, made.result
        prompt = call.prompt if isinstance(call.prompt, str) else json.dumps(call.prompt)
        kind = "ask" if isinstance(call, Ask) else "score"
        about = {"round": made.round, "call": place, "kind": kind, "prompt": str(prompt)}
        if not isinstance(result, Completion):
            failed = isinstance(result, Exception)
            said = {"text": "" if failed else json.dumps(result)}
            yield {**about, "sample": 0, **said, "error": str(result) if failed else None}
            continue
        for number, sample in enumerate(result.samples):
            yield {
                **about,
                "sample": number,
                "text": sample.text,
                "finish_reason": sample.finish_reason,
                "error": sample.error,
                "prompt_tokens": sample.prompt_tokens,
                "completion_tokens": sample.completion_tokens,
                "from_store": sample.from_store,
            }


def accuracy(rows: pd.DataFrame, name: str = "accuracy") -> Metric:
    """Share of right answers among the rows that did not fail; unparsed ones are wrong.

    Several runs of an item are not several items: then it is the mean of the items' shares, with
    the interval of that mean; `n` counts items, `n_failed` and `n_unparsed` rows.
    """
    done = rows[rows["error"].isna()]
    missing = {"n_failed": len(rows) - len(done), "n_unparsed": int((~done["parsed"]).sum())}
    if done.empty:  # nothing is known, which is not the same as nothing right
        return Metric(name, float("nan"), 0.0, 1.0, 0, **missing)
    if "run" not in rows or not rows["run"].max():
        return proportion(name, int(done["correct"].sum()), len(done), **missing)
    shares = done.astype({"correct": float}).groupby("id")["correct"].mean()
    if shares.isin([0.0, 1.0]).all():
        return proportion(name, int(shares.sum()), len(shares), **missing)
    found = mean(name, shares, 0.0, 1.0)
    return Metric(name, found.value, found.low, found.high, found.n, **missing)


def accuracy_by(rows: pd.DataFrame, field: str) -> list[Metric]:
    """The accuracy of each group of rows, in the order of the groups' names."""
    return [accuracy(part, str(name)) for name, part in rows.groupby(field)]
