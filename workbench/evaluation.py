"""How accurate is a model on a task, alone or as part of an agent: a verdict for each item.

A suite is several such reports on the same items, kept as it goes; `comparison` compares them.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import values
from workbench.agents import (
    Agent,
    AgentCase,
    AgentOutcome,
    Ask,
    advance,
    named,
    open_agent,
    standard,
)
from workbench.agents.scheduler import CallRecord
from workbench.answers import given_up
from workbench.engines.style import chosen_style
from workbench.errors import InputError
from workbench.files import file_error
from workbench.metric import FORMS
from workbench.progress import fact, interruptible
from workbench.runs import commit
from workbench.stats import mean_share
from workbench.store import digest
from workbench.tasks import open_task
from workbench.types import (
    Completion,
    Engine,
    Grade,
    Item,
    Metric,
    Report,
    Sampling,
    Style,
    Task,
    Usage,
)

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("workbench")

LONGEST_NAME = 60
"""Letters of a folder's name."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
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


@interruptible("evaluate")
def evaluate(  # noqa: PLR0917  # the first six are a contract
    task: Task | str,
    engine: Engine,
    agent: str | Agent = "standard",
    count: int | None = None,
    num_runs: int = 1,
    seed: int = 0,
    *,
    shots: int = 0,
    style: Style = "auto",
    sampling: Sampling | None = None,
) -> Evaluation:
    """Have an agent answer every item, all of them together, and grade the answers.

    Interrupted and called again, it resumes: what was answered is in the engine's store.

    Args:
        task: a name (`tasks.TASKS`) or a file of problems, or a task as it is.
        agent: a name (`agents.AGENTS`), or a custom agent.
        count: items, or None for the task's own number; `seed` chooses them.
        num_runs: times that all is done, each with other random numbers: with further seeds where
            `sampling` has one.
        shots: solved examples before each item.
        style: "completion" or "chat"; "auto" is what suits the model (`engines.style`).
        sampling: how to answer; as the task says by default (greedy).

    Returns:
        The accuracy with its 95 % interval (Wilson; over the items' means with several runs), and
        one row an item and run, failures included: what the agent answered, the verdict, `calls`,
        `rounds`, tokens, and the agent's notes.

    Raises:
        InputError: the task has no items, or two of one id; there is no such task or agent; a value
            is out of its range.
    """
    cases, provenance = prepare_cases(task, engine, agent, count, num_runs, seed, shots=shots,
                                      style=style, sampling=sampling)  # fmt: skip
    chosen = open_agent(agent)
    num_runs, seed = provenance["num_runs"], provenance["seed"]
    if num_runs > 1 and chosen is standard and cases[0].sampling.temperature == 0:
        log.warning("evaluate: greedy answers are the same in all %d runs", num_runs)
    before, timed_out = engine.usage, given_up()
    rows: list[dict[str, Any]] = []
    trace: list[dict[str, Any]] = []
    for run in range(num_runs):
        if num_runs > 1:
            fact("run", f"{run + 1} of {num_runs}")
        of_run = [replace(case, sampling=_of_run(case.sampling, run)) for case in cases]
        outcomes = advance(chosen, of_run, engine, seed=_seed("evaluate", seed, run))
        for case, outcome in zip(of_run, outcomes, strict=True):
            rows.append(_report_row(case, outcome, run))
            trace += [{"id": case.item.id, "run": run, **row} for row in _trace_rows(outcome.trace)]
    frame = to_frame(rows)
    usage = engine.usage.since(before)
    provenance["n_timed_out"] = given_up() - timed_out  # comparisons of formulas, which took long
    return Evaluation((accuracy(frame),), frame, usage, provenance, to_frame(trace))


def to_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
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


def prepare_cases(  # noqa: PLR0917  # as `evaluate`
    task: Task | str,
    engine: Engine,
    agent: str | Agent = "standard",
    count: int | None = None,
    num_runs: int = 1,
    seed: int = 0,
    *,
    shots: int = 0,
    style: Style = "auto",
    sampling: Sampling | None = None,
) -> tuple[list[AgentCase], dict[str, Any]]:
    """What `evaluate` with these arguments works on, and its report's provenance."""
    task = open_task(task) if isinstance(task, str) else task
    sampling = sampling or task.sampling
    num_runs = values.whole("num_runs", num_runs, 1)
    seed = values.whole("seed", seed, 0)
    if not isinstance(sampling, Sampling):
        raise InputError(f"sampling={sampling!r:.60} must be a workbench.Sampling")
    items = _items(task, count, seed)
    asked, why = chosen_style(engine, style)
    cases = [AgentCase(task, item, task.prompt(item, shots, asked), sampling) for item in items]
    content = [[case.item.id, case.prompt, case.item.answer] for case in cases]
    return cases, {
        "task": task.name,
        "split": task.split,
        "items": digest(content).hex()[:12],
        "count": len(items),
        "seed": seed,
        "agent": named(agent),
        "num_runs": num_runs,
        "shots": shots,
        "style": asked,
        "style_why": why,
        "sampling": asdict(sampling),
        "engine": asdict(engine.info),
        "commit": commit(),
    }


