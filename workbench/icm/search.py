"""Internal Coherence Maximization: the labels that a model finds most predictable together.

Wen et al. 2025, "Unsupervised Elicitation of Language Models" (arXiv 2506.10139), section 2 and
algorithm 1; where paper and published code differ, a setting says which is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from workbench import values
from workbench.errors import InputError, log
from workbench.icm.annealing import Annealing, Schedule, Settings, Step
from workbench.icm.claim import Claim, Labelled, Relation, Rule, Wording, check_claims, relations
from workbench.icm.journal import Journal
from workbench.icm.predictability import ORDERS, Objective, Order
from workbench.icm.report import ICMReport, make_report, said_by
from workbench.icm.scorer import ScoreKind, Scorer, TrueFalse
from workbench.icm.testbeds import Testbed, parts_of
from workbench.progress import one_bar
from workbench.store import digest
from workbench.types import Engine

COUNTED = ("prompts", "prompt_tokens", "computed_tokens")


def search(
    claims: Sequence[Claim] | Testbed,
    engine: Engine,
    *,
    alpha: float = 50.0,
    n_seeds: int | Sequence[bool] = 8,
    n_iterations: int = 1500,
    schedule: Schedule = "paper",
    order: Order = "tree",
    consistency: Rule = "auto",
    objective: Objective = "log_odds",
    scores: ScoreKind = "exact",
    seed: int = 0,
    wording: Wording | None = None,
    after: Labelled = (),
    everyone: bool = False,
    checkpoint: str | Path | None = None,
    on_step: Callable[[Step], object] | None = None,
) -> ICMReport:
    """Find the labels of `claims` that a model finds most coherent, without any supervision.

    The labels sought have the greatest energy, `alpha` × mutual predictability − inconsistencies,
    by simulated annealing. Gold labels are not looked at; they give the report its accuracy. A
    claim that does not fit into the context gets no label.

    Args:
        claims: different claims; those of one group together. Of a testbed that was read from a
            file its wording is taken too, and the report has the file's own rows.
        n_seeds: how many, from the first on, begin with a random label, half of them true; or the
            labels that they begin with.
        engine: any that has `label_logprobs`.
        alpha: weight of predictability; lower it where too few moves are accepted.
        n_iterations: at most; "exact" and "tree" end where no further one can change a label.
        schedule: temperature 10 / (1 + 0.99 ln n) after n iterations ("paper", appendix A.1), or
            10 / (1 + 2 ln(1 + m)) after m accepted moves ("code"), 0.01 at least.
        order: "tree" has demonstrations in an order that shares prefixes; "exact" gives what
            "reference", the published loop, would, without asking anything twice.
        consistency: which claims constrain each other, see `claim.relations`.
        objective: predictability as the mean log-odds of the labels, each after all others
            ("log_odds", as in the code), or their mean log-probability ("log_prob", section 2.2).
        scores: "exact" log-probabilities of whole labels, or the published ones over the "top20"
            first tokens, see `scorer.compute_top_logprobs`.
        wording: how claims and labels are written.
        after: claims whose labels are given. They stand before all others in each prompt, never
            change, and are no part of the energy or the report. With them all `claims` begin with
            the labels that these predict, consistent with each other, and `n_seeds` is unused.
        everyone: whether claims that the search has not accepted take in the end the label that
            those found predict, consistent with them; the notes count them.
        checkpoint: a file that makes a killed search resume where it was.
        on_step: called after each iteration.

    Returns:
        An `ICMReport`: labels and scores of the claims, history, energy, usage.

    Raises:
        InputError: claims or settings are unusable, no claim fits into the context, or the
            checkpoint is of another search or in use.
        EngineError: a claim could not be scored; no score is ever made up.
    """
    settings = Settings(
        alpha=alpha, n_seeds=n_seeds, n_iterations=n_iterations, schedule=schedule, order=order,
        consistency=consistency, objective=objective, scores=scores, seed=seed,
    )  # fmt: skip
    known, wording = parts_of(claims, wording)
    check_claims([*(claim for claim, _ in after), *known], "after and claims")
    related = relations(known, settings.consistency)
    before = engine.usage
    header = _header(known, related, engine, wording, settings=settings, after=after)
    with closing(Journal(checkpoint, header)) as journal:
        try:
            scorer = Scorer(engine, known, wording, journal, after=after, seed=seed, scores=scores)
            annealing = Annealing(
                known, related, settings, order=ORDERS[order](scorer), journal=journal,
                predicted=bool(after), on_step=on_step,
            )  # fmt: skip
            annealing.run()
            labels, final, notes = annealing.result(everyone=everyone)
        except KeyboardInterrupt:
            where = f"checkpoint {checkpoint}" if checkpoint else "response store, if there is one"
            log.warning("icm: stopped; run again, it goes on with what is in the %s", where)
            raise
    return make_report(
        claims, labels, final, engine, asdict(settings) | {"wording": asdict(wording)},
        usage=engine.usage.since(before), history=annealing.history, cost=scorer.cost, notes=notes,
        unfit=scorer.unfit,
    )  # fmt: skip


def _header(
    claims: Sequence[Claim],
    related: Sequence[Relation],
    engine: Engine,
    wording: Wording,
    *,
    settings: Settings,
    after: Labelled,
) -> dict[str, Any]:
    """What a checkpoint rests on; more iterations may be added to a search."""
    info = engine.info
    rules = [f"{one.first} {one.second} {one.kind}" for one in related]
    texts, groups = [claim.text for claim in claims], [claim.group for claim in claims]
    chosen = {k: v for k, v in asdict(settings).items() if k != "n_iterations"}
    if settings.scores == "exact":
        del chosen["scores"]  # as in checkpoints from before there was another kind
    header = {
        "model": info.model,
        "revision": info.revision,
        "dtype": info.dtype,
        **chosen,
        "claims": digest(texts, groups, rules, asdict(wording)).hex()[:16],
    }
    if after:
        header["after"] = digest([(claim.text, bool(label)) for claim, label in after]).hex()[:16]
    return header


def label_all(
    claims: Sequence[Claim] | Testbed,
    engine: Engine,
    *,
    batch_size: int = 128,
    wording: Wording | None = None,
    checkpoint: str | Path | None = None,
    **settings: Any,
) -> ICMReport:
    """Find labels of any number of claims, in batches, as the paper does (section 3.1).

    One search over all claims would ask for each of them after all others, again and again. Each
    batch is a `search` of its own, with all labels found before shown first in its prompts.
    These never change, and the energy of a batch is that of its own claims. The first batch begins
    with `n_seeds` random labels; each later one with all its claims labelled as those before it
    predict: the energy is a mean, so a pool that grew from a few claims would refuse all that are
    less predictable than these. Where not all labels fit into the context, see `Scorer`.

    Args:
        batch_size: claims that are searched together, at most, see `split`.
        checkpoint: a folder with a journal for each batch. Killed and started again, batches that
            ended cost nothing, and the others end as they would have.
        settings: of `search`, such as `alpha` and `on_step`, the same for each batch.

    Returns:
        The report over all claims: scores within their batch, the energy of all, a history with
        the column `batch` (from 1); `provenance["batches"]` has the claims of each, by index.

    Raises:
        InputError, EngineError: as `search`; `batch_size` is no whole number from 1.
    """
    before = engine.usage
    known, wording = parts_of(claims, wording)
    chosen = checked_settings({k: v for k, v in settings.items() if k != "on_step"})
    scorer = Scorer(engine, known, wording, seed=chosen.seed)
    there, reports = scorer.fitting(), list[ICMReport]()
    parts = [[there[i] for i in one] for one in split([known[i] for i in there], batch_size)]
    labelled: list[tuple[Claim, bool]] = []
    with over(len(parts), "icm in batches", "batch") as step:
        for number, part in enumerate(parts, 1):
            path = None if checkpoint is None else Path(checkpoint) / f"batch-{number}.jsonl"
            one = search(
                [known[i] for i in part], engine, wording=wording, after=labelled, everyone=True,
                checkpoint=path, **settings,
            )  # fmt: skip
            labelled += one.labelled()
            reports.append(one)
            step()
    labels: list[bool | None] = [None] * len(known)
    scores: dict[int, TrueFalse] = {}
    for part, one in zip(parts, reports, strict=True):
        scores |= {part[place]: score for place, score in one.scores().items()}
        for index, label in zip(part, one.labels, strict=True):
            labels[index] = label
    notes = said_by("batch", {number: one.notes for number, one in enumerate(reports, 1)})
    kept = {**asdict(chosen), "wording": asdict(wording), "batches": [*map(list, parts)]}
    return make_report(
        claims, tuple(labels), scores, engine, kept, usage=engine.usage.since(before),
        history=_history(parts, reports), cost=reduce(add, (one.cost for one in reports)),
        notes=notes + scorer.notes(), unfit=scorer.unfit,
    )  # fmt: skip


def checked_settings(given: Mapping[str, Any], **own: Any) -> Settings:
    """The settings of a search out of those given, and others that cannot be given.

    Raises:
        InputError: a name is none of theirs, or a value is out of its range.
    """
    names = {field.name for field in fields(Settings)} - own.keys()
    if unknown := sorted({*given} - names):
        raise InputError(f"{unknown[0]!r} is no setting of a search; there are {sorted(names)}")
    return Settings(**given, **own)


@contextmanager
def over(count: int, what: str, unit: str) -> Iterator[Callable[[], object]]:
    """A bar over parts that have bars of their own, if there are several; yields a step of it."""
    if count < 2:
        yield lambda: None
        return
    with one_bar(count, what, unit) as bar:
        yield lambda: bar.update(1)


def split(claims: Sequence[Claim], batch_size: int) -> list[list[int]]:
    """The claims, by index, in batches of whole groups: each goes into the first that has room.

    A group that is larger than `batch_size` is a batch of its own.

    Raises:
        InputError: `batch_size` is no whole number from 1.
    """
    batch_size = values.whole("batch_size", batch_size, 1)
    groups: dict[str, list[int]] = {}
    for index, claim in enumerate(claims):
        groups.setdefault(claim.group, []).append(index)
    parts: list[list[int]] = []
    for group in groups.values():
        room = (part for part in parts if len(part) + len(group) <= batch_size)
        if (part := next(room, None)) is None:
            parts.append(part := [])
        part += group
    return parts


def _history(parts: Sequence[Sequence[int]], reports: Sequence[ICMReport]) -> list[dict[str, Any]]:
    """All rows with their batch, claims by their index among all, and sums over all until then."""
    spent: dict[str, Any] = dict.fromkeys((*COUNTED, "seconds"), 0)
    rows: list[dict[str, Any]] = []
    for number, (part, one) in enumerate(zip(parts, reports, strict=True), 1):
        ends = dict(spent)
        for values_of in one.history.to_dict("records"):
            row = {str(name): value for name, value in values_of.items()}
            claim = -1 if row["claim"] < 0 else part[row["claim"]]
            ends = {name: spent[name] + row[name] for name in spent}
            rows.append({"batch": number, **row, "claim": claim, **ends})
        spent = ends | {name: spent[name] + getattr(one.cost, name) for name in COUNTED}
    return rows
