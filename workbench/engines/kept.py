"""What the store keeps of an answer, and how it becomes one again."""

from __future__ import annotations

from typing import Any

from workbench.types import Completion, LabelRow, TokenLogprob


def dump(completion: Completion) -> dict[str, Any]:
    return {
        "text": completion.text,
        "finish": completion.finish_reason,
        "ids": completion.token_ids,
        "logprobs": completion.logprobs
        and [(t.token_id, t.logprob, t.top) for t in completion.logprobs],
        "prompt": completion.prompt_tokens,
        "completion": completion.completion_tokens,
    } | ({"reasoning": completion.reasoning} if completion.reasoning else {})


def load(value: dict[str, Any]) -> Completion:
    logprobs = value["logprobs"]
    return Completion(
        text=value["text"],
        finish_reason=value["finish"],
        token_ids=None if value["ids"] is None else tuple(value["ids"]),
        logprobs=None
        if logprobs is None
        else tuple(TokenLogprob(i, p, tuple((j, q) for j, q in top)) for i, p, top in logprobs),
        prompt_tokens=value["prompt"],
        completion_tokens=value["completion"],
        reasoning=value.get("reasoning"),
        from_store=True,
    )


def value(row: LabelRow) -> Any:
    """What the store keeps of a row: its scores, and their bounds where some are missing."""
    return row.logprobs if row.upper is None else [row.logprobs, row.upper]


def bounds(value: Any) -> tuple[Any, Any]:
    inexact = isinstance(value[0], list | tuple)
    return (value[0], value[1]) if inexact else (value, value)
