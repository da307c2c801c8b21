"""How prompts and labels become tokens: reusable segments of prompts, and labels as a tree.

Chain rule: log p(label | prompt) is the sum over its tokens of log p(token | prompt, tokens
before). Each inner node of the tree is one request for a single token. Prefix caching makes later
nodes cheap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from workbench.errors import InputError
from workbench.types import LabelRow

CHAINS = 2  # requests per label from which a long label is one request instead
SEAMS = 500_000  # maximum in memory: two claims and their labels make four
Tokens = tuple[int, ...]


class SegmentedPrompt(str):
    """A text with its segments, such as demonstrations that many prompts share.

    Without segments, tokenising such prompts takes a sixth of the time of an ICM search. Otherwise
    it is a text like any other.
    """

    __slots__ = ("segments",)
    segments: tuple[str, ...]

    def __new__(cls, segments: Iterable[str]) -> SegmentedPrompt:
        parts = tuple(segments)
        text = super().__new__(cls, "".join(parts))
        text.segments = parts
        return text

    def __getnewargs__(self) -> tuple[Any, ...]:  # for pickle
        return (self.segments,)


class TokenPrompt(str):
    """A prompt as token ids, for an engine with a tokenizer; as a text, it is these numbers."""

    __slots__ = ("ids",)
    ids: tuple[int, ...]

    def __new__(cls, ids: Iterable[int]) -> TokenPrompt:
        tokens = tuple(ids)
        prompt = super().__new__(cls, f"\0token ids {' '.join(map(str, tokens))}")
        prompt.ids = tokens
        return prompt

    def __getnewargs__(self) -> tuple[Any, ...]:  # for pickle
        return (self.ids,)


class SegmentTokenizer:
    """Tokens of segmented prompts: those of each segment, if no token spans a seam.

    Each seam is tested once, on its two segments. A text with a failed seam is tokenised as a
    whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: dict[str, list[int]] = {}
        self._holds: dict[tuple[str, str], bool] = {}
        text, (bare,) = self._whole(["a"])[0], self._plain(["a"])
        self._before = text[: -len(bare)]  # what the tokenizer adds before every text
        self._usable = text == self._before + bare

    def __call__(self, texts: Sequence[SegmentedPrompt]) -> list[list[int]]:
        if len(self._holds) > SEAMS:
            self._holds.clear()
            self._tokens.clear()
        segments = {segment for text in texts for segment in text.segments}
        if new := sorted(segments - self._tokens.keys()):
            self._tokens |= zip(new, self._plain(new), strict=True)
        seams = {seam for text in texts for seam in pairwise(text.segments)}
        if untried := sorted(seams - self._holds.keys()):
            for (left, right), tokens in zip(
                untried, self._plain([left + right for left, right in untried]), strict=True
            ):
                self._holds[left, right] = tokens == self._tokens[left] + self._tokens[right]
        holds = [self._usable and all(map(self._holds.get, pairwise(t.segments))) for t in texts]
        broken = [text for text, good in zip(texts, holds, strict=True) if not good]
        whole = iter(self._whole(broken) if broken else ())
        return [
            self._joined(text) if good else next(whole)
            for text, good in zip(texts, holds, strict=True)
        ]

    def _joined(self, text: SegmentedPrompt) -> list[int]:
        ids = self._before + [token for part in text.segments for token in self._tokens[part]]
        return without_second_bos(self._tokenizer, [text], [ids])[0]

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        ids = list(self._tokenizer([*texts], verbose=False).input_ids)
        return without_second_bos(self._tokenizer, texts, ids)

    def _plain(self, texts: list[str]) -> list[list[int]]:
        return list(self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids)


