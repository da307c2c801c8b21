"""The OpenAI protocol, seen from a server: what a request asks for, and errors.

Nothing that a request asks for is dropped in silence: it is done, refused with what to do about
it, or named among the answer's `warnings`. An explicit null is as good as absent.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.engines.diffusion.denoising import Denoising
from workbench.errors import InputError
from workbench.store import digest
from workbench.types import Message, Sampling

MAX_TOKENS = 256  # where a request does not say
STOPS = 256
TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
B = TypeVar("B", bound=BaseModel)
HINTS = {
    "n": "must be 1; for several answers send the prompt several times, each with a seed",
    "prompt": "must be a text, a list of texts, token ids, or a list of lists of token ids",
    "stop": "must be a text or a list of texts",
}
REFUSED = {
    "best_of": "only one answer is made",
    "echo": "the prompt is not repeated; put it before the answer yourself",
    **dict.fromkeys(
        ("guided_choice", "guided_grammar", "guided_json", "guided_regex"),
        "only text is written; ask for a form in the prompt",
    ),
    "functions": "this model calls no tools",
    "logit_bias": "tokens cannot be favoured here",
    "response_format": "only text is written; ask for a form in the prompt and check the answer",
    "structured_outputs": "only text is written; ask for a form in the prompt",
    "tools": "this model calls no tools",
}
# Values that ask for nothing, of fields that are refused or have no effect.
NOTHING: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "frequency_penalty": (0,), "functions": ([],),
    "logit_bias": ({},), "presence_penalty": (0,), "repetition_penalty": (1,),
    "response_format": ({"type": "text"},), "tools": ([],),
}  # fmt: skip


class Refusal(Exception):  # noqa: N818
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.kind = TYPES.get(status, "invalid_request_error")
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    @classmethod
    def of(cls, error: InputError) -> Refusal:
        """A bad request, with the field that the message begins with."""
        named = re.match(r"(\w+)=", str(error))
        return cls(400, str(error), param=named[1] if named else None)

    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        told = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": told}


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Request(_Body):
    model: str | None = Field(None, description="Default: the model that is served.")
    max_tokens: int | None = Field(None, description=f"Default {MAX_TOKENS}, or what fits.")
    max_completion_tokens: int | None = Field(None, description="Wins over max_tokens.")
    temperature: float | None = Field(None, description="Default 0, which is greedy, and not 1.")
    top_p: float | None = None
    top_k: int | None = Field(None, description="-1 is off.")
    min_p: float | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = Field(None, description="Text comes as its blocks are finished.")
    stream_options: dict[str, bool | None] | None = None
    steps: int | None = Field(None, description="Denoising steps; puts a default threshold off.")
    block_length: int | None = None
    threshold: float | None = Field(None, description="Puts default steps off.")
    cfg_scale: float | None = None
    remasking: str | None = None
    cache: str | None = None


class Chat(_Request):
    """The body of `/v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    logprobs: bool | None = Field(None, description="As of the step that committed the token.")
    top_logprobs: int | None = Field(None, ge=0, le=20)


class Text(_Request):
    """The body of `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(
        None, ge=0, le=20, description="As of the step that committed the token."
    )


