"""Simulated annealing over labels: algorithm 1 of Wen et al. 2025, as published."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from workbench import values
from workbench.errors import InputError, log
from workbench.icm.claim import Claim, Labels, Relation, Rule, consistent_labels, violated
from workbench.icm.journal import Journal
from workbench.icm.predictability import (
    Objective,
    Order,
    Reference,
    Scores,
    Tree,
    collapsed,
    energy,
)
from workbench.icm.scorer import ScoreKind
from workbench.progress import fact, one_bar

Schedule = Literal["paper", "code"]

HOT, COLD = 10.0, 0.01
NEAR = 100  # weight of a claim without a label whose group has a labelled one; others have 1
ROUNDS = 10  # maximum number of rounds of repairs
SURE = 1e6  # log-odds of a label that must not change


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a search; see `search`.

    Raises:
        InputError: a value is out of its range.
    """

    alpha: float = 50.0
    n_seeds: int | Sequence[bool] = 8
    n_iterations: int = 1500
    schedule: Schedule = "paper"
    order: Order = "tree"
    consistency: Rule = "auto"
    objective: Objective = "log_odds"
    scores: ScoreKind = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least = {"n_iterations": 0, "seed": 0}
        labels = self.n_seeds
        if isinstance(labels, Sequence) and not isinstance(labels, str):
            if not labels or not all(isinstance(label, bool) for label in labels):
                values.refuse("n_seeds", labels, "a whole number or labels, True and False")
            object.__setattr__(self, "n_seeds", tuple(labels))
        else:
            at_least["n_seeds"] = 1
        for name, least in at_least.items():
            object.__setattr__(self, name, values.whole(name, getattr(self, name), least))
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
            values.refuse("alpha", self.alpha, "a number above 0")
        kinds = {"order": Order, "objective": Objective, "scores": ScoreKind}
        for name, kind in ({"schedule": Schedule} | kinds).items():
            if getattr(self, name) not in get_args(kind):
                values.refuse(name, getattr(self, name), f"one of {', '.join(get_args(kind))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The state of a search after an iteration.

    Attributes:
        pool: labelled claims.
        tried, accepted: proposals that would change a label, and how many did.
        prompt_tokens, computed_tokens: tokens of all prompts, and those that the model computed.
        saved_tokens: further tokens that the same prompts, all sent without a cache, would cost.
    """

    iteration: int
    pool: int
    energy: float
    temperature: float
    tried: int
    accepted: int
    prompt_tokens: int
    computed_tokens: int
    saved_tokens: int

    @property
    def cache_hit_rate(self) -> float:
        """Share of the prompts' tokens that the model did not have to compute."""
        return 1 - self.computed_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def temperature(schedule: Schedule, iteration: int, accepted: int) -> float:
    """The temperature at an iteration (from 1) after a number of accepted moves."""
    slow = 0.99 * math.log(iteration) if schedule == "paper" else 2 * math.log(1 + accepted)
    return max(COLD, HOT / (1 + slow))


class Annealing:
    """Random numbers depend only on (seed, purpose, iteration), so no random state is stored."""

    def __init__(
        self,
        claims: Sequence[Claim],
        related: Sequence[Relation],
        settings: Settings,
        *,
        order: Reference,
        journal: Journal,
        predicted: bool,
        on_step: Callable[[Step], object] | None,
    ) -> None:
        self._claims, self._related, self._settings = claims, related, settings
        self._order, self._journal, self._on_step = order, journal, on_step
        self._fitting = order.scorer.fitting()
        self._predicted = predicted
        self.history: list[dict[str, Any]] = []
        self._tried = self._accepted = 0
        self._start = time.perf_counter()

    def run(self) -> None:
        """Run from the first labels to the last iteration."""
        settings = self._settings
        with one_bar(settings.n_iterations, "icm", "iteration") as bar:
            labels = self._first_labels()
            scores = self._order.all(labels)
            start = self._repair(labels, 0, self._value(labels, scores))
            self._take(start, self._order.all(start), 0, None)
            for iteration in range(1, settings.n_iterations + 1):
                if self._order.remembers and self._settled():
                    log.info("icm: after %d iterations no other can change a label", iteration - 1)
                    break
                self._iterate(iteration)
                self._show(iteration, bar)

    def result(self, *, everyone: bool) -> tuple[Labels, Scores, list[str]]:
        """The labels, their scores in the claims' own order, and notes for the reader."""
        labels, scores = self._labels, self._scores
        left = [i for i in self._fitting if labels[i] is None] if everyone else []
        if left:
            odds = {i: 0.0 if y is None else SURE if y else -SURE for i, y in enumerate(labels)}
            odds |= {i: _odds(self._order.one(labels, i)) for i in left}
            best = consistent_labels(odds, self._related)
            labels = _with(labels, {index: best[index] for index in left})
        if left or isinstance(self._order, Tree):
            scores = Reference(self._order.scorer).all(labels)
        return labels, scores, self._notes(labels, len(left))

    def _notes(self, labels: Labels, predicted: int) -> list[str]:
        notes = []
        if self._settings.consistency == "gold_key_replication":
            notes.append(
                "consistency was judged by the gold labels: they leaked into this search, and its "
                "accuracy is not that of an unsupervised one"
            )
        if len({claim.gold for claim in self._claims} - {None}) == 1:
            notes.append("all gold labels are the same: accuracy says nothing of discrimination")
        there = [label for label in labels if label is not None]
        if len({*there}) == 1:
            notes.append("the search has given all claims the same label")
        elif collapsed(share := sum(there) / len(there)):
            notes.append(
                f"{share:.0%} of the labels found are True: nearly all claims have the same label"
            )
        if predicted:
            notes.append(
                f"{predicted} claims were not accepted by the search: they have the labels "
                "that those found predict; a lower alpha or more n_iterations accepts more"
            )
        if left := sum(labels[index] is None for index in self._fitting):
            notes.append(f"{left} claims have no label: give more n_iterations or a lower alpha")
        return notes + self._order.scorer.notes()

    def _random(self, what: str, *place: int) -> random.Random:
        return random.Random(f"{self._settings.seed}/{what}/{'/'.join(map(str, place))}")

    def _first_labels(self) -> Labels:
        """Random ones, those given, or the predictions from labels of earlier batches (`after`)."""
        there, count, given = self._fitting, len(self._claims), self._settings.n_seeds
        if self._predicted:
            scorer = self._order.scorer
            prompts = [scorer.prompt((None,) * count, (), index) for index in there]
            odds = dict.fromkeys(range(count), 0.0)
            odds |= zip(there, map(_odds, scorer.score(prompts)), strict=True)
            given = consistent_labels(odds, self._related)
        if isinstance(given, int):
            number = min(given, len(there))
            drawn = [index < (number + 1) // 2 for index in range(number)]
            self._random("seeds").shuffle(drawn)
            first = dict(zip(there, drawn, strict=False))
        elif not (first := {i: given[i] for i in there if i < len(given)}):
            raise InputError("n_seeds: no claim with a label fits into the context")
        return tuple(map(first.get, range(count)))

    def _value(self, labels: Labels, scores: Scores) -> float:
        chosen = self._settings
        return energy(labels, scores, self._related, chosen.alpha, chosen.objective)

    def _settled(self) -> bool:
        """Whether all claims have the label that the others predict."""
        return len(self._scores) == len(self._fitting) and all(
            (true > false) is self._labels[index] for index, (true, false) in self._scores.items()
        )

    def _iterate(self, iteration: int) -> None:
        target = self._draw(iteration)
        true, false = self._order.one(self._labels, target)
        if self._labels[target] is (true > false):
            return
        changed = _with(self._labels, {target: true > false})
        candidate = self._repair(changed, iteration, -math.inf)
        scores = self._order.all(candidate)
        gain = self._value(candidate, scores) - self._energy
        heat = temperature(self._settings.schedule, iteration, self._accepted)
        chance = self._random("accept", iteration).random()
        self._tried += 1
        if gain >= 0 or chance < math.exp(gain / heat):
            self._accepted += 1
            self._take(candidate, scores, iteration, target)
        else:
            self._note(iteration, target, self._energy + gain, accepted=False)

    def _draw(self, iteration: int) -> int:
        """A random claim, most likely one without a label whose group has a labelled one."""
        claims, labels, there = self._claims, self._labels, self._fitting
        begun = {claims[i].group for i in there if labels[i] is not None}
        weights = [NEAR if labels[i] is None and claims[i].group in begun else 1 for i in there]
        return self._random("draw", iteration).choices(there, weights)[0]

    def _repair(self, labels: Labels, iteration: int, least: float) -> Labels:
        """Repair the violated relations one by one, as the published code does.

        A repair is kept if the energy does not fall below the best so far, at first `least`. After
        the first repair that is kept, all rounds are used.
        """
        best, repaired = least, False
        for number in range(ROUNDS):
            if not (broken := violated(self._related, labels)):
                break
            self._random("repair", iteration, number).shuffle(broken)
            for one in broken:
                options = [_with(labels, {one.first: a, one.second: b}) for a, b in one.repairs]
                energies = [self._value(option, self._order.all(option)) for option in options]
                if max(energies) >= best:
                    best, repaired = max(energies), True
                    labels = options[energies.index(best)]
                    break
            if not repaired:
                break
        return labels

    def _take(self, labels: Labels, scores: Scores, iteration: int, target: int | None) -> None:
        """Make these the current labels."""
        self._labels = labels
        self._scores = self._order.accept(labels, scores)
        self._energy = self._value(labels, self._scores)
        self._note(iteration, target, self._energy, accepted=True)
        text = "".join("-" if label is None else "01"[label] for label in labels)
        self._journal.move(
            iteration=iteration, claim=target, energy=round(self._energy, 6), labels=text
        )

    def _note(self, iteration: int, target: int | None, value: float, *, accepted: bool) -> None:
        cost, heat = self._order.scorer.cost, max(1, iteration)
        right = [
            label == claim.gold
            for claim, label in zip(self._claims, self._labels, strict=True)
            if label is not None and claim.gold is not None
        ]
        self.history.append(
            {
                "iteration": iteration,
                "claim": -1 if target is None else target,
                "energy": value,
                "accepted": accepted,
                "pool": len(self._scores),
                "temperature": temperature(self._settings.schedule, heat, self._accepted),
                "inconsistencies": len(violated(self._related, self._labels)),
                "label_accuracy": sum(right) / len(right) if right else math.nan,
                "prompts": cost.prompts,
                "prompt_tokens": cost.prompt_tokens,
                "computed_tokens": cost.computed_tokens,
                "seconds": time.perf_counter() - self._start,
            }
        )

    def _show(self, iteration: int, bar: Any) -> None:
        cost = self._order.scorer.cost
        step = Step(
            iteration=iteration,
            pool=len(self._scores),
            energy=self._energy,
            temperature=temperature(self._settings.schedule, iteration, self._accepted),
            tried=self._tried,
            accepted=self._accepted,
            prompt_tokens=cost.prompt_tokens,
            computed_tokens=cost.computed_tokens,
            saved_tokens=self._order.saved_tokens + cost.prompt_tokens - cost.computed_tokens,
        )
        bar.set_postfix_str(
            f"pool {step.pool}, energy {step.energy:.2f}, T {step.temperature:.2f}, accepted "
            f"{step.accepted}/{step.tried}, cache hit {step.cache_hit_rate:.0%}, "
            f"{step.saved_tokens:,} tokens saved",
            refresh=False,
        )
        fact("energy", step.energy)
        fact("acceptance", f"{step.accepted} of {step.tried}")
        fact("labelled", f"{step.pool} of {len(self._claims)}")
        bar.update(1)
        if self._on_step is not None:
            self._on_step(step)


def _odds(score: tuple[float, float]) -> float:
    return score[0] - score[1]


def _with(labels: Labels, changes: dict[int, bool]) -> Labels:
    return tuple(changes.get(index, label) for index, label in enumerate(labels))
