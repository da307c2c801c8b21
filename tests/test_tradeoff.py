"""Quality against speed, batches and canvases of masked diffusion, on the embedded models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tools.training.memoriser import MEMORISER, pairs
from workbench.batching import Batching, Traffic, Way, continuous, static
from workbench.engines.diffusion import Denoising, DiffusionEngine, Row, unavailable
from workbench.errors import InputError
from workbench.plots import new_figure
from workbench.plots.diffusion import (
    plot_canvas,
    plot_latency,
    plot_points,
    plot_throughput,
    plot_trade_off,
)
from workbench.tasks import WordProblems
from workbench.tradeoff import TradeOff, denoised
from workbench.types import Grade, Item, Sampling

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"needs {unavailable()}")
CANVAS = Sampling(max_tokens=64, stop=("\n\n",))
SHORT = WordProblems((1, 2))


@pytest.fixture(scope="module")
def engine() -> Any:
    with DiffusionEngine(None, None, "test", {"device": "cpu"}) as opened:
        yield opened


@pytest.fixture(scope="module")
def memoriser() -> Any:
    with DiffusionEngine(str(MEMORISER), None, "test", {"threshold": 0.9}) as opened:
        yield opened


def traffic(count: int = 16) -> Traffic:
    return Traffic(tuple(prompt for prompt, _ in pairs()), count, (32, 64, 96))


# --- the embedded model


@pytest.mark.slow
def test_the_embedded_model_solves_most_short_problems(engine: DiffusionEngine) -> None:
    settings = [Denoising(), Denoising(threshold=0.9), Denoising(block_length=8, cache="dual")]
    measured = TradeOff(engine, settings, SHORT, 48, sampling=CANVAS, repeats=1)
    report = measured.run()
    one, fast, _ = report.summary
    assert one.value > 0.5
    assert (one.n, one.n_failed) == (48, 0)
    table = measured.table().set_index("setting")
    assert table["fewer"]["threshold 0.9"] > 3
    assert abs(fast.value - one.value) < 0.15
    assert table["points"]["threshold 0.9"] == pytest.approx(100 * (fast.value - one.value))
    assert (table["points_low"][1:] < table["points"][1:]).all()
    assert (table["fewer_low"][1:] <= table["fewer"][1:]).all()
    assert (table["fewer"][1:] <= table["fewer_high"][1:]).all()
    rows = report.rows
    assert set(rows["steps"]) == {1, 2}
    assert rows["id"].nunique() == 48
    assert (rows["forwards"] <= 64).all()
    assert report.provenance["complete"]
    assert report.usage.requests == 144


def test_an_interrupted_measurement_goes_on_where_it_was(engine: DiffusionEngine) -> None:
    settings = [Denoising(threshold=0.9), Denoising(threshold=0.5)]
    whole = TradeOff(engine, settings, SHORT, 8, sampling=CANVAS, repeats=2)
    parts = TradeOff(engine, settings, SHORT, 8, sampling=CANVAS, repeats=2)
    patch, measure, seen = pytest.MonkeyPatch(), TradeOff._measure, list[object]()

    def stopping(self: TradeOff, *rest: Any) -> Any:
        seen.append(rest[1])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(self, *rest)

    patch.setattr(TradeOff, "_measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        parts.run()
    patch.undo()
    assert len(parts.speeds) == 2
    assert not parts.report().provenance["complete"]
    assert parts.run().provenance["complete"]
    assert len(seen) == 3
    pd.testing.assert_frame_equal(parts.rows, whole.run().rows)
    assert len(parts.speeds) == 4


def test_a_prompt_that_does_not_fit_is_a_row_with_its_reason(engine: DiffusionEngine) -> None:
    canvas = Sampling(max_tokens=480)
    measured = TradeOff(engine, [Denoising(threshold=0.9)], SHORT, 40, sampling=canvas, repeats=1)
    (share,) = measured.run().summary
    failed = measured.rows[measured.rows["error"].notna()]
    assert 0 < share.n_failed == len(failed) < 40
    assert failed["error"].str.contains("the context holds 512").all()
    (line,) = measured.table().to_dict("records")
    assert line["n"] == line["pairs"] == 40 - len(failed)
    assert line["fewer"] == 1
    nothing = TradeOff(
        engine, [Denoising(threshold=0.9)], SHORT, 4, sampling=Sampling(max_tokens=510), repeats=1
    )
    nothing.run()
    (line,) = nothing.table().to_dict("records")
    assert (line["n"], line["n_failed"], line["pairs"]) == (0, 4, 0)


@pytest.mark.parametrize(
    ("settings", "more", "said"),
    [
        ([], {}, "0 settings: at least one is needed"),
        ([Denoising(), Denoising()], {}, "none twice"),
        ([Denoising()], {"repeats": 0}, "repeats=0"),
        ([Denoising()], {"count": 0}, "count=0"),
    ],
    ids=str,
)
def test_wrong_measurements_are_refused(
    engine: DiffusionEngine, settings: list[Denoising], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        TradeOff(engine, settings, SHORT, **more)
    with pytest.raises(InputError, match="is not a diffusion engine"):
        TradeOff("engine", [Denoising()])  # type: ignore[arg-type]
    for unread in (TradeOff.report, TradeOff.table):
        with pytest.raises(InputError, match="nothing has been measured yet"):
            unread(TradeOff(engine, [Denoising()], SHORT, 1))


class Raising(WordProblems):
    def grade(self, item: Item, text: str) -> Grade:
        raise KeyError(item.id)


def test_a_grader_that_raises_costs_its_rows_only(engine: DiffusionEngine) -> None:
    measured = TradeOff(engine, [Denoising(threshold=0.9)], Raising((1,)), 3, sampling=CANVAS)
    (share,) = measured.run().summary
    assert share.n_failed == 3
    assert measured.rows["error"].str.contains("the task's grader raised KeyError").all()


def test_settings_have_distinct_names() -> None:
    assert str(Denoising()) == "one token per step"
    assert str(Denoising(steps=8, remasking="random")) == "8 steps, random order"
    dual = Denoising(threshold=0.9, cache="dual", block_length=8, cfg_scale=0.5)
    assert str(dual) == "threshold 0.9, dual cache, blocks of 8, guidance 0.5"


def test_problems_of_some_lengths_only() -> None:
    items = SHORT.items(50)
    assert {item.fields["steps"] for item in items} == {1, 2}
    assert SHORT.name == "word_problems of 1 or 2 steps"
    whole = WordProblems((4, 3, 2, 1))
    assert (whole.name, whole.items(5)) == ("word_problems", WordProblems().items(5))
    for steps in ((), (5,), (0, 1), 3, (True,), (1.0,), "12"):
        with pytest.raises(InputError, match=r"give some of 1, 2, 3, 4"):
            WordProblems(steps)  # type: ignore[arg-type]


# --- batches


def test_static_and_continuous_batches_give_the_same_answers(memoriser: DiffusionEngine) -> None:
    def rows() -> list[Row]:
        return [
            memoriser.row(memoriser.encode(prompt), Sampling(max_tokens=length))
            for prompt, length in traffic(24).asked()
        ]

    fixed, joining = rows(), rows()
    one, other = static(memoriser, fixed, 8), continuous(memoriser, joining, 8)
    assert [row.completion() for row in fixed] == [row.completion() for row in joining]
    assert other.positions < one.positions
    assert other.forwards <= one.forwards


def test_every_way_is_measured_and_every_request_answered(memoriser: DiffusionEngine) -> None:
    ways = [Way("static", 4), Way("continuous", 4), Way("server", 4, 0.0, 8),
            Way("server", 4, 0.2, 1)]  # fmt: skip
    measured = Batching(memoriser, traffic(12), ways, repeats=2)
    rows = measured.run()
    assert len(rows) == 8
    assert (rows["failed"] == 0).all()
    assert (rows["requests_per_s"] > 0).all()
    assert rows["how"].tolist() == ["static", "continuous", "server", "server"] * 2
    server = rows[rows["how"] == "server"].set_index("clients")
    assert (server["p50"] <= server["p95"]).all()
    assert (server["p50"][1] >= 0.2).all()  # one alone waits for others
    assert (rows[rows["how"] == "static"]["positions"] > 0).all()
    assert measured.run() is not rows  # done already
    assert len(measured.rows) == 8


def test_requests_that_fail_are_counted(memoriser: DiffusionEngine) -> None:
    asked = Traffic((pairs()[0][0],), 6, (32, 100_000))
    ways = [Way("server", 4, 0.0, 3), Way("continuous", 4)]
    rows = Batching(memoriser, asked, ways, repeats=1).run()
    assert rows["failed"].tolist() == [3, 3]
    assert rows["error"].str.contains("512").all()


def test_prompts_out_of_an_array_are_texts() -> None:
    assert Traffic(np.array(["a", "b"])).prompts == ("a", "b")  # type: ignore[arg-type]


def test_what_cannot_be_measured_is_refused(memoriser: DiffusionEngine) -> None:
    for wrong in ({"prompts": ()}, {"prompts": "abc"}, {"requests": 0}, {"requests": 2.5},
                  {"lengths": ()}, {"lengths": (0,)}):  # fmt: skip
        with pytest.raises(InputError, match=f"{next(iter(wrong))}=.*: (give|must)"):
            Traffic(**({"prompts": ("a",)} | wrong))
    for way in ({"how": "dynamic"}, {"batch_size": -1}, {"batch_size": 2.5}, {"clients": 0},
                {"max_wait_time": -1}, {"max_wait_time": "1"}):  # fmt: skip
        with pytest.raises(InputError, match=f"{next(iter(way))}="):
            Way(**({"how": "server", "batch_size": 4} | way))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="0 ways"):
        Batching(memoriser, traffic(), [])
    with pytest.raises(InputError, match="none twice"):
        Batching(memoriser, traffic(), [Way("static", 4), Way("static", 4)])
    with pytest.raises(InputError, match="repeats=0"):
        Batching(memoriser, traffic(), [Way("static", 4)], repeats=0)
    with (
        DiffusionEngine(str(MEMORISER), None, "test", {"cache": "dual"}) as cached,
        pytest.raises(InputError, match="static batches need none"),
    ):
        Batching(cached, traffic(), [Way("static", 4)])


def test_a_server_with_a_key_is_asked_with_it(
    memoriser: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_API_KEY", "secret")
    rows = Batching(memoriser, traffic(4), [Way("server", 4, 0.0, 2)], repeats=1).run()
    assert rows["failed"].tolist() == [0]


# --- one canvas, and figures


def test_each_token_of_a_canvas_has_its_step(memoriser: DiffusionEngine) -> None:
    prompt, answer = pairs()[0]
    slow = denoised(memoriser, prompt, Sampling(max_tokens=64), Denoising())
    fast = denoised(memoriser, prompt, Sampling(max_tokens=64))
    assert "".join(slow["text"]).removesuffix("<|end|>") == answer
    assert slow["text"].tolist() == fast["text"].tolist()
    assert slow["step"].is_unique
    assert fast["step"].max() < slow["step"].max() / 3
    assert slow["probability"].between(0, 1).all()
    assert slow["place"].tolist() == list(range(len(slow)))
    with pytest.raises(InputError, match="context holds"):
        denoised(memoriser, prompt, Sampling(max_tokens=600))


def test_figures_show_what_was_measured(
    engine: DiffusionEngine, memoriser: DiffusionEngine
) -> None:
    settings = [
        Denoising(), Denoising(threshold=0.9), Denoising(steps=32), Denoising(cache="prefix")
    ]  # fmt: skip
    measured = TradeOff(engine, settings, SHORT, 8, sampling=CANVAS, repeats=1)
    measured.run()
    ways = [Way(how, size) for how in ("static", "continuous", "server") for size in (1, 4)]
    rows = Batching(memoriser, traffic(8), ways, repeats=1).run()
    figure, axes = new_figure(6)
    table = measured.table()
    plot_trade_off(axes[0], table, "fewer")
    plot_throughput(axes[1], rows)
    plot_latency(axes[2], rows)
    steps = denoised(memoriser, pairs()[0][0], Sampling(max_tokens=64), Denoising())
    plot_canvas(axes[3], steps)
    plot_points(axes[4], table)
    plot_throughput(axes[5], rows, "positions")
    figure.draw_without_rendering()
    assert [sorted(text.get_text() for text in ax.texts) for ax in axes[:3]] == [
        ["1 per step", "1 per step, prefix cache", "32 steps", "threshold 0.9"],
        ["continuous", "static"],
        ["clients 1, wait 0 s"],
    ]
    names = [tick.get_text() for tick in axes[4].get_yticklabels()]
    assert names == ["threshold 0.9", "32 steps", "1 per step, prefix cache"]
    work = rows[rows["batch_size"] == 4].set_index("how")["positions"]
    times = f"{work['static'] / work['continuous']:.2f} times"
    assert times in " ".join(axes[5].get_title(loc="left").split())
    first = (steps["step"] == 1).sum()
    title = f"{len(steps)} tokens in {steps['step'].max()} forwards, {first} of them in the first"
    assert " ".join(axes[3].get_title(loc="left").split()) == title
    assert len(axes[3].patches) == sum(steps["step"].max() + 1 - steps["step"])
