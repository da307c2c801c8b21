from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from fakes import FakeEngine

from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.judge import (
    Case,
    Judge,
    LLMJudgeClient,
    Mode,
    Pair,
    Template,
    builtin,
    cases_of,
    compute_llm_judge_scores_batch,
)
from workbench.judge.votes import read
from workbench.tasks.word_problems import Verdicts, WordProblems, verdict_prompt
from workbench.types import (
    Completion,
    Engine,
    Errors,
    LabelScores,
    Metric,
    Prompt,
    Report,
    Sampling,
    Usage,
)

CASE = Case("1+1?", "2", "2")
PAIR = Pair("1+1?", "2", "3")


def cases(count: int, *, reference: bool = True) -> list[Case]:
    """Half of them right, by construction."""
    return [
        Case(
            item.fields["problem"],
            item.fields["candidate"],
            item.fields["reference"] if reference else None,
            gold=item.answer == "Yes",
            id=item.id,
        )
        for item in Verdicts().items(count)
    ]


def metric(report: Report, name: str) -> Metric:
    return next(one for one in report.summary if one.name == name)


def verdict_list(report: Report, column: str = "verdict") -> list[object]:
    return [None if pd.isna(value) else value for value in report.rows[column]]


def user(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[0]["content"]


def said(text: str, finish: Any = "stop") -> Completion:
    return Completion(text=text, finish_reason=finish)


def failed(reason: str) -> Completion:
    return Completion(text="", finish_reason="error", error=reason)


class Fake(FakeEngine):
    """An engine for faults that a real one cannot be made to have."""

    def __init__(
        self,
        answer: Callable[[str, Sampling], Completion] = lambda prompt, sampling: said("correct"),
        scores: LabelScores | None = None,
    ) -> None:
        super().__init__(model="fake", context_length=1)
        self.answer, self.scores = answer, scores
        self.asked: list[Sampling] = []

    def generate(
        self,
        prompts: Any,
        sampling: Sampling = Sampling(),  # noqa: B008
        *,
        errors: Errors = "raise",
    ) -> list[Completion]:
        self.asked.append(sampling)
        return [self.answer(user(prompt), sampling) for prompt in prompts]

    def label_logprobs(self, prompts: Any, labels: Any, *, errors: Errors = "raise") -> LabelScores:
        assert self.scores is not None
        return self.scores

    def close(self) -> None:
        self.usage = Usage()

    def __exit__(self, *exc: object) -> None:
        self.close()


def saying(*texts: str) -> Fake:
    """Answers each case of a list with its own text."""
    turn = iter(texts)
    return Fake(lambda prompt, sampling: said(next(turn)))


# Templates


def test_the_embedded_model_is_asked_as_it_was_trained() -> None:
    template = builtin("tiny")
    for case in cases(5):
        assert template.fill(case.values()) == verdict_prompt(
            case.problem, case.candidate, case.reference
        )
        assert template.fill(replace(case, reference=None).values()) == verdict_prompt(
            case.problem, case.candidate
        )
    assert template.choices == Verdicts.labels


def test_what_is_filled_in_stays_as_it_is() -> None:
    template = Template(
        "{problem}\n{reference}\n{candidate} {{candidate}} {x: 1}", ("y", "n"), "completion"
    )
    filled = template.fill(Case("{candidate}", "{problem} {0} {{a}}", "\\1 {").values())
    assert filled == "{candidate}\n\\1 {\n{problem} {0} {{a}} {candidate} {x: 1}"


def test_built_in_chats_leave_no_place_open() -> None:
    for name, case in (("pointwise", CASE), ("rubric", CASE), ("pairwise", PAIR)):
        for reference in (None, "it is 2"):
            prompt = builtin(name).fill(replace(case, reference=reference).values())
            assert not isinstance(prompt, str)
            assert [message["role"] for message in prompt] == ["user"]
            text = user(prompt)
            assert ("<reference>" in text) is ("it is 2" in text) is (reference is not None)
            assert not {"{", "}"} & set(text)


@pytest.mark.parametrize(
    ("text", "choices", "reason"),
    [
        ("{problem}", ("y", "n"), "lacks {candidate}"),
        ("{candidate}", ("y", "n"), "lacks {problem}"),
        ("{problem} {a}", ("y", "n"), "lacks {b}"),
        ("{problem} {a} {b} {candidate}", ("y", "n"), "a choice of one kind"),
        ("{problem} {candidate} {answer}", ("y", "n"), "unknown placeholder {answer}"),
        ("{problem} {candidate} {reference}", ("y", "n"), "on a separate line"),
        ("{problem} {candidate}", ("yes",), "two verdicts or more"),
        ("{problem} {candidate}", "yn", "two verdicts or more"),
        ("{problem} {candidate}", ("Yes", " yes."), "differ by more"),
        ("{problem} {candidate}", ("a", "b\n"), "words on a single line"),
        ("{problem} {candidate}", ("a", "**"), "words on a single line"),
        (" ", ("a", "b"), "non-empty text"),
    ],
)
def test_a_template_says_what_is_wrong_with_it(text: str, choices: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Template(text, choices)


def test_a_template_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text('style: completion\nchoices: ["1", "0"]\n---\n{problem}\n---\n{candidate}:\n')
    template = Template.load(path)
    assert template == Template(
        "{problem}\n---\n{candidate}:", ("1", "0"), "completion", name="mine"
    )
    assert template.digest == replace(template, name="other").digest
    assert template.digest != replace(template, choices=("0", "1")).digest
    assert Judge(Fake(), path).pointwise([CASE], "generate").provenance["templates"] == [
        {"name": "mine", "digest": template.digest}
    ]
    for content, reason in (
        ("{problem} {candidate}", "mine.txt:1: no header"),
        ("style: chat\n---\n{problem} {candidate}", "names no choices"),
        ("choices: a, b\n---\n{problem} {candidate}", "mine.txt:1: .* is not JSON"),
        ("labels: 1\n---\n{problem} {candidate}", "mine.txt:1: .* is not a header line"),
        ('choices: ["a", "b"]\nstyle: poem\n---\n{problem} {candidate}', "style='poem'"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=reason):
            Template.load(path)
    with pytest.raises(InputError, match=r"none\.txt: No such file.*; give a template's file"):
        Judge(Fake(), tmp_path / "none.txt")


# Reading


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("correct", 0),
        (" Correct.\n", 0),
        ("**INCORRECT**", 1),
        ("It is wrong.\n\nVerdict: incorrect.", 1),
        ("Reasons\n**Verdict:** Correct", 0),
        ('{"verdict": "incorrect"}', 1),
        ("<think>incorrect?</think>\n\ncorrect", 0),
        ("The answer is correct.", None),
        ("not correct", None),
        ("incorrect, no: correct", None),
        ("Verdict: correct\nBut then again", None),
        ("Verdict: not correct", None),
        ("Verdict:", None),
        ('{"verdict": "maybe"}', None),
        ('{"verdict": ["correct"]}', None),
        ('{"reason": "it adds up", "verdict": "correct"}', 0),
        ('```json\n{"verdict": "incorrect"}\n```', 1),
        ("It adds up. [[correct]]", 0),
        ("[[correct]] or [[incorrect]]", None),
        ("It does not.\nFinal verdict: incorrect", 1),
        ("Verdict：correct", 0),
        ('{"verdict": "correct"', None),
        ('{"verdict":' * 100_000, None),
        ("<think>so far\nVerdict: correct", None),
        ("correct incorrect", None),
        ("", None),
        (" \n", None),
    ],
)
def test_an_answer_is_a_verdict_or_none(text: str, place: int | None) -> None:
    assert read(text, ("correct", "incorrect")) == place


# Pointwise, with the embedded model


def test_the_embedded_judge_knows_right_from_wrong_by_the_reference(plain: VLLMEngine) -> None:
    report = Judge(plain).pointwise(cases(100))
    assert metric(report, "balanced accuracy").value > 0.95
    assert metric(report, "Cohen's kappa").low > 0.8
    truth = sum(case.gold is True for case in cases(100))
    accepted = metric(report, "accepted")
    assert accepted.value == pytest.approx(truth / 100, abs=0.05)
    assert (accepted.n, accepted.n_failed, accepted.n_unparsed) == (100, 0, 0)
    assert report.rows["id"].tolist() == [case.id for case in cases(100)]
    assert report.provenance["outputs"] == [["choices"]]
    assert report.provenance["templates"][0]["name"] == "tiny"
    assert report.usage.requests == 100


def test_without_the_reference_it_is_little_better_than_chance(plain: VLLMEngine) -> None:
    report = Judge(plain).pointwise(cases(100, reference=False), "logprob")
    assert 0.45 < metric(report, "balanced accuracy").value < 0.75
    assert metric(report, "Cohen's kappa").value < 0.5


def test_written_verdicts_are_the_likelier_ones(plain: VLLMEngine) -> None:
    asked = [*cases(60), *cases(60, reference=False)]
    written = Judge(plain).pointwise(asked).rows
    likelier = Judge(plain).pointwise(asked, "logprob").rows
    assert (written["verdict"] == likelier["verdict"]).mean() > 0.97
    assert written["probability"].isna().all()
    assert ((likelier["probability"] > 0.5) == likelier["verdict"]).all()
    prompt = verdict_prompt(asked[0].problem, asked[0].candidate, asked[0].reference)
    yes, no = np.exp(plain.label_logprobs([prompt], Verdicts.labels).logprobs[0])
    assert likelier["probability"][0] == pytest.approx(yes / (yes + no), abs=1e-5)


def test_samples_decide_by_majority_and_repeat(plain: VLLMEngine) -> None:
    asked = cases(20, reference=False)
    judge = Judge(plain, samples=5, temperature=1.0, seed=1)
    rows = judge.pointwise(asked).rows
    again = judge.pointwise(asked).rows
    assert rows["votes"].tolist() == again["votes"].tolist()
    assert all(len(votes) == 5 for votes in rows["votes"])
    assert any(len(set(votes)) == 2 for votes in rows["votes"])  # or nothing is decided here
    for votes, verdict in zip(rows["votes"], rows["verdict"], strict=True):
        assert verdict == (sum(votes) > 2)
    other = Judge(plain, samples=5, temperature=1.0, seed=2).pointwise(asked).rows
    assert other["votes"].tolist() != rows["votes"].tolist()


def test_several_judges(plain: VLLMEngine, kept: VLLMEngine) -> None:
    report = Judge([plain, kept]).pointwise(cases(10))
    assert all(len(votes) == 2 and votes[0] == votes[1] for votes in report.rows["votes"])
    assert report.usage.requests == 20
    assert report.usage.prompt_tokens == 2 * Judge(plain).pointwise(cases(10)).usage.prompt_tokens
    assert len(report.provenance["engines"]) == 2
    harsh = Fake(lambda p, s: said("incorrect"))
    harsh.usage = Usage(cached_tokens=None)  # as for a server that does not report it
    mixed = Judge([plain, harsh]).pointwise(cases(10))
    assert mixed.usage.cached_tokens is None
    assert [t["name"] for t in mixed.provenance["templates"]] == ["tiny", "pointwise"]
    assert set(verdict_list(mixed)) == {None, False}  # one against one is a tie
    assert metric(mixed, "accepted").n_unparsed == sum(c.gold is True for c in cases(10))


def test_a_saved_report_is_judged_again_without_generating(
    plain: VLLMEngine, kept: VLLMEngine, tmp_path: Path
) -> None:
    folder = evaluate(WordProblems(), plain, count=20).save(tmp_path / "answers")
    rows = pd.read_parquet(folder / "rows.parquet")
    asked = cases_of(rows, gold="correct")
    assert [(case.id, case.candidate) for case in asked] == list(
        zip(rows["id"], rows["text"], strict=True)
    )
    generated = plain.usage.requests
    first = Judge(kept).pointwise(asked, "logprob")
    assert first.usage.requests == 20
    again = Judge(kept).pointwise(asked, "logprob")
    assert again.usage.from_store == 20
    assert again.usage.computed_tokens == 0
    assert again.rows.equals(first.rows)
    rubric = Template("{problem} {candidate}\nScore:", (" 1", " 2", " 3"), "completion")
    assert Judge(kept, rubric).rubric(cases_of(rows), "logprob").usage.from_store == 0
    assert plain.usage.requests == generated
    saved = first.save(tmp_path / "verdicts")
    back = pd.read_parquet(saved / "rows.parquet")
    assert back["verdict"].tolist() == first.rows["verdict"].tolist()
    rows.loc[3, "error"] = "too long"
    assert len(cases_of(rows)) == 19
    with pytest.raises(InputError, match="no column 'problem'"):
        cases_of(rows, problem="problem")


# Faults


def test_a_missing_verdict_is_counted_and_never_a_rejection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter(
        [
            said("correct"),
            said("It is correct."),
            failed("HTTP 500"),
            said("incorrect"),
            said("incorrect", "length"),
        ]
    )
    asked = [replace(CASE, gold=True)] * 4 + [CASE]
    with caplog.at_level(logging.WARNING, "workbench"):
        report = Judge(Fake(lambda p, s: next(answers))).pointwise(asked)
    assert verdict_list(report) == [True, None, None, False, None]
    assert report.rows["verdict"].dtype == "boolean"
    accepted = metric(report, "accepted")
    assert (accepted.value, accepted.n) == (0.5, 2)
    assert (accepted.n_failed, accepted.n_unparsed) == (1, 2)
    balanced = metric(report, "balanced accuracy")
    assert (balanced.value, balanced.n, balanced.n_failed, balanced.n_unparsed) == (0.5, 2, 1, 1)
    assert verdict_list(report, "error") == [None, None, "HTTP 500", None, None]
    assert "no verdict in 'It is correct.'" in str(report.rows["unparsed"][1])
    assert "max_tokens" in str(report.rows["unparsed"][4])
    assert "3 of 5 votes are missing" in caplog.text


def test_nothing_known_is_not_nothing_accepted() -> None:
    report = Judge(Fake(lambda p, s: failed("down"))).pointwise([replace(CASE, gold=True)] * 3)
    for one in report.summary:
        assert math.isnan(one.value)
        assert (one.n, one.n_failed) == (0, 3)
    report = Judge(Fake(lambda p, s: failed("down"))).pairwise([PAIR])
    assert {(one.n, one.n_failed) for one in report.summary} == {(0, 1)}
    report = Judge(Fake(lambda p, s: said("?"))).rubric([CASE])
    assert (report.summary[0].n, report.summary[0].n_unparsed) == (0, 1)


def test_a_tie_is_missing_and_a_lost_vote_decides_nothing() -> None:
    judges = [
        saying("correct", "correct", "incorrect"),
        saying("incorrect", "?", "incorrect"),
        Fake(lambda p, s: failed("down")),
    ]
    rows = Judge(judges).pointwise([CASE] * 3).rows
    assert [None if pd.isna(v) else v for v in rows["verdict"]] == [None, True, False]
    assert rows["unparsed"][0] == "tie"
    assert rows["votes"].tolist()[1] == [True, None, None]
    assert rows["error"].isna().all()


def no_choices(prompt: str, sampling: Sampling) -> Completion:
    if sampling.choices is not None:
        raise InputError("choices: only a vLLM server has them")
    return said('{"verdict": "correct"}' if sampling.json_schema else "no JSON")


def no_structure(prompt: str, sampling: Sampling) -> Completion:
    if sampling.choices is not None or sampling.json_schema is not None:
        return failed("HTTP 400: structured outputs are not supported")
    return said("Verdict: incorrect")


def test_a_server_without_structured_output_is_read_strictly() -> None:
    report = Judge(Fake(no_choices)).pointwise([CASE])
    assert (verdict_list(report), report.provenance["outputs"]) == ([True], [["json_schema"]])
    report = Judge(Fake(no_structure)).pointwise([CASE])
    assert (verdict_list(report), report.provenance["outputs"]) == ([False], [["text"]])

    def pretends(prompt: str, sampling: Sampling) -> Completion:
        if sampling.choices is not None:
            raise InputError("choices: only a vLLM server has them")
        return said("Well." if sampling.json_schema else "Final verdict: incorrect")

    fake = Fake(pretends)
    assert verdict_list(Judge(fake).pointwise([CASE])) == [False]
    assert [asked.json_schema is None for asked in fake.asked] == [True, False, True]

    def wrong(prompt: str, sampling: Sampling) -> Completion:
        raise InputError("prompt 0: no chat template")

    with pytest.raises(InputError, match="no chat template"):
        Judge(Fake(wrong)).pointwise([CASE])


def test_a_template_with_reasons_is_not_held_to_its_choices() -> None:
    template = Template("{problem} {candidate}\nThink, then `Verdict: …`", ("A", "B"), reasons=True)
    fake = saying("Since it is so:\nVerdict: B")
    assert verdict_list(Judge(fake, template).pointwise([CASE])) == [False]
    assert (fake.asked[0].choices, fake.asked[0].json_schema) == (None, None)
    with pytest.raises(InputError, match="asks for reasons"):
        Judge(fake, template).pointwise([CASE], "logprob")


def test_a_missing_label_counts_only_if_it_cannot_win() -> None:
    with np.errstate(divide="ignore"):
        known = np.log([[0.6, 0.3], [0.6, 0.0], [0.6, 0.0], [0.0, 0.0], [0.3, 0.3], [0.1, 0.2]])
    missing = np.zeros((6, 2), bool)
    missing[[1, 2], 1] = True
    missing[3] = True
    upper = known.copy()
    upper[1, 1], upper[2, 1], upper[3] = math.log(0.2), math.log(0.61), 0.0
    errors = (None, None, None, "HTTP 500", None, None)
    fake = Fake(scores=LabelScores(known, upper, missing, errors))
    report = Judge(fake).pointwise([CASE] * 6, "logprob")
    assert verdict_list(report) == [True, True, None, None, None, False]
    wanted = [0.6 / 0.9, 0.6 / 0.8, None, None, None, 0.1 / 0.3]
    for value, want in zip(verdict_list(report, "probability"), wanted, strict=True):
        assert value == (want and pytest.approx(want))
    accepted = metric(report, "accepted")
    assert (accepted.n, accepted.n_failed, accepted.n_unparsed) == (3, 1, 2)


def test_labels_that_begin_one_another_have_no_probabilities() -> None:
    scale = Template("{problem} {candidate}", tuple(map(str, range(1, 11))))
    with pytest.raises(InputError, match="choice '10' begins with '1'"):
        Judge(Fake(), scale).rubric([CASE], "logprob")
    assert verdict_list(Judge(saying("10"), scale).rubric([CASE])) == [10.0]


# Pairs


def shown_first(prompt: str) -> str:
    return prompt.partition("<answer_A>\n")[2].partition("\n")[0]


def test_pairs_with_a_judge_that_knows() -> None:
    pairs = [replace(PAIR, gold="a"), Pair("1+1?", "3", "2", gold="b")] * 10
    right = Fake(lambda p, s: said("A" if shown_first(p) == "2" else "B"))
    report = Judge(right).pairwise(pairs)
    assert verdict_list(report) == ["a", "b"] * 10
    assert verdict_list(report, "verdict_ba") == ["a", "b"] * 10
    for name in ("agreement of both orders", "balanced accuracy", "Cohen's kappa"):
        assert metric(report, name).value == 1
        assert metric(report, name).low < 1
    assert metric(report, "a wins").value == metric(report, "b wins").value == 0.5
    assert metric(report, "first position wins").value == 0.5
    assert metric(report, "first position wins").n == 20


def test_a_judge_of_positions_finds_ties_only() -> None:
    report = Judge(Fake(lambda p, s: said("A"))).pairwise([PAIR] * 20)
    assert set(verdict_list(report)) == {"tie"}
    assert metric(report, "ties").value == 1
    assert metric(report, "agreement of both orders").value == 0
    assert metric(report, "first position wins").value == 1
    assert metric(report, "first position wins").low > 0.8
    report = Judge(Fake(lambda p, s: said("B"))).pairwise([PAIR] * 20)
    assert metric(report, "first position wins").value == 0
    report = Judge(Fake(lambda p, s: said("tie"))).pairwise([PAIR] * 20)
    assert metric(report, "agreement of both orders").value == 1
    assert metric(report, "first position wins").n == 0


def test_one_order_alone_is_no_verdict() -> None:
    half = Fake(lambda p, s: said("A") if shown_first(p) == "2" else failed("down"))
    report = Judge(half).pairwise([PAIR])
    assert (verdict_list(report), verdict_list(report, "verdict_ab")) == ([None], ["a"])
    assert metric(report, "a wins").n_failed == 1
    report = Judge(saying("A", "neither")).pairwise([PAIR])
    assert verdict_list(report) == [None]
    assert (report.summary[0].n_failed, report.summary[0].n_unparsed) == (0, 1)


def test_probabilities_of_pairs_are_those_of_both_orders() -> None:
    scores = np.log([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
    never = np.zeros((2, 3), bool)
    fake = Fake(scores=LabelScores(scores, scores, never, (None, None)))
    rows = Judge(fake).pairwise([PAIR], "logprob").rows
    assert rows["verdict"][0] == "tie"
    assert rows["probability"][0] == pytest.approx(((0.5 + 0.1) + (0.3 + 0.05)) / 2)


def test_the_embedded_model_compares_through_its_chat_template(plain: VLLMEngine) -> None:
    pairs = [Pair(case.problem, case.candidate, "I do not know.") for case in cases(8)]
    for mode in get_args(Mode):
        report = Judge(plain).pairwise(pairs, mode)
        assert metric(report, "a wins").n == 8
        assert set(verdict_list(report)) <= {"a", "b", "tie"}
        assert report.usage.requests == 16


# Rubrics


def test_scores_and_their_mean() -> None:
    judges = [saying("5", "4", "?", "1"), saying("4", "4", "?", "1"), saying("5", "3", "?", "?")]
    asked = [replace(CASE, gold=gold) for gold in (5, 3, 2, None)]
    report = Judge(judges).rubric(asked)
    assert verdict_list(report) == [5, 4, None, 1]
    assert verdict_list(report, "score") == [pytest.approx(14 / 3), pytest.approx(11 / 3), None, 1]
    score = metric(report, "mean score")
    assert score.value == pytest.approx((14 / 3 + 11 / 3 + 1) / 3)
    assert 1 <= score.low < score.value < score.high <= 5
    assert (score.n, score.n_failed, score.n_unparsed) == (3, 0, 1)
    assert (metric(report, "Cohen's kappa").n, metric(report, "balanced accuracy").n) == (2, 2)
    tied = Judge([saying("5"), saying("3")]).rubric([CASE])
    assert (verdict_list(tied), verdict_list(tied, "score")) == ([None], [4])
    assert metric(tied, "mean score").n_unparsed == 0


def test_expected_scores_of_the_embedded_model(plain: VLLMEngine) -> None:
    template = builtin("rubric")
    asked = [replace(case, gold=None) for case in cases(6)]
    rows = Judge(plain).rubric(asked, "logprob").rows
    prompts = [template.fill(case.values()) for case in asked]
    chances = np.exp(plain.label_logprobs(prompts, template.choices).logprobs)
    wanted = chances @ np.arange(1, 6) / chances.sum(1)
    assert rows["score"].to_numpy(float) == pytest.approx(wanted, abs=1e-4)
    assert rows["verdict"].tolist() == (chances.argmax(1) + 1).tolist()
    assert set(Judge(plain).rubric(asked).rows["verdict"]) <= {1, 2, 3, 4, 5}


# Input


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: Case("", "2"), "problem='' is empty"),
        (lambda: Case("1+1?", "2", " "), "reference=' ' is empty"),
        (lambda: Case("1+1?", None), "candidate=None must be a text"),  # type: ignore[arg-type]
        (lambda: Pair("1+1?", "2", 3), "b=3 must be a text"),  # type: ignore[arg-type]
        (lambda: Judge([]), "at least one"),
        (lambda: Judge("vllm"), "an engine, or a list"),  # type: ignore[arg-type]
        (lambda: Judge([fake := Fake(), fake]), "one engine twice"),
        (lambda: Judge(Fake(), samples=3), "temperature"),
        (lambda: Judge(Fake(), 5), "template=5"),  # type: ignore[arg-type]
        (lambda: Judge(Fake()).pointwise([]), "at least one Case"),
        (lambda: Judge(Fake()).pointwise([PAIR]), "case 0 is Pair"),  # type: ignore[list-item]
        (lambda: Judge(Fake()).pointwise([CASE], "guess"), "mode='guess'"),  # type: ignore[arg-type]
        (lambda: Judge(Fake()).pointwise([replace(CASE, gold=5)]), "gold=5 must be True or False"),
        (lambda: Judge(Fake()).rubric([replace(CASE, gold=6)]), "gold=6 must be one of"),
        (lambda: Judge(Fake()).rubric([replace(CASE, gold=True)]), "gold=True must be one of"),
        (lambda: Judge(Fake()).pairwise([replace(PAIR, gold="A")]), "gold='A'"),
        (lambda: Judge(Fake(), builtin("rubric")).pointwise([CASE]), "needs 2 choices"),
        (lambda: Judge(Fake(), builtin("pairwise")).pointwise([CASE]), "one with {candidate}"),
        (lambda: Judge(Fake(), builtin("pointwise")).pairwise([PAIR]), "one with {a} and {b}"),
        (lambda: Judge(Fake(), builtin("pointwise")).rubric([CASE]), "need numbers"),
        (
            lambda: Judge(Fake(), samples=2, temperature=1).pointwise([CASE], "logprob"),
            "has only one",
        ),
        (lambda: builtin("none"), "there are: pairwise, pointwise, rubric, tiny"),
    ],
)
def test_bad_input_says_what_to_do(call: Callable[[], object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        call()


def test_an_empty_answer_can_be_judged() -> None:
    assert verdict_list(Judge(saying("incorrect")).pointwise([Case("1+1?", "")])) == [False]


# Names from other clients


def by_problem(count: int) -> tuple[list[str], list[str], list[list[str]], list[int]]:
    """Problems, their answers, two candidates for each, and which of them is right."""
    wrong = [case for case in cases(4 * count) if case.gold is False][:count]
    lists = [[case.candidate, f"… #### {case.reference}"] for case in wrong]
    return [c.problem for c in wrong], [str(c.reference) for c in wrong], lists, [1] * count


def test_candidates_are_scored_and_the_best_is_found(plain: VLLMEngine) -> None:
    problems, truths, lists, best = by_problem(6)
    scores, found = compute_llm_judge_scores_batch(problems, truths, lists, engine=plain)
    assert found == best
    assert scores == [[0.0, 1.0]] * 6
    scores, found = compute_llm_judge_scores_batch(
        problems, truths, lists, engine=plain, mode="logprob"
    )
    assert found == best
    assert all(0 < a < 0.5 < b < 1 for a, b in scores if a is not None and b is not None)


def test_what_has_no_verdict_has_no_score(caplog: pytest.LogCaptureFixture) -> None:
    answers = {"x": said("correct"), "y": said("incorrect"), "z": said("?"), "f": failed("down")}
    fake = Fake(lambda p, s: answers[p.partition("<answer>\n")[2][0]])
    with caplog.at_level(logging.WARNING, "workbench"):
        scores, best = compute_llm_judge_scores_batch(
            ["p"] * 5,
            ["t", "", None, "t", "t"],
            [["y", "x", "x"], ["z", "y"], ["f", "z", None], [], [None]],
            engine=fake,
        )
    assert scores == [[0.0, 1.0, 1.0], [None, 0.0], [None, None, None], [], [None]]
    assert best == [1, 1, None, None, None]
    assert "5 candidates have no score" in caplog.text


def test_the_server_is_given_or_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_JUDGE_SERVER_URL", raising=False)
    with pytest.raises(InputError, match="set LLM_JUDGE_SERVER_URL"):
        compute_llm_judge_scores_batch(["p"], ["t"], [["x"]])
    with pytest.raises(InputError, match="set LLM_JUDGE_SERVER_URL"):
        LLMJudgeClient()
    with pytest.raises(InputError, match="give one of them"):
        LLMJudgeClient("http://127.0.0.1:1", engine=Fake())
    opened: list[Any] = []

    def remote(model: str | None, engine: str, **options: object) -> Engine:
        opened.append((model, engine, options))
        return Fake(lambda p, s: said(p))

    monkeypatch.setattr("workbench.judge.compat.open_engine", remote)
    monkeypatch.setenv("LLM_JUDGE_SERVER_URL", "http://127.0.0.1:8000")
    with LLMJudgeClient(model_name="m", num_workers=3, store=None) as client:
        assert client.generate_responses(["a", "b"]) == ["a", "b"]
        assert client.generate_responses(["a"], batch_size_per_worker=2) == ["a"]
    assert [(model, engine) for model, engine, _ in opened] == [("m", "remote")] * 2
    common = {"store": None, "base_url": "http://127.0.0.1:8000", "max_concurrency": 3}
    assert opened[0][2] == common | {"prompts_per_request": 8}
    assert opened[1][2] == common | {"prompts_per_request": 2}
    compute_llm_judge_scores_batch(["p"], ["t"], [["x"]], server_url="http://h:1", batch_size=5)
    assert opened[2][2]["base_url"] == "http://h:1"
    assert opened[2][2]["max_concurrency"] == 5


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((["p"], ["t", "t"], [["x"]]), "1 problems, 2 ground_truths and 1 candidates_list"),
        ((["p"], ["t"], ["x"]), r"candidates_list\[0\] is a text"),
        (("p", ["t"], [["x"]]), "problems"),
        (([""], ["t"], [["x"]]), "problem='' is empty"),
    ],
)
def test_lists_that_do_not_fit(arguments: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        compute_llm_judge_scores_batch(*arguments, engine=Fake())


def test_responses_have_the_order_of_the_prompts(plain: VLLMEngine) -> None:
    client = LLMJudgeClient(engine=plain)
    prompts = [case.problem for case in cases(4)]
    texts = client.generate_responses(prompts, max_tokens=12)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert texts == [c.text for c in plain.generate(chats, Sampling(max_tokens=12))]
    assert client.generate_responses([]) == []
    client.close()
    assert plain.generate(["1+1="])  # what was given stays open
    too_long = LLMJudgeClient(engine=plain).generate_responses(["1 " * 3000, "1+1?"], max_tokens=4)
    assert too_long[0] is None
    assert too_long[1] is not None
    with pytest.raises(InputError, match="make it a list"):
        client.generate_responses("1+1?")


@pytest.mark.parametrize(
    ("text", "place"), [("4/5", 3), ("Score: 4 / 5", 3), ("4/10", None), ("6/5", None), ("5", 4)]
)
def test_a_score_may_name_its_scale(text: str, place: int | None) -> None:
    assert read(text, ("1", "2", "3", "4", "5")) == place
    assert read("1/2", ("a", "2")) is None
