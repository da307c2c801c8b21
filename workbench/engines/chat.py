"""Chats: messages become the text that a model reads; thinking is separated from the answer."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from workbench import values
from workbench.engines.decoding import CONTEXT, added_text
from workbench.errors import InputError
from workbench.messages import text_of
from workbench.types import Completion, Message, Prompt, Sampling

SYSTEM = ("system", "developer")
REMEDY = "fold_system=True puts the system message before the first user turn"
TEMPLATE_SECONDS = 5.0  # maximum per chat
T = TypeVar("T")
LABEL = "thought\n"  # what Gemma 4 writes first inside its thinking marks
# Marks of DeepSeek, Qwen, GLM and most others; Mistral; Seed; Cohere; MiniMax; EXAONE; Gemma 4.
MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<mm:think>", "</mm:think>"),
    ("<thought>", "</thought>"),
    ("<|channel>", "<channel|>"),
)
CHANNELS = ("<|channel|>", "<|message|>", "<|end|>")  # of gpt-oss


class RefusedChatError(InputError):
    """The template refuses this chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """The caller's options for chats; options of every engine.

    Attributes:
        chat_template: a template (Jinja), or the path of a file with one; None is the model's.
        chat_template_kwargs: arguments for it, such as `enable_thinking=False`.
        fold_system: put a system message before the text of the next user turn, for templates
            without system messages.
    """

    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    fold_system: bool = False

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            object.__setattr__(self, "chat_template", _template(self.chat_template))
        name = "chat_template_kwargs"
        kwargs = values.optional(name, self.chat_template_kwargs, values.json_object)
        object.__setattr__(self, name, kwargs or None)
        values.flag("fold_system", self.fold_system)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The chat options among an engine's options, checked; a template file is read.

        Raises:
            InputError: a wrong value, or a missing file.
        """
        return cls(**{name: options[name] for name in CHAT if options.get(name) is not None})

    @property
    def given(self) -> dict[str, Any]:
        """The options that were set, by name."""
        return {name: value for name in CHAT if (value := getattr(self, name))}

    def messages(self, chat: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages to send, with system messages folded if requested."""
        if not self.fold_system:
            return [dict(message) for message in chat]
        folded: list[dict[str, Any]] = []
        held_back: list[str] = []
        for message in chat:
            if message["role"] in SYSTEM:
                held_back.append(text_of(message["content"]))
            elif message["role"] == "user":
                folded.append({**message, "content": _after(held_back, message["content"])})
                held_back = []
            else:
                folded.append(dict(message))
        if held_back:
            folded.append({"role": "user", "content": "\n\n".join(held_back)})
        return folded


CHAT = tuple(field.name for field in fields(ChatOptions))


def _after(texts: list[str], content: Any) -> Any:
    """A message's content with texts before it."""
    if isinstance(content, str):
        return "\n\n".join([*texts, content])
    return [*({"type": "text", "text": f"{one}\n\n"} for one in texts), *content]


def is_prefill(chat: Sequence[Message]) -> bool:
    """Whether the last message begins the answer, so that the model continues it."""
    return str(chat[-1]["role"]) == "assistant"


def chat_text(tokenizer: Any, chat: Sequence[Message], options: ChatOptions) -> str:
    """A chat as text, by the tokenizer's template or the caller's.

    Raises:
        RefusedChatError: the template fails, or leaves the system message out.
    """
    messages = options.messages(chat)
    joined = [{**one, "content": text_of(one["content"])} for one in messages]
    text = _rendered(tokenizer, joined, options)
    asked = next((m["content"].strip() for m in reversed(joined) if m["role"] == "user"), "")
    if asked not in text:  # some templates take parts only, and lose texts
        parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in joined]
        with suppress(RefusedChatError):
            other = _rendered(tokenizer, parts, options)
            text = other if asked in other and "'type'" not in other else text
    for message in joined:
        if message["role"] in SYSTEM and message["content"].strip() not in text:
            raise RefusedChatError(f"the chat template leaves the system message out; {REMEDY}")
    return text


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], options: ChatOptions) -> str:
    prefill = is_prefill(messages)
    template = {"chat_template": options.chat_template} if options.chat_template else {}
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not prefill,
            continue_final_message=prefill,
            tokenize=False,
            **template,
            **(options.chat_template_kwargs or {}),
        )
    except Exception as error:  # templates are third-party programs
        reason = " ".join(f"the chat template refuses this chat: {error}".split())
        raise RefusedChatError(with_remedy(reason, messages)) from error
    return text


