"""The engine over OpenAI-compatible servers: vLLM's, or a paid API's.

Requests carry many prompts where a server takes them, as many are in the air as it bears, and
each is asked until it is answered or patience ends.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from workbench.engines.base import BaseEngine, Request, failure
from workbench.engines.chat import CHAT, ChatOptions, is_prefill, with_remedy
from workbench.engines.checks import check_prompts
from workbench.engines.remote import loop, wire
from workbench.engines.remote.discovery import (
    BATCH,
    gives_named_logprobs,
    prefix_cache_hits,
    takes_several,
    version,
)
from workbench.engines.remote.dispatch import Dispatcher, Effort, Plan
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.faults import Failed, Refused
from workbench.engines.remote.gate import RateLimit
from workbench.engines.remote.labels import Asker, doubled, score_exactly, score_from_top
from workbench.engines.remote.options import Estimate, RemoteOptions, about
from workbench.engines.remote.patience import Patience
from workbench.engines.remote.sameness import Sameness
from workbench.errors import InputError
from workbench.store import Store
from workbench.types import Completion, EngineInfo, LabelRow, Prompt, Sampling, Usage

log = logging.getLogger("workbench")
MARKS = 64  # beginnings of texts that are asked about in one call
SAMPLES = 32  # of one prompt in a request
MARK = re.compile(r"<[^<>\s]{1,60}>|\[[A-Za-z_]{1,60}\]")


class RemoteEngine(BaseEngine):
    """OpenAI-compatible servers behind the `Engine` protocol.

    Args:
        model: a served name; None is the only one that the server lists.
        store: where responses are kept.
        why: how this engine came to be chosen, for `info`.
        options: the fields of `RemoteOptions`, and `base_url`: a URL or a list of them.

    Raises:
        InputError: an unknown option, a URL that is none, a model that is not served.
        EngineUnavailableError: no server answers, or it refuses the key.
    """

    def __init__(
        self, model: str | None, store: Store | None, why: str, options: Mapping[str, Any]
    ) -> None:
        given = dict(options)
        urls = given.pop("base_url", None)
        self._options = chosen = RemoteOptions.of(given)
        self._endpoints = [
            Endpoint(url, chosen.transport, chosen.max_concurrency, chosen.timeout, chosen.headers)
            for url in _urls(urls)
        ]
        self._patience = Patience(
            attempts=chosen.attempts, total=chosen.total_timeout, dead=chosen.patience
        )
        self._limit = RateLimit(chosen.requests_per_minute, chosen.tokens_per_minute)
        self._rate = self._limit.open()
        self._effort = Effort()
        self._last_hits: float | None = None
        self._label_ids: dict[str, list[int]] = {}
        self._kinds: set[bool] = set()  # texts (False) and chats (True), as they have come
        self._bos: dict[str, bool] = {}  # beginnings of texts: whether they are the BOS
        chats = ChatOptions.of({name: getattr(chosen, name) for name in CHAT})
        self._same = Sameness(chosen.revision, chats)
        served = loop.run(self._same.establish(self._endpoints, model))
        self._model = served.name
        self._dialect = self._same.dialect
        first, there = self._endpoints[0], [e for e in self._endpoints if e.absent is None]
        vouched = served.revision or self._same.fingerprint(first, store)
        info = EngineInfo(
            engine="remote",
            model=served.name,
            revision=chosen.revision or vouched or "not told",
            device=self._places(),
            dtype="as served",
            context_length=served.context_length,
            versions=_versions(loop.run(version(there[0]))),
            why=why,
        )
        # Where the server itself does not vouch for the weights, what it says is worth as much as
        # the place where it says so.
        where = [] if served.revision else [first.url]
        identity = {
            "served": [served.name, chosen.revision, vouched, served.context_length, *where],
            "template": chats.given,
            "vllm": self._dialect.vllm,  # what is said to it beyond the protocol's core
        }
        super().__init__(info, identity, store, variant=served.revision)
        if not (chosen.revision or vouched):
            self._store_nothing(
                f"{first.shown} tells no revision of {served.name} and gives no log-probabilities "
                "to know its weights by; if you know them, give revision=…"
            )
        self._counted = there
        self._hits_before = self._hits()

    def _places(self) -> str:
        return ", ".join(e.shown for e in self._endpoints if e.absent is None)

    @property
    def usage(self) -> Usage:
        """What has been done; cached tokens are those of all that use the server meanwhile."""
        total = super().usage
        hits, cached = self._hits(), None
        if hits is not None and self._hits_before is not None and hits >= self._hits_before:
            cached = min(round(hits - self._hits_before), total.prompt_tokens)
        return replace(
            total,
            cached_tokens=cached,
            retries=self._effort.retries,
            rate_limit_hits=self._effort.rate_limit_hits,
        )

    def estimate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Estimate:
        """What a call with these prompts will ask for at the most, the store left aside.

        Raises:
            InputError: the prompts are unusable as a whole.
        """
        check_prompts(prompts)
        count = len(prompts) * sampling.n
        prompt_tokens = sampling.n * sum(map(about, prompts))
        most = count * sampling.max_tokens
        minutes = self._limit.minutes(count, prompt_tokens + most)
        return Estimate(count, prompt_tokens, most, minutes)

    def takes_several(self, *, chats: bool = False) -> bool:
        """Whether the servers take several prompts (or chats) in one request."""
        self._try_out(chats=chats)
        there = [endpoint for endpoint in self._endpoints if endpoint.absent is None]
        return all(endpoint.batch if chats else endpoint.multi for endpoint in there)

    def _free(self) -> None:
        self._last_hits = self._hits()
        for endpoint in self._endpoints:
            endpoint.close()

    def _hits(self) -> float | None:
        """The servers' counter of cached tokens; at the last after closing."""
        if not self._dialect.vllm or self._last_hits is not None:
            return self._last_hits
        try:
            return loop.run(prefix_cache_hits(self._counted))
        except Exception:  # noqa: BLE001  # nothing may go wrong for the sake of a number
            return None

    def _complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Completion]]]:
        sampling, chats = requests[0].sampling, not isinstance(requests[0].prompt, str)
        if self.info.context_length:  # vLLM refuses more, and ends there as in process
            sampling = replace(
                sampling, max_tokens=min(sampling.max_tokens, self.info.context_length)
            )
        self._prepare([request.prompt for request in requests], sampling)
        self._try_out(chats=chats)

        async def ask(
            endpoint: Endpoint, packet: Sequence[Request]
        ) -> Sequence[Completion | Failed | None]:
            return await self._answers(endpoint, packet, sampling, chats=chats)

        several = any(e.batch if chats else e.multi for e in self._endpoints)
        size = self._options.size or (None if several else SAMPLES)

        def spare(batch: list[tuple[Request, Completion | Failed]]) -> None:
            self._unfetched += [(job, _row(result, job.prompt)) for job, result in batch]

        def together(endpoint: Endpoint, first: Request, other: Request) -> bool:
            return _together(endpoint, first, other) and self._form(first.prompt) == self._form(
                other.prompt
            )

        plan = Plan(ask, together, _tokens, size, spare)
        jobs = sorted(requests, key=_prefix)  # those that share a prefix travel together
        for batch in self._dispatch(plan, jobs):
            yield [(job, _row(result, job.prompt)) for job, result in batch]

    def _score(self, prompts: Sequence[Prompt], labels: Sequence[str]) -> Iterator[list[LabelRow]]:
        self._prepare(prompts, Sampling(max_tokens=1))
        self._try_out(chats=False)
        asker = Asker(
            self._endpoints,
            self._model,
            self._dialect,
            self._options.size,
            self._dispatch,
            self._has_bos,
        )
        loop.run(self._find_exact())
        there = [e for e in self._endpoints if e.absent is None]
        if all(e.vllm if e.exact is None else e.exact for e in there):
            missing = [label for label in labels if label not in self._label_ids]
            self._label_ids |= asker.label_ids(missing) if missing else {}
            ids = [self._label_ids[label] for label in labels]
            yield from score_exactly(asker, prompts, labels, ids)
        else:
            yield from score_from_top(asker, prompts, labels)

    def _prepare(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Refuse what the servers cannot do, and find out what they take, before any work."""
        wire.check(sampling, self._dialect)
        self._announce(prompts, sampling)
        self._learn_bos(prompts)
        chats = not isinstance(prompts[0], str)
        if chats and not self._dialect.vllm and any(map(self._form, prompts)):
            self._note(
                "a last message of the assistant's is sent as it is: whether this server continues "
                "it or answers anew is its own rule"
            )

    def _learn_bos(self, prompts: Sequence[Prompt]) -> None:
        """Ask vLLM which beginnings of these texts are the BOS that it would put there itself."""
        marks = {mark for one in prompts if isinstance(one, str) and (mark := _mark(one))}
        there = [e for e in self._endpoints if e.absent is None and e.vllm]
        new = sorted(marks - self._bos.keys())[:MARKS]
        if there and new:
            self._bos |= loop.run(doubled(there, self._model, new))
            if set(new) - self._bos.keys():
                self._note("whether texts get a second BOS could not be asked: no tokens are given")

    def _has_bos(self, prompt: str) -> bool:
        return self._bos.get(_mark(prompt), False)

    def _form(self, prompt: Prompt) -> bool:
        """What all prompts of a packet have in common: the answer is begun, or the BOS is there."""
        return self._has_bos(prompt) if isinstance(prompt, str) else is_prefill(prompt)

    async def _find_exact(self) -> None:
        """Ask each server once whether it gives the log-probabilities of tokens named to it."""
        for endpoint in self._endpoints:
            if endpoint.exact is None and endpoint.absent is None:
                endpoint.exact = await gives_named_logprobs(endpoint, self._model)

    def _try_out(self, *, chats: bool) -> None:
        """Find out what the servers take, unless one prompt a request is wanted anyway."""
        self._kinds.add(chats)
        if self._options.size != 1:
            loop.run(takes_several(self._endpoints, self._model, chats=chats))

    async def _look(self, endpoint: Endpoint) -> None:
        """Whether a server still serves the same, or does so now that it is up.

        Raises:
            Fault: it does not, or cannot be asked.
        """
        await self._same.check(endpoint)
        endpoint.seen()
        if endpoint.absent is None:
            return
        for chats in self._kinds if self._options.size != 1 else ():
            absent, endpoint.absent = endpoint.absent, None
            try:
                await takes_several([endpoint], self._model, chats=chats)
            finally:
                endpoint.absent = absent
        if endpoint.exact is None:
            endpoint.exact = await gives_named_logprobs(endpoint, self._model)
        self._info = replace(self._info, device=f"{self._places()}, {endpoint.shown}")

    def _dispatch(self, plan: Plan[Any, Any], jobs: Sequence[Any]) -> Iterator[list[Any]]:
        before = replace(self._effort)
        dispatcher = Dispatcher(
            self._endpoints, plan, self._rate, self._patience, self._effort, look=self._look
        )
        try:
            yield from dispatcher.run(jobs)
        finally:
            now, peak = self._effort, sum(e.gate.peak for e in self._endpoints)
            sent = max(1, now.requests - before.requests)
            log.info(
                "remote: %d requests of %.1f prompts, at most %d at once, %d asked again, %d of "
                "them for too many requests",
                now.requests - before.requests,
                (now.prompts - before.prompts) / sent,
                peak,
                now.retries - before.retries,
                now.rate_limit_hits - before.rate_limit_hits,
            )

    async def _answers(
        self, endpoint: Endpoint, packet: Sequence[Request], sampling: Sampling, *, chats: bool
    ) -> list[Completion | Failed | None]:
        prompts, seed = [request.prompt for request in packet], packet[0].seed
        several = endpoint.batch if chats else endpoint.multi
        if not several and any(prompt != prompts[0] for prompt in prompts):
            raise Refused("this server takes one prompt a request")  # the packet is halved
        body = (wire.chat if chats else wire.completions)(
            prompts if several else prompts[:1], sampling, seed, self._dialect
        )
        body["model"] = self._model
        if not chats and self._form(packet[0].prompt):
            body["add_special_tokens"] = False
        path = "/chat/completions" if chats else "/completions"
        if len(packet) > 1 and not several:
            body["n"] = len(packet)  # one prompt, several samples
        elif len(packet) > 1 and chats:
            path = BATCH
        reply = await endpoint.generate(path, body)
        self._see_model(reply.get("model"), endpoint)

        def note(what: str) -> None:
            self._note(endpoint.clean(what))

        def one(_: int, choice: wire.Choice, share: wire.Usage) -> Completion:
            row = wire.read(choice, sampling, share, note)
            return row if row.error is None else replace(row, error=endpoint.clean(row.error))

        return wire.each(reply, len(packet), one)

    def _see_model(self, answered: object, endpoint: Endpoint) -> None:
        """Say so, once, where a server answers with another model than it was asked for."""
        if isinstance(answered, str) and answered and answered not in self._same.served.names:
            self._note(f"asked for {self._model!r}, answered by {endpoint.clean(answered)!r}")

    def _announce(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Before money is spent, or minutes are waited: how much."""
        limited = self._limit.requests_per_minute or self._limit.tokens_per_minute
        if limited or any(endpoint.paid for endpoint in self._endpoints):
            log.warning("remote: %s", self.estimate(prompts, sampling))


def _row(result: Completion | Failed, prompt: Prompt) -> Completion:
    if isinstance(result, Completion):
        return result
    return failure(result.reason if isinstance(prompt, str) else with_remedy(result.reason, prompt))


def _mark(text: str) -> str:
    """What a text begins with that looks like a special token; "" if nothing does."""
    found = MARK.match(text)
    return found[0] if found else ""


def _together(endpoint: Endpoint, first: Request, other: Request) -> bool:
    """Requests with seeds of their own go alone; else several prompts, or samples of one."""
    if first.seed is not None or other.seed is not None:
        return False
    several = endpoint.multi if isinstance(first.prompt, str) else endpoint.batch
    return bool(several) or (first.sampling.temperature > 0 and first.prompt == other.prompt)


def _prefix(request: Request) -> str:
    return request.prompt if isinstance(request.prompt, str) else str(request.prompt)


def _tokens(request: Request) -> int:
    return about(request.prompt) + request.sampling.max_tokens


def _urls(given: object) -> list[str]:
    urls = [given] if isinstance(given, str) else given
    if not isinstance(urls, Sequence) or not urls:
        raise InputError(
            f"base_url={given!r}: give a server's URL such as http://127.0.0.1:8000/v1, several "
            "in a list, or one in WORKBENCH_BASE_URL; `workbench serve vllm` starts a server"
        )
    return list(urls)


def _versions(vllm: str) -> dict[str, str]:
    mine = {name: importlib.metadata.version(name) for name in ("openai", "workbench")}
    return mine | ({"vllm": vllm} if vllm else {})
