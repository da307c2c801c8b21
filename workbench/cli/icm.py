"""`workbench icm`: labels without supervision, compared with its alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from workbench import values
from workbench.cli import flags
from workbench.cli.output import check_new, fail, save, say, show_frame, show_metrics
from workbench.errors import InputError, WorkbenchError
from workbench.types import Engine, Metric

if TYPE_CHECKING:
    from workbench.icm.report import ICMReport
    from workbench.icm.testbeds import Testbed

POOL = 1600
"""Maximum number of embedded claims, test claims included, that seeds draw from."""
METHOD_COLUMNS = [
    "method", "value", "low", "high", "n", "n_failed", "auroc", "worst_seed", "best_seed",
    "versus_golden", "label_accuracy", "labels_opposite", "labels_true", "finding_prompts",
    "finding_computed_tokens", "finding_seconds",
]  # fmt: skip


def icm(
    testbed: Annotated[
        str, Option(help="embedded, truthfulqa, gsm8k, or a file of claims.")
    ] = "embedded",
    model: flags.Model = None,
    engine: flags.EngineName = "auto",
    column: Annotated[
        list[str] | None,
        Option(metavar="NAME=COLUMN", help="The file's column for a field: text=statement."),
    ] = None,
    labels: Annotated[
        str | None, Option(help='Words for true and false, such as "Yes,No".')
    ] = None,
    template: Annotated[
        str | None, Option(help='Text around a claim, such as "Claim: {text}\\nTrue?"')
    ] = None,
    alpha: Annotated[float, Option(help="Weight of predictability.")] = 50.0,
    k: Annotated[int, Option("--k", min=0, help="Maximum iterations per batch.")] = 1500,
    num_seed: Annotated[int, Option(min=1, help="Claims with a label at the start.")] = 8,
    batch_size: Annotated[int, Option(min=1, help="Claims per search, in whole groups.")] = 128,
    limit: Annotated[
        int | None,
        Option(
            min=1,
            help="Maximum number of claims to label: the first of a file (default: all), or a "
            "random draw from a testbed (default: one batch).",
        ),
    ] = None,
    test_count: Annotated[int | None, Option(min=0, help="Maximum number of test claims.")] = None,
    seed: Annotated[
        list[int] | None,
        Option(help="For the draw and the search; results of several are compared and averaged."),
    ] = None,
    order: Annotated[str, Option(help="tree, exact or reference.")] = "tree",
    schedule: Annotated[str, Option(help="Of the temperature: paper or code.")] = "paper",
    consistency: Annotated[str, Option(help="auto, none or gold_key_replication.")] = "auto",
    method: Annotated[list[str] | None, Option(help="Only these methods (default: all).")] = None,
    checkpoints: Annotated[
        Path | None, Option(help="A folder for checkpoints; a stopped search resumes from them.")
    ] = None,
    store: flags.StorePath = "default",
    option: flags.Options = None,
    out: flags.Folder = None,
    as_json: flags.Json = False,
) -> None:
    """What does a model already know? Find coherent labels for claims, and measure their accuracy.

    If a file has no test split with gold labels, all its rows are labelled, in batches.
    """
    from workbench.engines import open_engine
    from workbench.icm.claim import wording_from
    from workbench.icm.predictability import ORDERS
    from workbench.icm.study import METHODS

    check_new(out)
    for one in method or ():
        values.known("method", one, METHODS)
    values.known("order", order, ORDERS)
    values.known("schedule", schedule, ("paper", "code"))
    seeds = seed or [0]
    if twice := [one for one in seeds if seeds.count(one) > 1]:
        raise InputError(f"--seed {twice[0]} is given twice; give different ones")
    template = template and flags.typed(template)
    wording = wording_from(labels, None, template) if labels or template else None
    bed, count = _open(
        testbed, limit, batch_size, columns=column, wording=wording, test_count=test_count
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
    with open_engine(model, engine, store=store, **flags.engine_options(option)) as opened:
        if known:
            settings |= {"methods": method} if method else {}
            _study(bed, opened, settings, out, as_json=as_json)
        else:
            _label(bed, opened, settings, out, as_json=as_json)


def _open(
    testbed: str, limit: int | None, batch_size: int, **settings: Any
) -> tuple[Testbed, int | None]:
    """The testbed, and how many of its claims each seed draws (None: all).

    A seed's draw does not depend on other seeds: the pool is always the same.
    """
    from workbench.icm.reading import TESTBEDS, open_testbed
    from workbench.icm.search import split

    count = limit or batch_size
    if testbed == "embedded":
        test = settings["test_count"]
        pool = max(count, POOL - (200 if test is None else test))
        bed = open_testbed(testbed, count=pool, **settings | {"wording": None})
        wording = settings["wording"]  # texts for labels; the end of a claim is the testbed's
        if wording is not None:
            bed = replace(bed, wording=replace(wording, after=bed.wording.after))
        return bed, count
    bed = open_testbed(testbed, **settings)
    if testbed in TESTBEDS:
        if count < len(bed.claims):
            say(f"{count:,} of {len(bed.claims):,} claims are drawn: --limit draws more")
        return bed, count
    rows = {claim.group: bed.places[claim.text] for claim in bed.claims if bed.places[claim.text]}
    # In the file's order; of a comparison's two claims, only one is in `places`.
    claims = sorted(bed.claims, key=lambda c: bed.places[c.text] or rows[c.group])
    chosen = split(claims, limit or len(claims))[0]
    if len(chosen) > (limit or len(claims)):
        raise InputError(f"--limit {limit}: the first group has {len(chosen)} claims already")
    if len(chosen) < len(claims):
        say(f"--limit {limit}: {len(chosen):,} of {len(claims):,} claims are labelled")
    return replace(bed, claims=tuple(claims[index] for index in chosen)), None


def _study(
    bed: Testbed, engine: Engine, settings: dict[str, Any], out: Path | None, *, as_json: bool
) -> None:
    from workbench.icm.study import study
    from workbench.icm.testbeds import check_columns
    from workbench.plots import new_figure
    from workbench.plots.icm import plot_methods

    if bed.table is not None:
        check_columns(bed)
    if (count := settings["count"]) is not None and count <= settings["batch_size"]:
        settings |= {"batch_size": None}
    done = study(bed, engine, **settings)
    figure, (ax,) = new_figure()
    plot_methods(ax, done.methods)
    show_frame(done.methods, METHOD_COLUMNS, as_json=as_json)
    for note in done.notes:
        say(note)
    if out is not None:
        done.save(out, figure)
        say(f"methods, rows, searches and figure are in {out}")
    if bed.table is not None:
        _check_complete(done.searches)


def _check_complete(reports: Sequence[ICMReport]) -> None:
    """Exit with an error if a row of the user's has no label."""
    missing = sorted({str(why) for report in reports for why in report.rows["error"].dropna()})
    if missing:
        count = sum(report.labels.count(None) for report in reports)
        fail(f"{count} claims have no label: {'; '.join(missing)}", 1)


