"""Compares wordings of the same questions: one table, one figure, one sentence."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from workbench import reprs
from workbench.comparison import compare, comparison
from workbench.engines.estimate import Estimate
from workbench.errors import InputError
from workbench.evaluation import evaluate_each
from workbench.lazy import Figure, pd
from workbench.progress import interruptible
from workbench.types import Engine
from workbench.verdicts import Evaluation

LEVEL = 0.05
"""The level for p-values (Holm's, over all wordings) of differences that are not chance."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PromptComparison:
    """Prompts compared, each with the first one, on the items that both answered.

    Attributes:
        reports: a report per prompt, by name.
        table: the result of `comparison.comparison`, with its columns.
    """

    reports: Mapping[str, Evaluation]
    table: pd.DataFrame

    @property
    def finding(self) -> str:
        """The finding in one sentence, and whether it is distinguishable from chance."""
        rows = self.table.to_dict("records")
        first, reports = rows[0]["name"], [*self.reports.values()]
        task = reports[0].provenance["task"]
        apart = [row for row in rows[1:] if row.get("p_holm", math.nan) < LEVEL]
        if apart:
            most = max(apart, key=lambda row: abs(row["difference"]))
            gap = _interval(most, "difference", "difference_", " points")
            text = f'{task}: "{most["name"]}" differs from "{first}" by {gap}, '
            also = f"; so do {len(apart) - 1} more" * (len(apart) > 1)
            return f"{text}distinguishable from chance{also}"
        unpaired = [row for row in rows[1:] if row["difference"] != row["difference"]]
        if unpaired:
            reasons = {n: [*one.rows["error"].dropna()] for n, one in self.reports.items()}
            lost = max(reasons, key=lambda name: len(reasons[name]))
            why = f'{len(reasons[lost])} of "{lost}" failed: {reasons[lost][0]}'
            return f'{task}: "{unpaired[0]["name"]}" shares no answered item with "{first}"; {why}'
        answered = min(compare(one, reports[0]).n for one in reports[1:])
        if len(rows) > 2:
            return f'{task}: none is distinguishable from "{first}" with {answered} items'
        name = rows[1]["name"]
        gap = _interval(rows[1], "difference", "difference_", " points")
        return (
            f'{task}: "{name}" is not distinguishable from "{first}" with {answered} items: {gap}'
        )

    def figure(self) -> Figure:
        """Accuracies and paired differences with their intervals; the finding as title."""
        from workbench.plots import draw_comparison

        return draw_comparison(self.table, self.finding)

    def shown(self) -> pd.DataFrame:
        """The table formatted for people."""
        rows = []
        for number, row in enumerate(self.table.to_dict("records")):
            shown = {"prompt": row["name"], "accuracy, %": _interval(row, "accuracy", "")}
            shown |= {"n": row["n"], "failed": row["n_failed"], "unparsed": row["n_unparsed"]}
            apart = number and row["difference"] == row["difference"]
            gap = _interval(row, "difference", "difference_") if apart else ""
            shown["difference, points"] = gap
            shown |= {p: f"{row[p]:.3g}" if apart else "" for p in ("p", "p_holm")}
            rows.append(shown)
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"{self.finding}\n{self.shown().to_string(index=False)}"

    def _repr_html_(self) -> str:
        import base64
        import io

        picture = io.BytesIO()
        self.figure().savefig(picture, format="png", dpi=110)
        data = base64.b64encode(picture.getvalue()).decode()
        shown = self.shown()
        table = reprs.table([*shown], shown.itertuples(index=False))
        name = html.escape(self.finding)
        image = f'<img src="data:image/png;base64,{data}" alt="{name}" style="max-width: 100%">'
        return f'<div style="font-size:13px"><div>{name}</div>{table}{image}</div>'


def _interval(row: Mapping[Any, Any], name: str, prefix: str, unit: str = "") -> str:
    value, low, high = (100 * row[one] for one in (name, f"{prefix}low", f"{prefix}high"))
    sign = "+" if prefix else ""
    return f"{value:{sign}.1f}{unit} ({low:{sign}.1f} to {high:{sign}.1f})"


@overload
def compare_prompts(
    task: object, engine: Engine, prompts: Mapping[str, str | None],
    *, folder: str | Path | None = ..., dry_run: Literal[True], **settings: Any,
) -> Estimate: ...  # fmt: skip
@overload
def compare_prompts(
    task: object, engine: Engine, prompts: Mapping[str, str | None],
    *, folder: str | Path | None = ..., dry_run: Literal[False] = ..., **settings: Any,
) -> PromptComparison: ...  # fmt: skip
@interruptible("compare_prompts")
def compare_prompts(
    task: object,
    engine: Engine,
    prompts: Mapping[str, str | None],
    *,
    folder: str | Path | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> PromptComparison | Estimate:
    """Evaluate several wordings of the questions on the same items, and compare them.

    Args:
        task: as for `evaluate`.
        prompts: templates by name, as for `prompt` of `evaluate`; None is the task's wording. The
            others are compared with the first.
        folder: saves each report, and resumes from there, as for `run_suite`.
        dry_run: generate nothing and return an `Estimate` for all prompts together.
        settings: further arguments of `evaluate`, shared by all; `max_cost` is the limit for all
            of them together.

    Returns:
        Reports, table, finding and `figure()`. An item that failed with one of two prompts is left
        out of their difference (see `comparison.compare`).

    Raises:
        InputError: fewer than two prompts, or one that is not a template of the task's fields; and
            as `evaluate`.
    """
    if not isinstance(prompts, Mapping) or len(prompts) < 2:
        raise InputError(
            f"prompts={prompts!r:.60}: pass at least two by name, such as "
            '{"short": "{question}", "cot": "{question}\\nThink step by step."}'
        )
    if "prompt" in settings:
        raise InputError("prompt=…: use `prompts` instead; leave it out")
    plan = {str(name): {"prompt": text} for name, text in prompts.items()}
    if len(plan) < len(prompts):
        raise InputError(f"prompts={prompts!r:.80}: two names are the same as text; choose others")
    made = evaluate_each(task, engine, plan, folder=folder, dry_run=dry_run, **settings)
    return made if isinstance(made, Estimate) else PromptComparison(made, comparison(made))
