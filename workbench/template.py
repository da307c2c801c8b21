"""Texts with fields in braces: "Translate: {text}".

A field is a plain name, looked up as a whole: no attributes, no indices, no formats. `{{` and `}}`
are literal braces.
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
    """The names in a template, in order, without repeats.

    Args:
        where: the template's name in messages, such as "prompt".

    Raises:
        InputError: it is not a text, or a brace is unmatched.
    """
    names: dict[str, None] = {}
    for piece in PIECE.finditer(values.text(where, template)):
        if piece[0] in {"{", "}"}:
            raise InputError(
                f"{where}={template!r:.80}: the {piece[0]} at character {piece.start()} is "
                f"unmatched; write {piece[0] * 2} for a literal brace"
            )
        if piece[1] is not None:
            names[piece[1].strip()] = None
    return tuple(names)


def check(template: str, known: Iterable[object], where: str = "template") -> None:
    """Check a template before any work.

    Args:
        known: the available names.

    Raises:
        InputError: as `fields`, a name is unknown, or there is no field: all texts would be equal.
    """
    names, there = fields(template, where), [*map(str, known)]
    for name in names:
        if name not in there:
            hint = values.near(name, there) or ";"
            alone = "; a field is a plain name" if CODE.search(name) else ""
            raise InputError(
                f"{where}={template!r:.80}: no field {name!r:.60}{hint} known: "
                f"{', '.join(there) or 'none'}{alone}. Write {{{{ and }}}} for literal braces"
            )
    if not names:
        shown = f"{{{there[0] if there else 'name'}}}"
        raise InputError(
            f"{where}={template!r:.80} has no field, so all prompts would be the same: "
            f"write one in braces, such as {shown}"
        )


def refuse_chat(value: object, where: str) -> None:
    """Raise an InputError if a value is a list of messages, which cannot be part of a text."""
    given = value.tolist() if getattr(value, "ndim", 0) == 1 else value  # type: ignore[attr-defined]
    messages = given if isinstance(given, list | tuple) else ()
    if messages and all(isinstance(m, Mapping) and {"role", "content"} <= {*m} for m in messages):
        raise InputError(f"{where} holds messages, a whole chat: pass chats to engine.generate")


def fill(template: str, given: Mapping[Any, Any], where: str = "template") -> str:
    """The text with the fields' values filled in.

    Args:
        given: values by name; lists are written as JSON, others as Python prints them.
        where: the text's name in messages, such as "prompt, row 7".

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
                f"{where}: {piece[1].strip()!r} is missing; fill it in, or leave the row out"
            )
        refuse_chat(value, where)
        return values.written(value)

    return PIECE.sub(put, template)
