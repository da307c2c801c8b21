"""TruthfulQA: answers to questions that people are often wrong about (Lin et al. 2022)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from workbench.tasks import data
from workbench.tasks.generated import Generated, shuffled
from workbench.types import Item, Sampling


class TruthfulQA(Generated):
    """`item.fields`: `question`, `claim` (an answer to it), `group` (the same for one question)."""

    name = "truthfulqa"
    reads = "label"
    labels = (" True", " False")
    end = "\n\n"
    sampling = Sampling(max_tokens=2, stop=("\n",))
    count = 100

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        rows = data.truthfulqa("test" if held_out else "train")
        for at in shuffled(len(rows), rng):
            row = rows[at]
            fields = {"question": row.question, "claim": row.claim, "group": row.group}
            key = f"truthfulqa-{'test' if held_out else 'train'}-{at}"
            yield Item(id=key, fields=fields, answer=str(row.true))

    def ask(self, item: Item) -> str:
        return f"{_told(item)}\nI think this claim is"

    def question(self, item: Item) -> str:
        return f"{_told(item)}\nIs this claim true? Answer with one word, True or False."


def _told(item: Item) -> str:
    return f"Question: {item.fields['question']}\nClaim: {item.fields['claim']}"
