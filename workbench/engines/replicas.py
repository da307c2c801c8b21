"""Replicas as Ray actors, which hold our vLLM engine, and the cluster where they run."""

from __future__ import annotations

import inspect
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.engines import vllm
from workbench.engines.pool import DiedError, Rows
from workbench.errors import EngineError, EngineGoneError, EngineUnavailableError, WorkbenchError
from workbench.lazy import ray
from workbench.progress import STOP
from workbench.types import EngineInfo

RESTARTING = 900.0  # seconds for restarts of a replica until it is left out
THREADS = 8  # calls that an actor runs at once: packets, and questions beside them
MEMORY = 256 * 2**20  # bytes of a local cluster's object store: packets are small
CURRENT = "ray/ray_current_cluster"  # where `ray start` notes a cluster, in its temporary folder
_numbers = itertools.count()
_local: set[int] = set()  # engines that use the cluster which this process has started


@dataclass(frozen=True, slots=True)
class Facts:
    """What a replica reports of its engine; `batch` is how many requests it computes at once."""

    identity: bytes
    variant: str
    info: EngineInfo
    has_chat: bool
    batch: int


class _Actor:
    """A replica: the vLLM engine in a process that Ray has started."""

    def __init__(self, model: str | None, options: Mapping[str, Any]) -> None:
        self._stops: dict[int, threading.Event] = {}
        self._failed: Exception | None = None
        try:
            self._engine = vllm.VLLMEngine(model, None, "a replica", options)
        except Exception as error:  # noqa: BLE001  # raised in `facts`: here it would become a text
            self._failed = _ours(error)

    def facts(self) -> Facts:
        if self._failed is not None:
            raise self._failed
        engine = self._engine
        batch = int(engine.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)
        return Facts(engine._identity, engine.variant, engine.info, engine.has_chat, batch)

    def process(self) -> int:
        return os.getpid()

    def _check(self, identity: bytes) -> None:
        """Refuse to answer after a restart with other files, or without: it was not checked."""
        if self._failed is not None or self._engine._identity != identity:
            raise EngineGoneError("it was started again, with another model or none")

    def ask(self, identity: bytes, name: str, *arguments: Any) -> Any:
        self._check(identity)
        try:
            found = getattr(self._engine, name)
            return found(*arguments) if inspect.ismethod(found) else found
        except Exception as error:  # noqa: BLE001  # whatever it is
            raise _ours(error) from None

    def stop(self, number: int) -> None:
        """End a packet at the next step of the model."""
        self._stops.setdefault(number, threading.Event()).set()

    def work(
        self, identity: bytes, number: int, kind: str, jobs: Mapping[int, Any]
    ) -> Iterator[Rows]:
        """Answer a packet's jobs; yields (place, answer) as they finish."""
        self._check(identity)
        stop = self._stops.setdefault(number, threading.Event())
        STOP.set(stop)
        try:
            with closing(self._answers(kind, [*jobs], [*jobs.values()])) as batches:
                for batch in batches:
                    yield batch
                    if stop.is_set():
                        return
        except KeyboardInterrupt:  # the engine's answer to a stop
            return
        except Exception as error:  # noqa: BLE001  # whatever it is
            raise _ours(error) from None
        finally:
            self._stops.pop(number, None)

    def _answers(
        self, kind: str, places: list[int], jobs: list[Any]
    ) -> Generator[Rows, None, None]:
        if kind == "complete":
            by_key = {one.key: place for one, place in zip(jobs, places, strict=True)}
            for done in self._engine._complete(jobs):
                yield [(by_key[request.key], row) for request, row in done]
            return
        if kind == "labels":
            rows = self._engine._score([one for one, _ in jobs], [own for _, own in jobs])
        else:
            rows = self._engine._score_tokens(jobs)
        for batch in rows:
            yield [(places[row.index], row) for row in batch]


