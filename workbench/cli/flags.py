"""Options that several commands share, and NAME=VALUE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from workbench.errors import InputError
from workbench.types import Style
from workbench.values import known


def _tasks() -> list[str]:
    from workbench.tasks import TASKS

    return [*TASKS]


def _agents() -> list[str]:
    from workbench.agents import AGENTS

    return [*AGENTS, "all"]


TaskName = Annotated[
    str,
    Option(help="A name, such as word_problems; a file; or lm_eval:TASK.", autocompletion=_tasks),
]
AgentName = Annotated[
    str,
    Option(
        help='standard, majority_vote, best_of_n, self_refine, or "all".', autocompletion=_agents
    ),
]
Json = Annotated[bool, Option("--json", help="Print JSON instead of text.")]
Model = Annotated[
    str | None, Option(help="Hub name, folder or .gguf file (default: the embedded model).")
]
ServedModel = Annotated[
    str | None,
    Option("--model-path", "--model", help="Hub name or folder (default: an embedded model)."),
]
ENGINES = ("auto", "vllm", "remote", "transformers", "diffusion", "ray")
EngineName = Annotated[
    str, Option(help=f"One of {', '.join(ENGINES)}.", autocompletion=lambda: [*ENGINES])
]
StorePath = Annotated[
    str | None,
    Option(
        help='Response store: "default", a path, or "none" for no store.',
        callback=lambda value: None if value == "none" else value,
    ),
]
Options = Annotated[
    list[str] | None,
    Option("--option", "-o", metavar="NAME=VALUE", help="An engine argument, as JSON."),
]
BaseUrl = Annotated[
    str | None, Option("--base-url", help="A server, …/v1 (default: WORKBENCH_BASE_URL).")
]
Chat = Annotated[
    bool | None,
    Option("--chat/--no-chat", help="Use chats or not (default: what suits the model)."),
]
Seed = Annotated[int, Option(min=0, help="Chooses the items.")]
Folder = Annotated[
    Path | None, Option("--out", help="A new folder for the report: numbers, rows, figure.")
]


def server(engine: str, base_url: str | None) -> dict[str, Any]:
    """The engine for these options; a URL alone selects the remote one.

    Raises:
        InputError: the engine does not exist, or has no URL.
    """
    known("engine", engine, ENGINES)
    if base_url is None:
        return {"engine": engine}
    if engine not in {"auto", "remote"}:
        raise InputError(f"--base-url is for a server, not for --engine {engine}: leave one out")
    return {"engine": "remote", "base_url": base_url}


def style(chat: bool | None) -> Style:
    """The style for --chat, --no-chat or neither."""
    return "auto" if chat is None else "chat" if chat else "completion"


def typed(text: str) -> str:
    """A text in which \\n from a shell becomes a line break."""
    return text.replace("\\n", "\n")


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Values by name, from NAME=VALUE.

    Raises:
        InputError: a text is not such a pair, or a name is given twice.
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
    """Arguments of an engine; a value that is not JSON is a text."""
    options: dict[str, Any] = {}
    for name, value in pairs(texts, "--option").items():
        if name in ("model", "engine", "store"):
            raise InputError(f"--option {name}: {name} is not an engine argument; see --help")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
