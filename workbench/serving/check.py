"""What works at an OpenAI-compatible server, tried out, with what to change where it does not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from workbench.engines.remote import RemoteEngine
from workbench.engines.remote.endpoint import check_url
from workbench.engines.remote.http import HttpClient, api_key, is_loopback, run_coroutine
from workbench.errors import WorkbenchError
from workbench.types import Completion, Message, Prompt, Sampling

ONE = Sampling(max_tokens=1)
TEXT = "The quick brown fox jumps over the lazy dog. "
REPEATS = 5
PATIENCE = 10.0  # seconds for an answer without a key
CLOSED = (401, 403, 404, 405, 501)  # the key is asked for, or there is nothing
PATHS = {
    "/v1/models": "GET", "/v1/completions": "POST", "/v1/chat/completions": "POST",
    "/v1/embeddings": "POST", "/v1/responses": "POST", "/v1/messages": "POST",
    "/invocations": "POST", "/tokenize": "POST", "/detokenize": "POST", "/pooling": "POST",
    "/classify": "POST", "/score": "POST", "/rerank": "POST", "/inference/v1/generate": "POST",
    "/batch/stats": "GET", "/metrics": "GET", "/version": "GET", "/load": "GET", "/ping": "GET",
    "/docs": "GET", "/redoc": "GET", "/openapi.json": "GET", "/server_info": "GET",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried: whether it works, what was seen, what to change if not."""

    what: str
    works: bool
    seen: str
    remedy: str = ""


def check(url: str, model: str | None = None) -> Iterator[Finding]:
    """Try everything that the remote engine can use; yields as it goes.

    Args:
        url: the server's base URL; a key is read as for `open_engine`.
        model: a served name; None is the only one.

    Raises:
        InputError: no URL, or no such model.
        EngineUnavailableError: no server answers there.
    """
    options = {"base_url": url, "attempts": 2, "timeout": 120.0, "outage_timeout": 10.0}
    with RemoteEngine(model, None, "check", options) as engine:
        info = engine.info
        version = info.versions.get("vllm")
        yield Finding(
            "model",
            True,
            f"{info.model} ({f'vLLM {version}' if version else 'not vLLM'}, context "
            f"{info.context_length or 'not told'}, revision {info.revision})",
        )
        for what, attempt, remedy in _trials(engine):
            yield _tried(what, attempt, remedy)
    yield _key(url)


def _key(url: str) -> Finding:
    """Which paths answer without the key."""
    remedy = "set WORKBENCH_API_KEY where the server starts (`workbench serve`), and here"
    if api_key(check_url(url)) is None:
        here = is_loopback(urlsplit(check_url(url)).hostname)
        return Finding("key", here, "none is set: whoever reaches the server can use it", remedy)
    found = run_coroutine(_open_paths(check_url(url)))
    if not found:
        return Finding("key", True, f"asked for at all of {len(PATHS)} paths tried")
    remedy = "vLLM itself guards /v1 only: start it with `workbench serve vllm`, or behind a proxy"
    return Finding("key", False, f"open without it: {', '.join(found)}", remedy)


async def _open_paths(url: str) -> list[str]:
    """Those of the paths that answer a request without a key."""
    http = HttpClient(url, "aiohttp", 4, PATIENCE, key=None, headers={})
    root = urlunsplit((*urlsplit(url)[:2], "", "", ""))
    found = []
    try:
        for path, method in PATHS.items():
            place = url + path[3:] if path.startswith("/v1/") else root + path
            try:
                reply = await http.send(method, place, b"{}" if method == "POST" else None)
            except Exception:  # noqa: BLE001  # no answer is no open door
                continue
            if reply.status not in CLOSED:
                found.append(path)
    finally:
        http.close()
    return found


