"""inspect_ai: its evals on our engines, our reports in its viewer."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench.agents import BestOfN
from workbench.cli import app
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.evaluation import Evaluation, evaluate, load
from workbench.tasks import WordProblems
from workbench.types import Report, Sampling, Usage

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENSHOTS = os.environ.get("WORKBENCH_SCREENSHOTS")
inspect_ai = pytest.importorskip("inspect_ai")


@pytest.fixture
def api(plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """inspect_ai's model on the embedded model, as its entry point makes it."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    import_module(points["inspect_ai"]["workbench"])  # also where the package is not installed
    model: Any = import_module("inspect_ai.model")
    return model.get_model("workbench/workbench-tiny", engine="vllm", store=None, memoize=False)


def test_an_eval_of_inspect_has_the_accuracy_of_our_evaluation(
    api: Any, plain: VLLMEngine, tmp_path: Path
) -> None:
    """The same 40 items and prompts, asked one by one there: every verdict is the same."""
    dataset: Any = import_module("inspect_ai.dataset")
    scorer: Any = import_module("inspect_ai.scorer")
    task = WordProblems()
    items = {item.id: item for item in task.items(40)}
    report = evaluate(task, plain, count=40, shots=2)

    def graded() -> Any:
        async def score(state: Any, target: Any) -> Any:
            grade = task.grade(items[str(state.sample_id)], state.output.completion)
            return scorer.Score(value="C" if grade.correct else "I", answer=grade.extracted)

        return score

    made: Any = scorer.scorer(metrics=[scorer.accuracy()])(graded)
    samples = [
        dataset.Sample(id=item.id, input=str(task.prompt(item, 2)), target=item.answer)
        for item in items.values()
    ]
    calls: list[int] = []
    stream = api.api.engine.stream

    def counted(prompts: Any, sampling: Sampling) -> Any:
        calls.append(len(prompts))
        return stream(prompts, sampling)

    api.api.engine.stream = counted
    (log,) = inspect_ai.eval(
        inspect_ai.Task(dataset=samples, scorer=made()), model=api, log_dir=str(tmp_path),
        max_connections=40, display="none", max_tokens=task.sampling.max_tokens,
        stop_seqs=list(task.sampling.stop),
    )  # fmt: skip
    assert log.status == "success"
    theirs = {one.id: one.scores["graded"].value == "C" for one in log.samples}
    ours = dict(zip(report.rows["id"], report.rows["correct"], strict=True))
    assert theirs == ours
    assert 0 < sum(ours.values()) < 40
    assert log.results.scores[0].metrics["accuracy"].value == report.summary[0].value
    (usage,) = log.stats.model_usage.values()
    assert usage.output_tokens == report.usage.completion_tokens
    assert usage.input_tokens + usage.input_tokens_cache_read == report.usage.prompt_tokens
    assert sum(calls) == 40
    assert len(calls) <= 10  # they arrive together, and are asked together
    answers = {one.id: one.output.completion for one in log.samples}
    assert answers == dict(zip(report.rows["id"], report.rows["text"], strict=True))
    reasons = {one.output.choices[0].stop_reason for one in log.samples}
    assert reasons <= {"stop", "max_tokens"}


def asked(api: Any, *prompts: str, **config: Any) -> list[Any]:
    """inspect_ai's outputs for prompts that are asked at the same time."""
    model: Any = import_module("inspect_ai.model")

    async def together() -> list[Any]:
        calls = (api.generate(prompt, config=model.GenerateConfig(**config)) for prompt in prompts)
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(together())


QUESTION = "Question: Jack has 55 stamps. He gives away 8. How many stamps does Jack have?\nAnswer:"


def test_options_of_inspect_are_those_of_the_engine(api: Any, plain: VLLMEngine) -> None:
    (cut,) = asked(api, QUESTION, max_tokens=3)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)
    (ended,) = asked(api, QUESTION, max_tokens=60, stop_seqs=["\n"])
    assert (ended.stop_reason, "\n" in ended.completion) == ("stop", False)
    assert ended.completion == plain.generate([QUESTION], Sampling(stop=("\n",)))[0].text
    (several,) = asked(api, QUESTION, temperature=1.0, num_choices=3, seed=7, max_tokens=12)
    sampling = Sampling(temperature=1.0, n=3, seed=7, max_tokens=12)
    samples = plain.generate([QUESTION], sampling)[0].samples
    assert [one.message.text for one in several.choices] == [one.text for one in samples]
    (likely,) = asked(api, QUESTION, logprobs=True, top_logprobs=2, max_tokens=4)
    tokens = likely.choices[0].logprobs.content
    assert "".join(one.token for one in tokens).strip() == likely.completion.strip()
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in tokens)


