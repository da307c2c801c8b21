"""Whether a model is asked by texts that it continues, or by chats that it answers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench import values
from workbench.types import Engine, PromptStyle, Style

EMBEDDED_STYLE = "the embedded model continues texts"
ANSWER = "Yes, it is."
# Parts of a model's name.
INSTRUCT = {"instruct", "instruction", "it", "chat", "sft", "dpo", "rlhf", "assistant", "thinking"}
BASE = {"base", "pt", "pretrain", "pretrained"}


def chosen_style(engine: Engine, style: Style = "auto") -> tuple[PromptStyle, str]:
    """How to ask this model, and why.

    Args:
        style: "completion" or "chat" as they are; "auto" is "chat" where the model is an instruct
            one with a template for chats, or its server has no completions; else "completion".
            An instruct model is one by its name or, where that says nothing and the model is here,
            one that stops at what its template puts after an answer.

    Raises:
        InputError: there is no such style, or it is no engine.
    """
    check_engine(engine)
    values.choice("style", style, "auto", "completion", "chat")
    if style != "auto":
        return style, "asked for"
    suited = getattr(engine, "suited_style", None)  # an engine of the caller's may have none
    return suited() if suited is not None else ("completion", "the engine does not say")


def possible_styles(engine: Engine) -> tuple[PromptStyle, ...]:
    """The styles in which a model can be asked."""
    there: dict[PromptStyle, bool] = {
        "completion": getattr(engine, "has_completions", True),
        "chat": getattr(engine, "has_chat", True) and getattr(engine, "answers_chats", True),
    }
    found: tuple[PromptStyle, ...] = tuple(style for style, can in there.items() if can)
    return found or ("completion",)


def check_engine(engine: object) -> None:
    """Raise an InputError that says how an engine is opened, where something else is given."""
    ours = any(hasattr(engine, name) for name in ("generate", "stream", "info"))
    if isinstance(engine, type) or not ours:
        values.refuse("engine", engine, "an engine, as open_engine(…) returns it")


def common_style(engines: Sequence[Engine], style: Style = "auto") -> PromptStyle:
    """One style for several engines: "chat" where it suits one of them, and all have it.

    Raises:
        InputError: there is no such style.
    """
    chosen = [chosen_style(engine, style)[0] for engine in engines]
    if style == "auto" and not all(getattr(engine, "has_chat", True) for engine in engines):
        return "completion"
    return "chat" if "chat" in chosen else "completion"


def style_by_name(name: str) -> tuple[PromptStyle | None, str]:
    """What the last telling part of a model's name or folder says, and None if it has none."""
    path = Path(name)
    if path.parent.name == "snapshots":  # of the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        path = path.parent.parent
    for part in reversed(re.split(r"[^a-z0-9]+", path.name.lower())):
        if part in BASE:
            return "completion", f"a base model, as its name has {part!r}"
        if part in INSTRUCT:
            return "chat", f"an instruct model, as its name has {part!r}"
    return None, "its name does not say that it is an instruct model"


def style_by_template(
    tokenizer: Any, template: str | None, ends: Sequence[int]
) -> tuple[PromptStyle, str]:
    """What a model does after an answer as its template, or the one given, writes it.

    Base models may have the template of the instruct ones, and do not stop where it ends an answer.
    """
    talk = [{"role": "user", "content": "1"}, {"role": "assistant", "content": ANSWER}]
    given = {"chat_template": template} if template else {}
    try:
        text = str(tokenizer.apply_chat_template(talk, tokenize=False, **given))
    except Exception:  # noqa: BLE001  # a template is a program of whoever made it
        return "completion", "its template refuses a plain chat"
    stops = {*tokenizer.convert_ids_to_tokens([*ends]), tokenizer.eos_token}
    after = text.rpartition(ANSWER)[2].lstrip()
    if any(after.startswith(stop) for stop in stops if stop):
        return "chat", "it stops where its template ends an answer"
    return "completion", "it does not stop where its template ends an answer"


def ends_of(folder: Path | None, name: str) -> list[int]:
    """The tokens at which a model ends a text by its own files, as far as they are here."""
    for file in ("generation_config.json", "config.json"):
        found: object = folder and folder / file
        if found is None:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(name, file)
        with suppress(OSError, ValueError, AttributeError):
            ends = json.loads(Path(str(found)).read_text("utf-8")).get("eos_token_id")
            several = ends if isinstance(ends, list) else [ends]
            if known := [one for one in several if type(one) is int]:
                return known
    return []
