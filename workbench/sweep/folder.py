"""A sweep's folder: the state of each point, reliable even after a crash.

    <sweep>/<key>/params.json    written before the point runs
                  out.ipynb      the executed copy, written while it runs
                  result/        where the notebook writes
                  DONE           renamed into place last, only after success; names all files
                  FAILED         the same after a failure, with its reason
                  pid.json       while it runs: its process, or its task on Slurm
    <sweep>/.earlier/<key>/      an earlier result, while the point runs again

Neither papermill's record nor an existing file means that a point is done: a killed kernel leaves
both. `DONE` does, as long as all files that it names are there and unchanged.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from workbench.errors import InputError, log
from workbench.files import write_whole
from workbench.lazy import psutil
from workbench.machine import born
from workbench.serving import slurm
from workbench.sweep.plan import SweepPoint

Status = Literal["done", "failed", "timeout", "killed", "stale", "running", "waiting"]
BEGINNING = 2**20  # bytes
EARLIER = ".earlier"
NOTE, TASKS = "pid.json", "tasks-*.pickle"  # of a point that runs; of the points of an array
ASK = 10.0  # seconds for which an answer of Slurm is used
JOB = re.compile(r"(\d+)_(\d+)((?:;[^\s;]+)?)", re.ASCII)  # of an array, its number, its cluster
RESTS = {
    "notebook": "the notebook",
    "version": "workbench",
    "model": "the model",
    "files": "the files next to the notebook",
}


@dataclass(frozen=True, slots=True)
class PointState:
    """The state of a point.

    Attributes:
        status: "stale" is a result of another notebook, version, model or files next to the
            notebook, or one whose files have changed; "waiting" has no result.
        detail: the reason for any other status than done and waiting; of a job on Slurm what
            Slurm says of it.
        facts: of its run: seconds, machine, version, commit, started.
        metrics: the numbers that the notebook saved with `runs.save_metrics`, if it is done.
    """

    status: Status
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


class SweepFolder:
    """The folder of a sweep's points; created at the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, point: SweepPoint) -> Path:
        """The point's own folder."""
        return self.path / point.key

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against other sweeps.

        Raises:
            InputError: another sweep runs here, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", blocking=False)
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{self.path}: another sweep is running here; wait for it, or choose another name"
            ) from None
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error
        try:
            yield
        finally:
            lock.release()

    def begin(self, point: SweepPoint) -> Path:
        """Create an empty folder for a point; end and remove an earlier attempt.

        An earlier result is set aside until the point has ended again: see `settle`.
        """
        target, earlier = self.of(point), self.path / EARLIER / point.key
        _end_leftover(target / NOTE)
        if recorded_end(target) is not None:
            shutil.rmtree(earlier, ignore_errors=True)
            earlier.parent.mkdir(exist_ok=True)
            target.rename(earlier)
        shutil.rmtree(target, ignore_errors=True)
        try:
            (target / "result").mkdir(parents=True)
            _write(target / "params.json", point.record())
        except OSError:
            self.drop(point)
            raise
        return target

    def end_jobs(self) -> None:
        """Cancel what a killed sweep has left on Slurm; what has ended there is kept.

        Raises:
            EngineError: it may still run, for example because there is no scancel here.
        """
        arrays = set()
        notes = [*self.path.glob(f"*/{NOTE}")]
        for note in notes:
            if found := _job(note):
                arrays.add(found[0])
            elif job := (_read(note) or {}).get("job"):
                log.warning("%s: %r is no job of this folder, and is left as it is", note, job)
        for array in sorted(arrays):
            slurm.cancel(array)
        for path in [*self.path.glob(TASKS), *notes]:
            if path.name != NOTE or "job" in (_read(path) or {}):
                path.unlink(missing_ok=True)  # a task that starts now finds nothing to do

    def runs(self, point: SweepPoint, pid: int) -> None:
        """Record the process that works on a point, so that an orphan can be ended."""
        with suppress(psutil.Error):  # it has ended already
            _write(self.of(point) / NOTE, {"pid": pid, "born": born(pid)})

    def drop(self, point: SweepPoint, *, keep_ended: bool = False) -> None:
        """Remove a point that was interrupted, and restore an earlier result."""
        if not keep_ended or recorded_end(self.of(point)) is None:
            shutil.rmtree(self.of(point), ignore_errors=True)
        self.settle(point.key)

    def settle(self, *keys: str) -> None:
        """Remove the earlier results of points that have ended again; restore the others.

        All points by default: a sweep that was killed has settled none.
        """
        aside = self.path / EARLIER
        for key in keys or [path.name for path in aside.glob("*")]:
            target, earlier = self.path / key, aside / key
            if recorded_end(target) is not None:
                shutil.rmtree(earlier, ignore_errors=True)
            elif earlier.exists():
                _end_leftover(target / NOTE)
                shutil.rmtree(target, ignore_errors=True)
                with suppress(OSError):  # it stays aside
                    earlier.rename(target)
        with suppress(OSError):  # others are there
            aside.rmdir()

    def state(self, point: SweepPoint, *, others: Mapping[str, Mapping[str, Any]]) -> PointState:
        """The state of a point; `others` is what `records` returned."""
        target = self.of(point)
        done, failed = _read(target / "DONE"), _read(target / "FAILED")
        if done is not None:
            return _checked(target, done)
        if failed is not None and failed.get("status") in ("failed", "timeout", "killed"):
            return PointState(failed["status"], str(failed.get("detail", "")), _facts(failed))
        if _worker(target / NOTE) is not None:
            return PointState("running")
        if (job := _job(target / NOTE)) and (task := _task(*job, time.monotonic() // ASK)):
            status: Status = "waiting" if task.state == "PENDING" else "running"
            name = f"{job[0].partition(';')[0]}_{job[1]}"
            return PointState(status, f"job {name}: {task.state}, {task.reason}")
        found = others.get(_same(point.plain_parameters, point.served))
        if found is None or found == point.rests:
            return PointState("waiting")
        old = [what for name, what in RESTS.items() if found.get(name) != point.rests.get(name)]
        return PointState("stale", f"there is a result from before {' and '.join(old)} changed")

    def records(self) -> dict[str, Mapping[str, Any]]:
        """The parameters of each finished point here, with the versions of what made its result."""
        found = {}
        for done in self.path.glob("*/DONE"):
            record = _read(done.with_name("params.json")) or {}
            if {"parameters", "served"} <= {*record} and isinstance(record.get("rests"), dict):
                found[_same(record["parameters"], record["served"])] = record["rests"]
        return found


def record_end(target: Path, status: Status, detail: str, facts: Mapping[str, Any]) -> None:
    """Record in a point's folder how it ended."""
    target.mkdir(parents=True, exist_ok=True)  # the notebook may have removed it
    (target / NOTE).unlink(missing_ok=True)
    outcome = {"status": status, "detail": detail, **facts}
    if status == "done":
        outcome["files"] = _digests(target)
    _write(target / ("DONE" if status == "done" else "FAILED"), outcome)


def recorded_end(target: Path) -> dict[str, Any] | None:
    """How a point ended, if that is recorded: its status, detail and facts."""
    found = _read(target / "DONE") or _read(target / "FAILED")
    return found if found and {"status", "detail", "seconds"} <= {*found} else None


def note_job(target: Path, job: str, number: int) -> None:
    """Record the task of an array on Slurm that works on a point, and for which folder."""
    identity, colon, cluster = job.partition(";")
    name = f"{identity}_{number}{colon}{cluster}"
    _write(target / NOTE, {"job": name, "folder": str(target.parent.resolve())})


def note_own_job(target: Path, job: str, number: int) -> None:
    """The same from the task itself, unless the sweep has done so: it knows the cluster."""
    with suppress(FileExistsError), (target / NOTE).open("x", encoding="utf-8") as file:
        json.dump({"job": f"{job}_{number}"}, file)


def _job(note: Path) -> tuple[str, str] | None:
    """The array of a point's task, and its number in it; None if it is not of this folder.

    A copy of a folder has the notes of the original, whose array is not ours to cancel.
    """
    noted = _read(note) or {}
    found = JOB.fullmatch(str(noted.get("job")))
    here = str(note.parent.parent.resolve())
    if found is None or noted.get("folder", here) != here:
        return None
    return found[1] + found[3], found[2]


@lru_cache(maxsize=64)
def _array(job: str, _moment: float) -> Mapping[str, slurm.TaskState]:
    return slurm.states(job) or {}


def _task(array: str, number: str, moment: float) -> slurm.TaskState | None:
    """What Slurm says of a task that has not ended; asked once for an array and a moment."""
    task = _array(array, moment).get(number)
    return None if task is None or task.ended else task


def _same(parameters: object, served: object) -> str:
    return json.dumps([parameters, served], sort_keys=True, default=str)


def _checked(target: Path, done: Mapping[str, Any]) -> PointState:
    """A finished point, if all files that it has written are there and unchanged."""
    files = done.get("files")
    if (
        not isinstance(files, dict)
        or not {"out.ipynb", "params.json"} <= {*files}
        or done.get("status") != "done"
    ):
        return PointState("stale", "DONE is broken")
    for name, there in files.items():
        try:
            same = _digest(target / name) == there
        except (OSError, ValueError):
            return PointState("stale", f"{name} is missing", _facts(done))
        if not same:
            return PointState("stale", f"{name} has changed", _facts(done))
    metrics = _read(target / "result" / "metrics.json")
    lack = "it saved no metrics" if metrics is None else "" if metrics else "metrics.json is broken"
    said = lack or str(done.get("detail", ""))
    return PointState("done", said, _facts(done), metrics or {})


def _facts(outcome: Mapping[str, Any]) -> dict[str, Any]:
    known = {n: v for n, v in outcome.items() if n not in {"status", "detail", "files"}}
    number = known.get("seconds")
    texts = {n: v for n, v in known.items() if isinstance(v, str)}
    return texts | ({"seconds": number} if isinstance(number, int | float) else {})


def _digests(target: Path) -> dict[str, str]:
    files = sorted(path for path in target.rglob("*") if path.is_file())
    return {path.relative_to(target).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    """A file's length and the digest of its beginning; fast, because tables can be long."""
    with path.open("rb") as file:
        start = hashlib.sha256(file.read(BEGINNING)).hexdigest()[:16]
    return f"{path.stat().st_size} {start}"


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if there is no file, empty if it is broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(value, indent=1, default=str))


def _worker(note: Path) -> Any:
    """The process that a point's note names, if it still runs."""
    noted = _read(note) or {}
    with suppress(psutil.Error, KeyError, TypeError, ValueError):
        process = psutil.Process(noted["pid"])
        if born(process.pid) == noted["born"]:
            return process
    return None


def _end_leftover(note: Path) -> None:
    """End the process of a killed sweep, if it is still running."""
    worker = _worker(note)
    if worker is None:
        return
    family = [worker]
    with suppress(psutil.Error):
        family += worker.children(recursive=True)
    for one in family:
        with suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(family, timeout=5)
