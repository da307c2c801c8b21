"""The engine for OpenAI-compatible servers: vLLM's, or a paid API's.

Requests hold many prompts where the server accepts that. As many are in flight as the concurrency
limit allows, and each is retried until it is answered or its time is spent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.engines.base import BaseEngine, failure
from workbench.engines.chat import CHAT, ChatOptions, is_prefill, with_remedy
from workbench.engines.estimate import Estimate, estimated_tokens
from workbench.engines.remote import wire
from workbench.engines.remote.abilities import (
    NO_PATH,
    find_chats,
    find_completions,
    find_exact,
    find_logprobs,
    find_several,
    prefix_cache_hits,
    version,
)
from workbench.engines.remote.dispatch import Dispatcher, Plan
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.fleet import Fleet
from workbench.engines.remote.http import run_coroutine
from workbench.engines.remote.label_scores import (
    LabelScorer,
    beginning,
    bos_doubled,
    token_counts,
)
from workbench.engines.remote.retry import Failure, FatalError, RateLimit, RejectedError
from workbench.engines.remote.served import Identity
from workbench.engines.remote.settings import RemoteOptions
from workbench.engines.remote.words import NO_LONGER, NO_TEXTS, refuses
from workbench.engines.requests import Request, check_prompts
from workbench.engines.source import OURS
from workbench.engines.style import EMBEDDED_STYLE, style_by_name
from workbench.errors import InputError
from workbench.machine import versions
from workbench.messages import images_in
from workbench.progress import waiting
from workbench.store import Store, digest
from workbench.types import Completion, EngineInfo, LabelRow, Prompt, PromptStyle, Sampling, Usage

log = logging.getLogger("workbench")
BEGINNINGS = 64  # maximum number of texts' beginnings to check per call
NO_SEED = "the server accepts no seed: its samples are not repeatable"
SAMPLES = 32  # samples of one prompt per request


class RemoteEngine(BaseEngine):
    """OpenAI-compatible servers behind the `Engine` protocol.

    Args:
        model: a served name; None is the only model that the server lists.
        store: where answers are kept.
        why: why this engine was chosen, for `info`.
        options: the fields of `RemoteOptions`, and `base_url`: see `Fleet`.

    Raises:
        InputError: an unknown option, an invalid URL, or a model that is not served.
        EngineUnavailableError: no server answers, or it refuses the key.
    """

    def __init__(
        self, model: str | None, store: Store | None, why: str, options: Mapping[str, Any]
    ) -> None:
        others = {name: value for name, value in options.items() if name != "base_url"}
        self._options = chosen = RemoteOptions.of(others)
        self._fleet = Fleet(options.get("base_url"), chosen)
        self._endpoints = self._fleet.endpoints
        self._rate = RateLimit(chosen.requests_per_minute, chosen.tokens_per_minute)
        self._retried = Usage()  # retries and rate-limit hits
        self._last_hits: float | None = None
        self._label_ids: dict[str, list[int]] = {}
        self._kinds: set[bool] = set()  # kinds of prompts so far: texts (False), chats (True)
        self._texts = False  # whether texts have been continued
        self._bos: dict[str, bool] = {}  # beginnings of texts: whether they are the BOS
        chats = ChatOptions.of({name: getattr(chosen, name) for name in CHAT})
        self._model = Identity(chosen.revision, chats)
        waiting(self._fleet.shown(self._endpoints))
        served = run_coroutine(self._model.establish(self._fleet, model))
        self._dialect = self._model.dialect
        self._counted = self._there()
        verified = served.revision or self._model.fingerprint(self._fleet.name, store)
        vllm = run_coroutine(version(self._counted[0]))
        info = EngineInfo(
            engine="remote",
            model=served.name,
            revision=chosen.revision or verified or "not reported",
            device=self._fleet.shown(self._there()),
            dtype="as served",
            context_length=served.context_length,
            versions=versions("openai") | ({"vllm": vllm} if vllm else {}),
            why=why,
        )
        # Where servers list no revision, the same answers count only from the same URL or fleet.
        where = [] if served.revision else [self._fleet.name]
        identity = {
            "served": [served.name, chosen.revision, verified, served.context_length, *where],
            "template": chats.given,
            "vllm": self._dialect.vllm,  # requests to vLLM use more than the protocol's core
        }
        super().__init__(info, identity, store, variant=served.revision)
        if not (chosen.revision or verified):
            self._store_nothing(
                f"{self._endpoints[0].shown} lists no revision of {served.name}, and returns no "
                "log-probabilities to identify its weights by; if you know them, set revision=…"
            )
        self._hits_before = self._hits()
        self._seedless = digest("no seed", self._identity.hex())  # a fact for the store

    def _base(self, sampling: Sampling) -> Any:
        """The key's base; repeats the note about seeds for stored answers."""
        seeded = sampling.seed is not None and sampling.temperature > 0
        if seeded and self._store is not None and self._store.update(self._seedless, bool):
            self._note(NO_SEED)
        return super()._base(sampling)

    def _there(self) -> list[Endpoint]:
        return [endpoint for endpoint in self._endpoints if endpoint.absent is None]

    @property
    def usage(self) -> Usage:
        """Counts so far; cached tokens include those of the servers' other clients."""
        total, hits, cached = super().usage, self._hits(), None
        if hits is not None and self._hits_before is not None and hits >= self._hits_before:
            cached = min(round(hits - self._hits_before), total.prompt_tokens)
        return replace(total, cached_tokens=cached) + self._retried

    def estimate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Estimate:
        """The maximum that a call with these prompts uses, if nothing is stored.

        Raises:
            InputError: the prompts are unusable as a whole.
        """
        prompts = check_prompts(prompts)
        count = len(prompts) * sampling.n
        prompt_tokens = sampling.n * sum(map(estimated_tokens, prompts))
        most = count * sampling.max_tokens
        return Estimate(count, prompt_tokens, most, self.minutes(count, prompt_tokens + most))

    def minutes(self, requests: int, tokens: int) -> float:
        """Minutes that so many requests and tokens take under the rate limits; 0 without limits."""
        return self._rate.minutes(requests, tokens)

    def count_tokens(self, prompts: Sequence[Prompt]) -> tuple[list[int], bool]:
        """Token counts by the server's tokenizer, if it is vLLM and exposes it, else estimates."""
        there = [endpoint for endpoint in self._there() if endpoint.vllm and endpoint.tokenizes]
        if not there:
            return super().count_tokens(prompts)
        self._learn_bos(prompts)
        bodies = [
            {"prompt": prompt, "add_special_tokens": not self._has_bos(prompt)}
            if isinstance(prompt, str)
            else wire.rendering([prompt], self._dialect)
            for prompt in prompts
        ]
        model = {"model": self._dialect.model}
        counts = run_coroutine(token_counts(there[0], [{**model, **body} for body in bodies]))
        return (counts, True) if counts else super().count_tokens(prompts)

    def takes_several(self, *, chats: bool = False) -> bool:
        """Whether the servers accept several prompts (or chats) per request."""
        self._find_several(chats=chats)
        return all(endpoint.several(chats=chats) for endpoint in self._there())

    @property
    def has_completions(self) -> bool:
        """Whether all servers continue texts, as far as is known."""
        there = self._there()
        run_coroutine(find_completions(there, self._dialect.model))
        return all(endpoint.completes is not False for endpoint in there)

    def has_logprobs(self, *, chats: bool) -> bool:
        """Whether answers include log-probabilities, as far as is known."""
        there = self._there()
        run_coroutine(find_logprobs(there, self._dialect, chats=chats))
        return all(endpoint.logprobs is not False for endpoint in there)

    @property
    def answers_chats(self) -> bool:
        """Whether all servers answer chats, as far as is known."""
        there = self._there()
        run_coroutine(find_chats(there, self._dialect.model))
        return all(endpoint.chats is not False for endpoint in there)

    def suited_style(self) -> tuple[PromptStyle, str]:
        """See `style.chosen_style`."""
        if not self.has_completions:
            return "chat", "the server has no completions"
        served = self._model.served
        style, why = style_by_name(served.root or served.name)
        if served.name in OURS or Path(served.root) in OURS.values():
            style, why = "completion", EMBEDDED_STYLE
        if style == "chat" and not self.answers_chats:
            return "completion", "the server refuses chats"
        return style or "completion", why

    def _free(self) -> None:
        self._last_hits = self._hits()
        self._fleet.close()

    def _hits(self) -> float | None:
        """The servers' counter of cached tokens; after closing, its last value."""
        if not self._dialect.vllm or self._last_hits is not None:
            return self._last_hits
        try:
            return run_coroutine(prefix_cache_hits(self._counted))
        except Exception:  # noqa: BLE001  # a missing number must not end a run
            return None

    def _complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Completion]]]:
        sampling, chats = requests[0].sampling, not isinstance(requests[0].prompt, str)
        if self.info.context_length:  # vLLM refuses more; in process, answers end there too
            most = min(sampling.max_tokens, self.info.context_length)
            sampling = replace(sampling, max_tokens=most)
        self._find_several(chats=chats)
        self._prepare([request.prompt for request in requests], sampling)

        async def ask(
            endpoint: Endpoint, packet: Sequence[Request]
        ) -> Sequence[Completion | Failure | None]:
            return await self._ask(endpoint, packet, sampling)

        def spare(batch: list[tuple[Request, Completion | Failure]]) -> None:
            self._unfetched += [(job, _completion(result, job.prompt)) for job, result in batch]

        def together(endpoint: Endpoint, first: Request, other: Request) -> bool:
            """Seeded requests are sent alone; else several prompts, or samples of one prompt."""
            if first.seed is not None or other.seed is not None:
                return False
            samples = sampling.temperature > 0 and first.prompt == other.prompt and endpoint.samples
            alike = self._form(first.prompt) == self._form(other.prompt)
            several = endpoint.several(chats=chats) and not images_in(first.prompt)  # large
            return alike and (bool(several) or samples)

        def tokens(request: Request) -> int:
            return estimated_tokens(request.prompt) + request.sampling.max_tokens

        several = any(endpoint.several(chats=chats) for endpoint in self._endpoints)
        size = self._options.size or (None if several else SAMPLES)
        jobs = sorted(requests, key=lambda one: str(one.prompt))  # shared prefixes stay together
        plan = Plan(ask, together, tokens, size, spare, lambda one: str(one.prompt))
        for batch in self._dispatch(plan, jobs):
            yield [(job, _completion(result, job.prompt)) for job, result in batch]

    def _score(
        self, prompts: Sequence[Prompt], labels: Sequence[tuple[str, ...]]
    ) -> Iterator[list[LabelRow]]:
        self._find_several(chats=False)
        self._prepare(prompts, Sampling(max_tokens=1))
        scorer = LabelScorer(
            self._dialect, self._options.size, self._dispatch, self._has_bos, self._label_ids,
            len(self._endpoints),
        )  # fmt: skip
        run_coroutine(find_exact(self._there(), self._dialect.model))
        exact = all(e.vllm if e.exact is None else e.exact for e in self._there())
        yield from (scorer.exactly if exact else scorer.from_likeliest)(prompts, labels)

    def _prepare(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Refuse what the servers cannot do, and find out what they support, before any work."""
        wire.check(sampling, self._dialect, prompts[0])
        if isinstance(prompts[0], str):
            self._check_completions()
        if self._rate or any(endpoint.paid for endpoint in self._endpoints):
            log.warning("remote: %s", self.estimate(prompts, sampling))
        self._learn_bos(prompts)
        chats = not isinstance(prompts[0], str)
        if chats and not self._dialect.vllm and any(map(self._form, prompts)):
            self._note(
                "the last message is the assistant's and is sent unchanged: this server may "
                "continue it or begin a new answer"
            )

    def _check_completions(self) -> None:
        """Refuse texts if a server has no completions; accepting several at once proves it has."""
        self._texts = True
        alone = self._options.size == 1  # then `find_several` did not test it
        there = [e for e in self._there() if e.multi is False or (alone and not e.vllm)]
        run_coroutine(find_completions(there, self._dialect.model))
        for endpoint in self._there():
            if endpoint.completes is False:
                raise InputError(f"{endpoint.shown}: {NO_TEXTS}")

    def _learn_bos(self, prompts: Sequence[Prompt]) -> None:
        """Find out which beginnings of these texts are the BOS that vLLM would add itself."""
        beginnings = {beginning(prompt) for prompt in prompts if isinstance(prompt, str)} - {""}
        there = [endpoint for endpoint in self._there() if endpoint.vllm]
        new = sorted(beginnings - self._bos.keys())[:BEGINNINGS]
        if there and new:
            self._bos |= run_coroutine(bos_doubled(there, self._dialect.model, new))
            if set(new) - self._bos.keys():
                self._note("could not check for a second BOS: the server returns no tokens")

    def _has_bos(self, prompt: str) -> bool:
        return self._bos.get(beginning(prompt), False)

    def _form(self, prompt: Prompt) -> bool:
        """What prompts of a packet must share: a begun answer (chats) or a BOS (texts)."""
        return self._has_bos(prompt) if isinstance(prompt, str) else is_prefill(prompt)

    def _find_several(self, *, chats: bool) -> None:
        """Find out what the servers accept, unless requests hold one prompt anyway."""
        self._kinds.add(chats)
        if self._options.size != 1:
            run_coroutine(find_several(self._there(), self._dialect.model, chats=chats))

    async def _look(self, endpoint: Endpoint) -> None:
        """Check that a server serves the same model, also when it has just come up.

        Raises:
            RequestError: it does not, or does not answer.
        """
        await self._model.check(endpoint)
        endpoint.seen()
        if endpoint.absent is None:
            return
        for chats in self._kinds if self._options.size != 1 else ():
            await find_several([endpoint], self._dialect.model, chats=chats)
        if self._texts:
            await find_completions([endpoint], self._dialect.model)
            if endpoint.completes is False:
                raise FatalError(NO_TEXTS)
        await find_exact([endpoint], self._dialect.model)
        self._info = replace(self._info, device=self._fleet.shown([*self._there(), endpoint]))

    def _dispatch(self, plan: Plan[Any, Any], jobs: Sequence[Any]) -> Iterator[list[Any]]:
        def count(used: Usage) -> None:
            self._retried += used

        return Dispatcher(self._fleet, plan, self._rate, self._options, count, self._look).run(jobs)

    async def _ask(
        self, endpoint: Endpoint, packet: Sequence[Request], sampling: Sampling
    ) -> Sequence[Completion | Failure | None]:
        prompts = [request.prompt for request in packet]
        chats = not isinstance(prompts[0], str)
        several = endpoint.several(chats=chats)
        sent = prompts if several else prompts[:1]
        path, body = wire.request(sent, sampling, self._dialect, packet[0].seed)
        if not chats and self._form(prompts[0]):
            body["add_special_tokens"] = False
        if len(sent) < len(packet):
            body["n"] = len(packet)  # one prompt, several samples
        reply = await self._generate(endpoint, path, body)
        answered = reply.get("model")
        if isinstance(answered, str) and answered and answered not in self._model.served.names:
            named = endpoint.clean(answered)
            self._note(f"asked for {self._dialect.model!r}, answered by {named!r}")

        def read(_: int, choice: wire.Choice, counts: wire.TokenCounts) -> Completion:
            row = wire.read(choice, sampling, counts, lambda odd: self._note(endpoint.clean(odd)))
            if row.error is not None:
                return replace(row, error=endpoint.clean(row.error))
            return wire.cut(row, sampling.stop)

        return wire.read_each(reply, len(packet), read)

    async def _generate(self, endpoint: Endpoint, path: str, body: wire.Body) -> dict[str, Any]:
        """The reply; records what it reveals about the server."""
        several = body.get("n", 1)
        try:
            reply = await endpoint.generate(path, body)
        except FatalError as error:
            if path == wire.TEXTS and error.status in NO_PATH:
                raise FatalError(f"{error}. If it has no completions now, {NO_LONGER}") from None
            raise
        except RejectedError as error:
            endpoint.samples = endpoint.samples and not (several > 1 and refuses(str(error), "n"))
            raise
        if several > 1 and len(reply.get("choices") or ()) < several:
            endpoint.samples = False
        if "seed" in body and "seed" in endpoint.without and NO_SEED not in self._info.notes:
            self._note(NO_SEED)
            if self._store is not None:
                self._store.update(self._seedless, lambda _: True)
        elif "seed" in body and endpoint.short_seeds:
            self._note("the server accepts seeds of 31 bits: longer ones are cut")
        return reply


def _completion(result: Completion | Failure, prompt: Prompt) -> Completion:
    if isinstance(result, Completion):
        return result
    return failure(result.reason if isinstance(prompt, str) else with_remedy(result.reason, prompt))
