"""The rows of a saved report in its page: all of them to filter, search and open.

The data is compressed in the page, and the only script that its policy allows makes a table of it.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from workbench import browsing
from workbench.browsing import MARKS, Rows
from workbench.report.page import Part, cell, frame
from workbench.types import Report

FOLDER = Path(browsing.__file__).parent
MOST = 12_000_000
"""Maximum bytes of compressed rows in a page."""


def browsed(report: Report, first: int) -> Part:
    """The first rows as a table, which a browser replaces by all rows to browse."""
    static = [part["outputs"][0]["data"]["text/html"] for part in frame(report.rows, first)]
    part = cell("text/html", f'<div class="wb-page">{"".join(static)}</div>')
    files = {kind: FOLDER / f"browse.{kind}" for kind in ("css", "js")}
    part["metadata"]["listing"] = {
        "data": _packed(Rows(report)),
        **{kind: path.read_text(encoding="utf-8") for kind, path in files.items()},
    }
    return part


def _packed(listing: Rows) -> str:
    """The rows as JSON, one per line below one about all of them; gzip, then base64."""
    packer, packed = zlib.compressobj(9, wbits=31), bytearray()
    for line in _lines(listing):
        text = json.dumps(line, ensure_ascii=False) + "\n"
        packed += packer.compress(text.encode(errors="replace"))
        if len(packed) > MOST:
            break
    return base64.b64encode(packed + packer.flush()).decode()


def _lines(listing: Rows) -> Iterator[object]:
    filters, states = [*listing.filters.items()], listing.states.tolist()
    yield {"columns": listing.columns, "filters": filters, "marks": MARKS, "rows": len(states)}
    for row in listing.order.tolist():
        yield [states[row], listing.cells(row), listing.parts(row)]