def test_seeds_do_not_depend_on_what_is_asked_at_the_same_time(api: Any) -> None:
    """With a seed, equal prompts are equal; without one they are different samples."""
    config = {"temperature": 1.0, "max_tokens": 24}
    (alone,) = asked(api, QUESTION, seed=3, **config)
    together = asked(api, QUESTION, "1+1=", QUESTION, seed=3, **config)
    assert [one.completion for one in together[::2]] == [alone.completion] * 2
    drawn = asked(api, *[QUESTION] * 8, **config)
    assert len({one.completion for one in drawn}) > 1


def test_what_cannot_be_done_is_an_error_of_that_sample(api: Any) -> None:
    long, fine = asked(api, "1+1=2, " * 3000, "1+1=", max_tokens=4)
    assert isinstance(long, EngineError)
    assert "context" in str(long)
    assert fine.stop_reason in {"stop", "max_tokens"}
    (refused,) = asked(api, "1+1=", frequency_penalty=0.5)
    assert isinstance(refused, InputError)
    assert "frequency_penalty" in str(refused)
    api.api.engine.close()
    (closed,) = asked(api, "1+1=")
    assert isinstance(closed, Exception)


def test_tools_and_keys_are_refused(api: Any) -> None:
    tool: Any = import_module("inspect_ai.tool")
    with pytest.raises(InputError, match="no tools"):
        asyncio.run(api.generate("1+1=", tools=[tool.ToolInfo(name="x", description="y")]))
    with pytest.raises(InputError, match="WORKBENCH_API_KEY"):
        type(api.api)("workbench-tiny", api_key="a-key")


# Our reports in its viewer


