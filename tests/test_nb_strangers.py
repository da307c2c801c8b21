"""Other people's notebooks: the kinds that papermill's and nbval's own tests are made of.

Each is run, validated and swept over on a real kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tools.notebooks.refresh import refresh
from workbench.errors import InputError, NotebookError
from workbench.nb.literals import injected
from workbench.nb.many import run
from workbench.nb.notebook import load, prepared
from workbench.nb.validate import validate
from workbench.sweep import Grid, Sweep
from workbench.sweep import run as sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

nbformat: Any = import_module("nbformat")
v4: Any = nbformat.v4

REDRAW = """\
from IPython.display import clear_output, display
for step in range(400):
    clear_output(wait=True)
    display({"text/plain": f"step {step} " + "x" * 40_000}, raw=True)
print("the last line")
"""
WIDGET = """\
import ipywidgets
from IPython.display import display
box = ipywidgets.Output()
display(box)
for step in range(30):
    with box:
        box.clear_output(wait=True)
        print(f"step {step} " + "x" * 500_000)
print("the last line")
"""
SAVES = """\
from workbench.runs import save_metrics
save_metrics(n=n)
save_metrics(more=float("nan"))
"""
SHOWN = """\
try:
    1 / 0
except ZeroDivisionError:
    get_ipython().showtraceback()
"""
COUNTS = """\
import sys
for n in range(300_000):
    sys.stdout.write(f"\\r{n:9} [====] loss=0.1")
