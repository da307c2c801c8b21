"""lm-evaluation-harness both ways, item by item against its own `--model vllm`."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine
from typer.testing import CliRunner

from workbench import Sampling, evaluate, open_task
from workbench.cli import app
from workbench.engines.tokens import TokenPrompt
from workbench.engines.vllm import unavailable
from workbench.errors import InputError
from workbench.tasks.harness import sampling_of
from workbench.tiny import MODEL
from workbench.types import Completion

pytest.importorskip("lm_eval")
if reason := unavailable():
    pytest.skip(f"needs vLLM: {reason}", allow_module_level=True)


ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data" / "lm_eval"
CHOICES = ("arc_like", "hellaswag_like", "piqa_like", "winogrande_like")
TASKS = (*CHOICES, "gsm8k_like", "wikitext_like")
FILTERS = ("strict-match", "flexible-extract")
CONTEXT = 256  # short, so that contexts are cut off and windows roll
OPTIONS: dict[str, Any] = {"dtype": "float32", "max_model_len": CONTEXT}
Samples = Mapping[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The rows' paths are from the repository, and their cache is not the user's."""
    config = import_module("datasets.config")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        cache = tmp_path_factory.mktemp("datasets")
        patch.setattr(config, "HF_DATASETS_CACHE", cache)
        yield