def with_remedy(reason: str, chat: Sequence[Message]) -> str:
    """A refusal's reason; with a remedy if a system message may be the cause."""
    has_system = any(message["role"] in SYSTEM for message in chat)
    return f"{reason}; {REMEDY}" if has_system and "system" in reason.lower() else reason


def _template(value: object) -> str:
    """The text of a template, which is given directly or as a file."""
    if not isinstance(value, str | Path) or not str(value):
        raise InputError(f"chat_template={value!r:.80}: must be a template or the path of a file")
    text = str(value)
    if "{" in text or "\n" in text:
        return text
    try:
        return Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"chat_template={text!r:.80}: not a template (it has no {{…}}), and not a readable "
            f"file: {error}"
        ) from error


def rendered(render: Callable[[T], str], chats: Iterable[T]) -> list[str]:
    """`render` of each chat; a template is a third-party program and may loop forever.

    It runs in a thread, which is stopped then.

    Raises:
        TimeoutError: one took longer than `TEMPLATE_SECONDS`.
    """
    texts: list[str] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for chat in chats:
                texts.append(render(chat))  # noqa: PERF401  # read by the caller below
        except BaseException as error:  # noqa: BLE001  # re-raised in the calling thread
            failed.append(error)

    thread = threading.Thread(target=work, name="chat template", daemon=True)
    thread.start()
    done, since = 0, time.monotonic()
    try:
        while thread.is_alive():
            thread.join(0.1)
            if len(texts) > done:
                done, since = len(texts), time.monotonic()
            elif thread.is_alive() and time.monotonic() - since > TEMPLATE_SECONDS:
                raise TimeoutError(f"it did not end within {TEMPLATE_SECONDS:g} s")
    finally:  # Ctrl-C or a timeout: an exception in the thread ends Python code
        if thread.is_alive() and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )
    if failed:
        raise failed[0]
    return texts


def thinking_of(tokenizer: Any) -> Thinking | Channels | None:
    """How a model marks its thinking, by its vocabulary; None if it does not."""
    known = tokenizer.get_vocab()
    if all(mark in known for mark in CHANNELS):
        return Channels(*(known[mark] for mark in CHANNELS))
    for start, end in MARKS:
        if start in known and end in known:
            return Thinking(known[start], known[end], start, end)
    return None


def without_thinking(text: str) -> tuple[str, str | None]:
    """(answer, thinking) of a whole answer to a chat; a closing mark alone ends thinking too."""
    whole = text.lstrip()
    for opening, closing in MARKS:
        if whole.startswith(opening) or (closing in whole and opening not in whole):
            thought, _, answer = whole.removeprefix(opening).partition(closing)
            return answer, thought or None
    return text, None


def thinking_limit(
    marks: Thinking | Channels | None, prompt: Prompt, sampling: Sampling
) -> int | None:
    """The maximum tokens of thinking in the answer to a prompt; None if there is no limit.

    Structured output begins at the first token: it has no thinking.

    Raises:
        InputError: `max_reasoning_tokens` with a text, or for a model without marks.
    """
    if sampling.max_reasoning_tokens is None or is_structured(sampling):
        return None
    check_thinking_limit(prompt, sampling)
    if not isinstance(marks, Thinking):
        raise InputError(
            f"max_reasoning_tokens={sampling.max_reasoning_tokens}: this model's vocabulary has no "
            "pair of marks around thinking, such as <think> and </think>; leave it out"
        )
    return sampling.max_reasoning_tokens


