"""The search itself: algorithm 1 of Wen et al. 2025, step by step as the published code does it."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from workbench.errors import InputError
from workbench.icm.bootstrap import _mended
from workbench.icm.claim import Claim, Labels
from workbench.icm.consistency import Pair, violated
from workbench.icm.journal import Journal
from workbench.icm.objective import collapsed, energy, temperature
from workbench.icm.orders import Reference, Scores, Tree
from workbench.icm.report import Result
from workbench.icm.settings import Settings, Step
from workbench.progress import fact, one_bar

log = logging.getLogger("workbench")

NEAR = 100  # weight of a claim without a label beside a labelled one of its group; others have 1
ROUNDS = 10  # of repairs, at most
SURE = 1e6  # log-odds of a label that is not to change


class Annealing:
    """All chance comes from (seed, what for, iteration), so no state of it is kept."""

    def __init__(
        self,
        claims: Sequence[Claim],
        related: Sequence[Pair],
        settings: Settings,
        *,
        order: Reference,
        journal: Journal,
        on_step: Callable[[Step], object] | None,
        everyone: bool = False,
    ) -> None:
        self._claims, self._related, self._settings = claims, related, settings
        self._order, self._journal, self._on_step = order, journal, on_step
        self._everyone, self._predicted = everyone, 0
        self._fitting = order.oracle.fitting()
        self._history: list[dict[str, Any]] = []
        self._tried = self._accepted = 0
        self._start = time.perf_counter()

    def run(self) -> Result:
        settings = self._settings
        with one_bar(settings.n_iterations, "icm", "iteration") as bar:
            self._labels = self._seeds()
            self._scores = self._order.all(self._labels)
            self._energy = self._value(self._labels, self._scores)
            start = self._repaired(self._labels, 0, self._energy)
            self._take(start, self._order.all(start), 0, None)
            for iteration in range(1, settings.n_iterations + 1):
                if self._order.remembers and self._settled():
                    log.info("icm: after %d iterations no other can change a label", iteration - 1)
                    break
                self._iterate(iteration)
                self._show(iteration, bar)
            return self._result()

    def _result(self) -> Result:
        """The end, with one pass over the final labels in the claims' own order."""
        oracle, alpha = self._order.oracle, self._settings.alpha
        labels = self._labels = self._completed()
        scores = self._scores
        if isinstance(self._order, Tree) or self._predicted:
            scores = Reference(oracle).all(labels)
        total = self._value(labels, scores)
        predictability = (total + len(violated(self._related, labels))) / alpha
        return Result(
            labels,
            scores,
            self._related,
            total,
            predictability,
            self._history,
            oracle.cost,
            self._notes(),
            oracle.unfit,
        )

    def _completed(self) -> Labels:
        """With `everyone`, claims that were not accepted have what the found labels predict."""
        labels, left = self._labels, [i for i in self._fitting if self._labels[i] is None]
        if not self._everyone or not left:
            return labels
        odds = {i: 0.0 if y is None else SURE if y else -SURE for i, y in enumerate(labels)}
        for index in left:
            true, false = self._order.one(labels, index)
            odds[index] = true - false
        best, self._predicted = _mended(odds, self._related), len(left)
        return _with(labels, {index: best[index] for index in left})

    def _notes(self) -> list[str]:
        """What a reader has to know."""
        claims, labels = self._claims, self._labels
        notes = []
        if self._settings.consistency == "gold_key_replication":
            notes.append(
                "consistency was judged by the gold labels: they leaked into this search, and its "
                "accuracy is not that of an unsupervised one"
            )
        if len({claim.gold for claim in claims} - {None}) == 1:
            notes.append("all gold labels are the same: accuracy tells nothing of discrimination")
        found = [label for label in labels if label is not None]
        if len({*found}) == 1:
            notes.append("the search has given all claims the same label")
        elif collapsed(share := sum(found) / len(found)):
            notes.append(
                f"{share:.0%} of the labels found are True: nearly all claims have the same"
            )
        if self._predicted:
            notes.append(
                f"{self._predicted} claims were not accepted by the search: they have the labels "
                "that those found predict; a lower alpha or more n_iterations accepts more"
            )
        if left := sum(labels[index] is None for index in self._fitting):
            remedy = "give more n_iterations or a lower alpha"
            notes.append(f"{left} claims have no label: {remedy}")
        return notes + self._order.oracle.notes()

    def _random(self, what: str, *place: int) -> random.Random:
        return random.Random(f"{self._settings.seed}/{what}/{'/'.join(map(str, place))}")

    def _seeds(self) -> Labels:
        given = self._settings.n_seeds
        if isinstance(given, int):
            count = min(given, len(self._fitting))
            drawn = [index < (count + 1) // 2 for index in range(count)]
            self._random("seeds").shuffle(drawn)
            first = dict(zip(self._fitting, drawn, strict=False))
        else:
            first = {i: given[i] for i in self._fitting if i < len(given)}
            if not first:
                raise InputError("n_seeds: none of the claims that have a label fits the context")
        return tuple(map(first.get, range(len(self._claims))))

    def _value(self, labels: Labels, scores: Scores) -> float:
        chosen = self._settings
        return energy(labels, scores, self._related, chosen.alpha, chosen.objective)

    def _settled(self) -> bool:
        """Whether all claims have the label that the others predict."""
        return len(self._scores) == len(self._fitting) and all(
            (true > false) is self._labels[index] for index, (true, false) in self._scores.items()
        )

    def _iterate(self, iteration: int) -> None:
        target = self._drawn(iteration)
        true, false = self._order.one(self._labels, target)
        if self._labels[target] is (true > false):
            return
        changed = _with(self._labels, {target: true > false})
        candidate = self._repaired(changed, iteration, -math.inf)
        scores = self._order.all(candidate)
        gain = self._value(candidate, scores) - self._energy
        heat = temperature(self._settings.schedule, iteration, self._accepted)
        chance = self._random("accept", iteration).random()
        accepted = gain >= 0 or chance < math.exp(gain / heat)
        self._tried += 1
        if accepted:
            self._accepted += 1
            self._take(candidate, scores, iteration, target)
        else:
            self._note(iteration, target, self._energy + gain, accepted=False)

    def _drawn(self, iteration: int) -> int:
        """A claim by chance, most likely one without a label beside a labelled one of its group."""
        claims, labels, there = self._claims, self._labels, self._fitting
        begun = {claims[i].group for i in there if labels[i] is not None}
        weights = [NEAR if labels[i] is None and claims[i].group in begun else 1 for i in there]
        return self._random("draw", iteration).choices(there, weights)[0]

    def _repaired(self, labels: Labels, iteration: int, least: float) -> Labels:
        """The labels with violated pairs mended one by one, as the published code does it.

        A mended pair is kept where the energy does not fall below the best so far, `least` at
        first; once one was kept, all rounds are used.
        """
        best, kept = least, False
        for number in range(ROUNDS):
            open_pairs = violated(self._related, labels)
            if not open_pairs:
                break
            self._random("repair", iteration, number).shuffle(open_pairs)
            for pair in open_pairs:
                options = [_with(labels, {pair.first: a, pair.second: b}) for a, b in pair.repairs]
                values = [self._value(option, self._order.all(option)) for option in options]
                if max(values) >= best:
                    best, kept = max(values), True
                    labels = options[values.index(best)]
                    break
            if not kept:
                break
        return labels

    def _take(self, labels: Labels, scores: Scores, iteration: int, target: int | None) -> None:
        """These labels are the current ones from here on."""
        self._labels = labels
        self._scores = self._order.accept(labels, scores)
        self._energy = self._value(labels, self._scores)
        self._note(iteration, target, self._energy, accepted=True)
        text = "".join("-" if label is None else "01"[label] for label in labels)
        self._journal.move(
            iteration=iteration, claim=target, energy=round(self._energy, 6), labels=text
        )

    def _note(self, iteration: int, target: int | None, value: float, *, accepted: bool) -> None:
        cost = self._order.oracle.cost
        right = [
            label == claim.gold
            for claim, label in zip(self._claims, self._labels, strict=True)
            if label is not None and claim.gold is not None
        ]
        self._history.append(
            {
                "iteration": iteration,
                "claim": -1 if target is None else target,
                "energy": value,
                "accepted": accepted,
                "pool": len(self._scores),
                "temperature": temperature(
                    self._settings.schedule, max(1, iteration), self._accepted
                ),
                "inconsistencies": len(violated(self._related, self._labels)),
                "label_accuracy": sum(right) / len(right) if right else math.nan,
                "prompts": cost.prompts,
                "prompt_tokens": cost.prompt_tokens,
                "computed_tokens": cost.computed_tokens,
                "seconds": time.perf_counter() - self._start,
            }
        )

    def _show(self, iteration: int, bar: Any) -> None:
        cost = self._order.oracle.cost
        step = Step(
            iteration=iteration,
            pool=len(self._scores),
            energy=self._energy,
            temperature=temperature(self._settings.schedule, iteration, self._accepted),
            tried=self._tried,
            accepted=self._accepted,
            prompt_tokens=cost.prompt_tokens,
            computed_tokens=cost.computed_tokens,
            saved_tokens=self._order.spared + cost.prompt_tokens - cost.computed_tokens,
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


def _with(labels: Labels, changes: dict[int, bool]) -> Labels:
    new = list(labels)
    for index, label in changes.items():
        new[index] = label
    return tuple(new)