def run(model: Any, tasks: tuple[str, ...], **settings: Any) -> Samples:
    """Its samples by task."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(DATA), include_defaults=False)
    settings = {"batch_size": "auto", "bootstrap_iters": 0, "task_manager": manager, **settings}
    results = lm_eval.simple_evaluate(model=model, tasks=[*tasks], **settings)
    samples: Samples = results["samples"]
    return samples


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from workbench.lm_eval import WorkbenchLM

    store = tmp_path_factory.mktemp("store") / "store.sqlite"
    model = WorkbenchLM(str(MODEL), "vllm", store, **OPTIONS)
    with model.engine:
        yield model


@pytest.fixture(scope="module")
def theirs(ours: Any) -> Any:
    """Its own model over vLLM, with the same `vllm.LLM`: a process has room for one."""
    version = importlib.metadata.version
    with pytest.MonkeyPatch.context() as patch:
        # vLLM's CPU build has another distribution name, which lm_eval does not look up.
        patch.setattr(importlib.metadata, "version", lambda name: version(f"{name}-cpu"))
        import lm_eval.models.vllm_causallms as module

        patch.setattr(module, "LLM", lambda **_: ours.engine.llm)
        return module.VLLM(str(MODEL), **OPTIONS)


@pytest.fixture(scope="module")
def expected(theirs: Any) -> Samples:
    return run(theirs, TASKS)


def same(got: Samples, expected: Samples, task: str) -> None:
    assert len(got[task]) == len(expected[task]) > 3
    for one, other in zip(got[task], expected[task], strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if name in {"resps", "filtered_resps"}:
                mine, its = flat(one[name]), flat(other[name])
                assert mine == pytest.approx(its, abs=1e-4) if numbers(its) else mine == its, name
            elif task == "wikitext_like" and isinstance(one[name], tuple):
                assert one[name] == pytest.approx(other[name], abs=1e-4), name
            else:
                assert one[name] == other[name], name


def flat(value: Any) -> list[Any]:
    return [x for one in value for x in flat(one)] if isinstance(value, list | tuple) else [value]


def numbers(row: list[Any]) -> bool:
    return all(isinstance(one, float | bool) for one in row)


def test_our_model_answers_as_its_own_vllm(ours: Any, expected: Samples) -> None:
    before = ours.engine.usage
    got = run(ours, TASKS)
    for task in TASKS:
        same(got, expected, task)
    rows = [row for task in CHOICES for row in expected[task]]
    assert {row["acc"] for row in rows} == {0, 1}  # neither all right nor none
    assert any(row["acc"] != row.get("acc_norm", row["acc"]) for row in rows)
    assert {row["exact_match"] for row in expected["gsm8k_like"]} == {0, 1}
    used = ours.engine.usage.since(before)
    assert used.requests > used.from_store
    assert run(ours, TASKS)["piqa_like"] == got["piqa_like"]
    again = ours.engine.usage.since(before)
    assert again.requests - used.requests == again.from_store - used.from_store  # all stored


def test_contexts_that_are_too_long_are_cut_off_on_the_left(ours: Any, theirs: Any) -> None:
    tasks, settings = ("arc_like", "gsm8k_like"), {"num_fewshot": 4, "limit": 6}
    its, got = run(theirs, tasks, **settings), run(ours, tasks, **settings)
    for task in tasks:
        same(got, its, task)
        longest = max(flat([row["arguments"] for row in its[task]]), key=lambda x: len(str(x)))
        assert len(ours.tok_encode(longest)) > CONTEXT - 96


def test_chats_are_written_by_the_template(ours: Any, theirs: Any) -> None:
    tasks, settings = ("arc_like", "gsm8k_like"), {"apply_chat_template": True, "limit": 5}
    its, got = run(theirs, tasks, **settings), run(ours, tasks, **settings)
    for task in tasks:
        same(got, its, task)
    assert its["arc_like"][0]["arguments"][0][0].startswith("<|user|>")


@pytest.mark.parametrize("task", CHOICES)
def test_its_choices_as_a_task_of_ours(task: str, ours: Any, expected: Samples) -> None:
    spec = f"lm_eval:{DATA.relative_to(ROOT)}/{task}.yaml"
    report = evaluate(spec, ours.engine)
    assert len(report.rows) == len(expected[task])
    for (_, row), its in zip(report.rows.iterrows(), expected[task], strict=True):
        assert row["error"] is None
        assert row["id"] == str(its["doc_id"])
        assert [row[name] for name in its["metrics"]] == [its[name] for name in its["metrics"]]
        assert row["correct"] == bool(its["acc"])
        lls = [one[0][0] for one in its["resps"]]
        assert json.loads(row["logprobs"]) == pytest.approx(lls, abs=1e-4)
    if task != "winogrande_like":
        norm = evaluate(open_task(spec, metric="acc_norm"), ours.engine)
        assert [*norm.rows["correct"]] == [bool(row["acc_norm"]) for row in expected[task]]


def test_its_generation_as_a_task_of_ours(ours: Any, expected: Samples) -> None:
    task = open_task("lm_eval:gsm8k_like", include_path=DATA)
    assert task.sampling == Sampling(max_tokens=96, stop=("Question:", "\n\n"))
    rows = evaluate(task, ours.engine).rows
    its = {name: [r for r in expected["gsm8k_like"] if r["filter"] == name] for name in FILTERS}
    strict, flexible = (its[name] for name in FILTERS)
    assert [*rows["text"]] == [row["resps"][0][0] for row in strict]
    assert [*rows["correct"]] == [bool(row["exact_match"]) for row in strict]
    for name in FILTERS:
        assert [*rows[f"exact_match,{name}"]] == [row["exact_match"] for row in its[name]]
    other = evaluate(
        open_task("lm_eval:gsm8k_like", include_path=DATA, filter=FILTERS[1]), ours.engine
    )
    assert [*other.rows["correct"]] == [bool(row["exact_match"]) for row in flexible]
    assert [*other.rows["extracted"].dropna()] == [
        row["filtered_resps"][0] for row in flexible if row["filtered_resps"] != ["[invalid]"]
    ]


def test_examples_are_those_of_a_whole_run(ours: Any, theirs: Any) -> None:
    its = run(theirs, ("piqa_like",), num_fewshot=1)["piqa_like"]
    task = open_task("lm_eval:piqa_like", include_path=DATA)
    prompts = {item.id: task.prompt(item, 1) for item in reversed(task.items())}
    assert prompts == {str(row["doc_id"]): row["arguments"][0][0] for row in its}
    chats = run(theirs, ("piqa_like",), num_fewshot=1, apply_chat_template=True)["piqa_like"]
    chat = task.prompt(task.items()[5], 1, "chat")
    assert ours.apply_chat_template(chat) == chats[5]["arguments"][0][0]
    assert len(task.items(5, seed=1)) == 5
    assert task.items(5, seed=1) != task.items(5, seed=2)


@pytest.mark.parametrize("spec", ["piqa_like", str((DATA / "piqa_like.yaml").relative_to(ROOT))])
def test_a_report_has_what_opens_its_task_again(spec: str, ours: Any) -> None:
    folder = None if "/" in spec else DATA
    task = open_task(f"lm_eval:{spec}", include_path=folder, metric="acc_norm")
    report = evaluate(task, ours.engine, count=2)
    source = json.loads(json.dumps(report.provenance["source"]))
    assert len(source["files"]) == ("/" in spec)
    again = open_task(source["name"], **source["arguments"])
    assert again.items(2) == task.items(2)
    assert again.prompt(again.items(2)[0], 1) == task.prompt(task.items(2)[0], 1)
    assert source["arguments"]["metric"] == "acc_norm"


def test_written_choices_are_read() -> None:
    task = open_task(f"lm_eval:{DATA.relative_to(ROOT)}/arc_like.yaml")
    for item in task.items():
        verdict = task.grade(item, f" {item.answer}.")
        assert (verdict.correct, verdict.extracted) == (True, item.answer)
        wrong = next(
            one for one in json.loads(item.fields["choices"])["text"] if one != item.answer
        )
        assert task.grade(item, wrong).correct is False
        # Votes compare answers with each other.
        assert task.grade(replace(item, answer=wrong), wrong).correct
        assert task.grade(replace(item, answer=wrong), item.answer).correct is False
    assert task.grade(task.items()[0], "none of them").parsed is False


def test_generation_arguments() -> None:
    greedy = {"until": "\n", "max_new_tokens": 9, "do_sample": False, "top_p": 0.5}
    assert sampling_of(greedy) == Sampling(max_tokens=9, stop=("\n",))
    drawn = {"until": [], "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert sampling_of(drawn, 32) == Sampling(max_tokens=32, temperature=0.7, top_p=0.9)
    with pytest.raises(InputError, match="num_beams"):
        sampling_of({"num_beams": 4})


def test_tokens_as_a_prompt(ours: Any) -> None:
    ids = ours.tok_encode("12+30=")
    sampling = Sampling(max_tokens=4)
    answers = ours.engine.generate([TokenPrompt(ids), "12+30="], sampling)
    assert answers[0].text == answers[1].text
    assert answers[0].prompt_tokens == len(ids)
    other = ours.engine.generate([TokenPrompt(ids[1:])], sampling)[0]
    assert (other.prompt_tokens, other.from_store) == (len(ids) - 1, False)


class Served(FakeEngine):
    """An engine without a tokenizer, such as a server."""

    def generate(self, prompts: Any, sampling: Sampling = Sampling(), **_: Any) -> list[Completion]:  # noqa: B008
        self.asked = [*prompts]
        text = "4.\n#### 4\n\nQuestion: more"
        return [Completion(text=text, finish_reason="stop") for _ in self.asked]


def test_a_server_generates_and_says_what_it_cannot() -> None:
    from workbench.lm_eval import WorkbenchLM

    engine = Served(engine="remote")
    model = WorkbenchLM(engine=engine)
    rows = run(model, ("gsm8k_like",), limit=2)["gsm8k_like"]
    assert [row["resps"] for row in rows] == [[["4.\n#### 4"]]] * 4
    assert all(isinstance(prompt, str) for prompt in engine.asked)
    run(model, ("gsm8k_like",), limit=2, apply_chat_template=True)
    assert [one["role"] for one in engine.asked[0]] == ["user", "assistant"] * 2 + ["user"]
    for task in ("piqa_like", "wikitext_like"):
        with pytest.raises(InputError, match="the remote engine cannot score tokens"):
            run(model, (task,))


@pytest.mark.parametrize(
    ("spec", "settings", "match"),
    [
        ("no_such_file.yaml", {}, "no_such_file.yaml does not exist"),
        pytest.param(  # reads the names of all its tasks
            "arc_easi",
            {},
            "no task 'arc_easi' of lm_eval, did you mean 'arc_easy'",
            marks=pytest.mark.slow,
        ),
        ("mmlu_stem", {"include_path": "nowhere"}, "nowhere does not exist"),
        ("wikitext_like", {"include_path": DATA}, "loglikelihood_rolling; run `workbench lm-eval"),
        ("arc_like", {"include_path": DATA, "metric": "f1"}, "no metric of this task 'f1'"),
        ("gsm8k_like", {"include_path": DATA, "filter": "strict"}, "did you mean 'strict-match'"),
        ("gsm8k_like", {"num_shots": 3}, "no argument 'num_shots'"),
    ],
)
def test_mistakes(spec: str, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        open_task(f"lm_eval:{spec}", **settings)


def test_too_many_examples() -> None:
    task = open_task("lm_eval:gsm8k_like", include_path=DATA)
    with pytest.raises(InputError, match="shots=9"):
        task.prompt(task.items()[0], 9)


def test_the_command_runs_its_own(ours: Any, expected: Samples, tmp_path: Path) -> None:
    arguments = ["--model", "workbench", "--tasks", "piqa_like", "--include_path", str(DATA)]
    options = f"model={MODEL},engine=vllm,store=none,dtype=float32,max_model_len={CONTEXT}"
    arguments += ["--model_args", options, "--log_samples", "--output_path", str(tmp_path)]
    done = CliRunner().invoke(app, ["lm-eval", *arguments])
    assert done.exit_code == 0, done.output
    assert "piqa_like" in done.stdout
    (file,) = tmp_path.rglob("samples_piqa_like_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows.sort(key=lambda row: row["doc_id"])
    assert [row["acc"] for row in rows] == [row["acc"] for row in expected["piqa_like"]]
    (results,) = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["workbench"]["engine"] == "vllm"
