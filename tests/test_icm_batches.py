"""Whole data sets in batches, and whether the labels found stand out."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_icm_report import Slow, lines_of, stop_at
from test_icm_search import Synthetic, assert_same, claims_of, labels_of

from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.icm import Claim, ICMReport, search
from workbench.icm.claim import relations, violated
from workbench.icm.predictability import energy
from workbench.icm.report import salience, stands_out
from workbench.icm.search import label_all, split
from workbench.icm.testbeds import embedded
from workbench.plots.icm import plot_salience

SOME: dict[str, Any] = {"batch_size": 16, "n_iterations": 70, "alpha": 20.0, "seed": 2}
CLAIMS = claims_of(46, 4, "keys", 2)


def shown_of(prompt: str) -> tuple[list[str], str]:
    *shown, query = prompt.split("\n\n")
    return shown, query


def solved(report: ICMReport, indices: list[int]) -> list[str]:
    return [f"{report.claims[i].text} {report.labels[i]}" for i in indices]


@pytest.mark.parametrize(("size", "wanted"), [(1, 12), (4, 12), (7, 11), (10, 6), (16, 3), (46, 1)])
def test_batches_are_whole_groups(size: int, wanted: int) -> None:
    parts = split(CLAIMS, size)
    assert sorted(index for part in parts for index in part) == [*range(46)]
    assert len(parts) == wanted
    groups = [{CLAIMS[index].group for index in part} for part in parts]
    assert max(Counter(group for part in groups for group in part).values()) == 1
    assert max(map(len, parts)) <= max(size, 4)
    for wrong in (0, True, 1.5):
        with pytest.raises(InputError, match=f"batch_size={wrong}: must be a whole number from 1"):
            split(CLAIMS, wrong)  # type: ignore[arg-type]


def test_a_later_group_fills_the_room_that_is_left() -> None:
    sizes = (3, 3, 2, 1, 4)
    claims = [Claim(f"{g}-{i}", str(g)) for g, size in enumerate(sizes) for i in range(size)]
    assert split(claims, 5) == [[0, 1, 2, 6, 7], [3, 4, 5, 8], [9, 10, 11, 12]]


def test_one_batch_is_one_search() -> None:
    whole = label_all(CLAIMS, Synthetic(CLAIMS), **SOME | {"batch_size": 46})
    alone = search(
        CLAIMS, Synthetic(CLAIMS), everyone=True,
        **{name: value for name, value in SOME.items() if name != "batch_size"},
    )  # fmt: skip
    assert (whole.history["batch"] == 1).all()
    assert_same(replace(whole, history=whole.history.drop(columns="batch")), alone)
    assert (whole.cost, whole.notes, whole.summary) == (alone.cost, alone.notes, alone.summary)


@pytest.mark.parametrize("order", ["reference", "exact", "tree"])
def test_each_batch_has_the_labels_before_it(order: str) -> None:
    engine = Synthetic(CLAIMS)
    report = label_all(CLAIMS, engine, order=order, **SOME)
    parts = report.provenance["batches"]
    texts = [claim.text for claim in CLAIMS]
    assert [len(part) for part in parts] == [16, 16, 14]
    assert None not in report.labels
    batch_of = {texts[index]: number for number, part in enumerate(parts) for index in part}
    numbers = [batch_of[shown_of(prompt)[1]] for prompt in engine.asked]
    assert numbers == sorted(numbers)  # the claims before a batch are never asked about again
    for number, prompt in zip(numbers, engine.asked, strict=True):
        shown, _ = shown_of(prompt)
        fixed = solved(report, [index for part in parts[:number] for index in part])
        assert shown[: len(fixed)] == fixed  # first, all of them, with their final labels
        assert {batch_of[text.split()[0]] for text in shown[len(fixed) :]} <= {number}
    for number, part in enumerate(parts):
        history = report.history[report.history["batch"] == number + 1]
        assert {*history["claim"]} <= {-1, *part}
    scores = report.scores()
    for number, part in enumerate(parts):
        # The last pass: each claim after those before its batch and the others within it.
        for place in part:
            given = [i for one in parts[:number] for i in one]
            others = [i for i in part if i != place]
            prompt = "\n\n".join([*solved(report, given + others), texts[place]])
            assert scores[place] == pytest.approx(engine.row(prompt))
    related = relations(CLAIMS)
    total = energy(report.labels, scores, related, 20.0)
    assert report.energy == pytest.approx(total)
    assert report.cost.prompts == len(engine.asked) == report.usage.requests
    sums = report.history[["prompts", "computed_tokens", "seconds"]]
    assert sums.apply(lambda column: column.is_monotonic_increasing).all()


def test_a_later_batch_begins_with_what_the_labels_predict() -> None:
    engine = Synthetic(CLAIMS)
    after = [(claim, bool(claim.gold)) for claim in CLAIMS[:16]]
    report = search(CLAIMS[16:], engine, after=after, n_iterations=0, consistency="none")
    first = engine.calls[0]
    assert [shown_of(prompt)[1] for prompt in first] == [claim.text for claim in CLAIMS[16:]]
    assert all(len(shown_of(prompt)[0]) == 16 for prompt in first)
    assert labels_of(report) == [np.subtract(*engine.row(prompt)) > 0 for prompt in first]
    with pytest.raises(InputError, match=r"after and claims.* are the same claim"):
        search(CLAIMS[15:], engine, after=after)


def test_claims_that_are_not_accepted_are_labelled_too() -> None:
    some = SOME | {"n_iterations": 5, "batch_size": 46}
    engine = Synthetic(CLAIMS)
    report = label_all(CLAIMS, engine, **some)
    (note,) = [note for note in report.notes if "not accepted" in note]
    left = int(note.split()[0])
    part = search(CLAIMS, Synthetic(CLAIMS), **{k: v for k, v in some.items() if k != "batch_size"})
    assert part.labels.count(None) == left > 20
    assert f"{left} claims have no label" in part.notes[-1]
    there = {i: label for i, label in enumerate(part.labels) if label is not None}
    assert {i: report.labels[i] for i in there} == there
    new = [
        p for p in violated(relations(CLAIMS), report.labels) if not {p.first, p.second} <= {*there}
    ]
    assert not new
    some |= {"consistency": "none", "order": "exact", "n_iterations": 0}
    report = label_all(CLAIMS, engine, **some)
    first = solved(report, [*range(8)])
    for index in range(8, 46):
        true, false = engine.row("\n\n".join([*first, CLAIMS[index].text]))
        assert report.labels[index] is (true > false)


@pytest.mark.parametrize("where", [1, 2, 3])
def test_stopped_in_any_batch(where: int, tmp_path: Path) -> None:
    engine = Synthetic(CLAIMS)
    wanted = label_all(CLAIMS, engine, **SOME)
    seen = 0

    def look(step: Any) -> None:
        nonlocal seen
        seen += step.iteration == 1
        if seen == where:
            stop_at(step.iteration)(step)

    other = Synthetic(CLAIMS)
    with pytest.raises(KeyboardInterrupt):
        label_all(CLAIMS, other, checkpoint=tmp_path, on_step=look, **SOME)
    again = Synthetic(CLAIMS)
    found = label_all(CLAIMS, again, checkpoint=tmp_path, **SOME)
    assert_same(found, wanted)
    assert found.cost == wanted.cost
    assert other.asked + again.asked == engine.asked  # nothing is asked again
    assert other.asked
    assert again.asked
    journals = sorted(path.name for path in tmp_path.iterdir())
    assert journals == ["batch-1.jsonl", "batch-2.jsonl", "batch-3.jsonl"]
    last = Synthetic(CLAIMS)
    assert_same(label_all(CLAIMS, last, checkpoint=tmp_path, **SOME), wanted)
    assert not last.asked


def test_a_batch_after_other_labels_is_another_one(tmp_path: Path) -> None:
    after = [(claim, bool(claim.gold)) for claim in CLAIMS[:4]]
    path, rest = tmp_path / "one.jsonl", CLAIMS[4:20]
    search(rest, Synthetic(CLAIMS), after=after, checkpoint=path, n_iterations=1)
    after[0] = (after[0][0], not after[0][1])
    with pytest.raises(
        InputError, match="is of another search: its labels of the batches before it"
    ):
        search(rest, Synthetic(CLAIMS), after=after, checkpoint=path, n_iterations=1)


def test_a_claim_that_does_not_fit_costs_nobody_anything() -> None:
    long = Claim("c " + "w " * 300 + "end", "long", "x", True)
    claims = [*CLAIMS[:7], long, *CLAIMS[7:]]
    engine = Synthetic(claims, context=250)
    report = label_all(claims, engine, **SOME)
    assert report.labels.index(None) == 7
    assert report.labels.count(None) == 1
    assert "context holds 250" in report.rows["error"][7]
    assert report.rows["error"].notna().sum() == 1
    assert report.notes[-1].startswith("left out, as the context does not hold them: 1 of 47")
    assert not any(long.text in prompt for prompt in engine.asked)


# Killed.


def child(kind: str, count: str, size: str, folder: str) -> None:
    if kind == "synthetic":
        label_all(CLAIMS, Slow(CLAIMS), checkpoint=folder, **SOME)
        return
    bed = embedded(int(count), 0)
    with VLLMEngine(None, None, "test", {}) as engine:
        label_all(bed.claims, engine, batch_size=int(size), checkpoint=folder, wording=bed.wording)


def killed(kind: str, count: int, size: int, folder: Path) -> None:
    """In the third batch, as soon as its journal has its first answers."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_icm_batches as t; "
    code += "t.child(*sys.argv[2:])"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), kind, str(count), str(size)]
    with subprocess.Popen([*command, str(folder)]) as process:
        while lines_of(folder / "batch-3.jsonl") < 2:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
    assert not (folder / "batch-4.jsonl").exists()