def without_second_bos(
    tokenizer: Any, texts: Sequence[str], rows: list[list[int]]
) -> list[list[int]]:
    """Tokens of texts; those that begin with the BOS as text get one BOS, not two."""
    text, bos = getattr(tokenizer, "bos_token", None), getattr(tokenizer, "bos_token_id", None)
    if not text:
        return rows
    return [
        ids[1:] if one.startswith(text) and ids[:2] == [bos, bos] else ids
        for one, ids in zip(texts, rows, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Node:
    """A request for the log-probabilities of `children` (at most `width`) after `prefix`.

    In a `chain`, each child follows the ones before it: the children are a whole continuation.
    """

    prefix: Tokens
    children: Tokens
    chain: bool = False

    @property
    def keys(self) -> list[tuple[Tokens, int]]:
        """Each child with the tokens before it."""
        if self.chain:
            return [(self.children[:at], child) for at, child in enumerate(self.children)]
        return [(self.prefix, child) for child in self.children]

    @property
    def given(self) -> Tokens:
        """The tokens between the prompt and the last child."""
        return self.children[:-1] if self.chain else self.prefix


@dataclass(frozen=True, slots=True)
class LabelTree:
    """All labels of a call; `nodes` are the requests that one prompt needs."""

    labels: tuple[Tokens, ...]
    nodes: tuple[Node, ...]

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        labels: Sequence[Sequence[int]],
        width: int,
        *,
        chains: bool = False,
    ) -> LabelTree:
        """Build the tree from the labels' token ids; a node has at most `width` children.

        With `chains`, long labels that share few tokens become one request each.

        Raises:
            InputError: a label has no tokens, or two labels have the same tokens.
        """
        seen: dict[Tokens, str] = {}
        children: dict[Tokens, dict[int, None]] = {}
        for text, ids in zip(texts, labels, strict=True):
            if not (tokens := tuple(ids)):
                raise InputError(f"label {text!r} has no tokens in this model's vocabulary")
            if tokens in seen:
                raise InputError(f"labels {seen[tokens]!r} and {text!r} have the same tokens")
            seen[tokens] = text
            for depth, token in enumerate(tokens):
                children.setdefault(tokens[:depth], {})[token] = None
        nodes = tuple(
            Node(prefix, tuple(below)[start : start + width])
            for prefix, below in children.items()
            for start in range(0, len(below), width)
        )
        if chains and len(nodes) > CHAINS * len(seen):
            nodes = tuple(Node((), label, chain=True) for label in seen)
        return cls(tuple(seen), nodes)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens in each label."""
        return tuple(map(len, self.labels))

    @property
    def depth(self) -> int:
        """Number of tokens in the longest label."""
        return max(self.lengths)

    def total(self, scores: Mapping[tuple[Tokens, int], float]) -> tuple[float, ...]:
        """Each label's log-probability from those of its tokens, keyed (prefix, token)."""
        return tuple(
            sum(scores[label[:depth], token] for depth, token in enumerate(label))
            for label in self.labels
        )


@dataclass(frozen=True, slots=True)
class NodeScores:
    """What the model says of a node after the prompt at `index`.

    Attributes:
        scores: log-probabilities of the node's children, or the reason of a failure.
        sent: tokens sent for the node, `cached` of them from the cache (None: unknown).
        greedy: whether each child of a chain is the likeliest token at its place.
    """

    index: int
    node: Node
    scores: Sequence[float] | str
    sent: int
    cached: int | None = 0
    greedy: bool = False


@dataclass(slots=True)
class _Partial:
    """A prompt's scores so far."""

    nodes: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = 0
    scores: dict[tuple[Tokens, int], float] = field(default_factory=dict)
    error: str | None = None


class LabelCollector:
    """Combines the scores of nodes, which arrive in any order."""

    def __init__(self, trees: Sequence[LabelTree]) -> None:
        self._trees = trees  # of each prompt
        self._partial: dict[int, _Partial] = {}

    def add(self, one: NodeScores) -> list[LabelRow]:
        """The prompt's row once all its nodes are scored, else nothing; NaN is a failure."""
        index = one.index
        partial = self._partial.setdefault(index, _Partial())
        partial.nodes += 1
        partial.prompt_tokens += one.sent
        known = None not in (one.cached, partial.cached_tokens)
        partial.cached_tokens = (partial.cached_tokens or 0) + (one.cached or 0) if known else None
        if isinstance(one.scores, str):
            partial.error = one.scores
        else:
            partial.scores.update(zip(one.node.keys, one.scores, strict=True))
        tree = self._trees[index]
        if partial.nodes < len(tree.nodes):
            return []
        del self._partial[index]
        error = partial.error
        if any(math.isnan(score) for score in partial.scores.values()):
            error = "the model's log-probabilities are not numbers"
        total = None if error else tree.total(partial.scores)
        sent, cached = partial.prompt_tokens, partial.cached_tokens
        return [LabelRow(index, total, sent, cached, error, lengths=tree.lengths)]
