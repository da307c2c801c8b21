"""`approx`: figures compared within what a table states, through real nbval and papermill."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from tools.notebooks.coverage import coverage
from tools.notebooks.lint import lint
from tools.notebooks.refresh import refresh
from workbench.errors import NotebookError
from workbench.nb import approx
from workbench.nb.tolerance import MIME, differences, digest, read_table
from workbench.nb.validate import validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Edit = Callable[[list[Any]], None]

# Any: nbformat is typed in part.
nbformat: Any = import_module("nbformat")
_TABLE = (
    "approx(pd.DataFrame({'name': ['a', 'b'], 'share': [0.81, %s], 'tokens': [100, %s]}),"
    " within={'share': 0.05}, relative={'tokens': 0.1})"
)
_SETUP = "import pandas as pd\nfrom workbench.nb import approx"


def _data(source: str) -> dict[str, Any]:
    """What a cell that is this expression shows."""
    made = eval(source, {"approx": approx, "pd": pd})
    return dict(made._repr_mimebundle_())


def _cell(source: str, *stored: str, edit: Edit | None = None) -> Any:
    """A cell with the outputs of other expressions, as if it had been run with them."""
    outputs = [
        nbformat.v4.new_output("display_data", data=copy.deepcopy(_data(one))) for one in stored
    ]
    if edit is not None:
        edit(outputs)
    return nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=1)


def _notebook(path: Path, *cells: Any) -> Path:
    setup = nbformat.v4.new_code_cell(_SETUP, execution_count=1)
    metadata = {"kernelspec": {"name": "workbench", "display_name": "workbench"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[setup, *cells], metadata=metadata), path)
    return path


def _column(output: Any, name: str) -> Any:
    (found,) = (one for one in output.data[MIME]["columns"] if one["name"] == name)
    return found


def _set(name: str, **values: Any) -> Edit:
    def edit(outputs: list[Any]) -> None:
        _column(outputs[0], name).update(values)
        bundle = outputs[0].data[MIME]
        bundle["digest"] = digest(outputs[0].data, bundle["columns"])

    return edit


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with a kernel named `workbench` whatever the environment has."""
    folder = tmp_path_factory.mktemp("repo")
    kernel = folder / "jupyter" / "kernels" / "workbench"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "workbench", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        yield folder


def _hand(outputs: list[Any]) -> None:
    html = outputs[0].data["text/html"]
    outputs[0].data["text/html"] = html.replace("0.81", "0.91")


