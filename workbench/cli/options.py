"""Options that several commands have, and NAME=VALUE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from workbench.errors import InputError


def _no_store(value: str) -> str | None:
    return None if value == "none" else value


Json = Annotated[bool, Option("--json", help="Print JSON instead of text.")]
Model = Annotated[
    str | None, Option(help="Hub name, folder or .gguf file (default: the embedded model).")
]
ServedModel = Annotated[
    str | None,
    Option("--model-path", "--model", help="Hub name or folder (default: an embedded model)."),
]
EngineName = Annotated[str, Option(help='"auto", "vllm", "remote", "transformers" or "diffusion".')]
StorePath = Annotated[
    str | None,
    Option(help='Response store: "default", a path, or "none" for no store.', callback=_no_store),
]
Options = Annotated[
    list[str] | None,
    Option("--option", "-o", metavar="NAME=VALUE", help="An engine argument, as JSON."),
]
Chat = Annotated[bool, Option(help="Through the model's chat template.")]
Seed = Annotated[int, Option(min=0, help="Chooses the items.")]
Folder = Annotated[
    Path | None, Option("--out", help="A new folder for the report: numbers, rows, figure.")
]


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Values by name, out of NAME=VALUE.

    Raises:
        InputError: one is no such pair, or a name is given twice.
    """
    values: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{option} {text!r} must be NAME=VALUE")
        if name in values:
            raise InputError(f"{option} {name} is given twice; give it once")
        values[name] = value
    return values


def engine_options(texts: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of an engine: JSON where they are, else texts."""
    options: dict[str, Any] = {}
    for name, value in pairs(texts, "--option").items():
        if name in ("model", "engine", "store"):
            raise InputError(f"--option {name}: {name} is no engine argument; see --help")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
