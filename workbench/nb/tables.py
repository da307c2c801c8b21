"""A plain table for a terminal: the first column to the left, numbers to the right."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay rows out in aligned columns.

    Args:
        headers: One word a column.
        rows: One value a column; text is set to the left, all else to the right.
    """
    cells = [list(headers), *([str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [not rows or isinstance(value, str) for value in (rows[0] if rows else headers)]
    lines = (
        "  ".join(
            text.ljust(width) if to_left else text.rjust(width)
            for text, width, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    )
    return "\n".join(lines)
