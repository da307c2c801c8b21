"""Refresh committed notebooks: execute in place, then keep only what says the same everywhere.

A refreshed notebook keeps tags, counts, cell ids and outputs, and each stored table of `approx`
that the new one is near to. A second refresh of a notebook that is deterministic but for these
changes no byte. A notebook that does not run through stays as it was.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.notebooks.lint import WIDGET_VIEW
from workbench.files import write_whole
from workbench.nb.execution import KERNEL, TIMEOUT, Status, execute, require_kernel
from workbench.nb.notebook import INJECTED_TAG, find, load, read_notebook
from workbench.nb.tolerance import MIME, differences, paired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Of all that a notebook saves only its figures are kept, in the tracked folder.
_FIGURES = Path("figures")


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What became of one notebook; `changed` says whether the file was written."""

    path: Path
    status: Status
    changed: bool
    seconds: float
    detail: str


def refresh(
    paths: Iterable[str | Path],
    timeout: float = TIMEOUT,
    *,
    say: Callable[[str], None] = print,
) -> list[Refreshed]:
    """Execute notebooks in place and normalise them.

    Args:
        paths: Notebooks, or folders of them.
        timeout: Seconds for one notebook.
        say: Takes one line a notebook.

    Raises:
        NotebookError: A path or the kernel is wrong; then nothing has run.
    """
    found = find(paths)
    for path in found:
        load(path)
    require_kernel()
    done: list[Refreshed] = []
    for path in found:
        one = _refresh_one(path, timeout)
        done.append(one)
        result = "refreshed" if one.changed else "unchanged"
        detail = f", {one.detail}" if one.detail else ""
        say(f"{path}: {one.status}, {result}, {one.seconds} s{detail}")
    return done


def _refresh_one(path: Path, timeout: float) -> Refreshed:
    before = load(path).cells
    with tempfile.TemporaryDirectory() as folder:
        source, output, run = (Path(folder, n) for n in ("source.ipynb", "output.ipynb", "run"))
        # Clean before as well: a cell that goes away afterwards would leave a gap in the counts.
        source.write_bytes(normalised(path))
        outcome = execute(source, output, run_dir=run, folder=path.parent, timeout=timeout)
        fresh = _settled(path, normalised(output)) if outcome.status == "ok" else None
        if fresh is not None and (drawn := run / "figures").is_dir():
            shutil.copytree(drawn, _FIGURES, dirs_exist_ok=True)
    changed = fresh is not None and fresh != path.read_bytes()
    if fresh is not None and changed:
        write_whole(path, fresh)
    detail = outcome.detail
    if any(INJECTED_TAG in cell.tags for cell in before):
        detail = f"{detail}; " * bool(detail) + "the values of an earlier run are dropped"
    return Refreshed(path, outcome.status, changed, outcome.seconds, detail)


def normalised(path: Path) -> bytes:
    """A notebook as it is committed: no trace of when, where or through what it ran.

    Args:
        path: The notebook, which is left alone.
    """
    nbformat: Any = import_module("nbformat")
    notebook: Any = nbformat.v4.upgrade(nbformat.from_dict(read_notebook(path)))
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata["kernelspec"] = {"name": KERNEL, "display_name": KERNEL}
    notebook.metadata.get("language_info", {}).pop("version", None)
    notebook.cells = [c for c in notebook.cells if INJECTED_TAG not in c.metadata.get("tags", ())]
    for cell in notebook.cells:
        _normalise_cell(cell)
    return _written(notebook)


def _normalise_cell(cell: Any) -> None:
    for key in ("papermill", "execution"):
        cell.metadata.pop(key, None)
    if not cell.metadata.get("tags", True):
        # papermill gives every cell an empty list.
        del cell.metadata["tags"]
    if cell.cell_type != "code":
        return
    for output in cell.outputs:
        # Only the view goes: nbval compares the text beside it.
        output.get("data", {}).pop(WIDGET_VIEW, None)
        output.get("metadata", {}).pop(WIDGET_VIEW, None)
    cell.outputs = [o for o in cell.outputs if "data" not in o or o["data"]]


def _settled(path: Path, fresh: bytes) -> bytes:
    """The fresh notebook with the stored tables that stand for its own.

    A stored table stays where the new one is within its tolerances and no code up to it is another
    than the one that it says it came from: a change of code always shows.
    """
    nbformat: Any = import_module("nbformat")
    notebook: Any = nbformat.reads(fresh.decode(), as_version=4)
    before = {cell.get("id"): cell for cell in nbformat.read(path, as_version=4).cells}
    code = hashlib.sha256()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        code.update(f"{cell.source}\0".encode())
        for output in cell.outputs:
            if MIME in output.get("data", ()):
                output.metadata[MIME] = {"code": code.hexdigest()[:16]}
        stored = before.get(cell.id, {}).get("outputs", ())
        for place, old in paired(stored, cell.outputs):
            new = cell.outputs[place]
            if new.metadata == old.metadata and not differences(old.data, new.data):
                new.data = old.data
    return _written(notebook)


def _written(notebook: Any) -> bytes:
    nbformat: Any = import_module("nbformat")
    text: str = nbformat.writes(notebook, version=nbformat.NO_CONVERT)
    return (text.rstrip("\n") + "\n").encode()
