"""`expect`: holds a number to what was stated, and says so in words that never change."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from workbench.errors import NotebookError
from workbench.nb import expect


@pytest.mark.parametrize("value", [0.81, 0.76, 0.86, np.float32(0.8)])
def test_the_line_depends_on_the_statement_only(
    value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    expect("accuracy", value, stated=0.81, within=0.05)
    assert capsys.readouterr().out == "accuracy: 0.81 ± 0.05 holds\n"


def test_relative_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    expect("tokens per second", 1190, stated=1000, relative=0.2)
    assert capsys.readouterr().out == "tokens per second: 1000 ± 20 % holds\n"
    with pytest.raises(AssertionError, match="is off by 210"):
        expect("tokens per second", 790, stated=1000, relative=0.2)


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf, -math.inf])
def test_a_wrong_value_fails_and_is_named(value: float) -> None:
    with pytest.raises(AssertionError, match=r"accuracy: 0\.81 ± 0\.05 does not hold: the value"):
        expect("accuracy", value, stated=0.81, within=0.05)


@pytest.mark.parametrize("tolerance", [0.0, -0.1, math.inf, math.nan])
def test_a_tolerance_that_holds_nothing_is_refused(tolerance: float) -> None:
    with pytest.raises(NotebookError, match="finite and above 0"):
        expect("accuracy", 0.81, stated=0.81, within=tolerance)
    with pytest.raises(NotebookError, match="finite and above 0"):
        expect("accuracy", 0.81, stated=0.81, relative=tolerance)


def test_one_tolerance_is_needed() -> None:
    with pytest.raises(NotebookError, match="exactly one"):
        expect("accuracy", 0.81, stated=0.81)
    with pytest.raises(NotebookError, match="exactly one"):
        expect("accuracy", 0.81, stated=0.81, within=0.1, relative=0.1)


def test_what_is_stated_must_be_usable() -> None:
    with pytest.raises(NotebookError, match="not a finite number"):
        expect("loss", 1.0, stated=math.nan, within=0.1)
    with pytest.raises(NotebookError, match="use within="):
        expect("bias", 0.0, stated=0.0, relative=0.1)


def test_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, workbench.nb; "
        "print({'papermill', 'nbformat', 'pandas', 'typer'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
