"""The OpenAI protocol: bodies of requests, and answers read strictly.

What vLLM adds (token ids, structured output by choices and patterns, label ids) is used where the
server is vLLM. An answer is placed by its index; what cannot be read is a fault, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from workbench.engines.base import failure
from workbench.engines.chat import ChatOptions, is_prefill
from workbench.engines.checks import misshapen
from workbench.engines.remote.faults import Broken, Failed, Refused
from workbench.errors import InputError
from workbench.types import Completion, Message, Prompt, Sampling, TokenLogprob


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server understands beyond the protocol's core.

    Attributes:
        vllm: it is vLLM, with token ids and structured output by choices and patterns.
        chats: what the caller decided about chats.
    """

    vllm: bool = False
    chats: ChatOptions = field(default_factory=ChatOptions)


Choice = Mapping[str, Any]
BAD = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # of odd JSON
MOST_TOKENS = 10**8  # of a request, above which a count is no count
LEAST_LOG, ABOVE_ONE = 1e6, 0.01  # log-probabilities are from -LEAST_LOG to 0, and a rounding
# How servers say that an answer is whole, that it was cut, or that it is none; in lower case.
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
R = TypeVar("R")


def completions(
    prompts: Sequence[Prompt], sampling: Sampling, seed: int | None, to: Dialect
) -> dict[str, Any]:
    """The body for `/completions`: several prompts in one request."""
    body = _sampling(sampling, seed, to)
    body["prompt"] = prompts[0] if len(prompts) == 1 else list(prompts)
    body["max_tokens"] = sampling.max_tokens
    if sampling.logprobs is not None:
        body["logprobs"] = sampling.logprobs
    return body


def chat(
    chats: Sequence[Prompt], sampling: Sampling, seed: int | None, to: Dialect
) -> dict[str, Any]:
    """The body for `/chat/completions`, or with several chats for vLLM's `…/batch`."""
    body = _sampling(sampling, seed, to)
    body |= rendering(chats, to)
    body["max_tokens"] = sampling.max_tokens
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    return body


def rendering(chats: Sequence[Prompt], to: Dialect) -> dict[str, Any]:
    """The messages, and how they become the text that the model reads.

    A last message of the assistant's is to be continued; only vLLM is asked for that in words.
    Chats in one request end alike.
    """
    sent = [to.chats.messages(cast("Sequence[Message]", chat)) for chat in chats]
    body: dict[str, Any] = {"messages": sent[0] if len(sent) == 1 else sent}
    if to.chats.chat_template_kwargs:
        body["chat_template_kwargs"] = dict(to.chats.chat_template_kwargs)
    if to.chats.chat_template:
        body["chat_template"] = to.chats.chat_template
    if to.vllm and is_prefill(sent[0]):
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return body


def _sampling(sampling: Sampling, seed: int | None, to: Dialect) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": sampling.temperature}
    given = {
        "top_p": sampling.top_p if sampling.top_p < 1 else None,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": seed,
        "stop": list(sampling.stop) or None,
        "ignore_eos": sampling.ignore_eos or None,
    }
    if to.vllm:
        # What is left out would be filled in from the model's generation_config.json.
        body |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        body["return_token_ids"] = True
        if sampling.logprobs is not None:
            body["return_tokens_as_token_ids"] = True
    body |= {name: value for name, value in given.items() if value is not None}
    return body | _structure(sampling, to)


