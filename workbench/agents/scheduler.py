"""Run the programs of many items together; each continues as soon as its own answers are there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from numbers import Number
from typing import Any

from workbench.agents.program import Agent, AgentCase, Answer, Ask, Call, Program, Score
from workbench.engines.requests import check_labels, check_prompts
from workbench.engines.spending import Spending
from workbench.engines.streams import Streams, stream_labels
from workbench.errors import EngineError, InputError, log
from workbench.progress import fact
from workbench.store import digest
from workbench.types import Completion, Engine, Prompt, Sampling

MOST_STREAMS = 4  # at once; more streams would make each of them smaller
MOST_ROUNDS = 64
"""A program that has not ended after so many rounds is stopped."""

CallResult = Completion | tuple[float, ...] | EngineError


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call that a program made in a round (counted from 1), and its result."""

    round: int
    call: Call
    result: CallResult


@dataclass(slots=True)
class AgentOutcome:
    """How a program ended: with an answer, or with the reason why there is none."""

    answer: Answer | None = None
    error: str | None = None
    trace: list[CallRecord] = field(default_factory=list)


class _RunningProgram:
    """A program between two rounds."""

    def __init__(self, agent: Agent, case: AgentCase, number: int) -> None:
        if not isinstance(case.prompt, str):  # a program may append to its list of turns
            case = replace(case, prompt=_copied(case.prompt))
        self.case, self.outcome = case, AgentOutcome()
        self.number, self.round = number, 0  # its place among all programs
        self.calls: list[Call] = []
        self.results: dict[int, CallResult] = {}
        self.several = False
        self.program: Program | None = None
        try:
            self.program = agent(self.case)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's code, of any kind
            self._fail(error)
        else:
            if not hasattr(self.program, "send"):
                self._end(f"returned {self.program!r:.60}, not a generator: write it with `yield`")

    @property
    def live(self) -> bool:
        return self.outcome.answer is None and self.outcome.error is None

    def receive(self, place: int, result: CallResult) -> bool:
        """Store the result of one call; returns whether it was the last one that was missing."""
        self.results[place] = result
        if len(self.results) < len(self.calls):
            return False
        results = [self.results[at] for at in range(len(self.calls))]
        self.results = {}
        pairs = [*zip(self.calls, results, strict=True)]
        made = [pair for pair in pairs if not isinstance(pair[1], _NotAskedError)]
        self.outcome.trace += [CallRecord(self.round, *pair) for pair in made]
        if len(made) < len(pairs):  # a limit stops it here: its result must not be graded
            self.stop(str(next(one for one in results if isinstance(one, _NotAskedError))))
        else:
            self.step(results)
        return True

    def step(self, results: Sequence[CallResult]) -> None:
        """Send the results of the last round to the program, and take its next calls."""
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
        """Take the calls of a yield, after checking them."""
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
        self.round += 1
        if self.round > MOST_ROUNDS:
            self.stop(f"the agent did not end within {MOST_ROUNDS} rounds: make it return")

    def _finish(self, value: object) -> None:
        answer = Answer(value) if isinstance(value, str) else value
        if not isinstance(answer, Answer) or not isinstance(answer.text, str):
            self._end(f"returned {value!r:.80}: return a text, or an Answer with one")
            return
        notes: Any = answer.notes
        if not isinstance(notes, Mapping) or not all(
            isinstance(name, str) and isinstance(value, str | Number | None)
            for name, value in notes.items()
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

    def stop(self, why: str) -> None:
        """End a program that does not end by itself."""
        assert self.program is not None
        self.outcome.error = why
        with suppress(Exception):  # the program may raise while it is closed
            self.program.close()


def _copied(prompt: Prompt) -> Prompt:
    """A copy of a chat, so that later changes to the list have no effect."""
    return prompt if isinstance(prompt, str) else json.loads(json.dumps(prompt))


def advance(
    agent: Agent,
    cases: Sequence[AgentCase],
    engine: Engine,
    *,
    seed: int = 0,
    spending: Spending | None = None,
) -> list[AgentOutcome]:
    """Run an agent's programs for all cases together.

    Each program continues as soon as its own answers are there. Calls that are ready at the same
    time share a stream. Only sampled calls wait until no program is in an earlier round, because
    equal prompts of a round draw different samples, by their order. A program that ends, fails or
    raises does not stop the others.

    Args:
        seed: for sampled calls without a seed. It changes from round to round, so that a prompt
            asked again gets a new answer.
        spending: limits the calls; a program whose call is not made fails with that reason.

    Returns:
        One outcome per case, with every call in its trace.

    Raises:
        InputError: the engine refuses all first calls, such as chats without a template.
    """
    programs = [_RunningProgram(agent, case, number) for number, case in enumerate(cases)]
    calls = _Calls(engine, seed, spending or Spending(engine))
    for program in programs:
        if program.live:
            program.step([])
        calls.add(program)
    unanswered = sum(len(program.calls) for program in programs if program.live)  # of round 1
    refused = True
    try:
        while calls.start():
            for program, place, result in calls.streams.take():
                refused = refused and isinstance(result, _RefusedCallError)
                unanswered -= program.round == 1
                if refused and not unanswered:
                    raise InputError(str(result))
                number = program.round
                if program.receive(place, result):
                    calls.rounds[number] -= 1
                    calls.add(program)
    finally:
        calls.streams.stop()
    return [program.outcome for program in programs]


class _RefusedCallError(EngineError):
    """The engine does not accept this kind of call."""


class _NotAskedError(EngineError):
    """A limit prevented the call."""


@dataclass(slots=True)
class _Kind:
    """Calls that can share one stream; `round` is 0 unless they are sampled.

    `how` is None for scores; each has its own labels.
    """

    round: int
    how: Sampling | None
    calls: list[tuple[_RunningProgram, int]] = field(default_factory=list)


class _Calls:
    """Calls that wait for the engine, by kind, and the streams in flight."""

    def __init__(self, engine: Engine, seed: int, spending: Spending) -> None:
        self._engine, self._seed, self._spending = engine, seed, spending
        self._most = 1 if spending.limited else MOST_STREAMS  # a stream's cost is known at its end
        self._waiting: dict[bytes, _Kind] = {}
        self.rounds: Counter[int] = Counter()  # programs per round
        self.streams: Streams[tuple[_RunningProgram, int, CallResult]] = Streams()

    def add(self, program: _RunningProgram) -> None:
        """Queue the calls of a live program."""
        if not program.live:
            return
        if program.round > max(self.rounds, default=1):
            fact("round", program.round)
            log.info("agents: the first items are in round %d", program.round)
        self.rounds[program.round] += 1
        for place, call in enumerate(program.calls):
            how: Sampling | None = None
            number, chat = 0, not isinstance(call.prompt, str)
            if isinstance(call, Score):
                key = digest(chat)
            else:
                how = _seeded(call.sampling or program.case.sampling, self._seed, program.round)
                number = program.round if how.temperature > 0 else 0
                key = digest(chat, how.canonical(), how.n, how.seed, number)
            self._waiting.setdefault(key, _Kind(number, how)).calls.append((program, place))

    def start(self) -> bool:
        """Send the calls that are ready; returns whether any stream is in flight."""
        earliest = min((number for number, count in self.rounds.items() if count), default=0)
        while self.streams.running < self._most:
            ready = (key for key, kind in self._waiting.items() if kind.round <= earliest)
            if (key := next(ready, None)) is None:
                break
            kind = self._waiting.pop(key)
            if kind.round:
                kind.calls.sort(key=lambda call: (call[0].number, call[1]))
            self.streams.start(_answers(self._engine, kind, self._spending))
        return self.streams.running > 0


def _seeded(sampling: Sampling, seed: int, number: int) -> Sampling:
    if sampling.temperature == 0 or sampling.seed is not None:
        return sampling
    return replace(sampling, seed=int.from_bytes(digest("agents", seed, number)[:4], "big"))


def _answers(
    engine: Engine, kind: _Kind, spending: Spending
) -> Generator[tuple[_RunningProgram, int, CallResult], None, None]:
    """Each call's program and place with its result, in the order of arrival."""
    waiting = dict(enumerate(kind.calls))
    calls = [program.calls[place] for program, place in kind.calls]
    prompts = [call.prompt for call in calls]
    labels = [call.labels for call in calls if isinstance(call, Score)]
    try:
        for part, refused in spending.parts(prompts, kind.how or labels):
            if refused is not None:
                yield from ((*waiting.pop(place), _NotAskedError(refused)) for place in part)
                continue
            asked = [prompts[place] for place in part]
            results: Iterator[tuple[int, CallResult]]
            if kind.how is None:
                results = _scores(engine, asked, [labels[place] for place in part])
            else:
                results = _completions(engine, asked, kind.how)
            for index, result in results:
                yield *waiting.pop(part[index]), result
        lost = EngineError("the engine gave no answer to this call")
    except InputError as error:
        if len({*labels}) > 1:  # those of one call may be at fault
            for one in waiting.values():
                yield from _answers(engine, replace(kind, calls=[one]), spending)
            return
        lost = _RefusedCallError(str(error))
    for program, place in waiting.values():
        yield program, place, lost


def _completions(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling
) -> Iterator[tuple[int, CallResult]]:
    """Completions; one without any sample is an error."""
    for index, answer in engine.stream(prompts, sampling):
        failed = all(sample.error for sample in answer.samples)
        yield index, EngineError(answer.samples[0].error or "") if failed else answer


def _scores(
    engine: Engine, prompts: Sequence[Prompt], labels: Sequence[tuple[str, ...]]
) -> Iterator[tuple[int, CallResult]]:
    """Log-probabilities; a label with only an upper bound is an error."""
    shared = len({*labels}) == 1  # as every engine accepts them
    for row in stream_labels(engine, prompts, labels[0] if shared else labels):
        scores, upper = row.logprobs or (), row.upper or row.logprobs or ()
        if row.error or any(score < bound for score, bound in zip(scores, upper, strict=True)):
            lacks = f"the engine has no exact log-probability for a label of {labels[row.index]}"
            yield row.index, EngineError(row.error or lacks)
        else:
            yield row.index, tuple(map(float, scores))
