"""`workbench icm`: labels without supervision, beside everything else that one could do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import (
    EngineName,
    Folder,
    Json,
    Model,
    Options,
    StorePath,
    engine_options,
)
from workbench.cli.output import check_new, save, say, show, show_metrics, table
from workbench.errors import InputError, WorkbenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workbench.icm.report import ICMReport
    from workbench.icm.study import ICMStudy
    from workbench.icm.testbeds import Testbed
    from workbench.types import Engine, Metric

POOL = 1600
"""Embedded claims, test included, that seeds draw from; there are not many more."""


def icm(  # noqa: PLR0917
    testbed: Annotated[
        str, typer.Option(help="embedded, truthfulqa, gsm8k, or a file of claims.")
    ] = "embedded",
    model: Model = None,
    engine: EngineName = "auto",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="Where a file has it, such as text=statement."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help='Words for true and false, such as "Yes,No".')
    ] = None,
    template: Annotated[
        str | None, typer.Option(help='Words around a claim, such as "Claim: {text}\\nTrue?"')
    ] = None,
    alpha: Annotated[float, typer.Option(help="Weight of predictability.")] = 50.0,
    k: Annotated[int, typer.Option("--k", min=0, help="Iterations a batch, at most.")] = 1500,
    num_seed: Annotated[int, typer.Option(min=1, help="Claims that begin with a label.")] = 8,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Claims searched together, in whole groups.")
    ] = 128,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Claims to be labelled, at most: a file's first ones (default: all), or so many "
            "drawn from a testbed (default: one batch).",
        ),
    ] = None,
    test_count: Annotated[int | None, typer.Option(min=0, help="Test claims, at most.")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Decides draw and search; several are compared and averaged."),
    ] = None,
    order: Annotated[str, typer.Option(help="tree, exact or reference.")] = "tree",
    schedule: Annotated[str, typer.Option(help="Of the temperature: paper or code.")] = "paper",
    consistency: Annotated[str, typer.Option(help="auto, none or gold_key_replication.")] = "auto",
    method: Annotated[
        list[str] | None, typer.Option(help="Only these methods (default: all).")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="A folder: a search that was stopped resumes from there.")
    ] = None,
    store: StorePath = "default",
    option: Options = None,
    out: Folder = None,
    as_json: Json = False,
) -> None:
    """What does a model already know? Labels that it finds coherent, and what they are worth.

    Without gold labels in a test split all rows of a file are labelled, batch after batch, and
    come back as they are with their labels.
    """
    from workbench.engines import open_engine
    from workbench.icm.claim import wording_from

    check_new(out)
    seeds = seed or [0]
    if twice := [one for one in seeds if seeds.count(one) > 1]:
        raise InputError(f"--seed {twice[0]} is given twice; give different ones")
    put = wording_from(labels, None, template) if labels or template else None
    bed, count = _opened(
        testbed, limit, batch_size, columns=column, wording=put, test_count=test_count
    )
    settings: dict[str, Any] = {
        "alpha": alpha, "n_iterations": k, "n_seeds": num_seed, "order": order,
        "schedule": schedule, "consistency": consistency, "checkpoints": checkpoints,
        "batch_size": batch_size, "count": count, "seeds": seeds,
    }  # fmt: skip
    lacking = [claim for claim in bed.test if claim.gold is None]
    known = bool(bed.test) and not lacking
    if lacking:
        say(
            f"{len(lacking)} of {len(bed.test)} test claims have no gold label, such as "
            f"{lacking[0].id or lacking[0].text!r:.60}: labels are found, but not judged"
        )
    if test_count and not bed.test:
        say(f"--test-count {test_count}: {bed.name} has no rows with split=test")
    if not known and (wrong := [name for name in method or () if name != "ICM"]):
        raise InputError(
            f"--method {wrong[0]!r} cannot be judged, as {bed.name} has no test claims with gold "
            "labels: hold some out (split=test, with gold), or leave it out"
        )
    kept = None if store == "none" else store
    with open_engine(model, engine, store=kept, **engine_options(option)) as opened:
        if known:
            settings |= {"methods": method} if method else {}
            _study(bed, opened, settings, out, as_json=as_json)
        else:
            _label(bed, opened, settings, out, as_json=as_json)


def _opened(
    testbed: str, limit: int | None, batch_size: int, **options: Any
) -> tuple[Testbed, int | None]:
    """The testbed, and how many of its claims each seed draws (None: all).

    What a seed draws depends on no other seed: it is drawn from a pool that is always the same.
    """
    from workbench.icm.search import split
    from workbench.icm.testbeds import TESTBEDS, open_testbed

    count = limit or batch_size
    if testbed == "embedded":
        test = options["test_count"]
        pool = max(count, POOL - (200 if test is None else test))
        bed = open_testbed(testbed, count=pool, **options | {"wording": None})
        put = options["wording"]  # words for labels; what ends a claim stays the testbed's
        return replace(bed, wording=replace(put, after=bed.wording.after)) if put else bed, count
    bed = open_testbed(testbed, **options)
    if testbed in TESTBEDS:
        if count < len(bed.claims):
            say(f"{count:,} of {len(bed.claims):,} claims are drawn: --limit draws more")
        return bed, count
    rows = {claim.group: bed.places[claim.text] for claim in bed.claims if bed.places[claim.text]}
    # In the file's order; of a comparison only one of the two claims has a row.
    claims = sorted(bed.claims, key=lambda c: bed.places[c.text] or rows[c.group])
    chosen = split(claims, limit or len(claims))[0]
    if len(chosen) > (limit or len(claims)):
        raise InputError(f"--limit {limit}: the first group has {len(chosen)} claims already")
    if len(chosen) < len(claims):
        say(f"--limit {limit}: {len(chosen):,} of {len(claims):,} claims are labelled")
    return replace(bed, claims=tuple(claims[index] for index in chosen)), None


def _study(
    bed: Testbed, engine: Engine, options: dict[str, Any], out: Path | None, *, as_json: bool
) -> None:
    from workbench.icm.study import study
    from workbench.icm.table import check_columns
    from workbench.plots import new_figure
    from workbench.plots.icm import plot_methods

    if bed.table is not None:
        check_columns(bed)
    if (count := options["count"]) is not None and count <= options["batch_size"]:
        options |= {"batch_size": None}
    done = study(bed, engine, **options)
    figure, (ax,) = new_figure()
    figure.set_size_inches(6.4, 3.4)
    plot_methods(ax, done.methods)
    ax.set_title(f"{bed.name}, {engine.info.model}", fontsize=10)
    show(done.methods, _table(done), as_json=as_json)
    for note in done.notes:
        say(note)
    if out is not None:
        done.save(out, figure)
        say(f"methods, rows, searches and figure are in {out}")
    if bed.table is not None:
        _check_complete(done.searches)


def _check_complete(found: Sequence[ICMReport]) -> None:
    """End with a code where a row of the user's has no label."""
    missing = sorted({str(why) for one in found for why in one.rows["error"].dropna()})
    if missing:
        left = sum(one.labels.count(None) for one in found)
        say(f"{left} claims have no label: {'; '.join(missing)}")
        raise typer.Exit(1)


