"""Internal Coherence Maximization: find labels that a model can predict well from each other.

Wen et al. 2025, "Unsupervised Elicitation of Language Models" (arXiv 2506.10139), section 2 and
algorithm 1. If paper and published code differ, a setting selects one.
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
    claims: Sequence[Claim] | Testbed, engine: Engine, *, alpha: float = 50.0,
    n_seeds: int | Sequence[bool] = 8, n_iterations: int = 1500, schedule: Schedule = "paper",
    order: Order = "tree", consistency: Rule = "auto", objective: Objective = "log_odds",
    scores: ScoreKind = "exact", seed: int = 0, wording: Wording | None = None,
    after: Labelled = (), everyone: bool = False, checkpoint: str | Path | None = None,
    on_step: Callable[[Step], object] | None = None,
) -> ICMReport:  # fmt: skip
    """Find the labels of `claims` that a model finds most coherent, without any supervision.

    Simulated annealing maximises the energy: `alpha` × mutual predictability − inconsistencies.
    Gold labels are used only for the accuracy in the report. A claim that does not fit into the
    context gets no label.

    Args:
        claims: different claims, with all claims of a group; or a testbed. A testbed from a file
            also sets the wording, and the report has the file's own rows.
        n_seeds: how many claims, from the first on, start with a random label, half of them true;
            or the labels to start with.
        engine: any engine with `label_logprobs`.
        alpha: weight of predictability; lower it if too few moves are accepted.
        n_iterations: maximum; "exact" and "tree" end earlier if no iteration can change a label.
        schedule: temperature 10 / (1 + 0.99 ln n) after n iterations ("paper", appendix A.1), or
            10 / (1 + 2 ln(1 + m)) after m accepted moves ("code"), at least 0.01.
        order: "tree" orders demonstrations so that prompts share prefixes; "exact" gives the
            result of "reference", the published loop, without sending any prompt twice.
        consistency: which claims constrain each other, see `claim.relations`.
        objective: predictability as the mean log-odds of the labels, each after all others
            ("log_odds", as in the code), or their mean log-probability ("log_prob", section 2.2).
        scores: "exact" log-probabilities of whole labels, or the published ones over the "top20"
            first tokens, see `scorer.compute_top_logprobs`.
        wording: the texts for claims and labels.
        after: claims with given labels. They come before all others in each prompt, never change,
            and are not part of the energy or the report. With them, all `claims` start with the
            labels that these predict, consistent with each other, and `n_seeds` is unused.
        everyone: label also the claims that the search has not accepted: at the end they get the
            labels that the accepted ones predict, consistent with them. The notes count them.
        checkpoint: a file from which a killed search resumes.
        on_step: called after each iteration.

    Returns:
        An `ICMReport`: labels and scores of the claims, history, energy, usage.

    Raises:
        InputError: claims or settings are unusable, no claim fits into the context, or the
            checkpoint is of another search or in use.
        EngineError: a claim could not be scored; a missing score is never replaced.
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
            log.warning("icm: stopped; run again, it resumes from what is in the %s", where)
            raise
    given = {"wording": asdict(wording), "everyone": everyone, "after": len(after)}
    return make_report(
        claims, labels, final, engine, asdict(settings) | given,
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
    """The identity of a search in a checkpoint; the number of iterations is not part of it."""
    info = engine.info
    rules = [f"{one.first} {one.second} {one.kind}" for one in related]
    texts, groups = [claim.text for claim in claims], [claim.group for claim in claims]
    chosen = {k: v for k, v in asdict(settings).items() if k != "n_iterations"}
    if settings.scores == "exact":
        del chosen["scores"]  # as in older checkpoints, which had no other kind
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
    """Find labels for any number of claims, in batches, as in the paper (section 3.1).

    A single search would score each claim after all others, again and again. Instead each batch is
    a separate `search`, with the labels of earlier batches first in its prompts. Those never
    change, and the energy of a batch is that of its claims alone. The first batch starts with
    `n_seeds` random labels. In each later one, all claims start with the labels that the earlier
    ones predict: the energy is a mean, so a pool that grew from a few claims would reject all
    less predictable ones. If not all labels fit into the context, see `Scorer`.

    Args:
        batch_size: maximum number of claims per search, see `split`.
        checkpoint: a folder with a journal for each batch. If killed and started again, finished
            batches cost nothing, and the others give the results they would have given.
        settings: of `search`, such as `alpha` and `on_step`, the same for each batch.

    Returns:
        The report over all claims: scores within their batch, the energy of all, a history with
        the column `batch` (from 1); `provenance["batches"]` has the claims of each, by index.

    Raises:
        InputError, EngineError: as `search`; or `batch_size` is not a whole number from 1.
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
    kept["batch_size"] = int(batch_size)
    return make_report(
        claims, tuple(labels), scores, engine, kept, usage=engine.usage.since(before),
        history=_history(parts, reports), cost=reduce(add, (one.cost for one in reports)),
        notes=notes + scorer.notes(), unfit=scorer.unfit,
    )  # fmt: skip


def checked_settings(given: Mapping[str, Any], **own: Any) -> Settings:
    """The settings of a search, from those given and those fixed by the caller.

    Raises:
        InputError: a name is unknown, or a value is out of its range.
    """
    names = {field.name for field in fields(Settings)} - own.keys()
    if unknown := sorted({*given} - names):
        raise InputError(f"{unknown[0]!r} is not a setting of a search; known: {sorted(names)}")
    return Settings(**given, **own)


@contextmanager
def over(count: int, what: str, unit: str) -> Iterator[Callable[[], object]]:
    """A bar over several parts that have their own bars; yields a function that advances it."""
    if count < 2:
        yield lambda: None
        return
    with one_bar(count, what, unit) as bar:
        yield lambda: bar.update(1)


def split(claims: Sequence[Claim], batch_size: int) -> list[list[int]]:
    """The claims, by index, in batches of whole groups: each goes into the first with room.

    A group that is larger than `batch_size` is a batch by itself.

    Raises:
        InputError: `batch_size` is not a whole number from 1.
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
    """All rows with their batch, claims by their index among all, and sums over all so far."""
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
