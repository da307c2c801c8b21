"""Verdicts: is a candidate's solution of a word problem correct?"""

from __future__ import annotations

import random
from collections.abc import Iterator

from workbench.tasks.generated import Generated
from workbench.tiny import verdicts
from workbench.types import Item, Sampling


class Verdicts(Generated):
    """`item.fields`: `problem`, `reference` (the right answer), `candidate` (a solution).

    Args:
        reference: show the right answer in the prompt.
    """

    name = "verdicts"
    reads = "label"
    labels = verdicts.LABELS
    end = "\n\n"
    sampling = Sampling(max_tokens=2, stop=("\n",))

    def __init__(self, *, reference: bool = True) -> None:
        self.reference = reference

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        for candidate in verdicts.candidates(rng, held_out=held_out):
            fields = {
                "problem": candidate.story.question,
                "reference": str(candidate.story.answer),
                "candidate": candidate.solution,
            }
            key = f"{candidate.story.question}\n{candidate.solution}"
            yield Item(id=key, fields=fields, answer="Yes" if candidate.right else "No")

    def ask(self, item: Item) -> str:
        known = item.fields["reference"] if self.reference else None
        return verdicts.judged(item.fields["problem"], item.fields["candidate"], known)