def _ours(error: Exception) -> WorkbenchError:
    """An error that any process can read: an unreadable one would count as a death."""
    if isinstance(error, WorkbenchError):
        return error
    return EngineError(f"a replica failed: {type(error).__name__}: {error!s:.600}")


class _Replica:
    """An actor and its place in the cluster, seen from the driver: a `pool.Replica`."""

    def __init__(self, cluster: Cluster) -> None:
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Place

        self._cluster = cluster
        self.group = placement_group(cluster.bundles, strategy="PACK")
        # Of several bundles, vLLM's own workers take the resources.
        own = cluster.bundles[0] if len(cluster.bundles) == 1 else {}
        made = ray.remote(_Actor).options(
            num_cpus=own.get("CPU", 0),
            num_gpus=own.get("GPU", 0),
            max_restarts=-1,
            max_concurrency=THREADS,
            scheduling_strategy=Place(self.group, 0, placement_group_capture_child_tasks=True),
        )
        self.actor = made.remote(cluster.model, cluster.options)
        self._away_since: float | None = None
        self.revive()

    def revive(self) -> None:
        self._facts = self.actor.facts.remote()

    def ready(self) -> bool | Exception:
        if not ray.wait([self._facts], timeout=0)[0]:
            return False
        now = time.monotonic()
        try:
            facts = ray.get(self._facts)
            self._away_since = None
            return self._cluster.accepts(facts)
        except ray.exceptions.ActorUnavailableError as error:  # it restarts
            self._away_since = self._away_since or now
            if now - self._away_since > RESTARTING:
                return explained(error)
            self.revive()
            return False
        except Exception as error:  # noqa: BLE001  # it never will be
            return explained(error)

    def send(self, kind: str, jobs: Mapping[int, Any]) -> _Stream:
        number = next(_numbers)
        method = self.actor.work.options(num_returns="streaming")
        return _Stream(self.actor, number, method.remote(self._identity, number, kind, jobs))

    def ask(self, name: str, *arguments: Any) -> Any:
        """What its engine answers; errors are raised as `_Stream.event` returns them."""
        try:
            return ray.get(self.actor.ask.remote(self._identity, name, *arguments))
        except Exception as error:  # noqa: BLE001  # raised below
            found = _after(self.actor, error)
        raise found

    @property
    def _identity(self) -> bytes:
        assert self._cluster.facts is not None  # it was ready
        return self._cluster.facts.identity

    def end(self) -> None:
        from ray.util.placement_group import remove_placement_group

        with suppress(Exception):  # the cluster may be gone
            ray.kill(self.actor)
            remove_placement_group(self.group)


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    actor: Any
    number: int
    rows: Any  # Ray's generator

    def event(self) -> Any:
        """What has arrived, as `pool.Cluster.wait` returns it."""
        try:
            return ray.get(next(self.rows))
        except StopIteration:
            return None
        except Exception as error:  # noqa: BLE001  # raised by the call
            return _after(self.actor, error)


def _after(actor: Any, error: Exception) -> Exception:
    """What an error means; a replica that cannot answer any more is started again."""
    found = explained(error)
    if isinstance(found, EngineGoneError):  # vLLM has stopped in it, or it has another model
        ray.kill(actor, no_restart=False)
        return DiedError(str(found))
    return found


def explained(error: Exception) -> Exception:
    """Our own error that a replica raised, or that its process has ended."""
    from ray.exceptions import RayError, RayTaskError

    if isinstance(error, RayTaskError):
        return _ours(error.cause)
    text = " ".join(str(error).split())
    return (
        DiedError(f"{type(error).__name__}: {text:.300}") if isinstance(error, RayError) else error
    )