def _trials(engine: RemoteEngine) -> Iterator[tuple[str, Callable[[], str], str]]:
    """(what is tried, how: returns what was seen, the remedy)."""
    yield "completion", lambda: _completion(engine), "serve a model with /v1/completions"
    yield "chat", lambda: _chat(engine), "give the server a chat template (--chat-template FILE)"
    yield "logprobs", lambda: _logprobs(engine), "labels and uncertainty need them: use vLLM"
    yield "label log-probabilities", lambda: _labels(engine), "exact ones need vLLM 0.27 or newer"
    yield "prompts in one request", lambda: _several(engine), "many times slower without: use vLLM"
    several_chats = "faster with vLLM, which has /v1/chat/completions/batch"
    yield "chats in one request", lambda: _several(engine, chats=True), several_chats
    yield (
        "structured output",
        lambda: _structured(engine),
        "use vLLM; without, answers are read from free text",
    )
    yield "prefix caching", lambda: _prefix(engine), "start the server with --enable-prefix-caching"
    yield "latency", lambda: _latency(engine), "a nearer server"


def _tried(what: str, attempt: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(what, True, attempt())
    except (WorkbenchError, _MissingError) as error:
        return Finding(what, False, str(error)[:100], remedy)


class _MissingError(Exception):
    """It answered, but without what was asked for."""


def _completion(engine: RemoteEngine) -> str:
    row = _one(engine, TEXT, Sampling(max_tokens=8))
    return f"{row.text[:30]!r}, {'with' if row.token_ids else 'without'} token ids"


def _chat(engine: RemoteEngine) -> str:
    row = _one(engine, _talk("Say yes."), Sampling(max_tokens=8))
    return repr(row.text[:30]) + (", reasoning kept apart" if row.reasoning else "")


def _logprobs(engine: RemoteEngine) -> str:
    row = _one(engine, TEXT, Sampling(max_tokens=1, logprobs=5))
    if not row.logprobs:
        raise _MissingError("the answer came without")
    return f"{len(row.logprobs[0].top)} likeliest at each token"


def _labels(engine: RemoteEngine) -> str:
    scores = engine.label_logprobs([TEXT], [" Yes", " No"], errors="return")
    if scores.errors[0] is not None:
        raise _MissingError(scores.errors[0])
    if scores.missing.any():
        raise _MissingError("only those among the 20 likeliest tokens, others as a bound")
    yes, no = scores.logprobs[0]
    return f"exact: Yes {yes:.2f}, No {no:.2f}"


def _several(engine: RemoteEngine, *, chats: bool = False) -> str:
    if not engine.takes_several(chats=chats):
        raise _MissingError("one at a time")
    return "taken"


def _structured(engine: RemoteEngine) -> str:
    row = _one(engine, TEXT, Sampling(max_tokens=16, choices=("left", "right")))
    return f"kept to choices: {row.text!r}"


def _prefix(engine: RemoteEngine) -> str:
    """The same long beginning again: told by the server's counter, else by the time it takes."""
    length = min(1000, (engine.info.context_length or 2000) // 2)
    stem = f"{time.time_ns()} " + TEXT * (length // len(TEXT) + 1)
    before = engine.usage
    first = _seconds(engine, stem + "first")
    again = statistics.median(_seconds(engine, f"{stem}again {i}") for i in range(3))
    used = engine.usage.since(before)
    if used.cache_hit_rate is None:
        if again < 0.7 * first:
            return f"{first / again:.1f} times faster the second time"
        raise _MissingError(f"not seen: {first:.3f} s, then {again:.3f} s")
    if used.cache_hit_rate < 0.2:
        raise _MissingError(f"{used.cache_hit_rate:.0%} of a repeated prompt were cached")
    return f"{used.cache_hit_rate:.0%} of four prompts with one beginning were cached"


def _latency(engine: RemoteEngine) -> str:
    times = [_seconds(engine, f"{i} {TEXT}") for i in range(REPEATS)]
    return (
        f"{1000 * statistics.median(times):.0f} ms for a prompt and one token (median of {REPEATS})"
    )


def _seconds(engine: RemoteEngine, prompt: str) -> float:
    start = time.perf_counter()
    _one(engine, prompt, ONE)
    return time.perf_counter() - start


def _one(engine: RemoteEngine, prompt: Prompt, sampling: Sampling) -> Completion:
    (row,) = engine.generate([prompt], sampling, errors="return")
    if row.error is not None:
        raise _MissingError(row.error)
    return row


def _talk(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
