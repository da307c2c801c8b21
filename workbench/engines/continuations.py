"""Scores of continuations with transformers: each prompt is computed once for all of them.

The prompts' keys and values are repeated per continuation, and only the continuations' tokens are
computed after them. Models with other kinds of memory (state spaces) compute each row whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.engines.decoding import padded
from workbench.engines.tokens import Node, NodeScores
from workbench.lazy import torch

Job = tuple[int, Node, list[int]]  # a prompt's index, a node, the prompt's tokens


def node_scores(model: Any, groups: Sequence[Sequence[Job]]) -> list[NodeScores]:
    """Scores of each group's nodes; the jobs of a group have the same prompt."""
    device = model.device
    jobs = [(place, job) for place, group in enumerate(groups) for job in group]
    deeper = [(row, place, job) for row, (place, job) in enumerate(jobs) if job[1].given]
    ids, mask = padded([group[0][2] for group in groups], device)
    with torch.inference_mode():
        first = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=1,
            use_cache=bool(deeper),
        )
        heads = _Wanted(first.logits[:, -1:].float())
        for row, (place, (_, node, _)) in enumerate(jobs):
            if node.chain or not node.given:
                heads.want(row, place, 0, node.children[:1] if node.chain else node.children)
        found = heads.read(len(jobs))
        if deeper:
            tails = _Wanted(_after(model, first.get("past_key_values"), mask, deeper).float())
            for place, (row, _, (_, node, _)) in enumerate(deeper):
                last = len(node.given) - 1
                for at in range(0 if node.chain else last, last + 1):
                    children = node.children[at + 1 : at + 2] if node.chain else node.children
                    tails.want(row, place, at, children)
            found = [a + b for a, b in zip(found, tails.read(len(jobs)), strict=True)]
    rows = zip(found, jobs, strict=True)
    return [
        NodeScores(
            index,
            node,
            [score for score, _ in scores],
            len(ids) + len(node.given),
            greedy=all(best for _, best in scores),
        )
        for scores, (_, (index, node, ids)) in rows
    ]


class _Wanted:
    """Log-probabilities to read from logits [rows, places, vocabulary], all at once."""

    def __init__(self, logits: Any) -> None:
        self._logits = logits
        self._rows: list[int] = []
        self._wanted: list[tuple[int, int, int]] = []

    def want(self, row: int, place: int, at: int, tokens: Sequence[int]) -> None:
        """Read these tokens' scores at position `at` of the logits' row `place`, for `row`."""
        self._rows += [row] * len(tokens)
        self._wanted += [(place, at, token) for token in tokens]

    def read(self, rows: int) -> list[list[tuple[float, bool]]]:
        """For each row, its scores, and whether the token is the likeliest."""
        found: list[list[tuple[float, bool]]] = [[] for _ in range(rows)]
        if not self._wanted:
            return found
        logits = self._logits
        place, at, token = torch.tensor(self._wanted, device=logits.device).T
        mine = logits[place, at, token]
        scores = (mine - logits.logsumexp(-1)[place, at]).tolist()
        best = (mine >= logits.amax(-1)[place, at]).tolist()
        for row, score, top in zip(self._rows, scores, best, strict=True):
            found[row].append((score, top))
        return found


def _after(model: Any, past: Any, mask: Any, deeper: Sequence[tuple[int, int, Job]]) -> Any:
    """Logits [rows, longest, vocabulary] at the tokens that nodes have after their prompts."""
    given = [node.given for _, _, (_, node, _) in deeper]
    longest = max(map(len, given))
    places = torch.tensor([place for _, place, _ in deeper], device=mask.device)
    ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in given], device=mask.device)
    there = [[1] * len(one) + [0] * (longest - len(one)) for one in given]
    before = mask[places]
    whole = torch.cat([before, torch.tensor(there, device=mask.device)], -1)
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    kinds = {type(layer) for layer in getattr(past, "layers", ())}
    if not kinds or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:  # not only k and v
        return _whole_rows(model, deeper, longest)
    past.batch_select_indices(places)
    positions = before.sum(-1, keepdim=True) + torch.arange(longest, device=mask.device)
    return model(
        input_ids=ids, attention_mask=whole, position_ids=positions, past_key_values=past
    ).logits


def _whole_rows(model: Any, deeper: Sequence[tuple[int, int, Job]], longest: int) -> Any:
    """As `_after`, computing each prompt again; the padding is on the left of both."""
    rows = [[*ids, *node.given] for _, _, (_, node, ids) in deeper]
    ids, mask = padded(rows, model.device)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        logits_to_keep=longest,
        use_cache=False,
    ).logits
    shift = torch.tensor([longest - len(node.given) for _, _, (_, node, _) in deeper])
    at = (shift[:, None] + torch.arange(longest)).clamp(max=longest - 1).to(logits.device)
    return logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))