_NAN = "approx(pd.DataFrame({'x': [1.0, %s]}), within={'x': 0.1})"
_INF = "approx(pd.DataFrame({'x': [1.0, float('inf')]}), within={'x': 0.1})"
_SAME = _TABLE % (0.5, 100)
# What is run, what is stored, and the words that its failure says; none if it passes.
_CASES: dict[str, tuple[str, tuple[str, ...], Edit | None, tuple[str, ...]]] = {
    "the same": (_SAME, (_SAME,), None, ()),
    "near": (_TABLE % (0.55, 109), (_SAME,), None, ()),
    "far": (_TABLE % (0.56, 111), (_SAME,), None, (
        "row '1', column 'share': stored 0.5, new 0.56, tolerance ± 0.05",
        "row '1', column 'tokens': stored 100, new 111, tolerance ± 10 %")),
    "another text": (_SAME.replace("'b'", "'c'"), (_SAME,), None, (
        "row '1', column 'name': stored 'b', new 'c', tolerance none",)),
    "another index": (
        "approx(pd.DataFrame({'x': [1.0]}, index=['u']), within={'x': 0.1})",
        ("approx(pd.DataFrame({'x': [1.0]}, index=['v']), within={'x': 0.1})",), None, (
        "column 'index': stored 'v', new 'u'",)),
    "both missing": (_NAN % "None", (_NAN % "float('nan')",), None, ()),
    "one missing": (_NAN % "1.0", (_NAN % "None",), None, (
        "column 'x': stored None, new 1.0",)),
    "infinite": (_INF, (_INF,), None, ()),
    "no longer infinite": (_NAN % "1e300", (_INF,), None, ("stored 'inf', new 1e+300",)),
    "a row more": (_NAN % "1.0, 1.0", (_NAN % "1.0",), None, ("rows: stored 2, new 3",)),
    "another column": (_NAN.replace("'x'", "'y'") % 1, (_NAN % 1,), None, (
        "columns: stored ['index', 'x'], new ['index', 'y']",)),
    "another tolerance": (_NAN % 1, (_NAN % 1,), _set("x", within=9.0), (
        "column 'x': the stored tolerance is ± 9, the code states ± 0.1",)),
    "changed by hand": (_SAME, (_SAME,), _hand, ("one was changed by hand; refresh",)),
    "changed beside the text": (_SAME, (_SAME,),
        lambda outputs: _column(outputs[0], "share").update(cells=[0.82, 0.5]), (
        "one was changed by hand; refresh",)),
    "malformed": (_SAME, (_SAME,), _set("name", cells=[True, {}]), (
        "the stored output: a broken", "column 'name' has the cell True")),
    "not stored": (_SAME, (_SAME,), lambda outputs: outputs[0].data.pop(MIME), (
        "tables with tolerances: stored 0, new 1",)),
    "no longer there": ("pd.DataFrame()", (_SAME,), None, (
        "tables with tolerances: stored 1, new 0",)),
    "one of two": (_SAME, (_SAME, _SAME), None, ("tables with tolerances: stored 2, new 1",)),
    "two, the second far": (
        f"display({_SAME})\n{_TABLE % (0.9, 100)}", (_SAME, _SAME), None, (
        "row '1', column 'share': stored 0.5, new 0.9",)),
    "far, and other output": (
        f"display({_TABLE % (0.9, 100)})\n'new'", (_SAME,),
        lambda outputs: outputs.append(
            nbformat.v4.new_output("display_data", data={"text/plain": "'old'"})), (
        "stored 0.5, new 0.9", "'old'", "'new'")),
    "near, but other output": (
        f"display({_TABLE % (0.51, 100)})\n'new'", (_SAME,),
        lambda outputs: outputs.append(
            nbformat.v4.new_output("display_data", data={"text/plain": "'old'"})), (
        "'old'", "'new'")),
}  # fmt: skip


def _run(path: Path, *plugin: str, mode: str = "--nbval") -> list[str]:
    """What nbval says of each cell: nothing of one that passes."""
    report = path.with_suffix(".xml")
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, "-c", "no.ini"),
        *("--color=no", mode, "--nbval-kernel-name=workbench", "--nbval-cell-timeout=60"),
        *(f"--junit-xml={report}", str(path)),
    ]
    Path("no.ini").write_text("[pytest]\n")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return [
        "\n".join(failure.text or "" for failure in case.iter("failure"))
        for case in ET.parse(report).iter("testcase")
    ]


@pytest.fixture(scope="module")
def reported(repo: Path) -> dict[str, str]:
    """What is said of each case, all of them cells of one notebook."""
    cells = [_cell(new, *stored, edit=edit) for new, stored, edit, _ in _CASES.values()]
    path = _notebook(repo / "cases.ipynb", *cells)
    setup, *said = _run(path, "-p", "workbench.nb.tolerance")
    assert setup == ""
    return dict(zip(_CASES, said, strict=True))


@pytest.mark.parametrize("case", _CASES)
def test_a_table_is_compared_within_its_tolerances(case: str, reported: dict[str, str]) -> None:
    words = _CASES[case][-1]
    assert bool(reported[case]) == bool(words)
    for part in words:
        assert part in reported[case]
    assert "plugin exception" not in reported[case]


