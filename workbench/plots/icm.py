"""Figures of searches for labels."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.lazy import Axes, pd
from workbench.plots import COLOURS, line_style, log_ticks, share_ticks, sides

OURS = ("ICM",)


def plot_methods(ax: Axes, table: pd.DataFrame) -> None:
    """Bars of the test accuracy of each method with its 95 % interval, the searched labels apart.

    Args:
        table: `ICMStudy.methods`.
    """
    places = range(len(table))
    values = table["value"].astype(float)
    colours = [COLOURS[1] if name in OURS else COLOURS[0] for name in table["method"]]
    ax.bar(places, values, color=colours, width=0.65)
    ax.errorbar(
        places, values, yerr=sides(table, "value"),
        fmt="none", ecolor="0.2", capsize=4, linewidth=1.2,
    )  # fmt: skip
    for place, (value, high) in enumerate(zip(values, table["high"], strict=True)):
        ax.text(place, high + 0.02, f"{value:.2f}", ha="center", fontsize=8)
    names = [
        name.replace(" ", "\n").replace("-shot", "-\nshot").replace("bootstr", "boot-\nstr")
        for name in table["method"]
    ]
    ax.set_xticks(list(places), names, fontsize=8)
    ax.set_ylim(0, 1.12)
    share_ticks(ax.yaxis)
    ax.set_ylabel("test accuracy (95 % interval)")


def plot_convergence(ax: Axes, histories: Mapping[str, pd.DataFrame]) -> None:
    """Energy (lines) and label accuracy (dotted, right axis) against tokens computed.

    Args:
        histories: `ICMReport.history` of each search, by name.
    """
    right = ax.twinx()
    right.spines["top"].set_visible(False)
    for number, (name, history) in enumerate(histories.items()):
        moves, colour = history[history["accepted"]], COLOURS[number % len(COLOURS)]
        tokens = moves["computed_tokens"] / 1000
        ax.step(tokens, moves["energy"], where="post", color=colour, linewidth=1.4, label=name)
        if moves["label_accuracy"].isna().all():  # no gold
            right.set_visible(False)
        right.step(
            tokens, moves["label_accuracy"], where="post", color=colour, linewidth=1.2,
            linestyle=":",
        )  # fmt: skip
    ax.set_xscale("log")
    log_ticks(ax.xaxis, "{x:g}")
    ax.set(xlabel="tokens computed, thousands", ylabel="energy, nats (line)")
    right.set(ylabel="label accuracy (dotted)", ylim=(0, 1.05))
    ax.legend(frameon=False, fontsize=9, loc="lower right")


def plot_demonstrations(ax: Axes, table: pd.DataFrame) -> None:
    """Test accuracy against the number of labelled claims shown, a line for each kind of labels.

    Args:
        table: columns `labels`, `demonstrations`, `value`, `low` and `high`.
    """
    from matplotlib.ticker import NullLocator

    for number, (name, part) in enumerate(table.groupby("labels", sort=False)):
        line, style = part.sort_values("demonstrations"), line_style(number)
        shown = line["demonstrations"]
        ax.plot(shown, line["value"], label=str(name), linewidth=1.4, markersize=5, **style)
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        ax.fill_between(shown, line["low"], line["high"], **band)
    counts = [n for n in sorted(set(table["demonstrations"])) if n & (n - 1) == 0]
    ax.set_xscale("symlog", base=2, linthresh=1)
    ax.set_xticks(counts, [f"{count:g}" for count in counts])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(ylim=(0, 1.05), xlabel="labelled claims shown", ylabel="test accuracy (95 % interval)")
    ax.legend(frameon=False, fontsize=9, loc="lower right")


def plot_failures(ax: Axes, table: pd.DataFrame) -> None:
    """Label accuracy beside test accuracy with found and with golden labels, for each setting.

    Args:
        table: columns `setting`, `what`, `value`, `low` and `high`; bars of one setting together.
    """
    kinds = list(dict.fromkeys(table["what"]))
    settings = list(dict.fromkeys(table["setting"]))
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        part = table[table["what"] == kind].set_index("setting").reindex(settings)
        places = [at + (number - (len(kinds) - 1) / 2) * width for at in range(len(settings))]
        ax.bar(places, part["value"], width=0.92 * width, color=COLOURS[number], label=kind)
        ends = sides(part, "value")
        ax.errorbar(
            places, part["value"], yerr=ends, fmt="none", ecolor="0.2", capsize=3, linewidth=1
        )
    ax.axhline(0.5, color="0.2", linewidth=1, linestyle="--")
    ax.set_xticks(range(len(settings)), [name.replace(", ", "\n") for name in settings], fontsize=8)
    ax.set_ylim(0, 1.3)
    share_ticks(ax.yaxis)
    ax.set_ylabel("accuracy (95 % interval)")
    ax.legend(frameon=False, fontsize=8, loc="upper center", ncols=len(kinds))


def plot_salience(ax: Axes, table: pd.DataFrame) -> None:
    """Energies of the labels found and of others; lines are 95 % intervals of the distance to them.

    Args:
        table: of `icm.salience`.
    """
    from workbench.icm.report import stands_out

    found = float(table["energy"].iloc[0])
    colours = [COLOURS[1] if name == "found" else COLOURS[0] for name in table["labels"]]
    places = range(len(table))
    ax.hlines(places, found - table["high"], found - table["low"], color="0.2", linewidth=1.2)
    ax.scatter(table["energy"], places, color=colours, zorder=3)
    ax.axvline(found, color=COLOURS[1], linewidth=1, linestyle=":")
    ax.set_yticks(places, table["labels"])
    ax.invert_yaxis()
    ax.set_xlabel("energy, nats")
    good, _ = stands_out(table)
    title = "stand out\nfrom random and inverted ones" if good else "do not stand out"
    ax.set_title(f"The labels found {title}", fontsize=10)
