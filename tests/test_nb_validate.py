"""Validate as Jupyter runs and shows cells: kernels that die, failures that nothing shows, tags."""

from __future__ import annotations

import re
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.nb.validate import Validation, validate

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

# Any: nbformat is typed in part.
nbformat: Any = import_module("nbformat")
_OUT = nbformat.v4.new_output

_IGNORE, _RAISES, _SKIP = "nbval-ignore-output", "raises-exception", "skip-execution"
_KILL = "import os\nos.kill(os.getpid(), 9)"
_EXIT = "import os\nos._exit(0)"
_DEATHS = {"killed": (_KILL,), "left": (_EXIT,), "ignored": (_KILL, _IGNORE)} | {
    "meant": (_EXIT, _RAISES),
}

_MAGIC = "UsageError: Line magic function `%nosuchmagic` not found.\n"
_ERROR = _OUT("error", ename="ValueError", evalue="meant", traceback=[])
_CLEAR = "from IPython.display import clear_output, display\n"
_UPDATE = "shown = display('a', display_id='x')\nprint('between')\nshown.update('b')"
# A cell's source, its tags, what is stored of it, and how its failure begins; "" if it passes.
_CASES: list[tuple[str, tuple[str, ...], tuple[Any, ...], str]] = [
    ("%nosuchmagic", (_IGNORE,), (), "UsageError: Line magic function `%nosuchmagic` not found"),
    ("%nosuchmagic", (), (_OUT("stream", name="stderr", text=_MAGIC),), "UsageError: Line"),
    ("%nosuchmagic", (_IGNORE, _RAISES), (), ""),
    ("raise ValueError('meant')", (_RAISES,), (_ERROR,), ""),
    ("raise ValueError('other')", (_RAISES,), (_ERROR,), "Cell outputs differ"),
    ("1", (_RAISES,), (_ERROR,), "Cell outputs differ"),
    ("1", (_RAISES, _IGNORE), (), "it is marked as raising, but raised nothing"),
    ("# NBVAL_RAISES_EXCEPTION\nn = 1", (), (), "it is marked as raising, but raised nothing"),
    ("40 + 1", (), (_OUT("execute_result", data={"text/plain": "41"}),), ""),
    ("_ + 1;", (), (), ""),
    ("Out[max(Out)] + 1", (), (_OUT("execute_result", data={"text/plain": "42"}),), ""),
    ("raise ValueError('not run')", (_SKIP,), (), ""),
    (_CLEAR + "for i in range(3):\n    clear_output(wait=True)\n    print(i)", (),
     (_OUT("stream", text="2\n"),), ""),
    ("print(1)\nclear_output(wait=True)", (), (_OUT("stream", text="1\n"),), ""),
    ("print(1)\nclear_output()", (), (), ""),
    ("print(1)\nclear_output()\nprint(2)", (), (_OUT("stream", text="1\n"),),
     "Cell outputs differ"),
    (_UPDATE, (), (_OUT("display_data", data={"text/plain": "'b'"}),
                   _OUT("stream", text="between\n")), ""),
    (_UPDATE, (), (_OUT("display_data", data={"text/plain": "'a'"}),
                   _OUT("stream", text="between\n")), "Cell outputs differ"),
    ("display(1, display_id='y')\ndisplay(2, display_id='y');", (),
     (_OUT("display_data", data={"text/plain": "2"}),) * 2, ""),
    ("shown = display(1, display_id='z')\nclear_output()\nprint(2)\nshown.update(3)", (),
     (_OUT("stream", text="2\n"),), ""),
    ("get_ipython().set_custom_exc((ValueError,), lambda *_, **__: None)\nraise ValueError(3)", (),
     (), "ValueError: 3"),
]  # fmt: skip


def _write(path: Path, *cells: tuple[str, tuple[str, ...], tuple[Any, ...]]) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")])
    for source, tags, outputs in cells:
        cell = nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=1)
        cell.metadata["tags"] = list(tags)
        notebook.cells.append(cell)
    nbformat.write(notebook, path)
    return path


def _validate(
    capfd: pytest.CaptureFixture[str], *paths: Path, cell_timeout: float
) -> tuple[Validation, list[tuple[int, str]]]:
    """The verdict, and what nbval says of which code cell."""
    done = validate(paths, cell_timeout=cell_timeout)
    # The summary says it once more where pytest cuts no line, as in CI.
    failures = capfd.readouterr().out.partition("short test summary info")[0]
    said = re.findall(r"Cell (\d+): (.+)", failures)
    return done, [(int(cell), words) for cell, words in said]


def test_a_kernel_that_dies_is_said_at_once(
    points: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = (("1", (), ()), ("2", (_IGNORE,), ()), ("3", (_SKIP,), ()))
    paths = [
        _write(points / f"{name}.ipynb", ("n = 1", (), ()), (source, tuple(tags), ()), *more)
        for name, (source, *tags) in _DEATHS.items()
    ]
    started = time.monotonic()
    done, said = _validate(capfd, *paths, cell_timeout=60)
    assert time.monotonic() - started < 50  # four kernels, and not one timeout
    assert [(one.cells, one.failed, one.died) for one in done.notebooks] == [(5, 3, 2)] * 4
    after = "not run: the kernel died in Cell 1"
    assert said == [(1, "the kernel died"), (2, after), (3, after)] * 4
    assert not done.ok


def test_cells_are_judged_as_jupyter_runs_and_shows_them(
    points: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = _write(points / "cases.ipynb", *(case[:3] for case in _CASES))
    done, said = _validate(capfd, path, cell_timeout=60)
    begins = {index: case[3] for index, case in enumerate(_CASES) if case[3]}
    assert {index: words[: len(begins.get(index, ""))] for index, words in said} == begins
    (one,) = done.notebooks
    assert (one.cells, one.failed, one.died) == (len(_CASES), len(begins), None)


def test_a_cell_that_catches_the_interrupt_of_its_timeout_fails(
    points: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    pass"
    done, said = _validate(capfd, _write(points / "one.ipynb", (source, (), ())), cell_timeout=2)
    assert said == [(0, "it timed out")]
    assert done.notebooks[0].failed == 1
