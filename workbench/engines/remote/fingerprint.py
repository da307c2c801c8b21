"""A fingerprint of the weights behind a server that vouches for none: what it answers to us.

The log-probabilities of the likeliest next tokens after a few fixed prompts, as text and as chat
(which shows the chat template too). Batches change them a little, other weights, number formats
and templates a lot; so a fingerprint is compared within a tolerance and not by its digits.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from workbench.engines.remote import wire
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.faults import Broken, Busy, Down, Fatal, Fault
from workbench.store import Store, digest
from workbench.types import Prompt, Sampling

log = logging.getLogger("workbench")
TEXTS = (
    "1, 2, 3, 4,",
    "The capital of France is",
    "def add(a, b):\n    return",
    "Question: What is 7 + 5?\nAnswer:",
)
CHAT = [{"role": "user", "content": "What is 7 + 5?"}]
HOW = Sampling(max_tokens=4, logprobs=5)
TOLERANCE = 0.03  # of a log-probability. CPU: 0 by batches, 0.1 by bfloat16 instead of float32
LEAST = 2  # tokens that a position must list, to tell anything
TRIES = 5
LONGEST = 5.0  # seconds to wait for a server that is busy
LIMIT = 60.0  # seconds in all: a cold server's first answers take some

# For each text, and for the chat: at each position the token and the likeliest, with log-probs.
Position = tuple[int | str, dict[str, float]]
Print = list[list[Position] | None]


async def take(
    endpoint: Endpoint, model: str, dialect: wire.Dialect, like: Print | None = None
) -> Print | None:
    """What the server answers, None in the place of a path that it does not have.

    None as a whole where it gives no log-probabilities at all.

    Args:
        like: an earlier one; only what that has is asked for, and must be answered.

    Raises:
        Fatal: nothing can be asked there.
        Fault: it does not answer now.
    """
    prompts: list[Prompt] = [*TEXTS, CHAT]
    wanted = [like is None or like[place] is not None for place in range(len(prompts))]
    asked = [
        _ask(endpoint, model, dialect, prompt)
        for prompt, want in zip(prompts, wanted, strict=True)
        if want
    ]
    try:
        async with asyncio.timeout(LIMIT):
            told = await asyncio.gather(*asked, return_exceptions=True)
    except TimeoutError:
        raise Broken(f"no answer to a fingerprint within {LIMIT:g} s") from None
    wrong = [one for one in told if isinstance(one, BaseException)]
    lacking = Fatal if like is not None else (Fatal, Broken)  # a path that is not there, or breaks
    worse = [one for one in wrong if not isinstance(one, lacking)]
    if worse or (wrong and (len(wrong) == len(told) or like is not None)):
        raise (worse or wrong)[0]
    came = iter([None if isinstance(one, BaseException) else one for one in told])
    found = [next(came) if want else None for want in wanted]
    return found if any(one is not None for one in found) else None


async def _ask(
    endpoint: Endpoint, model: str, dialect: wire.Dialect, prompt: Prompt
) -> list[Position] | None:
    texts = isinstance(prompt, str)
    body = (wire.completions if texts else wire.chat)([prompt], HOW, None, dialect)
    path = "/completions" if texts else "/chat/completions"
    attempt = 0
    while True:
        attempt += 1
        try:
            reply = await endpoint.generate(path, {**body, "model": model})
            (choice,) = wire.by_index(reply, 1)
            found = [] if choice is None else [_position(token) for token in wire.logprobs(choice)]
            return found if found and len(found[0][1]) >= LEAST else None
        except (Busy, Down, Broken) as fault:
            wait = getattr(fault, "wait", None) or 0.2 * attempt
            if attempt == TRIES or wait > LONGEST:
                raise
            await asyncio.sleep(wait)
        except Fatal:
            raise
        except (Fault, *wire.BAD):
            return None


def _position(token: Any) -> Position:
    return token.token_id, {str(name): value for name, value in token.top}


def same(one: Print | None, other: Print | None) -> bool:
    """Whether two fingerprints are of the same weights, as far as they show."""
    if one is None or other is None:
        return one is other
    return all(_alike(a, b) for a, b in zip_longest(one, other))


def _alike(one: Sequence[Any] | None, other: Sequence[Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    for (token, top), (another, likewise) in zip(one, other, strict=False):
        if not _close(top, likewise):
            return False
        if token != another:  # of two as likely: what follows belongs to different texts
            pair = [top.get(str(one), -math.inf) for one in (token, another)]
            return bool(min(pair) > max(pair) - 2 * TOLERANCE)
    return len(one) == len(other)


def _close(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Equal within the tolerance; a token that only one lists must be about its least likely."""
    if not one or not other:
        return not one and not other
    if any(abs(one[token] - other[token]) > TOLERANCE for token in one.keys() & other.keys()):
        return False
    pairs = ((one, other), (other, one))
    return all(
        value <= min(listed.values()) + TOLERANCE
        for mine, listed in pairs
        for token, value in mine.items()
        if token not in listed
    )


def known_as(seen: Print, place: Sequence[str], store: Store | None, shown: str) -> str:
    """A name for the weights, the same for all fingerprints that are the same.

    Args:
        seen: the fingerprint.
        place: URL and model, at which it was taken.
        shown: the URL for people.
        store: remembers the first fingerprint of each weights; None gives a name for this time.
    """

    def add(known: Any) -> list[Print]:
        kept: list[Print] = list(known or [])
        return kept if any(same(one, seen) for one in kept) else [*kept, seen]

    known = [seen]
    if store is not None:
        known = store.update(digest("fingerprint", *place), add)
    first = next(one for one in known if same(one, seen))
    if len(known) > 1 and first is known[-1]:
        log.info("%s answers unlike before: answers stored then are left aside", shown)
    return digest(first).hex()[:12]
