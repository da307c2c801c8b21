"""Replicas of a vLLM model on a Ray cluster, with the answers and the store of one in process.

Ray places, starts and restarts the replicas. Each is an actor that holds our vLLM engine without a
store, and each call's requests are spread over them (`pool`). Only this process writes the store.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from workbench import values
from workbench.engines import vllm
from workbench.engines.base import BaseEngine, failure
from workbench.engines.pool import Call, DiedError, Pool, Rows
from workbench.engines.replicas import Cluster, Facts, connect, disconnect
from workbench.engines.requests import Request
from workbench.engines.scoring import Pair
from workbench.errors import EngineError, EngineGoneError, EngineUnavailableError, WorkbenchError
from workbench.machine import versions
from workbench.progress import check
from workbench.store import Store
from workbench.types import Completion, LabelRow, Prompt, PromptStyle

OURS = ("address", "cpus_per_replica", "replicas", "start_timeout")  # besides the vLLM engine's
FILES = ("adapter", "chat_template", "tokenizer", "hf_config_path")  # options that may be paths


def unavailable() -> str | None:
    """Why Ray cannot be used here; None if it can."""
    return None if importlib.util.find_spec("ray") else "ray is not installed here"


class RayEngine(BaseEngine):
    """Replicas of a vLLM model on a Ray cluster, behind the `Engine` protocol.

    Args:
        model: hub name or folder, which all machines must have; None is the embedded model.
        store: where answers are kept; they are shared with the vLLM engine in process.
        why: why this engine was chosen, for `info`.
        options: those of the vLLM engine; a replica has `tensor_parallel_size` times
            `pipeline_parallel_size` GPUs. Besides, `replicas`: a number, or (least, most), where
            more start while requests wait; `address` of a cluster: None is that of `RAY_ADDRESS`
            or of `ray start` on this machine, else a local one, which ends with the engine;
            `cpus_per_replica`; `start_timeout`: seconds until the least replicas have a place.

    Raises:
        InputError: an unknown option, a value out of range, or as the vLLM engine.
        EngineUnavailableError: no cluster there, or it has no place for the replicas.
        EngineError: the model could not be loaded.
    """

    _pool: Pool | None = None

    def __init__(
        self, model: str | None, store: Store | None, why: str, options: Mapping[str, Any]
    ) -> None:
        chosen = {name: value for name, value in options.items() if name not in OURS}
        if vllm.unavailable() is None:  # else the replicas check it
            vllm._check_options(chosen, "ray", *OURS)
        least, most = _range(options.get("replicas", 1))
        cpus = values.optional("cpus_per_replica", options.get("cpus_per_replica"), values.whole, 1)
        timeout = values.real("start_timeout", options.get("start_timeout", 60.0), 0, math.inf)
        files = {name: _whole(chosen[name]) for name in FILES if name in chosen}
        self._cluster = Cluster(_whole(model), chosen | files)
        connect(id(self), options.get("address"))
        try:
            self._cluster.plan(cpus, most)
            self._pool = Pool(self._cluster, least, most)
            facts = self._loaded(self._pool, time.monotonic() + timeout)
        except BaseException:
            self._free()
            raise
        count = f"{least}" if least == most else f"{least} to {most}"
        info = replace(
            facts.info,
            engine="ray",
            device=f"{count} replica{'s' * (most > 1)}: {facts.info.device}",
            versions={**facts.info.versions, **versions("ray")},
            why=why,
        )
        super().__init__(info, {}, store, facts.variant)
        self._identity = facts.identity  # answers are those of the same engine in process
        self._templated, self._batch = facts.has_chat, facts.batch
        if not facts.variant:
            self._store_nothing(f"the hub's commit of {info.model} is unknown")

    def _loaded(self, pool: Pool, end: float) -> Facts:
        """Wait until the replicas are loaded, and have a place by then."""
        try:
            while pool.loading:
                check()
                pool.look()
                groups = [one.replica.group for one in pool.loading]
                late = time.monotonic() > end
                if late and (count := sum(not one.wait(0.1) for one in groups)):
                    raise EngineUnavailableError(self._cluster.lacking(count))
                time.sleep(0.1)
        except EngineGoneError as gone:
            if isinstance(cause := gone.__cause__, WorkbenchError):  # as from the engine in process
                raise cause from None
            raise EngineError(str(gone)) from cause
        assert self._cluster.facts is not None  # of the first one
        return self._cluster.facts

    @property
    def _there(self) -> Pool:
        self._check_open()
        assert self._pool is not None
        return self._pool

    def _free(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        disconnect(id(self))

    @property
    def has_chat(self) -> bool:
        """Whether there is a chat template, the model's or the caller's."""
        return self._templated

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, from transformers."""
        return self._ask("tokenizer")

    def suited_style(self) -> tuple[PromptStyle, str]:
        """See `style.chosen_style`."""
        return cast("tuple[PromptStyle, str]", self._ask("suited_style"))

    def count_tokens(self, prompts: Sequence[Prompt]) -> tuple[list[int], bool]:
        """Counts by the model's tokenizer; with images, estimates."""
        return cast("tuple[list[int], bool]", self._ask("count_tokens", prompts))

    def _text_tokens(self, texts: Sequence[str]) -> tuple[list[list[int] | str], int]:
        return cast("tuple[list[list[int] | str], int]", self._ask("_text_tokens", texts))

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Ask any replica; another one if it dies."""
        while True:
            member = self._there.any()
            life = member.life
            try:
                return member.replica.ask(name, *arguments)
            except DiedError as error:
                self._there.died(member, life, error)

    def _complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Completion]]]:
        jobs = sorted(requests, key=lambda one: str(one.prompt))  # shared prefixes stay together

        def rows(found: Rows) -> list[tuple[Request, Completion]]:
            return [
                (jobs[at], failure(str(row)) if isinstance(row, DiedError) else row)
                for at, row in found
            ]

        def spare(found: Rows) -> None:
            self._unfetched += rows(found)

        with closing(Call(self._there, "complete", jobs, self._batch, spare).run()) as batches:
            yield from map(rows, batches)

    def _score(
        self, prompts: Sequence[Prompt], labels: Sequence[tuple[str, ...]]
    ) -> Iterator[list[LabelRow]]:
        yield from self._rows("labels", [*zip(prompts, labels, strict=True)])

    def _score_tokens(self, pairs: Sequence[Pair]) -> Iterator[list[LabelRow]]:
        yield from self._rows("tokens", pairs)

    def _rows(self, kind: str, jobs: Sequence[Any]) -> Iterator[list[LabelRow]]:
        order = sorted(range(len(jobs)), key=lambda at: str(jobs[at][0]))
        ordered = [jobs[at] for at in order]
        with closing(Call(self._there, kind, ordered, self._batch).run()) as batches:
            for batch in batches:
                yield [
                    LabelRow(order[at], None, error=str(row))
                    if isinstance(row, DiedError)
                    else replace(row, index=order[at])
                    for at, row in batch
                ]


def _range(replicas: object) -> tuple[int, int]:
    """The least and the most replicas.

    Raises:
        InputError: not a number from 1, or two of them in order.
    """
    both = [*replicas] if isinstance(replicas, list | tuple) else [replicas, replicas]
    numbers = [values.whole("replicas", one, 1) for one in both]
    if len(numbers) != 2 or numbers != sorted(numbers):
        values.refuse("replicas", replicas, "a number, or (least, most)")
    return numbers[0], numbers[1]


def _whole(value: Any) -> Any:
    """A path that exists as a whole one: workers run in another folder."""
    with suppress(OSError):  # too long for a path
        if isinstance(value, str | Path) and (path := Path(value).expanduser()).exists():
            return str(path.resolve())
    return value
