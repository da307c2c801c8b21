"""Label log-probabilities over HTTP: exact on vLLM, bounded elsewhere.

vLLM returns the log-probability of any requested token id. Other servers return the 20 likeliest
tokens. A label is one of them, with any spaces around it, or it is missing. A missing label's
probability is at most that of the least likely listed token, and at most what the listed ones
leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.engines.estimate import estimated_tokens
from workbench.engines.remote import wire
from workbench.engines.remote.dispatch import Plan
from workbench.engines.remote.endpoint import FEWER, Endpoint
from workbench.engines.remote.placement import LARGEST, SHARES
from workbench.engines.remote.retry import (
    Failure,
    RejectedError,
    RequestError,
    RetryableError,
)
from workbench.engines.tokens import LabelCollector, LabelTree, Node, NodeScores, Tokens
from workbench.errors import EngineError, InputError
from workbench.messages import refuse_images
from workbench.types import LabelRow, Prompt, Sampling

MAX_LABEL_IDS = 128  # vLLM's limit on logprob_token_ids
NO_PATH = (401, 403, 404, 405, 501)  # statuses for a path that a gateway does not forward
UNREADABLE = "\ufffd"  # part of a character: it could belong to any label
ROUNDING = 1e-6  # of probabilities summed in float32
BLOCK = 4096  # prompts whose labels are finished before the next block begins, at least
TOKENIZING = 16  # requests at once
TIMEOUT = 20.0  # seconds for the tokens of a few letters
SPECIAL = re.compile(r"<[^<>\s]{1,60}>|\[[A-Za-z_]{1,60}\]")  # what looks like a special token
SPACES = " \n\t▁Ġ"  # the last two are how tokenizers write a space

Indexed = tuple[int, Prompt]
_Scored = tuple[Tokens, list[float]]  # the tokens that were sent, the children's log-probabilities


@dataclass(frozen=True, slots=True)
class _Job:
    """A request for the scores of a node's children, after prompt `index` and the prefix."""

    index: int
    prompt: str | Sequence[int]
    node: Node

    def body(self) -> str | list[int]:
        """The prompt to send; built late, as many jobs wait."""
        return self.prompt if isinstance(self.prompt, str) else [*self.prompt, *self.node.prefix]


