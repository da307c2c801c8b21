"""`workbench eval` and `workbench compare`: accuracies, alone and side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import count as numbers
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option

from workbench import values
from workbench.cli import flags
from workbench.cli.output import check_new, say, show, show_frame, show_report
from workbench.errors import InputError
from workbench.types import Report, Task


def evaluate_task(
    task: flags.TaskName,
    model: flags.Model = None,
    engine: flags.EngineName = "auto",
    agent: flags.AgentName = "standard",
    count: Annotated[int | None, Option(min=1, help="Items (default: the task's).")] = None,
    num_runs: Annotated[int, Option(min=1, help="Repetitions of the whole evaluation.")] = 1,
    shots: Annotated[int, Option(min=0, help="Solved examples before each item.")] = 0,
    prompt: Annotated[
        str | None, Option(help='A wording: "{question}\\nThink step by step."')
    ] = None,
    temperature: Annotated[float | None, Option(min=0, help="Default: the task's.")] = None,
    max_tokens: Annotated[int | None, Option(min=1, help="Default: the task's.")] = None,
    chat: Annotated[
        bool | None, Option(help="Use the model's chat template (default: what suits the model).")
    ] = None,
    seed: flags.Seed = 0,
    batch_size: Annotated[str | None, Option(metavar="N|auto", help="Prompts at once.")] = None,
    column: Annotated[
        list[str] | None,
        Option(metavar="NAME=VALUE", help="Of a file: question, answer, style, labels, …"),
    ] = None,
    store: flags.StorePath = "default",
    option: flags.Options = None,
    cluster: Annotated[
        str | None, Option(metavar="FIELD", help="Items with the same value of it are alike.")
    ] = None,
    name: Annotated[
        str | None, Option(help="Save the reports in runs/eval/NAME, and resume from them.")
    ] = None,
    estimate: Annotated[
        bool, Option("--estimate", help="Print the number of requests and the cost; send none.")
    ] = False,
    price_in: Annotated[float | None, Option(min=0, help="Per million prompt tokens.")] = None,
    price_out: Annotated[float | None, Option(min=0, help="Per million output tokens.")] = None,
    max_cost: Annotated[
        float | None, Option(min=0, help="Send nothing that could cost more; needs both prices.")
    ] = None,
    out: flags.Folder = None,
    as_json: flags.Json = False,
) -> None:
    """How accurate is a model on a task, and what does an agent add? Run it again to resume."""
    from workbench.agents import AGENTS
    from workbench.cases import prepare_cases
    from workbench.engines import open_engine
    from workbench.engines.estimate import Prices
    from workbench.engines.spending import checked_limit
    from workbench.engines.style import possible_styles
    from workbench.evaluation import run_suite
    from workbench.runs import run_dir
    from workbench.tasks import open_task

    check_new(out)
    columns = _columns(column)
    agents = [*AGENTS] if agent == "all" else [agent]
    values.known("agent", agent, [*AGENTS, "all"])
    checked_limit(Prices.of(price_in, price_out, model or ""), max_cost)
    chosen = open_task(task, **columns)
    styles = [flags.style(chat)]
    changed = {"temperature": temperature, "max_tokens": max_tokens}
    settings: dict[str, Any] = {"count": count, "num_runs": num_runs, "seed": seed, "shots": shots}
    settings |= {name: value for name, value in changed.items() if value is not None}
    settings |= {"prompt": prompt and flags.typed(prompt), "cluster": cluster}
    prepare_cases(chosen, None, **settings)  # checks them before an engine is opened
    settings["folder"] = folder = run_dir() / "eval" / name if name else None
    settings |= {"price_in": price_in, "price_out": price_out, "max_cost": max_cost}
    arguments = flags.engine_options(option) | _batch(batch_size, engine)
    with open_engine(model, engine, store=store, **arguments) as opened:
        if agent == "all" and chat is None:
            styles = [*possible_styles(opened)]
        if estimate:
            asked = run_suite(chosen, opened, agents, styles, dry_run=True, **settings)
            show({**asdict(asked), "cost": asked.cost}, str(asked), as_json=as_json)
            return
        reports = run_suite(chosen, opened, agents, styles, **settings)
    if len(reports) == 1:
        _show_one(chosen, next(iter(reports.values())), out, as_json=as_json)
    else:
        _show_all(reports, out, as_json=as_json)
    if folder:
        say(f"the reports are in {folder}; compare some with the first: workbench compare FOLDER …")
    _end(reports)


def _columns(texts: list[str] | None) -> dict[str, Any]:
    columns: dict[str, Any] = dict(flags.pairs(texts, "--column"))
    if "labels" in columns:
        columns["labels"] = columns["labels"].split(",")
    return columns


def _end(reports: Mapping[str, Report]) -> None:
    """Exit with an error if a row failed."""
    if reasons := [reason for one in reports.values() for reason in one.rows["error"].dropna()]:
        say(f"{len(reasons)} rows failed. The first: {reasons[0]}")
        raise Exit(1)


def _batch(size: str | None, engine: str) -> dict[str, Any]:
    """The engine's own option for the number of prompts at once."""
    if size is None or size == "auto":  # the default of every engine
        return {}
    if not size.isdecimal() or int(size) < 1:
        raise InputError(f"--batch-size {size!r}: give a whole number from 1, or auto")
    names = {"remote": "max_concurrency", "transformers": "batch_size", "diffusion": "batch_size"}
    return {names.get(engine, "max_num_seqs"): int(size)}


