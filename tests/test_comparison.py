"""Evaluations side by side, and suites that are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from scipy.stats import binomtest, ttest_rel

from workbench.agents import Agent, AgentCase, MajorityVote, Program, SelfRefine, standard
from workbench.comparison import compare, compare_p, comparison
from workbench.engines.base import failure
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import accuracy, load, run_suite
from workbench.tasks import OwnTask, Sums
from workbench.types import Engine, Report, Sampling, Usage


def report(*runs: Sequence[bool | None]) -> Report:
    """Verdicts of the same items in each run; None is a failed one."""
    rows = pd.DataFrame(
        {
            "id": f"item {place}",
            "run": run,
            "answer": "7",
            "correct": bool(right),
            "parsed": True,
            "error": "lost" if right is None else None,
            "prompt_tokens": 10,
            "completion_tokens": 2,
        }
        for run, verdicts in enumerate(runs)
        for place, right in enumerate(verdicts)
    )
    return Report((accuracy(rows),), rows, Usage(seconds=1.5), {})


GOOD, BAD = [True] * 80 + [False] * 20, [True] * 60 + [False] * 40


def test_each_report_is_compared_with_the_first() -> None:
    table = comparison({"first": report(BAD), "same": report(BAD), "better": report(GOOD)})
    assert list(table["name"]) == ["first", "same", "better"]
    assert table["accuracy"].tolist() == [0.6, 0.6, 0.8]
    first, same, better = (row for _, row in table.iterrows())
    assert pd.isna(first["difference"])
    assert (same["difference"], same["p"]) == (0, 1)
    assert better["difference"] == pytest.approx(0.2)
    assert better["p"] == pytest.approx(binomtest(20, 20).pvalue)
    assert better["p_holm"] == pytest.approx(2 * better["p"])
    assert same["p_holm"] == 1
    assert (better["n"], better["runs"], better["prompt_tokens"], better["seconds"]) == (
        100, 1, 1000, 1.5
    )  # fmt: skip


def test_few_items_prove_little() -> None:
    one, two = report([True, True], [False, False]), report([True, True], [True, True])
    table = comparison({"one": one, "two": two})
    row = table.iloc[1]
    assert row["difference"] == 0.5
    assert row["difference_low"] < 0.4
    assert row["p"] == 0.5  # two of two signs
    assert row["detectable"] > 0.5
    same = comparison({"first": report(GOOD), "same": report(GOOD)})
    assert same["detectable"][1] == 6 / 100  # fewer cannot show at all


def test_speed_is_compared_where_all_was_computed() -> None:
    slow = report(BAD)
    fast = replace(slow, usage=Usage(seconds=0.5))
    known = replace(slow, usage=Usage(seconds=0.1, from_store=1))
    table = comparison({"slow": slow, "fast": fast, "known": known}).set_index("name")
    assert table["speedup"].isna().tolist() == [True, False, True]
    assert table.loc["fast", "speedup"] == 3
    assert comparison({"known": known, "fast": fast}).get("speedup") is None


def test_holm_goes_by_the_order_of_the_p_values() -> None:
    others = {f"{k} gained": report(BAD[: 60 - k] + [False] * k + BAD[60:]) for k in (9, 3, 7)}
    table = comparison({"first": report(BAD), **others}).set_index("name")
    p, holm = table["p"], table["p_holm"]
    assert p["9 gained"] < p["7 gained"] < p["3 gained"]
    assert holm["9 gained"] == pytest.approx(3 * p["9 gained"])
    assert holm["7 gained"] == pytest.approx(2 * p["7 gained"])
    assert holm["3 gained"] == pytest.approx(p["3 gained"])


def test_what_is_detectable_is_found_in_four_of_five_samples() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.5
    flips = rng.random(400) < 0.2
    other = np.where(flips, ~first, first)
    table = comparison({"a": report([*map(bool, first)]), "b": report([*map(bool, other)])})
    least = float(table["detectable"][1])
    found = 0
    for _ in range(1000):  # items differ 20 % of the time, one way more often by `least`
        draw = rng.random(400)
        gained, lost = draw < 0.1 + least / 2, draw > 1 - (0.1 - least / 2)
        found += binomtest(int(gained.sum()), int((gained | lost).sum())).pvalue < 0.05
    assert 0.70 < found / 1000 < 0.87


def test_several_runs_of_an_item_are_one_item() -> None:
    half = [True, False] * 50
    many = report(GOOD, half, half)
    apart = compare(many, report(BAD))
    means = (pd.Series(GOOD).astype(int) + 2 * pd.Series(half).astype(int)) / 3
    assert apart.n == 100
    assert apart.value == pytest.approx(means.mean() - 0.6)
    p = compare_p(many, report(BAD))
    assert p == pytest.approx(ttest_rel(means, pd.Series(BAD).astype(int)).pvalue)
    assert compare_p(many, many) == 1
    assert (compare(many, many).value, compare(many, many).n) == (0, 100)


def test_items_that_failed_are_left_out_and_counted() -> None:
    some = report([None, None, *GOOD[2:]])
    apart = compare(some, report(BAD))
    assert (apart.n, apart.n_failed) == (98, 2)
    none = comparison({"a": report(BAD), "b": report([None] * 100)})
    assert pd.isna(none["difference"][1])
    assert none["n_failed"][1] == 100


def test_reports_that_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="pass reports by name"):
        comparison({})
    other = report(BAD)
    other.rows["id"] = "another " + other.rows["id"]
    with pytest.raises(InputError, match="share no item"):
        comparison({"a": report(BAD), "b": other})


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere holds no report"):
        load(tmp_path / "nowhere")
    folder = report(BAD).save(tmp_path / "kept")
    assert load(folder).summary == report(BAD).summary
    saved = json.loads((folder / "summary.json").read_text())
    for broken in ("{", "{}", json.dumps({**saved, "summary": [{"name": "x"}]}), "[]"):
        (folder / "summary.json").write_text(broken)
        with pytest.raises(InputError, match="holds no report"):
            load(folder)


def test_a_suite_goes_on_where_it_stopped(plain: VLLMEngine, tmp_path: Path) -> None:
    agents: list[str | Agent] = ["standard", MajorityVote(samples=2)]
    whole = run_suite(Sums(), plain, agents, folder=tmp_path / "suite", count=5)
    assert list(whole) == ["standard", "MajorityVote(samples=2, temperature=0.8)"]
    lost = tmp_path / "suite" / "standard"
    for file in lost.iterdir():
        file.unlink()
    lost.rmdir()
    again = run_suite(Sums(), plain, agents, folder=tmp_path / "suite", count=5)
    assert [r.summary for r in again.values()] == [r.summary for r in whole.values()]
    voted = list(whole)[1]
    assert again[voted].usage == whole[voted].usage, "was measured again"


def test_a_suite_of_other_settings_is_refused(plain: VLLMEngine, tmp_path: Path) -> None:
    run_suite(Sums(), plain, ["standard"], folder=tmp_path, count=3)
    others: list[dict[str, Any]] = [{"count": 4}, {"count": 3, "seed": 1}, {"count": 3, "shots": 1}]
    others.append({"count": 3, "sampling": Sampling(max_tokens=3)})
    others += [{}, {"count": 3, "num_runs": 2}]
    for settings in others:
        with pytest.raises(InputError, match="give this suite another name"):
            run_suite(Sums(), plain, ["standard"], folder=tmp_path, **settings)
    mine = [{"question": f"{n}+1?", "answer": n + 1} for n in range(3)]
    run_suite(OwnTask(mine, name="sums"), plain, ["standard"], folder=tmp_path / "own")
    mine[0]["answer"] = 2
    with pytest.raises(InputError, match="items="):
        run_suite(OwnTask(mine, name="sums"), plain, ["standard"], folder=tmp_path / "own")
    info = replace(plain.info, model="another", revision="1")
    other = cast("Engine", SimpleNamespace(info=info))
    with pytest.raises(InputError, match="model="):
        run_suite(Sums(), other, ["standard"], folder=tmp_path, count=3)


def test_a_suite_asks_again_what_failed(
    plain: VLLMEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_suite(Sums(), plain, ["standard"], count=3)["standard"]
    with monkeypatch.context() as down:
        gone = [failure("the server went away")] * 3
        down.setattr(plain, "stream", lambda *_: iter(enumerate(gone)))
        lost = run_suite(Sums(), plain, ["standard"], folder=tmp_path, count=3)["standard"]
    assert lost.summary[0].n_failed == 3
    (report,) = tmp_path.iterdir()
    report.symlink_to(report.rename(tmp_path / "moved"))  # a link stays one
    again = run_suite(Sums(), plain, ["standard"], folder=tmp_path, count=3)["standard"]
    assert again.summary == whole.summary
    kept = run_suite(Sums(), plain, ["standard"], folder=tmp_path, count=3)["standard"]
    assert kept.summary == whole.summary
    assert len(kept.trace) == 3
    assert report.is_symlink()


def test_any_agents_name_is_a_folders(plain: VLLMEngine, tmp_path: Path) -> None:
    agent = SelfRefine(rounds=1, critique="Look/again " * 40)
    for _ in range(2):
        found = run_suite(Sums(), plain, [agent], folder=tmp_path, count=2)
    assert list(found) == [repr(agent)]
    (folder,) = tmp_path.iterdir()
    assert len(folder.name) < 80

    class Nameless:
        def __call__(self, case: AgentCase) -> Program:
            return standard(case)

    with pytest.raises(InputError, match="has no stable name"):
        run_suite(Sums(), plain, [Nameless()], folder=tmp_path, count=2)


@pytest.mark.parametrize(
    "agents", [[], "standard", ["standard", "standard"], ["standard", standard]]
)
def test_a_suite_has_agents_of_different_names(agents: Any, plain: VLLMEngine) -> None:
    with pytest.raises(InputError, match="agents"):
        run_suite(Sums(), plain, agents, count=2)


def test_styles_have_separate_reports(plain: VLLMEngine) -> None:
    found = run_suite(Sums(), plain, ["standard"], ["completion", "chat"], count=2)
    assert list(found) == ["standard, completion", "standard, chat"]
