"""`workbench serve` and `check-server`: models behind OpenAI's API."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from typer import Argument, Option

from workbench.cli.flags import Json, Options, ServedModel, engine_options
from workbench.cli.output import clean_exit, command_group, say, show, table
from workbench.errors import EngineError, InputError
from workbench.lazy import torch

serve = command_group("Start a model server.")
Host = Annotated[str, Option(help="The address to listen on.")]
Port = Annotated[int | None, Option(help="Default: a free one.")]


@serve.command()
def vllm(
    model: Annotated[
        str | None, Argument(help="Hub name or local folder (default: the embedded model).")
    ] = None,
    preset: Annotated[str | None, Option(help="Settings by size: 8b, 70b, 405b.")] = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    timeout: Annotated[
        float | None, Option(help="Seconds to wait for the server to start.")
    ] = None,
    option: Options = None,
) -> None:
    """Start a vLLM server and print its URL once it answers; Ctrl-C stops it."""
    from workbench.engines.source import Source
    from workbench.serving import serve
    from workbench.serving.presets import find_preset

    arguments = engine_options(option)
    Source.find(model)
    find_preset(preset, arguments)
    say("starting; a small model takes half a minute, a large one several minutes …")
    with serve(model, preset, host=host, port=port, timeout=timeout, **arguments) as server:
        typer.echo(server.url)
        say(f"serves {server.model}; log: {server.log}; Ctrl-C stops it")
        say(f"use it: export WORKBENCH_BASE_URL={server.url}")
        with contextlib.suppress(KeyboardInterrupt):
            while server.alive:
                time.sleep(0.5)
            raise EngineError(f"the server stopped unexpectedly; see its log: {server.log}")
    say("ended")


@serve.command()
def diffusion(
    model: ServedModel = None,
    dcp_path: Annotated[
        Path | None,
        Option(help="A torch.distributed.checkpoint folder to convert, instead of a model."),
    ] = None,
    base_model: Annotated[
        str | None, Option(help="With --dcp-path: its configuration and tokenizer.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    batch_size: Annotated[int, Option(min=1, help="Rows denoised at once per GPU.")] = 8,
    max_wait_time: Annotated[
        float, Option(min=0, help="Seconds that an idle server waits for a full batch.")
    ] = 0.1,
    num_gpus: Annotated[
        int, Option("--num-gpus", "--num_gpus", min=1, help="One worker per GPU, one port.")
    ] = 1,
    num_nodes: Annotated[int, Option("--num-nodes", "--num_nodes", help="Only 1.")] = 1,
    option: Options = None,
) -> None:
    """Start a batch server for a masked-diffusion model; SIGTERM or Ctrl-C finishes requests."""
    if num_nodes != 1:
        raise InputError(f"--num-nodes {num_nodes}: start one server per node and spread requests")
    arguments = engine_options(option)
    if "batch_size" in arguments:
        raise InputError("--option batch_size: give --batch-size")
    with _converted(model, dcp_path, base_model) as source:
        if num_gpus > 1:
            line = [sys.executable, "-m", "workbench", "serve", "diffusion"]
            line += ["--batch-size", str(batch_size), "--max-wait-time", str(max_wait_time)]
            line += ["--model-path", source] if source is not None else []
            line += [f"--option={pair}" for pair in option or ()]
            _spread(line, _gpus(num_gpus, on_cpu=arguments.get("device") == "cpu"), host, port)
            return
        from workbench.engines.diffusion import DiffusionEngine
        from workbench.serving.diffusion_server import serve_diffusion

        say("loading …")
        with DiffusionEngine(source, None, "served", arguments) as engine:
            settings: dict[str, Any] = {"batch_size": batch_size, "max_wait_time": max_wait_time}
            settings["aliases"] = [] if source is None else [source]
            with serve_diffusion(engine, host=host, port=port, **settings) as server:
                typer.echo(server.url)
                say(f"serves {server.model} on {engine.info.device}; Ctrl-C stops it")
                code = server.run()
    raise typer.Exit(code)


@contextlib.contextmanager
def _converted(
    model: str | None, dcp_path: Path | None, base_model: str | None
) -> Iterator[str | None]:
    """The model to load: the name, or a converted checkpoint in a private folder."""
    if dcp_path is None and base_model is None:
        yield model
        return
    if dcp_path is None or base_model is None or model is not None:
        raise InputError("--dcp-path and --base-model go together, and without --model-path")
    from workbench.engines.checkpoints.convert import convert_dcp

    with clean_exit(), TemporaryDirectory(prefix="workbench-dcp-") as folder:
        converted = convert_dcp(dcp_path, base_model, Path(folder) / dcp_path.resolve().name)
        say(f"converted {converted.tensors} tensors of {dcp_path}")
        yield str(converted.folder)


def _spread(line: list[str], gpus: list[str], host: str, port: int | None) -> None:
    """Start one worker per GPU, with one port in front of them."""
    from workbench.runs import run_dir
    from workbench.serving.balancer import LoadBalancer

    folder = run_dir() / "serve" / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
    environments = [{"CUDA_VISIBLE_DEVICES": name} for name in gpus]
    say(f"starting {len(gpus)} workers; their logs: {folder} …")
    LoadBalancer(line, environments, folder=Path(folder), host=host, port=port).run()


def _gpus(count: int, *, on_cpu: bool) -> list[str]:
    """The names of the GPUs; on a CPU, if selected, the workers share it."""
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


def check_server(
    url: Annotated[str, Argument(help="Such as http://127.0.0.1:8000/v1.")],
    model: Annotated[str | None, Option(help="A served name (default: the only one).")] = None,
    as_json: Json = False,
) -> None:
    """Show what works at a server, and what to change if something is missing.

    Exit code 1: it answers neither texts nor chats.
    """
    from workbench.serving.check import check

    checks = list(check(url, model))
    rows = [[one.what, "yes" if one.works else "NO", one.seen, one.remedy] for one in checks]
    text = table(["", "works", "seen", "to change"], rows)
    show([asdict(one) for one in checks], text, as_json=as_json)
    if not any(one.works for one in checks if one.what in {"completion", "chat"}):
        raise typer.Exit(1)