print("\\nthe last line")
"""
LARGE = """\
from IPython.display import display
display({"text/html": "x" * (11 * 2**20)}, raw=True)
print("the last line")
"""
# Of each kind: its cells, with their tags, and how its run must end.
KINDS: dict[str, tuple[list[str | tuple[str, str]], str, str]] = {
    "untyped": (["print(alpha * 2, names)"], "ok", ""),
    "error": (["x = 1", "def f():\n    return x / 0\nf()", "print('no')"], "failed",
              "cell 3: ZeroDivisionError: division by zero"),
    "syntax": (["def f(:", "1"], "failed", "cell 2: SyntaxError: invalid syntax"),
    "exit_0": (["import sys\nsys.exit(0)", "1 / 0"], "ok", "cell 2: ended the notebook"),
    "exit_1": (["import sys\nsys.exit(1)", "1"], "failed", "cell 2: SystemExit: 1"),
    "exit_cell_1": (["exit(1)", "1"], "failed", "cell 2: SystemExit: 1"),
    "captured": (["%%capture\nimport sys\nsys.exit(0)", "print('ran on')"], "ok",
                 "cell 2: shows SystemExit: 0, and the kernel ran on"),
    "shown": ([SHOWN, "1"], "ok", "cell 2: shows ZeroDivisionError: division by zero, and"),
    "tagged_exit": ([("exit()", "raises-exception"), "1"], "ok", "cell 2: ended the notebook"),
    "counts": ([COUNTS], "ok", ""),
    "large": ([LARGE], "ok", "cell 2: its output is cut"),
    "quits": (["exit()", "1 / 0"], "ok", "cell 2: ended the notebook"),
    "magic": (["%nosuchmagic 3", "print('no')"], "failed",
              "cell 2: UsageError: Line magic function `%nosuchmagic` not found."),
    "raises": ([("1 / 0", "raises-exception"), "print('after')"], "ok", ""),
    "raises_not": ([("1", "raises-exception"), "print('after')"], "ok",
                   "cell 2: is tagged raises-exception, but raised nothing"),
    "raises_magic": ([("%nosuchmagic", "raises-exception"), "print('after')"], "ok", ""),
    "skips": ([("1 / 0", "skip-execution"), "print('after')"], "ok", ""),
    "awaits": (["import asyncio\nawait asyncio.sleep(0.01)\nprint('awaited')"], "ok", ""),
    "redraws": ([REDRAW], "ok", ""),
    "widget": ([WIDGET], "ok", ""),
    "neighbours": (["import helper\nprint(helper.NAME, open('data.txt').read())"], "ok", ""),
    "empty": (["class Empty(Exception): pass\nraise Empty", "1"], "failed", "cell 2: Empty"),
    "interrupt": (["raise KeyboardInterrupt", "1"], "failed", "cell 2: KeyboardInterrupt"),
    "dies": (["import os\nos._exit(0)", "1"], "killed", "cell 2: the kernel died"),
}  # fmt: skip
UNTYPED = "alpha = 0.5  # a share\nn = 3\nnames = ['a']\nmodel = None\nflag = False\ntext = 'x'\n"


def write(path: Path, *cells: str | tuple[str, str], parameters: str = UNTYPED) -> Path:
    """A notebook of papermill's kind: untyped parameters, no title, no kernel named."""
    made = [v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    for cell in ("# nothing", *cells):
        code, tag = cell if isinstance(cell, tuple) else (cell, None)
        made.append(v4.new_code_cell(code, metadata={"tags": [tag]} if tag else {}))
    notebook = v4.new_notebook(cells=made[:1] + made[2:] if cells else made[:1])
    notebook.cells.insert(1, v4.new_markdown_cell("text"))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def said(path: Path, cell: int = -1) -> str:
    """What a cell of an executed copy shows as text."""
    outputs = load(path).code[cell].outputs
    return "".join("".join(one.get("text", one.get("data", {}).get("text/plain", "")))
                   for one in outputs)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, whose notebooks lie in `books`, with a kernel of our name."""
    folder = tmp_path_factory.mktemp("place")
    kernel = folder / "jupyter" / "kernels" / "workbench"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "workbench", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    for name, (cells, _, _) in KINDS.items():
        write(folder / "books" / f"{name}.ipynb", *cells)
    (folder / "books" / "helper.py").write_text("NAME = 'beside'\n")
    (folder / "books" / "data.txt").write_text("of the notebook's folder")
    (folder / "data.txt").write_text("of the caller's folder")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        yield folder


@pytest.fixture(scope="module")
def ran(place: Path) -> dict[str, dict[str, Any]]:
    """All kinds, run from another folder than their own."""
    frame: pd.DataFrame = run(["books"], "out", {"alpha": 2}, say=lambda _: None)
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    return {row["notebook"]: row for row in rows}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_ends_as_it_should(kind: str, ran: dict[str, dict[str, Any]]) -> None:
    _, status, detail = KINDS[kind]
    assert (ran[kind]["status"], ran[kind]["detail"][: len(detail) or None]) == (status, detail)


def test_every_kind_is_validated(place: Path, ran: dict[str, dict[str, Any]]) -> None:
    """What ran well is refreshed and then found as stored; the rest fails where it did."""
    well = [place / "tidy" / f"{kind}.ipynb" for kind, row in ran.items() if row["status"] == "ok"
            and kind not in {"exit_0", "quits", "tagged_exit"}]  # fmt: skip
    shutil.copytree(place / "books", place / "tidy", ignore=shutil.ignore_patterns("papers"))
    assert {one.status for one in refresh(well, say=lambda _: None)} == {"ok"}
    found = validate([place / "tidy"], cell_timeout=60)
    failed = {one.path.stem: one.failed for one in found.notebooks if one.failed}
    # nbval runs on after a failure, takes an end of the notebook for an error, and has no widgets.
    once = {"captured", "tagged_exit", "shown", "large", "empty", "interrupt", "error", "syntax",
            "exit_1", "quits", "magic", "raises_not", "widget"}  # fmt: skip
    assert failed == dict.fromkeys(once, 1) | {"exit_0": 2, "dies": 2}
    assert {one.path.stem: one.died for one in found.notebooks if one.died} == {"dies": 2}


@pytest.mark.usefixtures("ran")
def test_what_is_drawn_last_is_kept(place: Path) -> None:
    assert said(place / "out" / "untyped.ipynb") == "4.0 ['a']\n"
    assert said(place / "out" / "redraws.ipynb").startswith("step 399 x")
    assert said(place / "out" / "counts.ipynb") == "   299999 [====] loss=0.1\nthe last line\n"
    assert said(place / "out" / "large.ipynb").endswith("the last line\n")
    for kind in ("redraws", "widget"):
        text = (place / "out" / f"{kind}.ipynb").read_text()
        assert said(place / "out" / f"{kind}.ipynb").endswith("the last line\n")
        assert "output cut" not in text
        assert "step 1 " not in text
    assert said(place / "out" / "neighbours.ipynb") == "beside of the notebook's folder\n"


@pytest.mark.usefixtures("ran")
def test_the_copies_run_again_with_and_without_values(place: Path) -> None:
    copies = [place / "out" / f"{kind}.ipynb" for kind in ("untyped", "error")]
    frame = run(copies, "again", say=lambda _: None)
    assert list(frame["status"]) == ["ok", "failed"]
    assert frame["detail"][1] == "cell 6: ZeroDivisionError: division by zero"  # as the copy has it
    assert said(place / "again" / "untyped.ipynb") == "4.0 ['a']\n"  # what was put in before
    run(copies[:1], "again", {"n": 4}, say=lambda _: None)
    assert said(place / "again" / "untyped.ipynb") == "1.0 ['a']\n"
    tags = [cell.tags for cell in load(place / "again" / "untyped.ipynb").cells]
    assert tags.count(("injected-parameters",)) == 1


def test_an_injected_cell_that_fails_is_named(place: Path) -> None:
    path = write(place / "books" / "papers" / "stale.ipynb", "print(alpha)")
    notebook: Any = nbformat.read(path, as_version=4)
    stale = v4.new_code_cell("alpha = 1 / 0", metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(1, stale)
    nbformat.write(notebook, path)
    (row,) = run([path], "stale", say=lambda _: None).to_dict(orient="records")
    assert row["status"] == "failed"
    assert row["detail"] == "the injected parameters: ZeroDivisionError: division by zero"


def test_papermill_itself_runs_a_copy_of_ours(place: Path) -> None:
    papermill: Any = import_module("papermill")
    path = write(place / "books" / "papers" / "theirs.ipynb", "print(alpha, n)")
    run([path], "theirs", {"n": 7}, say=lambda _: None)
    papermill.execute_notebook(
        "theirs/theirs.ipynb", "theirs/again.ipynb", {"alpha": 0.25}, kernel_name="workbench",
        progress_bar=False,
    )  # fmt: skip
    assert said(place / "theirs" / "again.ipynb") == "0.25 3\n"


GIVEN = {
    "point": (3, 4), "one": (1,), "names": {1: "a", (2, 3): [None, True]}, "few": {3, 1},
    "text": "a 'b' \"c\"\n\u2028\\", "share": float("nan"), "bound": [float("-inf"), -0.0],
    "nothing": None, "large": 10**30, "empty": [(), {}, set()],
}  # fmt: skip


def test_values_arrive_as_they_were_checked(place: Path) -> None:
    cell = "\n".join(f"{name}: object = None  # any" for name in GIVEN)
    show = f"print([({', '.join(GIVEN)})])"
    path = write(place / "books" / "papers" / "given.ipynb", show, parameters=cell)
    (row,) = run([path], "given", GIVEN, say=lambda _: None).to_dict(orient="records")
    assert row["status"] == "ok"
    assert said(place / "given" / "given.ipynb") == f"{[tuple(GIVEN.values())]}\n"


def test_a_value_that_no_cell_can_say_is_refused(place: Path) -> None:
    path = write(place / "books" / "papers" / "given.ipynb", "1")
    for value in (object(), {"a": b"c"}, 10**5000, [range(3)]):
        with pytest.raises(NotebookError, match="model cannot be given"):
            run([path], "never", {"model": value}, say=lambda _: None)
    assert not (place / "never").exists()
    assert injected({"n": float("inf")}) == '# Parameters\nn = float("inf")'
    assert "injected-parameters" not in prepared(path)


def test_another_language_is_refused_by_its_name(tmp_path: Path) -> None:
    for metadata, name in (
        ({"kernelspec": {"name": "ir", "language": "R", "display_name": "R"}}, "R"),
        ({"language_info": {"name": "julia"}}, "julia"),
        ({"kernelspec": {"name": "ir", "display_name": "R"}}, "ir"),
        ({"kernelspec": {"name": "bash", "display_name": "Bash"}}, "bash"),
    ):
        path = tmp_path / "other.ipynb"
        nbformat.write(v4.new_notebook(cells=[], metadata=metadata), path)
        one = Sweep(notebook=path, name="x", grid=Grid(seeds=[1]))
        acts = (lambda p: run([p], "o"), lambda p: refresh([p]), lambda p: validate([p]))
        for act in (*acts, lambda _, one=one: one.points):
            with pytest.raises(NotebookError, match=f"is a notebook of {name} "):
                act(path)


def test_an_endless_log_is_cut_and_what_follows_a_clear_is_kept(place: Path) -> None:
    log = "for _ in range(12):\n    print('y' * 2**20)\n"
    clear = "from IPython.display import clear_output\nclear_output()\nprint('after')"
    path = write(place / "books" / "papers" / "log.ipynb", log + "print('lost')", log + clear,
                 log + "1 / 0")  # fmt: skip
    run([path], "logs", say=lambda _: None)
    copy = load(place / "logs" / "log.ipynb")
    assert said(copy.path, 1).endswith("output cut: it is longer than 10 MiB\n")
    assert 10 * 2**20 < len(said(copy.path, 1)) < 10 * 2**20 + 100
    assert said(copy.path, 2) == "after\n"
    assert copy.code[3].outputs[-1]["ename"] == "ZeroDivisionError"


def test_an_error_that_the_kernel_itself_fails_at_is_reported(place: Path) -> None:
    """Of a group raised where all cells await, ipykernel sends no reply at all."""
    group = "async def f():\n    raise BaseExceptionGroup('of', [ValueError(3)])\nawait f()"
    path = write(place / "books" / "papers" / "group.ipynb", group, "1", parameters="")
    (row,) = run([path], "groups", timeout=60, say=lambda _: None).to_dict(orient="records")
    assert (row["status"], row["detail"]) == ("failed", "cell 2: NoReply: ValueError: 3")


def test_a_skipped_cell_keeps_its_output_when_refreshed(place: Path) -> None:
    path = write(place / "books" / "papers" / "skips.ipynb", ("1 / 0", "skip-execution"), "n")
    notebook: Any = nbformat.read(path, as_version=4)
    notebook.cells[2].outputs = [v4.new_output("stream", text="of last year\n")]
    nbformat.write(notebook, path)
    (done,) = refresh([path], say=lambda _: None)
    assert (done.status, done.changed) == ("ok", True)
    kept: Any = nbformat.read(path, as_version=4)
    assert kept.cells[2].outputs[0].text == "of last year\n"


def test_a_sweep_over_them(place: Path) -> None:
    table = {}
    for kind in ("untyped", "exit_0", "raises", "skips", "neighbours", "error"):
        point = Sweep(notebook=Path("books", f"{kind}.ipynb"), name=kind,
                      grid=Grid(product={"alpha": [1, 1.0]}))  # fmt: skip
        (row,) = sweep(point, place / "sweeps" / kind).table.to_dict(orient="records")
        table[kind] = row["state"]
    assert table == {kind: "failed" if kind == "error" else "done" for kind in table}
    (copy,) = (place / "sweeps" / "neighbours").glob("*/out.ipynb")
    assert said(copy) == "beside of the notebook's folder\n"


def test_the_command_takes_no_option_for_a_value(place: Path) -> None:
    from typer.testing import CliRunner

    from workbench.cli.notebook import app

    for args, message in (
        (["-p", "n", "--json"], "-p n has no value"),
        (["-p", "n"], "-p n has no value"),
        (["-p", "n", "1", "-p", "n=2"], "-p n is given twice"),
        (["-p", "=3"], "-p '=3' must be NAME=VALUE"),
        (["-p", "text", "--", "-p", "n", "1"], "-p text has no value"),
    ):
        made = CliRunner().invoke(app, ["run", "books/untyped.ipynb", "--out", "no", *args])
        assert (made.exit_code, message in made.output) == (2, True), made.output
    assert not (place / "no").exists()
    args = ["-p", "alpha", "-inf", "-p", "text=--json", "--parameter", "n=-3", "--json"]
    made = CliRunner().invoke(app, ["run", "books/untyped.ipynb", "--out", "cli", *args])
    assert made.exit_code == 0, made.output
    assert said(place / "cli" / "untyped.ipynb") == "-inf ['a']\n"


def test_links_lead_to_where_a_copy_goes_and_nobody_s_file_is_lost(place: Path) -> None:
    path = write(place / "books" / "papers" / "linked.ipynb", SAVES)
    (place / "lo").mkdir()
    for name in ("linked.ipynb", "metrics.json"):
        (place / f"far-{name}").write_text("{}")
        (place / "lo" / name).symlink_to(place / f"far-{name}")
    run([path], "lo", say=lambda _: None)
    assert all((place / "lo" / name).is_symlink() for name in ("linked.ipynb", "metrics.json"))
    assert json.loads((place / "far-metrics.json").read_text()) == {"n": 3, "more": "nan"}
    assert said(place / "far-linked.ipynb", 0) == ""
    (place / "so").mkdir()
    (place / "so" / "linked.ipynb").symlink_to(place / "far-linked.ipynb")
    with pytest.raises(InputError, match="is not a copy of a sweep"):
        sweep(Sweep(notebook=path, name="x", grid=Grid(product={"n": [1]})), place / "so")


def test_values_that_json_takes_for_one_another_are_points_of_their_own(place: Path) -> None:
    values: list[object] = [{1: "a"}, {"1": "a"}, (1, 2), [1, 2], {1, 2}, {None: 1}, {"null": 1}]
    points = Sweep(notebook=place / "books" / "untyped.ipynb", name="x",
                   grid=Grid(product={"model": values})).points  # fmt: skip
    assert [one.parameters["model"] for one in points] == values
    assert len({str(one.row["model"]) for one in points}) == len(values)


def test_a_notebook_that_is_saved_meanwhile_is_judged_as_it_began(place: Path) -> None:
    code = """\
import nbformat
book = nbformat.read("edits.ipynb", 4)
book.cells.append(nbformat.v4.new_code_cell("print('new')"))
nbformat.write(book, "edits.ipynb")
import os
os.makedirs(os.environ["WORKBENCH_RUN_DIR"] + "/results")
open(os.environ["WORKBENCH_RUN_DIR"] + "/results/edits.csv", "w").close()
"""
    path = write(place / "books" / "papers" / "edits.ipynb", code)
    lines: list[str] = []
    (row,) = run([path], "edits", say=lines.append).to_dict(orient="records")
    assert (row["status"], row["cells"]) == ("ok", 2)
    assert "edits.csv cannot be read" in lines[-1]


def test_the_environment_holds_in_the_notebook_s_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "library").mkdir(exist_ok=True)
    (place / "library" / "far.py").write_text("NAME = 'far'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["library", os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("WORKBENCH_DATA", "books")
    code = "import far, os\nprint(far.NAME, os.environ['WORKBENCH_DATA'], os.getcwd())"
    path = write(place / "books" / "papers" / "env.ipynb", code)
    run([path], "env", say=lambda _: None)
    assert said(place / "env" / "env.ipynb") == f"far {place}/books {place}/books/papers\n"
