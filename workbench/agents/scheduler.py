"""Programs of many items, advanced together: each round is one batch of all their calls."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from numbers import Number
from typing import Any

from workbench.agents.program import Agent, AgentCase, Answer, Ask, Call, Program, Score
from workbench.engines.requests import check_labels, check_prompts
from workbench.errors import EngineError, InputError
from workbench.progress import fact
from workbench.store import digest
from workbench.types import Completion, Engine, Prompt, Sampling

log = logging.getLogger("workbench")

MOST_ROUNDS = 64
"""Rounds after which a program counts as one that never ends."""

CallResult = Completion | tuple[float, ...] | EngineError


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call that a program made in a round (from 1 on), and what it gave."""

    round: int
    call: Call
    result: CallResult


@dataclass(slots=True)
class AgentOutcome:
    """How a program ended: with an answer or with the reason why there is none."""

    answer: Answer | None = None
    error: str | None = None
    trace: list[CallRecord] = field(default_factory=list)


class _RunningProgram:
    """A program between two rounds."""

    def __init__(self, agent: Agent, case: AgentCase) -> None:
        if not isinstance(case.prompt, str):  # a program may lengthen its list of turns
            case = replace(case, prompt=_copied(case.prompt))
        self.case, self.outcome = case, AgentOutcome()
        self.calls: list[Call] = []
        self.several = False
        self.program: Program | None = None
        try:
            self.program = agent(self.case)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's code, of any kind
            self._fail(error)
        else:
            if not hasattr(self.program, "send"):
                self._end(f"is no generator but {self.program!r:.60}: write it with `yield`")

    @property
    def live(self) -> bool:
        return self.outcome.answer is None and self.outcome.error is None

    def step(self, results: Sequence[CallResult]) -> None:
        """Hand over what the calls of the last round gave, and take those of the next one."""
        assert self.program is not None
        failed = next((r for r in results if isinstance(r, EngineError)), None)
        try:
            if failed is not None:
                yielded = self.program.throw(failed)
            else:
                received = [*results] if self.several else results[0] if results else None
                yielded = self.program.send(received)
            self._take(yielded)
        except StopIteration as stop:
            self._finish(stop.value)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's code, of any kind
            self._fail(error)

    def _take(self, yielded: object) -> None:
        """The calls of a yield, if they are some.

        Raises:
            InputError: a prompt or label among them is unusable.
            TypeError: a message holds what is no text.
        """
        self.several = isinstance(yielded, Sequence) and not isinstance(yielded, str)
        calls: Sequence[Any] = yielded if self.several else [yielded]  # type: ignore[assignment]
        if not calls or not all(isinstance(call, Ask | Score) for call in calls):
            self._end(f"yielded {yielded!r:.80}: yield an Ask or a Score, or a list of them")
            return
        for call in calls:
            check_prompts([call.prompt])
            if isinstance(call, Score):
                check_labels(call.labels)
            elif not isinstance(call.sampling, Sampling | None):
                self._end(f"yielded an Ask with sampling={call.sampling!r:.60}: give a Sampling")
                return
        self.calls = [replace(call, prompt=_copied(call.prompt)) for call in calls]

    def _finish(self, value: object) -> None:
        answer = Answer(value) if isinstance(value, str) else value
        if not isinstance(answer, Answer) or not isinstance(answer.text, str):
            self._end(f"returned {value!r:.80}: return a text, or an Answer with one")
            return
        if not isinstance(answer.notes, Mapping) or not all(
            map(_is_plain_note, answer.notes.items())
        ):
            self._end(f"returned notes={answer.notes!r:.80}: give numbers and texts by name")
            return
        self.outcome.answer = answer

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, EngineError):  # a call's own reason
            self.outcome.error = str(error)
        else:
            self._end(f"raised {type(error).__name__}: {error}")

    def _end(self, why: str) -> None:
        self.outcome.error = f"the agent {why}"

    def stop(self) -> None:
        """Ends a program that goes on and on."""
        assert self.program is not None
        self._end(f"did not end within {MOST_ROUNDS} rounds: let it stop")
        with suppress(Exception):  # it may refuse to end even so
            self.program.close()


