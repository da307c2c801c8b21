"""`workbench slurm`: model servers as jobs of a cluster."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import pairs
from workbench.cli.output import command_group, say
from workbench.errors import InputError

app = command_group("Model servers as jobs of a Slurm cluster.")


@app.command()
def serve(  # noqa: PLR0917  # a command's arguments are its options
    account: Annotated[str, typer.Option(help="Who pays.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model-path", "--model", help="Hub name or folder (default: the embedded model)."
        ),
    ] = None,
    kind: Annotated[str, typer.Option(help='"diffusion" or "vllm".')] = "diffusion",
    gpus: Annotated[int, typer.Option(help="GPUs of one node.")] = 1,
    mem: Annotated[str, typer.Option(help="Memory, such as 64G.")] = "64G",
    time: Annotated[str, typer.Option(help="D-HH:MM:SS, HH:MM:SS, or minutes.")] = "04:00:00",
    partition: Annotated[str | None, typer.Option(help="Default: the cluster's.")] = None,
    container: Annotated[
        str | None, typer.Option(help="An image for srun (pyxis), or a .sif file for apptainer.")
    ] = None,
    environment: Annotated[
        str | None, typer.Option(help="A conda environment's name, or a folder of Python's venv.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Default: a free one of the node.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Holds the API key, mode 600 (default: the job's WORKBENCH_API_KEY)."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="A setting of the server."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Of the cluster, for log and readiness file (default: runs/slurm)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new file for the script (default: it is printed).")
    ] = None,
    submit: Annotated[
        bool, typer.Option("--submit", help="Run it, and print the job's id.")
    ] = False,
) -> None:
    """Write the script that serves a model on a cluster, and submit it if asked."""
    from workbench.runs import run_dir
    from workbench.serving import slurm

    job = slurm.SlurmJob(
        account, gpus, mem, time, partition, container=container, environment=environment
    )
    here = submit or folder is None
    folder = (folder or run_dir() / "slurm").absolute()
    text = slurm.script(
        job,
        slurm.command(kind, model, gpus, pairs(option, "--option")),
        model=model,
        folder=folder,
        port=port,
        key_file=_private(key_file),
    )
    if here:
        _make(folder)
    else:
        say(f"{folder} must be there when the job starts")
    if out is not None:
        _write(out, text)
    elif not submit:
        typer.echo(text, nl=False)
    login = "LOGIN"
    if submit:
        identity = slurm.submit(text)
        typer.echo(identity)
        say(f"when it answers there is {folder}/{job.name}-{identity}.json")
        login = f"{getpass.getuser()}@{socket.gethostname()}"
    with_key = key_file is not None or bool(os.environ.get("WORKBENCH_API_KEY"))
    say("then, from your machine (the job's log has these lines filled in):")
    for one in slurm.tunnel(port, with_key=with_key, login=login):
        say(f"  {one}")


def _private(given: Path | None) -> Path | None:
    """A key file where it is; its mode is looked at now if it is here, and by the job anyway."""
    if given is None:
        return None
    path = given.expanduser().absolute()
    if path.exists() and path.stat().st_mode & 0o777 not in (0o600, 0o400):
        raise InputError(f"key file {path} is not for you alone: chmod 600 {path}")
    return path


def _make(folder: Path) -> None:
    """Slurm would not, and the job would end without a word."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--folder {folder} cannot be made: {error}") from error


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"--out {path} cannot be written: {error}") from error
