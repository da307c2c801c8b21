"""The OpenAI protocol on the server's side: requests and errors.

Each setting of a request is applied, refused with a remedy, or named among the answer's `warnings`;
none is silently ignored. An explicit null counts as absent.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.engines.diffusion.denoising import Denoising
from workbench.engines.requests import plan
from workbench.errors import InputError
from workbench.serving.access import error_body
from workbench.types import Message, Sampling

MAX_TOKENS = 256  # default of a request
STOPS = 256
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
B = TypeVar("B", bound=BaseModel)
TextPrompt = str | list[int] | list[Message]
HINTS = {
    "messages": "each must have a role, and content that is a text or a list of text parts",
    "n": "must be 1; for several answers send the prompt several times, each with a seed",
    "prompt": "must be a text, a list of texts, token ids, or a list of lists of token ids",
    "stop": "must be a text or a list of texts",
}
TEXT_ONLY = "only free text is generated; ask for the format in the prompt and check the answer"
NO_TOOLS = "this model cannot call tools"
REFUSED = {
    "best_of": "only one answer is generated",
    "echo": "the prompt is not repeated; put it before the answer yourself",
    "functions": NO_TOOLS,
    "guided_choice": TEXT_ONLY,
    "guided_grammar": TEXT_ONLY,
    "guided_json": TEXT_ONLY,
    "guided_regex": TEXT_ONLY,
    "logit_bias": "it is not supported",
    "response_format": TEXT_ONLY,
    "structured_outputs": TEXT_ONLY,
    "tools": NO_TOOLS,
}
# Values without effect, of fields that are refused or ignored.
NEUTRAL: dict[str, Any] = {
    "best_of": 1, "echo": False, "frequency_penalty": 0, "functions": [], "logit_bias": {},
    "presence_penalty": 0, "repetition_penalty": 1, "response_format": {"type": "text"},
    "tools": [],
}  # fmt: skip


class ApiError(Exception):
    """A reply that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.body = error_body(message, self.kind, code, param)

    @classmethod
    def of(cls, error: InputError) -> ApiError:
        """A bad request, with the field's name from the beginning of the message."""
        named = re.match(r"(\w+)=", str(error))
        return cls(400, str(error), param=named[1] if named else None)