def _copied(prompt: Prompt) -> Prompt:
    """A chat as it is now, whatever becomes of the list that holds it."""
    return prompt if isinstance(prompt, str) else json.loads(json.dumps(prompt))


def _is_plain_note(note: tuple[object, object]) -> bool:
    name, value = note
    return isinstance(name, str) and isinstance(value, str | Number | None)


def advance(
    agent: Agent, cases: Sequence[AgentCase], engine: Engine, *, seed: int = 0
) -> list[AgentOutcome]:
    """Run an agent's programs for all cases together, one batch a round.

    A program that ends, fails or raises leaves the others running.

    Args:
        seed: of what is sampled without a seed of its own; another one in each round, so that a
            prompt asked again is answered anew.

    Returns:
        For each case its outcome, with every call in its trace.

    Raises:
        InputError: the engine refuses all calls of a round, such as chats without a template.
    """
    running = [_RunningProgram(agent, case) for case in cases]
    for program in running:
        if program.live:
            program.step([])
    for number in range(1, MOST_ROUNDS + 1):
        live = [program for program in running if program.live]
        if not live:
            break
        if number > 1:
            fact("round", f"{number}, with {len(live)} of {len(running)}")
            log.info("agents: round %d, %d of %d go on", number, len(live), len(running))
        results = _batch([(p.case, call) for p in live for call in p.calls], engine, seed, number)
        of_round = iter(results)
        for program in live:
            answered = [(call, next(of_round)) for call in program.calls]
            program.outcome.trace += [CallRecord(number, call, result) for call, result in answered]
            program.step([result for _, result in answered])
    for program in running:
        if program.live:
            program.stop()
    return [program.outcome for program in running]


def _batch(
    calls: Sequence[tuple[AgentCase, Call]], engine: Engine, seed: int, number: int
) -> list[CallResult]:
    """All calls of a round, those of a kind at once; in their order."""
    kinds: dict[bytes, tuple[Sampling | tuple[str, ...], list[int]]] = {}
    for place, (case, call) in enumerate(calls):
        how: Sampling | tuple[str, ...]
        if isinstance(call, Score):
            how, key = call.labels, digest([*call.labels])
        else:
            how = _seeded(call.sampling or case.sampling, seed, number)
            key = digest(how.canonical(), how.n, how.seed)
        chat = not isinstance(call.prompt, str)
        kinds.setdefault(digest(chat, key.hex()), (how, []))[1].append(place)
    results: dict[int, CallResult] = {}
    for how, places in kinds.values():
        prompts = [calls[place][1].prompt for place in places]
        do = _completed if isinstance(how, Sampling) else _scored
        try:
            results |= zip(places, do(engine, prompts, how), strict=True)  # type: ignore[arg-type]
        except InputError as error:
            if len(kinds) == 1:
                raise
            results |= dict.fromkeys(places, EngineError(str(error)))
    return [results[place] for place in range(len(calls))]


def _seeded(sampling: Sampling, seed: int, number: int) -> Sampling:
    if sampling.temperature == 0 or sampling.seed is not None:
        return sampling
    return replace(sampling, seed=int.from_bytes(digest("agents", seed, number)[:4], "big"))


def _completed(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> list[CallResult]:
    """Completions; one of which no sample came is an error."""
    answers = engine.generate(prompts, sampling, errors="return")
    return [
        EngineError(answer.samples[0].error or "")
        if all(sample.error for sample in answer.samples)
        else answer
        for answer in answers
    ]


def _scored(engine: Engine, prompts: Sequence[Prompt], labels: tuple[str, ...]) -> list[CallResult]:
    """Log-probabilities; a label of which only a bound is known is an error."""
    scores = engine.label_logprobs(prompts, labels, errors="return")
    return [
        EngineError(error or f"a label of {labels} has no exact log-probability here")
        if error or missing.any()
        else tuple(map(float, row))
        for row, missing, error in zip(scores.logprobs, scores.missing, scores.errors, strict=True)
    ]
