"""The command line on the real engine."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stranger import Asked, Said, Stranger, listing
from stranger import plain as plain_reply
from typer.testing import CliRunner

from workbench.batch import generate_file
from workbench.cli import app
from workbench.cli.evaluate import _batch
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.types import Sampling

run = CliRunner().invoke


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_info() -> None:
    done = run(app, ["info", "--json"])
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert set(facts) == {"versions", "devices", "engines"}
    assert facts["versions"]["workbench"]
    assert "cores" in run(app, ["info"]).stdout


def test_generate_goes_on_where_it_stopped(plain: VLLMEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": f"{i}+1=", "id": i} for i in range(9)])
    out = tmp_path / "new" / "out.jsonl"
    command = ["generate", str(source), str(out), "--max-tokens", "4", "--store", "none"]
    first = run(app, [*command, "--json"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["rows"] == 9
    rows = {row["row"]: row for row in read(out)}
    assert [rows[i]["id"] for i in range(9)] == list(range(9))
    assert all(row["completion"] for row in rows.values())

    # Killed in mid-write: two rows missing, the last line torn.
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:7]) + lines[7][:11])
    second = run(app, [*command, "--json"])
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout)["already_there"] == 7
    assert json.loads(second.stdout)["usage"]["requests"] == 2
    assert {row["row"]: row for row in read(out)} == rows
    assert "9 were there" in run(app, command).stdout


def test_an_output_of_another_sampling_is_refused(plain: VLLMEngine, tmp_path: Path) -> None:
    prompts = [
        {"prompt": "1+1=\u2028\u0085"},
        {"prompt": "é=="},
    ]  # line ends elsewhere, not in JSONL
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(json.dumps(p, ensure_ascii=False) for p in prompts) + "\n")
    for there in (0, 2):
        result = generate_file(source, out, Sampling(max_tokens=3), store=None)
        assert (result.rows, result.already_there) == (2, there)
    out.write_bytes(out.read_bytes()[:-40] + b"\xc3")  # a kill in the middle of a character
    assert generate_file(source, out, Sampling(max_tokens=3), store=None).already_there == 1
    with pytest.raises(InputError, match="another model, sampling"):
        generate_file(source, out, Sampling(max_tokens=4), store=None)


def test_a_failed_row_keeps_its_reason_and_is_tried_again(
    plain: VLLMEngine, tmp_path: Path
) -> None:
    rows = [{"prompt": "1+1="}, {"prompt": "1+1=" * 700}]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    for there in (0, 1):
        done = run(app, ["generate", str(source), str(out), "--max-tokens", "2", "--json"])
        assert done.exit_code == 1
        assert json.loads(done.stdout)["already_there"] == there
        assert json.loads(done.stdout)["failed"] == 1
        failed = [row for row in read(out) if row["error"]]
        assert len(failed) == 1
        assert failed[0]["completion"] is None
        assert "2048" in failed[0]["error"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no rows"),
        ("{", r"in.jsonl:1: Expecting property name"),
        ("[1]", r"in.jsonl:1: \[1\] must be an object"),
        ('{"text": "a"}', r'jsonl:1: it needs either "prompt" or "messages" .*\(text\)'),
        ('{"prompt": ""}', "in.jsonl:1: prompt is empty"),
        ('{"prompt": 5}', "in.jsonl:1: prompt is 5: must be"),
        ('{"messages": []}', r"in.jsonl:1: messages is \[\]: must be"),
        ('{"messages": [{"role": "usr", "content": "a"}]}', "in.jsonl:1: messages=.*'usr'.*user"),
    ],
)
def test_broken_input_is_named(tmp_path: Path, text: str, match: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    with pytest.raises(InputError, match=match):
        generate_file(source, tmp_path / "out.jsonl", Sampling(), engine="none such")


def named(name: str, said: Callable[[Asked], Said | None] = lambda _: None) -> Stranger:
    """A server of a model of that name."""
    cards = Said(listing(id=name))
    return Stranger(lambda a: cards if a.path.endswith("/models") else said(a))


def test_generate_never_mixes_models_styles_or_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "in.jsonl", [{"prompt": "a"}, {"prompt": "b"}]), tmp_path / "o"
    command = ["generate", str(source), str(out), "--engine", "remote", "--store", "none"]

    def chats_alone(asked: Asked) -> Said | None:
        return Said(status=404) if asked.path.endswith("/v1/completions") else None

    with named("one") as server, named("one") as twin:
        monkeypatch.setenv("WORKBENCH_BASE_URL", server.url)
        assert run(app, command).exit_code == 0
        assert {row["made_by"]["model"] for row in read(out)} == {"one"}
        assert {row["made_by"]["style"] for row in read(out)} == {"completion"}
        write(out, read(out)[:1])
        before, say = out.read_bytes(), server.say
        for other, message in (
            (named("two").say, "another model ('one', here 'two')"),
            (named("one", chats_alone).say, "another style ('completion', here 'chat')"),
        ):
            server.say = other
            done = run(app, command)
            assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
        server.say = say
        monkeypatch.setenv("WORKBENCH_BASE_URL", twin.url)
        assert "another model" in run(app, command).stderr
        assert out.read_bytes() == before
        monkeypatch.setenv("WORKBENCH_BASE_URL", server.url)
        quicker = ["-o", "max_concurrency=3", "-o", "timeout=9", "-o", "requests_per_minute=900"]
        done = run(app, [*command, *quicker])
        assert (done.exit_code, "1 were there" in done.stdout) == (0, True), done.stderr
        asked = len(server.asked)
        assert "2 were there" in run(app, command).stdout
        assert len(server.asked) == asked  # nothing is left to ask


def test_generate_keeps_columns_that_are_named_as_its_own(tmp_path: Path) -> None:
    source, first, second = (tmp_path / name for name in ("in.jsonl", "1.jsonl", "2.jsonl"))
    write(source, [{"prompt": "a", "input": "mine", "row": "x"}, {"prompt": "b"}])
    with Stranger() as server:
        options = ["--base-url", server.url, "--store", "none"]
        assert run(app, ["generate", str(source), str(first), *options]).exit_code == 0
        rows = sorted(read(first), key=lambda row: row["row"])
        assert [row["input"] for row in rows] == [{"input": "mine", "row": "x"}, {}]
        command = ["generate", str(first), str(second), *options, "--prompt", "{completion} again"]
        assert run(app, command).exit_code == 0
        assert {row["completion"] for row in read(second)} == {
            "aa againaa again",
            "bb againbb again",
        }
        assert {row["input"]["completion"] for row in read(second)} == {"aa", "bb"}
        write(second, read(second)[:1])
        assert "1 were there" in run(app, command).stdout
        assert "2 were there" in run(app, command).stdout
        write(first, [row | {"completion": "c"} for row in read(first)])
        assert "another prompt" in run(app, command).stderr


def test_generate_brings_columns_that_were_edited_up_to_date(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", [{"prompt": "a", "id": 1}]), tmp_path / "out.jsonl"
    with Stranger() as server:
        command = ["generate", str(source), str(out), "--base-url", server.url, "--store", "none"]
        assert run(app, command).exit_code == 0
        write(source, [{"prompt": "a", "group": "x"}])
        assert "1 were there" in run(app, command).stdout
        write(source, [{"prompt": "a", "group": "y"}, {"prompt": "b", "group": "z"}])
        assert "1 were there" in run(app, command).stdout
    assert [(row["group"], row["completion"], "id" in row) for row in read(out)] == [
        ("y", "aa", False), ("z", "bb", False)
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_generate_refuses_an_empty_cell(tmp_path: Path, ending: str) -> None:
    source = tmp_path / f"in.{ending}"
    source.write_text("a,b\n1,2\n,3\n".replace(",", "," if ending == "csv" else "\t"))
    done = run(app, ["generate", str(source), str(tmp_path / "out.jsonl"), "--prompt", "T {a}"])
    assert (done.exit_code, f"in.{ending}:3: prompt: 'a' is missing" in done.stderr) == (2, True)


def test_generate_refuses_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    for out in (tmp_path, source / "out.jsonl", Path("/proc/out.jsonl")):
        with pytest.raises(InputError, match=r"cannot be written \(.*choose another"):
            generate_file(source, out, Sampling(), engine="none such")


def test_an_output_of_other_prompts_is_refused(plain: VLLMEngine, tmp_path: Path) -> None:
    out = write(tmp_path / "out.jsonl", [{"row": 0, "prompt": "other", "error": None}])
    source = write(tmp_path / "in.jsonl", [{"prompt": "1+1="}])
    before = out.read_bytes()
    with pytest.raises(InputError, match="another prompt"):
        generate_file(source, out, Sampling())
    assert out.read_bytes() == before


def test_generate_reads_tables_and_fills_templates(plain: VLLMEngine, tmp_path: Path) -> None:
    rows = pd.DataFrame({"a": [1, 2], "b": ["3", "4"], "day": pd.to_datetime(["2026-01-02"] * 2)})
    rows.to_csv(tmp_path / "in.csv", sep=";", index=False)
    rows.to_parquet(tmp_path / "in.parquet")
    rows[["a", "b"]].to_json(tmp_path / "in.json", orient="records")
    answers = []
    for ending in ("csv", "parquet", "json"):
        out = tmp_path / f"{ending}.jsonl"
        command = ["generate", str(tmp_path / f"in.{ending}"), str(out), "--max-tokens", "3"]
        done = run(app, [*command, "--prompt", "{a}+{b}=", "--store", "none"])
        assert done.exit_code == 0, done.output
        answers.append([(row["row"], row["completion"], str(row["a"])) for row in read(out)])
        assert "2 were there" in run(app, [*command, "--prompt", "{a}+{b}="]).stdout
        other = run(app, [*command, "--prompt", "{b}+{a}="])
        assert "another model, sampling" in other.stderr
    assert sorted(answers[0]) == sorted(answers[1]) == sorted(answers[2])
    for prompt, message in (
        ("{c}?", "in.csv:2: prompt='{c}?': no field 'c'"),
        ("what", "in.csv:2: prompt='what' has no field"),
        ("{a", "is unmatched"),
    ):
        done = run(app, ["generate", str(tmp_path / "in.csv"), "new.jsonl", "--prompt", prompt])
        assert (done.exit_code, done.stdout, message in done.stderr) == (2, "", True), done.stderr
    done = run(app, ["generate", str(tmp_path / "in.csv"), "new.jsonl"])
    assert 'in.csv:2: it needs either "prompt" or "messages"' in done.stderr


def test_generate_asks_a_server_in_its_style(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Say a"},
        {"messages": [{"role": "user", "content": "Say b"}]},
    ]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with Stranger(plain_reply) as server:
        command = ["generate", str(source), str(out), "--base-url", server.url, "--store", "none"]
        command += ["-n", "2", "--temperature", "0.5", "--top-p", "0.9", "--stop", "x"]
        done = run(app, [*command, "--stop", "y", "--chat", "--json"])
        assert done.exit_code == 0, done.output
        asked = [one for one in server.asked if one.body and "top_p" in one.body]
        refused = run(app, [*command, "--no-chat"])
    assert {one.path.rpartition("/")[2] for one in asked} == {"completions"}
    assert all(one.body["messages"][0]["role"] == "user" for one in asked)
    assert {(one.body["top_p"], tuple(one.body["stop"])) for one in asked} == {(0.9, ("x", "y"))}
    assert [len(row["samples"]) for row in read(out)] == [2, 2]
    assert "in.jsonl:2: messages are a chat" in refused.stderr


def test_generate_takes_a_line_break_as_a_shell_gives_it(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", [{"a": "x"}]), tmp_path / "out.jsonl"
    with Stranger(plain_reply) as server, Stranger(plain_reply) as other:
        command = ["generate", str(source), str(out), "--model", "m", "--store", "none"]
        command += ["--prompt", r"{a}\nSo:", "--stop", r"\n", "--no-chat", "--base-url"]
        assert run(app, [*command, server.url]).exit_code == 0
        bodies = [one.body for one in server.asked if one.body and "stop" in one.body]
        elsewhere = run(app, [*command, other.url])
    assert bodies
    assert all("x\nSo:" in str(body["prompt"]).replace("\\n", "\n") for body in bodies)
    assert all(body["stop"] == ["\n"] for body in bodies)
    assert elsewhere.exit_code == 2  # a model of the same name there may be another
    assert "another model" in elsewhere.stderr


def test_errors_are_a_line_not_a_traceback(tmp_path: Path) -> None:
    done = run(app, ["generate", str(tmp_path / "none.jsonl"), str(tmp_path / "out.jsonl")])
    assert done.exit_code == 2
    assert "none.jsonl: No such file or directory" in done.stderr
    assert "Traceback" not in done.output
    source = write(tmp_path / "in.jsonl", [{"prompt": "1+1="}])
    done = run(app, ["generate", str(source), str(tmp_path / "o"), "-o", "max_modellen=9"])
    assert done.exit_code == 2
    assert "did you mean 'max_model_len'" in done.stderr


def test_eval_prints_and_keeps_a_report(kept: VLLMEngine, tmp_path: Path) -> None:
    out = tmp_path / "report"
    command = ["eval", "--task", "sums", "--count", "30", "--store", "none", "--out", str(out)]
    done = run(app, command)
    assert done.exit_code == 0, done.output
    header, first, *groups = done.stdout.splitlines()
    assert header.split() == ["value", "low", "high", "n", "failed", "unparsed"]
    assert first.split()[0] == "accuracy"
    assert all(line.startswith("digits ") for line in groups)
    assert sum(int(line.split()[-3]) for line in groups) == int(first.split()[-3]) == 30
    assert (out / "figure.png").stat().st_size > 1000
    again = run(app, [*command, "--json"])
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    chat = run(
        app, ["eval", "--task", "claims", "--count", "5", "--chat", "--store", "none", "--json"]
    )
    assert [row["n"] for row in json.loads(chat.stdout)] == [5]
    for wrong, message in (
        (["word_problem"], "did you mean 'word_problems'"),
        (["sums", "--engine", "vlm"], "engine='vlm' is unknown"),
        (["sums", "-o", "store=x"], "store is not an engine argument"),
        (["sums", "--engine", "transformers", "-o", "batch_size=0"], "batch_size=0"),
        (["sums", "--agent", "majority"], "did you mean 'majority_vote'"),
        (["sums", "--column", "question"], "--column 'question' must be NAME=VALUE"),
        (["sums", "--batch-size", "0"], "--batch-size '0': give a whole number from 1, or auto"),
        (["sums", "--engine", "transformers", "--batch-size", "some"], "--batch-size 'some'"),
    ):
        failed = run(app, ["eval", "--task", *wrong])
        assert failed.exit_code == 2
        assert message in failed.stderr


@pytest.mark.parametrize(
    ("engine", "size", "options"),
    [
        ("vllm", "16", {"max_num_seqs": 16}),
        ("auto", "16", {"max_num_seqs": 16}),
        ("transformers", "16", {"batch_size": 16}),
        ("remote", "16", {"max_concurrency": 16}),
        ("transformers", "auto", {}),
        ("vllm", None, {}),
    ],
)
def test_a_batch_size_is_the_engines_own_option(
    engine: str, size: str | None, options: dict[str, int]
) -> None:
    assert _batch(size, engine) == options


def test_eval_of_all_agents_is_kept_and_compared(
    kept: VLLMEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(tmp_path))
    command = ["eval", "--task", "sums", "--count", "4", "--store", "none", "--name", "mine"]
    done = run(app, [*command, "--agent", "all", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert len(rows) == 8
    folders = sorted((tmp_path / "eval" / "mine").iterdir())
    assert sorted(row["name"] for row in rows) == [folder.name for folder in folders]
    again = run(app, [*command, "--agent", "all", "--json"])
    assert json.loads(again.stdout) == rows  # read, not measured: the seconds are the same
    other = run(app, [*command, "--agent", "all", "--seed", "1"])
    assert other.exit_code == 2
    assert "give this suite another name" in other.stderr
    out = tmp_path / "table"
    compared = run(app, ["compare", *map(str, folders[:3]), "--out", str(out)])
    assert compared.exit_code == 0, compared.output
    assert compared.stdout.startswith("name ")
    assert len((out / "comparison.csv").read_text().splitlines()) == 4
    twice = run(app, ["compare", str(folders[0]), str(folders[0])])
    assert "given twice" in twice.stderr
    elsewhere = tmp_path / "eval" / "other" / folders[0].name
    shutil.copytree(folders[0], elsewhere)
    both = run(app, ["compare", str(folders[0]), str(elsewhere), "--json"])
    names = [row["name"] for row in json.loads(both.stdout)]
    assert names == [f"mine/{folders[0].name}", f"other/{folders[0].name}"]
    lost = run(app, ["compare", str(tmp_path / "nowhere")])
    assert lost.exit_code == 2
    assert "holds no report" in lost.stderr


def test_icm_prints_and_keeps_a_study(plain: VLLMEngine, tmp_path: Path) -> None:
    out, kept = tmp_path / "report", tmp_path / "kept"
    methods = ["--method", "ICM", "--method", "golden labels"]
    sizes = ["--batch-size", "12", "--k", "30", "--test-count", "30", "--store", "none"]
    command = ["icm", *methods, *sizes, "--checkpoints", str(kept)]
    done = run(app, [*command, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "golden labels" in done.stdout
    assert {path.name for path in out.iterdir()} == {
        "summary.json", "rows.parquet", "methods.csv", "runs.csv", "claims.parquet", "figure.png",
        "search-0",
    }  # fmt: skip
    again = run(app, [*command, "--json"])
    rows = {row["method"]: row for row in json.loads(again.stdout)}
    assert rows["ICM"]["n"] == rows["golden labels"]["n"] == 30
    assert rows["golden labels"]["label_accuracy"] == 1
    assert "already" in run(app, [*command, "--out", str(out)]).stderr


def test_icm_labels_claims_without_gold(plain: VLLMEngine, tmp_path: Path) -> None:
    claims = [{"text": f"{n}+1={n + 1 + n % 2}", "group": n} for n in range(10, 18)]
    source, out = write(tmp_path / "mine.jsonl", claims), tmp_path / "report"
    command = ["icm", "--testbed", str(source), "--k", "20", "--store", "none"]
    done = run(app, [*command, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "label accuracy" not in done.stdout
    assert len(read(out / "labels.jsonl")) == 8
    assert "stand out" in done.stderr
    assert "no order 'uid'" in run(app, [*command, "--order", "uid"]).stderr
    refused = run(app, [*command, "--method", "ICM", "--method", "golden labels"])
    assert refused.exit_code == 2
    assert "--method 'golden labels' cannot be judged" in refused.stderr


ROWS = [
    {"uid": f"u{n}", "sum": f"{n}+2={n + 2 + n % 2}", "kind": n // 2, "note": "a;b"}
    for n in range(10, 40)
]


def test_icm_gives_all_rows_of_a_file_back(plain: VLLMEngine, tmp_path: Path) -> None:
    source = tmp_path / "mine.csv"
    pd.DataFrame(ROWS).to_csv(source, index=False)
    columns = ["--column", "text=sum", "--column", "group=kind", "--batch-size", "10"]
    command = ["icm", "--testbed", str(source), *columns, "--k", "20", "--store", "none"]
    command += ["--checkpoints", str(tmp_path / "kept"), "--labels", "True,False"]
    done = run(app, [*command, "--out", str(tmp_path / "one"), "--seed", "1"])
    assert done.exit_code == 0, done.output
    alone = (tmp_path / "one" / "labels.csv").read_bytes()
    table = pd.read_csv(tmp_path / "one" / "labels.csv")
    assert [*table["uid"]] == [row["uid"] for row in ROWS]
    assert [*table["sum"]] == [row["sum"] for row in ROWS]
    assert table["icm_label"].notna().all()
    journals = tmp_path / "kept" / "mine-seed-1"
    before = {path.name: path.read_bytes() for path in journals.iterdir()}
    assert len(before) == 3
    # Another seed beside it changes nothing of this one.
    done = run(app, [*command, "--out", str(tmp_path / "two"), "--seed", "0", "--seed", "1"])
    assert done.exit_code == 0, done.output
    assert "seeds 0 and 1: equal" in done.stdout
    assert "seed 1: labels True" in done.stdout
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"seed-0", "seed-1"}
    assert (tmp_path / "two" / "seed-1" / "labels.csv").read_bytes() == alone
    assert {path.name: path.read_bytes() for path in journals.iterdir()} == before


def test_icm_labels_the_first_rows_only_where_asked(plain: VLLMEngine, tmp_path: Path) -> None:
    source, out = write(tmp_path / "mine.jsonl", ROWS), tmp_path / "report"
    command = ["icm", "--testbed", str(source), "--column", "text=sum", "--column", "group=kind"]
    command += ["--store", "none", "--k", "20"]
    done = run(app, [*command, "--limit", "7", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "--limit 7: 6 of 30 claims are labelled" in done.stderr
    labels = [row["icm_label"] for row in read(out / "labels.jsonl")]
    assert all(isinstance(label, bool) for label in labels[:6])
    assert labels[6:] == [None] * 24
    refused = run(app, [*command, "--limit", "1"])
    assert "--limit 1: the first group has 2 claims already" in refused.stderr


def test_icm_labels_comparisons(plain: VLLMEngine, tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1?", "first": str(n + 1), "second": str(n)} for n in range(8)]
    long = {"question": "x" * 9000, "first": "1", "second": "2"}
    source, out = write(tmp_path / "pairs.jsonl", [*rows, long]), tmp_path / "report"
    command = ["icm", "--testbed", str(source), "--store", "none", "--k", "20", "--out", str(out)]
    done = run(app, [*command, "--limit", "6"])
    assert done.exit_code == 0, done.output
    labels = [row["icm_label"] for row in read(out / "labels.jsonl")]
    assert [label is not None for label in labels] == [True] * 3 + [False] * 6
    done = run(app, [*command[:-1], str(tmp_path / "all")])
    assert done.exit_code == 1, done.output
    last = read(tmp_path / "all" / "labels.jsonl")[-1]
    assert last["icm_label"] is None
    assert "the context holds" in last["icm_error"]


def test_icm_says_what_it_cannot_do_before_it_begins(plain: VLLMEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "mine.jsonl", [{"text": f"{n}+1={n}"} for n in range(4)])
    command = ["icm", "--testbed", str(source), "--store", "none", "--k", "5"]
    twice = run(app, [*command, "--seed", "1", "--seed", "1"])
    assert (twice.exit_code, "--seed 1 is given twice" in twice.stderr) == (2, True)
    below = run(app, [*command, "--out", str(source / "x")])
    assert (below.exit_code, "choose another folder" in below.stderr) == (2, True)
    rows = [{"text": f"{n}+2={n}", "split": "test", "gold": "?" if n == 2 else "yes"}
            for n in range(4)]  # fmt: skip
    source = write(tmp_path / "some.jsonl", [{"text": f"{n}+1={n}"} for n in range(4)] + rows)
    done = run(app, ["icm", "--testbed", str(source), "--store", "none", "--k", "5"])
    assert "1 of 4 test claims have no gold label, such as '6'" in done.stderr
    assert done.exit_code == 0, done.output


def test_icm_keeps_labels_where_their_check_fails(
    plain: VLLMEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise EngineError("the server is gone")

    monkeypatch.setattr(sys.modules["workbench.icm.report"], "salience", fails)
    source = write(tmp_path / "mine.jsonl", [{"text": f"{n}+1={n}"} for n in range(4)])
    command = ["icm", "--testbed", str(source), "--store", "none", "--k", "5"]
    done = run(app, [*command, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "is unknown: the server is gone" in done.stderr
    assert len(read(tmp_path / "out" / "labels.jsonl")) == 4


def test_icm_ends_with_an_error_where_a_row_has_no_label(plain: VLLMEngine, tmp_path: Path) -> None:
    rows = [*ROWS[:6], {**ROWS[6], "sum": "1+" * 2000 + "1=2001"}]
    source, out = write(tmp_path / "mine.jsonl", rows), tmp_path / "report"
    command = ["icm", "--testbed", str(source), "--column", "text=sum", "--store", "none"]
    done = run(app, [*command, "--out", str(out)])
    assert done.exit_code == 1, done.output
    assert "1 claims have no label: the claim has" in done.stderr
    last = read(out / "labels.jsonl")[-1]
    assert last["icm_label"] is None
    assert "the context holds" in last["icm_error"]


def test_embedded_claims_of_a_seed_depend_on_that_seed_alone(
    plain: VLLMEngine, tmp_path: Path
) -> None:
    command = ["icm", "--method", "ICM", "--batch-size", "8", "--k", "5", "--test-count", "10"]
    command += ["--store", "none", "--checkpoints", str(tmp_path)]
    assert run(app, [*command, "--seed", "3"]).exit_code == 0
    before = (tmp_path / "embedded-seed-3.jsonl").read_bytes()
    done = run(app, [*command, "--seed", "2", "--seed", "3", "--seed", "4"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "embedded-seed-3.jsonl").read_bytes() == before
