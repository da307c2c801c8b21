"""The architecture as a test: a module imports only from its own floor or from below."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import workbench

ROOT = Path(workbench.__file__).parent
FLOORS = {
    "types": 0,
    "values": 0,
    "browser": 0,
    "browsing": 0,
    "frontend": 0,
    "errors": 0,
    "clusters": 0,
    "export": 0,  # how reports leave the package
    "displays": 1,
    "feed": 1,
    "files": 0,
    "lazy": 0,
    "messages": 0,
    "reprs": 0,
    "scores": 0,
    "template": 0,
    "store": 1,
    "merging": 1,
    "stats": 0,
    "machine": 1,
    "progress": 1,
    "runs": 1,
    "engines": 2,
    "serving": 2,
    "tiny": 2,
    "agents": 3,
    "answers": 3,
    "judge": 3,
    "tasks": 3,
    "cases": 4,
    "comparison": 4,
    "evaluation": 4,
    "prompts": 5,
    "differences": 4,
    "repeating": 5,
    "reproduction": 5,
    "samples": 4,
    "verdicts": 4,
    "icm": 4,
    "lm_eval": 4,
    "load": 4,
    "batching": 4,
    "uncertainty": 4,
    "throughput": 4,
    "tradeoff": 4,
    "batch": 4,
    "nb": 5,
    "panel": 5,
    "plots": 5,
    "plots.theme": 0,  # how figures look, whatever they show: also of those that a user saves
    "report": 5,
    "sweep": 5,
    "cli": 6,
    "__main__": 6,
}


def room(module: str) -> str:
    name = module.removeprefix("workbench.")
    return name if name in FLOORS else name.split(".")[0]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    mine = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if mine == "__init__":
        return
    tree = ast.parse(path.read_text())
    imported = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    for module in imported:
        if module.startswith("workbench."):
            assert FLOORS[room(module)] <= FLOORS[mine], f"{mine} must not import {module}"


@pytest.mark.parametrize("beside", ["benchmarks", "tools"])
def test_the_package_needs_nothing_beside_it(beside: str) -> None:
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert beside not in {name.split(".")[0] for name in names}, path


def test_the_stations_of_the_design_are_files() -> None:
    """Modules and rooms that the page on the design names, from the package's folder."""
    text = (ROOT.parent / "docs" / "design.md").read_text(encoding="utf-8")
    path = text.partition("## The path of a prompt")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", path)
    assert len(named) >= 12
    assert [name for name in named if not (ROOT / name).exists()] == []
    rooms = re.findall(r"`(\w+)(?:/|\.py)`", text.partition("## The path")[0])
    assert {name for name in FLOORS if "." not in name} - {"__main__"} <= {*rooms}
