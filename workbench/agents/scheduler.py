"""Programs of many items, advanced together: each as soon as its own answers are there."""

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

MOST_STREAMS = 4  # at once: with more of them each is smaller
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

    def __init__(self, agent: Agent, case: AgentCase, number: int) -> None:
        if not isinstance(case.prompt, str):  # a program may lengthen its list of turns
            case = replace(case, prompt=_copied(case.prompt))
        self.case, self.outcome = case, AgentOutcome()
        self.number = number  # its place among all programs
        self.round = 0
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
                self._end(f"is no generator but {self.program!r:.60}: write it with `yield`")

    @property
    def live(self) -> bool:
        return self.outcome.answer is None and self.outcome.error is None

    def receive(self, place: int, result: CallResult) -> bool:
        """Take the result of one call; whether it was the last one that it waited for."""
        self.results[place] = result
        if len(self.results) < len(self.calls):
            return False
        results = [self.results[at] for at in range(len(self.calls))]
        self.results = {}
        pairs = [*zip(self.calls, results, strict=True)]
        made = [pair for pair in pairs if not isinstance(pair[1], _NotAskedError)]
        self.outcome.trace += [CallRecord(self.round, *pair) for pair in made]
        if len(made) < len(pairs):  # it ends here: what it makes of this is nothing to be graded
            refused = next(one for one in results if isinstance(one, _NotAskedError))
            self.stop(str(refused))
        else:
            self.step(results)
        return True

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
        self.round += 1
        if self.round > MOST_ROUNDS:
            self.stop(f"the agent did not end within {MOST_ROUNDS} rounds: let it stop")

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

    def stop(self, why: str) -> None:
        """End a program that does not end by itself."""
        assert self.program is not None
        self.outcome.error = why
        with suppress(Exception):  # it may refuse to end even so
            self.program.close()


def _copied(prompt: Prompt) -> Prompt:
    """A chat as it is now, whatever becomes of the list that holds it."""
    return prompt if isinstance(prompt, str) else json.loads(json.dumps(prompt))


def _is_plain_note(note: tuple[object, object]) -> bool:
    name, value = note
    return isinstance(name, str) and isinstance(value, str | Number | None)


def advance(
    agent: Agent,
    cases: Sequence[AgentCase],
    engine: Engine,
    *,
    seed: int = 0,
    spending: Spending | None = None,
) -> list[AgentOutcome]:
    """Run an agent's programs for all cases together.

    Each continues as soon as its own answers are there; what several ask meanwhile is one stream.
    Only calls that are sampled wait until no program is in an earlier round: equal prompts of a
    round draw different samples, by their order. A program that ends, fails or raises leaves the
    others running.

    Args:
        seed: of what is sampled without a seed of its own; another one in each round, so that a
            prompt asked again is answered anew.
        spending: limits what is asked; a program whose call is not made ends with that reason.

    Returns:
        For each case its outcome, with every call in its trace.

    Raises:
        InputError: the engine refuses all that is asked first, such as chats without a template.
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
    """The engine takes no call of this kind."""


class _NotAskedError(EngineError):
    """A limit keeps the call from being made."""


@dataclass(slots=True)
class _Kind:
    """Calls that may go to the engine in one stream; `round` of sampled ones, else 0."""

    round: int
    how: Sampling | tuple[str, ...]
    calls: list[tuple[_RunningProgram, int]] = field(default_factory=list)


class _Calls:
    """Calls that wait for the engine, by kind, and those that are on their way."""

    def __init__(self, engine: Engine, seed: int, spending: Spending) -> None:
        self._engine, self._seed, self._spending = engine, seed, spending
        self._most = 1 if spending.limited else MOST_STREAMS  # the cost of a stream is known after
        self._waiting: dict[bytes, _Kind] = {}
        self.rounds: Counter[int] = Counter()  # programs that are in each
        self.streams: Streams[tuple[_RunningProgram, int, CallResult]] = Streams()

    def add(self, program: _RunningProgram) -> None:
        """Take what a live program asks now."""
        if not program.live:
            return
        if program.round > max(self.rounds, default=1):
            fact("round", program.round)
            log.info("agents: the first items are in round %d", program.round)
        self.rounds[program.round] += 1
        for place, call in enumerate(program.calls):
            how: Sampling | tuple[str, ...]
            number, chat = 0, not isinstance(call.prompt, str)
            if isinstance(call, Score):
                how, key = call.labels, digest(chat, [*call.labels])
            else:
                how = _seeded(call.sampling or program.case.sampling, self._seed, program.round)
                number = program.round if how.temperature > 0 else 0
                key = digest(chat, how.canonical(), how.n, how.seed, number)
            self._waiting.setdefault(key, _Kind(number, how)).calls.append((program, place))

    def start(self) -> bool:
        """Send what may be sent now; whether anything is on its way."""
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
    """Each call's program and place with its result, in the order in which they come."""
    waiting = dict(enumerate(kind.calls))
    prompts = [program.calls[place].prompt for program, place in kind.calls]
    try:
        for part, refused in spending.parts(prompts, kind.how):
            if refused is not None:
                yield from ((*waiting.pop(place), _NotAskedError(refused)) for place in part)
                continue
            asked = [prompts[place] for place in part]
            results = (
                _completions(engine, asked, kind.how)
                if isinstance(kind.how, Sampling)
                else _scores(engine, asked, kind.how)
            )
            for index, result in results:
                yield *waiting.pop(part[index]), result
        lost = EngineError("the engine gave no answer to this call")
    except InputError as error:
        lost = _RefusedCallError(str(error))
    for program, place in waiting.values():
        yield program, place, lost


def _completions(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling
) -> Iterator[tuple[int, CallResult]]:
    """Completions; one of which no sample came is an error."""
    for index, answer in engine.stream(prompts, sampling):
        failed = all(sample.error for sample in answer.samples)
        yield index, EngineError(answer.samples[0].error or "") if failed else answer


def _scores(
    engine: Engine, prompts: Sequence[Prompt], labels: tuple[str, ...]
) -> Iterator[tuple[int, CallResult]]:
    """Log-probabilities; a label of which only a bound is known is an error."""
    for row in stream_labels(engine, prompts, labels):
        scores, upper = row.logprobs or (), row.upper or row.logprobs or ()
        if row.error or any(score < bound for score, bound in zip(scores, upper, strict=True)):
            reason = row.error or f"a label of {labels} has no exact log-probability here"
            yield row.index, EngineError(reason)
        else:
            yield row.index, tuple(map(float, scores))
