"""Label log-probabilities over HTTP: exact on vLLM, bounded elsewhere.

vLLM gives the log-probability of token ids that are named to it, whatever their rank. Other
servers give the 20 likeliest tokens: a label is one of them, in any spelling of its spaces, or
it is missing. Then its probability is at most that of the least likely token listed, and at most
what the listed ones leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from workbench.engines.labels import LabelTree, Node, Tokens
from workbench.engines.remote import wire
from workbench.engines.remote.dispatch import Plan
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.faults import Broken, Failed, Fault, Refused
from workbench.engines.remote.options import about
from workbench.errors import EngineError, InputError
from workbench.types import LabelRow, Prompt, Sampling

MAX_LABEL_IDS = 128  # vLLM's limit on logprob_token_ids
MISSING = (401, 403, 404, 405, 501)  # statuses of a path that a gateway does not pass on
TOP = 20  # log-probabilities that servers give at the most
UNREADABLE = "\ufffd"  # part of a character, of whichever label
ROUNDING = 1e-6  # of probabilities summed in float32
BLOCK = 4096  # prompts whose labels are finished before the next ones are begun
PATIENCE = 20.0  # seconds for the tokens of a few letters
SPACES = " \n\t▁Ġ"  # the last two are how tokenizers write a space


@dataclass(frozen=True, slots=True)
class Asker:
    """What scoring needs of the engine."""

    endpoints: Sequence[Endpoint]
    model: str
    dialect: wire.Dialect
    size: int | None
    dispatch: Callable[[Plan[Any, Any], Sequence[Any]], Iterator[list[Any]]]
    has_bos: Callable[[str], bool]

    def label_ids(self, labels: Sequence[str]) -> dict[str, list[int]]:
        """The tokens of each label alone.

        Raises:
            EngineError: no server tells them.
        """
        found: dict[str, list[int]] = {}
        for batch in self.dispatch(_tokenizing(self), [*enumerate(labels)]):
            for (_, label), ids in batch:
                if isinstance(ids, Failed):
                    raise EngineError(f"the tokens of label {label!r}: {ids.reason}")
                found[label] = ids
        return found


@dataclass(frozen=True, slots=True)
class _Job:
    """After the prompt `index` and the node's prefix, the node's children are wanted."""

    index: int
    prompt: str | Sequence[int]
    node: Node

    def body(self) -> str | list[int]:
        return self.prompt if isinstance(self.prompt, str) else [*self.prompt, *self.node.prefix]


@dataclass(frozen=True, slots=True)
class _Scored:
    """The prompt's tokens, how many were sent, and the children's log-probabilities."""

    ids: tuple[int, ...]
    sent: int
    scores: dict[tuple[Tokens, int], float]


def score_exactly(
    asker: Asker, prompts: Sequence[Prompt], labels: Sequence[str], ids: Sequence[Sequence[int]]
) -> Iterator[list[LabelRow]]:
    """Rows over the full vocabulary, one request for each node of the labels' tree."""
    tree = LabelTree.build(labels, ids, MAX_LABEL_IDS)
    for start in range(0, len(prompts), BLOCK):
        yield from _block(asker, tree, start, prompts[start : start + BLOCK])


def _block(
    asker: Asker, tree: LabelTree, start: int, prompts: Sequence[Prompt]
) -> Iterator[list[LabelRow]]:
    texts: dict[int, str | list[int]] = {}
    jobs: list[tuple[int, Prompt]] = []
    for index, prompt in enumerate(prompts, start):
        if isinstance(prompt, str) and not asker.has_bos(prompt):
            texts[index] = prompt
        else:
            jobs.append((index, prompt))
    if jobs:
        for batch in asker.dispatch(_tokenizing(asker), jobs):
            refused = [(i, found) for (i, _), found in batch if isinstance(found, Failed)]
            yield [LabelRow(i, None, error=found.reason) for i, found in refused]
            texts |= {i: found for (i, _), found in batch if not isinstance(found, Failed)}
    root = [node for node in tree.nodes if not node.prefix]
    deeper = [node for node in tree.nodes if node.prefix]
    parts: dict[int, list[_Scored]] = {}
    plan = _scoring(asker)
    first = [_Job(index, text, node) for node in root for index, text in _by_prefix(texts)]
    yield from _gather(tree, parts, asker.dispatch(plan, first), texts)
    later = [_Job(index, parts[index][0].ids, node) for node in deeper for index in texts]
    if later:
        yield from _gather(tree, parts, asker.dispatch(plan, later), texts)


