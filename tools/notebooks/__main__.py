"""`python -m tools.notebooks check|refresh PATHS`: our notebooks, checked or run in place."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.notebooks.coverage import FLOOR, Coverage, coverage
from tools.notebooks.lint import lint
from tools.notebooks.refresh import refresh
from workbench.errors import NotebookError, WorkbenchError
from workbench.nb.notebook import find


def check(paths: list[Path], floor: float = FLOOR) -> int:
    """Check what is stored, without running it: every rule, and the minimum coverage."""
    findings: list[str] = []
    for path in find(paths):
        try:
            findings += map(str, lint(path))
            measured = coverage(path)
        except NotebookError as error:
            findings.append(str(error))
            continue
        print(f"{path}: {measured.covered} of {measured.counted} cells are compared")
        if measured.share < floor:
            findings += _uncovered(measured, floor)
    if findings:
        print("\n".join([*findings, f"{len(findings)} findings"]), file=sys.stderr)
    return 1 if findings else 0


def _uncovered(measured: Coverage, floor: float) -> list[str]:
    return [
        f"{measured.path} cell {cell.index}: coverage {measured.share:.2f} < {floor:.2f}: "
        f"{cell.reason}"
        for cell in measured.cells
        if cell.counted and not cell.covered
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code is 1 for findings in a notebook, 2 for a wrong request."""
    parser = argparse.ArgumentParser(prog="python -m tools.notebooks")
    parser.add_argument("command", choices=["check", "refresh"])
    parser.add_argument("paths", nargs="+", type=Path, help="notebooks, or folders of them")
    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            return check(options.paths)
        return int(any(one.status != "ok" for one in refresh(options.paths)))
    except (WorkbenchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