class Cluster:
    """Where replicas run: a `pool.Cluster`. A replica has a bundle for each of its GPUs."""

    def __init__(self, model: str | None, options: Mapping[str, Any]) -> None:
        self.model, self.options = model, options
        self.facts: Facts | None = None  # of the first replica that was ready
        self.bundles: list[dict[str, float]] = []

    def plan(self, cpus: int | None, most: int) -> None:
        """Choose the resources of a replica; without `cpus`, all CPUs if there are no GPUs."""
        sizes = [self.options.get(f"{one}_parallel_size") or 1 for one in ("tensor", "pipeline")]
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpu = any(one.get("GPU") for one in nodes) and self.options.get("device") != "cpu"
        there, count = [one.get("CPU", 0) for one in nodes], math.prod(sizes)
        share = count if gpu else int(min(max(there), sum(there) // most))
        each = max(1, (cpus or share) // count)
        self.bundles = [{"CPU": each} | ({"GPU": 1} if gpu else {})] * count

    def start(self) -> _Replica:
        return _Replica(self)

    def accepts(self, facts: Facts) -> bool | Exception:
        """Whether a replica may join: the first one may, and those with the same answers."""
        first = self.facts = self.facts or facts
        if facts.identity == first.identity:
            return True
        has, needs = (f"{one.info.model} {one.variant}" for one in (facts, first))
        return EngineError(f"it has {has}, not {needs}: all machines need the same files")

    def wait(self, streams: Sequence[_Stream], seconds: float) -> Iterator[tuple[_Stream, Any]]:
        by = {id(one.rows): one for one in streams}
        rows = [one.rows for one in streams]
        if ray.wait(rows, timeout=seconds)[0]:  # then all that are there
            for found in ray.wait(rows, num_returns=len(rows), timeout=0)[0]:
                yield by[id(found)], by[id(found)].event()

    def stop(self, streams: Sequence[_Stream]) -> None:
        for one in streams:
            one.actor.stop.remote(one.number)

    def lacking(self, count: int) -> str:
        """What was requested and what there is, for a message."""
        there, free, parts = ray.cluster_resources(), ray.available_resources(), len(self.bundles)
        needs = " and ".join(f"{parts * size:g} {kind}" for kind, size in self.bundles[0].items())
        has = ", ".join(
            f"{there.get(k, 0):g} {k} ({free.get(k, 0):g} free)" for k in ("CPU", "GPU")
        )
        return (
            f"no place for {count} of the replicas, which need {needs} each: the cluster has {has}."
            " Use fewer replicas, a smaller cpus_per_replica or tensor_parallel_size, or add "
            "machines; `ray status` shows what is in use"
        )


def connect(user: int, address: object) -> None:
    """Connect this process to a cluster, or start a local one for it.

    Raises:
        EngineUnavailableError: no cluster there, or a local one does not start.
    """
    if ray.is_initialized():
        if _local:
            _local.add(user)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    given = address or os.environ.get("RAY_ADDRESS")
    noted = Path(os.environ.get("RAY_TMPDIR") or "/tmp", CURRENT).exists()
    if (given or noted) and given != "local":
        try:
            ray.init(str(given or "auto"), **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineUnavailableError(
                f"no Ray cluster answers at {given or 'the address of `ray start`'}: {error!s:.300}"
                f" ({error.__cause__!s:.200}). Start it with `ray start --head`, set "
                'RAY_AUTH_MODE=token if it has a token, or use address="local"'
            ) from error
        return
    try:  # by the local address: the machine's name may not lead back to it
        ray.init("local", include_dashboard=False, object_store_memory=MEMORY,
                 _node_ip_address="127.0.0.1", **quiet)  # fmt: skip
    except Exception as error:
        ray.shutdown()
        raise EngineUnavailableError(
            f"a local Ray cluster did not start: {error!s:.300}. On a busy machine, start one "
            "beforehand with `ray start --head`"
        ) from error
    _local.add(user)


def disconnect(user: int) -> None:
    """End the local cluster with its last engine; leave any other as it is."""
    if user in _local:
        _local.discard(user)
        if not _local:
            ray.shutdown()