class _JsonBody(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class TextPart(BaseModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(_JsonBody):
    """A message; content in parts is joined to one text."""

    role: str
    content: str | list[TextPart]

    def plain(self) -> Message:
        """The message in the form for chat templates."""
        parts = [self.content] if isinstance(self.content, str) else [p.text for p in self.content]
        return {**(self.model_extra or {}), "role": self.role, "content": "".join(parts)}


class GenerationBody(_JsonBody, ABC):
    """The fields that chats and completions share."""

    chat: ClassVar[bool]
    model: str | None = Field(None, description="Default: the model that is served.")
    max_tokens: int | None = Field(None, description=f"Default {MAX_TOKENS}, or what fits.")
    max_completion_tokens: int | None = Field(None, description="Takes precedence over max_tokens.")
    temperature: float | None = Field(None, description="Default 0 (greedy), not 1.")
    top_p: float | None = None
    top_k: int | None = Field(None, description="-1 is off.")
    min_p: float | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = Field(None, description="Text is sent as its blocks are finished.")
    stream_options: dict[str, bool | None] | None = None
    steps: int | None = Field(None, description="Denoising steps; disables a default threshold.")
    block_length: int | None = None
    threshold: float | None = Field(None, description="Disables default steps.")
    cfg_scale: float | None = None
    remasking: str | None = None
    cache: str | None = None

    @abstractmethod
    def prompts(self) -> Sequence[TextPrompt]:
        """The prompts: texts, token ids or messages."""

    @abstractmethod
    def likeliest(self) -> int | None:
        """Number of likeliest tokens to report per token; None is no log-probabilities."""

    @property
    def most(self) -> int | None:
        """The maximum number of tokens, if the request sets it."""
        most = self.max_completion_tokens
        return self.max_tokens if most is None else most

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool((self.stream_options or {}).get("include_usage"))

    def served_name(self, names: Sequence[str]) -> str:
        """The model's name if it is one of these; by default, the first.

        Raises:
            ApiError: it is another model's name.
        """
        name = self.model or names[0]
        if name in names:
            return name
        message = f"the model {name!r:.80} does not exist; known: {', '.join(names)}"
        raise ApiError(404, message, param="model", code="model_not_found")

    def sampling(self) -> Sampling:
        """How to continue the prompts; `fit` sets the maximum number of tokens.

        Raises:
            ApiError, InputError: a value is out of its range.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > STOPS or any(len(stop) > STOPS for stop in stops):  # searched often
            raise ApiError(400, f"stop: at most {STOPS} texts of {STOPS} characters", param="stop")
        settings: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k in {-1, 0} else self.top_k,
            "min_p": self.min_p,
            "stop": tuple(stops),
            "logprobs": self.likeliest(),
            "ignore_eos": self.ignore_eos,
        }
        return Sampling(**{name: value for name, value in settings.items() if value is not None})

    def denoising(self, default: Denoising) -> Denoising:
        """How to fill the canvas; `default` for fields that the request does not set.

        Raises:
            InputError: a value is out of its range, or two values exclude each other.
        """
        named = {setting.name: getattr(self, setting.name) for setting in fields(Denoising)}
        settings = {name: value for name, value in named.items() if value is not None}
        if "steps" in settings:
            settings.setdefault("threshold", None)
        elif "threshold" in settings:
            settings["steps"] = None
        return replace(default, **settings)

    def seeds(self) -> Sequence[int | None]:
        """A seed per prompt, so that equal prompts differ; derived as by engines in process."""
        prompts: Any = self.prompts()
        if self.seed is None or len(prompts) == 1:
            return [self.seed] * len(prompts)
        drawn = plan(prompts, Sampling(temperature=1.0, seed=self.seed), hashlib.sha256())
        return [one.seed for one, _, _ in drawn]

    def warnings(self) -> Sequence[str]:
        """A warning for each setting without effect.

        Raises:
            ApiError: a setting that cannot be applied, with the reason.
        """
        extra = {**(self.stream_options or {}), **(self.model_extra or {})}
        extra.pop("include_usage", None)
        asked_for = [k for k, v in extra.items() if v is not None and v != NEUTRAL.get(k)]
        for name in asked_for:
            if name in REFUSED:
                raise ApiError(400, f"{name}: {REFUSED[name]}", param=name)
        return [f"{name} has no effect here" for name in asked_for]

    def fit(self, sampling: Sampling, tokens: int, context: int) -> Sampling:
        """The sampling for a prompt of so many tokens.

        Raises:
            ApiError: the context has no room for the requested tokens.
        """
        room = context - tokens
        most = min(MAX_TOKENS, max(room, 1)) if self.most is None else self.most
        if most > room:
            raise self.too_long(f"{tokens} input tokens", most, context)
        return replace(sampling, max_tokens=most)

    def too_long(self, tokens: str, most: int, context: int) -> ApiError:
        """The error for a prompt that is too long, in the wording that clients parse."""
        return ApiError(
            400,
            f"This model's maximum context length is {context} tokens. However, your request has "
            f"{tokens} and asks for {most} output tokens. Please reduce the length of the input "
            "messages or max_tokens.",
            param="messages" if self.chat else "prompt",
            code="context_length_exceeded",
        )


class ChatBody(GenerationBody):
    """The body of `/v1/chat/completions`."""

    chat = True
    messages: list[ChatMessage] = Field(min_length=1)
    logprobs: bool | None = Field(None, description="As of the step that committed the token.")
    top_logprobs: int | None = Field(None, ge=0, le=20)

    def prompts(self) -> Sequence[TextPrompt]:
        """The chat."""
        return [[message.plain() for message in self.messages]]

    def likeliest(self) -> int | None:
        """As in the parent class."""
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None


class CompletionBody(GenerationBody):
    """The body of `/v1/completions`."""

    chat = False
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(
        None, ge=0, le=20, description="As of the step that committed the token."
    )

    def prompts(self) -> Sequence[TextPrompt]:
        """One prompt or several."""
        prompts: Any = self.prompt
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        if not prompts or not all(prompts):
            why = "prompt is empty: a model needs some text to continue"
            raise ApiError(400, why, param="prompt")
        return list(prompts)

    def likeliest(self) -> int | None:
        """As in the parent class."""
        return self.logprobs


class TokenizeBody(_JsonBody):
    """The body of `/tokenize`: a prompt or messages."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)


class DetokenizeBody(_JsonBody):
    """The body of `/detokenize`."""

    tokens: list[int]


def parse(kind: type[B], raw: bytes) -> B:
    """Parse a request's body.

    Raises:
        ApiError: it is not a JSON object with these fields.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        hint = HINTS.get(param or "")
        why = f"{hint}; {first['input']!r:.80} is not valid" if hint else first["msg"]
        raise ApiError(400, f"{param}: {why}" if param else why, param=param) from None
