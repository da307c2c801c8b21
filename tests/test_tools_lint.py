"""Lint: a clean notebook has no finding, and every rule has a notebook that breaks it alone."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from tools.notebooks.__main__ import main
from tools.notebooks.lint import absolute_paths, lint
from workbench.cli.notebook import app
from workbench.errors import NotebookError
from workbench.nb.tolerance import MIME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Any: nbformat is typed in part.
nbformat: Any = import_module("nbformat")
_CODE = nbformat.v4.new_code_cell
_OUT = nbformat.v4.new_output


def _clean() -> Any:
    parameters = _CODE("# The knobs.\nn: int = 3  # items\nname: str = 'a'  # of the model")
    parameters.metadata["tags"] = ["parameters"]
    work = _CODE("print(n)", outputs=[_OUT("stream", name="stdout", text="3\n")])
    cells = [nbformat.v4.new_markdown_cell("# Title\n\nText."), parameters, work, _CODE("")]
    for count, cell in enumerate(cells[1:3], start=1):
        cell.execution_count = count
    kernel = {"name": "workbench", "display_name": "workbench"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _rules(path: Path, change: Callable[[Any], None]) -> list[tuple[str, int | None]]:
    notebook = _clean()
    change(notebook)
    path.write_text(json.dumps(notebook))
    return [(finding.rule, finding.cell) for finding in lint(path)]


def _output(cell: int, kind: str, **content: Any) -> Callable[[Any], None]:
    return lambda nb: nb.cells[cell].outputs.append(_OUT(kind, **content))


def _source(cell: int, text: str) -> Callable[[Any], None]:
    return lambda nb: nb.cells[cell].update(source=text)


def test_a_clean_notebook_has_no_finding(tmp_path: Path) -> None:
    assert _rules(tmp_path / "clean.ipynb", lambda nb: None) == []


@pytest.mark.parametrize("tag", ["raises-exception", "nbval-raises-exception"])
def test_an_error_that_is_meant_is_no_finding(tag: str, tmp_path: Path) -> None:
    def change(nb: Any) -> None:
        _output(2, "error", ename="E", evalue="", traceback=[])(nb)
        nb.cells[2].metadata.update(tags=[tag])

    assert _rules(tmp_path / "raises.ipynb", change) == []


def test_a_cell_that_jupyter_does_not_run_has_no_count(tmp_path: Path) -> None:
    def change(nb: Any) -> None:
        nb.cells.insert(2, _CODE("n = 9"))
        nb.cells[2].metadata.update(tags=["skip-execution"])

    assert _rules(tmp_path / "skips.ipynb", change) == []


_WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "Box()"}
_BROKEN: dict[str, tuple[str, int | None, Callable[[Any], None]]] = {
    "format": ("format", None, lambda nb: (
        nb.update(nbformat_minor=4), [cell.pop("id") for cell in nb.cells])[0]),
    "title missing": ("title", 0, lambda nb: nb.cells.pop(0)),
    "title deep": ("title", 0, _source(0, "## Title")),
    "no parameters": ("parameters", None, lambda nb: nb.cells[1].metadata.pop("tags")),
    "two parameters": ("parameters", 2, lambda nb: nb.cells[2].metadata.update(
        tags=["parameters"])),
    "untyped": ("parameters", 1, _source(1, "n = 3  # items")),
    "uncommented": ("parameters", 1, _source(1, "n: int = 3")),
    "no value": ("parameters", 1, _source(1, "n: int  # items")),
    "wrong default": ("parameters", 1, _source(1, "n: int = 'a'  # items")),
    "other code": ("parameters", 1, _source(1, "import os")),
    "not Python": ("parameters", 1, _source(1, "n: int = = 3")),
    "never run": ("counts", 2, lambda nb: nb.cells[2].update(execution_count=None)),
    "out of order": ("counts", 2, lambda nb: nb.cells[2].update(execution_count=7)),
    "path in source": ("absolute-path", 2, _source(2, "open('/home/me/x.csv')")),
    "path in text": ("absolute-path", 0, _source(0, "# Title\n\nSee /tmp/x.")),
    "path in output": ("absolute-path", 2, _output(2, "stream", text=["at ", "/Users/me/x\n"])),
    "path in metadata": ("absolute-path", None, lambda nb: nb.metadata.update(
        papermill={"input_path": "/mnt/x.ipynb"})),
    "path in cell metadata": ("absolute-path", 2, lambda nb: nb.cells[2].metadata.update(
        papermill={"file": "/opt/x"})),
    "widget state": ("widgets", None, lambda nb: nb.metadata.update(widgets={})),
    "widget view": ("widgets", 2, _output(2, "display_data", data=_WIDGET)),
    "error": ("error-output", 2, _output(2, "error", ename="E", evalue="", traceback=[])),
    "stderr": ("stderr", 2, _output(2, "stream", name="stderr", text="warn\n")),
    "kernelspec": ("kernelspec", None, lambda nb: nb.metadata.kernelspec.update(name="python3")),
    "no kernelspec": ("kernelspec", None, lambda nb: nb.metadata.pop("kernelspec")),
    "size": ("size", None, lambda nb: nb.cells.extend(_CODE("") for _ in range(13))),
    "approx": ("approx", 2, _output(2, "display_data", data={MIME: {}, "text/plain": "x"})),
    "tags": ("tags", 2, lambda nb: nb.cells[2].metadata.update(tags=["nbval-ignore-outptu"])),
}  # fmt: skip


@pytest.mark.parametrize("case", _BROKEN)
def test_each_rule_finds_its_fault_and_nothing_else(case: str, tmp_path: Path) -> None:
    rule, cell, change = _BROKEN[case]
    if case == "title missing":
        cell = 0
    assert _rules(tmp_path / "broken.ipynb", change) == [(rule, cell)]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nbformat": 3}', '{"nbformat": 4}'])
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.ipynb"
    path.write_text(text)
    with pytest.raises(NotebookError, match=r"broken\.ipynb"):
        lint(path)


def test_an_invalid_cell_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.ipynb"
    with pytest.raises(NotebookError, match=r"broken\.ipynb is not a valid notebook"):
        _rules(path, lambda nb: nb.cells[2].update(outputs=[{"output_type": "shout"}]))


@pytest.mark.parametrize(
    "text",
    [
        "https://host/home/x", "http://localhost:8000/v1/completions", "a/home/b", "and/or",
        "POST /v1/completions", "1/2", "</data>", "{root}/tmp/x", "../tmp/x", "~/data/x", "/",
        "figures/a.png", "runs/tmp", "/database",
    ],
)  # fmt: skip
def test_what_is_no_absolute_path(text: str) -> None:
    assert absolute_paths(text) == []


def test_what_is_an_absolute_path(tmp_path: Path) -> None:
    texts = {"x=/home/a/b.c,": "/home/a/b.c", "'/tmp'": "/tmp", "C:\\Users\\a": "C:\\Users\\a",
             "\x1b[32m/usr/lib\x1b[0m": "/usr/lib", "file:///x/y": "file:///x/y",
             f"at {tmp_path}": str(tmp_path)}  # fmt: skip
    for text, path in texts.items():
        assert absolute_paths(text) == [path]


def test_check_says_all_findings_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.ipynb").write_text("{")
    _rules(tmp_path / "clean.ipynb", lambda nb: None)
    _rules(tmp_path / "stale.ipynb", _BROKEN["never run"][2])
    assert main(["check", str(tmp_path / "clean.ipynb")]) == 0
    assert "clean.ipynb: 1 of 1 cells are compared" in capsys.readouterr().out
    assert main(["check", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    for part in ("broken.ipynb:1: ", "stale.ipynb cell 2: counts", "coverage 0.00"):
        assert part in said
    assert main(["check", str(tmp_path / "none.ipynb")]) == 2
    assert "is not a notebook" in capsys.readouterr().err


def test_anybody_s_notebook_is_checked_for_what_its_parameters_do(tmp_path: Path) -> None:
    paths = {name: str(tmp_path / f"{name}.ipynb") for name in ("plain", "computed", "other")}
    _rules(tmp_path / "plain.ipynb", _source(1, "n = 3"))
    _rules(tmp_path / "computed.ipynb", _source(1, "n = 3\nm = 2 * n"))
    other = json.loads((tmp_path / "plain.ipynb").read_text())
    other["metadata"]["language_info"] = {"name": "R"}
    (tmp_path / "other.ipynb").write_text(json.dumps(other))
    runner = CliRunner()
    assert runner.invoke(app, ["check", paths["plain"]]).exit_code == 0
    result = runner.invoke(app, ["check", *paths.values()])
    assert result.exit_code == 1
    for part in ("computed.ipynb cell 1: 'm' is computed from 'n'", "is a notebook of R",
                 "2 findings"):  # fmt: skip
        assert part in result.output
    missing = runner.invoke(app, ["check", str(tmp_path / "none.ipynb")])
    assert missing.exit_code == 2
    assert "is not a notebook" in missing.output
