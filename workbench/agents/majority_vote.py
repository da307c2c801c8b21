"""Self-consistency: many answers are sampled, and the one given most often stands."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.agents.program import Answer, Ask, Call, Case, Program
from workbench.errors import EngineError, InputError
from workbench.types import Item, Task


@dataclass(frozen=True, slots=True)
class MajorityVote:
    """The most frequent of several sampled answers (Wang et al. 2022, arXiv 2203.11171).

    Equal numbers and expressions are one answer, however written; of answers with as many votes
    the first one given wins. Its first text is the agent's, with the notes `votes`, `voters`
    (samples that an answer could be read from), `unparsed`, `failed` and `tied`.

    Args:
        samples: answers for an item, at one call.
        temperature: at which they are sampled.

    Raises:
        InputError: fewer than 2 samples, or a temperature that would make them all alike.
    """

    samples: int = 16
    temperature: float = 0.8

    def __post_init__(self) -> None:
        check_samples(self.samples, self.temperature)

    def __call__(self, case: Case) -> Program:
        texts, failed = yield from sampled(case, self.samples, self.temperature)
        votes = cluster(case.task, case.item, texts)
        counts = sorted(map(len, votes), reverse=True)
        voters = sum(counts)
        notes = {
            "votes": counts[0] if counts else 0,
            "voters": voters,
            "unparsed": len(texts) - voters,
            "failed": failed,
            "tied": len(counts) > 1 and counts[0] == counts[1],
        }
        winner = max(votes, key=len)[0] if votes else 0  # max takes the first of equals
        return Answer(texts[winner], notes)


def sampled(
    case: Case, samples: int, temperature: float
) -> Generator[Call, Any, tuple[list[str], int]]:
    """Ask for several answers at once; returns those that came, and how many failed.

    Raises:
        EngineError: none came.
    """
    sampling = replace(case.sampling, n=samples, temperature=temperature)
    found = yield Ask(case.prompt, sampling)
    texts = [sample.text for sample in found.samples if sample.error is None]
    if not texts:
        raise EngineError(found.samples[0].error or "no sample came")
    return texts, len(found.samples) - len(texts)


def cluster(task: Task, item: Item, texts: Sequence[str]) -> list[list[int]]:
    """Places of equal answers together, in the order of their first ones, unreadable ones left out.

    Two are equal if the task would take one for the other.
    """
    groups: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        answer = task.grade(item, text).extracted
        if answer is None:
            continue
        if answer not in groups:  # it may be written in several ways
            alike = (one for one in groups if task.grade(replace(item, answer=one), text).correct)
            answer = next(alike, answer)
        groups.setdefault(answer, []).append(place)
    return list(groups.values())


def check_samples(samples: object, temperature: object) -> None:
    """Refuse what would not be several different samples."""
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 2:
        raise InputError(f"samples={samples!r}: must be a whole number from 2")
    if not isinstance(temperature, int | float) or not temperature > 0:
        raise InputError(f"temperature={temperature!r}: must be above 0, or all samples are alike")
