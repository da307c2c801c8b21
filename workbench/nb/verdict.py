"""How a notebook ended, judged from the executed copy and the exit code of the child.

A run is ok if the kernel replied to every cell that was sent, and none stopped the run but one that
ended the notebook itself (`sys.exit(0)`, `exit()`). What counts is the kernel's reply, not what a
cell shows. A cell tagged `skip-execution` is not sent, one tagged `raises-exception` may raise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from workbench.errors import NotebookError
from workbench.nb import child
from workbench.nb.notebook import PUT_IN, RAISES, Cell, joined, load

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


def judge(
    code: int | None, own: Sequence[Cell], output: Path, seconds: float, said: str
) -> Outcome:
    """The truth about a run.

    Args:
        code: The child's exit code; None if it was ended for its time.
        own: The notebook's own cells, as they were when it began; they are counted and numbered.
        output: The executed copy.
        seconds: How long it took.
        said: What the child said last.
    """
    # The copy has the same cells, by their order; what papermill puts in is left out of both.
    there = _cells(output)
    pairs = zip(own, (cell for cell in there if not _is_put_in(cell)), strict=False)
    sent = [replace(cell, index=place.index) for place, cell in pairs if cell.runs]
    end = next((n for n, cell in enumerate(sent) if code == child.OK and _stopped(cell)), None)
    due = sent if end is None else sent[: end + 1]
    done = sum(_succeeded(cell, code) for cell in due)
    total = sum(cell.runs for cell in own)
    status = _status(code, whole=done == len(due) and (end is not None or len(sent) == total))
    detail = "; ".join(_notes(due)) if status == "ok" else _reason(status, code, due, said)
    if wrong := [cell for cell in there if _is_put_in(cell) and _errors(cell)]:
        detail = f"the injected parameters: {_named(_errors(wrong[0])[0])}"
    return Outcome(status, seconds, total, done, detail)


def own_cells(path: Path) -> list[Cell]:
    """A notebook's cells without those that papermill puts in; none where it cannot be read."""
    return [cell for cell in _cells(path) if not _is_put_in(cell)]


def _is_put_in(cell: Cell) -> bool:
    return bool(PUT_IN & {*cell.tags})


def _cells(path: Path) -> Sequence[Cell]:
    try:
        return load(path).cells
    except NotebookError:
        # Nothing was written, or the writer was killed half way.
        return ()


def _status(code: int | None, *, whole: bool) -> Status:
    if code is None:
        return "timeout"
    if code == child.KILLED or code < 0:
        return "killed"
    return "ok" if code == child.OK and whole else "failed"


def _succeeded(cell: Cell, code: int | None) -> bool:
    # A cell has its count as soon as it begins; only one that ended has the kernel's reply.
    replied = "shell.execute_reply" in cell.metadata.get("execution", ())
    return replied and cell.count is not None and (code == child.OK or not _stopped(cell))


def _stopped(cell: Cell) -> bool:
    """Whether it is where the run stopped: by an error, or, where the child is content, an exit."""
    return bool(cell.metadata.get("papermill", {}).get("exception"))


def _errors(cell: Cell) -> list[dict[str, Any]]:
    return [output for output in cell.outputs if output["output_type"] == "error"]


def _notes(cells: list[Cell]) -> Iterator[str]:
    for cell in cells:
        raised = cell.metadata.get("papermill", {}).get(child.RAISED)
        if _stopped(cell):
            yield f"cell {cell.index}: ended the notebook, without a failure"
        elif RAISES in cell.tags and not raised:
            yield f"cell {cell.index}: is tagged {RAISES}, but raised nothing"
        elif _errors(cell) and not raised:
            yield f"cell {cell.index}: shows {_named(_errors(cell)[0])}, and the kernel ran on"
        if any(child.CUT in joined(one.get("text", "")) for one in cell.outputs):
            yield f"cell {cell.index}: its output is cut"


def _reason(status: Status, code: int | None, cells: list[Cell], said: str) -> str:
    broken = next((cell for cell in cells if not _succeeded(cell, code)), None)
    if broken is None:
        return said or "its cells did not all come to an end"
    if status != "failed":
        return (
            f"cell {broken.index}: {'the kernel died' if status == 'killed' else 'still running'}"
        )
    if errors := _errors(broken):
        return f"cell {broken.index}: {_named(errors[-1])}"
    return said or f"cell {broken.index}: not run"


def _named(error: dict[str, Any]) -> str:
    message = error["evalue"].partition("\n")[0]
    return f"{error['ename']}: {message}" if message else str(error["ename"])
