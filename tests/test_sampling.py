"""Uncertainty of answers in free text: entropies by hand, then answers that a script gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from workbench.agents.methods import VERIFY, yes_or_no
from workbench.agents.program import AgentCase
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.judge import Template
from workbench.tasks import OwnTask, WordProblems
from workbench.types import (
    Completion,
    Engine,
    EngineInfo,
    Grade,
    Item,
    LabelScores,
    Report,
    Sampling,
    TokenLogprob,
    Usage,
)
from workbench.uncertainty.sampling import (
    SAME,
    Same,
    discrete_entropy,
    judged,
    sample_uncertainty,
    semantic_entropy,
)
from workbench.uncertainty.selective_prediction import selective, signals

BY_COUNTS = [
    ([6], 0.0),
    ([1, 1, 2, 2], 1.3296613488547582),
    ([2, 4], 0.6365141682948128),
    ([1, 5], 0.45056120886630463),
    ([1, 1, 4], 0.8675632284814612),
]
INFO = EngineInfo(
    engine="script", model="none", revision="", device="", dtype="", context_length=0,
    versions={}, why="test",
)  # fmt: skip


def answer(text: str | None, logprobs: Sequence[float] | None = (-1.0,)) -> Completion:
    """One of a script: None is a failure."""
    if text is None:
        return Completion(text="", finish_reason="error", error="it broke")
    tokens = None if logprobs is None else tuple(TokenLogprob(0, one) for one in logprobs)
    return Completion(text=text, finish_reason="stop", logprobs=tokens)


class Script:
    """An engine that answers by the question in the prompt: first greedily, then with samples."""

    def __init__(
        self,
        said: Mapping[str, tuple[Completion, Sequence[Completion]]],
        weigh: Callable[[str], Sequence[float] | str] = lambda _: (-1.0, -1.0),
    ) -> None:
        self.said, self.weigh = said, weigh
        self.asked: list[Sampling] = []
        self.weighed: list[list[str]] = []
        self.info, self.requests = INFO, 0

    @property
    def usage(self) -> Usage:
        return Usage(requests=self.requests)

    def generate(self, prompts: Any, sampling: Sampling, *, errors: str) -> list[Completion]:
        assert errors == "return"
        self.asked.append(sampling)
        self.requests += len(prompts)
        return [self._answer(prompt, sampling) for prompt in prompts]

    def _answer(self, prompt: Any, sampling: Sampling) -> Completion:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        greedy, drawn = next(said for question, said in self.said.items() if question in text)
        if sampling.n == 1:
            return greedy
        assert len(drawn) == sampling.n
        failed = next((one.error for one in drawn if one.error), None)
        return replace(drawn[0], error=failed, _samples=tuple(drawn))

    def label_logprobs(self, prompts: Any, labels: Any, *, errors: str) -> LabelScores:
        assert errors == "return"
        assert prompts
        self.weighed.append(list(prompts))
        weighed = [self.weigh(prompt) for prompt in prompts]
        rows = np.array([(-np.inf, -np.inf) if isinstance(one, str) else one for one in weighed])
        missing = np.isnan(rows)  # NaN stands for a label known by its bound only
        upper = np.where(missing, -0.5, rows)
        reasons = tuple(one if isinstance(one, str) else None for one in weighed)
        return LabelScores(np.where(missing, -np.inf, rows), upper, missing, reasons)


def task(**answers: str) -> OwnTask:
    rows = [{"question": f"{name}?", "answer": gold} for name, gold in answers.items()]
    return OwnTask(rows, style="gsm8k")


def run(
    own: OwnTask, script: Script, samples: int, **more: Any
) -> tuple[Report, dict[str, dict[str, Any]]]:
    """The report, and its rows by question."""
    report = sample_uncertainty(own, cast("Engine", script), samples=samples, **more)
    questions = {item.id: item.fields["question"] for item in own.items()}
    rows = {questions[row["id"]]: row for row in report.rows.to_dict("records")}
    return report, cast("dict[str, dict[str, Any]]", rows)


def numbers(*texts: str | None) -> list[Completion]:
    return [answer(None if text is None else f"#### {text}") for text in texts]


@pytest.mark.parametrize(("counts", "entropy"), BY_COUNTS)
def test_entropies_by_hand(counts: list[int], entropy: float) -> None:
    assert discrete_entropy(counts) == pytest.approx(entropy, abs=1e-15)
    places = iter(range(sum(counts)))
    clusters = [[next(places) for _ in range(n)] for n in counts]
    alike = [-1.7] * sum(counts)  # equally likely samples count as they are
    assert semantic_entropy(clusters, alike) == pytest.approx(entropy, abs=1e-15)
    assert discrete_entropy(counts[::-1]) == discrete_entropy(counts)
    assert semantic_entropy(clusters[::-1], alike) == semantic_entropy(clusters, alike)


def test_likelihoods_weigh_meanings() -> None:
    logliks = [math.log(0.2), math.log(0.1), math.log(0.1)]
    assert semantic_entropy([[0], [1, 2]], logliks) == pytest.approx(math.log(2), abs=1e-15)
    by_hand = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert semantic_entropy([[0, 2], [1]], logliks) == pytest.approx(by_hand, abs=1e-15)
    assert semantic_entropy([[2], [0, 1]], logliks) == pytest.approx(by_hand, abs=1e-15)


def test_entropies_keep_their_scale() -> None:
    rng = np.random.default_rng(0)
    for n in range(1, 40):
        logliks = rng.normal(-3, 2, n).tolist()
        one = semantic_entropy([rng.permutation(n).tolist()], logliks)
        assert str(one) == "0.0"
        assert semantic_entropy([[i] for i in range(n)], [-0.3] * n) <= math.log(n)
    assert str(discrete_entropy([3])) == "0.0"
    assert semantic_entropy([[0], [1]], [-1.0, -9999.0]) == 0  # as servers say "never"


@pytest.mark.parametrize("counts", [[], [0, 2], [1.5], [float("nan")], [float("inf")], [-1]])
def test_no_counts(counts: list[int]) -> None:
    with pytest.raises(InputError, match="size of each cluster"):
        discrete_entropy(counts)


@pytest.mark.parametrize(
    ("clusters", "logliks", "match"),
    [
        ([], [], "each of their places"),
        ([[0]], [-1.0, -1.0], "each of their places"),
        ([[0, 0], [1]], [-1.0, -1.0], "each of their places"),
        ([[0], [2]], [-1.0, -1.0], "each of their places"),
        ([[0, 1], []], [-1.0, -1.0], "each of their places"),
        ([[0], [1]], [-1.0, float("nan")], "finite"),
        ([[0], [1]], [-1.0, -math.inf], "finite"),
    ],
)
def test_no_clusters(clusters: list[list[int]], logliks: list[float], match: str) -> None:
    with pytest.raises(InputError, match=match):
        semantic_entropy(clusters, logliks)


def test_a_row_by_hand() -> None:
    drawn = [
        answer("#### 4", [math.log(0.4)] * 3),  # the mean over its tokens: length is nothing
        answer("so #### 4.0", [math.log(0.2)]),
        answer("#### 5", [math.log(0.2), math.log(0.2)]),
        answer("hm", [math.log(0.1)]),
        answer("well", [math.log(0.1)]),
    ]
    greedy = answer("#### 5", [-0.5, -0.1])
    weigh = {True: (math.log(0.3), math.log(0.1))}
    script = Script({"a?": (greedy, drawn)}, lambda prompt: weigh["a?" in prompt])
    report, rows = run(task(a="4"), script, 5, temperature=0.7, seed=3)
    row = rows["a?"]
    assert (row["text"], row["correct"], row["parsed"], row["length"]) == ("#### 5", False, True, 2)
    assert pd.isna(row["error"])
    assert pd.isna(row["unknown"])
    assert (row["n_samples"], row["n_failed"], row["n_unparsed"]) == (5, 0, 2)
    assert row["clusters"] == 4  # the two unreadable ones are not one answer
    assert row["majority_share"] == 2 / 5
    assert (row["majority_text"], row["majority_correct"]) == ("#### 4", True)
    assert row["entropy_discrete"] == pytest.approx(discrete_entropy([2, 1, 1, 1]))
    shares = np.array([0.6, 0.2, 0.1, 0.1])
    assert row["entropy_weighted"] == pytest.approx(-(shares * np.log(shares)).sum())
    assert row["mean_logprob"] == pytest.approx(-0.3)
    assert row["p_true"] == pytest.approx(0.75)
    greedily, drawing = script.asked
    assert (greedily.n, greedily.temperature, greedily.logprobs) == (1, 0, 0)
    assert (drawing.n, drawing.temperature, drawing.logprobs) == (5, 0.7, 0)
    assert drawing.seed is not None
    asked = VERIFY.format(problem="a?", text="#### 5")
    assert script.weighed == [[f"{asked}\nReply:"]]  # in words for any model
    values = {metric.name: metric.value for metric in report.summary}
    assert (values["accuracy"], values["majority accuracy"]) == (0, 1)
    assert values["mean p true"] == row["p_true"]
    about = report.provenance
    assert (about["samples"], about["temperature"], about["same"]) == (5, 0.7, "grader")
    assert (about["sampling"]["n"], about["count"], about["seed"]) == (5, 1, 3)
    assert report.usage.requests == 2


def test_a_seed_draws_other_samples() -> None:
    scripts = [Script({"a?": (answer("#### 4"), numbers("4", "4"))}) for _ in range(3)]
    for script, seed in zip(scripts, (0, 0, 1), strict=True):
        run(task(a="4"), script, 2, seed=seed)
    seeds = [script.asked[1].seed for script in scripts]
    assert seeds[0] == seeds[1] != seeds[2]


def test_failures_are_rows_without_numbers(tmp_path: Path) -> None:
    said = {
        "a?": (answer("#### 4"), numbers("4", None, "4")),
        "b?": (answer("#### 4"), numbers(None, None, None)),
        "c?": (answer(None), numbers("4", "4", "4")),
        "d?": (answer("hm"), [answer("hm")] * 3),
    }
    report, rows = run(task(a="4", b="4", c="4", d="4"), script := Script(said), 3)
    assert (rows["a?"]["n_samples"], rows["a?"]["n_failed"]) == (2, 1)
    assert (rows["a?"]["majority_share"], rows["a?"]["entropy_weighted"]) == (1, 0)
    assert rows["b?"]["error"] == "all samples failed: it broke"
    assert rows["c?"]["error"] == "the greedy answer failed: it broke"
    for name in "bc":
        row = rows[f"{name}?"]
        numeric = ["majority_share", "entropy_discrete", "entropy_weighted", "mean_logprob"]
        assert all(math.isnan(row[one]) for one in [*numeric, "p_true"])
        assert pd.isna(row["clusters"])
        assert pd.isna(row["n_unparsed"])
        assert not row["correct"]
    babble = rows["d?"]
    assert (babble["clusters"], babble["n_unparsed"], babble["majority_share"]) == (3, 3, 0)
    assert babble["entropy_discrete"] == pytest.approx(math.log(3))
    assert (babble["majority_text"], babble["majority_correct"]) == ("", False)
    assert len(script.weighed[0]) == 2
    for metric in report.summary[:2]:
        assert (metric.value, metric.n, metric.n_failed, metric.n_unparsed) == (0.5, 2, 2, 1)
    report.save(tmp_path / "report")
    back = pd.read_parquet(tmp_path / "report" / "rows.parquet")
    for name, values in signals(back).items():
        assert values.tolist() == signals(report)[name].tolist()


def test_nothing_came_at_all(tmp_path: Path) -> None:
    script = Script({"a?": (answer(None), numbers(None, None))})
    report, rows = run(task(a="4"), script, 2)
    assert rows["a?"]["error"] is not None
    assert script.weighed == []
    assert all(math.isnan(metric.value) for metric in report.summary)
    assert {metric.n_failed for metric in report.summary} == {1}
    with pytest.raises(InputError, match="none with signals"):
        selective(report)
    report.save(tmp_path / "report")


def test_a_signal_that_is_not_known_has_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    said = {
        "a?": (answer("#### 1", None), numbers("1", "2")),
        "b?": (answer("#### 1"), [answer("#### 1"), answer("#### 1", ())]),
        "c?": (answer("#### 1"), numbers("1", "1")),
        "d?": (answer("#### 1"), numbers("1", "1")),
        "e?": (answer("#### 1"), numbers("1", "1")),
    }
    weigh: dict[str, Sequence[float] | str] = {"c?": "too long", "d?": (-1.0, math.nan)}
    script = Script(said, lambda p: next((w for q, w in weigh.items() if q in p), (-1.0, -1.0)))
    report, rows = run(task(a="1", b="1", c="1", d="1", e="1"), script, 2)
    assert math.isnan(rows["a?"]["mean_logprob"])
    assert "mean_logprob" in rows["a?"]["unknown"]
    assert math.isnan(rows["b?"]["entropy_weighted"])
    assert rows["b?"]["entropy_discrete"] == 0
    assert rows["c?"]["unknown"] == "p_true: too long"
    assert "exact" in rows["d?"]["unknown"]
    assert math.isnan(rows["d?"]["p_true"])
    assert pd.isna(rows["e?"]["unknown"])
    assert report.summary[0].n == 5  # their answers are known all the same
    assert {name: len(values) for name, values in signals(report).items()} == {
        "majority share": 1, "semantic entropy": 1, "discrete entropy": 1,
        "mean log-probability": 1, "p(true)": 1,
    }  # fmt: skip
    assert "4 of 5 rows are left out" in caplog.text


def test_a_grader_that_raises_costs_its_row() -> None:
    class Picky(OwnTask):
        def grade(self, item: Item, text: str) -> Grade:
            if "9" in text:
                raise ZeroDivisionError("nine")
            return super().grade(item, text)

    own = Picky([{"question": "a?", "answer": "4"}, {"question": "b?", "answer": "4"}])
    said = {
        "a?": (answer("#### 4"), numbers("4", "9")),
        "b?": (answer("#### 4"), numbers("4", "4")),
    }
    _, rows = run(own, Script(said), 2)
    assert rows["a?"]["error"] == "the task's grader raised ZeroDivisionError: nine"
    assert not rows["a?"]["correct"]
    assert pd.isna(rows["b?"]["error"])


def by_hand(texts: Sequence[str], equal: Callable[[str, str], bool]) -> list[int]:
    """Sizes of clusters, one text after the other."""
    groups: list[list[str]] = []
    for text in texts:
        mine = next((group for group in groups if equal(group[0], text)), None)
        if mine is None:
            groups.append(mine := [])
        mine.append(text)
    return [len(group) for group in groups]


def test_a_function_is_asked_in_rounds() -> None:
    def near(one: str, other: str) -> bool:  # not transitive: what comes first decides
        return abs(int(one[5:]) - int(other[5:])) <= 1

    drawn = {
        "a?": ["3", "4", "5", "3", "9", "2", "6"],
        "b?": ["1", "1", "1", "1", "1", "1", "1"],
        "c?": ["1", "3", "5", "7", "5", "6", "4"],
    }
    rounds: list[list[tuple[str, str, str]]] = []

    def same(pairs: Sequence[tuple[Item, str, str]]) -> list[bool]:
        rounds.append([(item.fields["question"], one, other) for item, one, other in pairs])
        return [near(one, other) for _, one, other in pairs]

    said = {name: (answer("#### 1"), numbers(*texts)) for name, texts in drawn.items()}
    report, rows = run(task(a="1", b="1", c="7"), Script(said), 7, same=same)
    for name, texts in drawn.items():
        sizes = by_hand([f"#### {text}" for text in texts], near)
        row = rows[name]
        assert row["clusters"] == len(sizes)
        assert row["majority_share"] == max(sizes) / 7
        assert row["entropy_discrete"] == pytest.approx(discrete_entropy(sizes))
    assert rows["c?"]["majority_text"] == "#### 5"
    assert len(rounds) == 3
    assert {name for name, _, _ in rounds[0]} == {"a?", "c?"}  # equal texts are no question
    every = [pair for pairs in rounds for pair in pairs]
    assert len(set(every)) == len(every)
    assert report.provenance["same"] == "same"


def test_a_function_may_not_know() -> None:
    said = {
        "a?": (answer("#### 1"), numbers("1", "2", "3")),
        "b?": (answer("#### 1"), [*numbers("1", "2"), answer("hm")]),
    }

    def same(pairs: Sequence[tuple[Item, str, str]]) -> list[bool | None]:
        return [None if (item.fields["question"], b) == ("a?", "#### 3") else np.True_ == 1
                for item, _, b in pairs]  # fmt: skip

    report, rows = run(task(a="1", b="1"), Script(said), 3, same=same)
    assert rows["a?"]["unknown"].startswith("clusters")
    assert pd.isna(rows["a?"]["error"])
    assert rows["a?"]["correct"]
    assert math.isnan(rows["a?"]["majority_share"])
    assert pd.isna(rows["b?"]["unknown"])
    assert (rows["b?"]["clusters"], rows["b?"]["n_unparsed"]) == (2, 1)
    assert [(m.n, m.n_failed) for m in report.summary[:3]] == [(2, 0), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    "verdicts",
    [[], [True, False], None, [1], ["yes"], iter([True])],
    ids=["none", "two", "nothing", "a number", "a text", "an iterator"],
)
def test_verdicts_that_are_none(verdicts: Any) -> None:
    script = Script({"a?": (answer("#### 1"), numbers("1", "2"))})
    with pytest.raises(InputError, match="same gave"):
        run(task(a="1"), script, 2, same=lambda pairs: verdicts)


def test_a_judge_must_say_so_in_both_orders() -> None:
    yes, no, open_ = (-0.1, -3.0), (-3.0, -0.1), (-1.0, -1.0)
    weights_of = {
        ("x", "y"): yes, ("y", "x"): yes,
        ("x", "z"): yes, ("z", "x"): no,
        ("x", "u"): yes, ("u", "x"): open_,
        ("x", "v"): no, ("v", "x"): "broken",
        ("x", "w"): (-0.1, math.nan), ("w", "x"): yes,
    }  # fmt: skip
    item = Item("1", {"question": "Which {a}?"}, "x")
    prompts = {
        SAME.fill({"problem": "Which {a}?", "a": a, "b": b, "reference": None}): weights
        for (a, b), weights in weights_of.items()
    }
    script = Script({}, lambda prompt: cast("Sequence[float] | str", prompts[prompt]))
    same = judged(cast("Engine", script))
    found = same([(item, "x", other) for other in "yzuvw"])
    assert list(found) == [True, False, None, False, True]
    assert len(script.weighed) == 1
    assert len(script.weighed[0]) == 10


def test_a_judge_groups_answers() -> None:
    own = OwnTask([{"question": "a?", "answer": "four"}], style="exact")
    drawn = [answer(text) for text in ("four", "a four", "five", " four ", "the four")]

    def weigh(prompt: str) -> tuple[float, float]:
        return (-2.0, -0.1) if "five" in prompt else (-0.1, -2.0)

    script = Script({"a?": (answer("four"), drawn)}, weigh)
    report, rows = run(own, script, 5, same=judged(cast("Engine", script)), p_true=False)
    assert (rows["a?"]["clusters"], rows["a?"]["majority_share"]) == (2, 0.8)
    assert [len(prompts) for prompts in script.weighed] == [6]
    assert report.provenance["same"].startswith("judged(none, template ")
    assert math.isnan(rows["a?"]["p_true"])
    assert "mean p true" not in {metric.name for metric in report.summary}
    assert "p(true)" not in signals(report)


@pytest.mark.parametrize(
    "template",
    ["same?", Template("{problem} {candidate}", ("yes", "no")),
     Template("{problem} {a} {b}", ("a", "b", "tie"))],
    ids=["text", "one answer", "three choices"],
)  # fmt: skip
def test_a_template_that_compares_nothing(template: Any) -> None:
    with pytest.raises(InputError, match="give a Template"):
        judged(cast("Engine", Script({})), template)


def test_bad_input_is_refused_before_any_work() -> None:
    script = Script({"a?": (answer("#### 4"), numbers("4", "4"))})
    for more, match in (
        ({"samples": 1}, "samples=1"),
        ({"samples": 2.5}, "samples=2.5"),
        ({"samples": 2, "temperature": 0}, "temperature=0"),
        ({"samples": 2, "temperature": math.nan}, "temperature=nan"),
        ({"samples": 2, "same": "nli"}, "same='nli'"),
        ({"samples": 2, "seed": -1}, "seed=-1"),
        ({"samples": 2, "count": 5}, "count=5"),
    ):
        with pytest.raises(InputError, match=match):
            run(task(a="4"), script, **cast("dict[str, Any]", more))
    assert script.asked == []


def test_a_task_without_items() -> None:
    class Empty(OwnTask):
        def items(self, count: int | None = None, seed: int = 0) -> list[Item]:
            return []

    with pytest.raises(InputError, match="no items"):
        sample_uncertainty(
            Empty([{"question": "a?", "answer": "4"}]), cast("Engine", Script({})), samples=2
        )


def test_chats_and_texts_that_cannot_be_written(tmp_path: Path) -> None:
    said = {"a?": (answer("#### 4 \ud800"), [answer("#### 4 \ud800")] * 2)}
    report, rows = run(task(a="4"), script := Script(said), 2, style="chat")
    assert rows["a?"]["text"] == "#### 4 ?"
    assert rows["a?"]["majority_text"] == "#### 4 ?"
    assert rows["a?"]["length"] == 2
    assert script.asked
    report.save(tmp_path / "report")


def test_signals_are_higher_where_surer() -> None:
    names = "abcdefgh"
    said, gold = {}, {}
    for place, name in enumerate(names):
        sure = place % 2 == 0
        drawn = numbers(*("1111" if sure else "1234"))
        said[f"{name}?"] = (answer("#### 1", [-0.1 if sure else -2.0]), drawn)
        gold[name] = "1" if sure else "2"
    sure_of = {f"{name}?" for name in names[::2]}
    script = Script(
        said, lambda prompt: (-0.1, -2.0) if any(q in prompt for q in sure_of) else (-2.0, -0.1)
    )
    report, _ = run(task(**gold), script, 4)
    table = selective(report, resamples=50).set_index("signal")
    assert list(table.index) == [*signals(report), "random", "length"]
    assert (table["auroc"].drop(["random", "length"]) == 1).all()
    assert table["auroc"]["length"] == 0.5
    assert (table["n"] == 8).all()
    assert selective(report.rows, resamples=50).equals(selective(report, resamples=50))


def test_the_embedded_model_knows_when_it_knows(plain: VLLMEngine) -> None:
    report = sample_uncertainty(WordProblems(), plain, 48, samples=5)
    rows = report.rows
    assert rows["error"].isna().all()
    assert rows["unknown"].isna().all()
    assert rows["majority_share"].between(0, 1).all()
    assert rows["entropy_discrete"].between(0, math.log(5)).all()
    assert rows["p_true"].between(0, 1).all()
    assert (rows["mean_logprob"] <= 0).all()
    assert report.usage.requests == 48 * (1 + 5 + 1)
    table = selective(report, resamples=100).set_index("signal")
    assert table["auroc"]["majority share"] > 0.5
    own = WordProblems()
    item = next(item for item in own.items(48) if item.id == rows["id"][0])
    score = yes_or_no(AgentCase(own, item, own.prompt(item), own.sampling), rows["text"][0])
    yes, no = np.exp(plain.label_logprobs([score.prompt], score.labels).logprobs[0])
    assert rows["p_true"][0] == pytest.approx(yes / (yes + no), abs=1e-4)


def test_the_embedded_model_judges_in_batches(
    plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real: Same = judged(plain)

    def same(pairs: Sequence[tuple[Item, str, str]]) -> Sequence[bool | None]:
        calls.append(len(pairs))
        return real(pairs)

    report = sample_uncertainty(WordProblems(), plain, 6, samples=4, same=same, p_true=False)
    rows = report.rows
    assert rows["unknown"].isna().all()
    assert rows["clusters"].between(1, 4).all()
    assert len(calls) <= 3
    assert sum(calls) <= 6 * 6
