"""Run, refresh, validate: real papermill and nbval on small notebooks, shared by the tests."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tools.notebooks.coverage import coverage
from tools.notebooks.lint import lint
from tools.notebooks.refresh import normalised, refresh
from workbench.errors import NotebookError
from workbench.nb.many import run
from workbench.nb.notebook import load
from workbench.nb.parameters import Text, resolve
from workbench.nb.validate import Validation, validate

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

# Any: nbformat is typed in part.
nbformat: Any = import_module("nbformat")
_PARAMETERS = """\
n: int = 3  # items
rate: float = 0.5  # share
model: str | None = None  # name
sizes: tuple[int, ...] = (1, 2)  # of each step
mode: Literal["fast", "full"] = "fast"  # how much
loud: bool = False  # say more
"""
_FIGURE = """\
import os
from pathlib import Path
folder = Path(os.environ.get("WORKBENCH_RUN_DIR", "runs"))
(folder / "figures").mkdir(parents=True, exist_ok=True)
(folder / "figures" / "line.png").write_bytes(b"png")
print("n", n, rate, sizes)
"""
_SLEEP = """\
import os, time
from pathlib import Path
Path("pid").write_text(str(os.getpid()))
time.sleep(60)
"""


def _write(path: Path, *sources: str, parameters: str = _PARAMETERS) -> Path:
    codes = ["from typing import Literal", parameters, *sources]
    cells = [nbformat.v4.new_markdown_cell("# Title"), *map(nbformat.v4.new_code_cell, codes)]
    cells[2].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with a kernel named `workbench` whatever the environment has."""
    folder = tmp_path_factory.mktemp("repo")
    kernel = folder / "jupyter" / "kernels" / "workbench"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "workbench", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps({**spec, "env": {"FROM_SPEC": "yes"}}))
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        yield folder


@pytest.fixture(scope="module")
def ran(repo: Path) -> tuple[pd.DataFrame, list[str]]:
    """Three notebooks run with parameters: one good, one that raises, one whose kernel dies."""
    paths = [
        _write(repo / "in" / "good.ipynb", _FIGURE, ""),
        _write(repo / "in" / "raises.ipynb", "1 / 0", "print('never')"),
        _write(repo / "in" / "dies.ipynb", "import os\nos.kill(os.getpid(), 9)"),
    ]
    lines: list[str] = []
    values = {"n": 7, "rate": 1, "sizes": (4, 5)}
    return run(paths, "out", values, say=lines.append), lines


def test_run_tells_how_each_notebook_ended(ran: tuple[pd.DataFrame, list[str]]) -> None:
    frame, lines = ran
    rows = {row["notebook"]: row for row in frame.to_dict(orient="records")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good": "ok",
        "raises": "failed",
        "dies": "killed",
    }
    assert rows["raises"]["detail"] == "cell 3: ZeroDivisionError: division by zero"
    assert rows["dies"]["detail"] == "cell 3: the kernel died"
    assert (rows["good"]["cells"], rows["good"]["executed"]) == (3, 3)
    # It dies in its last cell, where nothing but the exit code and the missing reply show it.
    assert (rows["dies"]["cells"], rows["dies"]["executed"]) == (3, 2)
    assert rows["good"]["seconds"] > 0
    assert rows["good"]["figures"] == ["out/figures/line.png"]
    assert rows["raises"]["figures"] == []
    assert lines[0].startswith("[1/3] ")
    assert "in/good.ipynb: ok, 3/3 cells" in lines[1]
    assert "out/figures/line.png" in lines[-1]


def test_the_copy_has_the_values_and_no_absolute_path(
    repo: Path, ran: tuple[pd.DataFrame, list[str]]
) -> None:
    copy = load(repo / "out" / "good.ipynb")
    (output,) = copy.code[-1].outputs
    assert "n 7 1.0 (4, 5)" in "".join(output["text"])
    assert copy.metadata["papermill"]["input_path"] == "good.ipynb"
    found = [f for f in lint(copy.path) if f.rule in {"absolute-path", "stderr"}]
    assert found == []


def test_a_notebook_that_does_not_end_is_a_timeout(repo: Path) -> None:
    path = _write(repo / "in" / "endless.ipynb", "while True: pass")
    frame = run([path], "out", timeout=5, say=lambda _: None)
    (row,) = frame.to_dict(orient="records")
    assert row["status"] == "timeout"
    assert row["executed"] < row["cells"]
    assert row["detail"].endswith("still running")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rat": 1.0}, "did you mean 'rate'"),
        ({"n": 1.5}, r"n=1\.5 is not of the type int"),
        ({"n": True}, "n=True is not of the type int"),
        ({"rate": "1"}, "rate='1' is not of the type float"),
        ({"sizes": ["a"]}, "sizes"),
        ({"mode": "slow"}, "mode"),
        ({"n": Text("many")}, "'many' is not of type int"),
    ],
)
def test_a_mistyped_parameter_is_refused_before_anything_runs(
    values: dict[str, object], message: str, repo: Path
) -> None:
    path = _write(repo / "in" / "typed.ipynb", "1")
    with pytest.raises(NotebookError, match=message):
        run([path], "refused", values)
    assert not (repo / "refused").exists()


