"""Prompts of an exact length, for measuring speed: random words, part of them shared by all."""

from __future__ import annotations

import random
import re
from typing import Any

from workbench.errors import InputError

__all__ = ["filler"]

WORDS = 1000  # so many different ones are enough


def filler(
    tokenizer: Any, count: int, tokens: int, *, shared: float = 0.0, seed: str = ""
) -> list[str]:
    """`count` different texts of `tokens` tokens each.

    Args:
        tokenizer: a tokenizer of transformers; special tokens that it adds are counted.
        shared: share of each text, from its beginning, that is the same in all of them.
        seed: chooses the words; other seeds share nothing.

    Raises:
        InputError: the tokenizer has no words of one token, or `tokens` leaves no room for one.
    """
    added = len(tokenizer("").input_ids)
    if tokens <= added:
        raise InputError(f"prompt_tokens={tokens}: must be above {added}, which are always added")
    words = _words(tokenizer)
    rng = random.Random(f"filler-{seed}")
    common = rng.choices(words, k=round(shared * (tokens - added)))
    texts = [
        "".join([*common, *rng.choices(words, k=tokens - added - len(common))])
        for _ in range(count)
    ]
    wrong = {len(ids) for ids in tokenizer(texts).input_ids} - {tokens}
    if wrong:
        raise InputError(f"this tokenizer joins words: {tokens} tokens became {wrong.pop()}")
    return texts


def _words(tokenizer: Any) -> list[str]:
    """Words of one token that stay one when they stand after others."""
    ids = list(range(len(tokenizer)))
    random.Random(0).shuffle(ids)
    found = []
    for token in ids:
        text = tokenizer.decode([token])
        if re.fullmatch(r" [a-z]+", text):
            alone = tokenizer(text, add_special_tokens=False).input_ids
            if alone == [token]:
                found.append(text)
                if len(found) == WORDS:
                    break
    if len(found) < 10:
        raise InputError("this tokenizer has no words of one token: no prompts can be made with it")
    return found