def _label(
    bed: Testbed, engine: Engine, settings: dict[str, Any], out: Path | None, *, as_json: bool
) -> None:
    """Label all claims with each seed; save each seed's labels as soon as they are complete."""
    from workbench.icm.compare import agreement
    from workbench.icm.search import label_all, over
    from workbench.icm.testbeds import check_columns

    check_columns(bed)
    seeds, count, checkpoints = (settings.pop(name) for name in ("seeds", "count", "checkpoints"))
    reports: dict[int, ICMReport] = {}
    metrics: list[Metric] = []
    with over(len(seeds), "seeds", "seed") as step:
        for seed in seeds:
            reports[seed] = label_all(
                bed.draw(count, seed), engine, seed=seed, wording=bed.wording,
                checkpoint=checkpoints and checkpoints / f"{bed.name}-seed-{seed}", **settings,
            )  # fmt: skip
            prefix = f"seed {seed}: " if len(seeds) > 1 else ""
            folder = out and (out / f"seed-{seed}" if prefix else out)
            metrics += [
                replace(one, name=prefix + one.name)
                for one in _headlines(reports[seed], engine, folder, prefix)
            ]
            step()
    if len(seeds) > 1:
        metrics += agreement({seed: report.labelled() for seed, report in reports.items()})
    show_metrics(metrics, as_json=as_json)
    say("no test claims with gold labels: the accuracy of the labels was not measured")
    _check_complete([*reports.values()])


def _headlines(report: ICMReport, engine: Engine, out: Path | None, prefix: str) -> list[Metric]:
    """The headline numbers of one seed's labels, saved if a folder is given."""
    from workbench.icm.compare import discrimination
    from workbench.icm.report import salience, stands_out
    from workbench.plots import new_figure
    from workbench.plots.icm import plot_convergence, plot_salience

    figure, axes = new_figure(2)
    plot_convergence(axes[0], {"labels found": report})
    for note in report.notes:
        say(prefix + note)
    stop: BaseException | None = None
    if len(report.labelled()) > 1:
        try:
            energies = salience(report, engine, seed=report.provenance["seed"])
            plot_salience(axes[1], energies)
            say(prefix + stands_out(energies)[1])
            for row in energies.to_dict("records"):
                say(f"  {row['labels']:>9}: energy {row['energy']:.1f}")
        except (WorkbenchError, KeyboardInterrupt) as error:  # the labels are complete
            stop = error
            say(f"{prefix}whether the labels stand out is unknown: {error or 'interrupted'}")
    if out is not None:
        save(report, out, figure)
        say(f"{prefix}summary, rows, labels and figure are in {out}")
    if isinstance(stop, KeyboardInterrupt):
        raise stop
    gold = report.rows["gold"].notna()
    metrics = list(report.summary)
    if gold.any():
        odds = report.rows["log_odds"][gold]
        metrics.insert(1, discrimination("AUROC of the log-odds", odds, report.rows["gold"][gold]))
    return metrics