@dataclass(frozen=True, slots=True)
class LabelScorer:
    """Scores labels with an engine's servers.

    Attributes:
        dialect: what the servers support.
        size: prompts per request; None adapts it.
        dispatch: sends a plan's jobs.
        has_bos: whether a text begins with the token that the server would add.
        label_ids: the tokens of labels known so far; new ones are added.
        servers: how many there are; a block has full requests for all of them.
    """

    dialect: wire.Dialect
    size: int | None
    dispatch: Callable[[Plan[Any, Any], Sequence[Any]], Iterator[list[Any]]]
    has_bos: Callable[[str], bool]
    label_ids: dict[str, list[int]]
    servers: int = 1

    def exactly(
        self, prompts: Sequence[Prompt], labels: Sequence[tuple[str, ...]]
    ) -> Iterator[list[LabelRow]]:
        """Rows over the full vocabulary, with one request per prompt and node of the label tree.

        Raises:
            EngineError: the server gives no tokens for a label.
            InputError: a chat with images.
        """
        for prompt in prompts:
            refuse_images(prompt, "exact label scores need its tokens")
        lists = [*dict.fromkeys(labels)]
        needed = dict.fromkeys(label for own in lists for label in own)
        new = [label for label in needed if label not in self.label_ids]
        for batch in self.dispatch(self._tokenizing(), [*enumerate(new)]) if new else ():
            for (_, label), ids in batch:
                if isinstance(ids, Failure):
                    raise EngineError(f"the tokens of label {label!r}: {ids.reason}")
                self.label_ids[label] = ids
        of = {
            own: LabelTree.build(own, [self.label_ids[label] for label in own], MAX_LABEL_IDS)
            for own in lists
        }
        trees = [of[own] for own in labels]
        block = max(BLOCK, LARGEST * SHARES * self.servers)
        for start in range(0, len(prompts), block):
            yield from self._block(trees, start, prompts[start : start + block])

    def _block(
        self, trees: Sequence[LabelTree], start: int, prompts: Sequence[Prompt]
    ) -> Iterator[list[LabelRow]]:
        texts: dict[int, str | Sequence[int]] = {}  # of unfinished rows
        untokenized: list[Indexed] = []
        for index, prompt in enumerate(prompts, start):
            if isinstance(prompt, str) and not self.has_bos(prompt):
                texts[index] = prompt
            else:
                untokenized.append((index, prompt))
        for batch in self.dispatch(self._tokenizing(), untokenized) if untokenized else ():
            yield [_failed(job, ids) for job, ids in batch if isinstance(ids, Failure)]
            texts |= {i: ids for (i, _), ids in batch if not isinstance(ids, Failure)}
        sent: dict[int, Tokens] = {}
        collector = LabelCollector(trees)
        by_prefix = sorted(texts.items(), key=lambda pair: str(pair[1]))
        for deeper in (False, True):  # the first pass returns the prompts' tokens
            by_node: dict[Node, list[_Job]] = {}  # requests hold prompts with the same node
            for index, text in by_prefix:
                for node in trees[index].nodes:
                    if bool(node.prefix) == deeper and index in texts:
                        job = _Job(index, sent[index] if deeper else text, node)
                        by_node.setdefault(node, []).append(job)
            jobs = [job for same in by_node.values() for job in same]
            if jobs:
                yield from self._rows(collector, jobs, sent, texts)

    def _rows(
        self,
        collector: LabelCollector,
        jobs: Sequence[_Job],
        sent: dict[int, Tokens],
        unfinished: dict[int, Any],
    ) -> Iterator[list[LabelRow]]:
        """Rows that are complete or have a failure; they are removed from `unfinished`."""
        for batch in self.dispatch(self._scoring(), jobs):
            rows: list[LabelRow] = []
            for job, scored in (one for one in batch if one[0].index in unfinished):
                if isinstance(scored, Failure):
                    new = [_failed((job.index, ""), scored)]
                else:
                    ids, scores = scored
                    sent.setdefault(job.index, ids)
                    one = NodeScores(job.index, job.node, scores, len(ids), None)
                    new = collector.add(one)
                if new:
                    del unfinished[job.index]
                rows += new
            if rows:
                yield rows

    def _scoring(self) -> Plan[_Job, _Scored]:
        async def ask(
            endpoint: Endpoint, packet: Sequence[_Job]
        ) -> Sequence[_Scored | Failure | None]:
            node = packet[0].node
            body = wire.naming(self.dialect.model, [job.body() for job in packet], node.children)
            reply = await endpoint.post(wire.TEXTS, body)
            return wire.read_each(reply, len(packet), lambda _, choice, __: _scored(choice, node))

        def together(endpoint: Endpoint, first: _Job, other: _Job) -> bool:
            return bool(endpoint.multi) and first.node == other.node

        return Plan(
            ask, together, lambda job: estimated_tokens(job.prompt), self.size,
            text=lambda job: str(job.prompt),
        )  # fmt: skip

    def _tokenizing(self) -> Plan[Indexed, list[int]]:
        """Turns chats and labels into tokens on the server, which has template and tokenizer."""

        async def ask(
            endpoint: Endpoint, packet: Sequence[Indexed]
        ) -> Sequence[list[int] | Failure | None]:
            text = packet[0][1]
            if isinstance(text, str):
                body: wire.Body = {"prompt": text, "add_special_tokens": False}
            else:
                body = wire.rendering([text], self.dialect)
            ids = await tokens_of(endpoint, {"model": self.dialect.model, **body})
            if not ids:
                raise RejectedError("the server gives no tokens for it")
            return [list(ids)]

        return Plan(ask, lambda *_: False, lambda _: 1, 1)

    def from_likeliest(
        self, prompts: Sequence[Prompt], labels: Sequence[tuple[str, ...]]
    ) -> Iterator[list[LabelRow]]:
        """Rows from the likeliest tokens; a label that is not listed gets an upper bound instead.

        Raises:
            InputError: labels that differ in spaces only: here they cannot be distinguished.
        """
        for own in dict.fromkeys(labels):
            if len({_bare(label) for label in own}) < len(own):
                raise InputError(
                    f"labels {list(own)!r}: some differ in spaces only; this needs vLLM"
                )

        async def ask(
            endpoint: Endpoint, packet: Sequence[Indexed]
        ) -> Sequence[LabelRow | Failure | None]:
            reply = await self._likeliest(endpoint, [prompt for _, prompt in packet])

            def row(i: int, choice: wire.Choice, counts: wire.TokenCounts) -> LabelRow:
                places = wire.logprobs(choice)
                top = [(str(token), value) for token, value in places[0].top] if places else []
                scores, upper = from_top(top, labels[packet[i][0]])
                if all(score == -math.inf for score in scores):
                    reason = f"none of the labels is among the {len(top)} likeliest tokens"
                    return LabelRow(packet[i][0], None, counts.prompt, None, reason)
                return LabelRow(packet[i][0], scores, counts.prompt, counts.cached, None, upper)

            return wire.read_each(reply, len(packet), row)

        def together(endpoint: Endpoint, first: Indexed, _: Indexed) -> bool:
            return bool(endpoint.multi) and isinstance(first[1], str)

        plan = Plan(
            ask, together, lambda job: estimated_tokens(job[1]), self.size,
            text=lambda job: str(job[1]),
        )  # fmt: skip
        for batch in self.dispatch(plan, list(enumerate(prompts))):
            yield [_failed(job, row) if isinstance(row, Failure) else row for job, row in batch]

    async def _likeliest(self, endpoint: Endpoint, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """One token after each prompt, with as many of the likeliest as the server returns."""
        for most in dict.fromkeys((endpoint.top, FEWER)):
            sampling = Sampling(max_tokens=1, logprobs=most)
            path, body = wire.request(prompts, sampling, self.dialect)
            body.pop("return_tokens_as_token_ids", None)  # labels are compared as texts here
            try:
                reply = await endpoint.generate(path, body)
            except RejectedError as error:
                if "logprobs" not in str(error):
                    raise
                refused = error
                continue
            endpoint.top = most
            return reply
        raise RejectedError(f"the server returns no log-probabilities for labels: {refused}")


def _failed(job: Indexed, failure: Failure) -> LabelRow:
    return LabelRow(job[0], None, cached_tokens=None, error=failure.reason)


def _scored(choice: wire.Choice, node: Node) -> _Scored:
    ids = wire.token_ids(choice, "prompt_token_ids")
    top = dict(wire.logprobs(choice)[0].top)
    if not ids or not all(child in top for child in node.children):
        raise RejectedError("exact label log-probabilities need vLLM 0.27 or newer on the server")
    return ids, [top[child] for child in node.children]


async def tokens_of(endpoint: Endpoint, body: wire.Body) -> tuple[int, ...] | None:
    """Tokens of a prompt from /tokenize; behind a gateway without it, from a reply."""
    if endpoint.tokenizes:
        try:
            return wire.token_ids(await endpoint.post("//tokenize", body), "tokens")
        except RequestError as error:
            if error.status not in NO_PATH and not isinstance(error, RetryableError):
                raise
            endpoint.tokenizes = False
    path = wire.TEXTS if "prompt" in body else wire.CHATS
    reply = await endpoint.generate(path, {**body, "max_tokens": 1, "return_token_ids": True})
    (choice,) = wire.choices_in_order(reply, 1)
    places = (choice or {}, reply)  # where texts and chats have them
    return next(filter(None, (wire.token_ids(at, "prompt_token_ids") for at in places)), None)


async def token_counts(endpoint: Endpoint, bodies: Sequence[wire.Body]) -> list[int] | None:
    """Number of tokens per prompt; None if the server does not count. Generates nothing."""
    room = asyncio.Semaphore(TOKENIZING)

    async def count(body: wire.Body) -> int:
        async with room, asyncio.timeout(TIMEOUT):
            ids = wire.token_ids(await endpoint.post("//tokenize", body), "tokens")
            if ids is None:
                raise ValueError("no tokens")
            return len(ids)

    try:
        return [*await asyncio.gather(*map(count, bodies))]
    except (RequestError, *wire.ODD_JSON, TimeoutError):
        return None


def beginning(text: str) -> str:
    """The special token that a text seems to begin with, or ""."""
    match = SPECIAL.match(text)
    return match[0] if match else ""


async def bos_doubled(
    endpoints: Sequence[Endpoint], model: str, beginnings: Sequence[str]
) -> dict[str, bool]:
    """Which beginnings are the token that vLLM would add again, as far as it answers."""

    async def ask(beginning: str) -> bool | None:
        for endpoint in endpoints:
            with contextlib.suppress(RequestError, *wire.ODD_JSON, TimeoutError):
                async with asyncio.timeout(TIMEOUT):
                    ids = await tokens_of(endpoint, {"model": model, "prompt": beginning})
                if ids:
                    return len(ids) > 1 and ids[0] == ids[1]
        return None

    answers = await asyncio.gather(*map(ask, beginnings))
    pairs = zip(beginnings, answers, strict=True)
    return {beginning: answer for beginning, answer in pairs if answer is not None}


def from_top(
    top: Sequence[tuple[str, float]], labels: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each label's log-probability (-inf if it is not listed) and its upper bound.

    Spellings of a label that differ in spaces are summed. A label that is not listed begins with
    a listed token or with another one: the bound is the larger of these two cases.
    """
    import numpy as np

    values = [value for _, value in top]
    rest = math.log(max(0.0, 1.0 - sum(map(math.exp, values))) + ROUNDING)
    unlisted = min([rest, *values])
    scores, upper = [], []
    for label in map(_bare, labels):
        same = [value for token, value in top if _bare(token) == label]
        begins = [
            value
            for token, value in top
            if label.startswith(_bare(token)) or UNREADABLE in token or token.startswith("bytes:")
        ]
        score = float(np.logaddexp.reduce(same)) if same else -math.inf
        scores.append(score)
        upper.append(min(0.0, score if same else max([unlisted, *begins])))
    return tuple(scores), tuple(upper)


def _bare(text: str) -> str:
    return text.strip(SPACES)
