"""Whether a model is asked by texts that it continues, or by chats that it answers."""

from __future__ import annotations

from workbench import values
from workbench.types import Engine, PromptStyle, Style


def chosen_style(engine: Engine, style: Style = "auto") -> tuple[PromptStyle, str]:  # noqa: ARG001
    """How to ask this model, and why.

    Args:
        style: "completion" or "chat" as they are; "auto" is "chat" where the model is an instruct
            one with a template for chats, or its server has no completions; else "completion".

    Raises:
        InputError: there is no such style.
    """
    values.choice("style", style, "auto", "completion", "chat")
    return ("completion", "auto") if style == "auto" else (style, "asked for")
