"""`workbench slurm`: model servers, and any command, as jobs of a Slurm cluster."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from workbench.cli.flags import ServedModel, pairs
from workbench.cli.output import command_group, say
from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.serving.slurm import SlurmJob

slurm = command_group("Model servers, and any command, as jobs of a Slurm cluster.")
Place = Annotated[
    Path | None, Option(help="On the cluster, for logs and ready files (default: runs/slurm).")
]


def _resources(
    account: Annotated[str, Option(help="The Slurm account that is charged.")],
    gpus: Annotated[int, Option(help="GPUs of one node; 0: none.")] = 1,
    mem: Annotated[str, Option(help="Memory, such as 64G.")] = "64G",
    time: Annotated[str, Option(help="D-HH:MM:SS, HH:MM:SS, or minutes.")] = "04:00:00",
    partition: Annotated[str | None, Option(help="Default: the cluster's.")] = None,
    cpus: Annotated[int | None, Option(help="Cores (default: the cluster's).")] = None,
    container: Annotated[
        str | None, Option(help="An image for srun (pyxis), or a .sif file for apptainer.")
    ] = None,
    environment: Annotated[
        str | None, Option(help="Name of a conda environment, or folder of a Python venv.")
    ] = None,
    name: Annotated[str | None, Option(help="Of the job and its files.")] = None,
) -> dict[str, Any]:
    """What every job requests; the fields of `SlurmJob`."""
    return {**locals()}


def _requesting(kind: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `_resources`; it receives them as its first argument."""
    shared = [*inspect.signature(_resources, eval_str=True).parameters.values()]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call(**given: Any) -> None:
            from workbench.serving.slurm import SlurmJob

            fields = _resources(**{one.name: given.pop(one.name) for one in shared})
            command(SlurmJob(**fields | {"name": fields["name"] or f"workbench-{kind}"}), **given)

        command.__annotations__["job"] = object  # its class is imported by the call
        _, *rest = inspect.signature(command, eval_str=True).parameters.values()
        options = [one.replace(kind=one.KEYWORD_ONLY) for one in (*rest, *shared)]
        call.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        return call

    return give


@slurm.command("serve")
@_requesting("serve")
def submit_server(
    job: SlurmJob,
    model: ServedModel = None,
    kind: Annotated[str, Option(help='"diffusion" or "vllm".')] = "diffusion",
    replicas: Annotated[int, Option(min=1, help="Servers, as one array job: a fleet.")] = 1,
    port: Annotated[int | None, Option(help="Default: a free one on the node.")] = None,
    key_file: Annotated[
        Path | None,
        Option(help="Holds the API key, mode 600 (default: the job's WORKBENCH_API_KEY)."),
    ] = None,
    option: Annotated[
        list[str] | None,
        Option("--option", "-o", metavar="NAME=VALUE", help="A setting of the server."),
    ] = None,
    folder: Place = None,
    out: Annotated[
        Path | None, Option(help="A new file for the script (default: print it).")
    ] = None,
    submit: Annotated[bool, Option("--submit", help="Submit it, and print the job's id.")] = False,
) -> None:
    """Write the script that serves a model on a cluster, and submit it on request."""
    from workbench.serving import slurm as cluster

    line = cluster.command(kind, model, job.gpus, pairs(option, "--option"))
    key = _private(key_file)
    place = _folder(folder, make=submit or folder is None)
    text = cluster.server_script(
        job, line, model=model, folder=place, replicas=replicas, port=port, key_file=key
    )
    if out is not None:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    elif not submit:
        typer.echo(text, nl=False)
    if submit:
        identity = cluster.submit(text, private=True).partition(";")[0]
        typer.echo(identity)
        number = "" if replicas == 1 else f"_0 to _{replicas - 1}"
        say(f"while a server answers, this file exists: {place}/{job.name}-{identity}{number}.json")
    if key is None and not os.environ.get("WORKBENCH_API_KEY"):
        say("without a key a server listens on its own node only: set WORKBENCH_API_KEY")
    say("the job's log has the command for a tunnel from your machine")
    if replicas > 1:
        say(f"ask all of them: open_engine(engine='remote', base_url={str(place)!r})")


@slurm.command("run")
@_requesting("run")
def run_command(
    job: SlurmJob,
    line: Annotated[list[str], Argument(metavar="-- COMMAND", help="Any command, after --.")],
    folder: Place = None,
) -> None:
    """Submit a command as a job, in this folder and environment, and print the job's id."""
    from workbench.serving.slurm import script, submit

    place = _folder(folder, make=True)
    identity = submit(script(job, line, folder=place)).partition(";")[0]
    typer.echo(identity)
    say(f"log: {place}/{job.name}-{identity}.log")


def _folder(folder: Path | None, *, make: bool) -> Path:
    """The folder, made here where that is possible: Slurm does not, and the job would not start."""
    from workbench.runs import run_dir

    place = (folder or run_dir() / "slurm").absolute()
    if make:
        place.mkdir(parents=True, exist_ok=True)
    else:
        say(f"{place} must exist when the job starts")
    return place


def _private(file: Path | None) -> Path | None:
    """A key file's full path; its mode is checked here if it exists, and by the job in any case."""
    if file is None:
        return None
    path = file.expanduser().absolute()
    if path.exists() and path.stat().st_mode & 0o777 not in (0o600, 0o400):
        raise InputError(f"key file {path} can be read by others: chmod 600 {path}")
    return path
