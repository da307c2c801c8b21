"""GSM8K: 1,319 word problems of two to eight steps written by people (Cobbe et al. 2021)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from workbench.answers import canonical
from workbench.errors import InputError
from workbench.tasks.data import read_rows
from workbench.tasks.generated import Worked, shuffled
from workbench.types import Item, Sampling

CALCULATION = re.compile(r"<<[^<>]*>>")


class GSM8K(Worked):
    """`item.fields`: `question`, `steps` (calculations marked in the solution), `solution`.

    A model ends in `#### N` because it is shown examples, or because the chat asks for it.
    """

    name = "gsm8k"
    # No empty line: a chat model's paragraphs are parted by them.
    sampling = Sampling(max_tokens=400, stop=("\nQuestion:",))
    count = 1319

    def stream(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        side = "test" if held_out else "train"
        rows = read_rows(f"gsm8k/{side}.jsonl", ("question", "answer"))
        for at in shuffled(len(rows), rng):
            yield _item(f"gsm8k-{side}-{at}", rows[at]["question"], rows[at]["answer"])

    def question(self, item: Item) -> str:
        return f"{super().question(item)}\nEnd with a line `#### N`, where N is the answer."


def _item(key: str, question: str, worked: str) -> Item:
    _, mark, number = worked.rpartition("####")
    answer = canonical(number) if mark else None
    if answer is None:
        raise InputError(f"{key}: its answer has no line `#### N`; fetch the GSM8K files again")
    fields = {
        "question": question,
        "steps": max(1, len(CALCULATION.findall(worked))),
        # An empty line would end the example.
        "solution": re.sub(r"\n\s*\n", "\n", CALCULATION.sub("", worked)),
    }
    return Item(id=key, fields=fields, answer=answer)
