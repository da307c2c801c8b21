from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from workbench.plots.theme import (
    COLOURS,
    INK,
    KEEP,
    SOFT,
    TEXT,
    chance,
    dots,
    finding,
    for_dark,
    label_ends,
    new_figure,
    percent,
)
from workbench.runs import save_figure
from workbench.types import Metric

LIGHT, DARK = "#ffffff", "#111111"

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


def contrast(colour: Any, other: Any) -> float:
    """How well one colour is seen on another, from 1 to 21 (WCAG 2.1, contrast ratio)."""
    parts = np.array([to_rgb(colour), to_rgb(other)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    low, high = np.sort(linear @ (0.2126, 0.7152, 0.0722))
    return float((high + 0.05) / (low + 0.05))


def texts(figure: Any) -> list[tuple[str, Any]]:
    return [(one.get_text(), one.get_color()) for one in figure.findobj(Text) if one.get_text()]


def series(figure: Any) -> list[Any]:
    """The colours of lines that are no grid and no ticks, and of collections and patches."""
    drawn = [one.get_color() for ax in figure.axes for one in ax.lines]
    parts = [*(one for ax in figure.axes for one in (*ax.collections, *ax.patches))]
    return drawn + [colour for one in parts for colour in np.atleast_2d(one.get_facecolor())[:1]]


def test_texts_and_series_are_seen_on_light_and_on_dark_and_the_figure_is_restored() -> None:
    assert contrast("white", "black") == pytest.approx(21)
    assert contrast("#777777", LIGHT) == pytest.approx(4.48, abs=0.01)  # as WCAG's examples
    figure, left, right = drawn()
    for number, colour in enumerate(COLOURS):
        label_ends(right, [(f"name {number}", colour, 0.1 * number)])
        right.bar(number, 1, color=colour)
    left.text(0.5, 0, "on a cell", color="white", gid=KEEP)
    figure.draw_without_rendering()
    before, were = texts(figure), [*map(to_rgb, series(figure))]
    assert all(contrast(colour, LIGHT) >= 4.5 for text, colour in before if text != "on a cell")
    assert min(contrast(colour, LIGHT) for colour in (*were, *COLOURS)) >= 3
    with for_dark(figure):
        assert (
            min(contrast(colour, DARK) for text, colour in texts(figure) if text[:2] != "on") > 4.5
        )
        assert min(contrast(colour, DARK) for colour in series(figure)) >= 3
        assert dict(texts(figure))["on a cell"] == "white"
        assert to_rgb(figure.get_facecolor()) == pytest.approx(to_rgb(DARK), abs=0.01)
    assert texts(figure) == before
    assert [*map(to_rgb, series(figure))] == were
    assert contrast(INK, LIGHT) > contrast(SOFT, LIGHT) >= 4.5


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


def test_a_saved_figure_has_a_dark_version_and_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.image import imread

    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(tmp_path))
    figure, *_ = drawn()
    path = save_figure(figure, "one")
    dark = path.with_name("one_dark.png")
    first = path.read_bytes(), dark.read_bytes()
    save_figure(figure, "one")
    assert (path.read_bytes(), dark.read_bytes()) == first
    light, shown = imread(path), imread(dark)
    assert light.shape == shown.shape
    assert light.shape[1] * 96 / 150 <= 8.6 * 96
    assert light[0, 0].tolist() == [1, 1, 1, 1]
    assert shown[0, 0, 3] == 0
    assert shown[shown[..., 3] > 0.9][:, :3].mean() > 0.4
