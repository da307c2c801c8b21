"""Internal Coherence Maximization: the labels that a model finds most predictable together.

Wen et al. 2025, "Unsupervised Elicitation of Language Models" (arXiv 2506.10139), section 2 and
algorithm 1; where paper and published code differ, a setting says which is followed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from workbench.icm.annealing import Annealing
from workbench.icm.bootstrap import _mended
from workbench.icm.claim import Claim, Labelled, Labels, Wording, check_claims
from workbench.icm.consistency import Pair, Rule, pairs
from workbench.icm.journal import Journal
from workbench.icm.objective import Objective, Schedule
from workbench.icm.oracle import Oracle
from workbench.icm.orders import ORDERS, Order
from workbench.icm.report import ICMReport, make_report
from workbench.icm.settings import Settings, Step
from workbench.icm.table import with_table
from workbench.icm.testbeds import Testbed, parts_of
from workbench.icm.top import ScoreKind
from workbench.store import digest
from workbench.types import Engine

log = logging.getLogger("workbench")


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
    by simulated annealing. Gold labels are not looked at; they give the report its accuracy.

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
        consistency: which claims constrain each other, see `consistency.pairs`.
        objective: predictability as the mean log-odds of the labels, each after all others
            ("log_odds", as in the code), or their mean log-probability ("log_prob", section 2.2).
        scores: "exact" log-probabilities of whole labels, or the published ones over the "top20"
            first tokens, see `top.compute_top_logprobs`.
        wording: how claims and labels are written.
        after: claims whose labels are given. They stand before all others in each prompt, never
            change, and are no part of the energy or the report. With them all `claims` begin with
            the labels that these predict, consistent with each other, and `n_seeds` is unused.
        everyone: whether claims that the search has not accepted take in the end the label that
            those found predict, consistent with them; the notes count them.
        checkpoint: a file that makes a killed search go on where it was.
        on_step: called after each iteration.

    A claim that does not fit into the context gets no label, and the search is that of the others.

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
    bed = claims if isinstance(claims, Testbed) else None
    known, wording = parts_of(claims, wording)
    check_claims([*(claim for claim, _ in after), *known], "after and claims")
    related = pairs(known, settings.consistency)
    before = engine.usage
    journal = Journal(
        checkpoint, _header(known, related, engine, wording, settings) | _before(after)
    )
    try:
        oracle = _After(engine, known, wording, journal, settings=settings, after=after)
        annealing = Annealing(
            known,
            related,
            replace(settings, n_seeds=oracle.predicted(related)) if after else settings,
            order=ORDERS[order](oracle),
            journal=journal,
            on_step=on_step,
            everyone=everyone,
        )
        result = annealing.run()
    except KeyboardInterrupt:
        where = f"checkpoint {checkpoint}" if checkpoint else "response store, if there is one"
        log.warning("icm: stopped; run again, it goes on with what is in the %s", where)
        raise
    finally:
        journal.close()
    usage = engine.usage.since(before)
    kept = {**asdict(settings), "wording": asdict(wording)}
    return with_table(bed, make_report(known, result, engine, usage, kept))


def _header(
    claims: Sequence[Claim],
    related: Sequence[Pair],
    engine: Engine,
    wording: Wording,
    settings: Settings,
) -> dict[str, Any]:
    """What a checkpoint rests on; more iterations may be added to a search."""
    info = engine.info
    texts = [claim.text for claim in claims]
    rules = [f"{pair.first} {pair.second} {pair.kind}" for pair in related]
    groups = [claim.group for claim in claims]
    chosen = {k: v for k, v in asdict(settings).items() if k != "n_iterations"}
    if settings.scores == "exact":
        del chosen["scores"]  # as in checkpoints from before there was another kind
    return {
        "model": info.model,
        "revision": info.revision,
        "dtype": info.dtype,
        **chosen,
        "claims": digest(texts, groups, rules, asdict(wording)).hex()[:16],
    }


def _before(after: Labelled) -> dict[str, str]:
    given = [(claim.text, bool(label)) for claim, label in after]
    return {"after": digest(given).hex()[:16]} if given else {}


class _After(Oracle):
    """Asks after labelled claims, which stand first in each prompt and never change."""

    def __init__(
        self,
        engine: Engine,
        claims: Sequence[Claim],
        wording: Wording,
        journal: Journal,
        *,
        settings: Settings,
        after: Labelled,
    ) -> None:
        everything = [*claims, *(claim for claim, _ in after)]  # so that indices stay
        seed, scores = settings.seed, settings.scores
        super().__init__(engine, everything, wording, journal, seed=seed, scores=scores)
        self._count, self._given = len(claims), tuple(bool(label) for _, label in after)

    def fitting(self) -> list[int]:
        return [index for index in super().fitting() if index < self._count]

    def prompt(self, labels: Labels, shown: Sequence[int], target: int | str) -> str:
        first = range(self._count, self._count + len(self._given))
        return super().prompt(labels + self._given, [*first, *shown], target)

    def predicted(self, related: Sequence[Pair]) -> tuple[bool, ...]:
        """The likeliest consistent labels after the given ones alone."""
        there = [index for index in range(self._count) if index not in self.unfit]
        prompts = [self.prompt((None,) * self._count, (), index) for index in there]
        found = {i: t - f for i, (t, f) in zip(there, self.score(prompts), strict=True)}
        return _mended({i: found.get(i, 0.0) for i in range(self._count)}, related)
