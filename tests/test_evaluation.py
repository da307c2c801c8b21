"""Reports: their numbers, how two compare, compare_p, and that they are saved whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from workbench.agents import AgentCase, Answer, Ask, Program
from workbench.comparison import compare, compare_p
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import accuracy, accuracy_by, evaluate
from workbench.stats import paired_shares, proportion
from workbench.tasks import Claims, Sums
from workbench.types import Grade, Item, Report, Sampling, Usage


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


class Chosen(Sums):
    """Sums whose items a test chooses."""

    def __init__(self, *items: Item) -> None:
        self.chosen = items

    def items(self, count: int | None = None, seed: int = 0) -> list[Item]:
        return list(self.chosen)


def test_a_task_has_items_of_different_ids(plain: VLLMEngine) -> None:
    with pytest.raises(InputError, match="task sums has no items"):
        evaluate(Chosen(), plain)
    item = Sums().items(1)[0]
    with pytest.raises(InputError, match="has 2 items 'a': make each id unique"):
        evaluate(Chosen(replace(item, id="b"), replace(item, id="a"), replace(item, id="a")), plain)


class Raising(Sums):
    """A grader that one item is too much for."""

    bad = ""

    def grade(self, item: Item, text: str) -> Grade:
        if item.answer == self.bad:
            raise KeyError("units")
        return super().grade(item, text)


def test_a_grader_that_raises_costs_its_own_row_only(plain: VLLMEngine) -> None:
    task = Raising()
    task.bad = Sums().items(5)[2].answer
    report = evaluate(task, plain, count=5)
    assert report.summary[0].n_failed == (report.rows["answer"] == task.bad).sum() > 0
    assert report.rows["error"][2] == "the task's grader raised KeyError: 'units'"


def test_rows_keep_their_own_columns_and_can_be_saved(plain: VLLMEngine, tmp_path: Path) -> None:
    def agent(case: AgentCase) -> Program:
        answer = yield Ask(case.prompt)
        odd = int(case.item.answer) % 2
        notes: dict[str, Any] = {"id": "x", "run": 7, "kind": "odd" if odd else 2}
        return Answer(f"\ud83d {answer.text}", notes)

    items = Sums().items(6)
    report = evaluate(Sums(), plain, agent, count=6)
    assert report.rows["id"].tolist() == [item.id for item in items]
    assert report.rows["run"].eq(0).all()
    assert set(report.rows["kind"]) == {"odd", "2"}
    saved = report.save(tmp_path / "report")
    assert pd.read_parquet(saved / "rows.parquet")["text"].str.startswith("? ").all()


def test_a_task_goes_by_its_name(plain: VLLMEngine) -> None:
    assert evaluate("sums", plain, count=2).provenance["task"] == "sums"
    with pytest.raises(InputError, match="did you mean 'sums'"):
        evaluate("sum", plain, count=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"count": "5"}, "count='5'"),
        ({"shots": "1"}, "shots='1'"),
        ({"style": "completions"}, "style='completions'"),
        ({"sampling": {"n": 1}}, "must be a workbench.Sampling"),
        ({"seed": object()}, "seed="),
        ({"num_runs": 0}, "num_runs=0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str, plain: VLLMEngine) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(Sums(), plain, **{"count": 2, **settings})


def test_each_run_draws_separately_with_a_seed_too(plain: VLLMEngine) -> None:
    hot = Sampling(max_tokens=12, temperature=1.5, seed=3)
    report = evaluate(Sums(), plain, count=6, num_runs=2, sampling=hot)
    first, second = (part["text"].tolist() for _, part in report.rows.groupby("run"))
    assert first != second
    assert first == evaluate(Sums(), plain, count=6, sampling=hot).rows["text"].tolist()


def verdicts(answers: dict[str, bool | None]) -> Report:
    """A report with these items: right, wrong or failed."""
    rows = pd.DataFrame(
        {
            "id": list(answers),
            "answer": [key.upper() for key in answers],
            "correct": [bool(right) for right in answers.values()],
            "error": ["too long" if right is None else None for right in answers.values()],
        }
    )
    return Report((), rows, Usage(), {})


def test_a_comparison_is_over_what_both_answered() -> None:
    one = verdicts({"a": True, "b": True, "c": False, "d": None, "e": True, "only": True})
    other = verdicts({"e": None, "d": True, "c": False, "b": False, "a": True, "none": False})
    metric = compare(one, other, "gain")
    assert metric == paired_shares("gain", [True, True, False], [True, False, False], n_failed=2)
    assert metric.value == pytest.approx(1 / 3)
    assert compare(other, one).value == -metric.value
    assert compare_p(one, other) == 1.0  # they differ in one item of three
    with pytest.raises(InputError, match="compare_p"):
        compare_p(verdicts({"a": None}), one)
    failed = compare(verdicts({"a": None}), one)
    assert (failed.n, failed.n_failed, failed.low, failed.high) == (0, 1, -1.0, 1.0)
    assert failed.value != failed.value


def test_what_cannot_be_compared() -> None:
    one = verdicts({"a": True, "b": True})
    with pytest.raises(InputError, match="share no item"):
        compare(one, verdicts({"x": True}))
    changed = verdicts({"a": True, "b": True})
    changed.rows["answer"] = ["A", "C"]
    with pytest.raises(InputError, match="item 'b' is 'B' in one report and 'C' in the other"):
        compare(one, changed)
    with pytest.raises(InputError, match="item 'b' twice"):
        compare(one, replace(one, rows=pd.concat([one.rows, one.rows[1:]])))
    with pytest.raises(InputError, match="without correct, error"):
        compare(replace(one, rows=one.rows[["id", "answer"]]), one)


def test_examples_with_the_right_labels_help(plain: VLLMEngine) -> None:
    right = evaluate(Claims(), plain, count=60, shots=16)
    noise = evaluate(Claims("random"), plain, count=60, shots=16)
    metric = compare(right, noise)
    assert (metric.n, metric.n_failed) == (60, 0)
    assert metric.value == pytest.approx(right.summary[0].value - noise.summary[0].value)
    assert metric.value > 0


def test_a_report_is_saved_with_its_figure_or_not_at_all(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((2, 1))
    figure.subplots().plot([0, 1])
    report = verdicts({"a": True})
    target = tmp_path / "one"
    part = tmp_path / "one.part"
    part.mkdir()
    (part / "stale").touch()  # as a kill leaves it
    files = sorted(path.name for path in report.save(target, figure).iterdir())
    assert files == ["figure.png", "rows.parquet", "summary.json"]
    png = (target / "figure.png").read_bytes()
    assert int.from_bytes(png[16:20], "big") > 150  # pixels across
    broken = replace(report, rows=pd.DataFrame({"mixed": [1, "a"]}))
    with pytest.raises(ValueError, match="mixed"):
        broken.save(tmp_path / "two", figure)
    report.save(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert not (tmp_path / "two" / "figure.png").exists()


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
