"""`workbench convert`: training checkpoints and GGUF files into folders that the engines load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.output import clean_exit, command_group

app = command_group("Make a model folder from a training checkpoint or a GGUF file.")
BaseModel = Annotated[
    str, typer.Option(help="Hub name or folder whose configuration and tokenizer it has.")
]


@app.command()
def dcp(
    path: Annotated[Path, typer.Argument(help="The folder with .metadata and the shards.")],
    base_model: BaseModel,
    out: Annotated[Path, typer.Option(help="A new folder.")],
    prefix: Annotated[
        str | None, typer.Option(help="Of the names, where the checkpoint holds several models.")
    ] = None,
) -> None:
    """Turn a folder of torch.distributed.checkpoint into Hugging Face safetensors."""
    from workbench.engines.convert import convert_dcp

    with clean_exit():
        made = convert_dcp(path, base_model, out, prefix=prefix)
    typer.echo(f"{made.folder}: {made.tensors} tensors, {made.size / 1e6:,.1f} MB")
    if made.left_out:
        first = ", ".join(made.left_out[:3]) + ", …" * (len(made.left_out) > 3)
        typer.echo(f"left out: {len(made.left_out)} other tensors ({first})")


@app.command()
def gguf(
    file: Annotated[Path, typer.Argument(help="The .gguf file.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub name or folder of a tokenizer, instead of the file's.")
    ] = None,
) -> None:
    """Turn a GGUF file into Hugging Face safetensors in bfloat16, and try it."""
    from workbench.engines.gguf import convert_gguf

    with clean_exit():
        made = convert_gguf(file, out, tokenizer=tokenizer)
    typer.echo(f"{made.folder}: {made.tensors} tensors, {made.size / 1e6:,.1f} MB")
    typer.echo(f"the same first tokens in: {made.checked}")
