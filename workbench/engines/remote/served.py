"""Which model servers serve, and whether it is the same on all of them and after an outage.

A listed revision identifies the weights. Without one, a fingerprint does: the log-probabilities
of the likeliest next tokens after a few fixed prompts, as text and as chat (which shows the chat
template too). Batching changes them a little; other weights, number formats and templates change
them a lot. So they are compared within a tolerance. Without a fingerprint, names are compared and
nothing is stored.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from workbench.engines.chat import ChatOptions
from workbench.engines.remote import wire
from workbench.engines.remote.abilities import find_exact
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.fleet import Fleet
from workbench.engines.remote.retry import (
    AGAIN,
    FatalError,
    RequestError,
    RetryableError,
    UnreachableError,
)
from workbench.engines.remote.settings import shown_url
from workbench.errors import EngineUnavailableError, InputError
from workbench.store import Store, digest
from workbench.types import Prompt, Sampling
from workbench.values import near

log = logging.getLogger("workbench")
FIRST = 20.0  # seconds for the first contact with each of several servers
COLD = 60.0  # seconds for the first answers of a server
OURS = r"[0-9a-f]{12}-[a-z]+\d+(-[0-9a-f]{8})?"  # a revision as `identity.variant` writes it
NO_LIST = (403, 404, 405, 501)  # statuses of a server that lists no models, or not for this key
SHOWN = 8  # names in a message
LONGEST = 2**40  # tokens; a longer context length is ignored

PROMPTS: tuple[Prompt, ...] = (
    "1, 2, 3, 4,",
    "The capital of France is",
    "def add(a, b):\n    return",
    "Question: What is 7 + 5?\nAnswer:",
    [{"role": "user", "content": "What is 7 + 5?"}],
)
SAMPLING = Sampling(max_tokens=4, logprobs=5)
TOLERANCE = 0.03  # of a log-probability. On a CPU, batching gives 0, bfloat16 for float32 0.1
LEAST = 2  # tokens that a position must list to be useful
TRIES = 5
LONGEST_WAIT = 5.0  # seconds for a server that is busy
SEVERAL = "Several servers must have the same model"
OTHER = "it serves the model with other weights or options"

# For each prompt and position: the token, and the likeliest tokens with log-probabilities.
Position = tuple[int | str, dict[str, float]]
Fingerprint = list[list[Position] | None]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a server lists; `revision` and `root` are "" where it lists none.

    `workbench serve` lists a model as `name@revision` too. `names` has all names of the model.
    """

    name: str
    revision: str = ""
    root: str = ""
    context_length: int = 0
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.revision or self.root or 'no revision'})"


