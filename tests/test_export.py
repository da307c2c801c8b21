"""Reports in the formats of others, each read back by the library that owns it."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import Evaluation, evaluate
from workbench.export import summary_table
from workbench.report import render
from workbench.stats import Metric, Share, ShareDifference
from workbench.types import Report, Usage

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "@SUM(1)", "-2+3", "\t=1", "#N/A"]
TEXTS = [*FORMULAS, "-5", "+3.5", "1,000", "a\x00b\nc", "ü | & % $ # _ { } ~ ^ \\", ""]
SECRET = "sk-abcdefgh12345678"


def report(**changes: Any) -> Evaluation:
    """Rows with every kind of value, an unknown number, and a key where none should be."""
    count = len(TEXTS)
    rows = pd.DataFrame({
        "id": [f"item-{i}" for i in range(count)], "run": 0, "question": TEXTS,
        "answer": ["2"] * count, "text": TEXTS, "extracted": [None, *TEXTS[1:]],
        "correct": [i % 2 == 0 for i in range(count)], "parsed": [i > 0 for i in range(count)],
        "error": [None] * (count - 1) + ["the server answered 503"],
        "list": [[1, 2]] * count, "array": [np.array([1.5])] * count,
        "number": [math.nan, math.inf, *range(count - 2)], "prompt_tokens": 7,
        "completion_tokens": 3,
    })  # fmt: skip
    trace = rows[["id", "run", "text", "error", "prompt_tokens", "completion_tokens"]].assign(
        round=1, call=0, sample=0, kind="ask", prompt=[f"Q{i}: " for i in range(count)],
        finish_reason="stop", from_store=False,
    )  # fmt: skip
    facts: dict[str, Any] = {
        "summary": (
            Share("accuracy", 0.85, 0.64, 0.948, 20, 1, 2),
            ShareDifference("gain_over_50%", -0.1, -0.218, 0.032, 20),
            Metric("speed", math.nan, 0.0, 1.0, 0),
        ),
        "rows": rows,
        "usage": Usage(requests=count, prompt_tokens=70, completion_tokens=30),
        "provenance": {
            "task": "sums", "count": count, "num_runs": 1, "agent": "standard", "prompt": None,
            "engine": {"model": "tiny", "engine": "vllm", "versions": {"vllm": "0.32.0"}},
            "options": {"api_key": "hush", "url": f"https://me:pass@example.org?key={SECRET}"},
            "cost": {"spent": 0.00123, "price_in": 1.0, "price_out": 2.0},
        },
        "trace": trace,
    }  # fmt: skip
    return Evaluation(**facts | changes)


def test_one_summary_as_markdown_and_latex() -> None:
    text = report().summary_table()
    assert text.splitlines() == [
        "|  | value | 95 % interval | n | failed | unparsed |",
        "|---|---:|---:|---:|---:|---:|",
        "| accuracy | 85.0 % | 64.0 to 94.8 | 20 | 1 | 2 |",
        "| gain_over_50% | -10.0 points | -21.8 to +3.2 | 20 | 0 | 0 |",
        "| speed | unknown |  | 0 | 0 | 0 |",
        "| cost | 0.00123 |  |  |  |  |",
    ]
    latex = report().summary_table("latex")
    assert r"  accuracy & 85.0 \% & 64.0 to 94.8 & 20 & 1 & 2 \\" in latex
    assert r"gain\_over\_50\% & $-$10.0 points & $-$21.8 to +3.2" in latex
    assert "nan" not in (text + latex).lower()
    with pytest.raises(InputError, match="markdown"):
        report().summary_table("word")


def test_several_summaries_side_by_side() -> None:
    small = report(summary=(Share("accuracy", 0.5, 0.3, 0.7, 10),), provenance={"task": "sums"})
    text = summary_table({"a|b": report(), "c": small})
    first = r"| a\|b | 85.0 % (64.0 to 94.8) | -10.0 points (-21.8 to +3.2) | unknown | 20 | 1 |"
    assert text.splitlines() == [
        "|  | accuracy | gain_over_50% | speed | n | failed | cost |",
        "|---|---:|---:|---:|---:|---:|---:|",
        f"{first} 0.00123 |",
        "| c | 50.0 % (30.0 to 70.0) |  |  | 10 | 0 |  |",
    ]
    plain = report(provenance={})
    assert "cost" not in summary_table({"a": plain, "b": plain})


def test_latex_escapes_what_is_special() -> None:
    one = report(summary=(Share(r"&%$#_{}~^\<|>", 0.5, 0.3, 0.7, 10),))
    line = one.summary_table("latex").splitlines()[4]
    assert line.startswith(
        r"  \&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}"
        r"\textbar{}\textgreater{} &"
    )


def test_csv_has_no_formulas_and_exact_numbers(tmp_path: Path) -> None:
    report().export(tmp_path / "rows.csv")
    cells = [*csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text(), newline=""))]
    texts = [row["text"] for row in cells]
    assert texts == [
        *(f"'{text}" for text in FORMULAS[:5]), "#N/A", "-5", "+3.5", "1,000", *TEXTS[9:],
    ]  # fmt: skip
    assert [row["list"] for row in cells] == ["[1, 2]"] * len(TEXTS)
    assert [cells[0]["number"], cells[0]["extracted"], cells[0]["error"]] == ["", "", ""]


def test_a_workbook_has_texts_where_formulas_might_be(tmp_path: Path) -> None:
    openpyxl: Any = import_module("openpyxl")
    report().export(tmp_path / "report.xlsx")
    book = openpyxl.load_workbook(tmp_path / "report.xlsx")
    assert book.sheetnames == ["summary", "rows", "provenance"]
    header, *rows = book["rows"].iter_rows()
    place = [cell.value for cell in header].index("text")
    cells = [row[place] for row in rows]
    assert [cell.value for cell in cells[:6]] == FORMULAS
    assert {cell.data_type for cell in cells[:10]} == {"s"}
    assert [cell.quotePrefix for cell in cells[:6]] == [True] * 5 + [False]
    assert cells[9].value == "a\ufffdb\nc"
    number = [cell.value for cell in header].index("number")
    assert [row[number].value for row in rows[:3]] == [None, "inf", 0]
    assert book["summary"]["B2"].value == "85.0 %"
    assert SECRET not in str([[cell.value for cell in row] for row in book["provenance"]])


def test_a_cell_of_a_workbook_is_cut_with_a_mark(tmp_path: Path) -> None:
    openpyxl: Any = import_module("openpyxl")
    rows = pd.DataFrame({"text": ["x" * 40_000]})
    Report((), rows, Usage(), {}).export(tmp_path / "long.xlsx")
    cell = openpyxl.load_workbook(tmp_path / "long.xlsx")["rows"]["A2"].value
    assert (len(cell), cell[-2:]) == (32_767, " …")


def test_rows_of_other_files_are_exact(tmp_path: Path) -> None:
    one = report()
    read = pd.read_parquet(one.export(tmp_path / "rows.parquet"))
    assert read["text"].tolist() == TEXTS
    lines = one.export(tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == TEXTS
    assert one.export(tmp_path / "summary.md").read_text() == one.summary_table()
    assert one.export(tmp_path / "summary.tex").read_text() == one.summary_table("latex")


def test_a_wrong_place_or_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.csv"):
        report().export(tmp_path / "rows.doc")
    with pytest.raises(InputError, match="not a folder"):
        report().export(tmp_path / "none" / "rows.csv")
    speeds = Report((), pd.DataFrame({"speed": [1.0]}), Usage(), {})
    with pytest.raises(InputError, match="this report has none"):
        speeds.export(tmp_path / "speeds.eval")
    assert [*tmp_path.iterdir()] == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openpyxl", "inspect_ai.log", "datasets", "wandb", "mlflow", "mlflow.entities"):
        monkeypatch.setitem(sys.modules, name, None)
    for wanted, extra in (("report.xlsx", "excel"), ("log.eval", "inspect")):
        with pytest.raises(InputError, match=rf"workbench-lm\[{extra}\]"):
            report().export(tmp_path / wanted)
    with pytest.raises(InputError, match=r"\[hf\]"):
        report().to_hf()
    for tracker in ("wandb", "mlflow"):
        with pytest.raises(InputError, match=rf"\[{tracker}\]"):
            report().log(tracker)


def test_a_data_set_has_the_rows() -> None:
    pytest.importorskip("datasets")
    made = report().to_hf()
    assert made["text"] == TEXTS
    assert made.num_rows == len(TEXTS)
    assert made["extracted"][0] is None


def test_a_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    monkeypatch.chdir(tmp_path)  # artifacts lie beside it
    run = mlflow.MlflowClient().get_run(report().log("mlflow", project="mine", name="first"))
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert run.data.metrics["accuracy"] == 0.85
    assert run.data.metrics["accuracy.low"] == 0.64
    assert run.data.metrics["gain_over_50_.high"] == 0.032
    assert "speed" not in run.data.metrics  # it is unknown
    assert run.data.metrics["cost"] == 0.00123
    assert run.data.params["engine.model"] == "tiny"
    assert run.data.params["options.api_key"] == "…"
    assert SECRET not in str(run.data.params)
    paths = {one.path for one in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert paths == {"rows.parquet", "trace.parquet", "summary.md"}


def test_a_run_of_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = report().log("wandb", project="mine", name="first")
    (folder,) = tmp_path.glob(f"wandb/offline-run-*-{run}")
    logged = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"accuracy.low" in logged
    assert b"rows.table.json" in logged
    assert SECRET.encode() not in logged
    assert b"hush" not in logged
    (table,) = folder.rglob("*.table.json")
    made = json.loads(table.read_text())
    place = made["columns"].index("text")
    assert [row[place] for row in made["data"]] == TEXTS


def test_the_command_exports_saved_reports(tmp_path: Path) -> None:
    for name in ("four", "none"):
        report().save(tmp_path / name)

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["export", *words])
        assert done.exit_code == 0, done.output
        return done.output

    four, none = (str(tmp_path / name) for name in ("four", "none"))
    assert run(four, "--to", "md") == report().summary_table()
    assert "four & 85.0" in run(four, none, "--to", "tex")
    assert run(four, none, "--to", "csv").split() == [f"{four}/rows.csv", f"{none}/rows.csv"]
    assert (tmp_path / "none" / "rows.csv").is_file()
    out = str(tmp_path / "both.xlsx")
    assert run(four, none, "--to", "xlsx", "--out", out).strip() == out
    book: Any = import_module("openpyxl").load_workbook(out)
    assert book.sheetnames == ["summary", "rows 1", "provenance 1", "rows 2", "provenance 2"]
    for words, message in (
        ([four, "--to", "word"], "csv"),
        ([four, "--to", "csv", "--out", "x.md"], "rows.csv"),
        ([four, none, "--to", "csv", "--out", "x.csv"], "leave --out out"),
        ([four, four, "--to", "md"], "given twice"),
        ([four, "--to", "wandb", "--out", "x"], "no file"),
    ):
        refused = CliRunner().invoke(app, ["export", *words])
        assert (refused.exit_code, message in refused.output) == (2, True), refused.output


def test_your_table_of_prices_is_used_and_the_cost_stated(
    plain: VLLMEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "prices.yaml"
    monkeypatch.setenv("WORKBENCH_PRICES", str(table))
    table.write_text("workbench-tiny: {in: 100, out: 200}\nother: {in: 1, out: 2}\n")
    priced = evaluate("word_problems", plain, count=3)
    used = priced.usage
    expected = (100 * used.prompt_tokens + 200 * used.completion_tokens) / 1e6
    assert used.completion_tokens > 0
    assert priced.provenance["cost"]["spent"] == pytest.approx(expected)
    assert f"a cost of {expected:.4g}" in repr(priced)
    assert f"| cost | {expected:.4g} |" in priced.summary_table()
    page = render(priced.save(tmp_path / "priced")).read_text()
    assert "cost.spent" in page
    own = evaluate("word_problems", plain, count=3, price_in=0, price_out=0)
    assert own.provenance["cost"]["spent"] == 0
    table.write_text("other: {in: 1, out: 2}\n")
    assert "cost" not in evaluate("word_problems", plain, count=3).provenance
    for wrong in ("workbench-tiny: {in: 1}", "workbench-tiny: 3", "[1, 2]", "{", "a: [\n"):
        table.write_text(wrong)
        with pytest.raises(InputError, match=r"^WORKBENCH_PRICES, .*per million tokens$"):
            evaluate("word_problems", plain, count=3)
    table.write_text("workbench-tiny: {in: -1, out: 2}")
    with pytest.raises(InputError, match="price_in"):
        evaluate("word_problems", plain, count=3)
    table.unlink()
    with pytest.raises(InputError, match="No such file"):
        evaluate("word_problems", plain, count=3)
