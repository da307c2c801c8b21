"""Prompts of an exact length, for measuring speed: random words, part of them shared by all."""

from __future__ import annotations

import random
import re
from functools import lru_cache
from typing import Any

from workbench.errors import InputError

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
        InputError: the tokenizer has no words of one token, or there are not so many texts.
    """
    words = _words(tokenizer)
    added = len(tokenizer(words[0]).input_ids) - 1
    if tokens <= added:
        raise InputError(f"prompt_tokens={tokens}: must be above {added}, which are always added")
    rng = random.Random(f"filler-{seed}")
    common = rng.choices(words, k=round(shared * (tokens - added)))
    free = tokens - added - len(common)
    if len(words) ** free < 4 * count:
        raise InputError(
            f"{count} different prompts of {tokens} tokens, {free} of them not shared: there are "
            "not so many; make them longer or share less"
        )
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts["".join([*common, *rng.choices(words, k=free)])] = None
    wrong = {len(ids) for ids in tokenizer(list(texts)).input_ids} - {tokens}
    if wrong:
        raise InputError(f"this tokenizer joins words: {tokens} tokens became {wrong.pop()}")
    return list(texts)


@lru_cache(maxsize=4)
def _words(tokenizer: Any) -> list[str]:
    """Words, with a space before them, that are one token wherever they stand."""
    ids = list(range(len(tokenizer)))
    random.Random(0).shuffle(ids)

    def length(text: str) -> int:
        return len(tokenizer(text).input_ids)

    words = []
    for piece in tokenizer.convert_ids_to_tokens(ids):
        word = re.fullmatch("[\u0120\u2581]([a-z]+)", str(piece))  # how a space is written
        if word and length(f" {word[1]}" * 3) == length(f" {word[1]}") + 2:
            words.append(f" {word[1]}")
            if len(words) == WORDS:
                break
    if len(words) < 10:
        raise InputError("this tokenizer has no words of one token: no prompts can be made with it")
    return words
