"""Chats: how messages become the text that a model reads, in process and behind servers alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from workbench.errors import InputError
from workbench.types import Message

SYSTEM = ("system", "developer")
REMEDY = "fold_system=True puts the system message before the first user turn"


class RefusedChatError(InputError):
    """The template has no text for this chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What a caller decides about chats; options of every engine.

    Attributes:
        chat_template: a template (Jinja), or the path of a file with one; None is the model's own.
        chat_template_kwargs: arguments for it, such as `enable_thinking=False`.
        fold_system: put a system message before the text of the next user turn, for templates
            that know no system messages.
    """

    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    fold_system: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Those among an engine's options, checked; a template's file is read.

        Raises:
            InputError: a wrong value, or a file that is not there.
        """
        given = {name: options[name] for name in CHAT if options.get(name) is not None}
        if "chat_template" in given:
            given["chat_template"] = _template(given["chat_template"])
        kwargs = given.get("chat_template_kwargs", {})
        if not isinstance(kwargs, dict) or not _is_json(kwargs):
            raise InputError(
                f"chat_template_kwargs={kwargs!r:.80}: must be a dictionary of JSON values"
            )
        if kwargs:
            given["chat_template_kwargs"] = json.loads(
                json.dumps(kwargs)
            )  # the caller's may change
        if not isinstance(given.get("fold_system", False), bool):
            raise InputError(f"fold_system={given['fold_system']!r}: must be True or False")
        return cls(**given)

    @property
    def given(self) -> dict[str, Any]:
        """What was decided, by name."""
        return {name: value for name in CHAT if (value := getattr(self, name))}

    def messages(self, chat: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages to send, with system messages folded where that was asked for."""
        if not self.fold_system:
            return [dict(message) for message in chat]
        folded: list[dict[str, Any]] = []
        waiting: list[str] = []
        for message in chat:
            if message["role"] in SYSTEM:
                waiting.append(message["content"])
            elif message["role"] == "user":
                text = "\n\n".join([*waiting, message["content"]])
                folded.append({**message, "content": text})
                waiting = []
            else:
                folded.append(dict(message))
        if waiting:
            folded.append({"role": "user", "content": "\n\n".join(waiting)})
        return folded


CHAT = tuple(field.name for field in fields(ChatOptions))


def is_prefill(chat: Sequence[Message]) -> bool:
    """Whether the last message is the answer's beginning, which the model continues."""
    return chat[-1]["role"] == "assistant"


def chat_text(tokenizer: Any, chat: Sequence[Message], options: ChatOptions) -> str:
    """The text that a tokenizer's template, or the one given, makes of a chat.

    Raises:
        RefusedChatError: the template fails, or leaves the system message out.
    """
    messages = options.messages(chat)
    prefill = is_prefill(messages)
    given = {"chat_template": options.chat_template} if options.chat_template else {}
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not prefill,
            continue_final_message=prefill,
            tokenize=False,
            **given,
            **(options.chat_template_kwargs or {}),
        )
    except Exception as error:  # a template is a program of whoever made it
        said = " ".join(f"the chat template refuses this chat: {error}".split())
        said = with_remedy(said, messages)
        raise RefusedChatError(said) from error
    for message in messages:
        if message["role"] in SYSTEM and message["content"].strip() not in text:
            raise RefusedChatError(f"the chat template leaves the system message out; {REMEDY}")
    return text


def with_remedy(reason: str, chat: Sequence[Message]) -> str:
    """A refusal's reason, with what helps where a system message may be its cause."""
    has_system = any(message["role"] in SYSTEM for message in chat)
    return f"{reason}; {REMEDY}" if has_system and "system" in reason.lower() else reason


def _template(given: object) -> str:
    """The text of a template, given as one or as a file."""
    if not isinstance(given, str | Path) or not str(given):
        raise InputError(f"chat_template={given!r:.80}: must be a template or a file's path")
    text = str(given)
    if "{" in text or "\n" in text:
        return text
    try:
        return Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"chat_template={text!r:.80}: no template (it has no {{…}}), and no file that can be "
            f"read: {error}"
        ) from error


def _is_json(value: object) -> bool:
    try:
        return bool(json.dumps(value))
    except (TypeError, ValueError):
        return False
