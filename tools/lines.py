"""Lines and files of the package by folder, and their budget.

Blank lines and docstrings count, as with `wc -l`.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "workbench"
LINES, FILES, LONGEST = 44_800, 210, 400
"""What is kept today; the aim is 22,000 lines in 130 files."""


def main() -> int:
    """Print the table; 1 if the package is over its budget."""
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    long = []
    for path in PACKAGE.rglob("*.py"):
        folder = path.relative_to(PACKAGE).parent.as_posix()
        size = len(path.read_text(encoding="utf-8").splitlines())
        lines[folder] += size
        files[folder] += 1
        if size > LONGEST:
            long.append(f"{path.relative_to(PACKAGE)} has {size} lines, over {LONGEST}")
    print(f"{'folder':<20} {'lines':>7} {'files':>6}")
    for folder, size in [*sorted(lines.items()), ("total", lines.total())]:
        print(f"{folder:<20} {size:>7,} {files.get(folder, files.total()):>6}")
    wrong = [*long]
    if lines.total() > LINES:
        wrong.append(f"{lines.total():,} lines are over the budget of {LINES:,}: remove some")
    if files.total() > FILES:
        wrong.append(f"{files.total()} files are over the budget of {FILES}: merge what is small")
    print(*wrong, sep="\n", file=sys.stderr, end="\n" * bool(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
