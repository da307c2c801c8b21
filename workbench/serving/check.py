"""Tests what works at an OpenAI-compatible server, with remedies for what does not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import shorten
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from workbench.engines.remote import RemoteEngine, RemoteOptions
from workbench.engines.remote.http import HttpClient, api_key, is_loopback, run_coroutine
from workbench.engines.remote.settings import check_url
from workbench.errors import EngineError, WorkbenchError
from workbench.types import Completion, Prompt, Sampling

TEXT = "The quick brown fox jumps over the lazy dog. "
SIDE = {
    "type": "object",
    "properties": {"side": {"type": "string", "enum": ["left", "right"]}},
    "required": ["side"],
    "additionalProperties": False,
}
REPEATS = 5
LONGEST = 160  # maximum characters of a result
OWN_ANSWER = 10.0  # seconds for an answer without a key
CLOSED = (401, 403, 404, 405, 501)  # a key is required, or there is no such path
PATHS = {
    "/v1/models": "GET", "/v1/completions": "POST", "/v1/chat/completions": "POST",
    "/v1/embeddings": "POST", "/v1/responses": "POST", "/v1/messages": "POST",
    "/invocations": "POST", "/tokenize": "POST", "/detokenize": "POST", "/pooling": "POST",
    "/classify": "POST", "/score": "POST", "/rerank": "POST", "/inference/v1/generate": "POST",
    "/batch/stats": "GET", "/metrics": "GET", "/version": "GET", "/load": "GET", "/ping": "GET",
    "/docs": "GET", "/redoc": "GET", "/openapi.json": "GET", "/server_info": "GET",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServerCheck:
    """The result of one test: whether it works, what was seen, and the remedy if it does not."""

    what: str
    works: bool
    seen: str
    remedy: str = ""


def check(url: str, model: str | None = None) -> Iterator[ServerCheck]:
    """Test everything that the remote engine can use; yields results as they come.

    Args:
        url: the server's base URL; the key is found as by `open_engine`.
        model: a served name; None is the only one.

    Raises:
        InputError: an invalid URL, or no such model.
        EngineUnavailableError: no server answers there.
    """
    options = {"base_url": url, "attempts": 2, "timeout": 120.0, "outage_timeout": 10.0}
    with RemoteEngine(model, None, "check", options) as engine:
        info = engine.info
        version = info.versions.get("vllm")
        yield ServerCheck(
            "model",
            True,
            f"{info.model} ({f'vLLM {version}' if version else 'not vLLM'}, context "
            f"{info.context_length or 'unknown'}, revision {info.revision})",
        )
        for what, (attempt, remedy) in TRIALS.items():
            try:
                yield ServerCheck(what, True, attempt(engine))
            except WorkbenchError as error:
                seen, name = shorten(str(error), LONGEST, placeholder=" …"), api_key(url)[0]
                wrong = f"put the right key in {name}" if name in seen else ""
                yield ServerCheck(what, False, seen, wrong or remedy)
    yield _key(check_url(url))


def _key(url: str) -> ServerCheck:
    """Test which paths answer without the key."""
    remedy = "set WORKBENCH_API_KEY where the server starts (`workbench serve`), and here"
    if api_key(url)[1] is None:
        local = is_loopback(urlsplit(url).hostname)
        seen = "none is set: anyone who can reach the server can use it"
        return ServerCheck("key", local, seen, remedy)
    if open_paths := run_coroutine(_open_paths(url)):
        remedy = "vLLM itself guards only /v1: start it with `workbench serve vllm`, or use a proxy"
        return ServerCheck("key", False, f"open without it: {', '.join(open_paths)}", remedy)
    return ServerCheck("key", True, f"required at all {len(PATHS)} paths tested")


async def _open_paths(url: str) -> list[str]:
    http = HttpClient(url, RemoteOptions(timeout=OWN_ANSWER), key=None, headers={})
    root = urlunsplit((*urlsplit(url)[:2], "", "", ""))
    open_paths = []
    try:
        for path, method in PATHS.items():
            place = url + path[3:] if path.startswith("/v1/") else root + path
            try:
                reply = await http.send(method, place, b"{}" if method == "POST" else None)
            except Exception:  # noqa: BLE001  # no answer: not open
                continue
            if reply.status not in CLOSED:
                open_paths.append(path)
    finally:
        http.close()
    return open_paths


def _prompt(engine: RemoteEngine, text: str) -> Prompt:
    """A text; as a chat if the server has no completions."""
    return text if engine.has_completions else [{"role": "user", "content": text}]


def _ask(engine: RemoteEngine, prompt: Prompt, **settings: Any) -> Completion:
    sampling = Sampling(**{"max_tokens": 1, **settings})
    prompt = _prompt(engine, prompt) if isinstance(prompt, str) else prompt
    (row,) = engine.generate([prompt], sampling, errors="return")
    if row.error is not None:
        raise EngineError(row.error)
    return row


def _seconds(engine: RemoteEngine, prompt: str) -> float:
    start = time.perf_counter()
    _ask(engine, prompt)
    return time.perf_counter() - start


def _completion(engine: RemoteEngine) -> str:
    if not engine.has_completions:
        raise EngineError("none: it has only chats")
    row = _ask(engine, TEXT, max_tokens=8)
    return f"{row.text[:30]!r}, {'with' if row.token_ids else 'without'} token ids"


def _chat(engine: RemoteEngine) -> str:
    row = _ask(engine, [{"role": "user", "content": "Say yes."}], max_tokens=8)
    return repr(row.text[:30]) + (", reasoning separate" if row.reasoning else "")


def _logprobs(engine: RemoteEngine) -> str:
    row = _ask(engine, TEXT, logprobs=5)
    if not row.logprobs:
        raise EngineError("the answer has none")
    return f"{len(row.logprobs[0].top)} likeliest per token"


def _labels(engine: RemoteEngine) -> str:
    scores = engine.label_logprobs([_prompt(engine, TEXT)], [" Yes", " No"], errors="return")
    if scores.errors[0] is not None:
        raise EngineError(scores.errors[0])
    if scores.missing.any() or not engine.has_completions:
        raise EngineError("only those among the 20 likeliest tokens, others as a bound")
    yes, no = scores.logprobs[0]
    return f"exact: Yes {yes:.2f}, No {no:.2f}"


def _several(engine: RemoteEngine, *, chats: bool = False) -> str:
    if not engine.takes_several(chats=chats):
        raise EngineError("one at a time")
    return "accepted"


def _structured(engine: RemoteEngine) -> str:
    if not engine.has_completions:
        row = _ask(engine, "Left or right? Answer in JSON.", max_tokens=64, json_schema=SIDE)
        return f"follows a JSON schema: {row.text[:30]!r}"
    row = _ask(engine, TEXT, max_tokens=16, choices=("left", "right"))
    return f"follows choices: {row.text!r}"


def _prefix(engine: RemoteEngine) -> str:
    """Send a long beginning twice: see the server's counter of cached tokens, else the time."""
    length = min(1000, (engine.info.context_length or 2000) // 2)
    stem = f"{time.time_ns()} " + TEXT * (length // len(TEXT) + 1)
    before = engine.usage
    first = _seconds(engine, stem + "first")
    again = statistics.median(_seconds(engine, f"{stem}again {i}") for i in range(3))
    rate = engine.usage.since(before).cache_hit_rate
    if rate is not None and rate >= 0.2:
        return f"{rate:.0%} of four prompts with the same beginning were cached"
    if rate is not None:
        raise EngineError(f"{rate:.0%} of a repeated prompt were cached")
    if again < 0.7 * first:
        return f"{first / again:.1f} times faster the second time"
    raise EngineError(f"not seen: {first:.3f} s, then {again:.3f} s")


def _latency(engine: RemoteEngine) -> str:
    times = [_seconds(engine, f"{i} {TEXT}") for i in range(REPEATS)]
    milliseconds = 1000 * statistics.median(times)
    return f"{milliseconds:.0f} ms for a prompt and one token (median of {REPEATS})"


# Each test, and the remedy.
TRIALS = {
    "completion": (_completion, "use chats; exact label log-probabilities need /v1/completions"),
    "chat": (_chat, "start the server with a chat template (--chat-template FILE)"),
    "logprobs": (_logprobs, "labels and uncertainty need them: use vLLM"),
    "label log-probabilities": (_labels, "exact ones need vLLM 0.27 or newer"),
    "prompts in one request": (_several, "requests are many times slower without it: use vLLM"),
    "chats in one request": (
        lambda engine: _several(engine, chats=True),
        "faster with vLLM, which has /v1/chat/completions/batch",
    ),
    "structured output": (_structured, "use vLLM; without it, answers are read from free text"),
    "prefix caching": (_prefix, "start the server with --enable-prefix-caching"),
    "latency": (_latency, "use a nearer server"),
}
