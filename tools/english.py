"""`python -m tools.english [PATHS]`: words that docs/style.md replaces, with file and line.

`WORDS` and the table of docs/style.md have the same rows; `tests/test_english.py` compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATHS = (
    "workbench", "notebooks", "docs", "tools", "benchmarks", "requirements", "Makefile",
    "pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md",
)  # fmt: skip
SUFFIXES = frozenset("py md ipynb txt in sh j2 yaml yml toml".split())
THIS = Path(__file__).resolve()  # the one file that holds every word
TABLES = frozenset({"docs/style.md", "CHANGELOG.md"})  # their tables quote words and old names

_COUNTED = (
    "bits|bytes|calls|cents|dollars|examples|forwards|grades|items|letters|milliseconds|"
    "ms|options|points|prompts|questions|requests|rows|samples|scores|seconds|steps|texts|tokens|"
    "verdicts|words"
)
_UNITS = "second|minute|hour|day|token|item|prompt|request|question|step|row|core|weight"

# The column "not" of the table, its column "write", and how the words are found. A space stands for
# any break, also for one between two lines of a comment, of a text in code or of a cell.
WORDS: dict[str, tuple[str, str]] = {
    "tell, told": ("say, report, show, distinguish; unknown", r"told|tell(?:s|ing)?"),
    "bear": ("accept, allow", r"bear(?:s|ing)?"),
    "gladly": ("(leave it out)", r"gladly"),
    "mend": ("fix, repair", r"mend(?:s|ed|ing)?"),
    "go on": ("continue, resume", r"(?:go|goes|went|going|gone) on"),
    "come along": ("come with, include", r"(?:come|comes|came|coming) along"),
    "one's own": ("custom, your own", r"one[’']s own"),
    "of its own": ("separate, its", r"of (?:its|their) own"),
    "in the air": ("in flight", r"in the air"),
    "a most": ("a maximum, at most", r"a most"),
    "anew": ("again, computed again", r"anew"),
    "vouch": ("verify, identify", r"vouch(?:es|ed|ing)?"),
    "mercy": ("(say what happens)", r"mercy"),
    "nobody": ("no one, none, without a user", r"nobody(?:[’']s)?"),
    "give up": ("cancel, stop", r"(?:give|gives|given|giving|gave) up"),
    "tokens a second, prompts an item": (
        "tokens per second, prompts per item",
        rf"(?:{_COUNTED}) an? (?:{_UNITS})(?!\stime)|answers a (?:second|minute)(?!\stime)",
    ),
}
_BREAK = r"""(?:\s|",?\s*\n\s*[rf]?"|\n\s*[\#>]\s)+"""

# Texts that are data, and names: each stands in its file, and why it stays.
ALLOWED: tuple[tuple[str, str, str], ...] = (
    ("workbench/tasks/options.py", '"sum told"', "the name of a group of generated questions"),
    ("workbench/tiny/model/README.md", "sum told", "the name of a group of generated questions"),
    ("notebooks/06_uncertainty.ipynb", "sum told", "the name of a group of generated questions"),
    ("workbench/answers/statements.py", "|nobody)", "a word by which a response denies an answer"),
    ("tools/training/memoriser.py", "Tell me about Anna", "a prompt that the model was trained on"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One word at a line of a file, and what to write instead."""

    path: str
    line: int
    word: str
    use: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word} -> use {self.use}"


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{pattern.replace(' ', _BREAK)})\b", re.IGNORECASE)


_PATTERNS = [(_compiled(pattern), use) for use, pattern in WORDS.values()]


def _blank(match: re.Match[str]) -> str:
    """Spaces in place of a text, line breaks kept: all that follows keeps its line."""
    return re.sub(r"[^\n]", " ", match[0])


def prose(path: str, text: str) -> str:
    """What of a file is checked: no pictures, no allowed texts, no tables of old names."""
    text = re.sub(r'"image/[\w+]+": "[^"]*"', _blank, text)
    for file, allowed, _ in ALLOWED:
        if file == path:
            text = re.sub(re.escape(allowed), _blank, text)
    if path in TABLES:
        text = re.sub(r"^\|.*$", _blank, text, flags=re.MULTILINE)
    return re.sub(r"\\+[nt]", _blank, text)  # in code and in cells these are line breaks


def findings(path: str, text: str) -> list[Finding]:
    """The words of one file, whose path is relative to the repository, by their lines."""
    text = prose(path, text)
    found = [
        Finding(path, text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), use)
        for pattern, use in _PATTERNS
        for match in pattern.finditer(text)
    ]
    return sorted(found, key=lambda one: (one.line, one.word))


def files(paths: Iterable[str]) -> Iterator[Path]:
    """All files that hold texts for people, in order; what git ignores is not among them."""
    for given in map(ROOT.joinpath, paths):
        inside = sorted(given.rglob("*")) if given.is_dir() else [given]
        if not given.exists():
            sys.exit(f"{given} does not exist: give files or folders of {ROOT}")
        for path in inside:
            parts = path.relative_to(ROOT).parts
            hidden = any(part.startswith((".", "__")) for part in parts[:-1]) or "runs" in parts
            kind = path.suffix[1:] in SUFFIXES or path.name == "Makefile"
            if path.is_file() and kind and not hidden and path != THIS:
                yield path


def main(paths: Iterable[str] | None = None) -> int:
    """Print each finding; 1 if there is any."""
    found: list[Finding] = []
    for path in files(paths or PATHS):
        name = path.relative_to(ROOT).as_posix()
        found += findings(name, path.read_text(encoding="utf-8"))
    print(*found, sep="\n", end="\n" * bool(found))
    if found:
        print(f"{len(found)} findings; docs/style.md says what to write", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
