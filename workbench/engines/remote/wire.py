"""The OpenAI protocol: request bodies, and strict reading of replies.

vLLM's extensions (token ids, structured output by choices and patterns, label ids) are used only if
the server is vLLM. Answers are matched to prompts by index; an unreadable one is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast

from workbench.engines.base import failure
from workbench.engines.chat import (
    ChatOptions,
    check_thinking_limit,
    is_prefill,
    without_thinking,
)
from workbench.engines.remote.retry import Failure, RejectedError, RetryableError
from workbench.engines.requests import misshapen
from workbench.errors import InputError
from workbench.types import Completion, Message, Prompt, Sampling, TokenLogprob

R = TypeVar("R")
Choice = Mapping[str, Any]
Body = dict[str, Any]
TEXTS, CHATS = "/completions", "/chat/completions"
CHAT_BATCH = "/chat/completions/batch"  # vLLM's path for several chats
ODD_JSON = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # on reading
MOST_TOKENS = 10**8  # maximum per request; a higher count is ignored
LEAST_LOG, ABOVE_ONE = 1e6, 0.01  # log-probabilities are from -LEAST_LOG to 0, plus rounding
# Finish reasons in lower case: the answer is complete, was cut, or is unusable.
STOPS = {
    "stop", "eos", "eos_token", "end_turn", "stop_sequence", "finish_reason_stop", "complete",
    "completed", "finished",
}  # fmt: skip
LENGTHS = {
    "length", "max_tokens", "model_length", "max_output_tokens", "max_completion_tokens",
    "finish_reason_max_tokens", "max_length", "model_context_window_exceeded",
}  # fmt: skip
ENDS = (
    "filter", "safety", "error", "tool", "function", "abort", "cancel", "repetition", "recitation",
    "blocklist", "prohibited", "spii", "refus", "fail", "timeout",
)  # fmt: skip
THOUGHTS = ("thinking", "reasoning", "thought", "reasoning_content", "summary", "redacted_thinking")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What every request to a server contains, and which extensions it supports.

    Attributes:
        model: its name on the server.
        vllm: whether it is vLLM, with token ids and structured output by choices and patterns.
        chats: the caller's options for chats.
    """

    model: str = ""
    vllm: bool = False
    chats: ChatOptions = field(default_factory=ChatOptions)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of one answer; without its ids, a share of the reply's sum."""

    prompt: int = 0
    completion: int = 0
    cached: int | None = None
    reasoning: int | None = None


def request(
    prompts: Sequence[Prompt], sampling: Sampling, to: Dialect, seed: int | None = None
) -> tuple[str, Body]:
    """Path and body of a request for texts or chats; several where the server accepts them."""
    body: Body = {"model": to.model, "temperature": sampling.temperature}
    settings = {
        "top_p": sampling.top_p if sampling.top_p < 1 else None,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": seed,
        "stop": list(sampling.stop) or None,
        "ignore_eos": sampling.ignore_eos or None,
        "max_tokens": sampling.max_tokens,
        "thinking_token_budget": sampling.max_reasoning_tokens,
        "logprobs": sampling.logprobs,
    }
    if to.vllm:
        # The server would fill in a missing value from the model's generation_config.json.
        body |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        body["return_token_ids"] = True
        if sampling.logprobs is not None:
            body["return_tokens_as_token_ids"] = True
    body |= {name: value for name, value in settings.items() if value is not None}
    body |= _structure(sampling, to)
    if isinstance(prompts[0], str):
        return TEXTS, body | {"prompt": prompts[0] if len(prompts) == 1 else list(prompts)}
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    return CHATS if len(prompts) == 1 else CHAT_BATCH, body | rendering(prompts, to)


def rendering(chats: Sequence[Prompt], to: Dialect) -> Body:
    """The messages, and how to turn them into the text that the model reads.

    A last message of the assistant's is continued; only vLLM has a setting for that. All chats of
    a request must agree in this.
    """
    sent = [to.chats.messages(cast("Sequence[Message]", chat)) for chat in chats]
    body: Body = {"messages": sent[0] if len(sent) == 1 else sent}
    if to.chats.chat_template_kwargs:
        body["chat_template_kwargs"] = dict(to.chats.chat_template_kwargs)
    if to.chats.chat_template:
        body["chat_template"] = to.chats.chat_template
    if to.vllm and is_prefill(sent[0]):
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return body


