"""`workbench uncertainty`: ask models multiple-choice questions, and score their confidence."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from workbench import values
from workbench.cli import flags
from workbench.cli.output import check_new, command_group, save, say, show_report, table
from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.tasks import MultipleChoice
    from workbench.types import Report

app = command_group("How confident is a model, and is its confidence reliable?")
Alpha = Annotated[float, Option(help="Accepted share of sets without the right answer.")]
RuleName = Annotated[
    Literal["ye2024", "exact"], Option(help="As published, or exact split conformal.")
]


@app.command("run")
def run(
    task: Annotated[
        list[str] | None, Option(help="options, mmlu, cosmosqa, … or a file; can be repeated.")
    ] = None,
    model: Annotated[
        list[str] | None, Option(help="Can be repeated (default: the embedded model).")
    ] = None,
    prompt: Annotated[list[str] | None, Option(help="base, shared, task; can be repeated.")] = None,
    engine: flags.EngineName = "auto",
    api_base: Annotated[str | None, Option(help="A server's URL, …/v1.")] = None,
    max_workers: Annotated[
        int | None, Option(min=1, help="Concurrency limit for a server.")
    ] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Prompts per batch.")] = None,
    sample_size: Annotated[int | None, Option(min=1, help="Items per task.")] = None,
    demonstrations: Annotated[int, Option(min=0, help="Worked examples shown.")] = 0,
    kind: Annotated[
        Literal["qa", "rc", "ci", "drs", "ds"],
        Option(help="Kind of a file's task; all but qa have a context."),
    ] = "qa",
    chat: flags.Chat = False,
    use_threads: Annotated[bool, Option(help="Send requests from threads.")] = False,
    seed: flags.Seed = 0,
    alpha: Alpha = 0.1,
    rule: RuleName = "ye2024",
    store: flags.StorePath = "default",
    option: flags.Options = None,
    out: Annotated[Path | None, Option(help="A new folder for the answers.")] = None,
    as_json: flags.Json = False,
) -> None:
    """Ask for the probabilities of six options and score them. Run it again to resume."""
    from workbench.tasks import open_choices
    from workbench.uncertainty.conformal import check_settings
    from workbench.uncertainty.tables import score_options

    check_new(out)
    check_settings(alpha, "both", rule)
    for one in prompt or ():
        values.known("prompt", one, ("base", "shared", "task"))
    tasks = [
        open_choices(name, kind=kind if Path(name).suffix else "qa", demonstrations=demonstrations)
        for name in task or ["options"]
    ]
    shown = all(one.demonstrations for one in tasks)
    settings: dict[str, Any] = {
        "prompts": prompt or (["base", "shared", "task"] if shown else ["base"]),
        "count": sample_size, "seed": seed, "chat": chat or None,
    }  # fmt: skip
    served = api_base is not None or engine == "remote"
    arguments: dict[str, Any] = {
        "engine": "remote" if served else engine, "base_url": api_base, "store": store,
        **flags.engine_options(option),
        **_options(max_workers, batch_size, use_threads, served=served),
    }  # fmt: skip
    report = _elicited(tasks, model or [None], arguments, settings, together=served)
    if out is not None:  # before scoring, which fails with too few answers
        save(report, out)
        say(f"the answers are in {out}; score them again: workbench uncertainty score {out}")
    _show(score_options(report, alpha=alpha, rule=rule), None, as_json=as_json)


@app.command("score")
def score(
    folders: Annotated[list[Path], Argument(help="Folders saved by `run --out`.")],
    alpha: Alpha = 0.1,
    rule: RuleName = "ye2024",
    out: flags.Folder = None,
    as_json: flags.Json = False,
) -> None:
    """Score saved answers without a model; several folders give one table."""
    from workbench.evaluation import load
    from workbench.uncertainty.tables import join_tables, score_options

    check_new(out)
    table = join_tables([load(folder) for folder in folders])
    _show(score_options(table, alpha=alpha, rule=rule), out, as_json=as_json)


def _options(
    workers: int | None, batch: int | None, threads: bool, *, served: bool
) -> dict[str, Any]:
    """The flags as options of the engine."""
    if not served:
        if workers is not None or threads:
            raise InputError(
                "--max-workers and --use-threads are for a server: give --api-base, or --engine "
                "remote with WORKBENCH_BASE_URL set"
            )
        return {} if batch is None else {"max_num_seqs": batch}
    transport = "threads" if threads else None
    given = {"max_concurrency": workers, "prompts_per_request": batch, "transport": transport}
    return {name: value for name, value in given.items() if value is not None}


def _elicited(
    tasks: list[MultipleChoice], models: list[Any], arguments: dict[str, Any],
    settings: dict[str, Any],
    *, together: bool,
) -> Report:  # fmt: skip
    """Run models on servers at the same time, others one by one, as each fills the machine."""
    from workbench.engines import open_engine
    from workbench.uncertainty.elicitation import elicit, join_reports

    reports = []
    for group in [models] if together else [[model] for model in models]:
        with ExitStack() as stack:
            engines = [stack.enter_context(open_engine(model, **arguments)) for model in group]
            reports.append(elicit(tasks, engines, **settings))
    return join_reports(reports)


def _show(scored: Report, out: Path | None, *, as_json: bool) -> None:
    from workbench.plots.uncertainty import plot_certainty
    from workbench.uncertainty.tables import certainty, paper_table

    if not as_json and len(scored.rows[["model", "task"]].drop_duplicates()) > 1:
        for measure in ("accuracy", "set size", "coverage", "UAcc"):
            wide = paper_table(scored, measure)
            typer.echo(f"{measure}\n{table(['', *wide.columns], [*wide.itertuples()])}\n")
    show_report(scored, lambda ax: plot_certainty(ax, certainty(scored)), out, as_json=as_json)
