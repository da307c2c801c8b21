"""The README and the documentation: every block runs, every link leads somewhere.

Blocks of a page run in their order, as a reader runs them: Python in one namespace, commands in
one folder. What this machine lacks stands in `HERE`: a large model is the embedded one, a server on
port 8000 is the tests' own. Counts are made small. Commands are parsed in each run, and executed
where slow tests are, but for those that need other hardware, a network or time (`ELSEWHERE`).
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import workbench
from benchmarks import tables
from benchmarks.harness import RESULTS
from workbench.cli import app
from workbench.engines.vllm import VLLMEngine
from workbench.serving import Server
from workbench.tasks import WordProblems
from workbench.tiny import MODEL

ROOT = Path(__file__).resolve().parent.parent
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LANGUAGES = {"", "python", "sh", "yaml"}
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
COUNT = re.compile(r"\b((?:count|max_tokens)=)(\d+)")
TABLE = re.compile(r"^\| (.+?) \| (\d+) \| (\d+) \|$", re.MULTILINE)
FEW = 24  # tokens, or items of which half are enough to calibrate on
HERE = {"Qwen/Qwen3-8B": str(MODEL)}
ELSEWHERE = re.compile(
    r"^(\w+=\S+ )*(make|pip|conda|export|ssh) |^python -m pytest "
    r"|^workbench (serve|slurm|convert|sweep|notebook validate) "
    r"|^workbench lm-eval .*--tasks arc_easy"  # its data is on the hub
    r"|^workbench throughput$|benchmarks|llama-|/Llama|--task mmlu"
    r"|^workbench report runs/accuracy$"  # of a sweep
    r"|--engine ray"  # `test_ray` has a cluster
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for of, text in found if of == language]


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def commands(page: Path) -> Iterator[str]:
    """The commands of a page, without comments; one may continue on the next line."""
    for text in blocks(page, "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield shlex.join(words)


def adapted(text: str, server: Server) -> str:
    for there, here in {**HERE, "http://127.0.0.1:8000/v1": server.url}.items():
        text = text.replace(there, here)
    return text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader works: a clone's notebooks, and some files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(tmp_path / "runs"))
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    items = WordProblems().items(12)
    rows = [{"problem": one.fields["question"], "gold": one.answer} for one in items]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prices.yaml").write_text("workbench-tiny: {in: 0.15, out: 0.60}\n")
    asked = [{"prompt": f"{number}+1="} for number in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "claims.csv").write_text("statement\n12+30=42\n12+30=41\n5*5=25\n5*5=24\n")
    return tmp_path


def test_every_block_says_what_it_is() -> None:
    """A block without a language is output or a drawing: nothing that could be run hides there."""
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            assert language in LANGUAGES, f"{name(page)}: {language}"
            first = text.split(maxsplit=1)[0]
            runs = {"workbench", "make", "pip", "python", "import", "from"}
            assert language or first not in runs, f"{name(page)}: {text}"


def anchors(page: Path) -> set[str]:
    """A page's headings as the addresses that GitHub and MkDocs give them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if path.startswith("https://"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{name(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name(page)}: {link}"


def test_the_index_names_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = [page.name for page in DOCS.glob("*.md") if page.name != "index.md"]
    assert [page for page in pages if f"({page}" not in index] == []


