"""The built-in agents: ask once, sample and vote, sample and verify, criticise and revise."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from workbench import values
from workbench.agents.program import AgentCase, Answer, Ask, Call, Program, Score
from workbench.errors import EngineError
from workbench.lazy import np
from workbench.messages import images_in, text_of
from workbench.types import Item, Task

VERIFY = """Problem:
{problem}

Proposed answer:
{text}

Is the proposed answer correct? Reply with Yes or No only."""
CRITIQUE = "Check the solution above step by step. Name each mistake, or say that there is none."
REVISE = "Now write the whole solution again, without the mistakes."
REVISION_TOKENS = 160
"""Minimum number of tokens for a critique or a revision."""


def standard(case: AgentCase) -> Program:
    """One answer to the task's prompt, or the task's own way to choose one (`choose`)."""
    if (choose := getattr(case.task, "choose", None)) is not None:
        chosen: str | Answer = yield from choose(case)
        return chosen
    answer = yield Ask(case.prompt)
    return str(answer.text)


@dataclass(frozen=True, slots=True)
class MajorityVote:
    """The most frequent of several sampled answers (Wang et al. 2022, arXiv 2203.11171).

    Equal numbers and expressions count as one answer, however they are written. In a tie, the
    answer that came first wins. The agent returns the first text with the winning answer. Notes:
    `votes`, `voters` (samples with a readable answer), `unparsed`, `failed` and `tied`.

    Args:
        samples: answers per item, requested in one call.
        temperature: sampling temperature.

    Raises:
        InputError: fewer than 2 samples, or a temperature at which all samples are equal.
    """

    samples: int = 16
    temperature: float = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", check_samples(self.samples, self.temperature))

    def __call__(self, case: AgentCase) -> Program:
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
        # max returns the first of equals
        return Answer(texts[max(votes, key=len)[0] if votes else 0], notes)


def sampled(
    case: AgentCase, samples: int, temperature: float
) -> Generator[Call, Any, tuple[list[str], int]]:
    """Sample several answers in one call; returns the texts and how many samples failed.

    Raises:
        EngineError: all samples failed.
    """
    answer = yield Ask(case.prompt, replace(case.sampling, n=samples, temperature=temperature))
    if not (texts := [sample.text for sample in answer.samples if sample.error is None]):
        raise EngineError(answer.samples[0].error or "no sample came")
    return texts, len(answer.samples) - len(texts)


def cluster(task: Task, item: Item, texts: Sequence[str]) -> list[list[int]]:
    """The indexes of the texts, grouped by answer in order of appearance, without unreadable ones.

    Two answers are equal if the task accepts one as correct when the other is the gold answer.
    """
    groups: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        if (answer := task.grade(item, text).extracted) is None:
            continue
        if answer not in groups:  # the same answer may be written in another way
            alike = (one for one in groups if task.grade(replace(item, answer=one), text).correct)
            answer = next(alike, answer)
        groups.setdefault(answer, []).append(place)
    return list(groups.values())


def check_samples(samples: object, temperature: object) -> int:
    """The number of samples, checked; refuses settings at which all samples would be equal."""
    values.real("temperature", temperature, 0, 100, above=True)
    return values.whole("samples", samples, 2)


def yes_or_no(case: AgentCase, text: str) -> Score:
    """Ask whether this answer is correct; the first label means yes.

    A chat prompt gives a chat. A task can have its own wording (`judged`): the tasks that the
    embedded model was trained on have one.
    """
    chat = not isinstance(case.prompt, str)
    last = text_of(case.prompt[-1]["content"]) if chat else case.prompt  # type: ignore[index]
    problem = str(case.item.fields.get("question", last))
    judged = getattr(case.task, "judged", None)
    if judged is not None and not chat:
        return Score(judged(problem, text.strip()), (" Yes", " No"))
    question = VERIFY.format(problem=problem, text=text.strip())
    if chat:
        images = images_in(case.prompt)
        content = [*images, {"type": "text", "text": question}] if images else question
        return Score([{"role": "user", "content": content}], ("Yes", "No"))
    return Score(f"{question}\nReply:", (" Yes", " No"))


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The sample that the model rates most likely to be correct (Cobbe et al. 2021, section 4.2).

    Notes: `trust`, the probability of the first label among the labels, for the chosen sample; and
    `failed`, the number of samples that failed or could not be verified.

    Args:
        samples: answers per item, requested in one call; a second call verifies the distinct ones.
        temperature: sampling temperature.
        verify: builds the question that scores an answer; its first label means "correct".

    Raises:
        InputError: fewer than 2 samples, or a temperature at which all samples are equal.
    """

    samples: int = 8
    temperature: float = 0.8
    verify: Callable[[AgentCase, str], Score] = field(default=yes_or_no, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", check_samples(self.samples, self.temperature))

    def __call__(self, case: AgentCase) -> Program:
        texts, failed = yield from sampled(case, self.samples, self.temperature)
        different = list(dict.fromkeys(texts))
        weights = yield from _weights([self.verify(case, text) for text in different])
        trust = [
            float(np.exp(w[0] - np.logaddexp.reduce(w))) if max(w, default=-np.inf) > -np.inf else 0
            for w in weights
        ]
        best = trust.index(max(trust))
        failed += sum(not w for w in weights)
        return Answer(different[best], {"trust": trust[best], "failed": failed})


def _weights(scores: list[Score]) -> Generator[Call | list[Call], Any, list[tuple[float, ...]]]:
    """The scores' results from one call; if it fails, one call per score, and () for failed ones.

    Raises:
        EngineError: all scores failed.
    """
    with suppress(EngineError):
        return list((yield [*scores]))
    weights: list[tuple[float, ...]] = []
    for score in scores:
        try:
            weights.append((yield score))
        except EngineError as error:
            weights.append(())
            last = error
    if not any(weights):
        raise last
    return weights


@dataclass(frozen=True, slots=True)
class SelfRefine:
    """Draft, critique and revision by one model (Madaan et al. 2023, arXiv 2303.17651).

    It stops when a revision repeats the answer before it or has no readable answer, and returns the
    text before that revision. Notes: `revisions` (how many were requested), `changed` (whether the
    final answer differs from the draft's).

    Args:
        rounds: maximum number of revisions.
        critique, revise: the requests to the model.

    Raises:
        InputError: fewer than 1 round, or an empty request.
    """

    rounds: int = 3
    critique: str = CRITIQUE
    revise: str = REVISE

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounds", values.whole("rounds", self.rounds, 1))
        for name in ("critique", "revise"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                values.refuse(name, text, "a text that is not empty")

    def __call__(self, case: AgentCase) -> Program:
        answer = yield Ask(case.prompt)
        # room for remarks and whole solutions, even if the task asks for a word or a letter
        stop = tuple(text for text in case.sampling.stop if text != "\n") or ("\n\n",)
        most = max(case.sampling.max_tokens, REVISION_TOKENS)
        room = replace(case.sampling, max_tokens=most, stop=stop)
        text = str(answer.text)
        first = current = case.extracted(text)
        revisions = 0
        while revisions < self.rounds:
            remarks = yield Ask(case.then(text, self.critique), room)
            request = f"{self.critique}\n{remarks.text}\n\n{self.revise}"
            revision = yield Ask(case.then(text, request), room)
            revisions += 1
            revised = case.extracted(revision.text)
            alike = current and len(cluster(case.task, case.item, [text, revision.text])) == 1
            if revised is None or alike:
                break
            text, current = str(revision.text), revised
        return Answer(text, {"revisions": revisions, "changed": current != first})
