"""Figures of masked diffusion: quality against work, batches, and a canvas being filled.

Each function computes its title from what it draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from workbench.lazy import Axes, pd
from workbench.plots import theme
from workbench.stats import ShareDifference

AXES = {"fewer": "times fewer forwards", "faster": "times as fast"}


def plot_trade_off(ax: Axes, table: pd.DataFrame, x: str = "fewer") -> None:
    """Accuracy against what is saved, a line each through the settings of a cache and block length
    with a fixed number of steps, and through those with a threshold.

    Args:
        table: what `TradeOff.table` returns, of two settings or more.
        x: "fewer" forwards or "faster", both against the first setting.
    """
    named, ends = _named(table), []
    groups = named.groupby(["cache", "block_length", named["threshold"].isna()], sort=False)
    for number, ((_, _, steps), part) in enumerate(groups):
        line, look = part.sort_values(x), theme.line_style(number)
        ax.errorbar(line[x], line["accuracy"], theme.sides(line, "accuracy"), capsize=3, **look)
        for row in line.to_dict("records"):
            if not steps:  # they save about as much, so their names need room
                ends.append((row["name"], look["color"], row["accuracy"]))
                continue
            side = "left" if row[x] == table[x].min() else "center"  # away from the axis
            ax.annotate(row["name"], (row[x], row["low"]), (0, -3), textcoords="offset points",
                        ha=side, va="top", color=look["color"], fontsize=9)  # fmt: skip
    theme.log_ticks(ax.xaxis, "{x:g}")
    ax.margins(x=0.14)
    ax.set_xlabel(AXES[x])
    theme.percent(ax.yaxis, "accuracy, % (95 % interval)")
    theme.label_ends(ax, ends)
    best = named[1:].sort_values("accuracy").to_dict("records")[-1]
    how = f"{best['name']}: {best[x]:.1f} {AXES[x]}"
    theme.finding(ax, f"{how}, accuracy {theme.gap(_gain(best))}")


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a short `name` of each setting."""
    names, several = [], table["block_length"].nunique() > 1
    for row in table.to_dict("records"):
        steps = "1 per step" if pd.isna(row["steps"]) else f"{row['steps']:g} steps"
        parts = [steps if pd.isna(row["threshold"]) else f"threshold {row['threshold']:g}"]
        parts += [f"{row['cache']} cache"] * (row["cache"] != "none")
        names.append(", ".join([*parts, *[f"blocks of {row['block_length']}"] * several]))
    return table.assign(name=names)


def _gain(row: Mapping[Hashable, Any]) -> ShareDifference:
    value, low, high = (row[f"points{end}"] / 100 for end in ("", "_low", "_high"))
    return ShareDifference(row["name"], value, low, high, row["pairs"])


def plot_points(ax: Axes, table: pd.DataFrame) -> None:
    """Accuracy minus that of the first setting, paired, a row per setting.

    Args:
        table: what `TradeOff.table` returns, of two settings or more.
    """
    first, *others = _named(table).to_dict("records")
    theme.gaps(ax, [_gain(row) for row in others], f"minus {first['name']}")


def plot_throughput(ax: Axes, rows: pd.DataFrame, y: str = "requests_per_s") -> None:
    """Speed or work against batch size, for each way to make batches; medians and ranges.

    Args:
        rows: those of `Batching`.
        y: `requests_per_s`, or `positions` that were computed.
    """
    found = rows.groupby(["how", "batch_size"])[y].agg(["median", "min", "max"])
    table = found.loc[["continuous", "static"]].reset_index()
    theme.lines(ax, table, ("batch_size", "median"), "how", low="min", high="max")
    theme.doubling(ax, rows["batch_size"])
    name = {"requests_per_s": "requests per second", "positions": "positions computed"}[y]
    ax.set(xlabel="batch size", ylabel=name)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    size = table["batch_size"].max()
    times = found["median"]["static", size] / found["median"]["continuous", size]
    theme.finding(ax, f"Batch size {size}: static {name} are {times:.2f} times the continuous ones")


def plot_latency(ax: Axes, rows: pd.DataFrame) -> None:
    """Seconds that half of the requests take, and up to the 95th per cent, against batch size.

    Args:
        rows: those of `Batching`, of servers.
    """
    served = rows[rows["how"] == "server"]
    keys = ["clients", "max_wait_time", "batch_size"]
    table = served.groupby(keys)[["p50", "p95"]].median().reset_index()
    table["name"] = [f"clients {n:g}, wait {s:g} s" for n, s in table[keys[:2]].to_numpy()]
    theme.lines(ax, table, ("batch_size", "p50"), "name", low="p50", high="p95")
    theme.doubling(ax, served["batch_size"])
    ax.set(xlabel="batch size", ylabel="seconds (median to 95 %)")
    ax.set_ylim(bottom=0)
    fewest, size = table["clients"].min(), table["batch_size"].max()
    part = table[(table["clients"] == fewest) & (table["batch_size"] == size)]
    seconds = " and ".join(f"{row['p50']:.3f} s ({row['name']})" for row in part.to_dict("records"))
    theme.finding(ax, f"Batch size {size}: median {seconds}")


def plot_canvas(ax: Axes, steps: pd.DataFrame) -> None:
    """A canvas after each step: what is committed now is coloured by the model's confidence.

    Args:
        steps: what `tradeoff.denoised` returns.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    shades = LinearSegmentedColormap.from_list("sure", ("#E69F00", "#FFF3D0", "#7FC4E8"))
    last, right = int(steps["step"].max()), 0.0
    for one in steps.sort_values("place").to_dict("records"):
        text = one["text"].replace("\n", "↵").replace(" ", "␣" if one["text"].isspace() else "")
        text = text.removeprefix("<|").removesuffix("|>")
        left, right = right, right + max(len(text), 1) + 0.5
        for step in range(one["step"], last + 1):
            new = step == one["step"]
            look: dict[str, Any] = {"color": shades(one["probability"]) if new else "0.94"}
            ax.add_patch(
                Rectangle((left, step - 0.5), right - left, 1, lw=0, gid=theme.KEEP, **look)
            )
            ax.text(
                (left + right) / 2, step, text, ha="center", va="center", parse_math=False,
                fontsize=theme.TEXT, color="black" if new else "0.35", gid=theme.KEEP,
                family="monospace",
            )  # fmt: skip
    ax.set(xlim=(0, right), ylim=(last + 0.5, 0.5), yticks=range(1, last + 1, max(1, last // 10)))
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.set(xlabel="the answer, token by token", ylabel="forward")
    assert ax.figure is not None
    bar = ax.figure.colorbar(ScalarMappable(cmap=shades), ax=ax, pad=0.01)
    theme.percent(bar.ax.yaxis, "confidence, %")
    bar.ax.tick_params(labelsize=theme.TEXT)
    bar.ax.yaxis.label.set_fontsize(theme.TEXT)
    first = int((steps["step"] == 1).sum())
    theme.finding(ax, f"{len(steps)} tokens in {last} forwards, {first} of them in the first")