def _table(done: ICMStudy) -> str:
    rows = [
        [
            row["method"], f"{row['value']:.3f}", f"{row['low']:.3f}–{row['high']:.3f}", row["n"],
            row["n_failed"], _or_dash(row["auroc"], ".3f"),
            f"{row['worst_seed']:.3f}–{row['best_seed']:.3f}",
            _or_dash(row["versus_golden"], "+.3f"),
            _or_dash(row["label_accuracy"], ".3f"), _or_dash(row["labels_opposite"], ".3f"),
            _or_dash(row["labels_true"], ".3f"), f"{row['finding_prompts']:,.0f}",
            f"{row['finding_computed_tokens']:,.0f}", f"{row['finding_seconds']:.1f}",
        ]
        for row in done.methods.to_dict("records")
    ]  # fmt: skip
    heads = [
        "", "test accuracy", "95 %", "n", "failed", "AUROC", "seeds", "− golden", "label accuracy",
        "opposite", "labels True", "prompts", "tokens computed", "s",
    ]  # fmt: skip
    return table(heads, rows)


def _or_dash(value: float, form: str) -> str:
    return "–" if value != value else format(value, form)  # noqa: PLR0124  # NaN


def _label(
    bed: Testbed, engine: Engine, options: dict[str, Any], out: Path | None, *, as_json: bool
) -> None:
    """Label all claims at each seed; keep each seed's labels as soon as they are there."""
    from workbench.icm.compare import agreement
    from workbench.icm.search import label_all, over
    from workbench.icm.table import check_columns

    check_columns(bed)
    seeds, count, kept = (options.pop(name) for name in ("seeds", "count", "checkpoints"))
    found: dict[int, ICMReport] = {}
    metrics: list[Metric] = []
    with over(len(seeds), "seeds", "seed") as step:
        for seed in seeds:
            found[seed] = label_all(
                bed.draw(count, seed), engine, seed=seed, wording=bed.wording,
                checkpoint=kept and kept / f"{bed.name}-seed-{seed}", **options,
            )  # fmt: skip
            who = f"seed {seed}: " if len(seeds) > 1 else ""
            folder = out and (out / f"seed-{seed}" if who else out)
            metrics += [
                replace(one, name=who + one.name)
                for one in _shown(found[seed], engine, folder, who)
            ]
            step()
    if len(seeds) > 1:
        metrics += agreement({seed: report.labelled() for seed, report in found.items()})
    show_metrics(metrics, as_json=as_json)
    say("no test claims with gold labels: the labels were found, not what they are worth")
    _check_complete([*found.values()])


def _shown(report: ICMReport, engine: Engine, out: Path | None, who: str) -> list[Metric]:
    """The headline numbers of one seed's labels, which are kept where asked."""
    from workbench.icm.compare import discrimination
    from workbench.icm.salience import salience, stands_out
    from workbench.plots import new_figure
    from workbench.plots.icm import plot_convergence, plot_salience

    figure, axes = new_figure(2)
    plot_convergence(axes[0], {"labels found": report.history})
    for note in report.notes:
        say(who + note)
    stop: BaseException | None = None
    if len(report.labelled()) > 1:
        try:
            energies = salience(report, engine, seed=report.provenance["seed"])
            plot_salience(axes[1], energies)
            say(who + stands_out(energies)[1])
            for row in energies.to_dict("records"):
                say(f"  {row['labels']:>9}: energy {row['energy']:.1f}")
        except (WorkbenchError, KeyboardInterrupt) as error:  # the labels are there
            stop = error
            say(f"{who}whether the labels stand out is not known: {error or 'interrupted'}")
    if out is not None:
        save(report, out, figure)
        say(f"{who}summary, rows, labels and figure are in {out}")
    if isinstance(stop, KeyboardInterrupt):
        raise stop
    gold = report.rows["gold"].notna()
    metrics = list(report.summary)
    if gold.any():
        odds = report.rows["log_odds"][gold]
        metrics.insert(1, discrimination("AUROC of the log-odds", odds, report.rows["gold"][gold]))
    return metrics
