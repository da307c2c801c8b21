"""How a notebook ended, judged from the executed copy and the exit code of the child.

A run is ok if every cell that was sent has a count, the kernel's reply and no error, up to the end
or to a cell that ended the notebook itself (`sys.exit(0)`, `exit()`). Tags count as in Jupyter: a
cell tagged `skip-execution` is not sent, one tagged `raises-exception` may raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from workbench.errors import NotebookError
from workbench.nb import child
from workbench.nb.notebook import PUT_IN, RAISES, Cell, load

__all__ = ["Outcome", "Status", "judge"]

Status = Literal["ok", "failed", "killed", "timeout"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one execution ended; `executed` of `cells` code cells ran as they should.

    `detail` says why it is not ok, or what to know of one that is.
    """

    status: Status
    seconds: float
    cells: int
    executed: int
    detail: str


def judge(code: int | None, source: Path, output: Path, seconds: float, said: str) -> Outcome:
    """The truth about a run.

    Args:
        code: The child's exit code; None if it was ended for its time.
        source: The notebook, whose cells are counted and numbered.
        output: The executed copy.
        seconds: How long it took.
        said: The child's last line of output.
    """
    own = _own(source)
    # The copy has the same cells, by their order; what papermill puts in is left out of both.
    sent = [
        replace(cell, index=place.index)
        for place, cell in zip(own, _own(output), strict=False)
        if cell.runs
    ]
    end = next((n for n, cell in enumerate(sent) if _ends(cell)), None)
    due = sent if end is None else sent[: end + 1]
    done = sum(_succeeded(cell) for cell in due)
    total = sum(cell.runs for cell in own)
    status = _status(code, whole=done == len(due) and (end is not None or len(sent) == total))
    detail = "; ".join(_notes(due)) if status == "ok" else _reason(status, due, said)
    return Outcome(status, seconds, total, done, detail)


def _own(path: Path) -> list[Cell]:
    try:
        return [cell for cell in load(path).cells if not PUT_IN & {*cell.tags}]
    except NotebookError:
        # Nothing was written, or the writer was killed half way.
        return []


def _status(code: int | None, *, whole: bool) -> Status:
    if code is None:
        return "timeout"
    if code == child.KILLED or code < 0:
        return "killed"
    return "ok" if code == child.OK and whole else "failed"


def _succeeded(cell: Cell) -> bool:
    # A cell has its count as soon as it begins; only one that ended has the kernel's reply.
    replied = "shell.execute_reply" in cell.metadata.get("execution", ())
    fine = not _errors(cell) or RAISES in cell.tags or _ends(cell)
    return replied and cell.count is not None and fine


def _errors(cell: Cell) -> list[dict[str, Any]]:
    return [output for output in cell.outputs if output["output_type"] == "error"]


def _ends(cell: Cell) -> bool:
    """Whether it ended the notebook, without a failure."""
    return RAISES not in cell.tags and any(
        error["ename"] == "SystemExit" and error["evalue"] in child.ENDS for error in _errors(cell)
    )


def _notes(cells: list[Cell]) -> Iterator[str]:
    for cell in cells:
        if RAISES in cell.tags and not _errors(cell):
            yield f"cell {cell.index}: is tagged {RAISES}, but raised nothing"
        if _ends(cell):
            yield f"cell {cell.index}: ended the notebook (exit code 0)"


def _reason(status: Status, cells: list[Cell], said: str) -> str:
    broken = next((cell for cell in cells if not _succeeded(cell)), None)
    if broken is None:
        return said or "its cells did not all come to an end"
    if status != "failed":
        return (
            f"cell {broken.index}: {'the kernel died' if status == 'killed' else 'still running'}"
        )
    for error in _errors(broken):
        message = f"{error['ename']}: {error['evalue']}".partition("\n")[0]
        return f"cell {broken.index}: {message}"
    return said or f"cell {broken.index}: not run"
