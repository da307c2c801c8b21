"""Parameters of other people's notebooks: with types and without, from a terminal and Python."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import NotebookError
from workbench.nb.notebook import Notebook, load, statements
from workbench.nb.parameters import Text, faults, resolve

nbformat: Any = import_module("nbformat")
v4: Any = nbformat.v4
UNTYPED = "alpha = 0.5  # a share\nn = 3\nnames = ['a']\nmodel = None\nflag = False\ntext = 'x'\n"


def notebook_of(folder: Path, *cells: str) -> Notebook:
    """A notebook whose cells are all tagged `parameters`."""
    made = [v4.new_code_cell(cell, metadata={"tags": ["parameters"]}) for cell in cells]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=made), folder / "one.ipynb")
    return load(folder / "one.ipynb")


def test_a_type_comes_from_the_default_where_none_is_stated(tmp_path: Path) -> None:
    notebook = notebook_of(tmp_path, UNTYPED + "a, b = 1, 'x'\nmade = str(n)\n")
    texts = {"alpha": "1", "n": "7", "names": '["b", null]', "model": "7", "flag": "true",
             "text": "7", "a": "2", "b": "3", "made": "x"}  # fmt: skip
    assert resolve(notebook, {n: Text(t) for n, t in texts.items()}) == {
        "alpha": 1.0, "n": 7, "names": ["b", None], "model": 7, "flag": True,
        "text": "7", "a": 2, "b": "3", "made": "x",
    }  # fmt: skip
    for name, text in (("n", "many"), ("n", "1.5"), ("flag", "7"), ("names", "b")):
        with pytest.raises(NotebookError, match=f"{name} cannot be set"):
            resolve(notebook, {name: Text(text), "made": "x"})


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int | str", "7", 7), ("str | int", "7", 7), ("int | str", "'7'", "7"),
        ("int | str", "seven", "seven"), ("object", "7", 7), ("object", "seven", "seven"),
        ("object", '"7"', "7"), ("typing.Any", '"7"', "7"), ("'object'", "'a'", "a"),
        ("object", '{"a": [true, null]}', {"a": [True, None]}),
        ("str | None", "None", None), ("str | None", '"quoted"', '"quoted"'), ("str", "7", "7"),
        ("float | None", "1", 1.0), ("int | float", "1", 1), ("tuple[int, ...]", "[1, 2]", (1, 2)),
        ("list[tuple[int, float]]", "[[1, 2]]", [(1, 2.0)]), ("Optional[int]", "null", None),
        ("Union[int, str]", "x", "x"), ("typing.List[int]", "[1]", [1]), ("'int'", "3", 3),
        ("Any", "(1, 2)", (1, 2)), ("bool | str", "true", True), ("dict[int, str]", "{1: 'a'}",
        {1: "a"}), ("float", "-inf", float("-inf")), ("Path | None", "none", None),
    ],
)  # fmt: skip
def test_a_text_is_the_first_alternative_that_fits(
    kind: str, text: str, value: object, tmp_path: Path
) -> None:
    notebook = notebook_of(tmp_path, f"x: {kind} = 1  # any")
    (found,) = resolve(notebook, {"x": Text(text)}).values()
    assert (found, type(found)) == (value, type(value))
    assert repr(found) == repr(value)


def test_only_near_names_are_suggested(tmp_path: Path) -> None:
    notebook = notebook_of(tmp_path, UNTYPED)
    with pytest.raises(NotebookError, match="'alfa', did you mean 'alpha'"):
        resolve(notebook, {"alfa": 1})
    with pytest.raises(NotebookError, match="'sigma'; it has alpha, n, names, model, flag, text"):
        resolve(notebook, {"sigma": 1})


@pytest.mark.parametrize(
    "cell",
    [
        "n = 3\nm = 2 * n", "n: int = 3\nm: str = f'{n} items'", "n = 3\nm = [i for i in range(n)]",
        "n = 3\nk = n\nm = k", "n = 3\nm = {}\nm['n'] = n", "n = 3\nm = []\nm.append(n)",
        "n = 3\ndef f(): return n\nm = f()", "n = 3\nif n > 2:\n    m = 4", "n = 3\nm = 0\nm += n",
        "n = 3\nm = [n for n in range(n)]",
        "n = 3\ng = lambda: n\nm = g()", "n = 3\ndef f(a=n): return a\nm = f()",
    ],
)  # fmt: skip
def test_a_default_computed_from_a_given_value_is_refused(cell: str, tmp_path: Path) -> None:
    notebook = notebook_of(tmp_path, cell)
    with pytest.raises(NotebookError, match="is computed from 'n'"):
        resolve(notebook, {"n": 4})
    assert any("'m' is computed from 'n'" in fault for _, fault in faults(notebook))


def test_what_is_computed_later_or_given_too_is_not(tmp_path: Path) -> None:
    assert resolve(notebook_of(tmp_path, "n = 3\nm = 2 * n"), {"n": 4, "m": 8}) == {"n": 4, "m": 8}
    for cell in ("n = 3\nm = [n for n in (1, 2)]", "n = 3\nf = lambda n: n\nm = f(1)",
                 "n = 3\nm = 4", "n = 3\ng = lambda: n", "n = 3\ndef f(): return n",
                 "n = 3\nprint(n)\nassert n"):  # fmt: skip
        assert resolve(notebook_of(tmp_path, cell), {"n": 4}) == {"n": 4}


def test_a_path_that_was_typed_is_one_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "tests").mkdir(parents=True)
    (tmp_path / "here" / "data.csv").write_text("1")
    (tmp_path / "here" / "model").mkdir()
    (tmp_path / "here" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    notebook = notebook_of(tmp_path / "books", "x: str | list[str] = ''  # any")
    here = str(tmp_path / "here")
    for text, value in {
        "data.csv": f"{here}/data.csv", "./new.csv": f"{here}/new.csv", "": "",
        "../x": f"{here}/../x",
        "model": f"{here}/model", "tests": "tests", "tests/": f"{here}/tests", "a/b": "a/b",
        "absent.csv": "absent.csv", "1.5": "1.5",
        '["data.csv", "b"]': [f"{here}/data.csv", "b"],
    }.items():  # fmt: skip
        assert resolve(notebook, {"x": Text(text)}) == {"x": value}
    assert resolve(notebook, {"x": "data.csv"}) == {"x": "data.csv"}  # not typed
    monkeypatch.chdir(tmp_path / "books")
    (tmp_path / "books" / "data.csv").write_text("1")
    assert resolve(notebook, {"x": Text("data.csv")}) == {"x": "data.csv"}


def test_odd_values_are_texts_or_refused(tmp_path: Path) -> None:
    for text in ("...", "1j", "b'x'", "1_2", " 5", "1 # c", "+-inf", "--nan", "0x10", "007"):
        for kind in ("object", "int | str", "str"):
            notebook = notebook_of(tmp_path, f"x: {kind} = 1  # any")
            assert resolve(notebook, {"x": Text(text)}) == {"x": text}
    assert resolve(notebook_of(tmp_path, "x = 1"), {"x": Text("1_000")}) == {"x": 1000}
    notebook = notebook_of(tmp_path, "x = None")
    endless: list[Any] = []
    endless.append(endless)
    for value in (endless, Text("[" * 250 + "]" * 250)):
        with pytest.raises(NotebookError, match="x"):
            resolve(notebook, {"x": value})


def test_a_literal_that_is_a_file_too_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("1")
    notebook = notebook_of(tmp_path / "books", "x: Literal['train.csv', 'x'] = 'x'")
    assert resolve(notebook, {"x": Text("train.csv")}) == {"x": "train.csv"}


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ("seed = 1\nrandom.seed(seed)", "random.seed"),
        ("seed = 1\nset_seed(seed)", "set_seed"),
        ("seed = 1\nos.environ['SEED'] = str(seed)", "os.environ['SEED']"),
        ("seed = 1\nconfig.seed = seed", "config.seed"),
    ],
)
def test_what_is_set_elsewhere_from_a_default_is_refused_too(
    cell: str, what: str, tmp_path: Path
) -> None:
    with pytest.raises(NotebookError) as caught:
        resolve(notebook_of(tmp_path, cell), {"seed": 5})
    assert f'"{what}"' in str(caught.value) or repr(what) in str(caught.value)


def test_a_second_parameters_cell_sets_nothing_back(tmp_path: Path) -> None:
    notebook = notebook_of(tmp_path, "alpha = 1\nbeta = 2", "alpha = 7")
    with pytest.raises(NotebookError, match="'alpha' is set again in cell 1"):
        resolve(notebook, {"alpha": 3})
    assert resolve(notebook, {"beta": 3}) == {"beta": 3}


def test_cells_of_ipython_s_own_syntax_have_parameters(tmp_path: Path) -> None:
    for cell in ("%%capture\nn = 1", "files = !ls\nn = 1", "if True:\n    %pwd\nn = 1",
                 "%matplotlib inline\n[n, m] = 1, 2"):  # fmt: skip
        assert resolve(notebook_of(tmp_path, cell), {"n": 5}) == {"n": 5}
    assert statements("x = '''\n%pwd\n'''") is not None
    assert statements("%%bash\nls") is None


def test_files_of_other_programs_are_read(tmp_path: Path) -> None:
    cell: dict[str, Any] = {"cell_type": "code", "source": "1", "metadata": {}, "outputs": [],
            "execution_count": None}  # fmt: skip
    for minor, ids in ((4, ["a", "b"]), (5, [None, None]), (5, ["a", "a"]), (2, [None, "b"])):
        cells = [cell | ({"id": name} if name else {}) for name in ids]
        data = {"nbformat": 4, "nbformat_minor": minor, "metadata": {}, "cells": cells}
        (tmp_path / "x.ipynb").write_text(json.dumps(data))
        assert len(load(tmp_path / "x.ipynb").code) == 2
    old = {"cell_type": "code", "input": "n = 1", "language": "python", "outputs": [],
           "collapsed": False, "metadata": {}}  # fmt: skip
    data = {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""},
            "worksheets": [{"cells": [old], "metadata": {}}]}  # fmt: skip
    (tmp_path / "x.ipynb").write_text(json.dumps(data))
    assert load(tmp_path / "x.ipynb").code[0].source == "n = 1"
