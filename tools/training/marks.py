"""Marks in training text: what the model is to learn stands between two control characters.

Operands are drawn at random, so predicting them teaches nothing; the loss looks mostly at what
follows from the text before it.
"""

from __future__ import annotations

END = "<|end|>"
_OPEN = {"\x02": 1.0, "\x05": 4.0, "\x06": 16.0}
_CLOSE = "\x03"
_DROP = str.maketrans("", "", "".join(_OPEN) + _CLOSE)


def learned(text: object) -> str:
    """`text`, marked as following from what stands before it."""
    return f"\x02{text}{_CLOSE}"


def decided(label: str, *, rare: bool = False) -> str:
    """A label of one token, which much text leads to and which therefore counts more."""
    return f"{chr(6) if rare else chr(5)}{label}{_CLOSE}"


def unmarked(text: str) -> str:
    """`text` as the model sees it."""
    return text.translate(_DROP)


def split(text: str) -> tuple[str, list[tuple[int, int, float]]]:
    """The text as the model sees it, and the spans [start, end) of what is learned, weighted."""
    spans, shift, start, weight = [], 0, 0, 0.0
    for place, character in enumerate(text):
        if character in _OPEN:
            start, weight = place - shift, _OPEN[character]
            shift += 1
        elif character == _CLOSE:
            spans.append((start, place - shift, weight))
            shift += 1
    return unmarked(text), spans
