"""What a server takes: each thing is asked once of each server, with one token to pay for.

"Too many requests", a wrong key and a server that is away are no answers: it is asked again then.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from workbench.engines.remote import wire
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.retry import AGAIN, RequestError
from workbench.engines.remote.words import UNKNOWN
from workbench.types import Prompt, Sampling

log = logging.getLogger("workbench")
COLD = 60.0  # seconds for the first answers of a server
WAITS = (0.3, 1.0, 0.0)  # seconds after an answer that is none
NO_PATH = (404, 405, 410, 501)
# How servers say that a model is for chats only, where they have the path all the same.
CHATS_ONLY = re.compile(rf"chat|messages|{UNKNOWN}|no(t| such) (route|found|path)", re.IGNORECASE)
TALK = [{"role": "user", "content": "1"}]


async def _ask(post: Callable[[], Awaitable[Any]]) -> Any | RequestError | None:
    """What a server answers, or why it will not; None where it does not say now."""
    for wait in WAITS:
        try:
            async with asyncio.timeout(COLD):
                return await post()
        except RequestError as error:
            if error.status in NO_PATH or not isinstance(error, AGAIN):
                return None if error.status == 401 else error
        except TimeoutError:
            pass
        await asyncio.sleep(wait)
    return None


async def find_completions(endpoints: Sequence[Endpoint], model: str) -> None:
    """Find out whether servers continue texts."""
    body = {"model": model, "prompt": "1", "max_tokens": 1}

    async def find(endpoint: Endpoint) -> None:
        said = await _ask(lambda: endpoint.post(wire.TEXTS, body))
        if isinstance(said, RequestError) and (
            said.status in NO_PATH or CHATS_ONLY.search(str(said))
        ):
            endpoint.completes = False
            log.info("%s has no completions, only chats: %s", endpoint.shown, said)

    await asyncio.gather(*(find(one) for one in endpoints if one.completes is None))


async def find_chats(endpoints: Sequence[Endpoint], model: str) -> None:
    """Find out whether servers answer chats: there may be no template."""
    body = {"model": model, "messages": TALK, "max_tokens": 1}

    async def find(endpoint: Endpoint) -> None:
        said = await _ask(lambda: endpoint.generate(wire.CHATS, body))
        endpoint.chats = None if said is None else not isinstance(said, RequestError)

    await asyncio.gather(*(find(one) for one in endpoints if one.chats is None))


async def find_logprobs(endpoints: Sequence[Endpoint], to: wire.Dialect, *, chats: bool) -> None:
    """Find out whether answers come with the log-probabilities of their tokens."""
    prompt: Prompt = [{"role": "user", "content": "1"}] if chats else "1"
    path, body = wire.request([prompt], Sampling(max_tokens=1, logprobs=0), to)

    async def find(endpoint: Endpoint) -> None:
        said = await _ask(lambda: endpoint.generate(path, body))
        if isinstance(said, RequestError):
            endpoint.logprobs = False
        elif said is not None:
            try:
                (choice,) = wire.choices_in_order(said, 1)
                endpoint.logprobs = bool(choice and wire.logprobs(choice))
            except (RequestError, *wire.ODD_JSON):
                endpoint.logprobs = False

    await asyncio.gather(*(find(one) for one in endpoints if one.logprobs is None))


async def find_several(endpoints: Sequence[Endpoint], model: str, *, chats: bool) -> None:
    """Find out whether servers take several prompts in one request."""
    path = wire.CHAT_BATCH if chats else wire.TEXTS
    body: wire.Body = {"model": model, "max_tokens": 1}
    body |= {"messages": [TALK, TALK]} if chats else {"prompt": ["1", "2"]}

    async def find(endpoint: Endpoint) -> None:
        several = False
        if endpoint.vllm or not chats:
            try:
                async with asyncio.timeout(COLD):
                    several = len((await endpoint.post(path, body))["choices"]) == 2
            except (TimeoutError, *wire.ODD_JSON):
                return  # not today
            except RequestError as error:
                if isinstance(error, AGAIN) and error.status not in NO_PATH:
                    return
                log.info("%s takes one prompt a request: %s", endpoint.shown, error)
        setattr(endpoint, "batch" if chats else "multi", several)

    possible = [e for e in endpoints if chats or e.completes is not False]
    await asyncio.gather(*(find(e) for e in possible if e.several(chats=chats) is None))