def test_nbval_alone_compares_to_the_letter(repo: Path) -> None:
    cells = [_cell(_CASES[case][0], *_CASES[case][1]) for case in ("the same", "near")]
    path = _notebook(repo / "alone.ipynb", *cells)
    _, same, near = _run(path, "-p", "no:workbench.nb.tolerance")
    assert same == ""
    assert "Cell outputs differ" in near


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pyproject.toml declares to pytest, as an installation of it would."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["pytest11"]
    assert points == {"workbench.nb.tolerance": "workbench.nb.tolerance"}
    info = tmp_path / "site" / "probe-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: probe\nVersion: 1\n")
    lines = [f"{name} = {module}" for name, module in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines]))
    path = os.pathsep.join([str(info.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.mark.usefixtures("installed")
def test_an_installed_plugin_has_plain_nbval_compare_tables(repo: Path) -> None:
    near = _cell("# NBVAL_CHECK_OUTPUT\n" + _CASES["near"][0], _SAME)
    far = _cell("# NBVAL_CHECK_OUTPUT\n" + _CASES["far"][0], _SAME)
    unmarked = _cell(_CASES["far"][0], _SAME)  # which --nbval-lax does not compare
    path = _notebook(repo / "installed.ipynb", near, far, unmarked)
    for more in ((), ("-p", "workbench.nb.tolerance")):
        _, passes, fails, left = _run(path, *more, mode="--nbval-lax")
        assert (passes, left) == ("", "")
        assert "column 'share': stored 0.5, new 0.56" in fails


@pytest.mark.usefixtures("installed")
def test_an_installed_plugin_is_nothing_to_other_tests(tmp_path: Path) -> None:
    code = """\
import sys
def test_it(pytestconfig):
    assert pytestconfig.pluginmanager.get_plugin("workbench.nb.tolerance")
    assert not {"nbval", "nbformat", "pandas", "workbench.nb.validate"} & {*sys.modules}
"""
    (tmp_path / "test_it.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:nbval", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_validate_knows_tolerances(repo: Path) -> None:
    paths = [
        _notebook(repo / f"{name}.ipynb", _cell(new, _SAME))
        for name, new in {"near": _TABLE % (0.52, 95), "far": _TABLE % (0.52, 89)}.items()
    ]
    near, far = validate(paths, jobs=2).notebooks
    assert (near.cells, near.failed) == (2, 0)
    assert (far.cells, far.failed) == (2, 1)


def test_several_at_a_time_need_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.nb.validate.find_spec", lambda _: None)
    with pytest.raises(NotebookError, match="pytest-xdist"):
        validate(["any.ipynb"], jobs=2)


def test_refresh_keeps_what_is_near_and_replaces_what_is_not(repo: Path) -> None:
    value = repo / "value.txt"
    source = f"x = float(open('value.txt').read())\n{_TABLE % ('x', 100)}"
    path = _notebook(repo / "kept.ipynb", _cell(source))

    def refreshed(text: str) -> tuple[bool, Any]:
        value.write_text(text)
        (done,) = refresh([path], say=lambda _: None)
        assert done.status == "ok", done.detail
        (output,) = nbformat.read(path, as_version=4).cells[-1].outputs
        return done.changed, _column(output, "share")["cells"][1]

    assert refreshed("0.5") == (True, 0.5)
    assert refreshed("0.53") == (False, 0.5)  # near: no byte is another
    assert refreshed("0.57") == (True, 0.57)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source += "  # another code, if only in words"
    nbformat.write(notebook, path)
    assert refreshed("0.58") == (True, 0.58)


def test_a_table_shows_as_pandas_shows_it() -> None:
    table = pd.DataFrame({"n": [1, 2], "x": [0.5, math.nan]}, index=["a", "b"])
    shown = approx(table, within={"x": 0.1})
    data = shown._repr_mimebundle_()
    assert repr(shown) == data["text/plain"] == repr(table)
    assert "<td>0.5</td>" in data["text/html"]
    # As the notebook's file has it: JSON, and texts as lists of lines.
    stored = json.loads(json.dumps(data, allow_nan=False))
    stored["text/html"] = stored["text/html"].splitlines(keepends=True)
    index, n, x = read_table(stored)
    assert (index.cells, n.cells, x.cells) == (["a", "b"], [1, 2], [0.5, None])
    assert (n.tolerance, x.tolerance) == ("none", "± 0.1")


def test_levels_flags_and_numpy_figures_are_read() -> None:
    table = pd.DataFrame({"k": ["a", "b"], "x": [1.0, 2.0], "ok": [True, None]}).set_index("k")
    wide = pd.concat({"one": table, "two": table[["x"]].astype("float32")}, axis=1)
    index, x, ok, again = read_table(approx(wide, relative={("two", "x"): 0.1}).data)
    assert (index.name, index.cells) == ("k", ["a", "b"])
    assert [one.name for one in (x, ok, again)] == ["one, x", "one, ok", "two, x"]
    assert (ok.cells, again.cells, again.relative) == (["True", None], [1.0, 2.0], 0.1)


@pytest.mark.parametrize(
    ("tolerances", "message"),
    [
        ({"within": {"y": 1.0}}, "no column 'y'"),
        ({"within": {"name": 1.0}}, "column 'name' has 'a', which is not a number"),
        ({"within": {"x": 0.0}}, "finite and above 0"),
        ({"relative": {"x": math.inf}}, "finite and above 0"),
        ({"within": {"x": 1.0}, "relative": {"x": 1.0}}, "give one"),
    ],
)
def test_a_tolerance_that_says_nothing_is_refused(tolerances: Any, message: str) -> None:
    with pytest.raises(NotebookError, match=message):
        approx(pd.DataFrame({"name": ["a"], "x": [1.0]}), **tolerances)


@pytest.mark.parametrize(
    "bundle",
    [
        None, [], "text", {}, {"columns": []}, {"columns": [[]], "digest": ""},
        {"columns": [{"name": "x"}], "digest": ""},
        {"columns": [{"name": 1, "cells": []}], "digest": ""},
        {"columns": [{"name": "x", "cells": [math.nan]}], "digest": ""},
        {"columns": [{"name": "x", "cells": [10**400]}], "digest": ""},
        {"columns": [{"name": "x", "cells": [1], "within": "1"}], "digest": ""},
        {"columns": [{"name": "x", "cells": [1], "within": -1}], "digest": ""},
        {"columns": [{"name": "x", "cells": [1], "more": 1}], "digest": ""},
        {"columns": [{"name": "x", "cells": [1]}, {"name": "y", "cells": []}], "digest": ""},
    ],
)  # fmt: skip
def test_a_broken_bundle_is_told_and_never_raised(bundle: Any) -> None:
    broken, good = {MIME: bundle, "text/plain": ""}, _data(_SAME)
    for stored, fresh, whose in ((broken, good, "stored"), (good, broken, "new")):
        (line,) = differences(stored, fresh)
        assert line.startswith(f"the {whose} output: a broken {MIME}")


def _judged(folder: Path, source: str, edit: Edit | None = None) -> tuple[bool, list[str]]:
    path = _notebook(folder / "judged.ipynb", _cell(source, source, edit=edit))
    return coverage(path).cells[-1].covered, [f.message for f in lint(path) if f.rule == "approx"]


def test_a_table_counts_if_one_of_its_figures_could_fail(tmp_path: Path) -> None:
    table = "approx(pd.DataFrame({'a': ['x', 'y'], 'b': [0.5, 0.7], 'c': [3, 4]}), %s)"
    for good in ("within={'b': 0.1}", "relative={'c': 0.99}", "within={'b': 0.89}", ""):
        assert _judged(tmp_path, table % good) == (True, [])
    for wide in ("within={'b': 0.9}", "relative={'b': 1}", "within={'b': 9}, relative={'c': 2}"):
        covered, found = _judged(tmp_path, table % wide)
        assert not covered
        assert "no figure of it can leave" in found[0]
    covered, found = _judged(tmp_path, table % "within={'b': 0.1, 'c': 5}")
    assert covered  # by b; c is found all the same
    assert found == ["column 'c': no figure of it can leave ± 5; narrow it"]


def test_a_broken_table_does_not_count(tmp_path: Path) -> None:
    for edit in (_hand, _set("share", within="much")):
        covered, (message,) = _judged(tmp_path, _SAME, edit)
        assert not covered
        assert "refresh the notebook" in message