def _by_prefix(texts: dict[int, str | list[int]]) -> list[tuple[int, str | list[int]]]:
    return sorted(texts.items(), key=lambda pair: str(pair[1]))


def _gather(
    tree: LabelTree,
    parts: dict[int, list[_Scored]],
    batches: Iterator[list[tuple[_Job, _Scored | Failed]]],
    texts: dict[int, str | list[int]],
) -> Iterator[list[LabelRow]]:
    """Rows whose nodes are all scored, or of which one failed; `texts` keeps the others."""
    for batch in batches:
        rows = []
        for job, found in batch:
            if job.index not in texts:
                continue
            if isinstance(found, Failed):
                rows.append(LabelRow(job.index, None, cached_tokens=None, error=found.reason))
                del texts[job.index]
                continue
            done = parts.setdefault(job.index, [])
            done.append(found)
            if len(done) == len(tree.nodes):
                scores = {key: value for part in done for key, value in part.scores.items()}
                sent = sum(part.sent for part in done)
                rows.append(LabelRow(job.index, tree.total(scores), sent, None))
                del texts[job.index], parts[job.index]
        if rows:
            yield rows


def _scoring(asker: Asker) -> Plan[_Job, _Scored]:
    async def ask(endpoint: Endpoint, packet: Sequence[_Job]) -> Sequence[_Scored | Failed | None]:
        node = packet[0].node
        body = {
            "model": asker.model,
            "prompt": [job.body() for job in packet],
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": 0,
            "logprob_token_ids": list(node.children),
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        reply = await endpoint.post("/completions", body)
        return wire.each(reply, len(packet), lambda _, choice, __: _scored(choice, node))

    def together(endpoint: Endpoint, first: _Job, other: _Job) -> bool:
        return bool(endpoint.multi) and first.node is other.node

    return Plan(ask, together, lambda job: _tokens(job.prompt), asker.size)


def _tokens(prompt: Prompt | Sequence[int]) -> int:
    ids = not isinstance(prompt, str) and isinstance(prompt[0], int)
    return len(prompt) if ids else about(cast("Prompt", prompt))


def _scored(choice: wire.Choice, node: Node) -> _Scored:
    ids = wire.token_ids(choice, "prompt_token_ids")
    told = dict(wire.logprobs(choice)[0].top)
    if not ids or not all(child in told for child in node.children):
        raise Refused("exact label log-probabilities need vLLM 0.27 or newer on the server")
    return _Scored(ids, len(ids), {(node.prefix, c): told[c] for c in node.children})


def _tokenizing(asker: Asker) -> Plan[tuple[int, Prompt], list[int]]:
    """Chats and labels become tokens on the server, which has the template and the tokenizer."""

    async def ask(
        endpoint: Endpoint, packet: Sequence[tuple[int, Prompt]]
    ) -> Sequence[list[int] | Failed | None]:
        text = packet[0][1]
        body: dict[str, Any] = {"model": asker.model}
        if isinstance(text, str):
            body |= {"prompt": text, "add_special_tokens": False}
        else:
            body |= wire.rendering([text], asker.dialect)
        ids = await tokens_of(endpoint, body)
        if not ids:
            raise Refused("the server tells no tokens of it")
        return [list(ids)]

    return Plan(ask, lambda *_: False, lambda _: 1, 1)


async def tokens_of(endpoint: Endpoint, body: dict[str, Any]) -> tuple[int, ...] | None:
    """Tokens from the path for that; behind a gateway without it, from a generated token's reply.

    Raises:
        Fault: the server does not answer.
    """
    if endpoint.tokenizes:
        try:
            return wire.token_ids(await endpoint.post("//tokenize", body), "tokens")
        except Fault as fault:
            if fault.status not in MISSING and not isinstance(fault, Broken):
                raise
            endpoint.tokenizes = False
    path = "/completions" if "prompt" in body else "/chat/completions"
    reply = await endpoint.generate(path, {**body, "max_tokens": 1, "return_token_ids": True})
    (choice,) = wire.by_index(reply, 1)
    return wire.token_ids(choice or {}, "prompt_token_ids") or wire.token_ids(
        reply, "prompt_token_ids"
    )


async def doubled(
    endpoints: Sequence[Endpoint], model: str, marks: Sequence[str]
) -> dict[str, bool]:
    """Whether vLLM would put the same token again before texts that begin so, as far as known."""

    async def ask(mark: str) -> bool | None:
        for endpoint in endpoints:
            with contextlib.suppress(Fault, *wire.BAD, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    ids = await tokens_of(endpoint, {"model": model, "prompt": mark})
                if ids:
                    return len(ids) > 1 and ids[0] == ids[1]
        return None

    found = dict(zip(marks, await asyncio.gather(*map(ask, marks)), strict=True))
    return {mark: answer for mark, answer in found.items() if answer is not None}


def score_from_top(
    asker: Asker, prompts: Sequence[Prompt], labels: Sequence[str]
) -> Iterator[list[LabelRow]]:
    """Rows from the likeliest tokens; a label that is not among them is missing, with a bound.

    Raises:
        InputError: labels that differ in spaces only, which cannot be told apart here.
    """
    bare = [_bare(label) for label in labels]
    if len(set(bare)) < len(bare):
        raise InputError(f"labels {list(labels)!r}: some differ in spaces only; this needs vLLM")
    sampling = Sampling(max_tokens=1, logprobs=TOP)

    async def ask(
        endpoint: Endpoint, packet: Sequence[tuple[int, Prompt]]
    ) -> Sequence[LabelRow | Failed | None]:
        texts = [prompt for _, prompt in packet]
        chats = not isinstance(texts[0], str)
        body = (wire.chat if chats else wire.completions)(texts, sampling, None, asker.dialect)
        body.pop("return_tokens_as_token_ids", None)  # labels are compared as texts here
        body["model"] = asker.model
        reply = await endpoint.generate("/chat/completions" if chats else "/completions", body)

        def row(i: int, choice: wire.Choice, share: wire.Usage) -> LabelRow:
            first = wire.logprobs(choice)[:1]
            top = [(str(token), value) for token, value in first[0].top] if first else []
            scores, upper = from_top(top, labels)
            if all(score == -math.inf for score in scores):
                reason = f"none of the labels is among the {len(top)} likeliest tokens"
                return LabelRow(packet[i][0], None, share.prompt, None, reason)
            return LabelRow(packet[i][0], scores, share.prompt, share.cached, None, upper)

        return wire.each(reply, len(packet), row)

    def together(endpoint: Endpoint, first: tuple[int, Prompt], _: tuple[int, Prompt]) -> bool:
        return bool(endpoint.multi) and isinstance(first[1], str)

    plan = Plan(ask, together, lambda job: _tokens(job[1]), asker.size)
    for batch in asker.dispatch(plan, list(enumerate(prompts))):
        yield [
            LabelRow(job[0], None, cached_tokens=None, error=found.reason)
            if isinstance(found, Failed)
            else found
            for job, found in batch
        ]


def from_top(
    top: Sequence[tuple[str, float]], labels: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each label's log-probability (-inf if it is not listed) and its upper bound.

    Spellings of a label that differ in spaces are summed. A label that is not listed begins
    with a token that is listed, or with one that is not: the bound is the larger of the two.
    """
    probabilities = [math.exp(value) for _, value in top]
    rest = max(0.0, 1.0 - sum(probabilities)) + ROUNDING
    unlisted = min([rest, *probabilities])
    scores, upper = [], []
    for label in labels:
        same = [p for (t, _), p in zip(top, probabilities, strict=True) if _bare(t) == _bare(label)]
        begins = [
            p
            for (t, _), p in zip(top, probabilities, strict=True)
            if _bare(label).startswith(_bare(t)) or UNREADABLE in t or t.startswith("bytes:")
        ]
        bound = sum(same) or max([unlisted, *begins])
        scores.append(math.log(sum(same)) if same else -math.inf)
        upper.append(math.log(min(1.0, bound)))
    return tuple(scores), tuple(upper)


def _bare(text: str) -> str:
    return text.strip(SPACES)
