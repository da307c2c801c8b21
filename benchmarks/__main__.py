"""`python -m benchmarks NAME`: measurements as tables, with the bounds that they must keep."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.table import Row, as_text
from workbench.cli.options import Json
from workbench.cli.output import command_group, say

Out = Annotated[Path | None, typer.Option(help="Write the table here, as JSON.")]
app = command_group("Measure speed, as ratios within one run.")


def show(rows: list[Row], out: Path | None, *, as_json: bool) -> None:
    """Print a benchmark's rows, keep them as JSON, and fail if one of them does not hold."""
    text = json.dumps([asdict(row) for row in rows], indent=1)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
    typer.echo(text if as_json else as_text(rows))
    if not all(row.holds for row in rows):
        raise typer.Exit(1)


@app.command("engine")
def engine(
    pairs: Annotated[int, typer.Option(min=1, help="Interleaved pairs of runs.")] = 7,
    prompts: Annotated[int, typer.Option(min=8)] = 1024,
    commands: Annotated[bool, typer.Option(help="Time `make demo` and `make test` too.")] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Our engine against bare vLLM, the store, resuming, interrupts, exactness, import time."""
    from benchmarks.engine import measure

    show(measure(pairs, prompts, say, commands=commands), out, as_json=as_json)


@app.command("baseline")
def baseline(
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each speed.")] = 3,
    prompts: Annotated[int, typer.Option(min=64)] = 1024,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """vLLM against transformers, and transformers in batches against one by one."""
    from benchmarks.baseline import measure

    show(measure(repeats, prompts, say), out, as_json=as_json)


@app.command("client")
def client(
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of each speed.")] = 5,
    prompts: Annotated[int, typer.Option(min=128)] = 1024,
    peers: Annotated[
        Path | None, typer.Option(help="An environment with lm-evaluation-harness.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The remote engine against other clients of the same vLLM server."""
    from benchmarks.client import measure

    show(measure(repeats, prompts, say, peers), out, as_json=as_json)


@app.command("real")
def real(
    model: Annotated[str, typer.Argument(help="Folder, hub name or GGUF file of a model.")],
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of each speed.")] = 3,
    figure: Annotated[Path | None, typer.Option(help="Draw the scores here.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """A pretrained model beside the embedded one: scores, exactness, speed."""
    from benchmarks.real import draw, measure

    found = measure(model, say, repeats=repeats)
    if figure is not None:
        draw(found.scores, figure)
    show(found.rows, out, as_json=as_json)


@app.command("faults")
def faults(
    requests: Annotated[int, typer.Option(min=100, help="How many meet faults.")] = 10_000,
    queued: Annotated[int, typer.Option(min=1000, help="Prompts in the queue.")] = 100_000,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The remote engine where servers fail, are full, are killed; and with a long queue."""
    from benchmarks.faults import measure

    show(measure(requests, queued, say), out, as_json=as_json)


@app.command("icm")
def icm(
    part: Annotated[
        list[str] | None,
        typer.Option(help="Only this part, may be given again (default: all, in about an hour)."),
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """ICM: exactness, prompts and tokens saved, quality against its rivals, resuming."""
    from benchmarks.icm import measure

    show(measure(part or (), say), out, as_json=as_json)


@app.command("accuracy")
def accuracy(
    part: Annotated[
        list[str] | None,
        typer.Option(help="Only this part, may be given again (default: all, in half an hour)."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each speed.")] = 3,
    peers: Annotated[
        Path | None, typer.Option(help="An environment with lm-evaluation-harness: only that.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Grading, agents in batches against loops, what a vote gains, resuming; or against lm-eval."""
    from benchmarks import accuracy, harness

    rows = harness.measure(peers, say) if peers else accuracy.measure(part or (), repeats, say)
    show(rows, out, as_json=as_json)


@app.command("uncertainty")
def uncertainty(
    part: Annotated[
        list[str] | None,
        typer.Option(help="Only this part, may be given again (default: all, in some minutes)."),
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Published tables, coverage over splits, a long queue, the embedded model's options."""
    from benchmarks.uncertainty import measure

    show(measure(part or (), say), out, as_json=as_json)


@app.command("diffusion")
def diffusion(
    part: Annotated[
        list[str] | None,
        typer.Option(help="Only this part, may be given again (default: all, in some minutes)."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each speed.")] = 5,
    peers: Annotated[
        Path | None, typer.Option(help="An environment with lm-evaluation-harness: only that.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Masked diffusion: the same answers in any batch, continuous batching, its server."""
    from benchmarks import diffusion, harness

    rows = harness.diffusion(peers, say) if peers else diffusion.measure(part or (), repeats, say)
    show(rows, out, as_json=as_json)


@app.command("sweep")
def sweep(
    part: Annotated[
        list[str] | None,
        typer.Option(help="Only this part, may be given again (default: all, in ten minutes)."),
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Sweeps: killed, stopped and resumed; their own time; one server against loading in each."""
    from benchmarks.sweep import measure

    show(measure(part or (), say), out, as_json=as_json)


@app.command("skills")
def skills(
    folder: Annotated[Path | None, typer.Argument(help="A model (default: the embedded).")] = None,
    count: Annotated[int, typer.Option(min=100, help="Held-out items for each skill.")] = 1000,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure every skill of the embedded model against the bar that it must reach."""
    from benchmarks.skills import measure
    from workbench.tiny import MODEL

    show(measure(folder or MODEL, count, say), out, as_json=as_json)


if __name__ == "__main__":
    app()
