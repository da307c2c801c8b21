"""Whether to ask a model with texts that it continues, or with chats that it answers."""

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
# Parts of models' names.
INSTRUCT = {"instruct", "instruction", "it", "chat", "sft", "dpo", "rlhf", "assistant", "thinking"}
BASE = {"base", "pt", "pretrain", "pretrained"}


def chosen_style(engine: Engine, style: Style = "auto") -> tuple[PromptStyle, str]:
    """The style for this model, and the reason.

    Args:
        style: "completion" or "chat" is returned as is. "auto" is "chat" for an instruct model with
            a chat template, or if its server has no completions; else "completion". A model is an
            instruct model by its name. If the name does not say so and the model is local, it is
            one if it stops where its template ends an answer.

    Raises:
        InputError: no such style, or not an engine.
    """
    check_engine(engine)
    values.choice("style", style, "auto", "completion", "chat")
    if style != "auto":
        return style, "requested"
    suited = getattr(engine, "suited_style", None)  # a custom engine may have none
    return suited() if suited is not None else ("completion", "the engine does not report one")


def possible_styles(engine: Engine) -> tuple[PromptStyle, ...]:
    """The styles that a model supports."""
    there: dict[PromptStyle, bool] = {
        "completion": getattr(engine, "has_completions", True),
        "chat": getattr(engine, "has_chat", True) and getattr(engine, "answers_chats", True),
    }
    found: tuple[PromptStyle, ...] = tuple(style for style, can in there.items() if can)
    return found or ("completion",)


def check_engine(engine: object) -> None:
    """Raise an InputError, which says how to open an engine, if this is not one."""
    ours = any(hasattr(engine, name) for name in ("generate", "stream", "info"))
    if isinstance(engine, type) or not ours:
        values.refuse("engine", engine, "an engine, as open_engine(…) returns it")


def common_style(engines: Sequence[Engine], style: Style = "auto") -> PromptStyle:
    """One style for several engines: "chat" if it suits one of them and all support it.

    Raises:
        InputError: no such style.
    """
    chosen = [chosen_style(engine, style)[0] for engine in engines]
    if style == "auto" and not all(getattr(engine, "has_chat", True) for engine in engines):
        return "completion"
    return "chat" if "chat" in chosen else "completion"


def style_by_name(name: str) -> tuple[PromptStyle | None, str]:
    """The style by a model's name or folder; None if the name does not show it."""
    path = Path(name)
    if path.parent.name == "snapshots":  # the hub's cache: models--OWNER--NAME/snapshots/COMMIT
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
    """The style by the token after an answer in the template, the model's or the given one.

    A base model may have its instruct model's template, but does not stop where it ends an answer.
    """
    talk = [{"role": "user", "content": "1"}, {"role": "assistant", "content": ANSWER}]
    given = {"chat_template": template} if template else {}
    try:
        text = str(tokenizer.apply_chat_template(talk, tokenize=False, **given))
    except Exception:  # noqa: BLE001  # templates are third-party programs
        return "completion", "its template refuses a plain chat"
    stops = {*tokenizer.convert_ids_to_tokens([*ends]), tokenizer.eos_token}
    after = text.rpartition(ANSWER)[2].lstrip()
    if any(after.startswith(stop) for stop in stops if stop):
        return "chat", "it stops where its template ends an answer"
    return "completion", "it does not stop where its template ends an answer"


def ends_of(folder: Path | None, name: str) -> list[int]:
    """The tokens that end a text, by the model's files, as far as they are available locally."""
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
