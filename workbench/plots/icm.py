"""Figures of searches for labels."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.lazy import Axes, pd
from workbench.plots.style import (
    COLOURS,
    chance,
    dots,
    finding,
    label_ends,
    lines,
    log_ticks,
    percent,
    shares,
)


def plot_methods(ax: Axes, table: pd.DataFrame) -> None:
    """The test accuracy of each method with its 95 % interval, the searched labels apart.

    Args:
        table: `ICMStudy.methods`.
    """
    colours = [COLOURS[name == "ICM"] for name in table["method"]]
    dots(ax, shares(table.rename(columns={"method": "name"}), "value"), colours=colours)
    percent(ax.xaxis, "test accuracy, % (95 % interval)")


def plot_convergence(ax: Axes, histories: Mapping[str, pd.DataFrame], what: str = "energy") -> None:
    """Energy, or label accuracy, against tokens computed.

    Args:
        histories: `ICMReport.history` of each search, by name.
        what: "energy" or "label_accuracy".
    """
    ends = []
    for colour, (name, history) in zip(COLOURS, histories.items(), strict=False):
        moves = history[history["accepted"]]
        ax.step(moves["computed_tokens"] / 1000, moves[what], where="post", color=colour)
        ends.append((name, colour, float(moves[what].iloc[-1])))
    log_ticks(ax.xaxis, "{x:g}")
    ax.set(xlabel="tokens computed, thousands", ylabel="energy, nats")
    if what == "label_accuracy":
        percent(ax.yaxis, "label accuracy, %")
    label_ends(ax, ends)


def plot_demonstrations(ax: Axes, table: pd.DataFrame) -> None:
    """Test accuracy against the number of labelled claims shown, a line for each kind of labels.

    Args:
        table: columns `labels`, `demonstrations`, `value`, `low` and `high`.
    """
    lines(ax, table, ("demonstrations", "value"), "labels")
    counts = [n for n in sorted(set(table["demonstrations"])) if n & (n - 1) == 0]
    ax.set_xscale("symlog", base=2, linthresh=1)
    ax.set_xticks(counts, [f"{count:g}" for count in counts])
    ax.xaxis.minorticks_off()
    ax.set_xlabel("labelled claims shown")
    percent(ax.yaxis, "test accuracy, % (95 % interval)")


def plot_failures(ax: Axes, table: pd.DataFrame) -> None:
    """Label accuracy beside test accuracy with found and with golden labels, for each setting.

    Args:
        table: columns `setting`, `what`, `value`, `low` and `high`; rows of one setting together.
    """
    kinds = list(dict.fromkeys(table["what"]))
    colours = [COLOURS[kinds.index(kind)] for kind in table["what"]]
    rows = table.assign(name=table["setting"] + ": " + table["what"])
    dots(ax, shares(rows, "value"), colours=colours)
    percent(ax.xaxis, "accuracy, % (95 % interval)")
    chance(ax, 0.5, upright=True)


def plot_salience(ax: Axes, table: pd.DataFrame) -> None:
    """Energies of the labels found and of others; lines are 95 % intervals of the distance to them.

    Args:
        table: of `icm.salience`.
    """
    from workbench.icm.report import stands_out

    found = float(table["energy"].iloc[0])
    ends = {"low": found - table["high"], "high": found - table["low"]}
    rows = shares(table.assign(name=table["labels"], **ends), "energy")
    colours = [COLOURS[name == "found"] for name in table["labels"]]
    dots(ax, rows, lambda one: f"{one.value:.1f}", colours)
    ax.axvline(found, color=COLOURS[1], linewidth=1, linestyle=":")
    ax.set_xlabel("energy, nats")
    good, _ = stands_out(table)
    title = "stand out from random and inverted ones" if good else "do not stand out"
    finding(ax, f"The labels found {title}")
