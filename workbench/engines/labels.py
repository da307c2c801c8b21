"""Labels as a tree of tokens, so that shared beginnings are scored once.

Chain rule: log p(label | prompt) is the sum over its tokens of log p(token | prompt, tokens
before). Each inner node of the tree is one request for one token; the engine's prefix cache makes
the nodes below the first cost a few tokens each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.errors import InputError

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """After `prefix`, the log-probabilities of `children` are wanted (at most `width` of them)."""

    prefix: Tokens
    children: Tokens


@dataclass(frozen=True, slots=True)
class LabelTree:
    """All labels of a call; `nodes` are the requests that one prompt needs."""

    labels: tuple[Tokens, ...]
    nodes: tuple[Node, ...]

    @classmethod
    def build(cls, texts: Sequence[str], labels: Sequence[Sequence[int]], width: int) -> LabelTree:
        """Build the tree from the labels' token ids; a node holds `width` children at most.

        Raises:
            InputError: a label has no tokens, or two labels have the same ones.
        """
        seen: dict[Tokens, str] = {}
        children: dict[Tokens, dict[int, None]] = {}
        for text, ids in zip(texts, labels, strict=True):
            tokens = tuple(ids)
            if not tokens:
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
        return cls(tuple(seen), nodes)

    @property
    def depth(self) -> int:
        """Tokens of the longest label."""
        return max(len(label) for label in self.labels)

    def total(self, scores: Mapping[tuple[Tokens, int], float]) -> tuple[float, ...]:
        """Each label's log-probability from those of its tokens, keyed (prefix, token)."""
        return tuple(
            sum(scores[label[:depth], token] for depth, token in enumerate(label))
            for label in self.labels
        )
