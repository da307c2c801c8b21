"""Bodies of OpenAI-compatible answers; their texts depend only on the prompts.

A prompt's tokens are its bytes, an answer's tokens are its words. The text is never cut, so it
contains its prompt for any `max_tokens`: the last token holds the rest.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from workbench.errors import InputError

CHAT_MOST = 2048
CONTENT = {"fewer", "shuffled", "duplicate", "nan", "no_logprobs", "empty", "null", "finish"}
METRICS = """# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{{engine="0",model_name="{0}"}} {1}.0
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{{engine="0",model_name="{0}"}} {2}.0
"""
Json = dict[str, Any]
Tops = Callable[[str], Mapping[str, float]]
"""The likeliest next tokens after a prompt, with their log-probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Faults of the server, all off by default. Each `rate_` is a probability per request.

    Attributes:
        rate_429, rate_500, rate_502: an error; 502 comes as an HTML page.
        rate_reset: the connection is reset without an answer.
        rate_half: the body stops halfway and the connection is closed.
        rate_malformed: status 200 with cut or garbled JSON.
        rate_hang: no answer, for as long as the client waits.
        rate_fewer, rate_duplicate: a choice is missing; two have the same index.
        rate_shuffled: all choices, with the right indexes, in another order.
        rate_nan, rate_no_logprobs, rate_empty, rate_null, rate_finish: of one choice: a logprob
            that is NaN, `logprobs` or text that is null, an empty text, an unknown reason.
        retry_after: header of each 429, in seconds or as given; `None` for no header.
        poison, poison_status: a request with this text in a prompt always gets this status.
        multi: whether a request may have several prompts; else it gets 400.
        dead_after, dead_closes: after so many requests each gets 500, or is reset.
    """

    rate_429: float = 0.0
    rate_500: float = 0.0
    rate_502: float = 0.0
    rate_reset: float = 0.0
    rate_half: float = 0.0
    rate_malformed: float = 0.0
    rate_hang: float = 0.0
    rate_fewer: float = 0.0
    rate_shuffled: float = 0.0
    rate_duplicate: float = 0.0
    rate_nan: float = 0.0
    rate_no_logprobs: float = 0.0
    rate_empty: float = 0.0
    rate_null: float = 0.0
    rate_finish: float = 0.0
    retry_after: float | str | None = 0.05
    poison: str | None = None
    poison_status: int = 400
    multi: bool = True
    dead_after: int | None = None
    dead_closes: bool = False

    def __post_init__(self) -> None:
        for name, rate in rates(self)[0] + rates(self)[1]:
            if not 0 <= rate <= 1:
                raise InputError(f"rate_{name}={rate!r}: must be from 0 to 1")


@cache
def rates(faults: Faults) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Probabilities above 0, by their names in the log: of whole answers, and of their content."""
    names = [one.name.removeprefix("rate_") for one in fields(faults) if "rate_" in one.name]
    above = [(name, rate) for name in names if (rate := getattr(faults, f"rate_{name}"))]
    return [p for p in above if p[0] not in CONTENT], [p for p in above if p[0] in CONTENT]


@dataclass(frozen=True, slots=True)
class Query:
    """The content of a request: `keys` are its prompts as texts, `ids` their tokens."""

    body: Json
    chat: bool
    keys: tuple[str, ...]
    ids: tuple[Sequence[int], ...]
    n: int
    most: int
    arrived: float = field(default_factory=time.monotonic)
    tops: Tops | None = None
    weights: int = 0


def parse(path: str, body: Json) -> Query:
    """Parse the body of a POST to one of the generating paths.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the body is invalid.
    """
    chat = "/chat/" in path
    n = body.get("n") or 1
    most = (
        body.get("max_completion_tokens") or body.get("max_tokens") or (CHAT_MOST if chat else 16)
    )
    if not (isinstance(n, int) and isinstance(most, int) and n > 0 and most > 0):
        raise ValueError(f"n={n!r} and max_tokens={most!r} must be whole numbers from 1")
    if chat:
        batch = path.endswith("/batch")
        talks = body["messages"] if batch else [body["messages"]]
        if (batch and n > 1) or not talks or not all(talks):
            raise ValueError("messages must not be empty, and a batch has n=1")
        keys = tuple(map(_text, talks))
        return Query(body, True, keys, tuple(key.encode() for key in keys), n, most)
    many = body["prompt"]
    # A list of numbers is one prompt, a list of anything else is many.
    if isinstance(many, str) or isinstance(many[0], int):
        many = [many]
    ids = tuple(one.encode() if isinstance(one, str) else one for one in many)
    return Query(body, False, tuple(map(_text, many)), ids, n, most)


def tokenized(body: Json, longest: int) -> Json:
    """The answer to a request for the tokens of a prompt or of messages."""
    tokens = list(_text(body["prompt"] if "prompt" in body else body["messages"]).encode())
    return {"count": len(tokens), "max_model_len": longest, "tokens": tokens, "token_strs": None}