def naming(model: str, prompts: Any, token_ids: Sequence[int]) -> Body:
    """A request to vLLM for the log-probabilities of these tokens after each text."""
    return {
        "model": model,
        "prompt": prompts,
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 0,
        "logprob_token_ids": list(token_ids),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def _structure(sampling: Sampling, to: Dialect) -> Body:
    if sampling.json_schema is not None:
        schema = {"name": "answer", "schema": dict(sampling.json_schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    kinds = {"choice": sampling.choices and list(sampling.choices), "regex": sampling.regex}
    wanted = {name: value for name, value in kinds.items() if value is not None}
    if wanted and not to.vllm:
        raise InputError(
            f"{next(iter(wanted))}: only a vLLM server can restrict answers to choices or a "
            "pattern; set json_schema, or read the answer yourself"
        )
    return {"structured_outputs": wanted} if wanted else {}


def check(sampling: Sampling, to: Dialect, prompt: Prompt) -> None:
    """Refuse what only vLLM supports, before anything is sent; `prompt` is one of the call's."""
    _structure(sampling, to)
    check_thinking_limit(prompt, sampling)
    if sampling.max_reasoning_tokens is not None and not to.vllm:
        raise InputError(
            "max_reasoning_tokens: only a vLLM server has a limit of thinking alone; leave it out: "
            "max_tokens is for thinking and answer together"
        )
    if to.chats.chat_template and not to.vllm:
        raise InputError("chat_template: only a vLLM server accepts one; leave it out")


def choices_in_order(reply: Mapping[str, Any], count: int) -> list[Choice | None]:
    """The `count` choices of a reply in the order of the prompts; None for a missing one."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise RetryableError(f"the reply has no choices: {reply!s}")
    ordered: list[Choice | None] = [None] * count
    for position, choice in enumerate(choices):
        index = choice.get("index", position) if isinstance(choice, dict) else None
        if not isinstance(index, int) or not 0 <= index < count:
            raise RetryableError(f"the reply has a choice for prompt {index!r} of {count}")
        if ordered[index] is not None:
            raise RetryableError(f"the reply has two choices for prompt {index}")
        ordered[index] = choice
    return ordered


def read_each(
    reply: Mapping[str, Any], count: int, read_one: Callable[[int, Choice, TokenCounts], R]
) -> list[R | Failure | None]:
    """What `read_one` returns for each prompt's choice; None for a missing choice."""
    results: list[R | Failure | None] = [None] * count
    counts = _token_counts(reply, count)
    for i, choice in enumerate(choices_in_order(reply, count)):
        try:
            results[i] = None if choice is None else read_one(i, choice, counts[i])
        except RejectedError as error:
            results[i] = Failure(str(error))
        except (RetryableError, *ODD_JSON) as error:
            if count == 1:
                raise RetryableError(f"the reply is malformed ({error})") from None
    return results


def read(
    choice: Choice,
    sampling: Sampling,
    counts: TokenCounts,
    note: Callable[[str], None] = lambda _: None,
) -> Completion:
    """One answer; `note` is called with what is odd about a usable answer."""
    text, reasoning, refusal = _text(choice)
    prompt, generated = choice.get("prompt_token_ids"), choice.get("token_ids")
    prompt_tokens = len(prompt) if isinstance(prompt, list) else counts.prompt
    finish, reason = _finish(choice.get("finish_reason"), text or reasoning, note)
    if refusal or reason:
        return failure(f"refused: {refusal}" if refusal else str(reason), prompt_tokens, text)
    if wrong := misshapen(sampling, text, finish):
        return failure(wrong, prompt_tokens, text)
    return Completion(
        text=text,
        finish_reason=finish,
        token_ids=token_ids(choice),
        logprobs=None if sampling.logprobs is None else logprobs(choice, sampling.logprobs),
        prompt_tokens=prompt_tokens,
        completion_tokens=len(generated) if isinstance(generated, list) else counts.completion,
        cached_tokens=counts.cached,
        reasoning=reasoning,
        # vLLM 0.32 reports 0 for most models if the prompt began the thinking.
        reasoning_tokens=counts.reasoning or (None if reasoning else 0),
    )


def cut(answer: Completion, stop: Sequence[str]) -> Completion:
    """An answer up to the first of `stop`, for a server that does not stop there."""
    ends = [at for text in stop if (at := answer.text.find(text)) >= 0]
    if not ends:
        return answer
    kept: list[TokenLogprob] = []
    length = 0
    for token in answer.logprobs or ():
        if length >= min(ends):
            break
        kept.append(token)
        length += len(str(token.token_id))
    logprobs = None if answer.logprobs is None else tuple(kept)
    text = answer.text[: min(ends)]
    return replace(answer, text=text, finish_reason="stop", token_ids=None, logprobs=logprobs)


def _finish(
    given: object, text: str | None, note: Callable[[str], None]
) -> tuple[Literal["stop", "length"], str | None]:
    """(finish reason, reason of a failure or None) of an answer."""
    name = str(given or "").lower()
    if name in LENGTHS:
        return "length", None
    if name in STOPS:
        return "stop", None
    if not text or any(word in name for word in ENDS):
        return "stop", f"the server ended it: {given}"
    note(f"finish_reason={given!r} with a text: counted as a stop")
    return "stop", None


def _token_counts(reply: Mapping[str, Any], count: int) -> list[TokenCounts]:
    """Each answer's share of the counts; they add up exactly. Cached tokens need one answer only.

    An invalid count is ignored: the answer is still usable.
    """
    usage = _mapping(reply.get("usage"))
    prompt, completion = (_token_count(usage.get(f"{x}_tokens")) for x in ("prompt", "completion"))
    details = _mapping(usage.get("prompt_tokens_details"))
    cached = _token_count(details.get("cached_tokens")) if count == 1 else None
    if cached is not None and cached > (prompt or 0):
        cached = None
    details = _mapping(usage.get("completion_tokens_details"))
    thought = _token_count(details.get("reasoning_tokens"))
    thoughts = [None] * count if thought is None else _shares(thought, count)
    shares = zip(_shares(prompt or 0, count), _shares(completion or 0, count), strict=True)
    return [TokenCounts(*pair, cached, one) for pair, one in zip(shares, thoughts, strict=True)]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _token_count(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def _shares(total: int, count: int) -> list[int]:
    return [total // count + (i < total % count) for i in range(count)]


def token_ids(choice: Mapping[str, Any], name: str = "token_ids") -> tuple[int, ...] | None:
    """The token ids that vLLM adds to a choice."""
    ids = choice.get(name)
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        return None
    return tuple(ids)


def _text(choice: Choice) -> tuple[str, str | None, str | None]:
    """(text, reasoning, refusal) of a completion or a chat."""
    message = choice.get("message")
    if message is None:
        if not isinstance(choice.get("text"), str):
            raise RetryableError(f"the reply has no text: {choice!s}")
        return _valid(choice["text"]), None, None
    if not isinstance(message, dict):
        raise RetryableError(f"the reply has no message: {choice!s}")
    text, thoughts = _parts(message.get("content"))
    apart = _thought(message.get("reasoning") or message.get("reasoning_content"))
    reasoning = apart + thoughts or None
    if text and not reasoning:  # some servers leave the thinking in the answer
        text, reasoning = without_thinking(text)
    refusal = str(message.get("refusal") or "") or None
    cut_short = str(choice.get("finish_reason")).lower() in LENGTHS  # while thinking unseen
    if text is None and not (refusal or reasoning or cut_short):
        if message.get("tool_calls") or message.get("function_call"):
            return "", None, "the model calls a tool and returns no text"
        raise RejectedError("the reply's message has no content")
    return text or "", reasoning, refusal


def _parts(content: object) -> tuple[str | None, str]:
    """(text, thinking) of a message's content: a text, or parts of which some are thinking."""
    if content is None:
        return None, ""
    if isinstance(content, str):
        return _valid(content), ""
    if not isinstance(content, list):
        raise RetryableError(f"the message's content is not text: {content!s}")
    texts, thoughts = "", ""
    for part in content:
        fields = part if isinstance(part, dict) else {"text": part}
        kind, text = fields.get("type", "text"), fields.get("text")
        if kind in THOUGHTS:
            thoughts += _thought(part)
        elif kind in ("text", "output_text") and isinstance(text, str):
            texts += _valid(text)
        else:
            raise RetryableError(f"the message's content has a part that is not text: {part!s}")
    return texts, thoughts


def _thought(value: object) -> str:
    """Thinking as text where it can be read; formats vary, and it does not affect the answer."""
    if isinstance(value, list):
        return "".join(map(_thought, value))
    if isinstance(value, dict):
        return _thought(next((v for name in (*THOUGHTS, "text") if (v := value.get(name))), None))
    return _valid(value) if isinstance(value, str) else ""


def _valid(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which JSON allows and files cannot hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def logprobs(choice: Choice, most: int | None = None) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of a completion or a chat, with the likeliest tokens per position.

    Servers include the chosen token, even if it is not among the `most` likeliest.
    """
    listed = choice.get("logprobs")
    if not isinstance(listed, dict):
        raise RejectedError("the reply has no log-probabilities, although they were requested")
    rows: list[tuple[str, object, Any]]
    if "content" in listed:
        rows = [(one["token"], one["logprob"], _pairs(one)) for one in listed["content"]]
    else:
        tops = listed.get("top_logprobs") or [{}] * len(listed["tokens"])
        pairs = [(top or {}).items() for top in tops]
        rows = list(zip(listed["tokens"], listed["token_logprobs"], pairs, strict=True))
    return tuple(
        TokenLogprob(_token(token), _logprob(value), _likeliest(top, most))
        for token, value, top in rows
    )


def _pairs(place: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [(one["token"], one["logprob"]) for one in place.get("top_logprobs") or ()]


def _likeliest(top: Any, most: int | None) -> tuple[tuple[int | str, float], ...]:
    pairs = [(_token(token), _logprob(value)) for token, value in top]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:most])


def _token(text: str) -> int | str:
    name, colon, number = text.partition(":")
    return int(number) if name == "token_id" and colon and number.isdigit() else text


def _logprob(value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -LEAST_LOG <= value <= ABOVE_ONE:  # type: ignore[operator]
        raise RejectedError(f"a log-probability in the reply is {value!r}, not a valid number")
    return float(value)  # type: ignore[arg-type]
