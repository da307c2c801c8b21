"""`workbench serve`: a model behind OpenAI's interface, from this machine."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from workbench.cli.options import Options, engine_options
from workbench.cli.output import clean_exit, command_group, say
from workbench.errors import EngineError, InputError

app = command_group("Start a model server.")
Host = Annotated[str, typer.Option(help="Where it listens.")]
Port = Annotated[int | None, typer.Option(help="Default: a free one.")]


@app.command()
def vllm(  # noqa: PLR0917  # a command's arguments are its options
    model: Annotated[
        str | None, typer.Argument(help="Hub name or local folder (default: the embedded model).")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Settings by size: 8b, 70b, 405b.")] = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait until it answers.")] = None,
    option: Options = None,
) -> None:
    """Start a vLLM server, print its URL when it answers, and end it with Ctrl-C."""
    from workbench.serving import serve

    say("starting; a small model takes half a minute, a large one many …")
    given = engine_options(option)
    with serve(model, preset, host=host, port=port, timeout=timeout, **given) as server:
        typer.echo(server.url)
        say(f"serves {server.model}; its log: {server.log}; Ctrl-C ends it")
        say(f"use it: export WORKBENCH_BASE_URL={server.url}")
        with contextlib.suppress(KeyboardInterrupt):
            while server.alive:
                time.sleep(0.5)
            raise EngineError(f"the server has ended by itself; its log: {server.log}")
    say("ended")


@app.command()
def diffusion(  # noqa: PLR0917
    model: Annotated[
        str | None,
        typer.Option(
            "--model-path",
            "--model",
            help="Hub name or folder of a LLaDA-8B model (default: a small one).",
        ),
    ] = None,
    dcp_path: Annotated[
        Path | None,
        typer.Option(help="Instead: a folder of torch.distributed.checkpoint, to be converted."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="With --dcp-path: whose configuration and tokenizer it has.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows denoised at once, a GPU.")] = 8,
    max_wait_time: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a full batch where nothing runs.")
    ] = 0.1,
    num_gpus: Annotated[
        int, typer.Option("--num-gpus", "--num_gpus", min=1, help="A worker each, one port.")
    ] = 1,
    num_nodes: Annotated[int, typer.Option("--num-nodes", "--num_nodes", help="Only 1.")] = 1,
    option: Options = None,
) -> None:
    """Start a batch server of a masked-diffusion model; SIGTERM or Ctrl-C lets requests finish."""
    if num_nodes != 1:
        raise InputError(f"--num-nodes {num_nodes}: start one server a node and spread over them")
    given = engine_options(option)
    if "batch_size" in given:
        raise InputError("--option batch_size: give --batch-size")
    with _converted(model, dcp_path, base_model) as found:
        if num_gpus > 1:
            names = _gpus(num_gpus, on_cpu=given.get("device") == "cpu")
            _spread(found, host, port, batch_size, max_wait_time, names, option or [])
            return
        from workbench.engines.diffusion import DiffusionEngine
        from workbench.serving.diffusion_server import serve_diffusion

        say("loading …")
        with DiffusionEngine(found, None, "served", given) as engine:
            settings: dict[str, Any] = {"batch_size": batch_size, "max_wait_time": max_wait_time}
            settings["aliases"] = [] if found is None else [found]
            with serve_diffusion(engine, host=host, port=port, **settings) as server:
                typer.echo(server.url)
                say(f"serves {server.model} on {engine.info.device}; Ctrl-C ends it")
                code = server.run()
    raise typer.Exit(code)


@contextlib.contextmanager
def _converted(
    model: str | None, dcp_path: Path | None, base_model: str | None
) -> Iterator[str | None]:
    """The model to load: as it is named, or a checkpoint made into one, in a private folder."""
    if dcp_path is None and base_model is None:
        yield model
        return
    if dcp_path is None or base_model is None or model is not None:
        raise InputError("--dcp-path and --base-model go together, and without --model-path")
    from workbench.engines.convert import convert_dcp

    with clean_exit(), TemporaryDirectory(prefix="workbench-dcp-") as folder:
        made = convert_dcp(dcp_path, base_model, Path(folder) / dcp_path.resolve().name)
        say(f"converted {made.tensors} tensors of {dcp_path}")
        yield str(made.folder)


def _spread(  # noqa: PLR0917
    model: str | None,
    host: str,
    port: int | None,
    batch_size: int,
    max_wait_time: float,
    gpus: list[str],
    option: list[str],
) -> None:
    """A worker on each GPU, and one port before them."""
    from workbench.runs import run_dir
    from workbench.serving.balancer import LoadBalancer

    line = [sys.executable, "-m", "workbench", "serve", "diffusion"]
    line += ["--batch-size", str(batch_size), "--max-wait-time", str(max_wait_time)]
    line += ["--model-path", model] if model is not None else []
    line += [word for pair in option for word in ("--option", pair)]
    folder = run_dir() / "serve" / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
    environments = [{"CUDA_VISIBLE_DEVICES": name} for name in gpus]
    say(f"starting {len(gpus)} workers; their logs: {folder} …")
    LoadBalancer(line, environments, folder=Path(folder), host=host, port=port).run()


def _gpus(count: int, *, on_cpu: bool) -> list[str]:
    """The names of so many GPUs; on a CPU, if that is asked for, the workers share it."""
    import torch

    if on_cpu:
        return [""] * count
    if torch.cuda.device_count() < count:
        raise InputError(
            f"--num-gpus {count}: this machine shows {torch.cuda.device_count()} GPUs; give fewer, "
            "or --option device=cpu"
        )
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else map(str, range(count))
    return [name.strip() for name in names][:count]
