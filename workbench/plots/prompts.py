"""The figure of prompts compared: how often each is right, and how far it is from the first."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from workbench.plots import COLOURS, new_figure, share_ticks, sides

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

WIDTH, NAME = 110, 22  # characters of a line of the title, and of a name


def draw_comparison(table: pd.DataFrame, title: str) -> Figure:
    """Accuracies with their 95 % intervals, and paired differences to the first with theirs.

    Args:
        table: what `comparison.comparison` returns, of two reports or more.
        title: what was found.
    """
    figure, (left, right) = new_figure(2, height=1.5 + 0.45 * len(table))
    places = list(range(len(table)))
    colours = [COLOURS[place % len(COLOURS)] for place in places]
    for place, row in enumerate(table.to_dict("records")):
        ends = [[side] for side in sides(row, "accuracy")]
        style: dict[str, Any] = {
            "color": colours[place],
            "marker": "o",
            "capsize": 4,
            "markersize": 6,
        }
        left.errorbar(row["accuracy"], place, xerr=ends, **style)
        if place:
            ends = [
                [side] for side in sides(row, "difference", "difference_low", "difference_high")
            ]
            right.errorbar(row["difference"], place, xerr=ends, **style)
    names = [textwrap.fill(str(name), NAME) for name in table["name"]]
    left.set_yticks(places, [f"{a}\nn = {n}" for a, n in zip(names, table["n"], strict=True)])
    left.set_xlim(-0.02, 1.02)
    share_ticks(left.xaxis)
    left.set_xlabel("accuracy (95 % interval)")
    right.axvline(0, color="0.2", linewidth=1, linestyle="--")
    right.set_yticks(places, [""] * len(places))
    right.set_xlabel(f"difference to {names[0]} (paired, 95 % interval)".replace("\n", " "))
    for ax in (left, right):
        ax.set_ylim(len(places) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", color="0.9")
    figure.suptitle(textwrap.fill(title, WIDTH), fontsize=10)
    return figure