class Identity:
    """The model that all servers of a call must have.

    Args:
        revision: the user's name for the weights, which replaces the fingerprint; or None.
        chats: the caller's options for chats.
    """

    served: ServedModel

    def __init__(self, revision: str | None, chats: ChatOptions) -> None:
        self._revision = revision
        self._fingerprint: Fingerprint | None = None
        self.dialect = wire.Dialect(chats=chats)

    async def establish(self, fleet: Fleet, model: str | None) -> ServedModel:
        """Find the model that the servers have; servers that do not answer now become absent.

        So do servers without the model, in a folder or file that may list others too.

        Raises:
            InputError: the model is not listed, or the servers have different ones.
            EngineUnavailableError: no server gives a usable answer.
        """
        endpoints, mixed = fleet.endpoints, fleet.changes and model is not None
        several = len(endpoints) > 1
        looks = await asyncio.gather(
            *(_first_look(one, model, mixed=mixed, several=several) for one in endpoints)
        )
        there = [(e, s) for e, s in zip(endpoints, looks, strict=True) if s is not None]
        if there:
            first, self.served = there[0]
            self.dialect = replace(self.dialect, model=self.served.name, vllm=first.vllm)
            for endpoint, served in there:
                if why := self._unlike(served):
                    why = endpoint.clean(why)
                    raise InputError(f"{endpoint.shown}: {why} like {first.shown}. {SEVERAL}")
            if not (self._revision or self.served.revision):
                await self._compare([endpoint for endpoint, _ in there])
        for endpoint, _ in there:
            endpoint.seen()
        absent = [e for e in endpoints if e.absent is not None]
        if len(absent) == len(endpoints):
            raise EngineUnavailableError("; ".join(f"{e.shown}: {e.absent}" for e in absent))
        for endpoint in absent:
            log.warning("%s is left out until it answers: %s", endpoint.shown, endpoint.absent)
        return self.served

    async def _compare(self, there: Sequence[Endpoint]) -> None:
        """Take the fingerprints of all servers; one that gives none for now becomes absent."""
        taken = await asyncio.gather(
            *(take_fingerprint(endpoint, self.dialect) for endpoint in there),
            return_exceptions=True,
        )
        pairs = list(zip(there, taken, strict=True))
        prints = [(e, one) for e, one in pairs if not isinstance(one, BaseException)]
        for endpoint, error in pairs:
            # If all are busy or broken now, they are used without a store.
            if isinstance(error, RequestError):
                if prints or isinstance(error, UnreachableError | FatalError):
                    endpoint.absent = explain(error)
            elif isinstance(error, BaseException):
                raise error
        for endpoint, one in prints:
            first, self._fingerprint = prints[0]
            if not same(self._fingerprint, one):
                raise InputError(f"{endpoint.shown}: {OTHER} than {first.shown}. {SEVERAL}")

    def _unlike(self, served: ServedModel) -> str | None:
        """Why a listed model is another one; its path counts only without a better identity."""
        ours = self.served
        lengths = {served.context_length, ours.context_length} - {0}
        if len(lengths) > 1:
            return f"its context is {served.context_length:,} tokens, not {ours.context_length:,}"
        if (ours.name, ours.revision) == (served.name, served.revision):
            verified = ours.revision or self._revision or self._fingerprint is not None
            if verified or ours.root == served.root:
                return None
        return f"it serves {served}, not {ours}"

    async def check(self, endpoint: Endpoint) -> None:
        """Raise `FatalError` if a server has another model now."""
        try:
            served = await look(endpoint, self.served.name)
        except InputError as error:
            raise FatalError(str(error)) from None
        if why := self._unlike(served):
            raise FatalError(f"{why}, as when this engine was opened: open it again")
        if self._fingerprint is None:
            return
        for _ in range(3):  # other clients' requests in the batch may change it a little
            now = await take_fingerprint(endpoint, self.dialect, like=self._fingerprint)
            if same(self._fingerprint, now):
                return
        raise FatalError(f"{OTHER} than when this engine was opened: open it again")

    def fingerprint(self, place: str, store: Store | None) -> str | None:
        """A name for the weights by what they answer; None if that is unknown.

        It is the same for all fingerprints that match, as far as the store has them.
        """
        if (ours := self._fingerprint) is None:
            return None

        def add(stored: Any) -> list[Fingerprint]:
            known: list[Fingerprint] = list(stored or [])
            return known if any(same(one, ours) for one in known) else [*known, ours]

        key = digest("fingerprint", place, self.served.name)
        known = add(None) if store is None else store.update(key, add)
        oldest = next(one for one in known if same(one, ours))
        if len(known) > 1 and oldest is known[-1]:
            log.info(
                "%s answers differently now: earlier stored answers are not used", shown_url(place)
            )
        return f"fingerprint {digest(oldest).hex()[:12]}"


async def _first_look(
    endpoint: Endpoint, model: str | None, *, mixed: bool, several: bool
) -> ServedModel | None:
    """The model that a server serves; None leaves the reason in `absent`.

    Of several servers, one that does not answer soon does not keep the others waiting.
    """
    try:
        async with asyncio.timeout(FIRST if several else None):
            served = await look(endpoint, model)
            if not endpoint.vllm:
                await find_exact([endpoint], served.name)
                endpoint.vllm = bool(endpoint.exact)  # vLLM under another name: behind a gateway
    except TimeoutError:
        endpoint.absent = f"no answer within {FIRST:.0f} s"
        return None
    except InputError as error:
        if not mixed:
            raise
        endpoint.absent = str(error)
        return None
    except Exception as error:  # noqa: BLE001  # whatever a server sends
        endpoint.absent = explain(endpoint.as_request_error(error))
        return None
    return served


async def look(endpoint: Endpoint, model: str | None) -> ServedModel:
    """The model as a server lists it now; `InputError` if it is missing or the choice is open."""
    try:
        listed = await _models(endpoint)
    except RequestError as error:
        if model is None or error.status not in NO_LIST:
            raise
        return ServedModel(model, names=(model,))
    roots = {str(card["id"]): card.get("root") for card in listed}
    revisions = _revisions(roots)
    names = [name for name in roots if name.rpartition("@")[0] not in revisions]
    serves = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} others" * (len(names) > SHOWN))
    serves = endpoint.clean(serves)
    if model is None and len(names) != 1:
        raise InputError(f"{endpoint.shown} serves {serves}: choose one as model=…")
    name = names[0] if model is None else model
    if name not in roots:
        hint = endpoint.clean(near(name, names))
        raise InputError(f"{endpoint.shown} has no {name!r}{hint}; it serves {serves}")
    root = str(roots[name]) if isinstance(roots[name], str) else ""
    length = next(card.get("max_model_len") for card in listed if str(card["id"]) == name)
    return ServedModel(
        name=name,
        revision=revisions.get(name, ""),
        root=root,
        context_length=length if type(length) is int and 0 < length < LONGEST else 0,
        names=(name, *(one for one in roots if root and roots[one] == root)),
    )


