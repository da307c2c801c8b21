"""Packets on a pool of replicas, with fakes for faults; and real replicas on a real Ray cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from workbench import Sampling, open_engine
from workbench.engines.pool import SLOTS, Call, DiedError, Pool, packet_size
from workbench.engines.ray import RayEngine
from workbench.engines.replicas import _Actor
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, EngineGoneError, EngineUnavailableError, InputError
from workbench.store import Store

PROMPTS = [f"{a}+{b}=" for a in range(10, 42) for b in range(10, 42)][:1000]
SHORT = Sampling(max_tokens=4)
LABELS = ["12", "33", " yes"]


class FakeReplica:
    """Answers a job with its double; a poisoned job ends it."""

    def __init__(self, cluster: FakeCluster, number: int) -> None:
        self.cluster, self.number, self.lives = cluster, number, 1
        self.streams: list[deque[Any]] = []
        self.ended = False

    def ready(self) -> bool | Exception:
        return self.cluster.broken or True

    def revive(self) -> None:
        self.lives += 1

    def end(self) -> None:
        self.ended = True

    def send(self, kind: str, jobs: Mapping[int, Any]) -> Stream:
        assert kind == "double"
        self.cluster.sent.append((self.number, [*jobs]))
        stream = Stream(self, deque(jobs.items()))
        self.cluster.most = max(self.cluster.most, len(self.cluster.of(self)) + 1)
        self.cluster.open.append(stream)
        return stream


class Stream:
    def __init__(self, replica: FakeReplica, left: deque[tuple[int, Any]]) -> None:
        self.replica, self.left, self.dead = replica, left, False


class FakeCluster:
    def __init__(self, poison: Sequence[int] = (), broken: Exception | None = None) -> None:
        self.poison, self.broken = poison, broken
        self.replicas: list[FakeReplica] = []
        self.open: list[Stream] = []
        self.sent: list[tuple[int, list[int]]] = []
        self.most = 0

    def of(self, replica: FakeReplica) -> list[Stream]:
        return [one for one in self.open if one.replica is replica]

    def start(self) -> FakeReplica:
        self.replicas.append(FakeReplica(self, len(self.replicas)))
        return self.replicas[-1]

    def wait(self, streams: Sequence[Stream], seconds: float) -> Iterator[tuple[Stream, Any]]:
        for stream in streams:
            if stream.dead or not stream.left:
                self.open.remove(stream)
                yield stream, DiedError("killed") if stream.dead else None
                continue
            place, job = stream.left[0]
            if job in self.poison:
                for one in self.of(stream.replica):
                    one.dead = True
                continue
            stream.left.popleft()
            yield stream, [(place, 2 * job)]

    def stop(self, streams: Sequence[Stream]) -> None:
        for stream in streams:
            stream.left.clear()


def answers(pool: Pool, jobs: Sequence[int], batch: int = 64) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for rows in Call(pool, "double", jobs, batch).run():
        for place, answer in rows:
            assert place not in found  # none twice
            found[place] = answer
    return found


def test_each_job_is_answered_once_and_two_packets_are_in_flight() -> None:
    cluster = FakeCluster()
    pool = Pool(cluster, 3, 3)
    assert answers(pool, range(1000)) == {place: 2 * place for place in range(1000)}
    assert cluster.most == SLOTS
    assert {number for number, _ in cluster.sent} == {0, 1, 2}
    assert [one.packets for one in pool.members] == [0, 0, 0]


@pytest.mark.parametrize("poison", [[0], [500], [17, 18, 999]])
def test_only_the_job_that_ends_replicas_fails(poison: list[int]) -> None:
    cluster = FakeCluster(poison)
    pool = Pool(cluster, 2, 2)
    found = answers(pool, range(1000))
    assert len(found) == 1000
    failed = {place for place, answer in found.items() if isinstance(answer, DiedError)}
    assert failed == set(poison)
    assert "replicas died over this request" in str(found[poison[0]])
    assert {place: found[place] for place in found.keys() - failed} == {
        place: 2 * place for place in range(1000) if place not in poison
    }
    assert not any(one.alone or one.packets for one in pool.members)


def test_replicas_that_only_die_end_the_call() -> None:
    with pytest.raises(EngineGoneError, match="25 replicas died in a row"):
        answers(Pool(FakeCluster(range(1000)), 2, 2), range(1000))


def test_a_replica_that_never_loads_is_named() -> None:
    pool = Pool(FakeCluster(broken=EngineError("no such weights")), 2, 2)
    with pytest.raises(EngineGoneError, match="no replica is left: no such weights"):
        answers(pool, range(10))


def test_more_replicas_while_packets_wait_and_the_least_after() -> None:
    cluster = FakeCluster()
    pool = Pool(cluster, 1, 4)
    answers(pool, range(10), batch=8)
    answers(pool, range(2000), batch=64)
    assert len(cluster.replicas) > 3
    assert [one.ended for one in cluster.replicas].count(False) == 1 == len(pool.members)


def test_a_stopped_call_ends_its_packets_and_keeps_what_had_arrived() -> None:
    cluster = FakeCluster()
    pool = Pool(cluster, 1, 1)
    call = Call(pool, "double", range(100), 64).run()
    next(call)
    call.close()
    assert not cluster.open
    assert pool.members[0].packets == 0
    assert len(answers(pool, range(100))) == 100


def test_replicas_that_never_load_are_not_replaced_without_end() -> None:
    class Half(FakeCluster):
        """Its second and later replicas never load."""

        def start(self) -> FakeReplica:
            made = super().start()
            if len(self.replicas) > 1:
                made.ready = lambda: EngineError("no such weights")  # type: ignore[method-assign]
            return made

    cluster = Half()
    pool = Pool(cluster, 3, 3)
    for _ in range(2):
        assert len(answers(pool, range(500))) == 500
    assert len(cluster.replicas) <= 3 + 2  # two more in the second call


def test_nothing_waits_for_replicas_that_are_gone() -> None:
    pool = Pool(FakeCluster(broken=EngineError("no such weights")), 2, 2)
    for _ in range(2):
        with pytest.raises(EngineGoneError, match="no replica is left"):
            pool.any()
    pool.close()
    with pytest.raises(EngineGoneError, match="closed"):
        answers(pool, range(10))


def test_a_packet_that_is_not_sent_keeps_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(FakeCluster(), 1, 1)

    def interrupted(*_: object) -> Stream:
        raise KeyboardInterrupt

    for _ in range(SLOTS):
        with monkeypatch.context() as patch:
            patch.setattr(FakeReplica, "send", interrupted)
            with pytest.raises(KeyboardInterrupt):
                answers(pool, range(10))
    assert len(answers(pool, range(10))) == 10


def test_a_replica_that_restarted_with_other_files_answers_nothing() -> None:
    """Ray restarts it also while it is idle, on any machine."""
    actor = _Actor.__new__(_Actor)
    actor._stops, actor._failed = {}, None

    def fails(_: object) -> None:
        raise LookupError

    engine = SimpleNamespace(_identity=b"now", has_chat=True, _complete=fails)
    actor._engine = cast("VLLMEngine", engine)
    for identity in (b"before", b"now"):
        kind = EngineGoneError if identity == b"before" else EngineError
        with pytest.raises(kind) as raised:
            [*actor.work(identity, 1, "complete", {})]
        assert raised.type is kind
    assert actor.ask(b"now", "has_chat") is True
    actor._failed = EngineError("no such weights")
    with pytest.raises(EngineGoneError):
        actor.ask(b"now", "has_chat")


def test_sizes_of_packets() -> None:
    assert packet_size(3, 4, 256) == 1
    assert packet_size(64, 4, 256) == 16  # all at once
    assert packet_size(1000, 4, 256) == 62
    assert packet_size(10**6, 4, 256) == 256


@pytest.mark.parametrize("replicas", [0, (2, 1), (1, 2, 3), "two", 1.5])
def test_replicas_are_a_number_or_two(replicas: object) -> None:
    with pytest.raises(InputError, match="replicas"):
        open_engine(engine="ray", store=None, replicas=replicas)


def test_unknown_options_are_refused_before_anything_starts() -> None:
    with pytest.raises(InputError, match="unknown option 'replica' for the ray engine"):
        open_engine(engine="ray", store=None, replica=2)


# Real replicas. One cluster for all tests; the stub spares its processes a grammar that Jupyter's
# packages build at import, and with compiled modules they start in seconds.
@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "rfc3987_syntax.py").write_text('raise ImportError("slow")\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
        patch.setenv("OMP_NUM_THREADS", "1")
        import ray

        for attempt in range(3):
            with suppress(Exception):
                ray.init(
                    "local",
                    num_cpus=4,
                    include_dashboard=False,
                    log_to_driver=False,
                    object_store_memory=2**28,
                    _node_ip_address="127.0.0.1",
                )
                break
            ray.shutdown()
            assert attempt < 2, "no local Ray cluster starts here"
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture(scope="module")
def replicas(cluster: str) -> Iterator[RayEngine]:
    engine = open_engine(engine="ray", store=None, replicas=2, cpus_per_replica=1)
    assert isinstance(engine, RayEngine)
    with engine:
        yield engine


def with_store(engine: RayEngine, file: Path) -> RayEngine:
    """The same replicas with a store."""
    engine._store = Store(file)
    return engine


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_equals_the_engine_in_process_and_shares_its_store(
    replicas: RayEngine, plain: VLLMEngine, tmp_path: Path
) -> None:
    engine = with_store(replicas, tmp_path / "s.sqlite")
    rows, scores = engine.generate(PROMPTS, SHORT), engine.label_logprobs(PROMPTS, LABELS)
    texts = engine.score_texts(["12+12=24", "hello"])
    local = plain.generate(PROMPTS, SHORT)
    assert [row.text for row in rows] == [row.text for row in local]
    assert [row.token_ids for row in rows] == [row.token_ids for row in local]
    expected = plain.label_logprobs(PROMPTS, LABELS).logprobs
    np.testing.assert_allclose(scores.logprobs, expected, atol=1e-4)
    np.testing.assert_allclose(texts.logprobs, plain.score_texts(["12+12=24", "hello"]).logprobs,
                               atol=1e-4)  # fmt: skip
    assert (engine._identity, engine.variant) == (plain._identity, plain.variant)
    assert engine.suited_style() == plain.suited_style()
    assert engine.count_tokens(PROMPTS[:5]) == plain.count_tokens(PROMPTS[:5])
    assert engine.tokenizer.encode("12+12=") == plain.tokenizer.encode("12+12=")
    assert engine.info.device == "2 replicas: cpu"
    with VLLMEngine(None, Store(tmp_path / "s.sqlite"), "test", {}) as again:
        again.generate(PROMPTS, SHORT)
        again.label_logprobs(PROMPTS, LABELS)
        assert (again.usage.requests, again.usage.from_store) == (2000, 2000)
    other = tmp_path / "other.sqlite"
    with VLLMEngine(None, Store(other), "test", {}) as first:
        first.generate(PROMPTS[:50], SHORT)
    rows = with_store(replicas, other).generate(PROMPTS[:50], SHORT)
    assert all(row.from_store for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_actor_killed_in_mid_run_loses_nothing(replicas: RayEngine, tmp_path: Path) -> None:
    import ray

    engine = with_store(replicas, tmp_path / "s.sqlite")
    assert engine._pool is not None
    actor = engine._pool.members[0].replica.actor
    victim = ray.get(actor.process.remote())
    seen: list[int] = []
    long = Sampling(max_tokens=24, ignore_eos=True)
    for index, row in engine.stream(PROMPTS, long):
        assert row.error is None
        if not seen:
            os.kill(victim, signal.SIGKILL)
        seen.append(index)
    assert sorted(seen) == [*range(1000)]
    assert sum(one.life for one in engine._pool.members) >= 1
    assert engine.usage.failed == 0
    before = engine.usage
    engine.generate(PROMPTS, long)
    assert engine.usage.since(before).from_store == 1000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stop_keeps_what_is_finished(replicas: RayEngine, tmp_path: Path) -> None:
    engine = with_store(replicas, tmp_path / "s.sqlite")
    stream = engine.stream(PROMPTS, SHORT)
    for _ in range(100):
        next(stream)
    stream.close()
    before = engine.usage
    assert len(engine.generate(PROMPTS, SHORT)) == 1000
    assert 100 <= engine.usage.since(before).from_store < 1000
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, Sampling(max_tokens=400, ignore_eos=True))
    assert len(engine.generate(["12+12="], SHORT)) == 1


DRIVER = """
import sys
from workbench import Sampling, open_engine
prompts = [f"{a}+{b}=" for a in range(10, 42) for b in range(10, 42)][:1000]
engine = open_engine(engine="ray", store=sys.argv[1], replicas=1, cpus_per_replica=1,
                     address=sys.argv[2], start_timeout=300)
for index, row in engine.stream(prompts, Sampling(max_tokens=32, ignore_eos=True)):
    print(index, row.from_store, flush=True)
print("end", engine.usage.requests, engine.usage.from_store, flush=True)
engine.close()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_asks_only_for_what_was_in_flight(cluster: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "s.sqlite"), cluster]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    got = [process.stdout.readline() for _ in range(300)]
    process.kill()
    process.wait()
    assert all(line.endswith("False\n") for line in got)
    time.sleep(1)
    rest = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(rest) == 1001
    _, requests, stored = rest[-1].split()
    assert int(requests) == 1000
    assert 300 <= int(stored) < 1000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_place_it_says_what_there_is(cluster: str) -> None:
    with pytest.raises(EngineUnavailableError, match=r"64 CPU each: the cluster has 4 CPU"):
        open_engine(engine="ray", store=None, cpus_per_replica=64, start_timeout=2)
