"""Each figure of `workbench.plots`: its title says what was found, and all of it can be read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pandas as pd
import pytest
from matplotlib.text import Text

from workbench import plots
from workbench.plots import new_figure
from workbench.samples import pass_at_k
from workbench.stats import Metric, ShareDifference, paired_shares, proportion

NAMES = ("no example", "4 examples", "a chat template with a rather long name")
HITS = (83, 96, 81)


def shares(n: int = 100) -> list[Metric]:
    return [proportion(name, hits, n) for name, hits in zip(NAMES, HITS, strict=True)]


def gain(hits: int, others: int, n: int = 100) -> Metric:
    """Of items in one order, of which each setting solves the first so many."""
    return paired_shares("", [i < hits for i in range(n)], [i < others for i in range(n)])


EVEN = ShareDifference("", -0.02, -0.06, 0.02, 100)
GAINS = [gain(hits, HITS[0]) for hits in HITS[1:]]


def compared(*gaps: tuple[float, float, float, float]) -> pd.DataFrame:
    """A table as of `comparison`: difference, its ends and p of each row after the first."""
    rows = []
    for number, (gap, low, high, p) in enumerate([(math.nan,) * 4, *gaps]):
        value = 0.8 + (0 if math.isnan(gap) else gap)
        rows.append({
            "name": ("standard", "majority_vote", "self_refine")[number], "accuracy": value,
            "low": value - 0.05, "high": value + 0.04, "n": 120, "n_failed": 0, "runs": 1,
            "completion_tokens": 4000 * (number + 1), "difference": gap, "difference_low": low,
            "difference_high": high, "p": p, "p_holm": p, "samples": 2**number,
        })  # fmt: skip
    return pd.DataFrame(rows)


TABLE = compared((0.05, 0.002, 0.1, 0.14), (-0.09, -0.15, -0.03, 0.003))
SPEEDS = pd.DataFrame([
    {"runner": runner, "batch": batch, "requests": 64, "prompt_tokens": 8 * (batch or 64),
     "shared": batch / 64, "output_tokens_per_s": speed, "low": 0.9 * speed, "high": 1.2 * speed}
    for runner, batch, speed in (("vllm", 0, 2000.0), ("vllm", 1, 210.0), ("vllm", 8, 1100.0),
                                 ("bare LLM.generate", 0, 2010.0), ("transformers", 1, 300.0),
                                 ("transformers", 8, 1200.0))
])  # fmt: skip
RATIOS = [
    Metric("vllm, all at once over bare LLM.generate, all at once", 0.98, 0.8, 1.03, 3),
    Metric("vllm, all at once over transformers, batch 1", 6.961, 6.54, 8.17, 3),
]
REPLICAS = pd.DataFrame(
    [(1, 0, 10.0), (1, 1, 10.0), (2, 0, 19.5), (2, 1, 19.0), (4, 0, 37.0), (4, 1, 39.0)],
    columns=["replicas", "repeat", "requests_per_s"],
)  # fmt: skip
REQUESTS = pd.DataFrame([
    {"prompts_per_request": size, "max_concurrency": most, "verdicts_per_s": 10.0 * most + extra}
    for size, extra in ((1, 0), (64, 100), ("auto", 99)) for most in (1, 4, 16)
])  # fmt: skip
# Verdicts of 4 samples for each of 40 items.
DRAWN = [[1, 1, 1, 1]] * 20 + [[1, 0, 0, 1]] * 12 + [[0, 0, 0, 0]] * 8

Draw = Callable[[Any], object]
PANELS: dict[str, tuple[Draw, str]] = {
    "accuracy": (lambda ax: plots.plot_accuracy(ax, shares(), gains=GAINS),
        ("4 examples: accuracy rises from 83.0 to 96.0 % (paired difference +13.0 points, "
        f"+{100 * GAINS[0].low:.1f} to +{100 * GAINS[0].high:.1f})")),
    "accuracy, not compared": (lambda ax: plots.plot_accuracy(ax, shares(), "pairs won", level=0.8),
        ("Pairs won 81.0 % (a chat template with a rather long name) to 96.0 % (4 examples); not "
        "distinguishable from chance: no example and a chat template with a rather long name")),
    "accuracy, one": (lambda ax: plots.plot_accuracy(ax, shares()[:1]),
        "accuracy 83.0 % (74.5 to 89.1, n = 100)"),
    "accuracy, no difference": (
        lambda ax: plots.plot_accuracy(ax, shares()[::2], gains=[EVEN]),
        ("a chat template with a rather long name: accuracy not distinguishable from no example "
        "(paired difference −2.0 points, −6.0 to +2.0)")),
    "speeds": (lambda ax: plots.plot_speeds(ax, SPEEDS, "batch"),
        "vllm: 210 to 2,000 tokens per second at 1 to 64 prompts per call"),
    "speeds, shared": (lambda ax: plots.plot_speeds(ax, SPEEDS, "shared"),
        "vllm: 2,000 to 1,100 tokens per second at 0 to 12 % of the prompt that all share"),
    "speedups": (lambda ax: plots.plot_speedups(ax, RATIOS),
        ("vllm, all at once: 6.96 × as fast as transformers, batch 1 (6.54 to 8.17); range holds "
        "1: bare LLM.generate, all at once")),
    "replicas": (lambda ax: plots.plot_replicas(ax, REPLICAS),
        "4 replicas: 3.80 × (3.70 to 3.90) the rows per second of 1"),
    "requests": (lambda ax: plots.plot_requests(ax, REQUESTS, 641.0),
        ("At most 260 verdicts per second (64 per request, 16 requests in flight); 641 in this "
        "process")),
    "samples": (lambda ax: plots.plot_samples(ax, TABLE),
        ("self refine: accuracy falls from 80.0 to 71.0 % (paired difference −9.0 points, −15.0 to "
        "−3.0)")),
    "at_k": (lambda ax: plots.plot_at_k(ax, pass_at_k(DRAWN, (1, 2, 4))),
        ("pass@4: accuracy rises from 65.0 to 80.0 % (paired difference +15.0 points, +7.6 to "
        "+22.4)")),
    "costs": (lambda ax: plots.plot_costs(ax, compared((0.05, 0.002, 0.1, 0.14))),
        ("majority vote: accuracy not distinguishable from standard (paired difference +5.0 "
        "points, +0.2 to +10.0)")),
}  # fmt: skip


def readable(figure: Any, panels: Sequence[Any]) -> None:
    """Every text has its size and its place, and each panel its names and a title with a number."""
    figure.draw_without_rendering()
    seen = [one for one in figure.findobj(Text) if one.get_text() and one.get_visible()]
    assert min(one.get_fontsize() for one in seen) >= 9
    for ax in panels:
        assert ax.get_xlabel()
        assert ax.get_ylabel() or [one for one in ax.get_yticklabels() if one.get_text()]
        beside = [one.get_window_extent() for one in ax.texts if one.get_text()]
        assert not any(one.overlaps(other) for one, other in combinations(beside, 2))
        title = ax._left_title.get_window_extent()
        assert not any(title.overlaps(one) for one in beside)
        for box in (*beside, title, ax.xaxis.label.get_window_extent()):
            assert figure.bbox.x0 - 1 <= box.x0
            assert box.x1 <= figure.bbox.x1 + 1


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_states_its_finding_and_can_be_read(name: str) -> None:
    draw, title = PANELS[name]
    figure, axes = new_figure(2)
    for ax in axes:
        draw(ax)
        assert ax.get_title(loc="left") == title
        assert re.search(r"\d", title)
        assert not ax.patches  # no bars, on logarithmic axes or elsewhere
    readable(figure, axes)
    assert " ".join(axes[0].get_title(loc="left").split()) == title


def test_every_plot_function_is_in_this_list() -> None:
    drawn = {name.partition(",")[0] for name in PANELS}
    assert {name.removeprefix("plot_") for name in dir(plots) if name.startswith("plot_")} == drawn


def test_a_comparison_has_the_same_rows_in_both_panels() -> None:
    figure = plots.draw_comparison(TABLE)
    left, right = figure.axes
    figure.draw_without_rendering()
    title = " ".join(figure.get_suptitle().split())
    assert title.startswith("self refine: accuracy falls from 80.0 to 71.0 %")
    assert [one.get_text() for one in left.get_yticklabels()] == [
        "standard", "majority vote", "self refine",
    ]  # fmt: skip
    assert [one.get_text() for one in right.texts if one.get_text()] == ["+5.0", "−9.0"]
    assert left.get_ylim() == right.get_ylim()
    assert figure.get_figwidth() <= 8.6


def test_where_nothing_is_paired_the_accuracy_is_the_finding() -> None:
    nothing: Metric = ShareDifference("", math.nan, -1.0, 1.0, 0)
    assert plots.compared(shares()[:2], [nothing]) == (
        "no example: accuracy 83.0 % (74.5 to 89.1, n = 100)"
    )