def _show_one(task: Task, report: Report, out: Path | None, *, as_json: bool) -> None:
    from workbench.evaluation import accuracy_by
    from workbench.plots import plot_accuracy

    by = report.provenance.get("cluster")
    groups = accuracy_by(report.rows, task.difficulty, cluster=by) if task.difficulty else []
    named = [replace(one, name=f"{task.difficulty} {one.name}") for one in groups]
    draw = partial(plot_accuracy, metrics=[*report.summary, *named])
    show_report(report, draw, out, as_json=as_json, more=named)


def compare_reports(
    folders: Annotated[list[Path], Argument(help="Saved reports; the first is the baseline.")],
    cluster: Annotated[
        str | None, Option(metavar="FIELD", help="Items with the same value of it are alike.")
    ] = None,
    out: flags.Folder = None,
    as_json: flags.Json = False,
) -> None:
    """Compare saved evaluations with the first, on the items that both answered."""
    check_new(out)
    _show_all(load_reports(folders), out, as_json=as_json, cluster=cluster)


def load_reports(folders: list[Path]) -> dict[str, Report]:
    """Saved reports by the shortest ends of their paths that are unique.

    Raises:
        InputError: a folder has no report, or is given twice.
    """
    from workbench.evaluation import load

    if len({*map(Path.resolve, folders)}) < len(folders):
        raise InputError("a folder is given twice: give each report once")
    return {_name(folder, folders): load(folder) for folder in folders}


def _show_all(
    reports: Mapping[str, Report], out: Path | None, *, as_json: bool, cluster: str | None = None
) -> None:
    from workbench.comparison import comparison
    from workbench.files import whole_folder
    from workbench.plots import draw_comparison
    from workbench.plots.theme import PICTURE

    frame = comparison(reports, cluster=cluster)
    show_frame(frame, as_json=as_json)
    if out is None:
        return
    with whole_folder(out) as part:
        frame.to_csv(part / "comparison.csv", index=False)
        draw_comparison(frame).savefig(part / "figure.png", **PICTURE)
    say(f"table and figure are in {out}")


def _name(folder: Path, folders: list[Path]) -> str:
    """The shortest end of the folder's path that is unique."""
    parts = folder.resolve().parts
    ends = [one.resolve().parts for one in folders]
    length = next(n for n in numbers(1) if sum(end[-n:] == parts[-n:] for end in ends) == 1)
    return "/".join(parts[-length:])