def _of_run(sampling: Sampling, run: int) -> Sampling:
    """Further runs have seeds of their own."""
    if not run or sampling.seed is None:
        return sampling
    return replace(sampling, seed=_seed("sampling", sampling.seed, run))


def _seed(*parts: object) -> int:
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


def try_to_grade(task: Task, item: Item, text: str) -> tuple[Grade | None, str | None]:
    """The task's verdict, or why there is none."""
    try:
        return task.grade(item, text), None
    except Exception as failure:  # noqa: BLE001 - a user's code, of any kind
        return None, f"the task's grader raised {type(failure).__name__}: {failure}"


def _report_row(case: AgentCase, outcome: AgentOutcome, run: int) -> dict[str, Any]:
    item, answer, error = case.item, outcome.answer, outcome.error
    grade: Grade | None = None
    if answer:
        grade, error = try_to_grade(case.task, item, answer.text)
    answers = [call.result for call in outcome.trace if isinstance(call.result, Completion)]
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
        "rounds": max((call.round for call in outcome.trace), default=0),
        "prompt_tokens": sum(one.prompt_tokens for one in answers),
        "completion_tokens": sum(sample.completion_tokens for sample in samples),
    }


def _trace_rows(trace: Sequence[CallRecord]) -> Iterator[dict[str, Any]]:
    for place, record in enumerate(trace):
        call, result = record.call, record.result
        prompt = call.prompt if isinstance(call.prompt, str) else json.dumps(call.prompt)
        kind = "ask" if isinstance(call, Ask) else "score"
        about = {"round": record.round, "call": place, "kind": kind, "prompt": str(prompt)}
        if not isinstance(result, Completion):
            failed = isinstance(result, Exception)
            text = "" if failed else json.dumps(result)
            error = str(result) if failed else None
            yield {**about, "sample": 0, "text": text, "error": error}
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
    shares = done["correct"].astype(float)
    if "run" in rows and rows["run"].max():
        shares = shares.groupby(done["id"]).mean()
    return mean_share(name, shares, **missing)


def accuracy_by(rows: pd.DataFrame, field: str) -> list[Metric]:
    """The accuracy of each group of rows, in the order of the groups' names."""
    return [accuracy(part, str(name)) for name, part in rows.groupby(field)]


def load(folder: str | Path) -> Report:
    """A report that was saved: its `summary.json` and `rows.parquet`, and an evaluation's trace.

    Raises:
        InputError: one of them is not there, or is not what a report writes.
    """
    import pandas as pd

    place = Path(folder).expanduser()
    try:
        saved = json.loads((place / "summary.json").read_text(encoding="utf-8"))
        rows = pd.read_parquet(place / "rows.parquet")
        numbers = saved["summary"]
        forms = chain(saved.get("forms", ()), repeat("number"))  # older ones have none
        pairs = zip(numbers, forms, strict=False)
        summary = tuple(FORMS.get(form, Metric)(**number) for number, form in pairs)
        report = Report(summary, rows, Usage(**saved["usage"]), saved["provenance"])
        if not (place / "trace.parquet").exists():
            return report
        trace = pd.read_parquet(place / "trace.parquet")
        return Evaluation(summary, rows, report.usage, report.provenance, trace)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file_error(place / 'summary.json', error)}; {place} holds no report: give a folder "
            "that one was saved in"
        ) from error


def run_suite(
    task: Task,
    engine: Engine,
    agents: Sequence[str | Agent],
    styles: Sequence[Style] = ("auto",),
    *,
    folder: str | Path | None = None,
    **settings: Any,
) -> dict[str, Evaluation]:
    """Evaluate each agent in each style, those after the first against which they compare.

    Args:
        agents: names or custom agents, no two with the same name.
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
        target = place / _folder_name(name) if place else None
        if target is not None and target.exists():
            _, wanted = prepare_cases(task, engine, agent, style=style, **settings)
            saved = _load_same(target, wanted)
            if saved.rows["error"].isna().all():
                reports[name] = saved
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


def _folder_name(name: str) -> str:
    """The name as a folder's, which an agent's arguments may be too long for."""
    plain = re.sub(r"[^\w.,=() -]", "_", name)
    if plain == name and len(name) <= LONGEST_NAME:
        return name
    return f"{plain[:LONGEST_NAME]} {digest(name).hex()[:8]}"


def _load_same(target: Path, wanted: Mapping[str, Any]) -> Evaluation:
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
    unlike = {"engine", "commit", "style_why"}
    others = {name: v for name, v in provenance.items() if name not in unlike}
    settings: dict[str, Any] = json.loads(json.dumps(model | others, default=str))
    return settings