class Tokenize(_Body):
    """The body of `/tokenize`: a prompt or messages."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = Field(None, min_length=1)


class Detokenize(_Body):
    """The body of `/detokenize`."""

    tokens: list[int]


def parse(kind: type[B], raw: bytes) -> B:
    """Read a body.

    Raises:
        Refusal: it is no JSON object with these fields.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        said = HINTS.get(param or "") or first["msg"]
        raise Refusal(400, f"{param}: {said}" if param else said, param=param) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a request for text asks for.

    Attributes:
        chat: whether prompts are chats.
        model: the name it was asked by.
        prompts: texts, token ids or messages.
        seeds: one for each prompt; None is a fresh one.
        sampling: how to continue them; `fit` knows how far.
        max_tokens: as asked for.
        warnings: what has no effect here.
    """

    chat: bool
    model: str
    prompts: tuple[str | list[int] | list[Message], ...]
    seeds: tuple[int | None, ...]
    sampling: Sampling
    max_tokens: int | None
    denoising: Denoising
    stream: bool
    include_usage: bool
    warnings: tuple[str, ...]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, body: Chat | Text, names: Sequence[str], denoising: Denoising) -> Ask:
        """Check a request.

        Args:
            names: of the model; the first is what it is called where a request does not say.
            denoising: where a request does not say.

        Raises:
            Refusal: what cannot be done, with its reason.
            InputError: a value is out of its range.
        """
        model = body.model or names[0]
        if model not in names:
            known = ", ".join(names)
            raise Refusal(
                404,
                f"the model {model!r:.80} does not exist; known: {known}",
                param="model",
                code="model_not_found",
            )
        prompts = _prompts(body)
        options, most = dict(body.stream_options or {}), body.max_completion_tokens
        include_usage = bool(options.pop("include_usage", False))
        return cls(
            chat=isinstance(body, Chat),
            model=model,
            prompts=prompts,
            seeds=_seeds(body.seed, prompts),
            sampling=_sampling(body),
            max_tokens=body.max_tokens if most is None else most,
            denoising=_denoising(body, denoising),
            stream=bool(body.stream),
            include_usage=include_usage,
            warnings=_warnings({**options, **(body.model_extra or {})}),
        )

    def fit(self, tokens: int, context: int) -> Sampling:
        """The sampling of a prompt of so many tokens.

        Raises:
            Refusal: the context has no room for what is asked.
        """
        room = context - tokens
        wanted = min(MAX_TOKENS, max(room, 1)) if self.max_tokens is None else self.max_tokens
        if wanted > room:
            raise self.too_long(tokens, wanted, context)
        return replace(self.sampling, max_tokens=wanted)

    def too_long(self, tokens: int, wanted: int, context: int, *, or_more: bool = False) -> Refusal:
        """That the context has no room, in the words and numbers that clients read."""
        return Refusal(
            400,
            f"This model's maximum context length is {context} tokens. However, your request "
            f"has {tokens} input tokens{' or more' * or_more} and asks for {wanted} output "
            "tokens. Please reduce the length of the input messages or max_tokens.",
            param="messages" if self.chat else "prompt",
            code="context_length_exceeded",
        )


def _prompts(body: Chat | Text) -> tuple[str | list[int] | list[Message], ...]:
    if isinstance(body, Chat):
        return (messages(body.messages),)
    given: Any = body.prompt
    several = isinstance(given, list) and not (given and isinstance(given[0], int))
    prompts = tuple(given) if several else (given,)
    if not prompts or not all(prompts):
        raise Refusal(400, "prompt is empty: a model needs some text to continue", param="prompt")
    return prompts


def messages(given: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages as a chat template takes them; a content in parts becomes one text.

    Raises:
        Refusal: one has no role, or a content that is no text.
    """
    return [{**m, "role": _role(m), "content": _content(m.get("content"))} for m in given]


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    if not isinstance(role, str):
        raise Refusal(400, f"message {message!r:.80} has no role", param="messages")
    return role


def _content(given: Any) -> str:
    parts = given if isinstance(given, list) else [{"type": "text", "text": given}]
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            why = f"content {given!r:.80} is no text: only text is read"
            raise Refusal(400, why, param="messages")
        texts.append(text)
    return "".join(texts)


def _seeds(seed: int | None, prompts: Sequence[Any]) -> tuple[int | None, ...]:
    """Each prompt's own, so that equal prompts differ; as engines in process derive them."""
    if seed is None or len(prompts) == 1:
        return (seed,) * len(prompts)
    seeds, copies = [], Counter[str]()
    for prompt in prompts:
        text = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
        seeds.append(int.from_bytes(digest(seed, text, copies[text])[:7], "big"))
        copies[text] += 1
    return tuple(seeds)


def _sampling(body: Chat | Text) -> Sampling:
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > STOPS or any(len(stop) > STOPS for stop in stops):  # sought at every step
        raise Refusal(400, f"stop: at most {STOPS} texts of {STOPS} characters", param="stop")
    top = body.logprobs
    if isinstance(body, Chat):
        if body.top_logprobs and not body.logprobs:
            raise Refusal(400, "top_logprobs needs logprobs=true", param="top_logprobs")
        top = (body.top_logprobs or 0) if body.logprobs else None
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k in {-1, 0} else body.top_k,
        "min_p": body.min_p,
        "stop": tuple(stops),
        "logprobs": top,
        "ignore_eos": body.ignore_eos,
    }
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def _denoising(body: Chat | Text, default: Denoising) -> Denoising:
    given = {setting.name: getattr(body, setting.name) for setting in fields(Denoising)}
    given = {name: value for name, value in given.items() if value is not None}
    if "steps" in given:
        default = replace(default, threshold=None)
    if "threshold" in given:
        default = replace(default, steps=None)
    return replace(default, **given)


def _warnings(extra: Mapping[str, Any]) -> tuple[str, ...]:
    asked = [k for k, v in extra.items() if v is not None and v not in NOTHING.get(k, ())]
    for name in asked:
        if name in REFUSED:
            raise Refusal(400, f"{name}: {REFUSED[name]}", param=name)
    return tuple(f"{name} has no effect here" for name in asked)
