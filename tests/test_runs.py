"""What a run writes: metrics that add up and keep what is not finite, tables and figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from workbench.errors import InputError
from workbench.runs import save_metrics, save_table
from workbench.types import Metric


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(tmp_path))
    return tmp_path


def _metrics(folder: Path) -> Any:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    return json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)


def test_metrics_add_up_and_the_same_name_replaces(run: Path) -> None:
    save_metrics(a=1, b=2.5)
    save_metrics(b=3, c=4)
    assert _metrics(run) == {"a": 1, "b": 3, "c": 4}
    assert [*_metrics(run)] == ["a", "b", "c"]
    assert [path.name for path in run.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "[" * 100_000])
def test_a_broken_file_is_replaced(run: Path, text: str) -> None:
    (run / "metrics.json").write_text(text)
    save_metrics(a=1)
    assert _metrics(run) == {"a": 1}


def test_what_is_not_finite_is_a_text(run: Path) -> None:
    (run / "metrics.json").write_text('{"old": NaN, "large": 1e999, "x": 0.1}')  # another's
    metric = Metric("m", np.nan, -np.inf, np.inf, cast("int", np.int64(3)))
    unknown = Metric("m", 0.5, cast("float", None), cast("float", None), 3)
    save_metrics(a=float("nan"), b=cast("float", np.float32("inf")), c=-np.inf, m=metric, u=unknown)
    rest = {"n_failed": 0, "n_unparsed": 0}
    assert _metrics(run) == {
        "old": "nan", "large": "inf", "x": 0.1, "a": "nan", "b": "inf", "c": "-inf",
        "m": {"value": "nan", "low": "-inf", "high": "inf", "n": 3, **rest},
        "u": {"value": 0.5, "low": None, "high": None, "n": 3, **rest},
    }  # fmt: skip


def test_integers_stay_integers(run: Path) -> None:
    save_metrics(a=3, b=cast("float", np.int64(3)), c=2**60 + 1, d=3.0, e=np.float64(3), f=True)
    text = (run / "metrics.json").read_text()
    assert text.split() == [
        *("{", '"a":', "3,", '"b":', "3,", '"c":', "1152921504606846977,"),
        *('"d":', "3.0,", '"e":', "3.0,", '"f":', "1", "}"),
    ]


@pytest.mark.parametrize("value", [None, "many", [1, 2], 10**400, 1j])
def test_what_is_no_number_is_refused_and_nothing_written(run: Path, value: Any) -> None:
    save_metrics(a=1)
    with pytest.raises(InputError, match=r"wrong=.* is not a metric: pass a number or Metric"):
        save_metrics(a=2, wrong=value)
    with pytest.raises(InputError, match=r"m\.value='x' is not a metric"):
        save_metrics(m=Metric("m", cast("float", "x"), 0, 1, 1))
    with pytest.raises(InputError, match="no metrics: pass at least one"):
        save_metrics()
    assert _metrics(run) == {"a": 1}


def test_without_a_run_each_process_starts_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORKBENCH_RUN_DIR", raising=False)
    code = "from workbench.runs import save_metrics\nsave_metrics(a=1)\nsave_metrics(b=2)"
    for text in (code, code.replace("a=1", "c=3")):
        (tmp_path / "pyproject.toml").touch()
        subprocess.run([sys.executable, "-c", text], cwd=tmp_path, check=True)
    assert _metrics(tmp_path / "runs") == {"c": 3, "b": 2}


def test_a_table_of_the_same_name_replaces(run: Path) -> None:
    for value in (1, 2):
        path = save_table(pd.DataFrame({"x": [value]}), "one")
    assert path.read_text() == "x\n2\n"
