"""One HTML page of what was measured: a saved report, a run of notebooks, or a sweep.

It holds its figures, opens without a network, runs nothing, and is the same for the same folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workbench.errors import InputError
from workbench.files import write_whole
from workbench.report.notebooks import one_notebook, several_notebooks
from workbench.report.page import Part, page
from workbench.report.saved import saved_report
from workbench.report.sweeps import sweep_report

__all__ = ["render"]

KINDS: dict[str, Callable[[Path], list[Part]]] = {
    "sweep.json": sweep_report,
    "summary.json": saved_report,
    "*.ipynb": several_notebooks,
}


def render(path: str | Path, out: str | Path | None = None) -> Path:
    """Write a page of what lies at `path`.

    Args:
        path: a folder of a sweep (`sweep.json`), of a saved report (`summary.json`) or of executed
            notebooks, or one executed notebook.
        out: the page; by default `report.html` in the folder, or the notebook's name with `.html`
            beside it. One that is there is replaced, whole or not at all.

    Returns:
        Where the page is.

    Raises:
        InputError: there is nothing of these, a file of it is broken, or the page cannot be
            written there.
    """
    place = Path(path).expanduser()
    parts = _parts(place)
    beside = place / "report.html" if place.is_dir() else place.with_suffix(".html")
    target = Path(out).expanduser() if out is not None else beside
    if target.suffix != ".html" or target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{target}: give a file that ends in .html, in a folder that is there")
    folder = place if place.is_dir() else place.parent
    title = place.resolve().name
    text = page(title, parts(place), folder)
    try:
        write_whole(target, text.encode(errors="replace"))
    except OSError as error:
        raise InputError(f"the page could not be written to {target}: {error}") from error
    return target


def _parts(place: Path) -> Callable[[Path], list[Part]]:
    """What makes a page of this place."""
    if place.is_file() and place.suffix == ".ipynb":
        return one_notebook
    for pattern, parts in KINDS.items() if place.is_dir() else ():
        if any(place.glob(pattern)):
            return parts
    inner = {path.parent for pattern in KINDS for path in place.glob(f"*/{pattern}")}
    hint = f"; {min(inner)} holds one" if inner else ""
    raise InputError(
        f"{place} is no folder of a sweep, a saved report or executed notebooks, nor a notebook"
        f"{hint}: give one of these"
    )
