"""Where points run: the seam between a sweep and the machines that do the work.

There is one executor, this machine. Another (a Slurm array, Ray) needs the same: to start a point,
and handles that can be polled and ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workbench.nb.execution import Child, Execution, Outcome


@dataclass(frozen=True, slots=True)
class Job:
    """A point to run: a copy of the notebook, that one's folder, the point's own, its values."""

    notebook: Path
    home: Path
    folder: Path
    parameters: Mapping[str, object]


class Handle(Protocol):
    """A point that runs."""

    @property
    def pid(self) -> int: ...
    def poll(self, wait: float = ...) -> Outcome | None: ...
    def end(self) -> None: ...


class Executor(Protocol):
    """Something that runs notebooks."""

    def start(
        self, job: Job, *, timeout: float, kernel: str, variables: Mapping[str, str]
    ) -> Handle: ...
    def close(self) -> None: ...


class Local:
    """Child processes of this one; the next one gets ready while a point runs."""

    def __init__(self) -> None:
        self._next: Child | None = None

    def close(self) -> None:
        """Let the one go that is ready."""
        if self._next is not None:
            self._next.process.kill()  # it has not begun with anything
            self._next.close()
            self._next = None

    def start(
        self, job: Job, *, timeout: float, kernel: str, variables: Mapping[str, str]
    ) -> Handle:
        """Begin with a point; its copy is `out.ipynb`, its own files go to `result/`."""
        ready, self._next = self._next, None
        started = Execution(
            job.notebook,
            job.folder / "out.ipynb",
            run_dir=job.folder / "result",
            folder=job.home,
            parameters=job.parameters,
            timeout=timeout,
            kernel=kernel,
            variables=variables,
            ready=ready,
        )
        self._next = Child()
        return started
