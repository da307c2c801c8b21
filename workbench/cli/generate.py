"""`workbench generate`: complete the rows of a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from workbench.cli import options
from workbench.cli.output import show


def generate(
    source: Annotated[
        Path, Argument(help="Rows with prompt or messages: .jsonl, .csv, .parquet, …")
    ],
    out: Annotated[Path, Argument(help="JSONL: the same rows, completed.")],
    prompt: Annotated[
        str | None, Option(help='How to ask, with columns in braces: "Translate: {text}".')
    ] = None,
    model: options.Model = None,
    engine: options.EngineName = "auto",
    base_url: options.BaseUrl = None,
    chat: options.Chat = None,
    max_tokens: Annotated[int, Option(min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, Option(max=1, help="Share of the likeliest tokens.")] = 1.0,
    n: Annotated[int, Option("-n", min=1, help="Answers to each prompt.")] = 1,
    stop: Annotated[
        list[str] | None, Option(help="A text that ends an answer; may be given again.")
    ] = None,
    seed: Annotated[int | None, Option(help="Makes samples repeatable.")] = None,
    store: options.StorePath = "default",
    option: options.Options = None,
    as_json: options.Json = False,
) -> None:
    """Complete the prompts of a file; run it again and it resumes where it stopped."""
    from workbench.batch import generate_file
    from workbench.types import Sampling

    prompt = prompt and options.typed(prompt)
    ends = tuple(map(options.typed, stop or ()))
    sampling = Sampling(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, n=n, stop=ends, seed=seed
    )
    result = generate_file(
        source, out, sampling, prompt=prompt, style=options.style(chat), model=model, store=store,
        **options.server(engine, base_url), **options.engine_options(option),
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