async def _models(endpoint: Endpoint) -> Sequence[Mapping[str, Any]]:
    reply = await endpoint.get("/models")
    listed = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(listed, list) or not all(isinstance(m, dict) and "id" in m for m in listed):
        raise RetryableError("its /models lists no models")
    if not listed:
        raise RetryableError("it serves no model")
    if not endpoint.vllm and any(model.get("owned_by") == "vllm" for model in listed):
        endpoint.vllm = True
        endpoint.limit.open()
    return listed


def _revisions(roots: Mapping[str, object]) -> dict[str, str]:
    """The revision in `name@revision`, if its root is the model's or it has our format."""
    revisions: dict[str, list[str]] = {}
    for one, root in roots.items():
        name, at, revision = one.rpartition("@")
        rooted = bool(root) and roots.get(name) == root
        if at and name in roots and (rooted or re.fullmatch(OURS, revision)):
            revisions.setdefault(name, []).append(revision)
    return {name: several[0] for name, several in revisions.items() if len(several) == 1}


def explain(error: RequestError) -> str:
    """The message for a failed first request, with a remedy."""
    if error.status in (401, 403):
        return str(error)
    if error.status == 404:
        return (
            f"no OpenAI-compatible server at this path ({error}); most end in /v1. If it only "
            "lacks a list of models, name one as model=…"
        )
    if isinstance(error, RetryableError):
        return f"no OpenAI-compatible server answers there: {error}"
    if isinstance(error, FatalError):
        return str(error)
    return (
        f"it cannot be reached ({error}): is it running, and is the port right? "
        "`workbench serve vllm` starts a server"
    )


async def take_fingerprint(
    endpoint: Endpoint, dialect: wire.Dialect, like: Fingerprint | None = None
) -> Fingerprint | None:
    """The server's answers to `PROMPTS`; None in place of a path that it does not have.

    None as a whole if it returns no log-probabilities. With `like`, exactly the prompts that
    `like` has are asked, and all of them must be answered.
    """
    places = [i for i in range(len(PROMPTS)) if like is None or like[i] is not None]
    try:
        async with asyncio.timeout(COLD):
            answers = await asyncio.gather(
                *(_positions(endpoint, dialect, PROMPTS[i]) for i in places), return_exceptions=True
            )
    except TimeoutError:
        raise RetryableError(f"no answer to a fingerprint within {COLD:g} s") from None
    errors = [one for one in answers if isinstance(one, BaseException)]
    # The first time, a path that is missing or always fails may be left out.
    lacking = FatalError if like is not None else (FatalError, RetryableError)
    worse = [one for one in errors if not isinstance(one, lacking)]
    if worse or (errors and (len(errors) == len(answers) or like is not None)):
        raise (worse or errors)[0]
    taken: Fingerprint = [None] * len(PROMPTS)
    for i, answer in zip(places, answers, strict=True):
        taken[i] = None if isinstance(answer, BaseException) else answer
    return taken if any(one is not None for one in taken) else None


async def _positions(
    endpoint: Endpoint, dialect: wire.Dialect, prompt: Prompt
) -> list[Position] | None:
    path, body = wire.request([prompt], SAMPLING, dialect)
    for attempt in range(1, TRIES + 1):
        try:
            (choice,) = wire.choices_in_order(await endpoint.generate(path, body), 1)
            tokens = [] if choice is None else wire.logprobs(choice)
            positions = [(t.token_id, {str(name): p for name, p in t.top}) for t in tokens]
            return positions if positions and len(positions[0][1]) >= LEAST else None
        except AGAIN as error:
            wait = error.retry_after or 0.2 * attempt
            if attempt == TRIES or wait > LONGEST_WAIT:
                raise
            await asyncio.sleep(wait)
        except FatalError:
            raise
        except (RequestError, *wire.ODD_JSON):
            break
    return None


def same(one: Fingerprint | None, other: Fingerprint | None) -> bool:
    """Whether two fingerprints match, as far as both have answers."""
    if one is None or other is None:
        return one is other
    return all(_alike(a, b) for a, b in zip_longest(one, other))


def _alike(one: Sequence[Any] | None, other: Sequence[Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    for (token, top), (another, likewise) in zip(one, other, strict=False):
        if not _close(top, likewise):
            return False
        if token != another:  # equally likely: the texts diverge from here
            pair = [top.get(str(name), -math.inf) for name in (token, another)]
            return bool(min(pair) > max(pair) - 2 * TOLERANCE)
    return len(one) == len(other)


def _close(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Equal within the tolerance; a token in only one list must be near that list's minimum."""
    if not one or not other:
        return not one and not other
    if any(abs(one[token] - other[token]) > TOLERANCE for token in one.keys() & other.keys()):
        return False
    return all(
        value <= min(listed.values()) + TOLERANCE
        for listing, listed in ((one, other), (other, one))
        for token, value in listing.items()
        if token not in listed
    )
