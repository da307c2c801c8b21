"""Best of n: many answers are sampled, and the one that a verifier trusts most stands."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from workbench.agents.majority_vote import check_samples, sampled
from workbench.agents.program import Answer, Call, Case, Program, Score
from workbench.errors import EngineError

ASKED = """Problem:
{problem}

Proposed answer:
{text}

Is the proposed answer correct? Reply with Yes or No only."""


def yes_or_no(case: Case, text: str) -> Score:
    """Is this answer correct? The first label says that it is.

    A chat is asked as a chat. A task may have words of its own for this (`judged`), as those have
    that the embedded model was trained on.
    """
    chat = not isinstance(case.prompt, str)
    last = case.prompt[-1]["content"] if chat else case.prompt  # type: ignore[index]
    problem = str(case.item.fields.get("question", last))
    judged = getattr(case.task, "judged", None)
    if judged is not None and not chat:
        return Score(judged(problem, text.strip()), (" Yes", " No"))
    asked = ASKED.format(problem=problem, text=text.strip())
    if chat:
        return Score([{"role": "user", "content": asked}], ("Yes", "No"))
    return Score(f"{asked}\nReply:", (" Yes", " No"))


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The sample that the model finds likeliest to be right (Cobbe et al. 2021, section 4.2).

    Notes: `trust`, the probability of the first label among the labels for the sample chosen, and
    `failed`, samples that did not come or could not be verified.

    Args:
        samples: answers for an item, at one call; different ones are verified in a second one.
        temperature: at which they are sampled.
        verify: what to weigh for an answer; its first label means that the answer is right.

    Raises:
        InputError: fewer than 2 samples, or a temperature that would make them all alike.
    """

    samples: int = 8
    temperature: float = 0.8
    verify: Callable[[Case, str], Score] = field(default=yes_or_no, repr=False)

    def __post_init__(self) -> None:
        check_samples(self.samples, self.temperature)

    def __call__(self, case: Case) -> Program:
        import numpy as np

        texts, failed = yield from sampled(case, self.samples, self.temperature)
        different = list(dict.fromkeys(texts))
        weights = yield from _weighed([self.verify(case, text) for text in different])
        trust = [
            float(np.exp(w[0] - np.logaddexp.reduce(w))) if max(w, default=-np.inf) > -np.inf else 0
            for w in weights
        ]
        best = trust.index(max(trust))
        failed += sum(not w for w in weights)
        return Answer(different[best], {"trust": trust[best], "failed": failed})


def _weighed(scores: list[Score]) -> Generator[Call | list[Call], Any, list[tuple[float, ...]]]:
    """What the scores gave, all at once; where some fail, one by one, and () for those.

    Raises:
        EngineError: all failed.
    """
    with suppress(EngineError):
        return list((yield [*scores]))
    found: list[tuple[float, ...]] = []
    for score in scores:
        try:
            found.append((yield score))
        except EngineError as error:
            found.append(())
            last = error
    if not any(found):
        raise last
    return found
