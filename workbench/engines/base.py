"""What all engines share: checks, the store, order, samples, usage, progress, errors.

An engine adds two methods: `_complete` turns `Request`s into completions as they finish, and
`_score` turns prompts and labels into rows of log-probabilities. Failures are rows with a reason.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from operator import itemgetter
from typing import Any, Self

from workbench.engines.estimate import estimated_tokens
from workbench.engines.frames import Completions
from workbench.engines.requests import (
    Request,
    ResumableDraw,
    check_errors,
    check_prompts,
    gather,
    keyed,
    labels_per_prompt,
    plan,
    raise_failures,
    texts,
)
from workbench.engines.scoring import ScoringEngine
from workbench.errors import EngineError, EngineGoneError, InputError, WorkbenchError
from workbench.progress import UsageTracker, check, interruptible
from workbench.store import BATCH, Store, digest, dump, load
from workbench.types import (
    Completion,
    EngineInfo,
    Errors,
    Labels,
    Prompt,
    Sampling,
    Usage,
)

log = logging.getLogger("workbench")
GREEDY = Sampling()
FORMAT = 3  # of a stored answer's key: raise it when the meaning of keys changes


class BaseEngine(ScoringEngine):
    """Implements the `Engine` protocol over `_complete` and `_score`.

    Args:
        identity: everything that affects an answer besides the request.
        variant: a short name for it (`identity.variant`), which identifies the same model behind
            another engine; "" if unknown.
    """

    def __init__(
        self, info: EngineInfo, identity: dict[str, Any], store: Store | None, variant: str
    ) -> None:
        self._info = info
        self.variant = variant
        self._identity = digest(FORMAT, identity)
        self._store = store
        self._tracker = UsageTracker(info)
        self._closed = False
        self._successors: Iterator[Callable[[], BaseEngine]] = iter(())
        self._successor: BaseEngine | None = None  # used once this engine is lost
        self._changing = threading.Lock()
        self._unfetched: list[tuple[Request, Completion]] = []

    @abstractmethod
    def _complete(
        self, requests: Sequence[Request]
    ) -> Iterator[list[tuple[Request, Completion]]]: ...

    @abstractmethod
    def _free(self) -> None:
        """Release what the engine holds."""

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        self._closed = True
        self._free()
        if self._successor is not None:
            self._successor.close()
        if self._store is not None:
            self._store.close()

    def _store_nothing(self, why: str) -> None:
        """Continue without the store."""
        if self._store is not None:
            self._store.close()
            self._store = None
            self._note(f"the store is off: {why}")

    def _note(self, what: str) -> None:
        """Report a fact about the answers once, in the log and in `info`."""
        with self._changing:
            if what in self._info.notes:
                return
            self._info = replace(self._info, notes=(*self._info.notes, what))
        log.warning("%s: %s", self._info.engine, what)

    @property
    def has_store(self) -> bool:
        """Whether answers are stored and reused."""
        return self._store is not None

    @property
    def has_chat(self) -> bool:
        """Whether it has a chat template; True for a server, where this is unknown."""
        return True

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("this engine is closed; call open_engine(…) again")

    @property
    def info(self) -> EngineInfo:
        """The engine's facts, and why it was chosen."""
        return self._info

    @property
    def usage(self) -> Usage:
        """Counts since the engine was opened."""
        return self._tracker.usage()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        info = self._info
        return f"<{info.engine} engine: {info.model} on {info.device}, {info.dtype}>"

    @interruptible("generate")
    def generate(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling = GREEDY,
        *,
        errors: Errors = "raise",
    ) -> Completions:
        """Complete all prompts; the result is a list in their order, which displays as a table.

        Stored answers are reused. Sampling without a seed is different: the same call (the same
        prompts in the same order) resumes one that ended early (an interrupt, a kill, failed rows).
        A finished call is never replayed: the same call then draws new samples.

        Args:
            prompts: texts (sent unchanged) or lists of messages (through the chat template), in a
                list, a column, an array or any other ordered iterable.
            sampling: how to continue each prompt.
            errors: "raise" raises after all that can finish is finished and stored; "return"
                returns failed rows too, with their reason.

        Raises:
            InputError: the prompts are unusable as a whole (none, empty, missing, mixed).
            EngineError: some failed; its `results` has all rows.
        """
        check_errors(errors)
        found = sorted(self.stream(prompts, sampling), key=itemgetter(0))
        rows = Completions(row for _, row in found)
        if errors == "raise":
            raise_failures([row.error for row in rows], rows)
        return rows

    def stream(
        self, prompts: Iterable[Prompt], sampling: Sampling = GREEDY
    ) -> Generator[tuple[int, Completion], None, None]:
        """Yield (index, completion) as prompts finish; failed ones carry their reason.

        Raises:
            InputError: at once, as for `generate`.
        """
        self._check_open()
        prompts = check_prompts(prompts)
        if not isinstance(sampling, Sampling):
            raise InputError(f"sampling={sampling!r} must be a workbench.Sampling")
        return self._stream(prompts, sampling)

    def _stream(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> Generator[tuple[int, Completion], None, None]:
        self._check_open()
        base, draw = self._base(sampling), None
        if sampling.temperature > 0 and sampling.seed is None:
            call = digest(base.hexdigest(), sampling.n, texts(prompts))
            draw = ResumableDraw(self._store, call)
            base.update(call + f"draw {draw.number}/".encode())
        places: dict[bytes, list[tuple[int, int]]] = {}  # (prompt index, sample index)
        requests: dict[bytes, Request] = {}
        for request, index, sample in plan(prompts, sampling, base):
            places.setdefault(request.key, []).append((index, sample))
            requests[request.key] = request
        rows: dict[int, dict[int, Completion]] = {}
        failed = False

        def work(engine: BaseEngine, keys: list[bytes]) -> Iterator[list[Any]]:
            return engine._complete([requests[key] for key in keys])

        try:
            with closing(self._answered("generate", list(requests), work)) as answers:
                for key, completion in answers:
                    failed |= completion.error is not None
                    for index, sample in places.pop(key):
                        rows.setdefault(index, {})[sample] = completion
                        if len(rows[index]) == sampling.n:
                            yield index, gather(rows.pop(index))
        finally:
            self._rescue()
            if draw is not None:
                finished = not places and not failed
                draw.end(None if self._closed else self._store, finished=finished)

    def _rescue(self) -> None:
        """Store answers that had arrived when the caller stopped or was interrupted."""
        engine = self._successor or self
        rows, engine._unfetched = engine._unfetched, []
        if rows and not self._closed:
            self._keep((request.key, dump(row)) for request, row in rows if row.error is None)

    def _base(self, sampling: Sampling) -> Any:
        return hashlib.sha256(self._identity + digest(sampling.canonical()))

    def lookup(self, prompts: Sequence[Prompt], how: Sampling | Labels) -> list[dict[bytes, bool]]:
        """For each prompt, the keys of its samples or label scores, and whether each is stored.

        Without a seed, samples get the keys of a call without a store: none of them is stored.
        """
        keys: list[list[bytes]] = [[] for _ in prompts]
        if isinstance(how, Sampling):
            for request, index, _ in plan(prompts, how, self._base(how)):
                keys[index].append(request.key)
        else:
            each = labels_per_prompt(how, len(prompts))
            keys = [[key] for key in self._label_keys(prompts, each)]
        found = {key for batch in self._stored([k for one in keys for k in one]) for key in batch}
        return [{key: key in found for key in one} for one in keys]

    def count_tokens(self, prompts: Sequence[Prompt]) -> tuple[list[int], bool]:
        """Tokens per prompt, and whether they are counted (True) or estimated from length."""
        return [*map(estimated_tokens, prompts)], False

    def _answered(
        self,
        what: str,
        keys: list[bytes],
        work: Callable[[BaseEngine, list[bytes]], Iterator[list[Any]]],
    ) -> Generator[tuple[bytes, Any], None, None]:
        """Each key with its row: stored rows first, then computed ones, which are stored."""
        waiting = dict.fromkeys(keys)
        with self._tracker.call(what, len(keys), kept=self.has_store) as call:
            for stored in self._stored(keys):
                call.add_stored(len(stored))
                for key, value in stored.items():
                    del waiting[key]
                    yield key, load(value)

            def rest(engine: BaseEngine) -> Iterator[list[Any]]:
                keys[:] = waiting
                return work(engine, [*keys]) if keys else iter(())

            with closing(self._fail_over(rest)) as batches:
                for batch in batches:
                    rows = [keyed(answer, keys) for answer in batch]
                    self._keep((key, dump(row)) for key, row in rows if row.error is None)
                    call.add([row for _, row in rows])
                    for key, row in rows:
                        del waiting[key]
                        yield key, row
                    check()
            if waiting:
                raise EngineError(f"{what}: the engine returned no row for {len(waiting)} requests")

    def followed_by(self, successors: Iterable[Callable[[], BaseEngine]]) -> None:
        """Set the engines that may take over if this one is lost mid-run, in order."""
        self._successors = iter([*successors])  # none is tried twice

    def _fail_over(
        self, work: Callable[[BaseEngine], Iterator[list[Any]]]
    ) -> Generator[list[Any], None, None]:
        """Run `work` on the current engine; if that is lost, the next one does the rest."""
        while True:
            engine = self._successor or self
            try:
                yield from work(engine)
            except EngineGoneError as gone:
                with self._changing:
                    if (self._successor or self) is engine:  # else another thread has replaced it
                        self._succeed(engine, gone)
            else:
                return

    def _succeed(self, lost: BaseEngine, gone: EngineGoneError) -> None:
        """Switch to the next engine with the same model; raise `gone` if there is none."""
        before, reasons = self._info, []
        for open_next in self._successors:
            try:
                following = open_next()
            except WorkbenchError as error:
                reasons.append(str(error))
                continue
            new = following.info
            if following.variant and (new.model, following.variant) == (before.model, self.variant):
                failover = f"{before.engine} was lost ({gone}); continued with {new.engine}"
                self._info = replace(new, failovers=(*before.failovers, failover))
                self._successor = following
                if lost is not self:
                    lost.close()
                log.warning("%s", failover)
                return
            other = f"{new.model} {following.variant or new.revision}"
            reasons.append(f"{new.engine} has {other}, not {before.model} {self.variant}")
            following.close()
        also = f". No failover: {'; '.join(reasons)}" if reasons else ""
        raise EngineGoneError(f"{gone}{also}") from gone

    def _stored(self, keys: Sequence[bytes]) -> Iterator[dict[bytes, Any]]:
        if self._store is not None:
            for start in range(0, len(keys), BATCH):
                yield self._store.get(keys[start : start + BATCH])

    def _keep(self, rows: Iterator[tuple[bytes, Any]]) -> None:
        if self._store is not None:
            self._check_open()
            self._store.put(rows)


def failure(reason: str, prompt_tokens: int = 0, text: str = "") -> Completion:
    """A row that could not be computed, with the reason; `text` is any partial answer."""
    return Completion(text=text, finish_reason="error", prompt_tokens=prompt_tokens, error=reason)