@pytest.fixture(scope="module")
def reports(_loaded: VLLMEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saved reports: answers with a verifier, and two runs; one row failed."""
    folder = tmp_path_factory.mktemp("reports")
    engine = VLLMEngine(None, None, "test", {})
    verified = evaluate("word_problems", engine, BestOfN(samples=3), count=12, shots=1)
    verified.save(folder / "verified", inspect=True)
    report = evaluate("word_problems", engine, count=6, num_runs=2, temperature=0.7)
    report.rows.loc[0, ["error", "text"]] = ["the server answered 503", ""]
    report.save(folder / "runs")
    done = CliRunner().invoke(app, ["export", str(folder / "runs"), "--to", "inspect"])
    assert done.exit_code == 0, done.output
    return folder


def test_a_log_has_what_the_report_has(reports: Path) -> None:
    log: Any = import_module("inspect_ai.log")
    report, read = load(reports / "verified"), log.read_eval_log(reports / "verified/inspect.eval")
    assert isinstance(report, Evaluation)
    metric = report.summary[0]
    found = {name: one.value for name, one in read.results.scores[0].metrics.items()}
    assert found == {
        "accuracy": metric.value, "accuracy low": metric.low, "accuracy high": metric.high,
    }  # fmt: skip
    assert (read.eval.task, read.eval.model) == ("word_problems", "workbench-tiny")
    assert read.stats.model_usage["workbench-tiny"].output_tokens == report.usage.completion_tokens
    samples = {one.id: one for one in read.samples}
    for row in report.rows.to_dict("records"):
        one = samples[row["id"]]
        calls = report.trace[report.trace["id"] == row["id"]]
        assert one.input == calls["prompt"].iloc[0]
        assert one.output.completion == row["text"]
        assert one.target == row["answer"]
        score = one.scores["correct"]
        assert score.value == ("C" if row["correct"] else "I" if row["parsed"] else "N")
        assert score.answer == row["extracted"]
        assert one.metadata["trust"] == pytest.approx(row["trust"])
        events = [event for event in one.events if event.event == "model"]
        assert [len(event.output.choices) for event in events] == [3]
        texts = [one.message.text for one in events[0].output.choices]
        assert texts == calls.loc[calls["kind"] == "ask", "text"].tolist()
        assert sum(event.event == "info" for event in one.events) == row["calls"] - 1
    assert read.eval.metadata["items"] == report.provenance["items"]


def test_runs_are_epochs_and_a_failed_row_is_an_error(reports: Path) -> None:
    log: Any = import_module("inspect_ai.log")
    read = log.read_eval_log(reports / "runs/inspect.eval")
    assert {one.epoch for one in read.samples} == {1, 2}
    (failed,) = (one for one in read.samples if one.error)
    assert (failed.error.message, failed.scores) == ("the server answered 503", None)
    assert (read.results.total_samples, read.results.completed_samples) == (12, 11)


def test_rows_without_a_trace_say_where_the_prompt_is_from(tmp_path: Path) -> None:
    log: Any = import_module("inspect_ai.log")
    rows = pd.DataFrame({
        "id": ["a", "b"], "question": ["1+1=", None], "text": ["2", "3"], "correct": [True, None],
    })  # fmt: skip
    path = Report((), rows, Usage(), {"style": "chat"}).export(tmp_path / "rows.eval")
    first, second = log.read_eval_log(path).samples
    assert (first.input[0].text, first.metadata["input"]) == ("1+1=", "column question")
    assert "no prompt" in second.metadata["input"]
    assert second.scores is None


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_viewer_shows_a_sample_in_a_browser(reports: Path) -> None:
    """`inspect view` on our folder: the numbers, a prompt, its answer, score and calls."""
    from playwright.sync_api import sync_playwright

    report = load(reports / "verified")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("inspect")), "view", "--log-dir", str(reports)]
    viewer = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            address = f"http://127.0.0.1:{port}"
            wait_for(address, viewer)
            page.goto(f"{address}/#/logs/verified/inspect.eval/samples/")
            page.get_by_text("accuracy low", exact=False).first.wait_for()
            row = report.rows.sort_values("id").iloc[0]
            page.get_by_text(row["id"][:20]).first.click()
            page.get_by_text(f"Question: {row['question']}").first.wait_for()
            shown = page.locator("body").inner_text()
            assert "NaN" not in shown
            if SCREENSHOTS:
                clip: Any = {"x": 0, "y": 32, "width": 1400, "height": 748}  # no path
                page.screenshot(path=Path(SCREENSHOTS) / "inspect_view.png", clip=clip)
            page.get_by_role("tab", name="Scoring").click()
            page.get_by_text("Explanation").wait_for()
            shown = page.locator("body").inner_text()
            assert f"right is '{row['answer']}'" in shown
            score = "C" if row["correct"] else "I" if row["parsed"] else "N"
            assert re.search(rf"^{score}$", shown, re.MULTILINE)
            browser.close()
    finally:
        viewer.terminate()
        viewer.wait(20)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        assert process.poll() is None
        with suppress(OSError), urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise TimeoutError(address)


EVAL = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes

@task
def sums():
    return Task(dataset=[Sample(input=f"{n}+{n}=", target=str(2 * n)) for n in range(10, 20)],
                scorer=includes())
"""


@pytest.mark.slow
def test_the_command_of_inspect_finds_our_provider(tmp_path: Path) -> None:
    """As installed: the entry point of `pyproject.toml` is all that leads to it."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    about = tmp_path / "site" / "workbench_provider-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: workbench-provider\nVersion: 0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points["inspect_ai"].items())
    (about / "entry_points.txt").write_text(f"[inspect_ai]\n{lines}")
    (tmp_path / "sums.py").write_text(EVAL)
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("inspect")), "eval", "sums.py",
            "--model", "workbench/workbench-tiny", "-M", "engine=transformers", "-M", "store=null",
            "--max-tokens", "8", "--log-dir", "logs", "--display", "plain",
        ],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{about.parent}"}, cwd=tmp_path,
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    log: Any = import_module("inspect_ai.log")
    (path,) = (tmp_path / "logs").glob("*.eval")
    read = log.read_eval_log(path)
    assert (read.status, len(read.samples)) == ("success", 10)
    assert read.results.scores[0].metrics["accuracy"].value > 0.5
