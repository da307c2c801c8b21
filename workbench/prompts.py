"""Compares wordings of the same questions: one table, one figure, one sentence."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from workbench import reprs
from workbench.comparison import comparison
from workbench.engines.estimate import Estimate
from workbench.errors import InputError
from workbench.evaluation import evaluate_each
from workbench.lazy import Figure, pd
from workbench.progress import interruptible
from workbench.types import Engine
from workbench.verdicts import Evaluation


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
        """What was found, and whether it is distinguishable from chance."""
        from workbench.plots import stated

        table, reports = self.table, self.reports
        reasons = {name: [*one.rows["error"].dropna()] for name, one in reports.items()}
        if not (unpaired := [*table["name"][1:][table["difference"][1:].isna()]]):
            return stated(table)
        lost = max(reasons, key=lambda name: len(reasons[name]))
        why = f'{len(reasons[lost])} of "{lost}" failed: {reasons[lost][0]}'
        return f'"{unpaired[0]}" shares no answered item with "{table["name"][0]}"; {why}'

    def figure(self) -> Figure:
        """Accuracies and paired differences with their intervals; the finding as title."""
        from workbench.plots import draw_comparison

        return draw_comparison(self.table, self.finding)

    def shown(self) -> pd.DataFrame:
        """The table formatted for people."""
        rows = []
        for row in self.table.to_dict("records"):
            shown = {"prompt": row["name"], "accuracy, %": _interval(row, "accuracy", "")}
            shown |= {"n": row["n"], "failed": row["n_failed"], "unparsed": row["n_unparsed"]}
            apart = row["difference"] == row["difference"]  # no NaN, as of the first
            shown["difference, points"] = _interval(row, "difference", "difference_") * apart
            shown |= {p: f"{row[p]:.3g}" * apart for p in ("p", "p_holm")}
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


def _interval(row: Mapping[Any, Any], name: str, prefix: str) -> str:
    value, low, high = (100 * row[one] for one in (name, f"{prefix}low", f"{prefix}high"))
    sign = "+" if prefix else ""
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


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
