"""Texts with fields in braces: "Translate: {text}".

A field is a name alone, looked up whole in what it is filled from: no attributes, no places, no
formats. `{{` and `}}` are braces themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from workbench import values
from workbench.errors import InputError

PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
CODE = re.compile(r"[.\[!:]")


def fields(template: str, where: str = "template") -> tuple[str, ...]:
    """The names in a template, each once, in their order.

    Args:
        where: what the template is called in messages, such as "prompt".

    Raises:
        InputError: it is no text, or a brace has no partner.
    """
    names: dict[str, None] = {}
    for piece in PIECE.finditer(values.text(where, template)):
        if piece[0] in {"{", "}"}:
            raise InputError(
                f"{where}={template!r:.80}: the {piece[0]} at character {piece.start()} has no "
                f"partner; write {piece[0] * 2} for the character itself"
            )
        if piece[1] is not None:
            names[piece[1].strip()] = None
    return tuple(names)


def check(template: str, known: Iterable[object], where: str = "template") -> None:
    """Refuse a template before any work.

    Args:
        known: the names that it may have.

    Raises:
        InputError: as `fields`, a name is unknown, or there is none: all texts would be the same.
    """
    names, there = fields(template, where), [*map(str, known)]
    for name in names:
        if name not in there:
            hint = values.near(name, there) or ";"
            alone = "; a field is a name alone" if CODE.search(name) else ""
            raise InputError(
                f"{where}={template!r:.80}: no field {name!r:.60}{hint} known: "
                f"{', '.join(there) or 'none'}{alone}. Write {{{{ and }}}} for braces themselves"
            )
    if not names:
        shown = f"{{{there[0] if there else 'name'}}}"
        raise InputError(
            f"{where}={template!r:.80} has no field, so that all prompts would be the same: "
            f"write one in braces, such as {shown}"
        )


def refuse_chat(value: object, where: str) -> None:
    """Raise an InputError where a value is a list of messages, which is no part of a text."""
    given = value.tolist() if getattr(value, "ndim", 0) == 1 else value  # type: ignore[attr-defined]
    messages = given if isinstance(given, list | tuple) else ()
    if messages and all(isinstance(m, Mapping) and {"role", "content"} <= {*m} for m in messages):
        raise InputError(f"{where} holds messages, a whole chat: give chats to engine.generate")


def fill(template: str, given: Mapping[Any, Any], where: str = "template") -> str:
    """The text with each field's value in its place.

    Args:
        given: values by name; lists are written as JSON, others as Python prints them.
        where: which text this is in messages, such as "prompt, row 7".

    Raises:
        InputError: as `check`, or a value is missing (None, NaN) or a chat.
    """
    by_name = {str(name): value for name, value in given.items()}
    check(template, by_name, where)

    def put(piece: re.Match[str]) -> str:
        if piece[1] is None:
            return piece[0][0]
        if values.is_missing(value := by_name[piece[1].strip()]):
            raise InputError(
                f"{where}: {piece[1].strip()!r} is missing; give a text, or leave the row out"
            )
        refuse_chat(value, where)
        return values.written(value)

    return PIECE.sub(put, template)
