"""A saved report again: equal in a fresh process, and whatever differs has its name and size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import icm, open_engine
from workbench.agents import AgentCase, Ask, BestOfN, MajorityVote, Program, Score, named
from workbench.cli import app
from workbench.differences import differences
from workbench.engines.base import BaseEngine
from workbench.engines.identity import repeatable
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.reproduction import Reproduction, reproduce
from workbench.stats import proportion
from workbench.tasks import WordProblems, open_choices
from workbench.tiny import MODEL
from workbench.types import Report, Usage
from workbench.uncertainty import elicit, sample_uncertainty

COMMANDS = {
    "eval": [
        "eval",
        "--task",
        "mine.jsonl",
        "--agent",
        "majority_vote",
        "--num-runs",
        "2",
        "--max-tokens",
        "6",
    ],
    "uncertainty": ["uncertainty", "run", "--sample-size", "12", "--demonstrations", "2"],
    "icm": ["icm", "--testbed", "claims.csv", "--column", "text=statement", "--k", "20"],
}
SUMS = [{"question": f"{n}+{n + 1}=", "answer": 2 * n + 1} for n in range(11, 17)]


@pytest.fixture(scope="module")
def opened() -> Iterator[BaseEngine]:
    with open_engine(engine="transformers", store=None) as engine:
        yield engine


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    claims = [f"{n}+{n}={2 * n + wrong}" for n in range(11, 17) for wrong in (0, 1)]
    Path("claims.csv").write_text("\n".join(["statement", *claims]) + "\n")
    return tmp_path


def edited(folder: Path, **changes: Any) -> Path:
    """The report with parts of its provenance replaced; None removes one."""
    path = folder / "summary.json"
    saved = json.loads(path.read_text())
    kept = saved["provenance"] | changes
    saved["provenance"] = {name: value for name, value in kept.items() if value is not None}
    path.write_text(json.dumps(saved))
    return folder


def names(part: pd.DataFrame) -> set[str]:
    return {*part["what"]}


@pytest.mark.parametrize("kind", COMMANDS)
def test_it_is_the_same_in_a_fresh_process(here: Path, kind: str) -> None:
    command = [*COMMANDS[kind], "--engine", "transformers", "--store", "none", "--out", "run"]
    done = CliRunner().invoke(app, command)
    assert (here / "run" / "summary.json").exists(), done.output
    count = len(pd.read_parquet("run/rows.parquet"))
    fresh = [sys.executable, "-m", "workbench", "reproduce", "run", "--json", "--out", "again"]
    again = subprocess.run(fresh, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    said = json.loads(again.stdout)
    assert (said["status"], said["cannot"]) == (0, "")
    assert (said["results"], said["provenance"]) == ([], [])
    same = said["summary"][0]
    assert (same["value"], same["n"]) == (1.0, count)
    values = pd.read_parquet("again/rows.parquet")
    assert values["same"].all()
    compared = {"eval": "correct", "uncertainty": "A", "icm": "logprob_true"}[kind]
    assert (values["what"] == compared).sum() == count
    # A report of a reproduction is none that can be repeated.
    assert CliRunner().invoke(app, ["reproduce", "again"]).exit_code == 2


def test_the_scores_of_an_agents_calls_are_compared(here: Path, opened: BaseEngine) -> None:
    report = evaluate("mine.jsonl", opened, BestOfN(samples=3, temperature=0.9), max_tokens=8)
    done = reproduce(report, engine=opened)
    scored = done.rows["what"].str.match("round 2 call . sample 0 text")
    assert (done.status, int(scored.sum()) >= len(SUMS)) == (0, True)
    assert done.rows["difference"][scored].notna().all()
    assert "6 of 6 rows are the same" in repr(done)
    assert done.summary[2].value == 0


def test_vllm_repeats_samples_of_several_runs(plain: VLLMEngine) -> None:
    report = evaluate("sums", plain, MajorityVote(samples=3, temperature=0.7), count=4, num_runs=2)
    done = report.reproduce()
    assert isinstance(done, Reproduction)
    assert done.status == 0
    assert done.usage.from_store == 0
    assert done.usage.requests == 24


def test_samples_with_their_meanings(opened: BaseEngine) -> None:
    report = sample_uncertainty(WordProblems([1]), opened, 4, samples=3)
    assert report.provenance["source"]["arguments"] == {"steps": (1,)}
    done = reproduce(report, engine=opened)
    assert done.status == 0
    assert {"entropy_weighted", "p_true", "text"} <= names(done.rows)


def test_a_study_and_a_search(tmp_path: Path, opened: BaseEngine) -> None:
    bed = icm.open_testbed("embedded", count=16, test_count=8)
    methods = ("ICM", "random labels")
    study = icm.study(bed, opened, count=8, methods=methods, n_iterations=20, n_seeds=4)
    folder = study.save(tmp_path / "study")
    for run in (study, folder, folder / "search-0"):
        done = reproduce(run, engine=opened)
        assert (done.status, done.cannot) == (0, "")
        assert done.summary[0].n == (8 if str(run).endswith("0") else 16)
    (folder / "claims.parquet").unlink()
    assert "claims.parquet" in reproduce(folder, engine=opened).cannot


def test_another_number_format_is_named_with_its_size(tmp_path: Path, opened: BaseEngine) -> None:
    folder = elicit([open_choices("options")], [opened], ["base"], count=8).save(tmp_path / "run")
    done = reproduce(folder, dtype="bfloat16")
    row = done.differing(provenance=True).set_index("what").loc["engines.0.dtype"]
    assert (row["then"], row["now"]) == ("float32", "bfloat16")
    apart = done.differing().set_index("what")["difference"]
    assert {"A", "F"} <= {*apart.index}
    assert 1e-4 < apart.loc["A"].max() < 1
    assert done.status == 1
    assert "0 of 8 rows are the same" in done.verdict()
    # The report's format is used even where "auto" is another one.
    theirs = edited(folder, engines=[opened_as(folder) | {"dtype": "bfloat16"}])
    again = reproduce(theirs)
    assert names(again.differing(provenance=True)) == set()
    assert again.summary[1].value == done.summary[1].value


def opened_as(folder: Path) -> dict[str, Any]:
    saved = json.loads((folder / "summary.json").read_text())["provenance"]
    info: dict[str, Any] = saved["engines"][0] if "engines" in saved else saved["engine"]
    return info


def test_a_file_that_changed_moved_or_went(here: Path, opened: BaseEngine) -> None:
    folder = evaluate("mine.jsonl", opened).save(here / "run")
    rows = [SUMS[0] | {"question": "1+1=", "answer": 2}, *SUMS[1:]]
    shutil.copy("mine.jsonl", "moved.jsonl")
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = reproduce(folder, engine=opened)
    assert names(done.differing(provenance=True)) == {"source.files.mine.jsonl", "items"}
    assert {*done.differing()["id"]} - {"summary"} == {"row 0"}
    assert {"question", "answer", "round 1 call 0 sample 0 prompt"} <= names(done.differing())
    assert (done.status, done.summary[0].n) == (1, 6)
    Path("mine.jsonl").unlink()
    assert "mine.jsonl" in reproduce(folder, engine=opened).cannot
    moved = reproduce(folder, engine=opened, task="moved.jsonl")
    assert moved.status == 0
    assert "source.name" in names(moved.differing(provenance=True))


def test_claims_are_the_reports_where_their_file_changed(here: Path, opened: BaseEngine) -> None:
    bed = icm.open_testbed("claims.csv", columns=["text=statement"])
    found = icm.label_all(bed, opened, batch_size=6, n_iterations=20, n_seeds=2)
    Path("claims.csv").write_text("statement\n1+1=2\n")
    done = reproduce(found, engine=opened)
    assert (done.status, done.summary[0].n) == (0, 12)
    assert names(done.differing(provenance=True)) == {"source.files.claims.csv"}
    assert "claims.csv" in done.notes[0]


def test_a_model_that_changed_or_went(tmp_path: Path) -> None:
    model = shutil.copytree(MODEL, tmp_path / "model")
    with open_engine(str(model), "transformers", store=None, batch_size=2) as engine:
        folder = evaluate("sums", engine, count=4).save(tmp_path / "run")
    assert opened_as(folder)["options"] == {"batch_size": 2}
    (model / "more.txt").write_text("another")
    done = reproduce(folder)
    assert names(done.differing(provenance=True)) == {"engine.revision"}
    assert done.status == 0
    model.rename(tmp_path / "elsewhere")
    result = CliRunner().invoke(app, ["reproduce", str(folder)])
    assert result.exit_code == 2
    assert "does not exist" in result.output
    there = ["--model", str(tmp_path / "elsewhere"), "--tolerance", "0.001"]
    result = CliRunner().invoke(app, ["reproduce", str(folder), *there])
    assert result.exit_code == 0
    assert "engine.model" in result.output


def test_the_command_prints_what_differs(tmp_path: Path, opened: BaseEngine) -> None:
    folder = evaluate("sums", opened, count=4).save(tmp_path / "suite" / "one")
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.loc[2, "text"] = "something\nelse"
    rows.to_parquet(folder / "rows.parquet", index=False)
    done = CliRunner().invoke(app, ["reproduce", str(folder)])
    assert done.exit_code == 1
    assert "3 of 4 rows are the same; these differ: text" in done.output
    assert "something else" in done.output
    several = CliRunner().invoke(app, ["reproduce", str(folder.parent)])
    assert several.exit_code == 2
    assert str(folder) in several.output


def twice(case: AgentCase) -> Program:
    answer = yield Ask(case.prompt)
    return str(answer.text)


def test_custom_code_must_be_given(opened: BaseEngine) -> None:
    report = evaluate(SUMS, opened, twice, count=2)
    assert "pass it as task=" in reproduce(report, engine=opened).cannot
    assert "pass it as agent=" in reproduce(report, engine=opened, task=SUMS).cannot
    assert reproduce(report, engine=opened, task=SUMS, agent=twice).status == 0

    def verify(case: AgentCase, text: str) -> Score:
        return Score(f"{case.prompt}{text}", (" Yes", " No"))

    assert named(BestOfN(verify=verify)).endswith("with a custom verify")
    twice.__name__ = "standard"
    assert named(twice) == "custom standard"
    twice.__name__ = "twice"


def test_earlier_versions_say_less(tmp_path: Path, opened: BaseEngine) -> None:
    folder = evaluate("sums", opened, "majority_vote", count=3).save(tmp_path / "run")
    old = {n: v for n, v in opened_as(folder).items() if n != "options"}
    done = reproduce(edited(folder, source=None, engine=old))
    assert done.status == 0
    assert "task's source" in done.notes[0]
    assert "engine's options" in done.notes[1]
    seedless = reproduce(edited(folder, seed=None), engine=opened)
    assert "sampled without a seed" in seedless.notes[-1]
    assert "the report lacks 'sampling'" not in seedless.cannot
    assert "'num_runs'" in reproduce(edited(folder, num_runs=None), engine=opened).cannot
    with pytest.raises(InputError, match="no experiment"):
        reproduce(edited(folder, agent=None))
    with open_engine(engine="transformers", store=tmp_path / "s.sqlite") as engine:
        with pytest.raises(InputError, match="has a store"):
            reproduce(folder, engine=engine)


def test_options_are_kept_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    found = repeatable(
        {
            "base_url": ["https://me:secret@host/v1"],
            "hf_token": "secret",
            "chat_template": str(tmp_path / "template.jinja"),
            "headers": {"api-key": "AZURE_KEY"},
            "max_model_len": None,
        }
    )
    assert "secret" not in json.dumps(found)
    assert found["base_url"] == ["https://host/v1"]
    assert found["headers"] == {"api-key": "AZURE_KEY"}
    assert len(found["chat_template.sha256"]) == 64
    assert "max_model_len" not in found


def test_numbers_texts_and_rows_are_compared() -> None:
    def report(rows: list[dict[str, Any]]) -> Report:
        return Report((proportion("share", 1, 2),), pd.DataFrame(rows), Usage(), {"seed": 0})

    nan = float("nan")
    then = report([{"id": "a", "p": 1.0, "q": nan, "t": "x"}, {"id": "b", "p": 0.0, "t": None}])
    now = report([{"id": "a", "p": 1.5, "q": nan, "t": "x"}, {"id": "c", "p": 0.0, "t": None}])
    found = differences(then, now, ["id"], 0.1)
    wrong = found[~found["same"]].set_index(["id", "what"])
    assert [*wrong.index] == [("a", "p"), ("b", "row"), ("c", "row")]
    assert wrong.loc[("a", "p"), "difference"] == 0.5
    assert wrong.loc[("b", "row"), "now"] == "(none)"
    assert differences(then, now, ["id"], 0.5)["same"].sum() == len(found) - 2
    assert differences(then, then, ["id"], 0)["same"].all()
