"""pass@k and maj@k, against enumerations, SciPy, inspect_ai and a public table of samples."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from workbench.agents import MajorityVote, SelfRefine
from workbench.clusters import clustered_mean
from workbench.comparison import by_samples
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import Evaluation, evaluate
from workbench.plots import new_figure, plot_at_k
from workbench.plots.theme import save
from workbench.samples import maj_at_k, majority_at, pass_at, pass_at_k
from workbench.stats import mean, proportion
from workbench.tasks import Sums, WordProblems

# Right samples of 10 for each HumanEval problem, and the published share of all samples
# (github.com/jamesmurdza/humaneval-results, commit 5eac780).
PUBLIC = {
    "CodeLlama-34b": ({0: 75, 1: 6, 2: 4, 4: 5, 5: 2, 6: 2, 7: 2, 8: 2, 9: 6, 10: 60}, 0.451),
    "gpt-3.5-turbo": ({0: 23, 1: 5, 2: 5, 4: 2, 5: 2, 6: 2, 7: 6, 8: 5, 9: 5, 10: 109}, 0.770),
    "gpt-4": ({0: 15, 1: 2, 2: 1, 3: 2, 4: 1, 5: 5, 6: 3, 8: 5, 9: 6, 10: 124}, 0.848),
}


def test_pass_at_k_is_the_share_of_all_subsets() -> None:
    for n in (1, 2, 5, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = [*combinations([True] * c + [False] * (n - c), k)]
                assert pass_at(n, c, k) == pytest.approx(np.mean([any(one) for one in subsets]))
    for n, c, k in ((200, 3, 100), (1000, 7, 64), (10_000, 1, 10_000), (10_000, 2, 1)):
        assert pass_at(n, c, k) == pytest.approx(hypergeom.sf(0, n, c, k), rel=1e-9)
    # 6 samples of the example of openai/human-eval, as its README prints it.
    assert pass_at(6, 3, 1) == pytest.approx(0.4999999999999999, abs=1e-15)


@pytest.mark.parametrize("name", PUBLIC)
def test_pass_at_k_of_a_public_table(name: str) -> None:
    counts, share = PUBLIC[name]
    table = np.array(
        [[1] * c + [0] * (10 - c) for c, times in counts.items() for _ in range(times)]
    )
    found = pass_at_k(table, (1, 2, 5, 10))
    one, *_, ten, gain = found.summary
    assert [metric.name for metric in found.summary] == [
        "pass@1", "pass@2", "pass@5", "pass@10", "pass@10 - pass@1"
    ]  # fmt: skip
    assert round(one.value, 3) == share
    assert (one.n, one.form) == (164, "share")
    assert one.low == pytest.approx(mean("x", table.mean(1), 0, 1).low)
    assert (ten.value, ten.low) == pytest.approx(
        (1 - counts[0] / 164, proportion("x", 164 - counts[0], 164).low)
    )
    assert gain.low < gain.value == pytest.approx(ten.value - one.value)
    scorer = pytest.importorskip("inspect_ai.scorer")
    for metric, k in zip(found.summary, (1, 2, 5, 10), strict=False):
        reduce = scorer.pass_at(k)
        theirs = [reduce([scorer.Score(value=int(x)) for x in row]).value for row in table]
        assert metric.value == pytest.approx(np.mean(theirs))


def enumerated(answers: str, k: int) -> Fraction:
    """How often "a" has the most votes, over all orders of k answers; "?" does not vote."""
    wins = orders = 0
    for order in permutations(answers, k):
        votes = Counter(one for one in order if one != "?")
        wins += bool(votes) and max(votes, key=lambda one: votes[one]) == "a"  # the first of equals
        orders += 1
    return Fraction(wins, orders)


@pytest.mark.parametrize("answers", ["aabbc?", "aaabbb", "abcd??", "bbbaa?", "a", "??b", "aabbccd"])
def test_a_vote_is_that_of_all_subsets_in_all_orders(answers: str) -> None:
    groups = [(count, one == "a") for one, count in Counter(answers).items() if one != "?"]
    for k in range(1, len(answers) + 1):
        wanted = float(enumerated(answers, k))
        assert majority_at(len(answers), groups, k) == pytest.approx(wanted, abs=1e-12)


def test_a_vote_of_many_samples_is_exact_too() -> None:
    groups = [(300, True), (280, False), (150, False), *[(1, False)] * 100]
    every = [majority_at(1000, groups, k) for k in (1, 2, 64, 999, 1000)]
    assert every[0] == pytest.approx(0.3)
    assert every[1] == pytest.approx(0.3 + 0.17 * 300 / 999)  # the first wins, or is unread
    assert every[0] < every[2] < every[3] <= every[4] == pytest.approx(1)
    rng = np.random.default_rng(0)
    answers = np.repeat(np.arange(len(groups) + 1), [size for size, _ in groups] + [170])
    drawn = [np.bincount(rng.permutation(answers)[:64], minlength=104)[:103] for _ in range(4000)]
    won = [(one[0] == one.max()) / (one == one.max()).sum() for one in drawn]
    assert every[2] == pytest.approx(np.mean(won), abs=4 * np.std(won) / 4000**0.5)


@pytest.fixture
def voted(plain: VLLMEngine) -> Evaluation:
    return evaluate(WordProblems(), plain, MajorityVote(samples=8), count=40)


def test_samples_of_a_report_are_graded_once_more(voted: Evaluation, tmp_path: Path) -> None:
    task = WordProblems()
    answers = {item.id: item for item in task.items(40)}
    right = [
        bool(task.grade(answers[key], text).correct)
        for key, text in zip(voted.trace["id"], voted.trace["text"], strict=True)
    ]
    table = np.reshape(right, (40, 8)).astype(float)
    assert 0.2 < table.mean() < 0.98
    found = pass_at_k(voted)
    for mine, other in zip(found.summary, pass_at_k(table).summary, strict=True):
        assert mine.name == other.name
        assert (mine.value, mine.low, mine.high) == (other.value, other.low, other.high)
    assert found.rows["right"].tolist() == table.sum(1).tolist()
    assert found.summary[0].n_unparsed == int(voted.rows["unparsed"].sum())
    votes = maj_at_k(voted, (1, 2, 8), task=task)
    ones = by_samples(task, voted, (1, 8))
    assert votes.summary[0].value == pytest.approx(table.mean())
    sure = voted.rows[~voted.rows["tied"]].set_index("id")["correct"]
    of_all = votes.rows.set_index("id")["maj@8"][sure.index]
    assert of_all.tolist() == pytest.approx(sure.astype(float).tolist())
    assert votes.summary[2].value == pytest.approx(ones["accuracy"].iloc[1], abs=0.1)
    assert votes.summary[0].value <= votes.summary[1].value + 1e-12  # one may be unread
    figure, (ax,) = new_figure()
    plot_at_k(ax, found, votes)
    save(figure, tmp_path / "curve.png")
    assert "pass@8" in ax.get_title(loc="left")
    assert "paired difference" in ax.get_title(loc="left")
    assert found.save(tmp_path / "kept").exists()
    groups = voted.rows["steps"] if "steps" in voted.rows else voted.rows["id"]
    field = str(groups.name)
    apart = pass_at_k(voted, (1, 8), cluster=field)
    wanted = clustered_mean("pass@1", table.mean(1), groups)
    assert apart.summary[0].low == pytest.approx(wanted.low)
    assert apart.provenance["cluster"] == field


def test_runs_and_answers_with_several_samples_are_samples(plain: VLLMEngine) -> None:
    runs = evaluate("sums", plain, count=12, num_runs=3, temperature=0.9)
    found = pass_at_k(runs, (1, 3))
    by_item = runs.rows.groupby("id", sort=False)["correct"]
    assert found.summary[0].value == pytest.approx(by_item.mean().mean())
    assert found.summary[1].value == pytest.approx(by_item.any().mean())
    drawn = evaluate("sums", plain, count=12, n=5, temperature=0.9)
    assert (pass_at_k(drawn, (5,)).rows["samples"] == 5).all()
    assert maj_at_k(runs, (3,)).summary[0].n == 12
    refined = evaluate("sums", plain, SelfRefine(rounds=1), count=3, num_runs=2, temperature=0.9)
    assert (pass_at_k(refined, (2,)).rows["samples"] == 2).all()  # its calls are no samples
    with pytest.raises(InputError, match=r"k=\[1, 6\]: must be from 1 to 5"):
        pass_at_k(drawn, (1, 6))
    with pytest.raises(InputError, match="pass the report's task"):
        maj_at_k(drawn, (1,), task=WordProblems())
    drawn.provenance["task"] = "mine"  # type: ignore[index]
    with pytest.raises(InputError, match="pass the report's task, task="):
        pass_at_k(drawn, (1,))
    assert pass_at_k(drawn, (1,), task=Sums()).summary[0].n == 12


def test_failed_samples_leave_fewer(plain: VLLMEngine) -> None:
    drawn = evaluate("sums", plain, count=6, n=4, temperature=0.9)
    lost = drawn.trace.index[drawn.trace["id"] == drawn.rows["id"][2]][1:3]
    drawn.trace["error"] = drawn.trace["error"].astype(object)
    drawn.trace.loc[lost, "error"] = "lost"
    four, two = pass_at_k(drawn, (1, 4)), pass_at_k(drawn, (1, 2))
    assert [(m.n, m.n_failed) for m in four.summary] == [(5, 1)] * 3
    assert four.rows["error"].tolist()[2] == "only 2 samples came"
    assert [(m.n, m.n_failed) for m in two.summary] == [(6, 0)] * 3
    assert maj_at_k(drawn, (1, 4)).summary[0].n_failed == 1
    drawn.trace["error"] = "lost"
    none = pass_at_k(drawn, (1, 4)).summary
    assert [(m.n, m.n_failed, m.low, m.high) for m in none] == [(0, 6, 0, 1)] * 2


def test_verdicts_in_a_table(caplog: pytest.LogCaptureFixture) -> None:
    nan = float("nan")
    found = pass_at_k(np.array([[1, 0, nan], [0, 0, 0], [1, 1, 1]]), (1, 2))
    assert [m.value for m in found.summary[:2]] == pytest.approx([0.5, (1 + 0 + 1) / 3])
    assert found.rows["failed"].tolist() == [1, 0, 0]
    for table in (np.array([1, 0]), np.array([[2, 1]])):
        with pytest.raises(InputError, match="pass 0, 1 or NaN"):
            pass_at_k(table)
    for k in ((), (0,), (1.5,), (4,)):
        with pytest.raises(InputError, match="k"):
            pass_at_k([[1, 0, 0]], k)  # type: ignore[arg-type]
    no_verdicts = pass_at_k([[1, 0]], (1,))
    with pytest.raises(InputError, match="no column of the report 'correct'"):
        pass_at_k(no_verdicts)
    assert pd.isna(found.rows["error"]).all()
    assert not caplog.records
