"""`workbench icm`: labels without supervision, beside everything else that one could do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.bench.cli import Json, say
from workbench.cli.shared import (
    EngineName,
    Folder,
    Model,
    Options,
    StorePath,
    check_new,
    engine_options,
    show_report,
)  # fmt: skip
from workbench.nb.cli import told
from workbench.nb.tables import table

if TYPE_CHECKING:
    from workbench.icm.study import ICMStudy
    from workbench.icm.testbeds import Testbed
    from workbench.types import Engine

__all__ = ["icm"]


@told
def icm(  # noqa: PLR0917
    testbed: Annotated[
        str, typer.Option(help="embedded, truthfulqa, gsm8k, or a .jsonl, .json or .csv file.")
    ] = "embedded",
    model: Model = None,
    engine: EngineName = "auto",
    alpha: Annotated[float, typer.Option(help="Weight of predictability.")] = 50.0,
    k: Annotated[int, typer.Option("--k", min=0, help="Iterations, at most.")] = 1500,
    num_seed: Annotated[int, typer.Option(min=1, help="Claims that begin with a label.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Claims drawn, in whole groups.")] = 128,
    test_count: Annotated[int | None, typer.Option(min=0, help="Test claims, at most.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Decides claims and search; several are averaged.")
    ] = None,
    order: Annotated[str, typer.Option(help="tree, exact or reference.")] = "tree",
    schedule: Annotated[str, typer.Option(help="Of the temperature: paper or code.")] = "paper",
    consistency: Annotated[str, typer.Option(help="auto, none or gold_key_replication.")] = "auto",
    method: Annotated[
        list[str] | None, typer.Option(help="Only these methods (default: all).")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="A folder: a search that was stopped goes on from there.")
    ] = None,
    store: StorePath = "default",
    option: Options = None,
    out: Folder = None,
    as_json: Json = False,
) -> None:
    """What does a model already know? Labels that it finds coherent, and what they are worth."""
    from workbench.engines import open_engine
    from workbench.icm.testbeds import open_testbed

    check_new(out)
    seeds = seed or [0]
    # A study draws for each seed: the embedded claims have no end.
    count = batch_size * (len(seeds) + 1) if testbed == "embedded" else None
    bed = open_testbed(testbed, count=count, test_count=test_count, seed=seeds[0])
    settings: dict[str, Any] = {
        "alpha": alpha, "n_iterations": k, "n_seeds": num_seed, "order": order,
        "schedule": schedule, "consistency": consistency,
    }  # fmt: skip
    kept = None if store == "none" else store
    with open_engine(model, engine, store=kept, **engine_options(option)) as opened:
        if bed.test and all(claim.gold is not None for claim in bed.test):
            settings |= {"methods": method} if method else {}
            settings |= {"count": batch_size, "seeds": seeds, "checkpoints": checkpoints}
            _study(bed, opened, settings, out, as_json=as_json)
        else:
            drawn = bed.draw(batch_size, seeds[0])
            path = checkpoints and checkpoints / f"{bed.name}-seed-{seeds[0]}.jsonl"
            settings |= {"seed": seeds[0], "checkpoint": path}
            _search(drawn, opened, settings, out, as_json=as_json)


def _study(
    bed: Testbed, engine: Engine, options: dict[str, Any], out: Path | None, *, as_json: bool
) -> None:
    from workbench.icm.study import study
    from workbench.plots import new_figure
    from workbench.plots.icm import plot_methods

    done = study(bed, engine, **options)
    figure, (ax,) = new_figure()
    figure.set_size_inches(6.4, 3.4)
    plot_methods(ax, done.methods)
    ax.set_title(f"{bed.name}, {engine.info.model}", fontsize=10)
    if as_json:
        typer.echo(done.methods.to_json(orient="records", indent=1))
    else:
        typer.echo(_table(done))
    for note in done.notes:
        say(note)
    if out is not None:
        done.save(out, figure)
        say(f"methods, rows, searches and figure are in {out}")


def _table(done: ICMStudy) -> str:
    rows = [
        [
            row["method"], f"{row['value']:.3f}", f"{row['low']:.3f}–{row['high']:.3f}", row["n"],
            row["n_failed"], _or_dash(row["versus_golden"], "+.3f"),
            _or_dash(row["label_accuracy"], ".3f"), _or_dash(row["labels_opposite"], ".3f"),
            _or_dash(row["labels_true"], ".3f"), f"{row['finding_prompts']:,.0f}",
            f"{row['finding_computed_tokens']:,.0f}", f"{row['finding_seconds']:.1f}",
        ]
        for row in done.methods.to_dict("records")
    ]  # fmt: skip
    heads = [
        "", "test accuracy", "95 %", "n", "failed", "− golden", "label accuracy", "opposite",
        "labels True", "prompts", "tokens computed", "s",
    ]  # fmt: skip
    return table(heads, rows)


def _or_dash(value: float, form: str) -> str:
    return "–" if value != value else format(value, form)  # noqa: PLR0124  # NaN


def _search(
    bed: Testbed, engine: Engine, options: dict[str, Any], out: Path | None, *, as_json: bool
) -> None:
    from workbench.icm.search import search
    from workbench.plots import new_figure
    from workbench.plots.icm import plot_convergence

    report = search(bed.claims, engine, wording=bed.wording, **options)
    figure, (ax,) = new_figure()
    plot_convergence(ax, {bed.name: report.history})
    show_report(report, [], figure, out, as_json=as_json)
    for note in report.notes:
        say(note)
    say("no test claims with gold labels: the labels were found, not what they are worth")
