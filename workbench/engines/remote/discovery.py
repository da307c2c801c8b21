"""What servers have: models, exact labels, several prompts in one request, counters."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.engines.remote import wire
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.faults import Broken, Busy, Down, Fatal, Fault
from workbench.errors import InputError

log = logging.getLogger("workbench")
BATCH = "/chat/completions/batch"  # of vLLM, for several chats
PATIENCE = 60.0  # seconds to find out what a server can do: a cold one takes some
METRICS = 3.0  # seconds for a page of counters
HITS = "vllm:prefix_cache_hits_total"
OURS = r"[0-9a-f]{12}-[a-z]+\d+(-[0-9a-f]{8})?"  # a revision as `identity.variant` makes it
NO_LIST = (403, 404, 405, 501)  # a server without /models, or not for this key
LONGEST = 2**40  # tokens of a context, above which it is none


@dataclass(frozen=True, slots=True)
class Served:
    """A model that a server lists; `revision` and `root` are "" where it does not tell them.

    `workbench serve` lists a model under `name@revision` too. `names` are all of the same model.
    """

    name: str
    revision: str = ""
    root: str = ""
    context_length: int = 0
    names: tuple[str, ...] = ()


async def look(endpoint: Endpoint, model: str | None) -> Served:
    """The model as a server lists it now.

    Raises:
        Fault: it does not answer as it should.
        InputError: the model is not among those listed, or there are several and none is named.
    """
    try:
        listed = await _models(endpoint)
    except Fault as fault:
        if model is None or fault.status not in NO_LIST:
            raise
        return Served(model, names=(model,))
    ids = [str(entry["id"]) for entry in listed]
    revisions = _revisions({str(entry["id"]): entry.get("root") for entry in listed})
    names = [name for name in ids if name.rpartition("@")[0] not in revisions]
    if model is None and len(names) != 1:
        known = endpoint.clean(", ".join(names))
        raise InputError(f"{endpoint.shown} serves {known}: choose one as model=…")
    name = names[0] if model is None else model
    entry = next((m for m in listed if m["id"] == name), None)
    if entry is None:
        near = difflib.get_close_matches(name, names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = endpoint.clean(", ".join(names))
        raise InputError(f"{endpoint.shown} has no {name!r}; it serves {known}.{hint}")
    root = entry.get("root")
    root = root if isinstance(root, str) else ""
    same = [str(m["id"]) for m in listed if root and m.get("root") == root]
    return Served(
        name=name,
        revision=revisions.get(name, ""),
        root=root,
        context_length=_context(entry.get("max_model_len")),
        names=(name, *same),
    )


def _revisions(roots: Mapping[str, object]) -> dict[str, str]:
    """What `name@revision` vouches for: the same model by its root, or in the form of ours."""
    found: dict[str, list[str]] = {}
    for one, root in roots.items():
        name, at, revision = one.rpartition("@")
        rooted = bool(root) and roots.get(name) == root
        if at and name in roots and (rooted or re.fullmatch(OURS, revision)):
            found.setdefault(name, []).append(revision)
    return {name: given[0] for name, given in found.items() if len(given) == 1}


def _context(told: object) -> int:
    good = isinstance(told, int) and not isinstance(told, bool) and 0 < told < LONGEST
    return told if good else 0  # type: ignore[return-value]


async def version(endpoint: Endpoint) -> str:
    """vLLM's own, "" where there is none."""
    if endpoint.vllm:
        with contextlib.suppress(Fault, AttributeError):
            return str((await endpoint.get("//version")).get("version", ""))[:40]
    return ""


async def _models(endpoint: Endpoint) -> Sequence[Mapping[str, Any]]:
    reply = await endpoint.get("/models")
    listed = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(listed, list) or not all(isinstance(m, dict) and "id" in m for m in listed):
        raise Broken("its /models lists no models")
    if not listed:
        raise Broken("it serves no model")
    if not endpoint.vllm and any(model.get("owned_by") == "vllm" for model in listed):
        endpoint.vllm = True
        endpoint.gate.open()
    return listed


def explain(endpoint: Endpoint, fault: Fault) -> str:
    """A failure of the first request, with what to do about it."""
    text = str(fault)
    if fault.status in (401, 403):
        had = "refuses the key in" if endpoint.has_key else "wants a key: put it in"
        return f"it {had} WORKBENCH_API_KEY (environment or .env file). It says: {text}"
    if fault.status == 404:
        return (
            f"no OpenAI-compatible server at this path ({text}); most end in /v1. Where it only "
            "does not list its models, name one as model=…"
        )
    if isinstance(fault, Broken):
        return f"no OpenAI-compatible server answers there: {text}"
    if isinstance(fault, Fatal):
        return text
    return (
        f"it cannot be reached ({text}): is it running, and the port right? "
        "`workbench serve vllm` starts a server"
    )


async def gives_named_logprobs(endpoint: Endpoint, model: str) -> bool | None:
    """Whether it gives log-probabilities of token ids that are named to it, as vLLM does.

    None where it does not answer now.

    This is asked and not taken from a name: vLLM may stand behind a gateway with another one.
    """
    body = {
        "model": model,
        "prompt": "1",
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 0,
        "logprob_token_ids": [1],
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    for wait in (0.3, 1.0, 0.0):
        try:
            async with asyncio.timeout(PATIENCE):
                (choice,) = wire.by_index(await endpoint.post("/completions", body), 1)
            told = dict(wire.logprobs(choice or {})[0].top)
            break
        except (Busy, Down, Broken, TimeoutError):
            await asyncio.sleep(wait)
        except (Fault, *wire.BAD):
            return False
    else:
        return None
    return 1 in told and wire.token_ids(choice or {}, "prompt_token_ids") is not None


async def takes_several(endpoints: Sequence[Endpoint], model: str, *, chats: bool) -> None:
    """Find out, once for each server, whether it takes several prompts in one request."""

    async def try_out(endpoint: Endpoint) -> None:
        body: dict[str, Any] = {"model": model, "max_tokens": 1}
        talk = [{"role": "user", "content": "1"}]
        body |= {"messages": [talk, talk]} if chats else {"prompt": ["1", "2"]}
        several = False
        if endpoint.vllm or not chats:
            try:
                async with asyncio.timeout(PATIENCE):
                    reply = await endpoint.post(BATCH if chats else "/completions", body)
                several = len(reply["choices"]) == 2
            except (Busy, Down, Broken, TimeoutError, *wire.BAD):
                return  # not today
            except Fault as fault:
                log.info("%s takes one prompt a request: %s", endpoint.shown, fault)
        if chats:
            endpoint.batch = several
        else:
            endpoint.multi = several

    known = [(e, e.batch if chats else e.multi) for e in endpoints if e.absent is None]
    await asyncio.gather(*(try_out(e) for e, several in known if several is None))


async def prefix_cache_hits(endpoints: Sequence[Endpoint]) -> float | None:
    """Prompt tokens that the servers have found in their prefix caches since they started."""
    try:
        async with asyncio.timeout(METRICS):
            pages = await asyncio.gather(*(endpoint.text("//metrics") for endpoint in endpoints))
        lines = [line for page in pages for line in page.splitlines() if line.startswith(HITS)]
        total = sum(float(line.rsplit(" ", 1)[1]) for line in lines)
    except (Fault, TimeoutError, ValueError, IndexError):
        return None
    return total if lines and 0 <= total < LONGEST else None
