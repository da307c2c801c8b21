"""A point of a sweep as a task of a Slurm array: `python -m workbench.sweep.point FILE`.

The file has the tasks of the array. This one runs its point as the sweep itself would, and records
in the point's folder how it ended. Where Slurm ends it, nothing is recorded: Slurm has the reason.
A task that Slurm starts again runs its point again, unless that had ended.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import time
from pathlib import Path

from workbench.nb.execution import Outcome, execute
from workbench.sweep.folder import note_own_job, record_end, recorded_end
from workbench.sweep.run import PointTask, ending, provenance

STORE = "WORKBENCH_STORE"
WAIT = 2.0  # seconds


def main(tasks: Path) -> None:
    """Run the task that Slurm names in the environment.

    Raises:
        OSError: the file is gone, because the sweep was ended; or nothing can be written.
        KeyboardInterrupt: Slurm ends the task.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    job, number = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
    task: PointTask = pickle.loads(tasks.read_bytes())[int(number)]
    if recorded_end(task.folder) is not None:
        return
    note_own_job(task.folder, job, int(number))
    # A database is not safe with writers on several machines: each point has one.
    store = task.folder.parent / "stores" / f"{task.folder.name}.sqlite"
    os.environ.setdefault(STORE, str(store))
    shutil.rmtree(task.folder / "result", ignore_errors=True)
    (task.folder / "result").mkdir(parents=True)
    outcome = _outcome(task)
    if outcome.status == "killed":
        time.sleep(WAIT)  # Slurm signals all processes: ours may be the last one
    status = "done" if outcome.status == "ok" else outcome.status
    record_end(task.folder, status, outcome.detail, ending(outcome.seconds, provenance()))


def _outcome(task: PointTask) -> Outcome:
    begun = time.monotonic()
    try:
        return execute(**task.execution)
    except Exception as error:  # noqa: BLE001  # whatever it is: the point's row has the reason
        seconds = round(time.monotonic() - begun, 2)
        return Outcome("failed", seconds, 0, 0, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
