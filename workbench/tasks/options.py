"""Six-way multiple choice: four results, `I don't know`, `None of the above`."""

from __future__ import annotations

import random
from collections.abc import Iterator

from workbench.tasks.generated import Generated
from workbench.tiny import options
from workbench.types import Item, Sampling


class Options(Generated):
    """`item.fields`: `question`, `options` (six texts), `level` (`options.LEVELS`, easy first)."""

    name = "options"
    difficulty = "level"
    reads = "choice"
    labels = tuple(f" {letter}" for letter in options.LETTERS)
    sampling = Sampling(max_tokens=2, stop=("\n",))
    count = 2000

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        levels = options.LEVELS if held_out else options.LEVELS[:-1]
        for choice in options.choices(rng, held_out=held_out, levels=levels):
            texts = choice.texts
            fields = {"question": choice.question, "options": texts, "level": choice.level}
            key = f"{choice.question} {' '.join(texts[:4])}"
            yield Item(id=key, fields=fields, answer=choice.letter)

    def ask(self, item: Item) -> str:
        return options.listed(item.fields["question"], item.fields["options"])