def test_the_citation_is_valid_and_of_this_version() -> None:
    """The fields of the Citation File Format 1.2.0 that are required, and known ones only."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    required = {"cff-version", "message", "title", "authors"}
    assert required <= set(cited) <= required | {"abstract", "license", "type", "version"}
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert all(set(author) == {"name"} and author["name"] for author in cited["authors"])
    assert (cited["title"], cited["version"]) == ("workbench", workbench.__version__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["license"] == project["license"]
    assert all(isinstance(value, str | list) for value in cited.values())


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", tables.PAGES, ids=name)
def test_numbers_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run: python -m benchmarks tables"


def test_every_result_is_on_the_page_and_what_fails_is_explained() -> None:
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    named = [found[2] for found in tables.BLOCK.finditer(text)]
    assert sorted(named) == sorted(path.stem for path in RESULTS.glob("*.json"))
    for found in tables.BLOCK.finditer(text):
        if "| FAILS |" in found[0]:
            after = text[found.end() :].partition("\n## ")[0]
            assert "**Why" in after, found[2]
    assert len(tables.CHOSEN) >= 10


def said(node: ast.AST) -> str:
    """A text of the code, with a mark where a value is."""
    if isinstance(node, ast.JoinedStr):
        return "".join(said(one) for one in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "\0"


def test_messages_of_the_troubleshooting_are_those_of_the_code() -> None:
    files = (ROOT / "workbench").rglob("*.py")
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    code = "\n".join(said(one) for one in nodes if isinstance(one, ast.Constant | ast.JoinedStr))
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \| ", page.partition("## Without")[0], re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 50
    parts = [part.strip(" .:;,=") for message in messages for part in message.split("…")]
    assert [part for part in parts if part not in code] == []


def test_numbers_of_the_embedded_model_are_those_of_the_benchmarks() -> None:
    page = (DOCS / "embedded.md").read_text(encoding="utf-8")
    numbers = re.findall(r"^\|.+\| (.+ items\)) \|$", page, re.MULTILINE)
    measured = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert len(numbers) == 5
    assert [number for number in numbers if f"| {number} |" not in measured] == []


def test_lines_of_the_daily_tasks() -> None:
    """The table of `daily.md` counts the lines of its blocks, the short ones and the long ones."""
    page = DOCS / "daily.md"
    counts = [
        sum(1 for line in text.splitlines() if line.strip() and not line.startswith("#"))
        for text in blocks(page, "python")
    ]
    rows = TABLE.findall(page.read_text(encoding="utf-8"))
    now, before = [int(row[1]) for row in rows], [int(row[2]) for row in rows]
    assert now == counts[1:6]  # the first one makes the frame and the engine
    assert before == counts[8:13]  # the one before imports
    assert now == [1, 1, 2, 1, 2]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", with_blocks("python"), ids=name)
def test_the_python_blocks_run(
    page: Path, folder: Path, server: Server, plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_BASE_URL", server.url)
    names: dict[str, Any] = {"__name__": "page"}
    for number, text in enumerate(blocks(page, "python"), 1):
        small = COUNT.sub(lambda m: f"{m[1]}{min(FEW, int(m[2]))}", adapted(text, server))
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(small, f"{name(page)}, Python block {number}", "exec", flags=flags)
        if code.co_flags & 0x80:  # it awaits something
            asyncio.run(eval(code, names))
        else:
            exec(code, names)


@pytest.mark.parametrize("page", with_blocks("sh"), ids=name)
def test_the_commands_are_known(page: Path) -> None:
    """Each `workbench` command and benchmark has these options; `make` has the target."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands(page):
        words = shlex.split(line)
        while "=" in words[0]:  # a variable for one command
            words = words[1:]
        if words[0] == "workbench":
            parse(app, words[1:])
        elif words[0] == "make":
            assert {one for one in words[1:] if "=" not in one} <= targets, line
        elif words[:3] == ["python", "-m", "benchmarks"]:
            parse(importlib.import_module("benchmarks.__main__").app, words[3:])
        else:
            assert words[0] in {"pip", "conda", "export", "ssh"} or words[1] == "-m", line


def parse(commands: typer.Typer, words: list[str]) -> None:
    """Read a command's arguments as click does, without running it."""
    command: Any = typer.main.get_command(commands)
    context = command.make_context("workbench", words)
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        found, command, rest = command.resolve_command(context, rest)
        context = command.make_context(found, rest, parent=context)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", with_blocks("sh"), ids=name)
def test_the_commands_run(page: Path, folder: Path, server: Server) -> None:
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in commands(page):
        if not ELSEWHERE.search(line):
            done = subprocess.run(
                ["bash", "-c", adapted(line, server)],
                env=variables, capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
