"""Claims about sums: `17+25=42`, to be continued by ` True` or ` False`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from workbench.errors import InputError
from workbench.tasks.generated import Generated
from workbench.tiny import claims
from workbench.types import Item, Sampling

Demonstrations = Literal["right", "random"]


class Claims(Generated):
    """`item.fields`: `claim`, `problem` (claims about one problem exclude each other), `shown`.

    Args:
        demonstrations: the labels of the examples: "right", or "random" for a comparison.
    """

    name = "claims"
    reads = "label"
    labels = claims.LABELS
    sampling = Sampling(max_tokens=2, stop=("\n",))

    def __init__(self, demonstrations: Demonstrations = "right") -> None:
        if demonstrations not in {"right", "random"}:
            raise InputError(f'demonstrations={demonstrations!r}: give "right" or "random"')
        self.demonstrations = demonstrations

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        for group in claims.claims(rng, held_out=held_out):
            for claim in group:
                fields = {
                    "claim": str(claim),
                    "problem": str(claim.problem),
                    "shown": str(claim.shown),
                }
                yield Item(id=str(claim), fields=fields, answer=str(claim.right))

    def examples(self, item: Item) -> Iterator[Item]:
        if self.demonstrations == "right":
            yield from super().examples(item)
        rng = random.Random(item.id)
        for example in super().examples(item):
            yield Item(example.id, example.fields, str(rng.random() < 0.5))

    def ask(self, item: Item) -> str:
        return str(item.fields["claim"])

    def question(self, item: Item) -> str:
        return f"Is it true that {item.fields['claim']}?"
