"""The parts of a page about executed notebooks: their text and outputs, without the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import InputError, NotebookError
from workbench.lazy import pd, v4
from workbench.nb.notebook import Cell, Notebook, joined, load
from workbench.report.page import MAX_OUTPUT, Part, facts, frame, heading, image, paragraph, table

CUT_TO = 10_000  # characters that are left of a text that is cut
MARKUP = 300_000  # maximum characters of HTML, since cleaning it takes time
ROWS = 20
KINDS = ("text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/latex",
         "text/plain")  # fmt: skip
RUNS = re.compile(r"<script\b", re.IGNORECASE)


def one_notebook(path: Path) -> list[Part]:
    """The text and outputs of one notebook, in their order.

    Raises:
        InputError: the notebook is broken.
    """
    return [*_notebook(_load(path))]


def several_notebooks(folder: Path) -> list[Part]:
    """The text and outputs of a run's notebooks, and the figures and tables that they wrote.

    Raises:
        InputError: a notebook is broken.
    """
    books = [_load(path) for path in sorted(folder.glob("*.ipynb"))]
    lines = [(book.path.name, *_progress(book)) for book in books]
    parts = [
        heading(folder.resolve().name, 1),
        table(["notebook", "cells run", "cells", "what went wrong"], lines, bad="what went wrong"),
    ]
    for book in books:
        parts += [paragraph(book.path.name, "about start"), *_notebook(book)]
    figures = [p for p in sorted(folder.glob("figures/**/*.*")) if not p.stem.endswith("_dark")]
    if figures:
        parts.append(heading("Saved figures"))
    for path in figures:
        parts += [heading(path.relative_to(folder).as_posix(), 3), image(path)]
    if results := sorted(folder.glob("results/*.csv")):
        parts.append(heading("Saved tables"))
    for path in results:
        parts += [heading(path.relative_to(folder).as_posix(), 3), *_table_of(path)]
    return parts


def _load(path: Path) -> Notebook:
    try:
        return load(path)
    except NotebookError as error:
        raise InputError(str(error)) from error


def _progress(book: Notebook) -> tuple[int, int, str]:
    """How many cells ran, of how many, and the first error."""
    errors = [(cell.index, error) for cell in book.code for error in cell.errors]
    faults = [f"cell {cell}: {one['ename']}: {one['evalue']}" for cell, one in errors]
    ran = sum(cell.count is not None for cell in book.code) - len(faults)
    unfinished = "" if ran == len(book.code) else "it did not run to its end"
    return ran, len(book.code), faults[0] if faults else unfinished


def _notebook(book: Notebook) -> Iterator[Part]:
    """Its parameters, text and outputs."""
    papermill = book.metadata.get("papermill", {})
    parameters = papermill.get("parameters") if isinstance(papermill, Mapping) else None
    if isinstance(parameters, Mapping) and parameters:
        yield facts({str(name): json.dumps(value) for name, value in parameters.items()})
    for one in book.cells:
        if one.kind == "markdown":
            yield from _text(book, one)
        if outputs := [part for output in one.outputs for part in _outputs(output)]:
            yield v4.new_code_cell(outputs=outputs)


def _text(book: Notebook, one: Cell) -> Iterator[Part]:
    source, note = _cut(one.source)
    text = v4.new_markdown_cell(source)
    if "attachment:" in one.source:  # rare, and not part of `Cell`
        cell = json.loads(book.path.read_text(encoding="utf-8"))["cells"][one.index]
        text["attachments"] = cell.get("attachments", {})
    yield text
    if note:
        yield paragraph(note, "note")


def _outputs(output: Mapping[str, Any]) -> Iterator[Part]:
    """An output as a page can show it, without scripts."""
    kind = output["output_type"]
    if kind == "stream":
        text, note = _cut(_terminal_text(joined(output["text"])))
        if text.strip():
            yield v4.new_output("stream", name=output["name"], text=text)
    elif kind == "error":
        about = f"{output['ename']}: {output['evalue']}"
        text, note = _cut("\n".join(output["traceback"]) or about)
        yield v4.new_output("error", ename="", evalue="", traceback=[text])
    else:
        shown, note = _shown(output["data"], output["metadata"])
        if shown is not None:
            yield shown
    if note:
        yield paragraph(note, "note")["outputs"][0]


def _shown(data: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[Part | None, str]:
    """The best of an output's formats that a page can show, and a note on what was left out."""
    note = ""
    for kind in (kind for kind in KINDS if kind in data):
        text = joined(data[kind])
        if kind == "text/html" and RUNS.search(text):
            note = "a script is left out: this page runs none"
        most = MARKUP if kind in ("text/html", "text/markdown") else MAX_OUTPUT
        if len(text) > most and kind != "text/plain":
            note = f"{kind} of {len(text):,} characters is left out of this page"
            continue
        if kind == "text/plain":
            text, cut = _cut(text)
            note = "; ".join(filter(None, [note, cut]))
        width = about.get(kind, {}).get("width") if isinstance(about.get(kind), Mapping) else None
        size = {"width": width} if type(width) is int else {}
        return v4.new_output("display_data", data={kind: text}, metadata=size), note
    return None, note


def _terminal_text(text: str) -> str:
    """The text as a terminal shows it after a progress bar has overwritten its lines."""
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def _cut(text: str) -> tuple[str, str]:
    if len(text) <= MAX_OUTPUT:
        return text, ""
    return text[:CUT_TO], f"cut: the first {CUT_TO:,} of {len(text):,} characters"


def _table_of(path: Path) -> list[Part]:
    try:
        return frame(pd.read_csv(path), ROWS)
    except (OSError, ValueError) as error:
        return [paragraph(f"{path.name} cannot be read: {error}", "note")]
