"""Texts put together from pieces that come again and again, such as demonstrations.

Tokenised anew, such prompts take a sixth of the time of an ICM search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

SEAMS = 500_000  # kept at most: two claims and their labels make four


class Pieces(str):
    """A text that knows the pieces it consists of; to whoever does not ask, a text like any."""

    __slots__ = ("pieces",)
    pieces: tuple[str, ...]

    def __new__(cls, pieces: Iterable[str]) -> Pieces:
        known = tuple(pieces)
        text = super().__new__(cls, "".join(known))
        text.pieces = known
        return text


class PieceTokenizer:
    """Tokens of `Pieces`: those of each piece, where no token reaches over the seam of two.

    Each seam is tried once, on its two pieces; a text with one that does not hold is tokenised
    whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: dict[str, list[int]] = {}
        self._holds: dict[tuple[str, str], bool] = {}
        text, (bare,) = self._whole(["a"])[0], self._plain(["a"])
        self._before = text[: -len(bare)]  # what the tokenizer puts before every text
        self._usable = text == self._before + bare

    def __call__(self, texts: Sequence[Pieces]) -> list[list[int]]:
        if len(self._holds) > SEAMS:
            self._holds.clear()
            self._tokens.clear()
        self._learn({piece for text in texts for piece in text.pieces})
        self._try({seam for text in texts for seam in pairwise(text.pieces)})
        holds = [self._usable and all(map(self._holds.get, pairwise(t.pieces))) for t in texts]
        broken = [text for text, good in zip(texts, holds, strict=True) if not good]
        whole = iter(self._whole(broken) if broken else ())
        return [
            self._together(text) if good else next(whole)
            for text, good in zip(texts, holds, strict=True)
        ]

    def _together(self, text: Pieces) -> list[int]:
        ids = self._before + [token for piece in text.pieces for token in self._tokens[piece]]
        return without_second_bos(self._tokenizer, [text], [ids])[0]

    def _learn(self, pieces: set[str]) -> None:
        if new := sorted(pieces - self._tokens.keys()):
            self._tokens |= zip(new, self._plain(new), strict=True)

    def _try(self, seams: set[tuple[str, str]]) -> None:
        if new := sorted(seams - self._holds.keys()):
            whole = self._plain([left + right for left, right in new])
            for (left, right), tokens in zip(new, whole, strict=True):
                self._holds[left, right] = tokens == self._tokens[left] + self._tokens[right]

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        ids = list(self._tokenizer([*texts], verbose=False).input_ids)
        return without_second_bos(self._tokenizer, texts, ids)

    def _plain(self, texts: list[str]) -> list[list[int]]:
        return list(self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids)


def without_second_bos(
    tokenizer: Any, texts: Sequence[str], rows: list[list[int]]
) -> list[list[int]]:
    """Tokens of texts, of which those that begin with the BOS text itself have one BOS, not two."""
    text, bos = getattr(tokenizer, "bos_token", None), getattr(tokenizer, "bos_token_id", None)
    if not text:
        return rows
    return [
        ids[1:] if one.startswith(text) and ids[:2] == [bos, bos] else ids
        for one, ids in zip(texts, rows, strict=True)
    ]
