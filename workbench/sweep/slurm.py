"""Points of a sweep as one array job of a Slurm cluster.

The sweep's folder, the notebook and the Python environment must be visible on all nodes. A point
records its own end there (`workbench.sweep.point`). Slurm is asked only for the points that are
silent; a point that Slurm ended has Slurm's state as its reason.
"""

from __future__ import annotations

import pickle
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from workbench.errors import EngineError, log
from workbench.files import write_whole
from workbench.nb.execution import Outcome
from workbench.nb.execution import Status as Ended
from workbench.serving import slurm
from workbench.serving.slurm import SlurmJob, TaskState
from workbench.sweep.folder import ASK, NOTE, TASKS, note_job, recorded_end
from workbench.sweep.run import PointTask

LOOK = 1.0  # seconds between two looks at the points' files
MOST = 1000  # tasks of an array, as Slurm allows by default (MaxArraySize)
STATUS: dict[str, Ended] = {
    "TIMEOUT": "timeout", "DEADLINE": "timeout", "FAILED": "failed", "COMPLETED": "failed",
    "": "failed",
}  # fmt: skip
"""Of a point that Slurm reports as ended in this state; of any other: killed."""


class SlurmArray:
    """Runs points as the tasks of an array, `jobs` of them at a time; more than 1,000 in turn.

    A task that loses its node, or is preempted, is started again by Slurm where the cluster allows
    that. Each point has its own response store, `stores/<key>.sqlite` in the sweep's folder,
    unless `WORKBENCH_STORE` names one.

    Args:
        job: the resources of one point.
    """

    elsewhere = True

    def __init__(self, job: SlurmJob) -> None:
        self._slurm, self._jobs = job, 1
        self._points: list[SlurmPoint] = []
        self._id: str | None = None
        self._next = self._ask = 0.0
        self._lock = threading.Lock()
        self._tasks: Path | None = None
        self._runs_on: EngineError | None = None

    def check(self, folder: Path, home: Path) -> None:
        """Check that the array can be submitted and cancelled, as far as that is known here.

        Raises:
            EngineUnavailableError: a program of Slurm is not here.
            InputError: Slurm or the shell could misinterpret a path.
        """
        for name in ("sbatch", "squeue", "scancel"):
            slurm.program(name)
        self._script(folder.absolute() / TASKS, home.absolute(), 1)

    def room(self, jobs: int) -> int:
        """All points, until they are submitted; then none, until they have ended."""
        self._jobs = jobs
        if self._id is not None and all(one.outcome for one in self._points):
            self.close()
        return 0 if self._id is not None else MOST

    def start(self, task: PointTask) -> SlurmPoint:
        """Add a point; the array is submitted when its first point is looked at."""
        self._points.append(SlurmPoint(self, task, len(self._points)))
        return self._points[-1]

    def close(self) -> None:
        """Forget an array that has ended."""
        if self._tasks is not None:
            self._tasks.unlink(missing_ok=True)
        self._points, self._id, self._tasks, self._runs_on = [], None, None, None

    def cancel(self) -> None:
        """Cancel the array, and wait until nothing of it runs.

        Raises:
            EngineError: it may still run.
        """
        with self._lock:  # several threads may end the points
            if self._runs_on is not None:
                raise self._runs_on  # do not wait again for each point
            if self._id is not None:
                try:
                    slurm.cancel(self._id)
                except EngineError as error:
                    self._runs_on = error
                    raise
                self._id = None

    def look(self) -> None:
        """Read how points ended: from their files, and of silent ones from Slurm."""
        if self._id is None:
            self._submit()
        now = time.monotonic()
        if now < self._next or self._id is None:
            return
        self._next = now + LOOK
        silent = [one for one in self._points if one.outcome is None and not one.read()]
        if silent and now >= self._ask:
            self._ask = now + ASK
            if (states := slurm.states(self._id)) is not None:
                try:
                    for one in silent:
                        one.judge(self._id, states, self._log(one))
                except EngineError as error:
                    log.warning("%s", error)  # it is judged later

    def _submit(self) -> None:
        task = self._points[0].task
        folder = task.folder.parent.absolute()
        (folder / "logs").mkdir(exist_ok=True)
        self._tasks = folder / TASKS.replace("*", secrets.token_hex(4))
        write_whole(self._tasks, pickle.dumps([one.task for one in self._points]))
        text = self._script(self._tasks, task.home.absolute(), len(self._points))
        self._id = slurm.submit(text)
        for one in self._points:
            note_job(one.task.folder, self._id, one.number)

    def _script(self, tasks: Path, home: Path, count: int) -> str:
        own = self._slurm.environment is None and self._slurm.container is None
        line = [sys.executable if own else "python", "-P", "-m", "workbench.sweep.point"]
        return slurm.script(
            self._slurm,
            [*line, str(tasks)],
            folder=tasks.parent / "logs",
            array=f"0-{count - 1}%{self._jobs}",
            mounts=[tasks.parent, home],
        )

    def _log(self, point: SlurmPoint) -> Path:
        logs = point.task.folder.parent / "logs"
        identity = str(self._id).partition(";")[0]
        return logs / f"{self._slurm.name}-{identity}_{point.number}.log"


class SlurmPoint:
    """A point that is queued or runs as a task of an array."""

    pid = None

    def __init__(self, array: SlurmArray, task: PointTask, number: int) -> None:
        self.task, self.number = task, number
        self.outcome: Outcome | None = None
        self._array, self._gone = array, False

    def poll(self, wait: float = 0.0) -> Outcome | None:
        """The outcome, or None if it has not ended."""
        if self.outcome is None:
            time.sleep(wait)
            self._array.look()
        return self.outcome

    def end(self) -> None:
        """End it, and with it the other points, as a sweep that stops does."""
        self._array.cancel()

    def read(self) -> bool:
        """Whether the point has recorded its end."""
        found = recorded_end(self.task.folder)
        if found is not None:
            (self.task.folder / NOTE).unlink(missing_ok=True)
            status: Ended = "ok"
            if found["status"] != "done":
                status = found["status"]
            self.outcome = Outcome(status, found["seconds"], 0, 0, found["detail"])
        return found is not None

    def judge(self, job: str, states: Mapping[str, TaskState], log: Path) -> None:
        """Decide that the point ended in silence, if Slurm says so twice: files can come late.

        Raises:
            EngineError: Slurm does not know it, but it may still run.
        """
        task = states.get(str(self.number), TaskState("", "Slurm does not know it any more", 0.0))
        before, self._gone = self._gone, task.ended or not task.state
        if not (before and self._gone):
            return
        identity, colon, cluster = job.partition(";")
        if not task.state:  # Slurm may be wrong: a failed point must not run on
            slurm.cancel(f"{identity}_{self.number}{colon}{cluster}")
            if self.read():
                return
        status = STATUS.get(task.state, "killed")
        why = f"{task.state} ({task.reason})" if task.state else task.reason
        detail = f"job {identity}_{self.number}: {why}"
        if status == "failed":
            detail += f"; it ended without a result: {_last_line(log)}"
        self.outcome = Outcome(status, task.seconds, 0, 0, detail)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        return f"its log cannot be read: {error}"
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
