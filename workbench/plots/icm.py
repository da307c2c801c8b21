"""Figures of searches for labels; each function computes its title from what it draws."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.icm.report import ICMReport, stands_out
from workbench.lazy import Axes, pd
from workbench.plots import compared, theme
from workbench.stats import ShareDifference
from workbench.types import Metric


def plot_methods(ax: Axes, table: pd.DataFrame) -> None:
    """The test accuracy of each method with its 95 % interval, the searched labels apart.

    Args:
        table: `ICMStudy.methods`.
    """
    named = table.rename(columns={"method": "name"}).set_index("name", drop=False)
    colours = [theme.COLOURS[name == "ICM"] for name in named["name"]]
    theme.dots(ax, theme.shares(named, "value"), colours=colours)
    theme.percent(ax.xaxis, "test accuracy, % (95 % interval)")
    theme.chance(ax, 0.5, upright=True)
    two = named.loc[[name for name in ("golden labels", "ICM") if name in named.index]]
    versus = [f"versus_golden{end}" for end in ("", "_low", "_high")]
    gains = [ShareDifference("", *row) for row in two[[*versus, "n"]].to_numpy()[1:]]
    metrics = theme.shares(two if len(two) else named[:1], "value")
    theme.finding(ax, compared(metrics, gains, "test accuracy"))


def plot_convergence(ax: Axes, searches: Mapping[str, ICMReport]) -> None:
    """Energy against tokens computed, a line for each search."""
    ends, tokens = [], {}
    for number, (name, report) in enumerate(searches.items()):
        tokens[name] = report.cost.computed_tokens / 1000
        moves, colour = report.history[report.history["accepted"]], theme.COLOURS[number]
        at = [*moves["computed_tokens"] / 1000, tokens[name]]
        energies = [*moves["energy"], moves["energy"].iloc[-1]]
        ax.step(at, energies, where="post", color=colour)
        ends.append((name, colour, float(energies[-1])))
    theme.log_ticks(ax.xaxis, "{x:g}")
    ax.set(xlabel="tokens computed, thousands", ylabel="energy, nats")
    ax.margins(y=0.1)
    theme.label_ends(ax, ends)
    text = ", ".join(f"{name} {count:.1f}" for name, count in tokens.items())
    theme.finding(ax, f"Thousand tokens computed for the labels: {text}")


def plot_demonstrations(ax: Axes, table: pd.DataFrame) -> None:
    """Test accuracy against the number of labelled claims shown, a line for each kind of labels.

    Args:
        table: columns `labels`, `demonstrations`, `value`, `low` and `high`, and for the title
            `gain`, `gain_low`, `gain_high` and `n`: paired differences to no labels.
    """
    theme.lines(ax, table, ("demonstrations", "value"), "labels")
    counts = [n for n in sorted(set(table["demonstrations"])) if n & (n - 1) == 0]
    ax.set_xscale("symlog", base=2, linthresh=2, linscale=0.5)
    ax.set_xticks(counts, [f"{count:g}" for count in counts])
    ax.xaxis.minorticks_off()
    ax.set_xlabel("labelled claims shown")
    theme.percent(ax.yaxis, "test accuracy, % (95 % interval)")
    theme.chance(ax, 0.5)
    first = table[table["labels"] == table["labels"].iloc[0]].sort_values("demonstrations")[:2]
    named = first.assign(name=first["demonstrations"].astype(str) + " " + first["labels"])
    gains = named[["gain", "gain_low", "gain_high", "n"]].to_numpy()[1:]
    metrics = [ShareDifference("", *gain) for gain in gains]
    theme.finding(ax, compared(theme.shares(named, "value"), metrics, "test accuracy"))


def plot_failures(ax: Axes, table: pd.DataFrame, gains: Mapping[str, Metric]) -> None:
    """Label accuracy beside test accuracy with found and with golden labels, a row per setting.

    Args:
        table: columns `setting`, `what`, `value`, `low` and `high`.
        gains: of each setting, test accuracy with the labels found minus that with golden ones.
    """
    parts, ends = table.groupby("what", sort=False), []
    for number, (what, part) in enumerate(parts):
        look = theme.line_style(number) | {"linestyle": "none"}
        at = [place + 0.22 * (number - (len(parts) - 1) / 2) for place in range(len(part))]
        ax.errorbar(part["value"], at, xerr=theme.sides(part, "value"), **look)
        ends.append((str(what), look["color"], at[0]))
    theme.label_ends(ax, ends)
    ax.set_yticks(range(len(gains)), list(gains))
    ax.set_ylim(len(gains) - 0.2, -0.6)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color=theme.GRID)
    theme.percent(ax.xaxis, "accuracy, % (95 % interval)")
    theme.chance(ax, 0.5, upright=True)
    apart = {
        name: abs(gain.value) * (not gain.low <= 0 <= gain.high) for name, gain in gains.items()
    }
    name = max(apart, key=apart.__getitem__)
    theme.finding(ax, f"{name}: labels found minus golden ones {theme.gap(gains[name])}")


def plot_salience(ax: Axes, table: pd.DataFrame) -> None:
    """Energies of the labels found and of others; lines are 95 % intervals of the distance to them.

    Args:
        table: of `icm.salience`.
    """
    found = float(table["energy"].iloc[0])
    ends = {"low": found - table["high"], "high": found - table["low"]}
    rows = theme.shares(table.assign(name=table["labels"], **ends), "energy")
    colours = [theme.COLOURS[name == "found"] for name in table["labels"]]
    theme.dots(ax, rows, lambda one: f"{one.value:.1f}", colours)
    ax.axvline(found, color=theme.COLOURS[1], linewidth=1, linestyle=":")
    ax.set_xlabel("energy, nats")
    good, _ = stands_out(table)
    title = "stand out from random and inverted ones" if good else "do not stand out"
    theme.finding(ax, f"The labels found {title}")