def _structure(sampling: Sampling, to: Dialect) -> dict[str, Any]:
    if sampling.json_schema is not None:
        schema = {"name": "answer", "schema": dict(sampling.json_schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    structure = {"choice": sampling.choices and list(sampling.choices), "regex": sampling.regex}
    asked = {name: value for name, value in structure.items() if value is not None}
    if not asked:
        return {}
    if not to.vllm:
        raise InputError(
            f"{next(iter(asked))}: only a vLLM server keeps answers to choices or a pattern; "
            "give json_schema, or read the answer yourself"
        )
    return {"structured_outputs": asked}


def check(sampling: Sampling, to: Dialect) -> None:
    """Refuse what the server cannot do, before anything is sent.

    Raises:
        InputError: structured output that only vLLM has, or a chat template for another server.
    """
    _structure(sampling, to)
    if to.chats.chat_template and not to.vllm:
        raise InputError("chat_template: only a vLLM server takes one; leave it out")


def by_index(reply: Mapping[str, Any], count: int) -> list[Choice | None]:
    """The `count` choices of a reply in the order of the prompts, None where one is not there.

    Raises:
        Broken: there are no choices, or two for one prompt.
    """
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Broken(f"the reply has no choices: {reply!s}")
    placed: list[Choice | None] = [None] * count
    for position, choice in enumerate(choices):
        index = choice.get("index", position) if isinstance(choice, dict) else None
        if not isinstance(index, int) or not 0 <= index < count:
            raise Broken(f"the reply has a choice for prompt {index!r} of {count}")
        if placed[index] is not None:
            raise Broken(f"the reply has two choices for prompt {index}")
        placed[index] = choice
    return placed


def each(
    reply: Mapping[str, Any], count: int, read_one: Callable[[int, Choice, Usage], R]
) -> list[R | Failed | None]:
    """What `read_one` makes of each prompt's choice; None where there is none to be read.

    Raises:
        Broken: the reply is malformed.
    """
    results: list[R | Failed | None] = [None] * count
    shares = Usage.shares(reply, count)
    for i, choice in enumerate(by_index(reply, count)):
        try:
            results[i] = None if choice is None else read_one(i, choice, shares[i])
        except Refused as fault:
            results[i] = Failed(str(fault))
        except (Broken, *BAD) as error:
            if count == 1:
                raise Broken(f"the reply is malformed ({error})") from None
    return results


def read(
    choice: Choice, sampling: Sampling, usage: Usage, note: Callable[[str], None] = lambda _: None
) -> Completion:
    """One answer; `note` is told what is odd about it, though it counts.

    Raises:
        Broken: it has no text.
        Refused: log-probabilities that are missing or not numbers.
    """
    text, reasoning, refusal = _text(choice)
    prompt, generated = _count(choice, "prompt_token_ids"), _count(choice, "token_ids")
    prompt_tokens = usage.prompt if prompt is None else prompt
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
        completion_tokens=usage.completion if generated is None else generated,
        cached_tokens=usage.cached,
        reasoning=reasoning,
    )


def _finish(
    told: object, text: str | None, note: Callable[[str], None]
) -> tuple[Literal["stop", "length"], str | None]:
    """How an answer ended, and why it is none."""
    name = str(told or "").lower()
    if name in STOPS:
        return "stop", None
    if name in LENGTHS:
        return "length", None
    if not text or any(word in name for word in ENDS):
        return "stop", f"the server ended it: {told}"
    note(f"finish_reason={told!r} with a text is taken for a stop")
    return "stop", None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer where it does not carry its ids: a share of what the reply sums up."""

    prompt: int = 0
    completion: int = 0
    cached: int | None = None

    @classmethod
    def shares(cls, reply: Mapping[str, Any], count: int) -> list[Usage]:
        """Each answer's share; their sum is exact. Cached tokens are told of one answer only.

        What is no count of tokens is left out: an answer is worth more than its bill.
        """
        usage = _mapping(reply.get("usage"))
        details = _mapping(usage.get("prompt_tokens_details"))
        cached = _tokens(details.get("cached_tokens")) if count == 1 else None
        prompt, done = (_tokens(usage.get(f"{x}_tokens")) or 0 for x in ("prompt", "completion"))
        if cached is not None and cached > prompt:
            cached = None
        return [cls(_share(prompt, count, i), _share(done, count, i), cached) for i in range(count)]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _tokens(value: object) -> int | None:
    """A count of tokens, or None where it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return value if good else None  # type: ignore[return-value]


def _share(total: int, count: int, index: int) -> int:
    return total // count + (index < total % count)


def token_ids(choice: Mapping[str, Any], name: str = "token_ids") -> tuple[int, ...] | None:
    """The token ids that vLLM adds to a choice."""
    ids = choice.get(name)
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        return None
    return tuple(ids)


def _count(choice: Choice, name: str) -> int | None:
    ids = choice.get(name)
    return len(ids) if isinstance(ids, list) else None


def _text(choice: Choice) -> tuple[str, str | None, str | None]:
    """(text, reasoning, refusal) of a completion or a chat."""
    message = choice.get("message")
    if message is None:
        text = choice.get("text")
        if not isinstance(text, str):
            raise Broken(f"the reply has no text: {choice!s}")
        return _valid(text), None, None
    if not isinstance(message, dict):
        raise Broken(f"the reply has no message: {choice!s}")
    text, thought = _parts(message.get("content"))
    apart = _thought(message.get("reasoning") or message.get("reasoning_content"))
    reasoning = apart + thought or None
    refusal = message.get("refusal")
    refusal = str(refusal) if refusal else None
    if text is None and not refusal and not reasoning:
        if message.get("tool_calls") or message.get("function_call"):
            return "", None, "the model calls a tool, and answers with no text"
        raise Refused("the reply's message has no content")
    return text or "", reasoning, refusal


def _parts(content: object) -> tuple[str | None, str]:
    """(text, thinking) of a message's content: a text, or parts of which some may be thoughts.

    Raises:
        Broken: it is neither, or a part is something else.
    """
    if content is None:
        return None, ""
    if isinstance(content, str):
        return _valid(content), ""
    if not isinstance(content, list):
        raise Broken(f"the message's content is no text: {content!s}")
    texts, thoughts = [], []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind in THOUGHTS:
            thoughts.append(_thought(part))
        elif kind in ("text", "output_text") and isinstance(text, str):
            texts.append(_valid(text))
        else:
            raise Broken(f"the message's content has a part that is no text: {part!s}")
    return "".join(texts), "".join(thoughts)


def _thought(told: object) -> str:
    """Thinking as text, as far as it is; servers have many forms, and no answer hangs on it."""
    if isinstance(told, list):
        return "".join(map(_thought, told))
    if isinstance(told, dict):
        return _thought(next((told[name] for name in (*THOUGHTS, "text") if told.get(name)), None))
    return _valid(told) if isinstance(told, str) else ""


def _valid(text: str) -> str:
    """The text, but half a character, which JSON can spell and no file can hold, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def logprobs(choice: Choice, most: int | None = None) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of a completion or a chat, with the likeliest tokens of each place.

    Servers list the chosen one too, though it may not be one of the `most` likeliest.

    Raises:
        Refused: they are missing, or not numbers.
    """
    told = choice.get("logprobs")
    if not isinstance(told, dict):
        raise Refused("the reply has no log-probabilities, though they were asked for")
    if "content" in told:
        rows = [(t["token"], t["logprob"], _pairs(t.get("top_logprobs"))) for t in told["content"]]
    else:
        tops = told.get("top_logprobs") or [{}] * len(told["tokens"])
        tops = [(top or {}).items() for top in tops]
        rows = list(zip(told["tokens"], told["token_logprobs"], tops, strict=True))
    return tuple(
        TokenLogprob(_token(token), _number(value), _likeliest(top, most))
        for token, value, top in rows
    )


def _likeliest(top: Any, most: int | None) -> tuple[tuple[int | str, float], ...]:
    found = [(_token(token), _number(value)) for token, value in top]
    return tuple(sorted(found, key=lambda pair: -pair[1])[:most])


def _pairs(top: Any) -> list[tuple[str, float]]:
    return [(one["token"], one["logprob"]) for one in top or ()]


def _token(text: str) -> int | str:
    name, colon, number = text.partition(":")
    return int(number) if name == "token_id" and colon and number.isdigit() else text


def _number(value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -LEAST_LOG <= value <= ABOVE_ONE:  # type: ignore[operator]
        raise Refused(f"a log-probability in the reply is {value!r}, no such number")
    return float(value)  # type: ignore[arg-type]
