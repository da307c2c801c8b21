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
from workbench.store import digest
from workbench.types import Engine

__all__ = ["search"]

log = logging.getLogger("workbench")


def search(
    claims: Sequence[Claim],
    engine: Engine,
    *,
    alpha: float = 50.0,
    n_seeds: int | Sequence[bool] = 8,
    n_iterations: int = 1500,
    schedule: Schedule = "paper",
    order: Order = "tree",
    consistency: Rule = "auto",
    objective: Objective = "log_odds",
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
        claims: different claims; those of one group together.
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
        wording: how claims and labels are written.
        after: claims whose labels are given. They stand before all others in each prompt, never
            change, and are no part of the energy or the report. With them all `claims` begin with
            the labels that these predict, consistent with each other, and `n_seeds` is unused.
        everyone: whether claims that the search has not accepted take in the end the label that
            those found predict, consistent with them; the notes count them.
        checkpoint: a file that makes a killed search go on where it was.
        on_step: called after each iteration.

    Returns:
        An `ICMReport`: labels and scores of the claims, history, energy, usage.

    Raises:
        InputError: claims or settings are unusable, or the checkpoint is of another search.
        EngineError: a claim could not be scored; no score is ever made up.
    """
    settings = Settings(
        alpha=alpha, n_seeds=n_seeds, n_iterations=n_iterations, schedule=schedule, order=order,
        consistency=consistency, objective=objective, seed=seed,
    )  # fmt: skip
    known, wording = check_claims(claims), wording or Wording()
    check_claims([*(claim for claim, _ in after), *known], "after and claims")
    related = pairs(known, settings.consistency)
    before = engine.usage
    journal = Journal(
        checkpoint, _header(known, related, engine, wording, settings) | _before(after)
    )
    try:
        oracle = _After(engine, known, wording, journal, after)
        annealing = Annealing(
            known,
            related,
            replace(settings, n_seeds=_mended(oracle.predicted(), related)) if after else settings,
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
    return make_report(
        known, result, engine, usage, {**asdict(settings), "wording": asdict(wording)}
    )


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
        after: Labelled,
    ) -> None:
        super().__init__(engine, [*(claim for claim, _ in after), *claims], wording, journal)
        self._given: Labels = tuple(label for _, label in after)
        self._count = len(claims)

    def prompt(self, labels: Labels, shown: Sequence[int], target: int | str) -> str:
        """The given claims, `shown` and then the target, by the indices of the other claims."""
        first = len(self._given)
        moved = target if isinstance(target, str) else first + target
        everything = [*range(first), *(first + index for index in shown)]
        return super().prompt(self._given + labels, everything, moved)

    def predicted(self) -> dict[int, float]:
        """The log-odds of each claim after the given ones alone."""
        prompts = [self.prompt((None,) * self._count, (), i) for i in range(self._count)]
        return {i: true - false for i, (true, false) in enumerate(self.score(prompts))}
