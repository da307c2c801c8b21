"""`workbench uncertainty`: ask models for their options, and score what they said."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from workbench.cli.options import EngineName, Folder, Json, Options, StorePath, engine_options
from workbench.cli.output import check_new, command_group, save, say, show_report, table
from workbench.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.tasks.choices import Choices
    from workbench.types import Engine, Report

app = command_group("How sure is a model, and can it be believed?")
Alpha = Annotated[float, typer.Option(help="Share of sets that may lack the right answer.")]
RuleName = Annotated[
    Literal["ye2024", "exact"], typer.Option(help="As published, or split conformal to the letter.")
]


@app.command("run")
def run(  # noqa: PLR0917  # a command's arguments are its options
    task: Annotated[
        list[str] | None,
        typer.Option(help="options, mmlu, cosmosqa, … or a file; may be given again."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="May be given again (default: the embedded model).")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="base, shared, task; may be given again.")
    ] = None,
    engine: EngineName = "auto",
    api_base: Annotated[str | None, typer.Option(help="A server's URL, …/v1.")] = None,
    max_workers: Annotated[
        int | None, typer.Option(min=1, help="Requests in the air, to a server.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts together.")] = None,
    sample_size: Annotated[int | None, typer.Option(min=1, help="Items of each task.")] = None,
    demonstrations: Annotated[int, typer.Option(min=0, help="Worked examples shown.")] = 0,
    kind: Annotated[
        Literal["qa", "rc", "ci", "drs", "ds"],
        typer.Option(help="Of a file; all but qa have a context."),
    ] = "qa",
    chat: Annotated[bool, typer.Option(help="Through the model's chat template.")] = False,
    use_threads: Annotated[bool, typer.Option(help="Ask a server through threads.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the items.")] = 0,
    alpha: Alpha = 0.1,
    rule: RuleName = "ye2024",
    store: StorePath = "default",
    option: Options = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for the answers.")] = None,
    as_json: Json = False,
) -> None:
    """Ask for the probabilities of six options and score them. Run again, it goes on."""
    from workbench.tasks.choices import open_choices
    from workbench.uncertainty.conformal import check_settings
    from workbench.uncertainty.report import score_options

    check_new(out)
    check_settings(alpha, "both", rule)
    tasks = [
        open_choices(name, kind=kind if Path(name).suffix else "qa", demonstrations=demonstrations)
        for name in task or ["options"]
    ]
    shown = all(one.demonstrations for one in tasks)
    asked: dict[str, Any] = {
        "prompts": prompt or (["base", "shared", "task"] if shown else ["base"]),
        "count": sample_size, "seed": seed, "chat": chat,
    }  # fmt: skip
    served = api_base is not None or engine == "remote"
    options = engine_options(option) | _options(max_workers, batch_size, use_threads, served=served)
    opened = "remote" if served else engine
    kept = None if store == "none" else store
    opening = {"engine": opened, "base_url": api_base, "store": kept, **options}
    report = _elicited(tasks, model or [None], opening, asked, together=served)
    if out is not None:  # before they are scored, which few answers may be too few for
        save(report, out)
        say(f"the answers are in {out}; score them again: workbench uncertainty score {out}")
    _show(score_options(report, alpha=alpha, rule=rule), None, as_json=as_json)


@app.command("score")
def score(
    folders: Annotated[list[Path], typer.Argument(help="What `run --out` has saved.")],
    alpha: Alpha = 0.1,
    rule: RuleName = "ye2024",
    out: Folder = None,
    as_json: Json = False,
) -> None:
    """Score saved answers, with no model: several folders make one table."""
    from workbench.comparison import load
    from workbench.uncertainty.report import joined_tables, score_options

    check_new(out)
    table = joined_tables([load(folder) for folder in folders])
    _show(score_options(table, alpha=alpha, rule=rule), out, as_json=as_json)


def _options(
    workers: int | None, batch: int | None, threads: bool, *, served: bool
) -> dict[str, Any]:
    """What the flags are called as options of the engine."""
    if not served:
        if workers is not None or threads:
            raise InputError(
                "--max-workers and --use-threads are for a server: give --api-base, or --engine "
                "remote with WORKBENCH_BASE_URL set"
            )
        return {} if batch is None else {"max_num_seqs": batch}
    given = {
        "max_concurrency": workers,
        "prompts_per_request": batch,
        "transport": "threads" if threads else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _elicited(
    tasks: list[Choices], models: list[Any], opening: dict[str, Any], asked: dict[str, Any],
    *, together: bool,
) -> Report:  # fmt: skip
    """Models of servers at the same time, others in turn, as each fills the machine."""
    from workbench.engines import open_engine
    from workbench.uncertainty.elicit import elicit, joined

    reports = []
    for group in [models] if together else [[model] for model in models]:
        with ExitStack() as stack:
            engines: list[Engine] = [
                stack.enter_context(open_engine(model, **opening)) for model in group
            ]
            reports.append(elicit(tasks, engines, **asked))
    return joined(reports)


def _show(scored: Report, out: Path | None, *, as_json: bool) -> None:
    from workbench.plots import new_figure
    from workbench.plots.uncertainty import plot_certainty
    from workbench.uncertainty.report import certainty, paper_table

    if not as_json and len(scored.rows[["model", "task"]].drop_duplicates()) > 1:
        for measure in ("accuracy", "set size", "coverage", "UAcc"):
            typer.echo(f"{measure}\n{_text(paper_table(scored, measure))}\n")
    figure, (ax,) = new_figure()
    plot_certainty(ax, certainty(scored))
    show_report(scored, [], figure, out, as_json=as_json)


def _text(wide: pd.DataFrame) -> str:

    rows = [[name, *(f"{value:.4g}" for value in row)] for name, *row in wide.itertuples()]
    return table(["", *map(str, wide.columns)], rows)
