"""Figures of masked diffusion: quality against speed, batches, and a canvas being filled."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from workbench.lazy import Axes, pd
from workbench.plots.style import doubling, line_style, lines, log_ticks, sides

AXES = {"fewer": "times fewer forwards", "faster": "times as fast"}


def plot_trade_off(ax: Axes, table: pd.DataFrame, x: str = "faster") -> None:
    """Accuracy against what is saved: a colour for each cache and block length, a line each through
    the settings with a fixed number of steps and through those with a threshold.

    Args:
        table: what `TradeOff.table` returns.
        x: "fewer" forwards or "faster", both against the first setting.
    """
    several = len({*table["block_length"]}) > 1
    groups = table.groupby(["cache", "block_length"], sort=False)
    for number, ((cache, length), group) in enumerate(groups):
        style = line_style(number)
        label = ("no cache" if cache == "none" else f"{cache} cache") + (
            f", blocks of {length}" if several else ""
        )
        for by_steps, part in group.groupby(group["threshold"].isna()):
            line = part.sort_values(x)
            ax.errorbar(
                line[x], line["accuracy"], yerr=sides(line, "accuracy"), capsize=3,
                linestyle="--" if by_steps else "-", mfc="white" if by_steps else None,
                label=f"{label}, {'fixed steps' if by_steps else 'thresholds'}", **style,
            )  # fmt: skip
            for row in line.to_dict("records"):
                ax.annotate(
                    _shown(row), (row[x], row["accuracy"]), xytext=(4, -10 if by_steps else 5),
                    textcoords="offset points", color=style["color"], fontsize=7,
                )  # fmt: skip
    log_ticks(ax.xaxis, "{x:g} ×")
    ax.set(xlabel=AXES[x], ylabel="accuracy (95 % interval)", ylim=(0, 1.02))
    ax.legend(fontsize=8, frameon=False, loc="lower left")


def _shown(row: Mapping[Hashable, Any]) -> str:
    if row["threshold"] == row["threshold"]:  # no NaN
        return f"{row['threshold']:g}"
    return f"{row['steps']:g} steps" if row["steps"] == row["steps"] else "1 a step"


def plot_throughput(ax: Axes, rows: pd.DataFrame) -> None:
    """Requests a second against batch size, for each way to make batches; medians and ranges.

    Args:
        rows: those of `Batching`.
    """
    speeds = rows.groupby(["how", "batch_size"])["requests_per_s"]
    table = speeds.agg(["median", "min", "max"]).loc[["continuous", "static"]].reset_index()
    lines(ax, table, ("batch_size", "median"), "how", low="min", high="max")
    doubling(ax, rows["batch_size"])
    ax.set(xlabel="batch size", ylabel="requests per second")
    ax.set_ylim(bottom=0)


def plot_latency(ax: Axes, rows: pd.DataFrame) -> None:
    """Seconds that half of the requests take, and up to the 95th per cent, against batch size.

    Args:
        rows: those of `Batching`, of servers.
    """
    served = rows[rows["how"] == "server"]
    keys = ["clients", "max_wait_time", "batch_size"]
    table = served.groupby(keys)[["p50", "p95"]].median().reset_index()
    table["name"] = [f"{n:g} clients, wait {s:g} s" for n, s in table[keys[:2]].to_numpy()]
    lines(ax, table, ("batch_size", "p50"), "name", low="p50", high="p95")
    doubling(ax, served["batch_size"])
    ax.set(xlabel="batch size", ylabel="seconds per request (median to p95)")
    ax.set_ylim(bottom=0)


def plot_canvas(ax: Axes, steps: pd.DataFrame) -> None:
    """A canvas after each step: what is committed now is coloured by how sure the model was.

    Args:
        steps: what `tradeoff.denoised` returns.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    shades = LinearSegmentedColormap.from_list("sure", ("#E69F00", "#FFF3D0", "#7FC4E8"))
    last = int(steps["step"].max())
    for one in steps.to_dict("records"):
        shown = one["text"].replace("\n", "↵").replace(" ", "␣" if one["text"].isspace() else "")
        shown = shown.removeprefix("<|").removesuffix("|>")
        for step in range(one["step"], last + 1):
            new = step == one["step"]
            colour = shades(one["probability"]) if new else "0.94"
            ax.add_patch(Rectangle((one["place"] - 0.5, step - 0.5), 1, 1, color=colour, lw=0))
            ax.text(
                one["place"], step, shown, ha="center", va="center", clip_on=True, parse_math=False,
                fontsize=7 if len(shown) < 3 else 5, color="black" if new else "0.5",
            )  # fmt: skip
    ax.set(xlim=(-0.5, len(steps) - 0.5), ylim=(last + 0.5, 0.5))
    ax.set_yticks(range(1, last + 1, max(1, last // 10)))
    ax.grid(visible=False)
    ax.set(xlabel="place in the answer", ylabel="forward")
    assert ax.figure is not None
    ax.figure.colorbar(ScalarMappable(cmap=shades), ax=ax, label="probability", pad=0.01)