def _text(prompt: Any) -> str:
    """A prompt's name in the log: its text, its messages' texts, or its token ids."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt[0], int):
        return " ".join(map(str, prompt))
    return "\n".join(str(message["content"]) for message in prompt)


def answer(query: Query, model: str, number: int, *, vllm: bool) -> Json:
    """The whole answer, in the format of vLLM's or of OpenAI's server."""
    choices: list[Json] = []
    completion = prompts = 0
    for key, ids in zip(query.keys, query.ids, strict=True):
        prompts += len(ids)
        for sample in range(query.n):
            text = f"answer to {key} #{sample}" if sample else f"answer to {key}"
            words = text.count(" ") + 1
            most = query.most if query.body.get("ignore_eos") else min(words, query.most)
            completion += most
            tops = query.tops(key) if query.tops else _other_tops(key, query.weights)
            named = query.body.get("logprob_token_ids") if vllm else None
            if named is not None:
                tops = {f"token_id:{one}": _drawn(key, query.weights, one) for one in named}
            one = _choice(query, len(choices), text, most, tops)
            one["finish_reason"] = "stop" if most < query.most else "length"
            if vllm:
                _add_ids(one, query, text, most, ids)
            choices.append(one)
    body: Json = {
        "id": f"{'chatcmpl' if query.chat else 'cmpl'}-{number}",
        "object": "chat.completion" if query.chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompts,
            "total_tokens": prompts + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": None,
        },
    }
    if query.chat and vllm and query.body.get("return_token_ids") and len(query.keys) == 1:
        body["prompt_token_ids"] = list(query.ids[0])
    return body


def spoil(
    choices: list[Json], faults: Sequence[str], rng: random.Random
) -> tuple[list[str], set[int]]:
    """Apply `faults` to the choices; returns the possible ones, and the indexes of bad choices."""
    done, bad = [], set[int]()
    for name in faults:
        if not choices:
            break
        victim = rng.choice(choices)
        where = {int(victim["index"])}
        if name == "shuffled":
            before, where = list(choices), set()
            rng.shuffle(choices)
            if choices == before:
                choices.reverse()
            if choices == before:  # only one
                continue
        elif name == "fewer":
            choices.remove(victim)
        elif name == "duplicate":
            where |= _duplicate(choices, victim)
        elif not _spoil_one(victim, name):
            continue
        done.append(name)
        bad |= where
    return done, bad


def _duplicate(choices: list[Json], victim: Json) -> set[int]:
    if len(choices) == 1:
        choices.append(dict(victim))
        return set()
    other = choices[choices.index(victim) - 1]
    victim["index"] = other["index"]
    return {int(other["index"])}


def _spoil_one(choice: Json, name: str) -> bool:
    if name == "finish":
        choice["finish_reason"] = "tired"
    elif name in {"empty", "null"}:
        wrong = "" if name == "empty" else None
        if "message" in choice:
            choice["message"]["content"] = wrong
        else:
            choice["text"] = wrong
    elif choice["logprobs"] is None:  # the request did not ask for them
        return False
    elif name == "no_logprobs":
        choice["logprobs"] = None
    elif "message" in choice:
        choice["logprobs"]["content"][-1]["logprob"] = float("nan")
    else:
        choice["logprobs"]["token_logprobs"][-1] = float("nan")
    return True


def _choice(
    query: Query, index: int, text: str, most: int, tops: Mapping[str, float] | None
) -> Json:
    wanted = query.body.get("logprobs")
    if query.chat:
        message = {"role": "assistant", "content": text}
        count = query.body.get("top_logprobs") or 0
        logprobs = {"content": _chat_logprobs(_pieces(text, most), count, tops)} if wanted else None
        return {"index": index, "message": message, "logprobs": logprobs}
    ids = bool(query.body.get("return_tokens_as_token_ids"))
    # `logprobs: 0` requests those of the answer itself.
    logprobs = None if wanted is None else _logprobs(_pieces(text, most), wanted, ids, tops)
    return {"index": index, "text": text, "logprobs": logprobs}


def _add_ids(choice: Json, query: Query, text: str, most: int, prompt: Sequence[int]) -> None:
    wanted = bool(query.body.get("return_token_ids"))
    choice["stop_reason"] = None
    choice["token_ids"] = list(map(_id, _pieces(text, most))) if wanted else None
    if not query.chat:
        choice["prompt_logprobs"] = None
        choice["prompt_token_ids"] = list(prompt) if wanted else None


def _pieces(text: str, most: int) -> list[str]:
    first, *rest = text.split(" ", most - 1)
    pieces = [first, *(f" {word}" for word in rest)]
    return pieces + [""] * (most - len(pieces))


def _id(piece: str) -> int:
    return zlib.crc32(piece.encode()) % 50_000


def _drawn(key: str, weights: int, token: int) -> float:
    """A log-probability that depends on the prompt, the weights and the token."""
    return -0.5 - zlib.crc32(f"{weights}/{token}/{key}".encode()) % 1000 / 100


def _other_tops(key: str, weights: int) -> Mapping[str, float] | None:
    """The likeliest tokens for weights other than the usual ones."""
    return {f"w{i}": _drawn(key, weights, i) for i in range(5)} if weights else None


def _tops(piece: str, count: int) -> dict[str, float]:
    return {piece: -0.1} | {f"{piece}~{rank}": -1.0 - rank for rank in range(1, count)}


def _logprobs(
    pieces: list[str], count: int, as_ids: bool, tops: Mapping[str, float] | None
) -> Json:
    offsets = [0]
    for piece in pieces[:-1]:
        offsets.append(offsets[-1] + len(piece))
    names = [f"token_id:{_id(piece)}" for piece in pieces] if as_ids else pieces
    return {
        "text_offset": offsets,
        "token_logprobs": [-0.1] * len(pieces),
        "tokens": names,
        "top_logprobs": [_tops(name, count) if tops is None else dict(tops) for name in names],
    }


def _chat_logprobs(pieces: list[str], count: int, tops: Mapping[str, float] | None) -> list[Json]:
    def entry(piece: str, value: float) -> Json:
        return {"token": piece, "logprob": value, "bytes": list(piece.encode())}

    tokens = []
    for piece in pieces:
        likeliest = _tops(piece, count) if tops is None else tops
        first = [entry(*pair) for pair in likeliest.items()][:count]
        tokens.append(entry(piece, -0.1) | {"top_logprobs": first})
    return tokens