def test_text_is_read_as_the_type_says(repo: Path) -> None:
    notebook = load(_write(repo / "in" / "typed.ipynb", "1"))
    texts = {"n": "7", "rate": "1e-3", "model": "7", "sizes": "(1, 2)", "mode": "full",
             "loud": "true"}  # fmt: skip
    values = resolve(notebook, {name: Text(text) for name, text in texts.items()})
    assert values == {"n": 7, "rate": 1e-3, "model": "7", "sizes": (1, 2), "mode": "full",
                      "loud": True}  # fmt: skip
    assert resolve(notebook, {"model": Text("None")}) == {"model": None}


def test_what_cannot_be_run_is_refused(repo: Path) -> None:
    path = _write(repo / "in" / "typed.ipynb", "1")
    twin = _write(repo / "twin" / "typed.ipynb", "1")
    with pytest.raises(NotebookError, match="share a name"):
        run([path, twin], "out")
    with pytest.raises(NotebookError, match="another folder"):
        run([path], "in")
    with pytest.raises(NotebookError, match="is not a notebook"):
        run(["none.ipynb"], "out")
    with pytest.raises(NotebookError, match="another folder"):
        run(str(path), "in")  # one, without a list
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.nb.execution.KERNEL", "absent")
        with pytest.raises(NotebookError, match="no Jupyter kernel 'absent'"):
            run([path], "out")


def _alive(pid: int) -> bool:
    try:
        # A zombie has no command line left.
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def test_ctrl_c_ends_the_kernel_and_keeps_what_is_finished(repo: Path) -> None:
    paths = [_write(repo / "in" / "a.ipynb", "n"), _write(repo / "in" / "b.ipynb", _SLEEP)]
    command = [sys.executable, "-m", "workbench", "notebook", "run", *map(str, paths)]
    with subprocess.Popen(
        [*command, "--out", "stopped", "-p", "n", "-4"], stdout=subprocess.PIPE, text=True
    ) as process:
        _wait_for(repo / "in" / "pid", process)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
    assert process.returncode not in {0, None}
    assert "a.ipynb: ok, 3/3 cells" in printed
    assert "a     ok" in printed
    (output,) = load(repo / "stopped" / "a.ipynb").code[-1].outputs
    assert "".join(output["data"]["text/plain"]) == "-4"
    assert not (repo / "stopped" / "b.ipynb").exists()
    assert not _alive(int((repo / "in" / "pid").read_text()))


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < end, "the notebook never began"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def committed(repo: Path) -> Path:
    """A notebook as it is committed: written by hand, refreshed once."""
    source = _FIGURE + "print(os.environ['FROM_SPEC'])"
    path = _write(repo / "notebooks" / "tidy.ipynb", source, "assert n == 3")
    notebook: Any = nbformat.read(path, as_version=4)
    stale = nbformat.v4.new_code_cell("n = 9")
    stale.metadata["tags"] = ["injected-parameters"]
    notebook.cells.insert(3, stale)
    notebook.metadata.update(widgets={}, papermill={"input_path": "x"})
    nbformat.write(notebook, path)
    (done,) = refresh([path], say=lambda _: None)
    assert (done.status, done.changed) == ("ok", True)
    return path


def test_a_refreshed_notebook_is_clean_and_covered(repo: Path, committed: Path) -> None:
    assert lint(committed) == []
    assert coverage(committed).share == 1.0
    assert (repo / "figures" / "line.png").exists()
    notebook = load(committed)
    assert [cell.count for cell in notebook.code] == [1, 2, 3, 4]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert "version" not in notebook.metadata["language_info"]
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


def test_a_second_refresh_changes_no_byte(committed: Path) -> None:
    before = committed.read_bytes()
    (again,) = refresh([committed], say=lambda _: None)
    assert (again.status, again.changed) == ("ok", False)
    assert committed.read_bytes() == before
    assert [p.name for p in committed.parent.iterdir()] == ["tidy.ipynb"]


def test_a_widget_view_goes_and_the_text_beside_it_stays(tmp_path: Path) -> None:
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}
    outputs = [
        nbformat.v4.new_output("display_data", data={**view, "text/plain": "Box()"}),
        nbformat.v4.new_output("display_data", data=view),
        nbformat.v4.new_output("stream", name="stderr", text="kept for lint to find"),
    ]
    cell = nbformat.v4.new_code_cell("box", outputs=outputs)
    path = tmp_path / "w.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    (kept,) = json.loads(normalised(path))["cells"]
    assert [output.get("data") for output in kept["outputs"]] == [{"text/plain": ["Box()"]}, None]


@pytest.fixture(scope="module")
def validation(repo: Path, committed: Path) -> Validation:
    """The committed notebook and a copy whose stored output is another."""
    changed = Path(shutil.copy(committed, repo / "changed.ipynb"))
    changed.write_text(changed.read_text().replace("n 3 0.5", "n 4 0.5"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_ADDOPTS", "--no-such-option")
        return validate([committed, changed])


def test_validate_passes_what_is_as_stored(validation: Validation) -> None:
    tidy, _ = validation.notebooks
    assert (tidy.cells, tidy.failed) == (4, 0)


def test_validate_fails_a_changed_output(validation: Validation) -> None:
    _, changed = validation.notebooks
    assert (changed.cells, changed.failed) == (4, 1)
    assert validation.exit_code == 1
    assert not validation.ok


def test_validation_writes_nothing_beside_the_notebook(
    committed: Path, validation: Validation
) -> None:
    assert [p.name for p in committed.parent.iterdir()] == ["tidy.ipynb"]
    assert not (committed.parent.parent / "runs").exists()
