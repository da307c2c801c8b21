"""What a server supports: each feature is tested once per server, with a request of one token.

"Too many requests", a wrong key or an unreachable server is no result: the test runs again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from workbench.engines.remote import wire
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.retry import AGAIN, RequestError
from workbench.engines.remote.words import UNKNOWN
from workbench.types import Prompt, Sampling

log = logging.getLogger("workbench")
COLD = 60.0  # seconds for the first answers of a server that may still load
WAITS = (0.3, 1.0, 0.0)  # seconds to wait after an attempt without a result
METRICS = 3.0  # seconds for a page of counters
HITS = "vllm:prefix_cache_hits_total"
MOST_HITS = 2**40
NO_PATH = (404, 405, 410, 501)
# How a server that has the completions path says that its model is for chats only.
CHATS_ONLY = re.compile(
    rf"chat|messages|(\bcompletions?\b.*({UNKNOWN}))|(({UNKNOWN}).*\bcompletions?\b)"
    r"|no(t| such) (route|found|path)",
    re.IGNORECASE,
)
# Error texts that may mean so too, unless they are about one part of the request.
REFUSED = re.compile(UNKNOWN, re.IGNORECASE)
PART = re.compile(r"max_tokens|parameter|argument|field|value", re.IGNORECASE)
OF_CHATS = re.compile(r"\bmessages\b|\bprompt\b", re.IGNORECASE)
TALK = [{"role": "user", "content": "1"}]


Works = Callable[[dict[str, Any]], bool | None]


async def _ask(endpoint: Endpoint, path: str, body: wire.Body, waits: Sequence[float]) -> Any:
    """The reply or the final `RequestError`; None if the server gave no clear result."""
    last: RequestError | None = None
    for wait in waits:
        try:
            async with asyncio.timeout(COLD):
                return await endpoint.generate(path, body)
        except RequestError as error:
            last = error
            if _refused(error):
                return None if error.status == 401 else error
        except TimeoutError:
            last = None
        await asyncio.sleep(wait)
    return last


def _refused(error: RequestError) -> bool:
    return error.status in NO_PATH or not isinstance(error, AGAIN)


def _odd(error: RequestError) -> bool:
    """Whether the error may mean that the path is missing: HTTP 200 or 500, but no answer."""
    return error.status == 200 or (error.status == 500 and bool(REFUSED.search(str(error))))


async def _find(
    endpoints: Sequence[Endpoint],
    ability: str,
    request: tuple[str, wire.Body],
    works: Works = lambda _: True,
    *,
    lacks: Callable[[Endpoint, RequestError], bool] = lambda _, error: _refused(error),
    missing: str = "",
    waits: Sequence[float] = WAITS,
) -> None:
    """Set the attribute `ability` of each server where it is still None, to what `works` returns.

    `lacks` says whether a refusal means that the feature is missing; `missing` is logged then.
    """

    async def find(endpoint: Endpoint) -> None:
        said = await _ask(endpoint, *request, waits)
        if said is None or (isinstance(said, RequestError) and not lacks(endpoint, said)):
            return
        found: bool | None = False
        if not isinstance(said, RequestError):
            with contextlib.suppress(RequestError, *wire.ODD_JSON):
                found = works(said)
        elif missing:
            log.info("%s %s: %s", endpoint.shown, missing, said)
        setattr(endpoint, ability, found)

    await asyncio.gather(*(find(one) for one in endpoints if getattr(one, ability) is None))


async def find_completions(endpoints: Sequence[Endpoint], model: str) -> None:
    """Find out whether servers continue texts; if that stays unclear, whether they answer chats."""
    doubtful: list[Endpoint] = []

    def lacks(endpoint: Endpoint, error: RequestError) -> bool:
        text = str(error)
        about_part = PART.search(text) and not OF_CHATS.search(text)
        if error.status in NO_PATH or (_refused(error) and not about_part and says(text)):
            return True
        if _odd(error) or (_refused(error) and not about_part and REFUSED.search(text)):
            doubtful.append(endpoint)
        return False

    def says(text: str) -> bool:
        return CHATS_ONLY.search(text) is not None

    body = {"model": model, "prompt": "1", "max_tokens": 1}
    missing = "has no completions, only chats"
    await _find(endpoints, "completes", (wire.TEXTS, body), lacks=lacks, missing=missing)
    await find_chats(doubtful, model)
    for endpoint in doubtful:
        endpoint.completes = False if endpoint.chats else None


async def find_chats(endpoints: Sequence[Endpoint], model: str) -> None:
    """Find out whether servers answer chats: a model may have no chat template."""
    body = {"model": model, "messages": TALK, "max_tokens": 1}
    await _find(endpoints, "chats", (wire.CHATS, body), lacks=lambda _, e: _refused(e) or _odd(e))


async def find_logprobs(endpoints: Sequence[Endpoint], to: wire.Dialect, *, chats: bool) -> None:
    """Find out whether answers include the log-probabilities of their tokens."""

    def works(reply: dict[str, Any]) -> bool:
        (choice,) = wire.choices_in_order(reply, 1)
        return bool(choice and wire.logprobs(choice))

    prompt: Prompt = [{"role": "user", "content": "1"}] if chats else "1"
    request = wire.request([prompt], Sampling(max_tokens=1, logprobs=0), to)
    await _find(endpoints, "logprobs", request, works)


async def find_exact(endpoints: Sequence[Endpoint], model: str) -> None:
    """Find out whether servers return log-probabilities for requested token ids, as vLLM does.

    The feature is tested, not inferred from the server's name: vLLM may run behind a gateway.
    """

    def works(reply: dict[str, Any]) -> bool:
        (choice,) = wire.choices_in_order(reply, 1)
        top = dict(wire.logprobs(choice or {})[0].top)
        return 1 in top and wire.token_ids(choice or {}, "prompt_token_ids") is not None

    await _find(endpoints, "exact", (wire.TEXTS, wire.naming(model, "1", [1])), works)


async def find_several(endpoints: Sequence[Endpoint], model: str, *, chats: bool) -> None:
    """Find out whether servers accept several prompts per request (several chats: vLLM only).

    Those of vLLM accept several texts: that is assumed, and tested if a reply contradicts it.
    """
    for endpoint in endpoints:
        if endpoint.vllm and not chats and endpoint.multi is None:
            endpoint.multi, endpoint.assumed = True, True

    def works(reply: dict[str, Any]) -> bool | None:
        choices = reply.get("choices")
        return len(choices) == 2 if isinstance(choices, list) else None

    ability, path = ("batch", wire.CHAT_BATCH) if chats else ("multi", wire.TEXTS)
    body: wire.Body = {"model": model, "max_tokens": 1}
    body |= {"messages": [TALK, TALK]} if chats else {"prompt": ["1", "2"]}
    possible = [one for one in endpoints if (one.vllm if chats else one.completes is not False)]
    missing = "accepts one prompt per request"
    await _find(possible, ability, (path, body), works, missing=missing, waits=WAITS[-1:])


async def version(endpoint: Endpoint) -> str:
    """vLLM's version; "" if it is not reported."""
    if endpoint.vllm:
        with contextlib.suppress(RequestError, AttributeError):
            return str((await endpoint.get("//version")).get("version", ""))[:40]
    return ""


async def prefix_cache_hits(endpoints: Sequence[Endpoint]) -> float | None:
    """Prompt tokens found in the servers' prefix caches since they started; None if unknown."""
    try:
        async with asyncio.timeout(METRICS):
            pages = await asyncio.gather(*(endpoint.text("//metrics") for endpoint in endpoints))
        lines = [line for page in pages for line in page.splitlines() if line.startswith(HITS)]
        total = sum(float(line.rsplit(" ", 1)[1]) for line in lines)
    except (RequestError, TimeoutError, ValueError, IndexError):
        return None
    return total if lines and 0 <= total < MOST_HITS else None
