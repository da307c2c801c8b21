"""The `workbench` command: the same functions as in Python, with files in and out."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.convert import app as convert
from workbench.cli.evaluate import compare_reports, evaluate_task
from workbench.cli.icm import icm
from workbench.cli.notebook import app as notebook
from workbench.cli.options import Folder, Json, Model, Options, StorePath, engine_options
from workbench.cli.output import check_new, command_group, say, show, show_report, table
from workbench.cli.report import report_page
from workbench.cli.serve import app as serve
from workbench.cli.slurm import app as slurm
from workbench.cli.sweep import app as sweep
from workbench.cli.uncertainty import app as uncertainty

__all__ = ["app"]

app = command_group("A research workbench for large language models.")
app.command("eval")(evaluate_task)
app.command("compare")(compare_reports)
app.command("icm")(icm)
app.command("report")(report_page)
app.add_typer(notebook, name="notebook")
app.add_typer(convert, name="convert")
app.add_typer(serve, name="serve")
app.add_typer(slurm, name="slurm")
app.add_typer(sweep, name="sweep")
app.add_typer(uncertainty, name="uncertainty")


@app.callback()
def main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log each call.")] = False,
) -> None:
    """Set up logging for all commands."""
    if verbose:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("workbench").setLevel(logging.INFO)


@app.command()
def info(as_json: Json = False) -> None:
    """Versions, devices, and which engines can run here and why not."""
    from workbench.engines import ENGINES, unavailable
    from workbench.machine import describe

    engines = {name: unavailable(name) or "can run here" for name in ENGINES}
    facts = describe() | {"engines": engines}
    lines: list[str] = []
    for group, values in facts.items():
        lines += [group, *(f"  {name:<14} {value}" for name, value in values.items())]
    show(facts, "\n".join(lines), as_json=as_json)


@app.command()
def generate(  # noqa: PLR0917  # a command's arguments are its options
    source: Annotated[Path, typer.Argument(help='JSONL: {"prompt": text} or {"messages": [...]}.')],
    out: Annotated[Path, typer.Argument(help="JSONL: the same rows, completed.")],
    model: Model = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    seed: Annotated[int | None, typer.Option()] = None,
    store: StorePath = "default",
    option: Options = None,
    as_json: Json = False,
) -> None:
    """Complete the prompts of a JSONL file; run it again and it goes on where it stopped."""
    from workbench.batch import generate_file
    from workbench.types import Sampling

    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    kept = None if store == "none" else store
    result = generate_file(source, out, sampling, model=model, store=kept, **engine_options(option))
    text = (
        f"{result.rows} rows in {out}: {result.already_there} were there, {result.failed} failed, "
        f"{result.usage.computed_tokens} tokens computed in {result.usage.seconds:.1f} s"
    )
    show(asdict(result), text, as_json=as_json)
    if result.failed:
        raise typer.Exit(1)


@app.command()
def throughput(  # noqa: PLR0917
    model: Model = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="Random weights in these shapes: llama-1b, llama-8b, llama-70b, a file."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch of the baseline (default 1, 8, 16, 32).")
    ] = None,
    baseline: Annotated[bool, typer.Option(help="Measure transformers too.")] = True,
    requests: Annotated[int, typer.Option(min=1)] = 256,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    output_tokens: Annotated[int, typer.Option(min=1)] = 64,
    shared: Annotated[float, typer.Option(min=0, max=1, help="Share of a common prefix.")] = 0.0,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    option: Options = None,
    out: Folder = None,
    as_json: Json = False,
) -> None:
    """How many times faster is vLLM than transformers? Ctrl-C prints what was measured."""
    from workbench.load import BATCHES, Load, open_both, versus
    from workbench.plots import new_figure, plot_speedups
    from workbench.throughput import Throughput

    load = Load(
        requests=requests, prompt_tokens=prompt_tokens, output_tokens=output_tokens, shared=shared
    )
    check_new(out)
    batches = (batch or BATCHES) if baseline else ()
    with ExitStack() as stack:
        engines = open_both(model, architecture, batches, engine_options(option))
        for engine in filter(None, engines):
            stack.enter_context(engine)
        measured = Throughput(versus(*engines, batches), [load], repeats=repeats)
        stopped = False
        try:
            measured.run()
        except KeyboardInterrupt:
            stopped = True
            if measured.rows.empty:
                say("stopped before anything was measured")
                raise typer.Exit(130) from None
        report = measured.report()
    figure, (ax,) = new_figure()
    faster = [metric for metric in report.summary if " over " in metric.name]
    if faster:
        plot_speedups(ax, faster)
    show_report(report, [], figure, out, as_json=as_json)
    if stopped:
        say("stopped: this is what was measured")
        raise typer.Exit(130)


@app.command("check-server")
def check_server(
    url: Annotated[str, typer.Argument(help="Such as http://127.0.0.1:8000/v1.")],
    model: Annotated[
        str | None, typer.Option(help="A served name (default: the only one).")
    ] = None,
    as_json: Json = False,
) -> None:
    """What works at a server, and what to change where something is missing."""
    from workbench.serving.check import check

    checks = list(check(url, model))
    rows = [[one.what, "yes" if one.works else "NO", one.seen, one.remedy] for one in checks]
    text = table(["", "works", "seen", "to change"], rows)
    show([asdict(one) for one in checks], text, as_json=as_json)
