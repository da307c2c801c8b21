"""Figures of agents: what more samples and more tokens bring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.plots import COLOURS, MARKERS, log_ticks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def plot_samples(ax: Axes, curve: pd.DataFrame) -> None:
    """Accuracy of a vote against the samples that it counts, with its 95 % band.

    Args:
        curve: what `scaling.by_samples` returns.
    """
    ax.fill_between(curve["samples"], curve["low"], curve["high"], color=COLOURS[0], alpha=0.15)
    ax.plot(curve["samples"], curve["accuracy"], color=COLOURS[0], marker=MARKERS[0])
    ax.set_xscale("log", base=2)
    ax.set_xticks(curve["samples"], [str(count) for count in curve["samples"]])
    ax.minorticks_off()
    ax.set_xlabel("samples that vote")
    ax.set_ylabel("accuracy (95 % band)")


def plot_costs(ax: Axes, table: pd.DataFrame) -> None:
    """Accuracy of agents against the tokens that they generate for an item.

    Args:
        table: what `comparison.comparison` returns.
    """
    for number, row in enumerate(table.to_dict("records")):
        tokens = row["completion_tokens"] / (row["n"] + row["n_failed"] / row["runs"]) / row["runs"]
        value = row["accuracy"]
        colour = COLOURS[number % len(COLOURS)]
        ax.errorbar(
            tokens, value, yerr=[[value - row["low"]], [row["high"] - value]],
            marker=MARKERS[number % len(MARKERS)], color=colour, capsize=4, linestyle="none",
            label=row["name"].replace("_", " "),
        )  # fmt: skip
    ax.set_xscale("log")
    log_ticks(ax.xaxis, "{x:,.0f}")
    ax.set_xlabel("generated tokens an item")
    ax.set_ylabel("accuracy (95 % interval)")
    ax.set_ylim(0, 1.02)
    ax.legend(fontsize=8, frameon=False, loc="lower left")
