from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.text import Text

from workbench.plots.style import (
    COLOURS,
    TEXT,
    chance,
    dots,
    finding,
    label_ends,
    new_figure,
    percent,
)
from workbench.types import Metric

METRICS = [Metric("a long name of one prompt of several", 0.88, 0.84, 0.91, 300),
           Metric("b", 0.96, 0.93, 0.98, 300)]  # fmt: skip


def drawn() -> tuple[Any, Any, Any]:
    figure, (left, right) = new_figure(2)
    dots(left, METRICS)
    percent(left.xaxis)
    chance(left, 0.5, upright=True)
    finding(left, "A finding of so many words that it needs several lines in a panel: 8.0 points")
    for number in range(3):
        right.plot([1, 2], [0.1 * number, 0.5 + 0.01 * number], color=COLOURS[number])
    label_ends(right, [(f"line {i}", COLOURS[i], 0.5 + 0.01 * i) for i in range(3)], "lines")
    percent(right.yaxis)
    chance(right, 0.25)
    right.set_xlabel("steps")
    finding(right, "Three lines end at 50.0 to 52.0 %")
    return figure, left, right


def test_names_and_findings_have_room() -> None:
    figure, left, right = drawn()
    figure.draw_without_rendering()
    figure.draw_without_rendering()  # a layout of what is laid out is the same
    for ax in (left, right):
        boxes = [one.get_window_extent() for one in ax.texts]
        title = ax._left_title.get_window_extent()
        assert not any(one.overlaps(other) for one, other in combinations([*boxes, title], 2))
        assert all(figure.bbox.contains(x, y) for box in [*boxes, title] for x, y in box.corners())
    assert "\n" in left.get_title(loc="left")
    assert left._left_title.get_window_extent().x1 < right._left_title.get_window_extent().x0
    sizes = [one.get_fontsize() for one in figure.findobj(Text) if one.get_text()]
    assert min(sizes) >= TEXT == 9
    assert [one.get_text() for one in left.get_xticklabels()] == ["0", "25", "50", "75", "100"]
    assert left.get_xlabel() == "accuracy, %"
    assert figure.get_figwidth() <= 8.6


def test_many_names_at_one_height_are_spread() -> None:
    figure, (ax,) = new_figure()
    label_ends(ax, [(f"n{i}", COLOURS[i], 0.99) for i in range(6)] + [("none", "red", np.nan)])
    figure.draw_without_rendering()
    boxes = [one.get_window_extent() for one in ax.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert ax.texts[-1].get_text() == "none (none)"


def test_a_figure_of_more_panels_has_rows() -> None:
    figure, axes = new_figure(5, height=2)
    assert (figure.get_figheight(), len(axes)) == (6, 5)
    assert new_figure()[0].get_figwidth() < figure.get_figwidth()
