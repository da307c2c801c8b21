"""Coverage: what counts as judged, what does not, and the assertions that assert nothing."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from tools.notebooks.assertion import can_fail
from tools.notebooks.coverage import CellCoverage, coverage
from workbench.nb.notebook import statements

if TYPE_CHECKING:
    from pathlib import Path

# Any: nbformat is typed in part.
nbformat: Any = import_module("nbformat")
_OUT = {"output_type": "stream", "name": "stdout", "text": "3\n"}


def _shown(**data: str) -> dict[str, Any]:
    mimes = {kind.replace("_", "/"): value for kind, value in data.items()}
    return {"output_type": "display_data", "data": mimes, "metadata": {}}


def _write(folder: Path, *cells: Any) -> Path:
    path = folder / "one.ipynb"
    path.write_text(json.dumps(nbformat.v4.new_notebook(cells=list(cells))))
    return path


def _measure(
    folder: Path,
    source: str,
    *outputs: dict[str, Any],
    tags: tuple[str, ...] = (),
    count: int | None = 1,
) -> CellCoverage:
    cell = nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=count)
    cell["metadata"]["tags"] = list(tags)
    (verdict,) = coverage(_write(folder, cell)).cells
    return verdict


@pytest.mark.parametrize(
    "test",
    [
        "True", "1", "'text'", "x == x", "x <= x", "x is x", "len(x) >= 0", "0 <= len(x)",
        "len(x) > -1", "abs(x) >= 0", "x or True", "True or x", "x or not x", "not False",
        "not (x and False)", "(x == 1, 'message')", "[x]", "f'value {x}'", "lambda: x",
        "bool(True)", "isinstance(x, object)", "x in [x, y]", "x == x == x", "len('abc') == 3",
        "x == x and len(y) >= 0", "1 if x else 2", "print", "any(True for _ in range(3))",
        "x ** 2 >= 0", "(y := True)", "'a' if True else x",
    ],
)  # fmt: skip
def test_an_assertion_that_cannot_fail_counts_as_nothing(test: str, tmp_path: Path) -> None:
    verdict = _measure(tmp_path, f"run()\nassert {test}")
    assert (verdict.counted, verdict.covered) == (True, False)


@pytest.mark.parametrize(
    "source",
    [
        "assert x == 3", "assert len(x) > 0", "assert abs(a - b) < 0.1, 'far'", "assert x",
        "assert all(v > 0 for v in x)", "assert x in [1, 2]", "assert not x", "assert f(x) or y",
        "expect('a', x, stated=1, within=0.1)", "nb.expect('a', value=x.y, stated=1, within=1)",
        "n = 3\nx = measure(n)\nassert x == n", "%time\nassert await f() == 1",
    ],
)  # fmt: skip
def test_an_assertion_that_can_fail_counts(source: str, tmp_path: Path) -> None:
    assert _measure(tmp_path, source).covered
    assert _measure(tmp_path, source, tags=("nbval-ignore-output",)).covered
    assert not _measure(tmp_path, source, tags=("nbval-skip",)).covered
    assert not _measure(tmp_path, source, tags=("skip-execution",)).covered
    assert not _measure(tmp_path, source, tags=("raises-exception",)).covered


@pytest.mark.parametrize(
    "source",
    [
        "x = 1\nassert x == 1", "x: int = 1\ny = x + 1\nassert y == 2", "assert x == 3\nprint(x)",
        "if x:\n    assert x == 3", "expect('a', 1.0, stated=1.0, within=1)",
        "expect('a', x, stated=x, within=1)", "expect('a', x)", "expect()", "expected(x)",
    ],
)  # fmt: skip
def test_constants_and_assertions_elsewhere_do_not_count(source: str) -> None:
    body = statements(source)
    assert body is not None
    assert not can_fail(body)


def test_text_that_nbval_compares_counts(tmp_path: Path) -> None:
    assert _measure(tmp_path, "print(3)", _OUT).covered
    assert _measure(tmp_path, "3", _shown(text_plain="3")).covered
    assert _measure(tmp_path, "svg", _shown(**{"image_svg+xml": "<svg/>"})).covered
    assert _measure(tmp_path, "%%bash\necho 3", _OUT).covered


def test_pictures_and_empty_output_do_not_count(tmp_path: Path) -> None:
    picture = _shown(image_png="aGk=", text_plain="<Figure>")
    assert not _measure(tmp_path, "draw()", picture).covered
    assert not _measure(tmp_path, "draw()", _shown(image_jpeg="aGk=")).covered
    assert not _measure(tmp_path, "print()", {**_OUT, "text": "\n"}).covered
    assert not _measure(tmp_path, "x = 3").covered
    assert _measure(tmp_path, "draw()", picture, _OUT).covered


def test_output_that_nbval_does_not_compare_does_not_count(tmp_path: Path) -> None:
    assert not _measure(tmp_path, "print(3)", _OUT, count=None).covered
    assert not _measure(tmp_path, "print(3)", _OUT, tags=("nbval-ignore-output",)).covered
    assert not _measure(tmp_path, "# NBVAL_IGNORE_OUTPUT\nprint(3)", _OUT).covered
    assert not _measure(tmp_path, "  ## NBVAL_SKIP\nprint(3)", _OUT).covered
    # nbval lets a comment win over a tag.
    checked = "# NBVAL_CHECK_OUTPUT\nprint(3)"
    assert _measure(tmp_path, checked, _OUT, tags=("nbval-ignore-output",)).covered


def test_what_is_left_out_of_the_denominator(tmp_path: Path) -> None:
    imports = "import a\nfrom b import c"
    assert not _measure(tmp_path, imports).counted
    assert not _measure(tmp_path, "# later").counted
    assert not _measure(tmp_path, "n: int = 3  # items", tags=("parameters",)).counted
    assert _measure(tmp_path, imports, _OUT).counted
    assert _measure(tmp_path, imports + "\nc()").counted


def test_the_share(tmp_path: Path) -> None:
    sources = {"import a": [], "print(3)": [_OUT], "x = 3": [], "assert x == 3": [], "": []}
    cells = [
        nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=1)
        for source, outputs in sources.items()
    ]
    measured = coverage(_write(tmp_path, *cells))
    assert (measured.covered, measured.counted) == (2, 3)
    assert measured.share == pytest.approx(2 / 3)
    assert coverage(_write(tmp_path, cells[0])).share == 0.0
