"""What servers have: models, several prompts in one request, counters. Asked once each."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.faults import Broken, Busy, Down, Fatal, Fault
from workbench.errors import EngineUnavailableError, InputError

__all__ = ["Served", "discover", "prefix_cache_hits", "takes_several"]

log = logging.getLogger("workbench")
BATCH = "/chat/completions/batch"  # of vLLM, for several chats
METRICS = 3.0  # seconds for a page of counters
HITS = "vllm:prefix_cache_hits_total"


@dataclass(frozen=True, slots=True)
class Served:
    """A model that a server lists; `revision` and `version` are "" where it does not tell them.

    `workbench serve` lists a model under `name@revision` too.
    """

    name: str
    revision: str
    root: str
    context_length: int
    vllm: bool
    version: str


async def discover(endpoints: list[Endpoint], model: str | None) -> Served:
    """The model that all servers have; those that do not answer now are dropped from the list.

    Raises:
        InputError: the model is not among those listed, or servers differ in it.
        EngineUnavailableError: no server answers as one should.
    """
    found = await asyncio.gather(*(_served(endpoint, model) for endpoint in endpoints))
    there = [(e, one) for e, one in zip(endpoints, found, strict=True) if isinstance(one, Served)]
    lost = [(e, one) for e, one in zip(endpoints, found, strict=True) if isinstance(one, str)]
    if not there:
        raise EngineUnavailableError("; ".join(f"{e.shown}: {reason}" for e, reason in lost))
    for endpoint, reason in lost:
        log.warning("%s is left out: %s", endpoint.shown, reason)
    first = there[0][1]
    for endpoint, other in there:
        if (other.name, other.revision, other.root) != (first.name, first.revision, first.root):
            raise InputError(
                f"{endpoint.shown} serves {other}, {there[0][0].shown} serves {first}: several "
                "servers must have the same model"
            )
    endpoints[:] = [endpoint for endpoint, _ in there]
    return first


async def _served(endpoint: Endpoint, model: str | None) -> Served | str:
    """The model, or why the server cannot be used."""
    try:
        listed = await _models(endpoint)
    except Fault as fault:
        return _explain(endpoint, fault)
    ids = [str(entry["id"]) for entry in listed]
    parts = [name.rpartition("@") for name in ids]
    revisions = {name: revision for name, at, revision in parts if at and name in ids}
    names = [name for name in ids if name.rpartition("@")[0] not in revisions]
    if model is None and len(names) != 1:
        raise InputError(f"{endpoint.shown} serves {', '.join(names)}: choose one as model=…")
    name = names[0] if model is None else model
    entry = next((m for m in listed if m["id"] == name), None)
    if entry is None:
        near = difflib.get_close_matches(name, names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{endpoint.shown} has no {name!r}; it serves {', '.join(names)}.{hint}")
    version = ""
    if endpoint.vllm:
        with contextlib.suppress(Fault, AttributeError):
            version = str((await endpoint.get("//version")).get("version", ""))
    context = entry.get("max_model_len")
    context = context if isinstance(context, int) else 0
    root = str(entry.get("root") or "")
    return Served(name, revisions.get(name, ""), root, context, endpoint.vllm, version)


async def _models(endpoint: Endpoint) -> Sequence[Mapping[str, Any]]:
    reply = await endpoint.get("/models")
    listed = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(listed, list) or not all(isinstance(m, dict) and "id" in m for m in listed):
        raise Broken("its /models lists no models")
    if not listed:
        raise Broken("it serves no model")
    endpoint.vllm = any(model.get("owned_by") == "vllm" for model in listed)
    if endpoint.vllm:
        endpoint.gate.open()
    return listed


def _explain(endpoint: Endpoint, fault: Fault) -> str:
    """A failure of the first request, with what to do about it."""
    text = str(fault)
    if "HTTP 401" in text or "HTTP 403" in text:
        had = "refuses the key in" if endpoint.has_key else "wants a key: put it in"
        return f"it {had} WORKBENCH_API_KEY (environment or .env file). It says: {text}"
    if "HTTP 404" in text:
        return f"no OpenAI-compatible server at this path ({text}); most end in /v1"
    if isinstance(fault, Broken):
        return f"no OpenAI-compatible server answers there: {text}"
    if isinstance(fault, Fatal):
        return text
    return (
        f"it cannot be reached ({text}): is it running, and the port right? "
        "`workbench serve vllm` starts a server"
    )


async def takes_several(endpoints: Sequence[Endpoint], model: str, *, chats: bool) -> None:
    """Find out, once for each server, whether it takes several prompts in one request."""

    async def try_out(endpoint: Endpoint) -> None:
        body: dict[str, Any] = {"model": model, "max_tokens": 1}
        talk = [{"role": "user", "content": "1"}]
        body |= {"messages": [talk, talk]} if chats else {"prompt": ["1", "2"]}
        several = False
        if endpoint.vllm or not chats:
            try:
                reply = await endpoint.post(BATCH if chats else "/completions", body)
                several = len(reply["choices"]) == 2
            except (Busy, Down, Broken, KeyError, TypeError):
                return  # not today
            except Fault as fault:
                log.info("%s takes one prompt a request: %s", endpoint.shown, fault)
        if chats:
            endpoint.batch = several
        else:
            endpoint.multi = several

    known = [(e, e.batch if chats else e.multi) for e in endpoints]
    await asyncio.gather(*(try_out(e) for e, several in known if several is None))


async def prefix_cache_hits(endpoints: Sequence[Endpoint]) -> float | None:
    """Prompt tokens that the servers have found in their prefix caches since they started."""
    try:
        async with asyncio.timeout(METRICS):
            pages = await asyncio.gather(*(endpoint.text("//metrics") for endpoint in endpoints))
        lines = [line for page in pages for line in page.splitlines() if line.startswith(HITS)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines) if lines else None
    except (Fault, TimeoutError, ValueError, IndexError):
        return None
