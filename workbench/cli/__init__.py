"""The `workbench` command: the functions of the Python package, with files as input and output."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from workbench import __version__
from workbench.cli import flags
from workbench.cli.evaluate import compare_reports, evaluate_task
from workbench.cli.export import export_reports
from workbench.cli.harness import lm_eval
from workbench.cli.icm import icm
from workbench.cli.new import new
from workbench.cli.notebook import app as notebook
from workbench.cli.output import (
    check_new,
    clean_exit,
    command_group,
    fail,
    show,
    show_report,
    table,
)  # fmt: skip
from workbench.cli.reproduce import reproduce
from workbench.cli.servers import check_server, serve
from workbench.cli.slurm import slurm
from workbench.cli.store import app as store
from workbench.cli.sweep import app as sweep
from workbench.cli.uncertainty import app as uncertainty

__all__ = ["app"]

ASK, MEASURE = "Ask a model", "Measure"
OWN, SERVERS, HERE = "Notebooks and sweeps", "Servers", "Models and this machine"

app = command_group("A research workbench for large language models.")
convert = command_group("Make a model folder from a training checkpoint or a GGUF file.")


@app.command(rich_help_panel=ASK)
def generate(
    source: Annotated[
        Path, Argument(help="Rows with prompt or messages: .jsonl, .csv, .parquet, …")
    ],
    out: Annotated[Path, Argument(help="JSONL: the same rows with their answers.")],
    prompt: Annotated[
        str | None, Option(help='A template with columns in braces: "Translate: {text}".')
    ] = None,
    model: flags.Model = None,
    engine: flags.EngineName = "auto",
    base_url: flags.BaseUrl = None,
    chat: flags.Chat = None,
    max_tokens: Annotated[int, Option(min=1, help="Maximum tokens of an answer.")] = 256,
    temperature: Annotated[float, Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, Option(max=1, help="Nucleus sampling; 1 is off.")] = 1.0,
    n: Annotated[int, Option("-n", min=1, help="Answers per prompt.")] = 1,
    stop: Annotated[
        list[str] | None, Option(help="A text that ends an answer; can be repeated.")
    ] = None,
    seed: Annotated[int | None, Option(help="Makes samples reproducible.")] = None,
    store: flags.StorePath = "default",
    option: flags.Options = None,
    as_json: flags.Json = False,
) -> None:
    """Complete the prompts in a file; run it again to resume."""
    from workbench.batch import generate_file
    from workbench.types import Sampling

    prompt = prompt and flags.typed(prompt)
    ends = tuple(map(flags.typed, stop or ()))
    sampling = Sampling(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, n=n, stop=ends, seed=seed
    )
    result = generate_file(
        source, out, sampling, prompt=prompt, style=flags.style(chat), model=model, store=store,
        **flags.server(engine, base_url), **flags.engine_options(option),
    )  # fmt: skip
    text = (
        f"{result.rows} rows in {out}: {result.already_there} were there, {result.failed} failed, "
        f"{result.usage.computed_tokens} tokens computed in {result.usage.seconds:.1f} s"
    )
    if result.style and not result.style.endswith(": asked for"):
        text += f"; asked by {result.style}"
    show(asdict(result), text, as_json=as_json)
    if result.failed:
        raise typer.Exit(1)


app.command("eval", rich_help_panel=MEASURE)(evaluate_task)
app.command("compare", rich_help_panel=MEASURE)(compare_reports)
app.command("reproduce", rich_help_panel=MEASURE)(reproduce)
app.command(
    "lm-eval", rich_help_panel=MEASURE, add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(lm_eval)  # fmt: skip
app.command("export", rich_help_panel=MEASURE)(export_reports)
app.command("icm", rich_help_panel=MEASURE)(icm)
app.add_typer(uncertainty, name="uncertainty", rich_help_panel=MEASURE)
app.command("new", rich_help_panel=OWN)(new)
app.add_typer(notebook, name="notebook", rich_help_panel=OWN)
app.add_typer(notebook, name="notebooks", hidden=True)
app.add_typer(sweep, name="sweep", rich_help_panel=OWN)
app.add_typer(serve, name="serve", rich_help_panel=SERVERS)
app.command("check-server", rich_help_panel=SERVERS)(check_server)
app.add_typer(slurm, name="slurm", rich_help_panel=SERVERS)
app.add_typer(convert, name="convert", rich_help_panel=HERE)
app.add_typer(store, name="store", rich_help_panel=HERE)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"workbench {__version__}")
        raise typer.Exit


@app.callback()
def main(
    verbose: Annotated[bool, Option("--verbose", "-v", help="Log each call.")] = False,
    version: Annotated[  # noqa: ARG001  # its callback has printed it
        bool, Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """A research workbench for large language models."""
    if verbose:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("workbench").setLevel(logging.INFO)


@app.command(rich_help_panel=HERE)
def info(as_json: flags.Json = False) -> None:
    """Show versions, devices, which engines can run here, and why others cannot."""
    from workbench.engines import ENGINES, unavailable
    from workbench.machine import describe

    engines = {name: unavailable(name) or "can run here" for name in ENGINES}
    facts = describe() | {"engines": engines}
    rows = [(name, *pair) for name, values in facts.items() for pair in values.items()]
    show(facts, table(["", "name", "value"], rows), as_json=as_json)


@app.command(rich_help_panel=MEASURE)
def report(
    run: Annotated[
        Path,
        Argument(
            help="A folder of a sweep, a saved report or executed notebooks; or one notebook."
        ),
    ],
    out: Annotated[
        Path | None, Option(metavar="FILE.html", help="The page (default: in the folder).")
    ] = None,
) -> None:
    """Write an HTML page with the numbers, the figures, the failures and the provenance."""
    from workbench.report import render

    typer.echo(render(run, out))


@app.command(rich_help_panel=MEASURE)
def throughput(
    model: flags.Model = None,
    architecture: Annotated[
        str | None,
        Option(help="Random weights in these shapes: llama-1b, llama-8b, llama-70b, a file."),
    ] = None,
    batch: Annotated[
        list[int] | None, Option(min=1, help="Batch size of the baseline (default 1, 8, 16, 32).")
    ] = None,
    baseline: Annotated[bool, Option(help="Measure transformers too.")] = True,
    requests: Annotated[int, Option(min=1)] = 256,
    prompt_tokens: Annotated[int, Option(min=1)] = 128,
    output_tokens: Annotated[int, Option(min=1)] = 64,
    shared: Annotated[float, Option(min=0, max=1, help="Share of a common prefix.")] = 0.0,
    repeats: Annotated[int, Option(min=1)] = 3,
    option: flags.Options = None,
    out: flags.Folder = None,
    as_json: flags.Json = False,
) -> None:
    """How many times faster is vLLM than transformers? Ctrl-C prints what was measured."""
    from workbench.load import BATCHES, Load, open_both, versus
    from workbench.plots import plot_speedups
    from workbench.throughput import Throughput

    load = Load(
        requests=requests, prompt_tokens=prompt_tokens, output_tokens=output_tokens, shared=shared
    )
    check_new(out)
    batches = (batch or BATCHES) if baseline else ()
    engines = open_both(model, architecture, batches, flags.engine_options(option))
    stopped = False
    with ExitStack() as stack:
        for engine in filter(None, engines):
            stack.enter_context(engine)
        measured = Throughput(versus(*engines, batches), [load], repeats=repeats)
        try:
            measured.run()
        except KeyboardInterrupt:
            stopped = True
            if measured.rows.empty:
                fail("stopped before anything was measured", 130)
        result = measured.report()
    faster = [metric for metric in result.summary if " over " in metric.name]
    draw = partial(plot_speedups, metrics=faster) if faster else None
    show_report(result, draw, out, as_json=as_json)
    if stopped:
        fail("stopped: the results so far are above", 130)


@convert.command()
def dcp(
    path: Annotated[Path, Argument(help="The folder with .metadata and the shards.")],
    base_model: Annotated[
        str, Option(help="Hub name or folder with its configuration and tokenizer.")
    ],
    out: Annotated[Path, Option(help="A new folder.")],
    prefix: Annotated[
        str | None, Option(help="Prefix of the names, if the checkpoint holds several models.")
    ] = None,
) -> None:
    """Convert a torch.distributed.checkpoint folder to Hugging Face safetensors."""
    from workbench.engines.checkpoints.convert import convert_dcp

    with clean_exit():
        result = convert_dcp(path, base_model, out, prefix=prefix)
    typer.echo(f"{result.folder}: {result.tensors} tensors, {result.size / 1e6:,.1f} MB")
    if result.left_out:
        first = ", ".join(result.left_out[:3]) + ", …" * (len(result.left_out) > 3)
        typer.echo(f"left out: {len(result.left_out)} other tensors ({first})")


@convert.command()
def gguf(
    file: Annotated[Path, Argument(help="The .gguf file.")],
    out: Annotated[Path, Option(help="A new folder.")],
    tokenizer: Annotated[
        str | None, Option(help="Hub name or folder of a tokenizer, instead of the file's.")
    ] = None,
) -> None:
    """Convert a GGUF file to Hugging Face safetensors in bfloat16, and test the result."""
    from workbench.engines.checkpoints.gguf import convert_gguf

    with clean_exit():
        result = convert_gguf(file, out, tokenizer=tokenizer)
    typer.echo(f"{result.folder}: {result.tensors} tensors, {result.size / 1e6:,.1f} MB")
    typer.echo(f"the same first tokens in: {result.checked}")
