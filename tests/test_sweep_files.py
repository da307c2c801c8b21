"""The files beside a notebook: which of them the points' keys cover, and what is named instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from workbench.cli.sweep import app
from workbench.errors import InputError
from workbench.sweep import Grid, Results, Sweep
from workbench.sweep.folder import SweepFolder, record_end
from workbench.sweep.plan import located
from workbench.sweep.results import read_results, results, save_results


def of(folder: Path, code: str = "", **parts: Any) -> Sweep:
    """A sweep of `point.ipynb` with more code in it."""
    notebook = folder / "more.ipynb"
    cells = json.loads((folder / "point.ipynb").read_text())
    cells["cells"][1]["source"] = code
    notebook.write_text(json.dumps(cells))
    return Sweep(notebook=notebook, name="mine", **({"grid": Grid(product={"n": [1]})} | parts))


def key(folder: Path, code: str = "", **parts: Any) -> str:
    (point,) = of(folder, code, **parts).points
    return point.key


def notes(sweep: Sweep) -> str:
    return "\n".join(results(sweep.points, SweepFolder(Path("runs"))).notes)


def write(folder: Path, *names: str, text: str = "") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import helper", ["helper.py"]),
        ("def f():\n    from helper import x", ["helper.py"]),
        ("import package.part as p", ["package/__init__.py", "package/part.py", "package/a/b.py"]),
        ("from package import part", ["package/__init__.py", "package/part.py"]),
        ("importlib.import_module('helper')", ["helper.py"]),
        ("%run helper.py 3", ["helper.py"]),
        ("%run -i helper", ["helper.py"]),
        ("!python lib/script.py", ["lib/script.py"]),
        ("%%time\nimport helper", ["helper.py"]),
        ("%%bash\nsort rows.csv", ["rows.csv"]),
        ("import helper\nfiles = !ls", ["helper.py"]),  # no Python as a whole
        ("pd.read_csv('rows.csv')", ["rows.csv"]),
        ("PLACES = {'one': ['./data/rows.csv']}", ["data/rows.csv"]),
        ("open('rows.csv', 'rb')", ["rows.csv"]),
    ],
)
def test_a_file_that_the_code_names_is_part_of_the_key(
    points: Path, code: str, names: list[str]
) -> None:
    write(points, *names)
    known = {key(points, code)}
    for number, name in enumerate(names, start=1):
        write(points, name, text="x = 1")
        known.add(key(points, code))
        assert len(known) == 1 + number


def test_what_a_module_names_is_part_of_the_key_too(points: Path) -> None:
    write(points, "one.py", text="import two\nfrom lib import three")
    write(points, "two.py", text="import one\nTABLE = 'rows.csv'")
    write(points, "lib/three.py", text="TEXT = Path(__file__).parent / 'words.txt'")
    write(points, "rows.csv", "lib/words.txt")
    for name in ("rows.csv", "lib/words.txt", "two.py"):
        before = key(points, "import one")
        write(points, name, text="1")
        assert key(points, "import one") != before


def test_files_that_nothing_names_and_places_change_no_key(points: Path) -> None:
    bare = key(points, "import json")
    write(points, "helper.py", "data/rows.csv")
    assert key(points, "import json") == bare
    with_file = key(points, "import helper")
    elsewhere = points / "else" / "where"
    shutil.copytree(points, elsewhere, ignore=shutil.ignore_patterns("else", "jupyter"))
    assert key(elsewhere, "import helper") == with_file
    (point,) = of(points, "import json").points
    assert "files" not in point.rests


def test_a_file_that_a_value_names_is_part_of_that_point_only(points: Path) -> None:
    write(points, "a.csv", "b.csv")
    grid = Grid(product={"label": ["a.csv", "b.csv", "c.csv"]})
    before = of(points, grid=grid).points
    write(points, "b.csv", text="1")
    after = of(points, grid=grid).points
    assert [old.key == new.key for old, new in zip(before, after, strict=True)] == [
        True, False, True
    ]  # fmt: skip
    assert "files" not in after[2].rests


def test_a_stale_point_names_the_files(points: Path) -> None:
    def seen() -> Results:
        return results(of(points, "import helper").points, place)

    write(points, "helper.py")
    place = SweepFolder(points / "runs")
    (point,) = of(points, "import helper").points
    target = place.begin(point)
    (target / "out.ipynb").write_text("{}")
    record_end(place.of(point), "done", "", {})
    assert seen().states == {"done": 1}
    write(points, "helper.py", text="x = 1")
    (row,) = seen().rows
    assert (row["state"], row["detail"]) == (
        "stale", "there is a result from before the files next to the notebook changed"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("Path('data') / 'rows.csv'", "data/"),
        ("f'data/{n}.csv'", "data/"),
        ("open('log.txt', 'a')", "log.txt"),
        ("Path('log.txt').write_text('x')", "log.txt"),
        ("table.to_csv('log.txt')", "log.txt"),
        ("json.dump(x, open('log.txt', mode='w'))", "log.txt"),
    ],
)
def test_folders_and_files_that_are_written_are_named_and_in_no_key(
    points: Path, code: str, named: str
) -> None:
    write(points, "data/1.csv", "log.txt")
    assert f"not part of a point's key: {named}" in notes(of(points, code))
    before = key(points, code)
    write(points, "data/1.csv", "log.txt", text="1")
    assert key(points, code) == before


def test_folders_and_files_elsewhere_that_a_value_names_are_named(points: Path) -> None:
    write(points, "data/1.csv", "there.csv")
    grid = Grid(list=[{"label": "data"}, {"label": str(points / "there.csv")}])
    sweep = of(points, grid=grid)
    assert f"key: data/, {points / 'there.csv'}" in notes(sweep)
    save_results(results(sweep.points, SweepFolder(points)), sweep, SweepFolder(points))
    assert f"key: data/, {points / 'there.csv'}" in "\n".join(read_results(points).notes)
    assert "not part" not in notes(of(points))


def test_what_is_not_covered_is_said_before_anything_runs(points: Path) -> None:
    write(points, "data/1.csv")
    write(points, "mine.yaml", text="notebook: point.ipynb\nfixed: {label: data}\n")
    for command in (["run", "--dry-run"], ["show"]):
        done = CliRunner().invoke(app, [*command, "mine.yaml", "--out", "runs"])
        assert "not part of a point's key: data/" in done.output
    assert not (points / "runs").exists()


def test_a_server_of_others_is_named(points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_BASE_URL", "http://user:secret@localhost:1/v1")
    assert notes(of(points)).endswith("key: what the server at WORKBENCH_BASE_URL serves")
    grid = Grid(product={"n": [1]})
    served = Sweep(notebook=points / "model.ipynb", name="mine", grid=grid, serve={})
    assert "not part" not in notes(served)
    text = (points / "point.ipynb").read_text()
    (points / "point.ipynb").write_text(text.replace("label: str", "base_url: str"))
    asked = of(points, fixed={"base_url": "http://localhost:1/v1"})
    assert notes(asked).endswith("key: what the server at base_url serves")


def test_a_changed_file_stops_what_is_planned(points: Path) -> None:
    write(points, "helper.py", text="x = 1")
    sweep = of(points, "import helper")
    assert sweep.points
    sweep.beside.check()
    write(points, "helper.py", text="x = 1")  # written again, as it was
    sweep.beside.check()
    write(points, "helper.py", text="x = 2")
    for _ in range(2):
        with pytest.raises(InputError, match=r"helper.py has changed during the sweep: run"):
            sweep.beside.check()
    (points / "helper.py").unlink()
    with pytest.raises(InputError, match=r"helper.py cannot be read: No such file"):
        sweep.beside.check()


def test_a_model_is_looked_for_beside_the_notebook(
    points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(points, "one/llama/config.json", text="{}")
    write(points, "one/llama/model.safetensors", text="weights")
    shutil.copy(points / "model.ipynb", points / "one")
    shutil.copytree(points / "one", points / "two")
    monkeypatch.chdir(points / "jupyter")
    grid = Grid(product={"model": ["llama"]})

    def point(folder: str, **parts: Any) -> Any:
        sweep = Sweep(notebook=points / folder / "model.ipynb", name="mine", grid=grid, **parts)
        (one,) = sweep.points
        return one

    choices: list[dict[str, Any]] = [{}, {"serve": {}}]
    for parts in choices:
        assert point("one", **parts).key == point("two", **parts).key
        assert "not part" not in notes(Sweep(notebook=points / "one" / "model.ipynb", name="mine",
                                             grid=grid, **parts))  # fmt: skip
    assert point("one", serve={}).served == {"model": "llama"}
    assert located(points / "one", "llama") == str(points / "one" / "llama")
    before = point("two").key
    write(points, "two/llama/model.safetensors", text="other")
    assert point("two").key != before


@pytest.mark.parametrize("model", ["", "a/hub-name", "workbench-tiny", "x" * 300, None])
def test_other_models_are_as_they_were_given(points: Path, model: str | None) -> None:
    (points / "workbench-tiny").mkdir()
    assert located(points, model) == model
