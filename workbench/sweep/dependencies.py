"""The files next to a notebook that affect its results: modules, and data that the code names.

A file counts if the code gives its full name: in an import, a text, or a word of a line that is not
Python. Folders, files elsewhere and files that the code writes do not count; they are reported.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from workbench.errors import InputError
from workbench.nb.notebook import Notebook, statements
from workbench.store import digest

Names = tuple[frozenset[str], frozenset[str]]  # files that count; names that do not
Seen = tuple[tuple[int, int], str]  # a file's size and time, and its digest
# How the names of functions that write a file begin.
WRITES = ("dump", "save", "to_", "write", "FileHandler", "basicConfig", "connect")
MODE = re.compile(r"[rbt]*[wax+][bt+]*")


class NotebookFiles:
    """The files that a notebook reads from its own folder, each digested once.

    Args:
        apart: a text that is not a file name here: the model's.
    """

    def __init__(self, notebook: Notebook, apart: object) -> None:
        self._root = notebook.path.parent
        self._seen: dict[str, Seen] = {}
        self._texts: dict[str, Names] = {}
        sources = [(Path(), cell.source) for cell in notebook.code]
        self._variables = _assigned(source for _, source in sources)
        self._code = self._reached(sources, {apart} if isinstance(apart, str) else set())

    def named_by(self, values: Mapping[str, object]) -> tuple[str | None, tuple[str, ...]]:
        """A digest of the files that these values name (None if none); names that do not count.

        Raises:
            InputError: a file cannot be read.
        """
        files, others = map(set, self._code)
        for text in _within([value for name, value in values.items() if name != "model"]):
            if text not in self._texts and os.path.lexists(self._root / text):
                self._texts[text] = self._reached([(Path(), repr(text))], set())
            named = self._texts.get(text, ((), ()))
            files |= {*named[0]}
            others |= {*named[1]}
        found = [(name, self._digest(name)) for name in sorted(files - others)]
        return digest(found).hex()[:12] if found else None, tuple(sorted(others))

    def check(self) -> None:
        """Check that no file has changed since the points were planned.

        Raises:
            InputError: a file has changed; the message names it.
        """
        for name, (stamp, known) in [*self._seen.items()]:
            if self._stamp(name) == stamp:
                continue
            now = self._look(name)
            if now[1] != known:
                raise InputError(
                    f"{self._root / name} has changed during the sweep: run the sweep again. Write "
                    "files from a notebook into `runs.run_dir()`"
                )
            self._seen[name] = now  # written again, with the same content

    def _digest(self, name: str) -> str:
        if name not in self._seen:
            self._seen[name] = self._look(name)
        return self._seen[name][1]

    def _look(self, name: str) -> Seen:
        stamp = self._stamp(name)
        try:
            with (self._root / name).open("rb") as file:
                return stamp, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{self._root / name} cannot be read: {error.strerror}") from error

    def _stamp(self, name: str) -> tuple[int, int]:
        try:
            found = (self._root / name).stat()
        except OSError:
            return -1, -1
        return found.st_size, found.st_mtime_ns

    def _reached(self, sources: Sequence[tuple[Path, str]], apart: set[str]) -> Names:
        """The names in the code (given with its folder), and in the modules that it imports."""
        files, others, waiting = set[str](), set[str](), [*sources]
        while waiting:
            folder, source = waiting.pop()
            for name, written in self._named(folder, source, apart):
                path, shown = self._root / name, name.as_posix()
                if written or name.is_absolute() or not _readable(path):
                    others.add(f"{shown}/" if path.is_dir() else shown)
                elif shown not in files:
                    files.add(shown)
                    if path.suffix == ".py":
                        waiting.append((name.parent, path.read_text("utf-8", "replace")))
        return frozenset(files), frozenset(others)

    def _named(self, folder: Path, source: str, apart: set[str]) -> Iterator[tuple[Path, bool]]:
        """The existing paths that a piece of code names, and whether it writes them."""
        modules, texts, written = _parsed(source, self._variables)
        for base in {Path(), folder}:
            for module in modules:
                package = self._root / base / module
                if any(package.glob("*.py")):
                    yield from (
                        (one.relative_to(self._root), False) for one in package.rglob("*.py")
                    )
            for text in {*texts, *(f"{name}.py" for name in {*modules, *texts})} - apart:
                if os.path.lexists(self._root / base / text):
                    yield base / text, text in written


def _readable(path: Path) -> bool:
    return os.access(path, os.R_OK) and path.is_file()


def _assigned(sources: Iterable[str]) -> dict[str, list[str]]:
    """The texts that are assigned to each variable."""
    found: dict[str, list[str]] = {}
    for node in (node for source in sources for node in statements(source) or ()):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [one.id for one in targets if isinstance(one, ast.Name)]
            found |= dict.fromkeys(names, _constants(ast.walk(node.value)))
    return found


def _parsed(source: str, named: Mapping[str, list[str]]) -> tuple[set[str], set[str], set[str]]:
    """The modules that code imports, the texts in it that may name a file, those that it writes."""
    body = statements(re.sub(r"^%%.*", "", source))
    rest = source if body is None else "\n".join(re.findall(r"(?m)^[%!].*", source))
    modules, texts, written = set[str](), {*re.findall(r"[\w./-]+", rest)}, set[str]()
    for node in (node for one in body or () for node in ast.walk(one)):
        match node:
            case ast.Import():
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            case ast.ImportFrom(module=str(name), level=0):
                modules.add(name.partition(".")[0])
            case ast.Constant(value=str(text)):
                texts.add(text)
            case ast.Call() if _writes(node):
                inside = [*ast.walk(node)]
                variables = [one.id for one in inside if isinstance(one, ast.Name)]
                written |= {*_constants(inside)}.union(*(named.get(v, ()) for v in variables))
    return modules, {text for text in texts if re.search(r"\w", text)}, written


def _writes(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    given = _constants([*call.args, *(one.value for one in call.keywords)])
    return name.startswith(WRITES) or (name == "open" and any(map(MODE.fullmatch, given)))


def _constants(nodes: Iterable[ast.AST]) -> list[str]:
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return [value for value in constants if isinstance(value, str)]


def _within(value: object) -> Iterator[str]:
    """The texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _within(one)
