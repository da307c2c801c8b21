from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import accuracy, accuracy_by, evaluate
from workbench.stats import proportion
from workbench.tasks import Sums


def test_the_wilson_interval_is_the_published_one() -> None:
    # Wilson's formula by hand for 19 of 20 at 95 %.
    z, n, p = 1.959964, 20, 0.95
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    metric = proportion("share", 19, 20)
    assert (metric.low, metric.high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert proportion("none", 0, 20).high == pytest.approx(0.1611, abs=1e-4)
    with pytest.raises(InputError, match="nothing was counted"):
        proportion("empty", 0, 0)


def test_failures_and_unparsed_rows_are_counted_apart() -> None:
    rows = pd.DataFrame(
        {
            "kind": ["a", "a", "b", "b"],
            "correct": [True, False, True, False],
            "parsed": [True, False, True, False],
            "error": [None, None, None, "too long"],
        }
    )
    metric = accuracy(rows)
    assert (metric.value, metric.n, metric.n_failed, metric.n_unparsed) == (2 / 3, 3, 1, 1)
    nothing = accuracy(rows[3:])
    assert (nothing.n, nothing.n_failed, nothing.low, nothing.high) == (0, 1, 0.0, 1.0)
    assert nothing.value != nothing.value  # not a number, not a 0
    assert [(m.name, m.n) for m in accuracy_by(rows, "kind")] == [("a", 2), ("b", 1)]


def test_a_report_is_saved_whole(kept: VLLMEngine, tmp_path: Path) -> None:
    report = evaluate(Sums(), kept, count=40, style="chat")
    assert report.summary[0].value > 0.5
    folder = report.save(tmp_path / "runs" / "one")
    assert len(pd.read_parquet(folder / "rows.parquet")) == 40
    saved = json.loads((folder / "summary.json").read_text())
    assert saved["summary"][0]["n"] == 40
    assert saved["provenance"]["engine"]["model"] == "workbench-tiny"
    assert not list(folder.parent.glob("*.part"))
    with pytest.raises(InputError, match="exists already"):
        report.save(folder)
