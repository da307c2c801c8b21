"""Frames as tasks, templates as wordings, comparisons of them, and what is known before."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fakes import FakeEngine

import workbench as wb
from workbench.agents import AgentCase, Ask, BestOfN, MajorityVote, Program
from workbench.cases import ARGUMENTS, SAMPLING
from workbench.comparison import comparison
from workbench.engines.estimate import Estimate, Prices, money
from workbench.engines.vllm import VLLMEngine, _arguments
from workbench.errors import InputError
from workbench.evaluation import evaluate, run_suite
from workbench.serving import Server
from workbench.tasks import TASKS, OwnTask, Sums, open_task
from workbench.types import Completion, Errors, Grade, Item, PromptStyle, Sampling, Task, Usage
from workbench.uncertainty import sample_uncertainty

FRAME = pd.DataFrame({
    "question": [f"What is {n}+{n}?" for n in range(10, 18)],
    "answer": [2 * n for n in range(10, 18)],
    "topic": ["even", "odd"] * 4,
})  # fmt: skip
PRICES: dict[str, Any] = {"price_in": 1.0, "price_out": 2.0}
FEW: dict[str, Any] = {"count": 12, "max_tokens": 60}


def test_a_frame_is_a_task(plain: VLLMEngine) -> None:
    report = evaluate(FRAME, plain)
    assert report.summary[0].n == len(FRAME)
    assert set(report.rows["topic"]) == {"even", "odd"}
    assert [*run_suite(FRAME.to_dict("records"), plain, ["standard"])] == ["standard"]
    assert sample_uncertainty(FRAME, plain, samples=2, p_true=False).summary[0].n == len(FRAME)


def test_columns_of_other_names_are_said_with_the_remedy(plain: VLLMEngine) -> None:
    other = FRAME.rename(columns={"question": "text", "answer": "gold"})
    with pytest.raises(
        InputError, match=r"no columns 'question' and 'answer' among text, gold"
    ) as e:
        evaluate(other, plain)
    given = str(e.value).partition("open_task(…, ")[2].partition(")")[0]
    columns = dict(part.replace('"', "").split("=") for part in given.split(", "))
    assert columns == {"question": "text", "answer": "gold"}
    assert evaluate(open_task(other, **columns), plain).summary[0].n == len(FRAME)
    with pytest.raises(InputError, match=r"pass an instance, Sums\(\)"):
        evaluate(Sums, plain)


@pytest.mark.parametrize("style", ["completion", "chat"])
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("name", [one for one in TASKS if one not in {"gsm8k", "truthfulqa"}])
def test_the_question_alone_is_the_tasks_own_wording(
    name: str, shots: int, style: PromptStyle
) -> None:
    task: Any = open_task(name)
    for item in task.items(3):
        own = task.prompt(item, shots, style)
        assert task.prompt(item, shots, style, "{question}") == own
        worded = str(task.prompt(item, shots, style, "Ponder: {question}"))
        assert worded.count("Ponder: ") == shots + 1


def test_a_template_words_question_and_examples_within_the_frame() -> None:
    task = OwnTask(
        [{"text": "1+1?", "answer": 2, "topic": "sums"}],
        question="text",
        examples=[{"text": "2+2?", "answer": 4, "topic": "more sums"}],
        instruction="Be brief.",
    )
    wording, item = "About {topic}: {text} {{now}}", task.items()[0]
    assert task.prompt(item, 1, "completion", wording) == (
        "Question: About more sums: 2+2? {now}\nBe brief.\nAnswer: #### 4\n\n"
        "Question: About sums: 1+1? {now}\nBe brief.\nAnswer:"
    )
    assert task.prompt(item, 0, "chat", wording) == [
        {"role": "user", "content": "About sums: 1+1? {now}\nBe brief."}
    ]


class Bare:
    """A task that is no `BaseTask`."""

    name, split, difficulty, sampling = "bare", "test", "", Sampling(max_tokens=8)

    def items(self, count: int | None = None, seed: int = 0) -> list[Item]:
        return [Item("a", {"sum": "60+78="}, "138")]

    def prompt(self, item: Item, shots: int = 0, style: PromptStyle = "completion") -> str:
        return str(item.fields["sum"])

    def grade(self, item: Item, text: str) -> Grade:
        return Grade(item.answer in text, text, parsed=True)


def test_of_somebodys_own_task_the_template_is_the_prompt(plain: VLLMEngine) -> None:
    task: Task = Bare()
    report = evaluate(task, plain, prompt="{sum}")
    assert report.trace["prompt"].tolist() == ["60+78="]
    with pytest.raises(InputError, match="words its examples itself"):
        evaluate(task, plain, prompt="{sum}", shots=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"prompt": "{qestion}"}, "did you mean 'question'"),
        ({"prompt": "{question.__class__}"}, "a field is a plain name"),
        ({"prompt": "{answer}"}, "no field 'answer'"),
        ({"prompt": "Hello"}, "all prompts would be the same"),
        ({"temperature": -1}, "temperature=-1"),
        ({"max_cost": 1}, "set price_in and price_out"),
        ({"price_in": 1}, "price_out is not set"),
        ({**PRICES, "max_cost": -1}, "max_cost=-1"),
        ({"dry_run": "yes"}, "dry_run='yes'"),
    ],
)
def test_what_cannot_be_is_refused(plain: VLLMEngine, settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(FRAME, plain, **settings)


def test_fields_of_sampling_go_by_name(plain: VLLMEngine) -> None:
    base = Sampling(max_tokens=9, stop=("x",))
    report = evaluate(FRAME, plain, sampling=base, temperature=0.5)
    assert report.provenance["sampling"] == {**report.provenance["sampling"], "max_tokens": 9}
    assert report.provenance["sampling"]["temperature"] == 0.5
    reports = {t: evaluate("sums", plain, count=5, temperature=t) for t in (0, 1.5)}
    assert comparison(reports)["name"].tolist() == [0, 1.5]
    named = [*inspect.signature(evaluate).parameters]
    assert {*named} - {"changes"} == {*ARGUMENTS}
    assert not {*ARGUMENTS} & {*SAMPLING}


def test_two_wordings_take_two_lines(plain: VLLMEngine, tmp_path: Path) -> None:
    prompts = {"own": None, "same": "{question}", "odd": "Zebra zebra. {question} Zebra?"}
    result = wb.compare_prompts("word_problems", plain, prompts, count=30, folder=tmp_path)
    figure = result.figure()
    same, odd = result.table.iloc[1], result.table.iloc[2]
    assert (same["difference"], same["p"]) == (0, 1)
    assert odd["n"] == 30
    assert "p_holm" in result.table
    left, right = figure.axes
    assert [len(ax.collections) for ax in (left, right)] == [3, 3]  # intervals, the first's none
    assert result.finding.split()[0] in figure.get_suptitle()
    shown = result._repr_html_()
    assert "data:image/png;base64," in shown
    assert "difference, points" in shown
    again = wb.compare_prompts("word_problems", plain, prompts, count=30, folder=tmp_path)
    assert again.table["accuracy"].tolist() == result.table["accuracy"].tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd", "own", "same"]
    for wrong, said in (
        ({"one": "{question}"}, "pass at least two by name"),
        (["{question}"], "pass at least two by name"),
        ({"a": "{question}", "b": "{nope}"}, "no field 'nope'"),
    ):
        before = plain.usage.requests
        with pytest.raises(InputError, match=said):
            wb.compare_prompts("word_problems", plain, wrong)  # type: ignore[arg-type]
        assert plain.usage.requests == before


def test_a_dry_run_counts_exactly_and_sends_nothing(kept: VLLMEngine) -> None:
    estimate = evaluate("word_problems", kept, dry_run=True, **FEW, **PRICES)
    assert kept.usage.requests == 0
    assert (estimate.requests, estimate.in_store, estimate.counted) == (12, 0, True)
    report = evaluate("word_problems", kept, **FEW, **PRICES)
    assert estimate.prompt_tokens == report.usage.prompt_tokens
    assert estimate.completion_tokens == 12 * 60 >= report.usage.completion_tokens
    spent = report.provenance["cost"]["spent"]
    assert estimate.cost is not None
    assert 0 < spent <= estimate.cost
    assert spent == pytest.approx(
        (report.usage.prompt_tokens + 2 * report.usage.completion_tokens) / 1e6
    )
    more = evaluate("word_problems", kept, dry_run=True, **{**FEW, "count": 15}, **PRICES)
    assert (more.requests, more.in_store) == (3, 12)
    assert "12 others are in the store" in str(more)
    done = evaluate("word_problems", kept, dry_run=True, **FEW, num_runs=3)
    assert "nothing to send" in str(done)


def test_a_dry_run_of_agents(kept: VLLMEngine) -> None:
    votes = evaluate("word_problems", kept, MajorityVote(4), count=3, dry_run=True)
    assert (votes.requests, votes.further) == (12, False)
    best = evaluate("word_problems", kept, BestOfN(4), count=3, dry_run=True)
    assert (best.requests, best.further) == (12, True)
    assert "depend on the answers" in str(best)
    evaluate("word_problems", kept, MajorityVote(4), count=3)  # draws what BestOfN does first
    known = evaluate("word_problems", kept, BestOfN(4), count=3, dry_run=True)
    assert known.in_store == 12
    assert 3 <= known.requests <= 12  # what is to be verified, which the store shows
    suite = run_suite("word_problems", kept, ["standard", MajorityVote(4)], count=3, dry_run=True)
    assert (suite.requests, suite.in_store) == (3, 12)


def test_a_limit_stops_cleanly_and_more_resumes(kept: VLLMEngine) -> None:
    limit = 0.6 * (evaluate("word_problems", kept, dry_run=True, **FEW, **PRICES).cost or 0) / 3
    stopped = evaluate("word_problems", kept, max_cost=limit, **FEW, **PRICES)
    lost = stopped.rows["error"].notna()
    assert 0 < lost.sum() < len(lost)
    assert stopped.rows["error"][lost].str.startswith(f"not sent: max_cost={limit:g}").all()
    assert stopped.provenance["cost"]["spent"] <= limit
    assert stopped.summary[0].n_failed == lost.sum()
    before = kept.usage
    whole = evaluate("word_problems", kept, max_cost=1, **FEW, **PRICES)
    assert kept.usage.since(before).from_store == (~lost).sum()
    assert whole.rows["error"].isna().all()
    free = evaluate("word_problems", kept, max_cost=0, **FEW, **PRICES)
    assert free.rows["correct"].tolist() == whole.rows["correct"].tolist()
    assert free.provenance["cost"]["spent"] == 0


def test_a_limit_changes_no_sample(kept: VLLMEngine, plain: VLLMEngine) -> None:
    def twice(case: AgentCase) -> Program:
        sampling = Sampling(temperature=1, max_tokens=4)
        both = yield [Ask("Once upon", sampling), Ask("Once upon", sampling)]
        return " | ".join(one.text for one in both)

    free = evaluate("sums", plain, twice, count=4)
    limited = evaluate("sums", kept, twice, count=4, max_cost=1, **PRICES)
    assert limited.rows["text"].tolist() == free.rows["text"].tolist()
    assert len({*free.rows["text"]}) > 1


def test_a_limit_is_for_a_whole_suite(kept: VLLMEngine) -> None:
    cost = evaluate("sums", kept, count=6, dry_run=True, **PRICES).cost or 0.0
    prompts = {"a": "{question}", "b": "So: {question}"}
    result = wb.compare_prompts("sums", kept, prompts, count=6, max_cost=cost, **PRICES)
    spent = [one.provenance["cost"]["spent"] for one in result.reports.values()]
    assert sum(spent) <= cost
    assert result.table["n_failed"].sum() > 0


class Letters(FakeEngine):
    """A paid server without a store: a token a character and 20 around each message."""

    given, spent = True, 0

    def generate(
        self,
        prompts: Any,
        sampling: Sampling = Sampling(),  # noqa: B008
        *,
        errors: Errors = "raise",
    ) -> list[Completion]:
        self.sizes = [20 + len(p if isinstance(p, str) else p[0]["content"]) for p in prompts]
        found = [Completion(text="7", finish_reason="stop") for _ in self.sizes]
        new = {"prompt_tokens": sum(self.sizes), "completion_tokens": 4 * len(found)}
        self.usage += Usage(requests=len(found), **new if self.given else {})
        self.spent += sum(new.values())
        return found


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("style", ["completion", "chat"])
@pytest.mark.parametrize("question", ["一加六等于多少？" * 9, "1+6?", "f(x):\n\treturn x[0]**2;"])
def test_a_limit_holds_where_tokens_are_not_counted(question: str, style: Any, given: bool) -> None:
    rows = [{"question": f"{question}{n}", "answer": 7} for n in range(200)]
    engine: Any = Letters()
    engine.given = given  # or the server says nothing of tokens
    prices: dict[str, Any] = {"price_in": 1e6, "price_out": 1e6, "max_cost": 5000.0}
    report = evaluate(rows, engine, style=style, max_tokens=4, **prices)
    lost = report.rows["error"].notna().sum()
    assert 0 < lost < 200
    assert 1000 < engine.spent <= 5000
    assert report.provenance["cost"]["spent"] <= 5000


class Lost(Letters):
    """Fails where a prompt is worded by "b:"."""

    def generate(self, prompts: Any, *arguments: Any, **settings: Any) -> list[Completion]:
        found = super().generate(prompts, *arguments, **settings)
        return [
            replace(one, error="lost") if "b:" in prompt else one
            for prompt, one in zip(prompts, found, strict=True)
        ]


@pytest.mark.parametrize("more", [{}, {"c": "{question}!"}])
def test_failures_are_said_where_nothing_is_paired(more: dict[str, str]) -> None:
    engine: Any = Lost()
    made = wb.compare_prompts(FRAME, engine, {"a": None, "b": "b:{question}", **more})
    assert '"b" shares no answered item with "a"; 8 of "b" failed: lost' in made.finding
    made.figure()
    assert "8 failed: lost" in repr(made.reports["b"])
    assert "0 of 8" not in repr(made.reports["b"])
    free = evaluate(FRAME, engine, max_cost=0, **PRICES)
    assert free.provenance["cost"]["max_cost"] == 0
    for wrong in ("vllm", None, Lost):
        calls: list[Any] = [evaluate, sample_uncertainty]
        for call in calls:
            with pytest.raises(InputError, match="open_engine"):
                call(FRAME, wrong)


def test_a_kept_report_of_another_wording_says_so(tmp_path: Path) -> None:
    engine: Any = Letters()
    wb.compare_prompts(FRAME, engine, {"a": None, "b": "{question}!"}, folder=tmp_path)
    with pytest.raises(InputError, match=r"b has prompt='\{question\}!', but here it is"):
        wb.compare_prompts(FRAME, engine, {"a": None, "b": "{question}?"}, folder=tmp_path)


def test_names_of_wordings_are_texts(plain: VLLMEngine) -> None:
    with pytest.raises(InputError, match="two names are the same as text"):
        wb.compare_prompts(FRAME, plain, {1: "{question}", "1": None})  # type: ignore[dict-item]


def test_a_server_counts_the_tokens(server: Server, tmp_path: Path) -> None:
    url, store = server.url, tmp_path / "store.sqlite"
    with wb.open_engine(engine="remote", base_url=url, store=store) as engine:
        estimate = evaluate("sums", engine, count=5, dry_run=True)
        chats = evaluate("sums", engine, count=5, dry_run=True, style="chat")
        assert engine.usage.requests == 0
        report = evaluate("sums", engine, count=5)
        asked = evaluate("sums", engine, count=5, style="chat")
    assert (estimate.requests, estimate.counted) == (5, True)
    assert estimate.prompt_tokens == report.usage.prompt_tokens
    assert (chats.counted, chats.prompt_tokens) == (True, asked.usage.prompt_tokens)


def test_amounts_read_well() -> None:
    assert [money(x) for x in (0, 1234.5, 0.000123, 0.05)] == [
        "0.00",
        "1,234.50",
        "0.00012",
        "0.05",
    ]
    estimate = Estimate(10, 1000, 500, prices=Prices(1, 2), minutes=2.5)
    assert repr(estimate) == (
        "at most 10 requests, about 1,000 prompt tokens and at most 500 completion tokens; a cost "
        "of at most 0.002, at 1.00 and 2.00 per million tokens, 2.5 minutes at the rate limits"
    )


def test_options_are_read_from_the_source_as_they_are() -> None:
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs

    assert _arguments() == [field.name for field in fields(EngineArgs)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--agent", "majority_vot"], "did you mean 'majority_vote'"),
        (["--prompt", "{qestion}"], "no field 'qestion'"),
        (["--max-cost", "3"], "set price_in and price_out"),
        (["-o", "max_model_le=3"], "did you mean 'max_model_len'"),
        (["--engine", "vlm"], "engine='vlm' is unknown"),
    ],
)
def test_mistakes_are_found_before_a_model_is_imported(options: list[str], said: str) -> None:
    code = (
        "import sys; from workbench.cli import app; sys.argv[0] = 'workbench'\n"
        "try: app()\n"
        "finally: print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, "eval", "--task", "sums", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == "[]\n"


def test_the_command_estimates(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workbench", "eval", "--task", "sums", "--count", "4"]
    command += ["--engine", "transformers", "--store", str(tmp_path / "store.sqlite")]
    command += ["--estimate", "--price-in", "1", "--price-out", "2", "--max-tokens", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("at most 4 requests, ")
    assert "at most 20 completion tokens; a cost of at most" in done.stdout


def test_an_example_has_its_answer_apart_from_the_words_of_a_template() -> None:
    """A task whose answers follow a sign at once has no separator between the two."""
    task = Sums()
    worded = task.prompt(task.items(1)[0], 2, "completion", "{question} Think.")
    assert len(re.findall(r"Think\. \d+\n", str(worded))) == 2