def test_killed_in_the_third_batch(tmp_path: Path) -> None:
    engine, again = Synthetic(CLAIMS), Synthetic(CLAIMS)
    wanted = label_all(CLAIMS, engine, **SOME)
    killed("synthetic", 46, 16, tmp_path)
    found = label_all(CLAIMS, again, checkpoint=tmp_path, **SOME)
    assert_same(found, wanted)
    assert 0 < len(again.asked) < len(engine.asked) / 2
    assert again.asked == engine.asked[-len(again.asked) :]


@pytest.mark.parametrize(
    ("count", "size"),
    [(48, 16), pytest.param(512, 128, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])],
)
def test_a_model_killed_in_the_third_batch(
    plain: VLLMEngine, count: int, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bed = embedded(count, 0)
    options: dict[str, Any] = {"batch_size": size, "wording": bed.wording}
    plain.llm.reset_prefix_cache()
    started = time.perf_counter()
    wanted = label_all(bed.claims, plain, **options)
    seconds = time.perf_counter() - started
    accuracy = wanted.summary[0]
    with capsys.disabled():
        print(
            f"\n{count} claims in {len(wanted.provenance['batches'])} batches: label accuracy "
            f"{accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f}), "
            f"{wanted.cost.prompt_tokens:,} tokens, {wanted.cost.computed_tokens:,} computed, "
            f"{seconds:.0f} s; {'; '.join(wanted.notes)}"
        )
    assert len(wanted.labels) == accuracy.n == count
    assert None not in wanted.labels
    assert accuracy.low > 0.8
    killed("model", count, size, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found = label_all(bed.claims, plain, checkpoint=tmp_path, **options)
    assert found.labels == wanted.labels
    for name in ("batch-1.jsonl", "batch-2.jsonl"):
        assert (tmp_path / name).read_bytes() == before[name]  # nothing was asked again
    assert len(before["batch-3.jsonl"]) < (tmp_path / "batch-3.jsonl").stat().st_size
    done = sum(
        json.loads(line).get("cost", [0])[0] for line in before["batch-1.jsonl"].splitlines()
    )
    assert found.usage.requests <= wanted.usage.requests - done


# Do they stand out?


def test_energies_are_those_that_a_search_would_report() -> None:
    options: dict[str, Any] = {"consistency": "none", "alpha": 20.0}
    report = search(CLAIMS, Synthetic(CLAIMS), seed=1, n_iterations=120, **options)
    there = [i for i, label in enumerate(report.labels) if label is not None]
    claims, found = [CLAIMS[i] for i in there], [bool(report.labels[i]) for i in there]
    engine = Synthetic(CLAIMS)
    table = salience(report, engine, seed=3)
    assert [*table["labels"]] == ["found", "inverted", "all true", "all false", "random"]
    energies = dict(zip(table["labels"], table["energy"], strict=True))
    others = {
        "found": found, "inverted": [not label for label in found],
        "all true": [True] * len(found), "all false": [False] * len(found),
    }  # fmt: skip
    for name, labels in others.items():
        alone = search(claims, Synthetic(CLAIMS), n_seeds=labels, n_iterations=0, **options)
        assert energies[name] == pytest.approx(alone.energy)
    assert energies["found"] == pytest.approx(report.energy)
    assert len(engine.asked) == 5 * len(there)  # that of the labels found is known
    assert [*table["below"]] == pytest.approx([*(table["energy"][0] - table["energy"])])
    assert ((table["low"] <= table["below"]) & (table["below"] <= table["high"])).all()
    assert table["labels_true"][0] == np.mean(found)
    pd.testing.assert_frame_equal(salience(report, Synthetic(CLAIMS), seed=3), table)
    assert salience(report, Synthetic(CLAIMS), seed=4)["energy"][4] != energies["random"]


def test_broken_rules_count_and_so_does_the_first_batch_alone() -> None:
    report = label_all(CLAIMS, Synthetic(CLAIMS), **SOME)
    first = report.provenance["batches"][0]
    table = salience(report, Synthetic(CLAIMS)).set_index("labels")
    claims = [CLAIMS[i] for i in first]
    related = relations(claims)
    for name, labels in (
        ("found", tuple(report.labels[i] for i in first)),
        ("all true", (True,) * 16),
        ("all false", (False,) * 16),
    ):
        assert table.loc[name, "inconsistencies"] == len(violated(related, labels))
    scores = {i: report.scores()[j] for i, j in enumerate(first)}
    own = energy(tuple(report.labels[i] for i in first), scores, related, 20.0)
    assert table.loc["found", "energy"] == pytest.approx(own)
    with pytest.raises(InputError, match="1 claims have a label: at least 2 are needed"):
        salience(search(CLAIMS[:1], Synthetic(CLAIMS)), Synthetic(CLAIMS))


def table_of(found: float, others: tuple[float, ...], low: float = 0.5, true: float = 0.4) -> Any:
    names = ("inverted", "all true", "all false", "random")
    rows = [{"labels": "found", "energy": found, "below": 0.0, "low": 0.0, "high": 0.0}]
    rows += [
        {"labels": name, "energy": value, "below": found - value, "low": low * (found - value),
         "high": 2 * (found - value)}
        for name, value in zip(names, others, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(labels_true=[true, 1 - true, 1.0, 0.0, 0.5])


@pytest.mark.parametrize(
    ("table", "good", "said"),
    [
        (table_of(54, (3, 20, 30, -4)), True, "stand out from random and inverted ones (3.0)"),
        (table_of(54, (3, 20, 60, -4)), True, "; all false is as coherent (60.0), so that another"),
        (table_of(54, (57, 20, 30, -4)), False, "do not stand out from inverted ones (57.0)"),
        (table_of(54, (3, 20, 30, 50), -1), False, "do not stand out from"),
        (table_of(53.5, (3, 20, 53.4, -4), 0.5, 0.02), False, "2% of the labels found are True"),
        (
            table_of(53.5, (3, 55, 30, -4), 0.5, 1.0),
            False,
            "however coherent (energy 53.5, all",
        ),
    ],
)
def test_what_stands_out(table: pd.DataFrame, good: bool, said: str) -> None:
    assert stands_out(table)[0] is good
    assert said in stands_out(table)[1]
    ax = Figure().subplots()
    plot_salience(ax, table)
    assert ("do not" in ax.get_title(loc="left")) is not good
    assert [label.get_text() for label in ax.get_yticklabels()] == [*table["labels"]]


def test_a_model_finds_labels_that_stand_out_and_a_collapse_does_not(plain: VLLMEngine) -> None:
    bed = embedded(40, 0)
    found = search(bed.claims, plain, wording=bed.wording, alpha=20.0)
    assert found.summary[0].value > 0.9
    assert stands_out(salience(found, plain))[0]
    same = search(
        bed.claims, plain, wording=bed.wording, n_seeds=[False] * 40, n_iterations=0, alpha=20.0
    )
    assert not stands_out(salience(same, plain))[0]
