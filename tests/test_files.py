"""Files at a user's path: whole or not there, and a link stays a link, whoever writes."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tools.notebooks.refresh import refresh
from workbench.engines.checkpoints.architecture import dummy_model
from workbench.files import whole_folder, write_whole
from workbench.report import render
from workbench.runs import save_metrics, save_table
from workbench.types import Metric, Report, Usage

# Any: nbformat is typed in part.
nbformat: Any = import_module("nbformat")


def _link(at: Path, to: Path) -> Path:
    at.symlink_to(os.path.relpath(to, at.parent))
    return at


def _saved(folder: Path) -> Path:
    metric = Metric("accuracy", 0.5, 0.4, 0.6, 10)
    return Report((metric,), pd.DataFrame({"x": [1]}), Usage(), {}).save(folder)


def test_a_link_and_the_mode_stay(tmp_path: Path) -> None:
    target = tmp_path / "there" / "file"
    write_whole(target, "old")  # with its folder
    target.chmod(0o640)
    link = _link(tmp_path / "second", _link(tmp_path / "first", target))
    write_whole(link, b"new")
    assert link.is_symlink()
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"new", 0o640)
    assert [*target.parent.iterdir()] == [target]


def test_a_link_that_leads_nowhere_yet_leads_to_the_file(tmp_path: Path) -> None:
    link = _link(tmp_path / "link", tmp_path / "new" / "file")
    write_whole(link, "é")
    assert (link.is_symlink(), (tmp_path / "new" / "file").read_text("utf-8")) == (True, "é")
    plain = tmp_path / "plain"
    plain.touch()
    assert link.stat().st_mode == plain.stat().st_mode


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "folder", "text")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "\ud800")
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "whole") as part:
        (part / "no" / "such").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_is_made_where_its_link_leads(tmp_path: Path) -> None:
    report = _link(tmp_path / "report", tmp_path / "disk" / "one")
    assert _saved(report) == report
    model = _link(tmp_path / "model", tmp_path / "other" / "two")
    assert dummy_model("llama-1b", model) == model
    beside = _saved(_link(tmp_path / "runs", tmp_path / "third") / "inner")
    assert (report.is_symlink(), model.is_symlink()) == (True, True)
    assert (tmp_path / "disk" / "one" / "rows.parquet").is_file()
    assert (tmp_path / "other" / "two" / "config.json").is_file()
    assert (beside / "rows.parquet").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {
        "report", "model", "runs", "disk", "other", "third"}  # fmt: skip


def test_a_page_is_written_through_a_link(tmp_path: Path) -> None:
    page = _link(tmp_path / "page.html", tmp_path / "there.html")
    render(_saved(tmp_path / "report"), page)
    assert page.is_symlink()
    assert "accuracy" in (tmp_path / "there.html").read_text()


def test_a_run_writes_through_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _link(tmp_path / "run", tmp_path / "disk" / "run")
    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(run))
    save_table(pd.DataFrame({"x": [1]}), "one")
    link = _link(tmp_path / "disk" / "run" / "metrics.json", tmp_path / "kept.json")
    save_metrics(a=1)
    assert (run.is_symlink(), link.is_symlink()) == (True, True)
    assert json.loads((tmp_path / "kept.json").read_text()) == {"a": 1}


def test_refresh_of_a_link_writes_the_notebook(points: Path) -> None:
    (points / "real").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    nbformat.write(notebook, points / "real" / "one.ipynb")
    (points / "links").mkdir()
    link = _link(points / "links" / "one.ipynb", points / "real" / "one.ipynb")
    inner = _link(points / "folder", points / "real") / "one.ipynb"  # a link to its folder
    results = [refresh([path], say=lambda _: None)[0] for path in (link, inner)]
    assert [(one.status, one.changed) for one in results] == [("ok", True), ("ok", False)]
    assert link.is_symlink()
    (cell,) = json.loads((points / "real" / "one.ipynb").read_text())["cells"]
    assert cell["outputs"][0]["data"]["text/plain"] == ["2"]
    assert [path.name for path in (points / "real").iterdir()] == ["one.ipynb"]