def is_structured(sampling: Sampling) -> bool:
    """Whether answers have a requested form."""
    return any(x is not None for x in (sampling.choices, sampling.regex, sampling.json_schema))


def check_thinking_limit(prompt: Prompt, sampling: Sampling) -> None:
    """Refuse, by an `InputError`, a limit of thinking for a text, of which thinking is a part."""
    if sampling.max_reasoning_tokens is not None and isinstance(prompt, str):
        raise InputError(
            f"max_reasoning_tokens={sampling.max_reasoning_tokens}: thinking is separated in "
            'answers to chats only; pass chats (style="chat"), or leave it out'
        )


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tokens around a model's thinking."""

    start: int
    end: int
    opening: str
    closing: str

    def leaves_open(self, text: str) -> bool:
        """Whether a text, such as the end of the prompt, leaves thinking open."""
        return text.rfind(self.opening) > text.rfind(self.closing)

    def split(
        self,
        completion: Completion,
        prompt: Sequence[int],
        tokenizer: Any,
        stop: Sequence[str],
        *,
        is_open: bool = False,
    ) -> Completion:
        """The answer to a chat, with the thinking in `reasoning`.

        Args:
            prompt: token ids.
            stop: texts that end an answer.
            is_open: whether the prompt ends inside the thinking, as with some templates.
        """
        ids = [*(completion.token_ids or ())]
        if completion.error or not (is_open or self.start in ids or self.end in ids):
            return completion
        first = next((one for one in ids if one in (self.start, self.end)), None)
        thinking, texts, count, at = is_open or first == self.end, {False: "", True: ""}, 0, 0
        for place, token in enumerate([*ids, None]):
            if token not in (self.start, self.end, None):
                continue
            if part := ids[at:place]:
                texts[thinking] += added_text(tokenizer, [*prompt[-CONTEXT:], *ids[:at]], part)
                count += len(part) * thinking
            thinking, at = token == self.start, place + 1
        row = _with(completion, texts[False], texts[True].removeprefix(LABEL), stop)
        return replace(row, reasoning_tokens=count)


@dataclass(frozen=True, slots=True)
class Channels:
    """The tokens of answers in channels: before a name, before a message, and after it."""

    start: int
    message: int
    end: int

    def split(
        self, completion: Completion, prompt: Sequence[int], tokenizer: Any, stop: Sequence[str]
    ) -> Completion:
        """As `Thinking.split`; text in other channels, or in none, is thinking."""
        ids = [*(completion.token_ids or ())]
        if completion.error or self.start not in ids:
            return completion
        answer, thoughts, count = "", list[str](), 0
        for name, message in self._messages(ids, tokenizer):
            text = added_text(tokenizer, prompt, message)
            if name.startswith("final"):
                answer += text
            else:
                thoughts.append(text)
                count += len(message)
        row = _with(completion, answer, "\n".join(thoughts), stop)
        return replace(row, reasoning_tokens=count)

    def _messages(self, ids: list[int], tokenizer: Any) -> Iterator[tuple[str, list[int]]]:
        """(channel's name, tokens of its message), in order."""
        starts = [at for at, token in enumerate(ids) if token == self.start]
        for start, after in zip(starts, [*starts[1:], len(ids)], strict=True):
            part = ids[start + 1 : after]
            if self.message in part:
                cut = part.index(self.message)
                text = part[cut + 1 :]
                ended = text.index(self.end) if self.end in text else len(text)
                yield tokenizer.decode(part[:cut]).strip(), text[:ended]


def _with(completion: Completion, answer: str, reasoning: str, stop: Sequence[str]) -> Completion:
    ends = [at for text in stop if (at := answer.find(text)) >= 0]
    return replace(
        completion, text=answer[: min(ends)] if ends else answer, reasoning=reasoning or None
    )
